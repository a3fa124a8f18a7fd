//! Points that fill the unit cube evenly: Owen-scrambled Sobol sequences.

use rand::{Rng, RngExt};

use crate::random;

/// Points of one sequence of the generator.
const POINTS: u64 = 1 << 16;
/// Dimensions that the generator has direction numbers for.
const DIMENSIONS: usize = sobol_burley::NUM_DIMENSIONS as usize;

/// Point number `index` of the scrambled Sobol sequence of this seed. Past the generator's dimensions or points,
/// further sequences with scrambles of their own are used.
pub(super) fn sobol(seed: u64, index: u64, dimensions: usize) -> Vec<f64> {
    let scramble = |block: usize| random::stream(seed, "sobol", (index / POINTS) << 16 | block as u64).next_u32();
    let scrambles: Vec<u32> = (0..dimensions.div_ceil(DIMENSIONS)).map(scramble).collect();
    let place = (index % POINTS) as u32;
    let coordinate = |dimension: usize| {
        let set = scrambles[dimension / DIMENSIONS];
        f64::from(sobol_burley::sample(place, (dimension % DIMENSIONS) as u32, set))
    };
    (0..dimensions).map(coordinate).collect()
}

/// A uniform point of the unit cube.
pub(super) fn uniform(rng: &mut impl Rng, dimensions: usize) -> Vec<f64> {
    (0..dimensions).map(|_| rng.random::<f64>()).collect()
}

#[cfg(test)]
mod tests {
    use super::sobol;

    #[test]
    fn sobol_fills_every_axis_evenly() {
        for dimension in [0, 7, 255, 256, 499] {
            let mut counts = [0; 16];
            for index in 0..64 {
                let point = sobol(7, index, 500);
                assert!(point.iter().all(|value| (0.0..1.0).contains(value)));
                counts[(point[dimension] * 16.0) as usize] += 1;
            }
            assert_eq!(counts, [4; 16], "dimension {dimension}");
        }
        assert_ne!(sobol(7, 3, 4), sobol(8, 3, 4));
        assert_ne!(sobol(7, 3, 4), sobol(7, 3 + (1 << 16), 4));
        let far = sobol(7, 1, 300);
        assert_ne!(far[0], far[256]);
    }
}
