//! How far task vectors go the same way, from a sample of the weights: where between base and average a merge may lie
//! that no evaluation has been spent on.

use rayon::prelude::*;

use super::structure::Floats;
use crate::checkpoint::Checkpoint;

/// Elements read together.
const BLOCK: usize = 1 << 14;
/// Blocks of a tensor that are looked at, evenly spread. A hundred thousand elements tell a cosine to some thousandths.
const BLOCKS: usize = 8;

/// Sums over the sampled elements of some tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Squared Euclidean norm of each source's task vector; in the order of the sources.
    squares: Vec<f64>,
    /// Squared Euclidean norm of the sum of all task vectors.
    square_of_sum: f64,
}

impl Agreement {
    fn new(sources: usize) -> Self {
        Self { squares: vec![0.0; sources], square_of_sum: 0.0 }
    }

    /// The sums of task vectors with the squared norms `squares`, whose sum has the squared norm `square_of_sum`.
    #[cfg(test)]
    pub fn of_squares(squares: &[f64], square_of_sum: f64) -> Self {
        Self { squares: squares.to_vec(), square_of_sum }
    }

    /// Adds the sums over another set of tensors.
    pub fn add(&mut self, other: &Self) {
        self.squares.resize(self.squares.len().max(other.squares.len()), 0.0);
        self.squares.iter_mut().zip(&other.squares).for_each(|(sum, other)| *sum += other);
        self.square_of_sum += other.square_of_sum;
    }

    /// Sources that moved at all.
    pub fn moved(&self) -> usize {
        self.squares.iter().filter(|square| **square > 0.0).count()
    }

    /// Where Model Stock (arXiv 2403.19522, section 4.2) sees the merge, in `[0, 1]` from base to average: `N c / (1 +
    /// (N - 1) c)`, where `c` is the mean product of two of the N task vectors over their mean square, which is their
    /// mean cosine where all are equally long. `None` where fewer than two sources moved.
    pub fn stock_ratio(&self) -> Option<f64> {
        let count = self.moved() as f64;
        let squares: f64 = self.squares.iter().sum();
        if count < 2.0 {
            return None;
        }
        let cosine = (self.square_of_sum - squares) / ((count - 1.0) * squares);
        // Vectors that cancel each other say: stay at the base.
        if cosine <= 0.0 { Some(0.0) } else { Some((count * cosine / (1.0 + (count - 1.0) * cosine)).min(1.0)) }
    }
}

/// Agreement of the sources in each layer of models that fit together; what comes before and behind the layers counts
/// with the first and the last. One entry where there are no numbered layers. Tensors that are no floats, or that differ
/// in length, are left out.
pub fn layer_agreements(base: &Checkpoint, sources: &[&Checkpoint]) -> Vec<Agreement> {
    let layout = base.layers();
    let layers = layout.count.max(1);
    let layer_of = |name: &str| match layout.layer_of(name) {
        Some(layer) => layer,
        None if layout.first.iter().any(|first| first == name) => 0,
        None => layers - 1,
    };
    let names: Vec<&String> = base.tensors().keys().collect();
    let tensors: Vec<Option<Agreement>> = names.par_iter().map(|name| tensor_agreement(base, sources, name)).collect();
    let mut agreements = vec![Agreement::new(sources.len()); layers];
    for (name, tensor) in names.into_iter().zip(&tensors) {
        if let Some(tensor) = tensor {
            agreements[layer_of(name)].add(tensor);
        }
    }
    agreements
}

fn tensor_agreement(base: &Checkpoint, sources: &[&Checkpoint], name: &str) -> Option<Agreement> {
    let stored_base = Floats::of(base, name)?;
    let elements = stored_base.elements();
    let inputs: Vec<Floats<'_>> = sources.iter().map(|source| Floats::of(source, name)).collect::<Option<_>>()?;
    if inputs.iter().any(|input| input.elements() != elements) {
        return None;
    }
    let mut agreement = Agreement::new(sources.len());
    let (mut origin, mut values, mut sum) = (vec![0.0; BLOCK], vec![0.0; BLOCK], vec![0.0; BLOCK]);
    for start in starts(elements) {
        let count = BLOCK.min(elements - start);
        stored_base.decode(start, &mut origin[..count]);
        sum[..count].fill(0.0);
        for (input, squares) in inputs.iter().zip(&mut agreement.squares) {
            input.decode(start, &mut values[..count]);
            for ((value, origin), sum) in values[..count].iter().zip(&origin).zip(&mut sum) {
                let delta = value - origin;
                *squares += delta * delta;
                *sum += delta;
            }
        }
        agreement.square_of_sum += sum[..count].iter().map(|sum| sum * sum).sum::<f64>();
    }
    Some(agreement)
}

