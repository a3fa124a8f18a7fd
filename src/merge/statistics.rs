//! Whole-tensor statistics, kept over the candidates of one run: they do not depend on most of what a search changes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::MergeError;
use super::gram::Gram;
use super::remembered::MaskMemory;
use super::statistics_file::{Identity, StatisticsFile};
use super::threshold::{Histogram, Threshold};
use super::window::WindowMemory;
use crate::lock::lock;

/// A tensor among the opened checkpoints: index of the model, index of the tensor in the model's sorted names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TensorKey {
    pub(crate) model: u32,
    pub(crate) tensor: u32,
    /// Elements that are merged: fewer than the tensor has where embeddings are truncated, and not the same for an
    /// embedding and the head that is filled from it.
    pub(crate) elements: u64,
}

/// Two tensors and the bits of the precision that they were compared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PairKey {
    pub(crate) first: TensorKey,
    pub(crate) second: TensorKey,
    pub(crate) key_bits: u32,
}

/// Vectors in the order of their products, and the base that was taken from each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GramKey {
    pub(crate) inputs: Vec<TensorKey>,
    pub(crate) base: Option<TensorKey>,
}

/// Squared norms of two tensors and their dot product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norms {
    pub(crate) first: f64,
    pub(crate) second: f64,
    pub(crate) dot: f64,
}

/// What a small statistic is of.
trait Key: Clone + Eq + Hash {
    fn identity(&self) -> Identity;
}

/// A task vector's threshold, by the number of elements kept.
impl Key for (PairKey, u64) {
    fn identity(&self) -> Identity {
        pair("threshold", 2, &self.0, &[self.1])
    }
}

/// A task vector's L1 factor, by sparsifier.
impl Key for (PairKey, [u64; 3]) {
    fn identity(&self) -> Identity {
        pair("L1 factor", 1, &self.0, &self.1)
    }
}

impl Key for PairKey {
    fn identity(&self) -> Identity {
        pair("norms", 3, self, &[])
    }
}

impl Key for GramKey {
    fn identity(&self) -> Identity {
        let tensors = self.inputs.iter().chain(&self.base).copied().collect();
        let (count, numbers) = (Gram::pairs(self.inputs.len()), vec![u64::from(self.base.is_some())]);
        Identity { kind: "dot products", tensors, numbers, words: count }
    }
}

fn pair(kind: &'static str, words: usize, key: &PairKey, numbers: &[u64]) -> Identity {
    let numbers = std::iter::once(u64::from(key.key_bits)).chain(numbers.iter().copied()).collect();
    Identity { kind, tensors: vec![key.first, key.second], numbers, words }
}

/// A small statistic as words of a file.
trait Statistic: Clone {
    fn to_words(&self) -> Vec<u64>;
    /// `None`: these are not the words of such a statistic.
    fn from_words(words: &[u64]) -> Option<Self>;
}

impl Statistic for Threshold {
    fn to_words(&self) -> Vec<u64> {
        vec![self.key, self.last]
    }

    fn from_words(words: &[u64]) -> Option<Self> {
        let &[key, last] = words else { return None };
        Some(Self { key, last })
    }
}

impl Statistic for f64 {
    fn to_words(&self) -> Vec<u64> {
        vec![self.to_bits()]
    }

    fn from_words(words: &[u64]) -> Option<Self> {
        let &[bits] = words else { return None };
        Some(Self::from_bits(bits))
    }
}

impl Statistic for Norms {
    fn to_words(&self) -> Vec<u64> {
        [self.first, self.second, self.dot].map(f64::to_bits).into()
    }

    fn from_words(words: &[u64]) -> Option<Self> {
        let &[first, second, dot] = words else { return None };
        let [first, second, dot] = [first, second, dot].map(f64::from_bits);
        Some(Self { first, second, dot })
    }
}

impl Statistic for Gram {
    fn to_words(&self) -> Vec<u64> {
        self.products().iter().map(|product| product.to_bits()).collect()
    }

