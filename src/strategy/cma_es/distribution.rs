//! The mathematics of covariance matrix adaptation (Hansen 2016, The CMA evolution strategy: a tutorial): a normal
//! distribution that learns from ranked samples. The square root of the covariance is its Cholesky factor (Krause,
//! Arbones and Igel 2016); bad samples count against their directions (active CMA-ES, Jastrebski and Arnold 2006).

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

use super::super::linear_algebra::{Cholesky, dot};

/// Bounds of the step size.
const STEP_BOUNDS: (f64, f64) = (1e-6, 1.0);

/// What is sampled from: mean, step size and covariance, with the paths that adapt them.
pub(super) struct Distribution {
    pub(super) mean: Vec<f64>,
    step: f64,
    /// Lower triangle.
    covariance: Vec<Vec<f64>>,
    factor: Cholesky,
    covariance_path: Vec<f64>,
    step_path: Vec<f64>,
    /// Samples between two updates.
    pub(super) population: usize,
    pub(super) updates: u32,
}

impl Distribution {
    pub(super) fn new(mean: Vec<f64>, step: f64, population: usize) -> Self {
        let genes = mean.len();
        let (covariance, factor) = identity(genes);
        let (covariance_path, step_path) = (vec![0.0; genes], vec![0.0; genes]);
        Self { mean, step, covariance, factor, covariance_path, step_path, population, updates: 0 }
    }

    /// A point, reflected into the unit cube.
    pub(super) fn sample(&self, rng: &mut impl Rng) -> Vec<f64> {
        let normal: Vec<f64> = self.mean.iter().map(|_| rng.sample(StandardNormal)).collect();
        let direction = self.factor.multiply(&normal);
        self.mean.iter().zip(direction).map(|(mean, direction)| reflect(mean + self.step * direction)).collect()
    }

    /// Largest standard deviation of a gene.
    pub(super) fn spread(&self) -> f64 {
        let widest = self.covariance.iter().filter_map(|row| row.last()).fold(0.0, |a: f64, b| a.max(*b));
        self.step * widest.sqrt()
    }

    /// Learns from a population, best first.
    pub(super) fn update(&mut self, ranked: &[Sample<'_>]) {
        let genes = self.mean.len() as f64;
        let rates = Rates::new(genes, ranked.len());
        let steps: Vec<Vec<f64>> = ranked.iter().map(|sample| self.step_to(sample)).collect();
        let move_by = mean_step(&rates, steps.iter());
        self.mean.iter_mut().zip(&move_by).for_each(|(mean, by)| *mean = (*mean + self.step * by).clamp(0.0, 1.0));

        self.updates += 1;
        // Only its own samples tell whether the steps have the right size.
        let own: Vec<&Vec<f64>> =
            ranked.iter().zip(&steps).filter(|(sample, _)| !sample.foreign).map(|(_, step)| step).collect();
        let own_rates = Rates::new(genes, own.len());
        let white = self.factor.forward(&mean_step(&own_rates, own.into_iter()));
        let step_gain = (own_rates.step_path * (2.0 - own_rates.step_path) * own_rates.effective).sqrt();
        self.step_path
            .iter_mut()
            .zip(&white)
            .for_each(|(path, by)| *path = (1.0 - own_rates.step_path) * *path + step_gain * by);
        let length = dot(&self.step_path, &self.step_path).sqrt();
        let expected = genes.sqrt() * (1.0 - 1.0 / (4.0 * genes) + 1.0 / (21.0 * genes * genes));
        let faded = 1.0 - (1.0 - own_rates.step_path).powf(2.0 * f64::from(self.updates));
        let steady = length / faded.sqrt() < (1.4 + 2.0 / (genes + 1.0)) * expected;
        let covariance_gain =
            if steady { (rates.covariance_path * (2.0 - rates.covariance_path) * rates.effective).sqrt() } else { 0.0 };
        self.covariance_path
            .iter_mut()
            .zip(&move_by)
            .for_each(|(path, by)| *path = (1.0 - rates.covariance_path) * *path + covariance_gain * by);

        let lost = if steady { 0.0 } else { rates.covariance_path * (2.0 - rates.covariance_path) };
        self.update_covariance(&rates, lost, &steps);
        self.step = (self.step * (own_rates.step_path / own_rates.damping * (length / expected - 1.0)).min(1.0).exp())
            .clamp(STEP_BOUNDS.0, STEP_BOUNDS.1);
        let mut factor = Cholesky::default();
        if self.covariance.iter().all(|row| factor.push(row)) {
            self.factor = factor;
        } else {
            (self.covariance, self.factor) = identity(self.mean.len());
        }
    }

    /// The step from the mean to a sample, in step sizes. One that was not drawn from this distribution counts as no
    /// longer than those that are (Hansen 2011, Injecting external solutions into CMA-ES).
    fn step_to(&self, sample: &Sample<'_>) -> Vec<f64> {
        let step = sample.point.iter().zip(&self.mean).map(|(x, mean)| (x - mean) / self.step);
        let mut step: Vec<f64> = step.collect();
        if sample.foreign {
            let genes = step.len() as f64;
            let white = self.factor.forward(&step);
            let length = dot(&white, &white).sqrt();
            let most = genes.sqrt() + 2.0 * genes / (genes + 2.0);
            let scale = (most / length.max(1e-300)).min(1.0);
            step.iter_mut().for_each(|value| *value *= scale);
        }
        step
    }

    /// Towards the good steps and the path, away from the bad steps.
    fn update_covariance(&mut self, rates: &Rates, lost: f64, steps: &[Vec<f64>]) {
        let genes = self.mean.len() as f64;
        let weights: Vec<f64> = rates
            .weights
            .iter()
            .zip(steps)
            .map(|(weight, step)| {
                // A bad step counts by its direction only, so that a long one cannot turn the matrix indefinite.
                let white = self.factor.forward(step);
                let square = dot(&white, &white);
                if *weight < 0.0 { weight * genes / square.max(1e-300) } else { *weight }
            })
            .collect();
        let sum: f64 = rates.weights.iter().sum();
        let keep = 1.0 - rates.rank_one - rates.rank_mu * sum + rates.rank_one * lost;
        let path = &self.covariance_path;
        for (i, row) in self.covariance.iter_mut().enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                let many: f64 = weights.iter().zip(steps).map(|(weight, step)| weight * step[i] * step[j]).sum();
                *value = keep * *value + rates.rank_one * path[i] * path[j] + rates.rank_mu * many;
            }
        }
    }
}

