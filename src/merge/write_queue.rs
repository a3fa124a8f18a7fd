//! Blocks on their way to files that take one write at a time.
//!
//! Threads that wait for a file's lock spin in the kernel. Here they leave their block to the thread that is writing
//! and go on merging.

use std::sync::Mutex;

use crate::lock::lock;

/// Most blocks that may wait; a thread that finds this many waits itself.
const WAITING: usize = 8;

/// A merged block.
pub(crate) struct QueuedBlock<'a> {
    /// Its place in the order of the work.
    pub(crate) ordinal: u64,
    pub(crate) tensor: &'a str,
    /// Bytes of the tensor before it.
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The blocks of a merge that have not been written, and buffers for the next ones.
pub(crate) struct WriteQueue<'a> {
    waiting: Mutex<Vec<QueuedBlock<'a>>>,
    /// Held by the thread that writes.
    writing: Mutex<()>,
    free: Mutex<Vec<Vec<u8>>>,
}

impl<'a> WriteQueue<'a> {
    pub(crate) fn new() -> Self {
        Self { waiting: Mutex::new(Vec::new()), writing: Mutex::new(()), free: Mutex::new(Vec::new()) }
    }

    /// A buffer of that many bytes, whatever they are.
    pub(crate) fn buffer(&self, length: usize) -> Vec<u8> {
        let mut buffer = lock(&self.free).pop().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    /// Takes back a buffer that is not needed any more.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        lock(&self.free).push(buffer);
    }

    /// Writes the block, or leaves it to a thread that is writing. When all calls have returned, all blocks have been
    /// written.
    pub(crate) fn put(&self, block: QueuedBlock<'a>, write: impl Fn(&QueuedBlock<'a>)) {
        let mut waiting = lock(&self.waiting);
        if waiting.len() < WAITING {
            waiting.push(block);
            drop(waiting);
        } else {
            drop(waiting);
            let writing = lock(&self.writing);
            self.write(block, &write);
            self.write_waiting(&write);
            drop(writing);
        }
        // Whoever holds the lock looks once more after it has let go of it.
        while !lock(&self.waiting).is_empty() {
            let Ok(writing) = self.writing.try_lock() else { return };
            self.write_waiting(&write);
            drop(writing);
        }
    }

    fn write_waiting(&self, write: &impl Fn(&QueuedBlock<'a>)) {
        loop {
            let next = lock(&self.waiting).pop();
            match next {
                Some(block) => self.write(block, write),
                None => return,
            }
        }
    }

    fn write(&self, block: QueuedBlock<'a>, write: &impl Fn(&QueuedBlock<'a>)) {
        write(&block);
        self.give_back(block.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use rayon::iter::{IntoParallelIterator, ParallelIterator};

    use super::*;

    #[test]
    fn every_block_is_written_once_by_one_thread_at_a_time() {
        let (queue, sum, count, writers) = (WriteQueue::new(), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        pool.install(|| {
            (0..2000_u64).into_par_iter().for_each(|ordinal| {
                let mut bytes = queue.buffer(8);
                bytes.copy_from_slice(&ordinal.to_le_bytes());
                queue.put(QueuedBlock { ordinal, tensor: "t", offset: 8 * ordinal, bytes }, |block| {
                    assert_eq!(writers.fetch_add(1, Ordering::SeqCst), 0);
                    assert_eq!(block.bytes, block.ordinal.to_le_bytes());
                    sum.fetch_add(block.ordinal, Ordering::Relaxed);
                    count.fetch_add(1, Ordering::Relaxed);
                    writers.fetch_sub(1, Ordering::SeqCst);
                });
            });
        });
        assert_eq!((count.into_inner(), sum.into_inner()), (2000, 2000 * 1999 / 2));
        assert!(lock(&queue.waiting).is_empty());
        assert!(queue.free.into_inner().unwrap().len() <= WAITING + 5);
    }
}
