//! A model of the history: a Gaussian process over the unit cube that says what a point that was never scored is worth,
//! and how sure that is (Rasmussen and Williams 2006).
//!
//! Matern 5/2 kernel with a length scale a gene; a discrete gene counts by equal or not (categorical) or by its level
//! (integer). Length scales and noise maximise the posterior density under a log-normal prior that lengthens with the
//! square root of the number of genes (Hvarfner et al. 2024), on a bounded number of points. Everything is
//! deterministic.

use super::linear_algebra::{Cholesky, dot};
use crate::space::{Gene, GeneKind};

/// Points that length scales are fitted on at most.
const FIT_POINTS: usize = 160;
/// Most genes with a length scale of their own; in larger spaces all share one.
const OWN_SCALES: usize = 64;
/// Steps of a fit on many points.
const FIT_STEPS: usize = 12;
/// Steps of a fit on few points, which is cheap and starts from further away.
const FIRST_FIT_STEPS: usize = 20;
/// Points up to which a fit counts as one on few points.
const FEW_POINTS: usize = 64;
/// Bounds of the logarithm of a length scale.
const SCALE_BOUNDS: (f64, f64) = (-3.0, 5.0);
/// Bounds of the logarithm of the share of roughness.
const ROUGH_BOUNDS: (f64, f64) = (-9.2, 0.0);
/// Mean and standard deviation of the prior of the logarithm of the share of roughness.
const ROUGH_PRIOR: (f64, f64) = (-4.6, 1.5);
/// Share of the roughness that does not repeat.
const NOISE: f64 = 0.05;
/// Least variance of the noise.
const NUGGET: f64 = 1e-6;
/// Standard deviation of the prior of the logarithm of a length scale.
const SCALE_PRIOR_DEVIATION: f64 = 1.0;

/// Length scales and noise.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scales {
    /// Logarithms, one a gene, or one for all.
    lengths: Vec<f64>,
    /// Logarithm of the variance of the roughness as a share of the smooth part's.
    rough: f64,
}

impl Scales {
    /// The prior's centre.
    pub(super) fn prior(genes: usize) -> Self {
        let scales = if genes <= OWN_SCALES { genes } else { 1 };
        Self { lengths: vec![length_prior(genes); scales], rough: ROUGH_PRIOR.0 }
    }

    /// The logarithm of a gene's length scale.
    pub(super) fn length(&self, gene: usize) -> f64 {
        self.lengths[if self.lengths.len() == 1 { 0 } else { gene }]
    }
}

fn length_prior(genes: usize) -> f64 {
    0.5 * (genes as f64).ln()
}

/// Whether a gene's values are equal or not, and nothing between.
fn is_category(gene: &Gene) -> bool {
    matches!(gene.kind, GeneKind::Categorical { .. })
}

fn difference(a: f64, b: f64, category: bool) -> f64 {
    if category { f64::from(u8::from(a != b)) } else { a - b }
}

/// The covariance at squared scaled distance `square`: Matern 5/2, and `rough` times what is left of the roughness
/// there.
///
/// An accuracy is a mean of many steps: two points differ by the steps between them, which adds up like a random walk.
/// Its correlation falls exponentially, on a shorter scale.
fn covariance(square: f64, rough: f64) -> f64 {
    let root = (5.0 * square).sqrt();
    let decay = exp_of_minus(root);
    (1.0 + root + root * root / 3.0) * decay + rough * decay * decay
}

