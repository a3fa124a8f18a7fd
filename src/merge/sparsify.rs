//! Which elements of a task vector survive, and what restores its size.

use sha2::{Digest, Sha256};

use super::element::Element;
use super::mersenne::{self, MersenneTwister};
use super::philox::{DRAW_RANGE, DRAWS, FEW, Philox, each};
use super::ranked::RankedMask;
#[cfg(test)]
use super::tensor::TILE;
use super::tensor::{BLOCK, block_count};
use super::threshold::Threshold;

/// Snapshots of a Mersenne Twister that a tensor keeps at most.
const MAX_SNAPSHOTS: u64 = 1024;

/// A rule that keeps some elements of a task vector; it depends on the element's position and value only.
pub(crate) enum Sparsifier<'a> {
    KeepAll,
    DropAll,
    /// Keeps the largest magnitudes.
    Magnitude(Threshold),
    /// Drops the largest magnitudes, and the smallest where there is a threshold for them.
    Middle {
        outliers: Threshold,
        kept: Option<Threshold>,
    },
    /// Keeps elements with a probability that rises with the rank of their magnitude.
    Ranked(Box<RankedMask<'a>>),
    /// Keeps elements whose draw is below the limit.
    Philox(PhiloxMask),
    Mersenne(MersenneMask),
}

/// A mask drawn by a counter-based generator. One that keeps an element at some density keeps it at every higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PhiloxMask {
    pub(crate) generator: Philox,
    /// Draws below this keep their element; at most [`DRAW_RANGE`].
    pub(crate) limit: u32,
}

impl PhiloxMask {
    /// The mask of a source's tensor at a density in `[0, 1]`. `content` is the source's content id.
    pub(crate) fn new(seed: u64, content: &str, tensor: &str, density: f64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"evomerge mask v2");
        hash.update(seed.to_le_bytes());
        for part in [content, tensor] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let word = |index: usize| {
            digest[4 * index..4 * index + 4].iter().rev().fold(0_u32, |word, byte| word << 8 | u32::from(*byte))
        };
        Self {
            generator: Philox { key: [word(0), word(1)], stream: [word(2), word(3)] },
            limit: (density.clamp(0.0, 1.0) * f64::from(DRAW_RANGE)).round() as u32,
        }
    }

    /// See [`Sparsifier::subtract`].
    #[inline(always)]
    fn subtract<W: Element>(&self, first: u64, values: &mut [W], others: &[W], term: impl Fn(W) -> W) {
        let mut draws = [[0; 8]; DRAWS / 4];
        let groups = values.chunks_mut(DRAWS).zip(others.chunks(DRAWS));
        for (group, (values, others)) in (first / DRAWS as u64..).zip(groups) {
            self.generator.group::<FEW>(group, &mut draws);
            for ((value, other), draw) in values.iter_mut().zip(others).zip(each(&draws)) {
                let delta = term(*value - *other);
                *value = if u32::from(draw) < self.limit { delta } else { W::ZERO };
            }
        }
    }
}

/// A mask drawn from mergekit's stream, with snapshots so that any block finds its place in it.
pub(crate) struct MersenneMask {
    snapshots: Vec<MersenneTwister>,
    /// Elements between two snapshots.
    spacing: u64,
    /// Elements are kept whose draw modulo 2^24 is below this.
    limit: u32,
    seed: u64,
    /// Draws before this tensor's first.
    position: u64,
}

impl MersenneMask {
    /// Takes `elements` draws from the stream. `probability` is the density rounded to mergekit's working dtype.
    pub(crate) fn take(stream: &mut MersenneStream, elements: u64, probability: f32) -> Self {
        let spacing = block_count(elements).div_ceil(MAX_SNAPSHOTS).max(1) * BLOCK;
        let position = stream.position;
        let mut snapshots = Vec::new();
        let mut left = elements;
        loop {
            snapshots.push(stream.generator.clone());
            let step = left.min(spacing);
            stream.skip(step);
            left -= step;
            if left == 0 {
                break;
            }
        }
        Self { snapshots, spacing, limit: mersenne::limit(probability), seed: stream.seed, position }
    }

