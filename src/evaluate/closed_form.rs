//! Test functions: closed-form landscapes over `[0, 1]^d` with values in `[0, 1]`, 1 at one interior optimum
//! (everywhere, for the flat one). The usual test functions of the optimization literature, moved to the optimum and
//! turned so that higher is better.

use std::f64::consts::{E, TAU};

use crate::config::TestFunction;

/// The value of a flat landscape.
const FLAT: f64 = 0.5;

impl TestFunction {
    /// The value at `genome`, which has at least one gene and as many as `optimum`.
    pub(super) fn value(self, genome: &[f64], optimum: &[f64]) -> f64 {
        let offsets = || genome.iter().zip(optimum).map(|(gene, best)| gene - best);
        let mean = |term: &dyn Fn(f64) -> f64| offsets().map(term).sum::<f64>() / genome.len() as f64;
        let bowl = || 1.0 - mean(&|z| z * z);
        let value = match self {
            Self::Sphere => bowl(),
            Self::Plateau => ((bowl() - 0.75) / 0.2).clamp(0.0, 1.0),
            Self::Rastrigin => {
                let height = mean(&|z| {
                    let z = 5.12 * z;
                    z * z + 10.0 * (1.0 - (TAU * z).cos())
                });
                1.0 - height / (5.12 * 5.12 + 20.0)
            }
            Self::Ackley => {
                let root = mean(&|z| (32.768 * z).powi(2)).sqrt();
                let waves = mean(&|z| (TAU * 32.768 * z).cos());
                let height = -20.0 * (-0.2 * root).exp() - waves.exp() + 20.0 + E;
                1.0 - height / (20.0 + E)
            }
            Self::Rosenbrock => {
                let y: Vec<f64> = offsets().map(|z| 1.0 + 2.5 * z).collect();
                let valley = |pair: &[f64]| 100.0 * (pair[1] - pair[0] * pair[0]).powi(2) + (1.0 - pair[0]).powi(2);
                let last = y.last().map_or(0.0, |last| (1.0 - last).powi(2));
                let height = (y.windows(2).map(valley).sum::<f64>() + last) / y.len() as f64;
                1.0 / (1.0 + height.ln_1p())
            }
            Self::Flat => FLAT,
        };
        value.clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_are_in_range_and_best_at_the_optimum(
            points in (1usize..8).prop_flat_map(|d| (prop::collection::vec(0.0..=1.0f64, d), prop::collection::vec(0.2..0.8f64, d))),
        ) {
            let (genome, optimum) = points;
            for function in TestFunction::ALL {
                let value = function.value(&genome, &optimum);
                let best = function.value(&optimum, &optimum);
                prop_assert!((0.0..=1.0).contains(&value), "{function}: {value}");
                prop_assert!(value <= best + 1e-12, "{function}: {value} > {best}");
                prop_assert!(function == TestFunction::Flat || (best - 1.0).abs() < 1e-12, "{function}: {best}");
            }
        }
    }
}
