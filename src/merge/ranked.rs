//! Masks whose probabilities follow the ranks of magnitudes inside rows (DELLA, arXiv 2406.11617).
//!
//! The mask of a block is drawn where the block is computed: rows that it touches are decoded and ranked, and
//! forgotten. Where rows (with what lies between their elements, a slab) are longer than [`LONG`], a slab's mask is
//! made once, piece by piece, by the threads whose blocks lie in it. mergekit's stream of draws has no places to begin
//! at; with it, the whole mask is kept, a byte an element.

use super::MergeError;
use super::element::{Element, bf16_to_f32, f32_to_bf16};
use super::mersenne;
use super::philox::{DRAW_RANGE, DRAWS, FEW, MANY, Philox, each};
use super::rank::Ranking;
use super::simd::{Isa, Kernel, dispatch};
use super::slab::{SharedSlabs, Slab};
use super::sparsify::{MersenneMask, digest, join};
use super::tensor::{BLOCK, TILE, TaskVector};

/// Longest slab that is ranked again for every block that touches it.
const LONG: u64 = 4 * BLOCK;
/// Elements of a piece of a longer one, about: rows that lie beside each other.
const PIECE: usize = 1 << 19;

/// Where a mask's draws come from.
pub(crate) enum Draws {
    Philox(Philox),
    Mersenne(MersenneMask),
}

/// The mask of one task vector.
pub(crate) struct RankedMask<'a> {
    vector: TaskVector<'a>,
    elements: u64,
    rows: Rows,
    density: f64,
    epsilon: f64,
    /// Probabilities are rounded to bfloat16 at every step, as mergekit does it for bfloat16 tensors.
    coarse: bool,
    draws: Draws,
    isa: Isa,
    /// By rank: draws must be below these numbers for an element to be kept.
    limits: Vec<u32>,
    kept: Kept,
}

/// What is remembered of a mask.
enum Kept {
    Nothing,
    Slabs(SharedSlabs),
    All(Vec<bool>),
}

/// Rows of `width` elements along dimension 1, `spread` elements apart; `spread` of them make a contiguous slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rows {
    width: usize,
    spread: usize,
}

impl Rows {
    /// A tensor with less than two dimensions is one row.
    fn of(shape: &[usize]) -> Self {
        match shape {
            [] => Self { width: 1, spread: 1 },
            [width] => Self { width: *width, spread: 1 },
            [_, width, rest @ ..] => Self { width: *width, spread: rest.iter().product() },
        }
    }

    const fn slab(self) -> u64 {
        (self.width * self.spread) as u64
    }
}

impl<'a> RankedMask<'a> {
    /// The mask of a task vector of that shape. Needs `0 < density - epsilon` and `density + epsilon < 1`.
    pub(crate) fn new<W: Element>(
        isa: Isa,
        vector: TaskVector<'a>,
        shape: &[usize],
        [density, epsilon]: [f64; 2],
        coarse: bool,
        draws: Draws,
    ) -> Self {
        let elements = shape.iter().map(|length| *length as u64).product();
        let rows = Rows::of(shape);
        let (limits, kept) = (Vec::new(), Kept::Nothing);
        let mut mask = Self { vector, elements, rows, density, epsilon, coarse, draws, isa, limits, kept };
        mask.limits = (0..rows.width).map(|rank| mask.limit(rank)).collect();
        mask.kept = match mask.draws {
            _ if rows.slab() <= LONG => Kept::Nothing,
            Draws::Philox(_) => Kept::Slabs(SharedSlabs::default()),
            Draws::Mersenne(_) => Kept::All(mask.draw::<W>(0, elements)),
        };
        mask
    }

    /// What tells the mask apart from others of the same task vector.
    pub(crate) fn identity(&self) -> [u64; 3] {
        let draws = match &self.draws {
            Draws::Philox(generator) => [0, join(generator.key), join(generator.stream)],
            Draws::Mersenne(mask) => {
                let [seed, position] = mask.place();
                [1 | u64::from(self.coarse) << 8, seed, position]
            }
        };
        let numbers = [self.density.to_bits(), self.epsilon.to_bits(), draws[0], draws[1], draws[2]];
        digest(b"evomerge ranked mask", &numbers)
    }

