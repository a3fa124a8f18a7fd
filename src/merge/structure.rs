//! What the weights alone say of the sources: how far each moved from the base, layer by layer, and where they pull
//! apart. Costs no evaluation.

use rayon::prelude::*;

use super::element::Element;
use super::lora::Delta;
use super::simd::Isa;
use crate::checkpoint::{Checkpoint, Dtype, is_unread};

/// Elements looked at together; fixed, so that sums do not depend on the machine.
const BLOCK: usize = 1 << 14;
/// Most groups that [`group_layers`] makes.
const MOST_GROUPS: usize = 8;
/// Share of the variation between layers that groups may leave unexplained.
const UNEXPLAINED: f64 = 0.2;

/// The task vectors (source minus base) of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerProfile {
    /// Euclidean norm of each source's task vector over that of the base's weights; in the order of the sources.
    pub movement: Vec<f64>,
    /// For each pair of sources (0 1, 0 2, ..., 1 2, ...).
    pub pairs: Vec<PairProfile>,
}

/// Two sources on one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairProfile {
    /// Cosine between the task vectors; 0 where one of them is zero.
    pub cosine: f64,
    /// Share of the elements moved by both that they move in opposite directions.
    pub sign_disagreement: f64,
}

/// Sums over elements.
#[derive(Clone, Debug, Default)]
struct Sums {
    base: f64,
    squares: Vec<f64>,
    products: Vec<f64>,
    both: Vec<f64>,
    opposite: Vec<f64>,
}

impl Sums {
    fn new(sources: usize) -> Self {
        let pairs = sources * (sources - 1) / 2;
        let zeros = |count| vec![0.0; count];
        Self { base: 0.0, squares: zeros(sources), products: zeros(pairs), both: zeros(pairs), opposite: zeros(pairs) }
    }

    fn add(&mut self, other: &Self) {
        self.base += other.base;
        let all = [
            (&mut self.squares, &other.squares),
            (&mut self.products, &other.products),
            (&mut self.both, &other.both),
            (&mut self.opposite, &other.opposite),
        ];
        for (sums, others) in all {
            sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        }
    }

    fn profile(&self) -> LayerProfile {
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let mut pairs = Vec::with_capacity(self.products.len());
        for first in 0..self.squares.len() {
            for second in first + 1..self.squares.len() {
                let pair = pairs.len();
                let norms = (self.squares[first] * self.squares[second]).sqrt();
                pairs.push(PairProfile {
                    cosine: share(self.products[pair], norms),
                    sign_disagreement: share(self.opposite[pair], self.both[pair]),
                });
            }
        }
        let movement = self.squares.iter().map(|squares| share(squares.sqrt(), self.base.sqrt())).collect();
        LayerProfile { movement, pairs }
    }
}

/// Profiles of all layers of models that fit together; none for models without numbered layers. Reads all their
/// weights. Tensors that are no floats, or that differ in length, are left out.
pub fn layer_profiles(base: &Checkpoint, sources: &[&Checkpoint]) -> Vec<LayerProfile> {
    let layout = base.layers();
    if sources.is_empty() {
        return Vec::new();
    }
    let names: Vec<(usize, &String)> =
        base.tensors().keys().filter_map(|name| Some((layout.layer_of(name)?, name))).collect();
    let sums: Vec<(usize, Sums)> =
        names.par_iter().map(|(layer, name)| (*layer, tensor_sums(base, sources, name))).collect();
    let mut layers = vec![Sums::new(sources.len()); layout.count];
    for (layer, tensor) in &sums {
        layers[*layer].add(tensor);
    }
    layers.iter().map(Sums::profile).collect()
}

