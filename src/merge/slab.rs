//! The masks of long slabs, each made once by whichever threads need it.
//!
//! Blocks of one slab are merged by several threads at the same time. Whoever comes first starts on the slab's pieces,
//! whoever comes meanwhile takes others of them, and nobody waits but for pieces that somebody is at work on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::lock::lock;

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
    /// A slab of `elements` elements that is made in `pieces` pieces.
    pub(super) fn new(elements: usize, pieces: usize) -> Self {
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

/// The slabs of a tensor that some blocks have asked for and others will.
#[derive(Default)]
pub(super) struct SharedSlabs(Mutex<BTreeMap<u64, Shared>>);

struct Shared {
    slab: Arc<Slab>,
    /// How many blocks have not asked for it yet.
    left: u64,
}

impl SharedSlabs {
    /// The slab with that number for one of the `blocks` that lie in it; forgotten when all have asked. A pass over the
    /// tensor that follows makes it anew.
    pub(super) fn get(&self, number: u64, blocks: u64, new: impl FnOnce() -> Slab) -> Arc<Slab> {
        let mut slabs = lock(&self.0);
        let shared = slabs.entry(number).or_insert_with(|| Shared { slab: Arc::new(new()), left: blocks });
        shared.left = shared.left.saturating_sub(1);
        let slab = Arc::clone(&shared.slab);
        if shared.left == 0 {
            slabs.remove(&number);
        }
        slab
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_made_once_and_everybody_sees_all_of_them() {
        for threads in [1, 4_u64] {
            let shared = SharedSlabs::default();
            let made = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        let slab = shared.get(7, threads, || Slab::new(1000, 50));
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
    fn a_slab_goes_when_all_its_blocks_have_asked() {
        let shared = SharedSlabs::default();
        let get = |number| shared.get(number, 3, || Slab::new(8, 1));
        let first = get(0);
        get(1);
        assert!(Arc::ptr_eq(&first, &get(0)) && Arc::ptr_eq(&first, &get(0)));
        assert!(!Arc::ptr_eq(&first, &get(0)), "a new pass");
        assert_eq!(lock(&shared.0).len(), 2);
    }
}