    /// How many elements the block that starts at `first` has.
    pub(crate) fn block_length(&self, first: u64) -> usize {
        (self.elements.min(first + BLOCK) - first) as usize
    }

    /// Which elements of the block that starts at `first` are kept.
    pub(crate) fn kept<W: Element>(&self, first: u64) -> Vec<bool> {
        let end = first + self.block_length(first) as u64;
        match (&self.kept, &self.draws) {
            (Kept::All(kept), _) => kept[first as usize..end as usize].to_vec(),
            (Kept::Slabs(slabs), Draws::Philox(generator)) => self.share::<W>(slabs, generator, first, end),
            _ => self.draw::<W>(first, end),
        }
    }

    /// Which elements from `first` to `end` are kept, with the other threads that work on the same slabs.
    fn share<W: Element>(&self, slabs: &SharedSlabs, generator: &Philox, first: u64, end: u64) -> Vec<bool> {
        let (slab, Rows { width, spread }) = (self.rows.slab(), self.rows);
        let columns = (PIECE / width).clamp(1, spread);
        let mut kept = Vec::with_capacity((end - first) as usize);
        for number in first / slab..end.div_ceil(slab) {
            let start = number * slab;
            let blocks = (start + slab).div_ceil(BLOCK) - start / BLOCK;
            let shared = slabs.get(number, blocks, || Slab::new(slab as usize, spread.div_ceil(columns)));
            let (mut keys, mut rows, mut limits) = (Vec::new(), RowRanks::default(), Vec::new());
            shared.make(|piece| {
                let column = piece * columns;
                let columns = columns.min(spread - column);
                self.limits_of::<W>(start + column as u64, columns, &mut keys, &mut rows, &mut limits);
                let draw = DrawColumns {
                    generator,
                    slab: start,
                    first: column,
                    columns,
                    spread,
                    limits: &limits,
                    kept: &shared,
                };
                dispatch(self.isa, draw);
            });
            kept.extend(shared.kept(first.saturating_sub(start) as usize..(end - start).min(slab) as usize));
        }
        kept
    }

    /// `first` is the start of a block.
    fn draw<W: Element>(&self, first: u64, end: u64) -> Vec<bool> {
        let slab = self.rows.slab();
        let mut limits = Vec::with_capacity((end - first) as usize);
        let (mut of_slab, mut keys, mut ranking) = (Vec::new(), Vec::new(), RowRanks::default());
        for slab_start in (first / slab.max(1) * slab..end).step_by(slab.max(1) as usize) {
            self.limits_of::<W>(slab_start, self.rows.spread, &mut keys, &mut ranking, &mut of_slab);
            let from = first.saturating_sub(slab_start) as usize;
            let to = (end - slab_start).min(slab) as usize;
            limits.extend_from_slice(&of_slab[from..to]);
        }
        match &self.draws {
            Draws::Philox(generator) => {
                let mut kept = vec![false; limits.len()];
                dispatch(self.isa, Draw { generator, first, limits: &limits, kept: &mut kept });
                kept
            }
            Draws::Mersenne(mask) => {
                let mut generator = mask.generator_at(first);
                limits.into_iter().map(|limit| generator.keeps(limit)).collect()
            }
        }
    }

    /// Fills `limits`, in the order of the elements, for `columns` neighbouring rows, the first of which begins at
    /// element `first`: an element is kept where its draw is below its limit.
    fn limits_of<W: Element>(
        &self,
        first: u64,
        columns: usize,
        keys: &mut Vec<W::Key>,
        rows: &mut RowRanks,
        limits: &mut Vec<u32>,
    ) {
        let Rows { width, spread } = self.rows;
        let length = width * columns;
        keys.resize(length, W::Key::default());
        limits.resize(length, 0);
        // A whole slab lies in one piece.
        let run = if columns == spread { length } else { columns };
        // Numbers that are not finite are told of where the block itself is decoded.
        let _ = dispatch(self.isa, Keys::<W> { vector: self.vector, first, run, spread, keys });
        let RowRanks { ranking, ranks } = rows;
        let limit = |rank: u32| self.limits[rank as usize];
        if columns == 1 {
            ranking.rank(keys.iter().map(|key| W::key_to_u64(*key)), W::KEY_BITS, ranks);
            limits.iter_mut().zip(ranks).for_each(|(of_element, rank)| *of_element = limit(*rank));
            return;
        }
        for row in 0..columns.min(length) {
            let of_row = keys[row..].iter().step_by(columns).take(width).map(|key| W::key_to_u64(*key));
            ranking.rank(of_row, W::KEY_BITS, ranks);
            let of_elements = limits[row..].iter_mut().step_by(columns);
            of_elements.zip(&*ranks).for_each(|(of_element, rank)| *of_element = limit(*rank));
        }
    }