/// `exp(-x)` for `x >= 0`, to about 1e-10; the same on every machine, and simple enough for a compiler to vectorise.
fn exp_of_minus(x: f64) -> f64 {
    // Adding 1.5 * 2^52 rounds to a whole number and leaves it in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    let power = -x.min(700.0) * std::f64::consts::LOG2_E;
    let shifted = power + ROUND;
    let f = (power - (shifted - ROUND)) * std::f64::consts::LN_2;
    let series = 1.0
        + f * (1.0
            + f * (1.0 / 2.0
                + f * (1.0 / 6.0
                    + f * (1.0 / 24.0
                        + f * (1.0 / 120.0 + f * (1.0 / 720.0 + f * (1.0 / 5_040.0 + f * (1.0 / 40_320.0))))))));
    series * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

/// A fitted model.
#[derive(Clone, Debug)]
pub(super) struct Surrogate {
    categories: Vec<bool>,
    /// Inverse length scales, one a gene.
    inverse: Vec<f64>,
    /// Variance of the roughness as a share of the smooth part's.
    rough: f64,
    /// Points divided by their length scales (categorical genes as they are).
    points: Vec<Vec<f64>>,
    values: Vec<f64>,
    /// Variances of the values' own errors, as shares of the signal variance.
    errors: Vec<f64>,
    factor: Cholesky,
    weights: Vec<f64>,
    /// Signal variance.
    variance: f64,
}

impl Surrogate {
    /// A model of nothing.
    pub(super) fn new(genes: &[Gene], scales: &Scales) -> Self {
        Self {
            categories: genes.iter().map(is_category).collect(),
            inverse: (0..genes.len()).map(|gene| (-scales.length(gene)).exp()).collect(),
            rough: scales.rough.exp(),
            points: Vec::new(),
            values: Vec::new(),
            errors: Vec::new(),
            factor: Cholesky::default(),
            weights: Vec::new(),
            variance: 1.0,
        }
    }

    /// Adds a point, whose value follows by [`Self::set_values`]; `error` is the variance of the value's own error as a
    /// share of the signal variance. `false`, and nothing changed, for a point on top of others that the noise does not
    /// tell apart.
    pub(super) fn add(&mut self, point: &[f64], error: f64) -> bool {
        self.push(point, 0.0, error)
    }

    /// Sets the values of all points, about standardised, in the order in which they were added.
    pub(super) fn set_values(&mut self, values: &[f64]) {
        self.values.copy_from_slice(values);
        self.solve();
        let explained = dot(&self.values, &self.weights) / self.values.len().max(1) as f64;
        self.variance = explained.max(1e-12);
    }

    /// Adds a point whose outcome is not known yet at the value that the model expects: it lowers the variance around
    /// it.
    pub(super) fn imagine(&mut self, point: &[f64]) {
        let mean = self.mean(point);
        if self.push(point, mean, 0.0) {
            self.solve();
        }
    }

    fn push(&mut self, point: &[f64], value: f64, error: f64) -> bool {
        let scaled = self.scale(point);
        let mut row = self.covariances(&scaled);
        row.push(self.observed_variance() + error);
        let fits = self.factor.push(&row);
        if fits {
            self.points.push(scaled);
            self.values.push(value);
            self.errors.push(error);
        }
        fits
    }

    fn solve(&mut self) {
        self.weights = self.factor.backward(&self.factor.forward(&self.values));
    }

    fn scale(&self, point: &[f64]) -> Vec<f64> {
        point.iter().zip(&self.inverse).map(|(value, inverse)| value * inverse).collect()
    }

    /// The squared distance between scaled points.
    fn square(&self, a: &[f64], b: &[f64]) -> f64 {
        if self.categories.contains(&true) {
            let term = |gene: usize| {
                let d = difference(a[gene], b[gene], self.categories[gene]);
                let d = if self.categories[gene] { d * self.inverse[gene] } else { d };
                d * d
            };
            return (0..a.len()).map(term).sum();
        }
        let mut lanes = [0.0; 4];
        let (a_blocks, b_blocks) = (a.chunks_exact(4), b.chunks_exact(4));
        let rest: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(x, y)| (x - y) * (x - y)).sum();
        for (x, y) in a_blocks.zip(b_blocks) {
            for lane in 0..4 {
                lanes[lane] += (x[lane] - y[lane]) * (x[lane] - y[lane]);
            }
        }
        (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]) + rest
    }

    /// The covariance of a point with itself, but for noise.
    fn prior_variance(&self) -> f64 {
        1.0 + self.rough
    }

    /// The variance of an exact value at a point.
    fn observed_variance(&self) -> f64 {
        self.prior_variance() + NOISE * self.rough + NUGGET
    }

    fn covariances(&self, scaled: &[f64]) -> Vec<f64> {
        let mut values: Vec<f64> = self.points.iter().map(|other| self.square(scaled, other)).collect();
        values.iter_mut().for_each(|value| *value = covariance(*value, self.rough));
        values
    }

    /// The expected value at a point.
    pub(super) fn mean(&self, point: &[f64]) -> f64 {
        dot(&self.covariances(&self.scale(point)), &self.weights)
    }

    /// The expected value at a point and an upper bound of its standard deviation: what remains after conditioning on
    /// the single most informative training point.
    pub(super) fn sketch(&self, point: &[f64]) -> (f64, f64) {
        let covariances = self.covariances(&self.scale(point));
        let seen = self.observed_variance();
        let explained = covariances.iter().zip(&self.errors).map(|(value, error)| value * value / (seen + error));
        let variance = self.prior_variance() - explained.fold(0.0, f64::max);
        (dot(&covariances, &self.weights), (variance.max(1e-12) * self.variance).sqrt())
    }

    /// The expected value at a point and its standard deviation.
    pub(super) fn predict(&self, point: &[f64]) -> (f64, f64) {
        let covariances = self.covariances(&self.scale(point));
        let half = self.factor.forward(&covariances);
        let variance = (self.prior_variance() - dot(&half, &half)).max(1e-12) * self.variance;
        (dot(&covariances, &self.weights), variance.sqrt())
    }
}