fn tensor_sums(base: &Checkpoint, sources: &[&Checkpoint], name: &str) -> Sums {
    let mut sums = Sums::new(sources.len());
    let Some(stored_base) = Floats::of(base, name) else { return sums };
    let elements = stored_base.elements;
    let inputs: Option<Vec<_>> = sources.iter().map(|source| Floats::of(source, name)).collect();
    let Some(inputs) = inputs.filter(|inputs| inputs.iter().all(|input| input.elements == elements)) else {
        return sums;
    };
    let mut origin = vec![0.0f64; BLOCK];
    let mut deltas = vec![vec![0.0f64; BLOCK]; inputs.len()];
    for start in (0..elements).step_by(BLOCK) {
        let count = BLOCK.min(elements - start);
        stored_base.decode(start, &mut origin[..count]);
        sums.base += origin[..count].iter().map(|value| value * value).sum::<f64>();
        for (input, delta) in inputs.iter().zip(&mut deltas) {
            input.decode(start, &mut delta[..count]);
            delta[..count].iter_mut().zip(&origin).for_each(|(value, origin)| *value -= origin);
        }
        for (squares, delta) in sums.squares.iter_mut().zip(&deltas) {
            *squares += delta[..count].iter().map(|value| value * value).sum::<f64>();
        }
        let mut pair = 0;
        for first in 0..deltas.len() {
            for second in first + 1..deltas.len() {
                for (one, other) in deltas[first][..count].iter().zip(&deltas[second][..count]) {
                    let product = one * other;
                    sums.products[pair] += product;
                    sums.both[pair] += f64::from(u8::from(product != 0.0));
                    sums.opposite[pair] += f64::from(u8::from(product < 0.0));
                }
                pair += 1;
            }
        }
    }
    sums
}

/// A float tensor.
pub(super) struct Floats<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    elements: usize,
    delta: Option<Delta>,
}

impl<'a> Floats<'a> {
    /// `None` where the model has no such tensor, or it is not made of floats, or no loader reads it.
    pub(super) fn of(model: &'a Checkpoint, name: &str) -> Option<Self> {
        let info = model.tensors().get(name).filter(|info| !is_unread(info))?;
        let dtype = info.float()?;
        let delta = model.low_rank(name).map(|change| Delta::new(&change, dtype, Isa::detect()));
        Some(Self { dtype, bytes: model.bytes(name)?, elements: info.elements(), delta })
    }

    /// Number of elements.
    pub(super) const fn elements(&self) -> usize {
        self.elements
    }

    /// The elements from `start` on.
    pub(super) fn decode(&self, start: usize, values: &mut [f64]) {
        if let Some(delta) = &self.delta {
            delta.decode(self.bytes, start as u64, values);
            return;
        }
        let width = self.dtype.size();
        f64::decode(self.dtype, &self.bytes[start * width..(start + values.len()) * width], values);
    }
}

/// Groups consecutive layers that are alike: the fewest groups (8 at most) that leave at most a fifth of the variation
/// of movements and cosines between layers unexplained, at the best places for their number (dynamic programming). The
/// first layer of each group; one group where all layers are alike.
pub fn group_layers(profiles: &[LayerProfile]) -> Vec<usize> {
    let points = features(profiles);
    let layers = points.len();
    if layers < 2 {
        return vec![0];
    }
    // spread[a][b]: sum of squared distances to the mean of layers a..=b.
    let spread: Vec<Vec<f64>> =
        (0..layers).map(|first| (0..layers).map(|last| spread_of(&points, first, last)).collect()).collect();
    let whole = spread[0][layers - 1];
    if whole < 1e-12 {
        return vec![0];
    }
    // best[k][n]: the least spread of the first n + 1 layers in k + 1 groups, and where the last group starts.
    let mut best: Vec<Vec<(f64, usize)>> = vec![(0..layers).map(|last| (spread[0][last], 0)).collect()];
    for groups in 1..MOST_GROUPS.min(layers) {
        if best[groups - 1][layers - 1].0 <= UNEXPLAINED * whole {
            break;
        }
        let row = (0..layers).map(|last| {
            let cut = |start: usize| (best[groups - 1][start - 1].0 + spread[start][last], start);
            (1..=last).map(cut).fold((f64::INFINITY, 0), |best, next| if next.0 < best.0 { next } else { best })
        });
        let row = row.collect();
        best.push(row);
    }
    let mut starts = Vec::new();
    let mut last = layers - 1;
    for row in best.iter().rev() {
        let start = row[last].1;
        starts.push(start);
        if start == 0 {
            break;
        }
        last = start - 1;
    }
    starts.reverse();
    starts
}