/// The weighted mean of the good steps, best first.
fn mean_step<'a>(rates: &Rates, steps: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut mean = Vec::new();
    for (weight, step) in rates.weights.iter().zip(steps).take_while(|(weight, _)| **weight > 0.0) {
        mean.resize(step.len(), 0.0);
        mean.iter_mut().zip(step).for_each(|(sum, value)| *sum += weight * value);
    }
    mean
}

/// One member of a population.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample<'a> {
    pub(super) point: &'a [f64],
    /// Not drawn from the distribution.
    pub(super) foreign: bool,
}

/// Weights and learning rates of an update (Hansen 2016, table 1).
struct Rates {
    /// Best first; the worse half's are negative (active CMA-ES, Jastrebski and Arnold 2006).
    weights: Vec<f64>,
    /// Variance-effective number of good members.
    effective: f64,
    /// Learning rate of the path of the step size, and its damping.
    step_path: f64,
    damping: f64,
    /// Learning rates of the covariance's path, and of the covariance from that path and from the population.
    covariance_path: f64,
    rank_one: f64,
    rank_mu: f64,
}

impl Rates {
    fn new(genes: f64, population: usize) -> Self {
        let raw = |rank: usize| ((population as f64 + 1.0) / 2.0).ln() - (rank as f64 + 1.0).ln();
        let good = (population / 2).max(1);
        let sums = |ranks: std::ops::Range<usize>| {
            ranks.map(raw).fold((0.0, 0.0), |(sum, squares), weight| (sum + weight, squares + weight * weight))
        };
        let (sum, squares) = sums(0..good);
        let (bad_sum, bad_squares) = sums(good..population);
        let effective = sum * sum / squares;
        let step_path = (effective + 2.0) / (genes + effective + 5.0);
        let damping = 1.0 + 2.0 * (((effective - 1.0) / (genes + 1.0)).max(0.0).sqrt() - 1.0).max(0.0) + step_path;
        let covariance_path = (4.0 + effective / genes) / (genes + 4.0 + 2.0 * effective / genes);
        let rank_one = 2.0 / ((genes + 1.3).powi(2) + effective);
        let rank_mu = (1.0 - rank_one)
            .min(2.0 * (effective - 2.0 + 1.0 / effective).max(0.0) / ((genes + 2.0).powi(2) + effective));
        // The bad half weighs as much as keeps the matrix positive definite.
        let mut bad = 0.0;
        if rank_mu > 0.0 && bad_sum < 0.0 {
            let bad_effective = bad_sum * bad_sum / bad_squares;
            let limits = [
                1.0 + rank_one / rank_mu,
                1.0 + 2.0 * bad_effective / (effective + 2.0),
                (1.0 - rank_one - rank_mu) / (genes * rank_mu),
            ];
            bad = limits.into_iter().fold(f64::INFINITY, f64::min).max(0.0) / -bad_sum;
        }
        let weight = |rank: usize| if rank < good { raw(rank) / sum } else { raw(rank) * bad };
        Self {
            weights: (0..population).map(weight).collect(),
            effective,
            step_path,
            damping,
            covariance_path,
            rank_one,
            rank_mu,
        }
    }
}

