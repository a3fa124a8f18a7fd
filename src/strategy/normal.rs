//! The standard normal distribution, as fast as models need it: thousands of times a proposal.

/// The mass between two numbers, at least a trace.
pub(super) fn mass(low: f64, high: f64) -> f64 {
    (below(high) - below(low)).max(1e-12)
}

/// The mass below `z`, to 1.5e-7 (Abramowitz and Stegun 7.1.26).
pub(super) fn below(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.3275911 * x);
    let polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let tail = 0.5 * polynomial * (-x * x).exp();
    if z > 0.0 { 1.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mass_is_that_of_the_error_function() {
        for step in -80..=80 {
            let z = f64::from(step) / 10.0;
            assert!((below(z) - 0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)).abs() < 1.5e-7, "{z}");
        }
        assert!((mass(-1.0, 1.0) - 0.682_689_5).abs() < 1e-6);
        assert_eq!(mass(40.0, 41.0), 1e-12);
    }
}