/// One point a layer: movements relative to the source's mean movement, and cosines.
fn features(profiles: &[LayerProfile]) -> Vec<Vec<f64>> {
    let count = profiles.len().max(1) as f64;
    let sources = profiles.first().map_or(0, |profile| profile.movement.len());
    let mean = |source: usize| profiles.iter().map(|profile| profile.movement[source]).sum::<f64>() / count;
    let means: Vec<f64> = (0..sources).map(mean).collect();
    let point = |profile: &LayerProfile| {
        let relative = profile.movement.iter().zip(&means);
        let relative = relative.map(|(value, mean)| if *mean > 0.0 { value / mean } else { 0.0 });
        relative.chain(profile.pairs.iter().map(|pair| pair.cosine)).collect()
    };
    profiles.iter().map(point).collect()
}

fn spread_of(points: &[Vec<f64>], first: usize, last: usize) -> f64 {
    if last <= first {
        return 0.0;
    }
    let part = &points[first..=last];
    (0..points[first].len())
        .map(|place| {
            let mean = part.iter().map(|point| point[place]).sum::<f64>() / part.len() as f64;
            part.iter().map(|point| (point[place] - mean).powi(2)).sum::<f64>()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(movement: &[f64], cosine: f64) -> LayerProfile {
        LayerProfile { movement: movement.to_vec(), pairs: vec![PairProfile { cosine, sign_disagreement: 0.5 }] }
    }

    #[test]
    fn layers_that_are_alike_are_one_group() {
        let (early, late) = (profile(&[0.1, 0.3], 0.0), profile(&[0.4, 0.1], 0.5));
        let layers = [early.clone(), early.clone(), early, late.clone(), late];
        assert_eq!(group_layers(&layers), [0, 3]);
        assert_eq!(group_layers(&layers[..3]), [0]);
        assert_eq!(group_layers(&layers[..1]), [0]);
        assert_eq!(group_layers(&[]), [0]);
    }

    #[test]
    fn many_different_layers_make_at_most_eight_groups() {
        let layers: Vec<LayerProfile> =
            (0..40).map(|layer| profile(&[1.0 + f64::from(layer * layer), 1.0], f64::from(layer % 3) - 1.0)).collect();
        let starts = group_layers(&layers);
        assert!(starts.len() > 1 && starts.len() <= 8, "{starts:?}");
        assert!(starts[0] == 0 && starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:?}");
    }

    fn zoo(name: &str) -> Checkpoint {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama").join(name);
        Checkpoint::open(&folder).unwrap()
    }

    #[test]
    fn profiles_of_checkpoints_do_not_depend_on_threads() {
        let (base, add, rev) = (zoo("base"), zoo("expert-add"), zoo("expert-rev"));
        let sources = [&add, &rev, &add];
        let profiles = layer_profiles(&base, &sources);
        assert_eq!(profiles.len(), base.layers().count);
        for profile in &profiles {
            let [one, other, again] = profile.movement[..] else { panic!("{profile:?}") };
            assert!(one > 0.0 && other > 0.0 && one == again);
            let [different, same, _] = profile.pairs[..] else { panic!("{profile:?}") };
            assert!((same.cosine - 1.0).abs() < 1e-12 && same.sign_disagreement == 0.0);
            assert!(different.cosine.abs() < 0.99 && different.sign_disagreement > 0.1);
        }
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(alone.install(|| layer_profiles(&base, &sources)), profiles);
        let still = layer_profiles(&base, &[&base, &add]);
        assert!(still.iter().all(|profile| profile.movement[0] == 0.0 && profile.pairs[0].cosine == 0.0));
    }

    #[test]
    fn sums_of_one_tensor_give_movement_cosine_and_signs() {
        let mut sums = Sums::new(2);
        let part =
            Sums { base: 4.0, squares: vec![1.0, 4.0], products: vec![-1.0], both: vec![4.0], opposite: vec![3.0] };
        sums.add(&part);
        let profile = sums.profile();
        assert_eq!(profile.movement, [0.5, 1.0]);
        assert_eq!(profile.pairs[0], PairProfile { cosine: -0.5, sign_disagreement: 0.75 });
        assert_eq!(Sums::new(2).profile().pairs[0].cosine, 0.0);
    }
}