    fn from_words(words: &[u64]) -> Option<Self> {
        Self::from_products(words.iter().map(|bits| f64::from_bits(*bits)).collect())
    }
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

/// Where the small statistics of a merger came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatisticsUse {
    /// Computed from the weights.
    pub computed: u64,
    /// Found in the file beside the run.
    pub read: u64,
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
    /// For masks between two passes; they are not kept for the next candidate.
    pub(crate) masks: MaskMemory,
    /// For what thresholds are selected from; nor is that kept.
    pub(crate) windows: WindowMemory,
    grams: Mutex<Bounded<GramKey, Gram>>,
    /// Where small statistics of large tensors outlive the process.
    file: OnceLock<StatisticsFile>,
    computed: AtomicU64,
    read: AtomicU64,
}

/// Entries that each kind of small statistic may have.
const SMALL_ENTRIES: usize = 1 << 17;
/// Entries that the dot products of all pairs may have: fewer, as each entry is many numbers.
const GRAM_ENTRIES: usize = 1 << 14;

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
            windows: WindowMemory::new(),
            grams: Mutex::new(Bounded::new(GRAM_ENTRIES)),
            file: OnceLock::new(),
            computed: AtomicU64::new(0),
            read: AtomicU64::new(0),
        }
    }

    /// From now on, small statistics are looked for in `file`, and put there. The first file stays.
    pub(crate) fn keep_in(&self, file: StatisticsFile) {
        let _ = self.file.set(file);
    }

    pub(crate) fn file(&self) -> Option<&StatisticsFile> {
        self.file.get()
    }

    pub(crate) fn counts(&self) -> StatisticsUse {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StatisticsUse { computed: load(&self.computed), read: load(&self.read) }
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
        self.cached(&self.thresholds, (key, kept), compute)
    }

    /// Whether the threshold is not known, and none of the task vector has been asked for in this way before.
    pub(crate) fn is_first_threshold(&self, key: PairKey, kept: u64) -> bool {
        if self.find(&self.thresholds, &(key, kept)).is_some() {
            return false;
        }
        let mut asked = lock(&self.asked);
        let first = !asked.entries.contains_key(&key);
        asked.insert(key, ());
        first
    }

    pub(crate) fn put_threshold(&self, key: PairKey, kept: u64, threshold: Threshold) {
        self.put(&self.thresholds, (key, kept), threshold);
    }

    pub(crate) fn find_factor(&self, key: PairKey, sparsifier: [u64; 3]) -> Option<f64> {
        self.find(&self.factors, &(key, sparsifier))
    }

    pub(crate) fn put_factor(&self, key: PairKey, sparsifier: [u64; 3], factor: f64) {
        self.put(&self.factors, (key, sparsifier), factor);
    }

    pub(crate) fn norms(
        &self,
        key: PairKey,
        compute: impl FnOnce() -> Result<Norms, MergeError>,
    ) -> Result<Norms, MergeError> {
        self.cached(&self.norms, key, compute)
    }

    pub(crate) fn gram(
        &self,
        key: GramKey,
        compute: impl FnOnce() -> Result<Gram, MergeError>,
    ) -> Result<Gram, MergeError> {
        self.cached(&self.grams, key, compute)
    }

    /// The lock is not held while computing: threads that wait inside `compute` may take up work that needs the cache.
    fn cached<K: Key, V: Statistic>(
        &self,
        entries: &Mutex<Bounded<K, V>>,
        key: K,
        compute: impl FnOnce() -> Result<V, MergeError>,
    ) -> Result<V, MergeError> {
        if let Some(found) = self.find(entries, &key) {
            return Ok(found);
        }
        let value = compute()?;
        self.put(entries, key, value.clone());
        Ok(value)
    }

    fn find<K: Key, V: Statistic>(&self, entries: &Mutex<Bounded<K, V>>, key: &K) -> Option<V> {
        if let Some(found) = lock(entries).entries.get(key) {
            return Some(found.clone());
        }
        let found = V::from_words(&self.file.get()?.find(&key.identity())?)?;
        self.read.fetch_add(1, Ordering::Relaxed);
        lock(entries).insert(key.clone(), found.clone());
        Some(found)
    }

    fn put<K: Key, V: Statistic>(&self, entries: &Mutex<Bounded<K, V>>, key: K, value: V) {
        self.computed.fetch_add(1, Ordering::Relaxed);
        if let Some(file) = self.file.get() {
            file.put(&key.identity(), value.to_words());
        }
        lock(entries).insert(key, value);
    }
}