fn identity(genes: usize) -> (Vec<Vec<f64>>, Cholesky) {
    let row = |place: usize| (0..=place).map(|other| f64::from(u8::from(other == place))).collect();
    let covariance: Vec<Vec<f64>> = (0..genes).map(row).collect();
    let mut factor = Cholesky::default();
    for row in &covariance {
        factor.push(row);
    }
    (covariance, factor)
}

fn reflect(value: f64) -> f64 {
    // The sawtooth of period 2 that is the identity on [0, 1].
    let folded = value.rem_euclid(2.0);
    if folded > 1.0 { 2.0 - folded } else { folded }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    #[test]
    fn finds_the_bottom_of_a_narrow_valley() {
        // An ellipse a hundred times longer than wide, turned by 45 degrees, with its centre off the start.
        let score = |x: &[f64]| {
            let (u, v) = (x[0] + x[1] - 0.9, x[0] - x[1] + 0.3);
            -(u * u + 1e4 * v * v)
        };
        let mut distribution = Distribution::new(vec![0.5, 0.5], 0.2, 6);
        let mut rng = random::stream(7, "test", 0);
        for _ in 0..120 {
            let mut points: Vec<Vec<f64>> = (0..6).map(|_| distribution.sample(&mut rng)).collect();
            points.sort_by(|a, b| score(b).total_cmp(&score(a)));
            let sample = |point| Sample { point, foreign: false };
            let ranked: Vec<Sample<'_>> = points.iter().map(Vec::as_slice).map(sample).collect();
            distribution.update(&ranked);
        }
        assert!(score(&distribution.mean) > -1e-6, "{:?}", distribution.mean);
        assert!(distribution.spread() < 0.01);
    }

    #[test]
    fn good_weights_share_one_and_bad_ones_are_bounded() {
        for (genes, population) in [(2.0, 6), (8.0, 10), (24.0, 13), (100.0, 17), (24.0, 200), (5.0, 4)] {
            let rates = Rates::new(genes, population);
            let good: f64 = rates.weights.iter().filter(|weight| **weight > 0.0).sum();
            let bad: f64 = rates.weights.iter().filter(|weight| **weight < 0.0).sum();
            assert!((good - 1.0).abs() < 1e-12);
            assert!(rates.weights.windows(2).all(|pair| pair[0] >= pair[1]), "{:?}", rates.weights);
            // What is left of the matrix stays positive whatever the bad steps (Hansen 2016, equation 53).
            assert!(bad < 0.0 && 1.0 - rates.rank_one - rates.rank_mu + genes * rates.rank_mu * bad >= -1e-12, "{bad}");
        }
    }

    #[test]
    fn bad_directions_shrink() {
        // Good samples along the first gene, bad ones along the second, as long.
        let points: Vec<Vec<f64>> = [(0.1, 0.0), (-0.1, 0.0), (0.08, 0.0), (0.0, 0.08), (0.0, 0.1), (0.0, -0.1)]
            .iter()
            .map(|(x, y)| vec![0.5 + x, 0.5 + y])
            .collect();
        let sample = |point| Sample { point, foreign: false };
        let ranked: Vec<Sample<'_>> = points.iter().map(Vec::as_slice).map(sample).collect();
        let mut active = Distribution::new(vec![0.5, 0.5], 0.1, 6);
        active.update(&ranked);
        let (good, bad) = (active.covariance[0][0], active.covariance[1][1]);
        // Without negative weights the second would only fade.
        let rates = Rates::new(2.0, 6);
        assert!(good > bad && bad < 1.0 - rates.rank_one - rates.rank_mu, "{good} {bad}");
    }

    #[test]
    fn foreign_samples_pull_no_further_than_own_ones() {
        let distribution = Distribution::new(vec![0.5; 4], 0.01, 8);
        let far = Sample { point: &[1.0, 1.0, 0.0, 0.0], foreign: true };
        let step = distribution.step_to(&far);
        let length = dot(&step, &step).sqrt();
        assert!((length - (2.0 + 8.0 / 6.0)).abs() < 1e-9 && step[0] > 0.0 && step[2] < 0.0, "{step:?}");
        let own = distribution.step_to(&Sample { foreign: false, ..far });
        assert!((own[0] - 50.0).abs() < 1e-9);
    }

    #[test]
    fn samples_stay_in_bounds() {
        let distribution = Distribution::new(vec![0.0, 1.0, 0.5], 1.0, 6);
        let mut rng = random::stream(7, "test", 1);
        for _ in 0..500 {
            assert!(distribution.sample(&mut rng).iter().all(|value| (0.0..=1.0).contains(value)));
        }
    }
}
