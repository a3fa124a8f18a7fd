//! The normal distribution and Student's t distribution, as far as decisions rest on them.
//!
//! Some quantiles are rounded; results that were printed with them must not change.

/// 97.5 % quantile of the standard normal distribution.
pub(super) const NORMAL_975: f64 = 1.959_963_984_540_054;
/// 99.5 % quantile of the standard normal distribution, to three decimals.
pub(super) const NORMAL_995: f64 = 2.576;
/// Sum of the 97.5 % quantile (to two decimals) and the 80 % quantile (to four) of the standard normal distribution: a
/// true difference of this many standard errors is shown at a two-sided level of 5 % in 80 % of comparisons.
pub(super) const NORMAL_975_AND_800: f64 = 1.96 + 0.8416;

/// The standard normal distribution function of a number up to zero.
pub(super) fn normal_below(z: f64) -> f64 {
    0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)
}

/// The quantile of the standard normal distribution that is exceeded with probability `tail`, at most one half: by
/// bisection between 0 and 40.
pub(super) fn normal_upper_quantile(tail: f64) -> f64 {
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..60 {
        let middle: f64 = 0.5 * (low + high);
        if normal_below(-middle) > tail { low = middle } else { high = middle }
    }
    low
}

/// 97.5 % quantile of Student's t distribution: the first four terms of its expansion around the normal one (Abramowitz
/// and Stegun 26.7.5) where that is exact to .001, else exact values and lines in 1 / degrees between them.
pub(super) fn student_975(degrees: f64) -> f64 {
    const SMALL: [f64; 8] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060];
    let z = NORMAL_975;
    if degrees >= 8.0 {
        let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
        return z
            + (z3 + z) / (4.0 * degrees)
            + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * degrees.powi(2))
            + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * degrees.powi(3));
    }
    let degrees = degrees.max(1.0);
    let below = degrees.floor();
    let place = below as usize;
    let part = (1.0 / below - 1.0 / degrees) / (1.0 / below - 1.0 / (below + 1.0));
    SMALL[place - 1] + part * (SMALL[place] - SMALL[place - 1])
}

/// 99.865 % quantile of Student's t distribution with 3 to 10 degrees of freedom: the level of three standard errors of
/// the normal distribution. Fewer degrees count as 3, more as 10.
pub(super) fn student_99865(degrees: usize) -> f64 {
    const FROM_3: [f64; 8] = [9.22, 6.62, 5.51, 4.90, 4.53, 4.28, 4.09, 3.96];
    FROM_3[degrees.clamp(3, 10) - 3]
}

/// The probability that Student's t with whole degrees of freedom is above `t`, which is not negative (Abramowitz and
/// Stegun 26.7.3 and 26.7.4).
fn student_above(t: f64, degrees: u64) -> f64 {
    let angle = (t / (degrees as f64).sqrt()).atan();
    let (sine, cosine) = angle.sin_cos();
    // Terms cos^1, cos^3, ... of odd degrees; 1, cos^2, ... of even ones.
    let odd = degrees % 2;
    let (mut term, mut sum) = (if odd == 1 { cosine } else { 1.0 }, 0.0);
    for index in (odd..degrees.saturating_sub(1)).step_by(2) {
        sum += term;
        term *= (index + 1) as f64 / (index + 2) as f64 * cosine * cosine;
    }
    let within = if odd == 1 { std::f64::consts::FRAC_2_PI * (angle + sine * sum) } else { sine * sum };
    0.5 * (1.0 - within)
}

/// The quantile of Student's t distribution that is exceeded with probability `tail`, at most one half: by bisection.
pub(super) fn student_upper_quantile(tail: f64, degrees: u64) -> f64 {
    if degrees > 1_000 {
        return normal_upper_quantile(tail);
    }
    let (mut low, mut high) = (0.0, 1e9);
    for _ in 0..100 {
        let middle: f64 = 0.5 * (low + high);
        if student_above(middle, degrees.max(1)) > tail { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables of the t distribution.
    #[test]
    fn any_quantile_of_the_t_distribution() {
        for (tail, degrees, quantile) in [
            (0.025, 1, 12.706),
            (0.025, 2, 4.303),
            (0.025, 3, 3.182),
            (0.005, 4, 4.604),
            (0.001, 7, 4.785),
            (0.0005, 10, 4.587),
            (0.0005, 29, 3.659),
            (0.025, 120, 1.980),
            (0.025, 5_000, 1.960),
        ] {
            let found = student_upper_quantile(tail, degrees);
            assert!((found - quantile).abs() < 6e-4, "{tail} {degrees}: {found}");
        }
        for degrees in [1, 2, 5, 8, 30, 200] {
            assert!((student_upper_quantile(0.025, degrees) - student_975(degrees as f64)).abs() < 2e-3, "{degrees}");
        }
    }

    #[test]
    fn quantiles_of_the_t_distribution() {
        for (degrees, point) in
            [(1.0, 12.7062), (4.0, 2.7764), (8.0, 2.3060), (12.0, 2.1788), (30.0, 2.0423), (1e6, NORMAL_975)]
        {
            assert!((student_975(degrees) - point).abs() < 1e-3, "{degrees}: {}", student_975(degrees));
        }
        let steps: Vec<f64> = (10..100).map(|tenths| student_975(f64::from(tenths) / 10.0)).collect();
        assert!(steps.is_sorted_by(|one, next| one >= next), "{steps:?}");
        assert_eq!([3, 4, 10, 25].map(student_99865), [9.22, 6.62, 3.96, 3.96]);
    }

    #[test]
    fn quantiles_of_the_normal_distribution() {
        assert!((normal_below(-NORMAL_975) - 0.025).abs() < 1e-12);
        assert!((normal_upper_quantile(0.025) - NORMAL_975).abs() < 1e-9);
        assert!((normal_upper_quantile(0.005) - NORMAL_995).abs() < 5e-4);
        let level_and_power = normal_upper_quantile(0.025) + normal_upper_quantile(0.2);
        assert!((level_and_power - NORMAL_975_AND_800).abs() < 1e-3);
    }
}