    /// Which draws of which stream these are.
    pub(crate) fn place(&self) -> [u64; 2] {
        [self.seed, self.position]
    }

    /// The stream at an element of the tensor.
    pub(crate) fn generator_at(&self, element: u64) -> MersenneTwister {
        let mut generator = self.snapshots[(element / self.spacing) as usize].clone();
        generator.skip(element % self.spacing);
        generator
    }
}

/// Mergekit's stream of draws over a whole merge.
pub(crate) struct MersenneStream {
    generator: MersenneTwister,
    seed: u64,
    position: u64,
}

impl MersenneStream {
    pub(crate) fn new(seed: u64) -> Self {
        Self { generator: MersenneTwister::new(seed), seed, position: 0 }
    }

    fn skip(&mut self, count: u64) {
        self.generator.skip(count);
        self.position += count;
    }
}

impl Sparsifier<'_> {
    /// What tells two sparsifiers of the same task vector apart, for caching.
    pub(crate) fn identity(&self) -> [u64; 3] {
        match self {
            Self::KeepAll => [0, 0, 0],
            Self::DropAll => [1, 0, 0],
            Self::Magnitude(threshold) => [2, threshold.key, threshold.last],
            Self::Middle { outliers, kept } => {
                let kept = kept.map_or([u64::MAX; 2], |kept| [kept.key, kept.last]);
                digest(b"evomerge middle", &[outliers.key, outliers.last, kept[0], kept[1]])
            }
            Self::Ranked(mask) => mask.identity(),
            Self::Philox(mask) => {
                [3 | u64::from(mask.limit) << 8, join(mask.generator.key), join(mask.generator.stream)]
            }
            Self::Mersenne(mask) => [4 | u64::from(mask.limit) << 8, mask.seed, mask.position],
        }
    }

    /// What [`Self::subtract`] needs for the elements of the block that starts at `first`, in order.
    pub(crate) fn begin<W: Element>(&self, first: u64) -> MaskCursor {
        match self {
            Self::Mersenne(mask) => MaskCursor::Stream(Box::new(mask.generator_at(first))),
            Self::Ranked(mask) => MaskCursor::Drawn { first, kept: mask.kept::<W>(first) },
            _ => MaskCursor::Fixed,
        }
    }

    /// Sets the elements that are not kept to zero. `first` is a multiple of [`TILE`].
    #[cfg(test)]
    #[inline(always)]
    pub(crate) fn apply<W: Element>(&self, cursor: &mut MaskCursor, first: u64, delta: &mut [W]) {
        for (first, tile) in (first..).step_by(TILE).zip(delta.chunks_mut(TILE)) {
            self.subtract(cursor, first, tile, &[W::ZERO; TILE], |delta| delta);
        }
    }

    /// Turns values into the task vector's elements `value - base`, given to `term` where they are kept, zero
    /// elsewhere. `first` is a multiple of [`super::tensor::TILE`], and at most that many values are given.
    #[inline(always)]
    pub(crate) fn subtract<W: Element>(
        &self,
        cursor: &mut MaskCursor,
        first: u64,
        values: &mut [W],
        others: &[W],
        term: impl Fn(W) -> W,
    ) {
        let others = &others[..values.len()];
        match self {
            Self::KeepAll => {
                for (value, other) in values.iter_mut().zip(others) {
                    *value = term(*value - *other);
                }
            }
            Self::DropAll => values.fill(W::ZERO),
            Self::Magnitude(threshold) => {
                let key = W::key_from_u64(threshold.key);
                // Up to and including element `last`, equal magnitudes are kept.
                let equal = equals_kept(*threshold, first, values.len());
                let (kept, dropped) = values.split_at_mut(equal);
                let (kept_others, dropped_others) = others.split_at(equal);
                for (value, other) in kept.iter_mut().zip(kept_others) {
                    let delta = *value - *other;
                    *value = if delta.key() >= key { term(delta) } else { W::ZERO };
                }
                for (value, other) in dropped.iter_mut().zip(dropped_others) {
                    let delta = *value - *other;
                    *value = if delta.key() > key { term(delta) } else { W::ZERO };
                }
            }
            Self::Middle { outliers, kept } => {
                difference(values, others);
                if let Some(kept) = kept {
                    keep_from(*kept, first, values);
                }
                drop_from(*outliers, first, values);
                values.iter_mut().filter(|value| **value != W::ZERO).for_each(|value| *value = term(*value));
            }
            Self::Ranked(_) => {
                if let MaskCursor::Drawn { first: start, kept } = cursor
                    && let Some(kept) = kept.get((first - *start) as usize..)
                {
                    for ((value, other), kept) in values.iter_mut().zip(others).zip(kept) {
                        *value = if *kept { term(*value - *other) } else { W::ZERO };
                    }
                }
            }
            Self::Philox(mask) => mask.subtract(first, values, others, term),
            Self::Mersenne(mask) => {
                if let MaskCursor::Stream(generator) = cursor {
                    for (value, other) in values.iter_mut().zip(others) {
                        let kept = generator.keeps(mask.limit);
                        *value = if kept { term(*value - *other) } else { W::ZERO };
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn difference<W: Element>(values: &mut [W], others: &[W]) {
    for (value, other) in values.iter_mut().zip(others) {
        *value = *value - *other;
    }
}

/// Where in its mask a run of consecutive tiles is.
pub(crate) enum MaskCursor {
    /// The mask depends on position and value alone.
    Fixed,
    Stream(Box<MersenneTwister>),
    /// Which elements of the block from `first` on are kept.
    Drawn {
        first: u64,
        kept: Vec<bool>,
    },
}

/// How many of the elements from `first` on are kept where they equal the threshold.
#[inline(always)]
fn equals_kept(threshold: Threshold, first: u64, length: usize) -> usize {
    threshold.last.saturating_add(1).saturating_sub(first).min(length as u64) as usize
}

#[inline(always)]
pub(crate) fn keep_from<W: Element>(threshold: Threshold, first: u64, delta: &mut [W]) {
    let key = W::key_from_u64(threshold.key);
    // Up to and including element `last`, equal magnitudes are kept.
    let (kept, dropped) = delta.split_at_mut(equals_kept(threshold, first, delta.len()));
    for value in kept {
        *value = if value.key() >= key { *value } else { W::ZERO };
    }
    for value in dropped {
        *value = if value.key() > key { *value } else { W::ZERO };
    }
}

/// Drops exactly what [`keep_from`] keeps.
#[inline(always)]
fn drop_from<W: Element>(threshold: Threshold, first: u64, delta: &mut [W]) {
    let key = W::key_from_u64(threshold.key);
    let (dropped, kept) = delta.split_at_mut(equals_kept(threshold, first, delta.len()));
    for value in dropped {
        *value = if value.key() < key { *value } else { W::ZERO };
    }
    for value in kept {
        *value = if value.key() <= key { *value } else { W::ZERO };
    }
}

/// Numbers as three words that tell them apart from others.
pub(crate) fn digest(purpose: &[u8], numbers: &[u64]) -> [u64; 3] {
    let mut hash = Sha256::new();
    hash.update(purpose);
    for number in numbers {
        hash.update(number.to_le_bytes());
    }
    let digest = hash.finalize();
    [0, 1, 2].map(|word| digest[8 * word..8 * word + 8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
}

pub(crate) fn join(words: [u32; 2]) -> u64 {
    u64::from(words[0]) | u64::from(words[1]) << 32
}