/// Fits length scales and noise from `start` on the first [`FIT_POINTS`] points; `errors` as in [`Surrogate::add`].
pub(super) fn fit(genes: &[Gene], start: &Scales, points: &[&[f64]], values: &[f64], errors: &[f64]) -> Scales {
    let n = points.len().min(FIT_POINTS);
    if n < 3 {
        return start.clone();
    }
    let problem = Fit {
        categories: genes.iter().map(is_category).collect(),
        prior: length_prior(genes.len()),
        points: &points[..n],
        values: &values[..n],
        errors: &errors[..n],
    };
    problem.climb(start)
}

struct Fit<'a> {
    categories: Vec<bool>,
    prior: f64,
    points: &'a [&'a [f64]],
    values: &'a [f64],
    errors: &'a [f64],
}

/// A covariance matrix and its derivatives, below the diagonal.
struct Kernel {
    factor: Cholesky,
    /// Derivative by the logarithm of a length scale, without the factor (difference / length)^2.
    slopes: Vec<Vec<f64>>,
    /// Derivative by the share of roughness.
    overlaps: Vec<Vec<f64>>,
}

impl Fit<'_> {
    /// Resilient propagation (Riedmiller and Braun 1993): steps by the signs of the gradient, which needs no step size.
    fn climb(&self, start: &Scales) -> Scales {
        let mut here: Vec<f64> = start.lengths.iter().copied().chain([start.rough]).collect();
        let mut widths: Vec<f64> = vec![0.2; here.len()];
        let mut last: Vec<f64> = vec![0.0; here.len()];
        let mut best = (f64::NEG_INFINITY, here.clone());
        let steps = if self.points.len() <= FEW_POINTS { FIRST_FIT_STEPS } else { FIT_STEPS };
        for _ in 0..steps {
            let Some((value, gradient)) = self.posterior(&here) else { break };
            if value > best.0 {
                best = (value, here.clone());
            }
            for place in 0..here.len() {
                let agreement = gradient[place] * last[place];
                if agreement > 0.0 {
                    widths[place] = (widths[place] * 1.3).min(0.8);
                } else if agreement < 0.0 {
                    widths[place] *= 0.5;
                }
                last[place] = if agreement < 0.0 { 0.0 } else { gradient[place] };
                let (low, high) = if place + 1 == here.len() { ROUGH_BOUNDS } else { SCALE_BOUNDS };
                let sign = if last[place] == 0.0 { 0.0 } else { last[place].signum() };
                here[place] = (here[place] + sign * widths[place]).clamp(low, high);
            }
        }
        let rough = best.1.pop().unwrap_or(start.rough);
        Scales { lengths: best.1, rough }
    }

    /// The log posterior density and its gradient in the logarithms of the length scales and the share of roughness.
    fn posterior(&self, at: &[f64]) -> Option<(f64, Vec<f64>)> {
        let n = self.points.len();
        let (lengths, shares) = at.split_at(at.len() - 1);
        let shared = lengths.len() == 1;
        let genes = self.categories.len();
        let inverse_square: Vec<f64> =
            (0..genes).map(|gene| (-2.0 * lengths[if shared { 0 } else { gene }]).exp()).collect();
        let rough = shares[0].exp();
        let Kernel { factor, slopes, overlaps } = self.kernel(&inverse_square, rough)?;
        let weights = factor.backward(&factor.forward(self.values));
        let variance = (dot(self.values, &weights) / n as f64).max(1e-12);
        let inverse = factor.inverse();
        let mut gradient = vec![0.0; at.len()];
        for i in 0..n {
            for j in 0..i {
                let pull = weights[i] * weights[j] / variance - inverse[i][j];
                gradient[lengths.len()] += pull * rough * overlaps[i][j];
                self.add_slopes(i, j, pull * slopes[i][j], &inverse_square, &mut gradient[..lengths.len()]);
            }
            gradient[lengths.len()] +=
                0.5 * rough * (1.0 + NOISE) * (weights[i] * weights[i] / variance - inverse[i][i]);
        }
        let mut value = -0.5 * n as f64 * variance.ln() - factor.half_log_determinant();
        self.add_prior(at, &mut value, &mut gradient);
        value.is_finite().then_some((value, gradient))
    }

    /// The points' covariance matrix, factorised, with its derivatives; `None` where it is not positive definite.
    fn kernel(&self, inverse_square: &[f64], rough: f64) -> Option<Kernel> {
        let n = self.points.len();
        let mut overlaps: Vec<Vec<f64>> = Vec::with_capacity(n);
        let mut factor = Cholesky::default();
        let mut slopes: Vec<Vec<f64>> = Vec::with_capacity(n);
        for i in 0..n {
            let mut row = Vec::with_capacity(i + 1);
            let mut slope = Vec::with_capacity(i);
            let mut overlap = Vec::with_capacity(i);
            for j in 0..i {
                let square = self.square(i, j, inverse_square);
                let root = (5.0 * square).sqrt();
                let decay = exp_of_minus(root);
                row.push((1.0 + root + 5.0 / 3.0 * square) * decay + rough * decay * decay);
                slope.push(5.0 / 3.0 * (1.0 + root) * decay + rough * 10.0 * decay * decay / root.max(1e-9));
                overlap.push(decay * decay);
            }
            row.push(1.0 + rough + NOISE * rough + NUGGET + self.errors[i]);
            if !factor.push(&row) {
                return None;
            }
            slopes.push(slope);
            overlaps.push(overlap);
        }
        Some(Kernel { factor, slopes, overlaps })
    }

    /// Adds the logarithm of the prior density, and its gradient.
    fn add_prior(&self, at: &[f64], value: &mut f64, gradient: &mut [f64]) {
        let (lengths, shares) = at.split_at(at.len() - 1);
        let deviation = SCALE_PRIOR_DEVIATION;
        for (place, length) in lengths.iter().enumerate() {
            let z = (length - self.prior) / deviation;
            *value -= 0.5 * z * z;
            gradient[place] -= z / deviation;
        }
        let z = (shares[0] - ROUGH_PRIOR.0) / ROUGH_PRIOR.1;
        *value -= 0.5 * z * z;
        gradient[lengths.len()] -= z / ROUGH_PRIOR.1;
    }

    fn square(&self, i: usize, j: usize, inverse_square: &[f64]) -> f64 {
        let (a, b) = (self.points[i], self.points[j]);
        let mut sum = 0.0;
        for gene in 0..inverse_square.len() {
            let d = difference(a[gene], b[gene], self.categories[gene]);
            sum += d * d * inverse_square[gene];
        }
        sum
    }

    fn add_slopes(&self, i: usize, j: usize, pull: f64, inverse_square: &[f64], gradient: &mut [f64]) {
        if gradient.len() == 1 {
            gradient[0] += pull * self.square(i, j, inverse_square);
            return;
        }
        let (a, b) = (self.points[i], self.points[j]);
        for (gene, slope) in gradient.iter_mut().enumerate() {
            let d = difference(a[gene], b[gene], self.categories[gene]);
            *slope += pull * d * d * inverse_square[gene];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{category, real};
    use super::super::space_filling::sobol;
    use super::*;

    fn genes(count: usize) -> Vec<Gene> {
        (0..count).map(|gene| real(&format!("x{gene}"))).collect()
    }

    fn model(genes: &[Gene], scales: &Scales, points: &[&[f64]], values: &[f64]) -> Surrogate {
        let mut model = Surrogate::new(genes, scales);
        assert!(points.iter().all(|point| model.add(point, 0.0)));
        model.set_values(values);
        model
    }

    #[test]
    fn gradient_agrees_with_differences() {
        let points: Vec<Vec<f64>> = (0..20).map(|index| sobol(7, index, 3)).collect();
        let points: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
        let values: Vec<f64> = points.iter().map(|point| (5.0 * point[0]).sin() + 0.3 * point[1]).collect();
        let fit = Fit {
            categories: vec![false, false, true],
            prior: 0.5,
            points: &points,
            values: &values,
            errors: &[0.1; 20],
        };
        let at = [0.1, 0.4, 0.8, -3.0];
        let (_, gradient) = fit.posterior(&at).unwrap();
        for place in 0..at.len() {
            let moved = |by: f64| {
                let mut at = at;
                at[place] += by;
                fit.posterior(&at).unwrap().0
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!(
                (gradient[place] - expected).abs() < 1e-5 * expected.abs().max(1.0),
                "{place}: {gradient:?} {expected}"
            );
        }
    }

    #[test]
    fn the_fast_exponential_agrees_with_the_exact_one() {
        for step in 0..4_000 {
            let x = f64::from(step) * 0.01;
            let (fast, exact) = (exp_of_minus(x), (-x).exp());
            assert!((fast - exact).abs() <= 1e-9 * exact, "{x}: {fast} {exact}");
        }
        assert!(exp_of_minus(1e9) < 1e-300 && exp_of_minus(f64::INFINITY) >= 0.0);
    }

    #[test]
    fn roughness_keeps_to_the_surroundings() {
        let share = |square: f64| covariance(square, 1.0) - covariance(square, 0.0);
        assert!((share(0.0) - 1.0).abs() < 1e-9 && share(0.25) < 0.15 && share(4.0) < 1e-3);
        // It falls as a random walk's does, from the first step on.
        assert!(1.0 - share(1e-4) > 10.0 * (1.0 - covariance(1e-4, 0.0)));
    }

    #[test]
    fn the_first_guess_never_promises_less() {
        let points: Vec<Vec<f64>> = (0..30).map(|index| sobol(7, index, 3)).collect();
        let points: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
        let values: Vec<f64> = points.iter().map(|point| point[0] - point[1] * point[2]).collect();
        let model =
            model(&genes(3), &fit(&genes(3), &Scales::prior(3), &points, &values, &[0.0; 30]), &points, &values);
        for index in 100..150 {
            let point = sobol(7, index, 3);
            let ((mean, bound), (exact, deviation)) = (model.sketch(&point), model.predict(&point));
            assert!((mean - exact).abs() < 1e-12 && bound >= deviation - 1e-9, "{bound} {deviation}");
        }
    }

    #[test]
    fn learns_which_gene_matters_and_predicts() {
        let points: Vec<Vec<f64>> = (0..60).map(|index| sobol(7, index, 4)).collect();
        let points: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
        let function = |point: &[f64]| 2.0 * (4.0 * point[1]).sin();
        let values: Vec<f64> = points.iter().map(|point| function(point)).collect();
        let scales = fit(&genes(4), &Scales::prior(4), &points, &values, &vec![0.0; points.len()]);
        let shortest = (0..4).min_by(|a, b| scales.lengths[*a].total_cmp(&scales.lengths[*b])).unwrap();
        assert_eq!(shortest, 1);
        let mut model = model(&genes(4), &scales, &points, &values);
        for index in 100..120 {
            let point = sobol(7, index, 4);
            let (mean, deviation) = model.predict(&point);
            assert!((mean - function(&point)).abs() < 0.2, "{mean} {}", function(&point));
            assert!(deviation < 0.5);
            assert!((model.mean(&point) - mean).abs() < 1e-12);
        }
        let far = [0.5, 0.5, 0.5, 0.5];
        let (mean, before) = model.predict(&far);
        model.imagine(&far);
        let (still, after) = model.predict(&far);
        assert!(after < before && (mean - still).abs() < 1e-6);
    }

    #[test]
    fn categories_are_apart_whatever_their_order() {
        let genes = vec![category("method", 3)];
        let (a, b, c) = ([1.0 / 6.0], [0.5], [5.0 / 6.0]);
        let model = model(&genes, &Scales::prior(1), &[&a], &[1.0]);
        assert_eq!(model.mean(&b), model.mean(&c));
        assert!(model.mean(&a) > model.mean(&b));
    }
}