/// Where the sampled blocks of a tensor begin.
fn starts(elements: usize) -> impl Iterator<Item = usize> {
    let blocks = elements.div_ceil(BLOCK);
    let looked_at = blocks.min(BLOCKS);
    (0..looked_at).map(move |block| block * blocks / looked_at * BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::structure::layer_profiles;
    use proptest::prelude::*;

    fn zoo(name: &str) -> Checkpoint {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/tiny-llama").join(name);
        Checkpoint::open(&folder).unwrap()
    }

    #[test]
    fn the_ratio_is_that_of_the_paper_where_vectors_are_equally_long() {
        // Three unit vectors with cosine 1/2 between any two: |sum|^2 = 3 + 6 / 2.
        let alike = Agreement { squares: vec![1.0; 3], square_of_sum: 6.0 };
        assert!((alike.stock_ratio().unwrap() - 3.0 * 0.5 / (1.0 + 2.0 * 0.5)).abs() < 1e-15);
        let same = Agreement { squares: vec![1.0; 2], square_of_sum: 4.0 };
        assert_eq!(same.stock_ratio(), Some(1.0));
        let orthogonal = Agreement { squares: vec![1.0; 4], square_of_sum: 4.0 };
        assert_eq!(orthogonal.stock_ratio(), Some(0.0));
        let opposite = Agreement { squares: vec![1.0; 2], square_of_sum: 0.0 };
        assert_eq!(opposite.stock_ratio(), Some(0.0));
    }

    #[test]
    fn a_source_that_did_not_move_has_no_say() {
        let two = Agreement { squares: vec![1.0, 1.0], square_of_sum: 3.0 };
        let with_base = Agreement { squares: vec![1.0, 0.0, 1.0], square_of_sum: 3.0 };
        assert_eq!(with_base.stock_ratio(), two.stock_ratio());
        assert_eq!(Agreement { squares: vec![1.0, 0.0], square_of_sum: 1.0 }.stock_ratio(), None);
    }

    #[test]
    fn agreements_of_checkpoints_are_those_of_their_cosines_and_of_no_thread_count() {
        let (base, add, rev) = (zoo("base"), zoo("expert-add"), zoo("expert-rev"));
        let sources = [&add, &rev];
        let agreements = layer_agreements(&base, &sources);
        let profiles = layer_profiles(&base, &sources);
        assert_eq!(agreements.len(), profiles.len());
        for (agreement, profile) in agreements.iter().zip(&profiles).take(profiles.len() - 1).skip(1) {
            let [one, other] = profile.movement[..] else { panic!("{profile:?}") };
            let cosine = profile.pairs[0].cosine * 2.0 * one * other / (one * one + other * other);
            let expected = (2.0 * cosine / (1.0 + cosine)).max(0.0);
            assert!((agreement.stock_ratio().unwrap() - expected).abs() < 1e-9, "{agreement:?} {expected}");
        }
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(alone.install(|| layer_agreements(&base, &sources)), agreements);
    }

    proptest! {
        #[test]
        fn sampled_blocks_lie_apart_and_inside(elements in 0..4_000_000_usize) {
            let starts: Vec<usize> = starts(elements).collect();
            prop_assert!(starts.len() <= BLOCKS);
            prop_assert!(starts.windows(2).all(|pair| pair[0] + BLOCK <= pair[1]));
            prop_assert!(starts.iter().all(|start| *start < elements));
            prop_assert!(elements == 0 || starts[0] == 0);
        }
    }
}