    fn limit(&self, rank: usize) -> u32 {
        let probability = probability(rank, self.rows.width, [self.density, self.epsilon], self.coarse);
        match self.draws {
            Draws::Philox(_) => (f64::from(probability) * f64::from(DRAW_RANGE)).round() as u32,
            Draws::Mersenne(_) => mersenne::limit(probability),
        }
    }
}

/// The chance to be kept of the element of that rank in a row: from `density - epsilon` for the smallest magnitude
/// (rank 0) to `density + epsilon` for the largest, in float32 or (`coarse`) bfloat16 step by step; `density` in a row
/// of one element.
fn probability(rank: usize, width: usize, [density, epsilon]: [f64; 2], coarse: bool) -> f32 {
    let round = |value: f32| if coarse { bf16_to_f32(f32_to_bf16(value)) } else { value };
    if width < 2 {
        return round(density as f32);
    }
    // Ranks are counted from 0, made floats, and then one is added.
    let [rank, lowest, highest] = [rank, 0, width - 1].map(|rank| round(round(rank as f32) + 1.0));
    let share = round(round(rank - lowest) / round(highest - lowest)).clamp(0.0, 1.0);
    round(round(round(share * 2.0) * epsilon as f32) + round((density - epsilon) as f32))
}

/// What ranking rows needs, and the ranks of the last one.
#[derive(Default)]
struct RowRanks {
    ranking: Ranking,
    ranks: Vec<u32>,
}

/// Magnitudes of a task vector, as ordered bits: runs of elements, the first at `first`, each `spread` after the one
/// before.
struct Keys<'a, W: Element> {
    vector: TaskVector<'a>,
    first: u64,
    run: usize,
    spread: usize,
    keys: &'a mut [W::Key],
}

impl<W: Element> Kernel for Keys<'_, W> {
    type Output = Result<(), MergeError>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let (mut delta, mut base) = ([W::ZERO; TILE], [W::ZERO; TILE]);
        for (start, keys) in (self.first..).step_by(self.spread.max(1)).zip(self.keys.chunks_mut(self.run.max(1))) {
            for (first, keys) in (start..).step_by(TILE).zip(keys.chunks_mut(TILE)) {
                let delta = &mut delta[..keys.len()];
                self.vector.tile(first, delta, &mut base)?;
                for (key, value) in keys.iter_mut().zip(delta) {
                    *key = value.key();
                }
            }
        }
        Ok(())
    }
}

/// Compares the draws of the elements from `first` on, a multiple of [`DRAWS`], with their limits.
struct Draw<'a> {
    generator: &'a Philox,
    first: u64,
    limits: &'a [u32],
    kept: &'a mut [bool],
}

impl Draw<'_> {
    #[inline(always)]
    fn compare<const COUNTERS: usize>(self) {
        let mut draws = [[0; 8]; DRAWS / 4];
        let groups = self.limits.chunks(DRAWS).zip(self.kept.chunks_mut(DRAWS));
        for (group, (limits, kept)) in (self.first / DRAWS as u64..).zip(groups) {
            self.generator.group::<COUNTERS>(group, &mut draws);
            for ((limit, kept), draw) in limits.iter().zip(kept).zip(each(&draws)) {
                *kept = u32::from(draw) < *limit;
            }
        }
    }
}

impl Kernel for Draw<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.compare::<FEW>();
    }

    #[inline(always)]
    fn run_wide(self) {
        self.compare::<MANY>();
    }
}

/// Compares the draws of rows beside each other with their limits, and keeps what is below. `first` is the first row's
/// place in the slab that begins at element `slab`.
struct DrawColumns<'a> {
    generator: &'a Philox,
    slab: u64,
    first: usize,
    columns: usize,
    spread: usize,
    limits: &'a [u32],
    kept: &'a Slab,
}

