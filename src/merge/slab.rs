//! The masks of long slabs, each made once by whichever threads need it.
//!
//! Blocks of one slab are merged by several threads at the same time. Whoever comes first starts on the slab's pieces,
//! whoever comes meanwhile takes others of them, and nobody waits but for pieces that somebody is at work on.

use crate::lock::lock;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

const WORD: usize = u64::BITS as usize;

/// The mask of one slab: a bit an element.
pub(super) struct Slab {
    bits: Box<[AtomicU64]>,
    pieces: usize,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    done: Mutex<usize>,
    is_done: Condvar,
}

impl Slab {
    fn new(elements: usize, pieces: usize) -> Self {
        let bits = std::iter::repeat_with(AtomicU64::default).take(elements.div_ceil(WORD)).collect();
        Self { bits, pieces, next: AtomicUsize::new(0), done: Mutex::new(0), is_done: Condvar::new() }
    }

    /// Makes pieces until all are taken, and waits for those that others make.
    pub(super) fn make(&self, mut piece: impl FnMut(usize)) {
        /// Counts a piece also when it panics, so that nobody waits for ever.
        struct Done<'a>(&'a Slab);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                *lock(&self.0.done) += 1;
                self.0.is_done.notify_all();
            }
        }
        loop {
            let next = self.next.fetch_add(1, Ordering::Relaxed);
            if next >= self.pieces {
                break;
            }
            let _done = Done(self);
            piece(next);
        }
        let mut done = lock(&self.done);
        while *done < self.pieces {
            done = self.is_done.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Keeps those of the elements from `first` on, of one piece, that are true.
    #[inline(always)]
    pub(super) fn keep(&self, first: usize, kept: impl Iterator<Item = bool>) {
        let (mut word, mut element) = (0, first);
        for kept in kept {
            word |= u64::from(kept) << (element % WORD);
            element += 1;
            if element.is_multiple_of(WORD) {
                // The lock of `done` comes between this and whoever reads it.
                self.bits[element / WORD - 1].fetch_or(word, Ordering::Relaxed);
                word = 0;
            }
        }
        if word != 0 {
            self.bits[element / WORD].fetch_or(word, Ordering::Relaxed);
        }
    }

    /// Which elements of a range are kept, after [`Self::make`].
    pub(super) fn kept(&self, range: Range<usize>) -> impl Iterator<Item = bool> {
        range.map(|element| self.bits[element / WORD].load(Ordering::Relaxed) >> (element % WORD) & 1 == 1)
    }
}

/// The slabs of a tensor that were asked for last: blocks come in order, in each thread's part of the tensor.
pub(super) struct RecentSlabs {
    slabs: Mutex<VecDeque<(u64, Arc<Slab>)>>,
    most: usize,
}

impl RecentSlabs {
    /// Keeps one for each thread, and one more.
    pub(super) fn new(threads: usize) -> Self {
        Self { slabs: Mutex::default(), most: threads + 1 }
    }

    /// The slab with that number, new where nobody has asked for it lately.
    pub(super) fn get(&self, number: u64, elements: usize, pieces: usize) -> Arc<Slab> {
        let mut slabs = lock(&self.slabs);
        if let Some((_, known)) = slabs.iter().find(|(known, _)| *known == number) {
            return Arc::clone(known);
        }
        let slab = Arc::new(Slab::new(elements, pieces));
        slabs.push_back((number, Arc::clone(&slab)));
        if slabs.len() > self.most {
            slabs.pop_front();
        }
        slab
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_made_once_and_everybody_sees_all_of_them() {
        for threads in [1, 4] {
            let recent = RecentSlabs::new(threads);
            let made = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let slab = recent.get(7, 1000, 50);
                        slab.make(|piece| {
                            made.fetch_add(1, Ordering::Relaxed);
                            slab.keep(20 * piece, (0..20).map(|element| (20 * piece + element) % 3 == 0));
                        });
                        let expected = (35..990).map(|element| element % 3 == 0);
                        assert!(slab.kept(35..990).eq(expected));
                    });
                }
            });
            assert_eq!(made.into_inner(), 50);
        }
    }

    #[test]
    fn a_piece_that_fails_leaves_nobody_waiting() {
        let slab = Slab::new(64, 2);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| slab.make(|_| panic!("no"))));
        assert!(failed.is_err());
        slab.make(|_| {});
        assert_eq!(slab.kept(0..64).filter(|kept| *kept).count(), 0);
    }

    #[test]
    fn the_oldest_slab_goes() {
        let recent = RecentSlabs::new(1);
        let first = recent.get(0, 8, 1);
        recent.get(1, 8, 1);
        assert!(Arc::ptr_eq(&first, &recent.get(0, 8, 1)));
        recent.get(2, 8, 1);
        assert!(!Arc::ptr_eq(&first, &recent.get(0, 8, 1)));
    }
}
