//! Whole-tensor statistics, kept over the candidates of one run: they do not depend on most of what a search changes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::MergeError;
use super::remembered::MaskMemory;
use super::threshold::{Histogram, Threshold};

/// A tensor among the opened checkpoints: index of the model, index of the tensor in the model's sorted names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TensorKey {
    pub(crate) model: u32,
    pub(crate) tensor: u32,
}

/// Two tensors and the bits of the precision that they were compared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PairKey {
    pub(crate) first: TensorKey,
    pub(crate) second: TensorKey,
    pub(crate) key_bits: u32,
}

/// Squared norms of two tensors and their dot product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norms {
    pub(crate) first: f64,
    pub(crate) second: f64,
    pub(crate) dot: f64,
}

/// Small statistics, of one kind, kept until there are too many of them.
struct Bounded<K, V> {
    entries: HashMap<K, V>,
    limit: usize,
}

impl<K: Eq + Hash, V: Clone> Bounded<K, V> {
    fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), limit }
    }

    fn insert(&mut self, key: K, value: V) {
        if self.entries.len() >= self.limit {
            self.entries.clear();
        }
        self.entries.insert(key, value);
    }
}

/// The statistics of a run. Every value is a function of its key, so a lost entry costs time only.
pub(crate) struct StatisticsCache {
    histograms: Mutex<(HashMap<PairKey, Arc<Histogram>>, usize)>,
    histogram_bytes: usize,
    thresholds: Mutex<Bounded<(PairKey, u64), Threshold>>,
    /// Task vectors that a threshold has been asked for.
    asked: Mutex<Bounded<PairKey, ()>>,
    factors: Mutex<Bounded<(PairKey, [u64; 3]), f64>>,
    norms: Mutex<Bounded<PairKey, Norms>>,
    /// For masks between two passes; the only thing here that is not kept for the next candidate.
    pub(crate) masks: MaskMemory,
}

/// Entries that each kind of small statistic may have.
const SMALL_ENTRIES: usize = 1 << 17;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StatisticsCache {
    /// `histogram_bytes`: how much memory histograms may take.
    pub(crate) fn new(histogram_bytes: usize) -> Self {
        Self {
            histograms: Mutex::new((HashMap::new(), 0)),
            histogram_bytes,
            thresholds: Mutex::new(Bounded::new(SMALL_ENTRIES)),
            asked: Mutex::new(Bounded::new(SMALL_ENTRIES)),
            factors: Mutex::new(Bounded::new(SMALL_ENTRIES)),
            norms: Mutex::new(Bounded::new(SMALL_ENTRIES)),
            masks: MaskMemory::new(),
        }
    }

    /// Histograms are not replaced: every candidate needs all of them in the same order, so that replacing the oldest
    /// would leave none to be found again.
    pub(crate) fn histogram(
        &self,
        key: PairKey,
        compute: impl FnOnce() -> Result<Arc<Histogram>, MergeError>,
    ) -> Result<Arc<Histogram>, MergeError> {
        if let Some(found) = lock(&self.histograms).0.get(&key) {
            return Ok(Arc::clone(found));
        }
        let histogram = compute()?;
        let mut histograms = lock(&self.histograms);
        let bytes = histograms.1 + histogram.bytes();
        if bytes <= self.histogram_bytes && histograms.0.insert(key, Arc::clone(&histogram)).is_none() {
            histograms.1 = bytes;
        }
        Ok(histogram)
    }

    pub(crate) fn threshold(
        &self,
        key: PairKey,
        kept: u64,
        compute: impl FnOnce() -> Result<Threshold, MergeError>,
    ) -> Result<Threshold, MergeError> {
        cached(&self.thresholds, (key, kept), compute)
    }

    /// Whether no threshold of the task vector has been asked for in this way before.
    pub(crate) fn is_first_threshold(&self, key: PairKey) -> bool {
        let mut asked = lock(&self.asked);
        let first = !asked.entries.contains_key(&key);
        asked.insert(key, ());
        first
    }

    pub(crate) fn put_threshold(&self, key: PairKey, kept: u64, threshold: Threshold) {
        lock(&self.thresholds).insert((key, kept), threshold);
    }

    pub(crate) fn find_factor(&self, key: PairKey, sparsifier: [u64; 3]) -> Option<f64> {
        lock(&self.factors).entries.get(&(key, sparsifier)).copied()
    }

    pub(crate) fn put_factor(&self, key: PairKey, sparsifier: [u64; 3], factor: f64) {
        lock(&self.factors).insert((key, sparsifier), factor);
    }

    pub(crate) fn norms(
        &self,
        key: PairKey,
        compute: impl FnOnce() -> Result<Norms, MergeError>,
    ) -> Result<Norms, MergeError> {
        cached(&self.norms, key, compute)
    }
}

/// The lock is not held while computing: threads that wait inside `compute` may take up work that needs the cache.
fn cached<K: Eq + Hash, V: Clone>(
    entries: &Mutex<Bounded<K, V>>,
    key: K,
    compute: impl FnOnce() -> Result<V, MergeError>,
) -> Result<V, MergeError> {
    if let Some(found) = lock(entries).entries.get(&key) {
        return Ok(found.clone());
    }
    let value = compute()?;
    lock(entries).insert(key, value.clone());
    Ok(value)
}