impl DrawColumns<'_> {
    #[inline(always)]
    fn compare<const COUNTERS: usize>(self) {
        let mut draws = [[0; 8]; DRAWS / 4];
        for (mut place, mut limits) in (self.first..).step_by(self.spread).zip(self.limits.chunks(self.columns)) {
            while !limits.is_empty() {
                let element = self.slab + place as u64;
                let offset = (element % DRAWS as u64) as usize;
                self.generator.group::<COUNTERS>(element / DRAWS as u64, &mut draws);
                let (now, later) = limits.split_at(limits.len().min(DRAWS - offset));
                let below = now.iter().zip(each(&draws).skip(offset)).map(|(limit, draw)| u32::from(draw) < *limit);
                self.kept.keep(place, below);
                place += now.len();
                limits = later;
            }
        }
    }
}

impl Kernel for DrawColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.compare::<FEW>();
    }

    #[inline(always)]
    fn run_wide(self) {
        self.compare::<MANY>();
    }
}

#[cfg(test)]
mod tests {
    use rayon::iter::{IntoParallelIterator, ParallelIterator};

    use super::*;
    use crate::checkpoint::Dtype;
    use crate::merge::statistics::TensorKey;
    use crate::merge::tensor::{Stored, block_count};

    /// Slabs of `shape` are longer than [`LONG`], end inside words, groups and blocks, and are cut into several pieces.
    #[test]
    fn long_slabs_that_threads_share_are_what_one_draws_alone() {
        for shape in [&[3, 1001, 601][..], &[2, 600_011], &[2, 3, 200_003], &[2, 1, 524_289], &[1, 600_001, 3]] {
            let elements: usize = shape.iter().product();
            let values = |seed: u32| -> Vec<u8> {
                let value = |index: usize| {
                    let number = (index as u32 ^ seed).wrapping_mul(0x9E37_79B9) >> 20;
                    (number % 97) as f32 / 97.0
                };
                (0..elements).flat_map(|index| value(index).to_le_bytes()).collect()
            };
            let (base, source) = (values(1), values(77));
            let stored = |model: u32, bytes| Stored {
                dtype: Dtype::Float32,
                bytes,
                model: "m",
                tensor: "t",
                key: TensorKey { model, tensor: 0, elements: elements as u64 },
                delta: None,
            };
            let vector = TaskVector { source: stored(1, &source), base: stored(0, &base) };
            let draws = || Draws::Philox(Philox { key: [3, 5], stream: [7, 11] });
            for isa in Isa::available() {
                let mask = RankedMask::new::<f32>(isa, vector, shape, [0.4, 0.2], false, draws());
                assert!(matches!(mask.kept, Kept::Slabs(_)));
                let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
                let kept: Vec<bool> = pool.install(|| {
                    let blocks = (0..block_count(mask.elements)).into_par_iter();
                    blocks.flat_map_iter(|block| mask.kept::<f32>(block * BLOCK)).collect()
                });
                assert!(kept == mask.draw::<f32>(0, mask.elements), "{shape:?}");
                let share = kept.iter().filter(|kept| **kept).count() as f64 / elements as f64;
                assert!((share - 0.4).abs() < 0.01, "{share}");
            }
        }
    }

    /// Chances times 65,536 that PyTorch 2.15 gives for bfloat16 ranks.
    #[test]
    fn coarse_chances_are_those_of_pytorch() {
        let table = [
            (1540, [0.5, 0.1], &[(0, 26_240), (100, 27_136), (255, 28_416), (259, 28_416), (299, 28_800)]),
            (1540, [0.5, 0.1], &[(511, 30_592), (512, 30_592), (515, 30_720), (1000, 34_816), (1539, 39_424)]),
            (300, [0.7, 0.15], &[(1, 36_096), (2, 36_352), (7, 36_608), (257, 52_736), (258, 53_248)]),
        ];
        for (width, settings, expected) in table {
            for (rank, chance) in expected {
                assert_eq!(probability(*rank, width, settings, true) * 65_536.0, *chance as f32, "{rank} of {width}");
            }
        }
        assert_eq!(probability(0, 1, [0.5, 0.1], false), 0.5);
        assert_eq!(probability(2, 3, [0.5, 0.25], false), 0.75);
    }
}
