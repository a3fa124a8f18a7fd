//! The interval of a stratified mean difference, from resampling.
//!
//! **Expanded percentiles.** 10,000 bootstrap draws inside each stratum (Efron 1979). Percentiles of a bootstrap are
//! too near to each other for small samples: it draws from the samples as if they were all there is, and knows nothing
//! of Student's t. So the percentiles lie further out, by `sqrt(n / (n - 1))` and by t in place of z (Hesterberg 2015,
//! "What Teachers Should Know About the Bootstrap", expanded percentiles), with the degrees of freedom of Welch and
//! Satterthwaite over the strata. From some hundred samples on, this changes next to nothing.
//!
//! **Zero is left out only by an exact test.** If neither candidate were better, the sign of each sample's difference
//! would be a coin's. Where more than 2.5 % of all signs give a difference as large, the interval reaches to zero,
//! whatever the bootstrap says (Fisher's randomization test, 10,000 draws). The bootstrap of three differences that
//! happen to be equal has no width at all; it takes six samples that differ, all one way, to say anything. (The test
//! takes differences for as often on one side as on the other, if nothing is better: clusters of samples, or very skewed
//! differences, are not foreseen.) What some strata clearly gain and others clearly lose is no chance, though it may
//! cancel out: as far as it does, the signs are those of what the differences have beside it.
//!
//! **Differences that are nearly all alike** tell the bootstrap of next to no variation, though others may differ: of
//! answers that are right or wrong, or of grades. Then the interval reaches at least as far as that of Agresti and Min
//! (2005, "Simple improved confidence intervals for comparing matched proportions"), which adds half an observation to
//! each of the four cells of the table of both candidates' answers. Of grades, an answer is the largest difference seen.

use rand::Rng;
use rand::rngs::ChaCha8Rng;
use rayon::prelude::*;

use super::distributions::{NORMAL_975, normal_below, student_975};
use crate::random;

/// Number of draws of the bootstrap, and of the test of signs.
pub const DRAWS: usize = 10_000;
/// Draws that share one random stream; fixed, so that the interval does not depend on the number of threads.
const DRAWS_A_STREAM: usize = 100;
/// Number of samples that differ from which on the bootstrap is enough by itself.
const ENOUGH: f64 = 1_000.0;
/// Fewest samples unlike all others from whose number the bootstrap knows how often they come about.
const FEW: usize = 10;
/// Difference, relative to the largest one, that rounding explains.
const ROUNDING: f64 = 1e-9;
/// Fewest samples of a stratum whose mean can be called clearly beside zero, and by how many standard errors.
const CLEAR: (usize, f64) = (20, 3.0);
/// Share beyond each end of the interval.
const TAIL: f64 = 0.025;

/// One task's matched samples: weighted differences in objective direction, already times the task's share.
pub(super) struct Stratum {
    pub(super) weighted_differences: Vec<f64>,
    /// `None`: all samples weigh the same.
    pub(super) weights: Option<Vec<f64>>,
    /// Weighted difference that one answer makes which is right instead of wrong; `None` unless all scores are one of
    /// two values (0 and 1, or 0 and 100) and weigh the same.
    pub(super) answer: Option<f64>,
}

impl Stratum {
    pub(super) fn len(&self) -> usize {
        self.weighted_differences.len()
    }

    fn weight(&self, place: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |weights| weights[place])
    }

    pub(super) fn total(&self) -> f64 {
        self.weights.as_ref().map_or(self.len() as f64, |weights| weights.iter().sum())
    }

    pub(super) fn mean(&self) -> f64 {
        self.weighted_differences.iter().sum::<f64>() / self.total()
    }

    /// Variance of the mean, by the plain (biased) estimate that the bootstrap's own spread has.
    pub(super) fn variance(&self) -> f64 {
        let (mean, total) = (self.mean(), self.total());
        let residual = |(place, difference): (usize, &f64)| (difference - self.weight(place) * mean).powi(2);
        self.weighted_differences.iter().enumerate().map(residual).sum::<f64>() / total.powi(2)
    }

    /// Mean and its variance with `added` observations, a quarter of them in each cell of the table of both candidates'
    /// answers, where there are answers.
    fn with_added(&self, added: f64) -> (f64, f64) {
        let n = self.len() as f64;
        let Some(step) = self.step() else { return (self.mean(), self.variance() * n / (n - 1.0)) };
        let all = n + added;
        let mean = self.weighted_differences.iter().sum::<f64>() / all;
        let squares: f64 = self.weighted_differences.iter().map(|difference| difference.powi(2)).sum();
        (mean, ((squares + step.powi(2) * added / 2.0) / all - mean.powi(2)) / all)
    }

    /// Weighted difference that one answer makes: given, or the largest one seen where differences are nearly all alike.
    fn step(&self) -> Option<f64> {
        let largest = || self.weighted_differences.iter().fold(0.0_f64, |largest, part| largest.max(part.abs()));
        self.answer.or_else(|| self.is_nearly_constant().then(largest)).filter(|step| *step != 0.0)
    }

    /// Whether more than half of the differences are the same, and nearly all others too.
    fn is_nearly_constant(&self) -> bool {
        if self.weights.is_some() {
            return false;
        }
        let mut sorted = self.weighted_differences.clone();
        sorted.sort_by(f64::total_cmp);
        let largest = sorted.iter().fold(0.0_f64, |largest, part| largest.max(part.abs()));
        // Differences of decimal grades are not the same to the last bit.
        let are_alike = |one: &f64, other: &f64| other - one <= ROUNDING * largest;
        let most_alike = sorted.chunk_by(are_alike).map(<[f64]>::len).max().unwrap_or(0);
        let is_graded = self.answer.is_none();
        self.len() - most_alike < FEW && !(is_graded && 2 * most_alike <= self.len())
    }

    /// The mean of as many samples drawn with replacement.
    fn draw(&self, rng: &mut impl Rng) -> f64 {
        let n = self.len() as u64;
        let mut sum = 0.0;
        let mut total = 0.0;
        let mut take = |place: usize| {
            sum += self.weighted_differences[place];
            total += self.weight(place);
        };
        // One 64-bit word gives two places; the bias of the multiplication is below n / 2^32.
        let place = |word: u32| ((u64::from(word) * n) >> 32) as usize;
        for _ in 0..n / 2 {
            let word = rng.next_u64();
            take(place(word as u32));
            take(place((word >> 32) as u32));
        }
        if n % 2 == 1 {
            take(place(rng.next_u32()));
        }
        sum / total
    }
}

/// The 95 % interval of the sum of the strata's means. Every stratum has at least two samples.
pub(super) fn interval(strata: &[Stratum], seed: u64) -> [f64; 2] {
    let mut means = draws(seed, "paired bootstrap", |rng| strata.iter().map(|stratum| stratum.draw(rng)).sum());
    means.sort_by(f64::total_cmp);
    let tail = expanded_tail(strata);
    let [low, high] = widened([quantile(&means, tail), quantile(&means, 1.0 - tail)], strata);
    if (low > 0.0 || high < 0.0) && samples_that_differ(strata) < ENOUGH && share_of_signs(strata, seed) > TAIL {
        return [low.min(0.0), high.max(0.0)];
    }
    [low, high]
}

/// At least as wide as that of Agresti and Min, where the differences of a stratum are nearly all alike.
fn widened([low, high]: [f64; 2], strata: &[Stratum]) -> [f64; 2] {
    let with_steps = strata.iter().filter(|stratum| stratum.step().is_some()).count();
    if !strata.iter().any(Stratum::is_nearly_constant) {
        return [low, high];
    }
    let (mut mean, mut variance) = (0.0, 0.0);
    for stratum in strata {
        let (of_stratum, its_variance) = stratum.with_added(2.0 / with_steps.max(1) as f64);
        mean += of_stratum;
        variance += its_variance;
    }
    let half = NORMAL_975 * variance.sqrt();
    // Answers alone cannot differ by more than all of them.
    let most = if strata.iter().all(|stratum| stratum.answer.is_some()) {
        strata.iter().filter_map(|stratum| stratum.answer).map(f64::abs).sum()
    } else {
        f64::INFINITY
    };
    [low.min((mean - half).max(-most)), high.max((mean + half).min(most))]
}

/// How many samples that differ there are, counted by what each contributes: a hundred thousand that hardly count beside
/// three that do are three.
fn samples_that_differ(strata: &[Stratum]) -> f64 {
    let parts = || {
        strata.iter().flat_map(|stratum| {
            let total = stratum.total();
            stratum.weighted_differences.iter().map(move |difference| (difference / total).abs())
        })
    };
    // Fourth powers of large numbers overflow.
    let largest = parts().fold(0.0, f64::max);
    let (mut squares, mut fourths) = (0.0, 0.0);
    for square in parts().map(|part| (part / largest).powi(2)) {
        squares += square;
        fourths += square * square;
    }
    if fourths > 0.0 { squares * squares / fourths } else { 0.0 }
}

/// `DRAWS` numbers, the same ones on any number of threads.
fn draws(seed: u64, name: &str, draw: impl Fn(&mut ChaCha8Rng) -> f64 + Sync) -> Vec<f64> {
    let of_stream = |stream: u64| {
        let mut rng = random::stream(seed, name, stream);
        (0..DRAWS_A_STREAM).map(|_| draw(&mut rng)).collect::<Vec<f64>>()
    };
    (0..DRAWS.div_ceil(DRAWS_A_STREAM) as u64).into_par_iter().map(of_stream).collect::<Vec<_>>().concat()
}

/// Which share of the bootstrap's draws lies beyond each end of a 95 % interval.
fn expanded_tail(strata: &[Stratum]) -> f64 {
    // Biased variance, unbiased variance, and its square by the degrees of freedom.
    let (mut biased, mut unbiased, mut squares) = (0.0, 0.0, 0.0);
    for stratum in strata {
        let (variance, n) = (stratum.variance(), stratum.len() as f64);
        let corrected = variance * n / (n - 1.0);
        biased += variance;
        unbiased += corrected;
        squares += corrected.powi(2) / (n - 1.0);
    }
    if biased <= 0.0 || squares <= 0.0 {
        return TAIL;
    }
    normal_below(-(unbiased / biased).sqrt() * student_975(unbiased.powi(2) / squares))
}

/// The share of all ways to give the differences signs whose sum is at least as far out, on the side of the one found.
fn share_of_signs(strata: &[Stratum], seed: u64) -> f64 {
    let parts: Vec<f64> = strata
        .iter()
        .zip(traded(strata))
        .flat_map(|(stratum, traded)| {
            let total = stratum.total();
            let difference = move |place: usize| stratum.weighted_differences[place] - stratum.weight(place) * traded;
            (0..stratum.len()).map(move |place| difference(place) / total)
        })
        .filter(|part| *part != 0.0)
        .collect();
    let found: f64 = parts.iter().sum();
    // Sums of the same numbers in another order differ in their last bits.
    let bound = found.abs() - 1e-9 * parts.iter().map(|part| part.abs()).sum::<f64>();
    let sums = draws(seed, "paired signs", |rng| parts.chunks(64).map(|parts| signed_sum(parts, rng.next_u64())).sum());
    // The signs found are one of the ways.
    (1 + sums.iter().filter(|sum| **sum >= bound).count()) as f64 / (DRAWS + 1) as f64
}

/// How much of each stratum's mean cancels out against those of others: of the means that are clearly beside zero, what
/// is gained and what is lost, up to the smaller of both. The sum is zero.
fn traded(strata: &[Stratum]) -> Vec<f64> {
    let clear = |stratum: &Stratum| {
        let (fewest, errors) = CLEAR;
        let (mean, n) = (stratum.mean(), stratum.len() as f64);
        let is_clear = stratum.len() >= fewest && mean.powi(2) > errors.powi(2) * stratum.variance() * n / (n - 1.0);
        if is_clear { mean } else { 0.0 }
    };
    let clear: Vec<f64> = strata.iter().map(clear).collect();
    let gained: f64 = clear.iter().filter(|mean| **mean > 0.0).sum();
    let lost: f64 = -clear.iter().filter(|mean| **mean < 0.0).sum::<f64>();
    let both = gained.min(lost);
    let share = |mean: f64| if mean > 0.0 { both / gained } else { both / lost };
    clear.into_iter().map(|mean| if both > 0.0 { mean * share(mean) } else { 0.0 }).collect()
}

/// The sum of up to 64 numbers, each negative where its bit is set.
fn signed_sum(parts: &[f64], bits: u64) -> f64 {
    let signed = |(place, part): (usize, &f64)| f64::from_bits(part.to_bits() ^ ((bits >> place & 1) << 63));
    parts.iter().enumerate().map(signed).sum()
}

/// Linear interpolation between order statistics (type 7 of Hyndman and Fan 1996). `sorted` is not empty.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stratum(differences: &[f64]) -> Stratum {
        Stratum { weighted_differences: differences.to_vec(), weights: None, answer: None }
    }

    #[test]
    fn it_takes_six_samples_that_differ_to_leave_zero_out() {
        for (equal, differ, low) in [(0, 3, false), (20, 5, false), (0, 6, true), (20, 9, true)] {
            let differences = [vec![0.0; equal], vec![1.0; differ]].concat();
            let interval = interval(&[stratum(&differences)], 7);
            assert_eq!(interval[0] > 0.0, low, "{differ} of {}: {interval:?}", differences.len());
            let turned: Vec<f64> = differences.iter().map(|difference| -difference).collect();
            assert_eq!(super::interval(&[stratum(&turned)], 7)[1] < 0.0, low);
        }
    }

    fn answers(more: usize, equal: usize, less: usize) -> Stratum {
        let differences = [vec![0.5; more], vec![0.0; equal], vec![-0.5; less]].concat();
        Stratum { answer: Some(0.5), ..stratum(&differences) }
    }

    /// Agresti and Min's interval, by hand: 6.5 and .5 of 8, so .75 and a standard error of .1976.
    #[test]
    fn answers_that_are_all_alike_have_an_interval_with_a_width() {
        let [low, high] = interval(&[answers(6, 0, 0)], 7);
        assert!((low - 0.5 * (0.75 - 1.96 * 0.1976)).abs() < 1e-3 && high == 0.5, "{low} {high}");
        let [low, high] = interval(&[answers(0, 50, 0)], 7);
        assert!(low < -0.01 && (low + high).abs() < 1e-12, "{low} {high}");
        // Where answers vary, the bootstrap says how much.
        let varied = answers(30, 60, 20);
        assert_eq!(widened([-0.1, 0.1], &[varied]), [-0.1, 0.1]);
        // What is an improvement by the signs stays one.
        for equal in [0, 1, 14, 194, 2000] {
            for others in 0..4 {
                let strata: Vec<Stratum> =
                    (0..others).map(|_| answers(0, 6 + equal, 0)).chain([answers(6, equal, 0)]).collect();
                assert!(interval(&strata, 7)[0] > 0.0, "{equal} {others}");
            }
        }
    }

    /// As many grades that all differ by the same tell as much as answers, by hand: mean .75, standard error .1976.
    #[test]
    fn grades_that_are_nearly_all_alike_have_an_interval_with_a_width() {
        let [low, high] = interval(&[stratum(&[2.0; 6])], 7);
        assert!((low - 2.0 * (0.75 - 1.96 * 0.1976)).abs() < 1e-3 && high > 2.0, "{low} {high}");
        let tenths: Vec<f64> = (0..9).map(|grade| f64::from(grade + 1) / 10.0 - f64::from(grade) / 10.0).collect();
        let [low, high] = interval(&[stratum(&tenths)], 7);
        assert!(low > 0.05 && low < 0.09 && high > 0.1, "{low} {high}");
        let one = [vec![0.0; 29], vec![0.5]].concat();
        let [low, high] = interval(&[stratum(&one)], 7);
        assert!(low < -0.01 && high > 0.04, "{low} {high}");
        // Differences that vary are left to the bootstrap, few as they are, and so are those of weighted samples.
        for stratum in [
            stratum(&[0.1, 0.2, 0.3, 0.4, 0.4]),
            stratum(&[vec![0.0; 30], vec![0.5; 10]].concat()),
            Stratum { weights: Some(vec![1.0; 6]), ..stratum(&[1.0; 6]) },
        ] {
            assert_eq!(widened([0.05, 0.06], &[stratum]), [0.05, 0.06]);
        }
    }

    /// Two thousand samples that differ say nothing for three that count as much as all of them.
    #[test]
    fn samples_that_hardly_count_do_not_stand_for_those_that_do() {
        let many = stratum(&[1.0, -1.0, 0.0, 0.0, 0.0].repeat(2_000));
        let few = stratum(&[1.0; 4]);
        assert!(samples_that_differ(&[many, few]) < 6.0);
        let strata = [stratum(&[1.0, -1.0, 0.0, 0.0, 0.0].repeat(2_000)), stratum(&[1.0; 4])];
        assert_eq!(interval(&strata, 7)[0], 0.0);
        assert_eq!(interval(&[stratum(&[1e100; 3])], 7)[0], 0.0);
        assert!((samples_that_differ(&[stratum(&[1.0, -1.0, 0.0].repeat(50))]) - 100.0).abs() < 1e-9);
    }

    /// Normal deviates with a mean.
    fn normal(rng: &mut impl Rng, n: usize, mean: f64, deviation: f64) -> Vec<f64> {
        use rand_distr::Distribution as _;
        let normal = rand_distr::Normal::new(mean, deviation).unwrap();
        (0..n).map(|_| normal.sample(rng)).collect()
    }

    /// A task that clearly gains and another one that clearly loses are no chance; whether the sum is better is seen by
    /// how well both are known.
    #[test]
    fn tasks_that_trade_off_do_not_hide_what_is_gained() {
        let mut rng = random::stream(1, "trade", 0);
        let gains = stratum(&normal(&mut rng, 100, 0.25, 0.01));
        let loses = stratum(&normal(&mut rng, 100, -0.23, 0.01));
        assert!(share_of_signs(&[stratum(&gains.weighted_differences)], 7) < 0.001);
        let [low, high] = interval(&[gains, loses], 7);
        assert!(low > 0.015 && high < 0.025, "{low} {high}");
        for n in [20, 50] {
            let above = (0..400).filter(|seed| {
                let mut strata = || stratum(&normal(&mut rng, n, 0.25, 0.05));
                let (gains, mut loses) = (strata(), strata());
                loses.weighted_differences.iter_mut().for_each(|difference| *difference = -*difference);
                interval(&[gains, loses], *seed)[0] > 0.0
            });
            // 2.5 % of 400, and three standard errors more.
            let above = above.count();
            assert!(above <= 19, "{above} of 400 with {n} samples");
        }
    }

    /// What cancels out is the smaller of gains and losses; nothing does where all go one way, or nobody can tell.
    #[test]
    fn only_clear_gains_and_losses_are_traded() {
        let of = |n: usize, mean: f64| {
            let differences: Vec<f64> = (0..n).map(|place| mean + 0.1 * (-1_f64).powi(place as i32)).collect();
            stratum(&differences)
        };
        let traded_is = |strata: &[Stratum], expected: &[f64]| {
            let found = traded(strata);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}, not {expected:?}");
        };
        traded_is(&[of(40, 0.5), of(40, 0.3)], &[0.0, 0.0]);
        traded_is(&[of(40, 0.5), of(40, -0.25), of(40, 0.01)], &[0.25, -0.25, 0.0]);
        traded_is(&[of(40, 0.1), of(40, 0.3), of(40, -0.8)], &[0.1, 0.3, -0.4]);
        traded_is(&[of(40, 0.5), of(10, -0.25)], &[0.0, 0.0]);
        let doubled = Stratum { weights: Some(vec![2.0; 40]), ..of(40, 0.5) };
        traded_is(&[doubled, of(40, -0.5)], &[0.25, -0.25]);
    }

    #[test]
    fn chance_alone_seldom_leaves_zero_out() {
        for (n, differing) in [(3, 1.0), (8, 1.0), (16, 0.3), (50, 0.1)] {
            let mut rng = random::stream(1, "chance", n);
            let mut difference = || {
                let word = f64::from(rng.next_u32()) / 2f64.powi(32);
                if word >= differing { 0.0 } else { (word - differing / 2.0).signum() }
            };
            let above = (0..200).filter(|seed| {
                let differences: Vec<f64> = (0..n).map(|_| difference()).collect();
                interval(&[stratum(&differences)], *seed)[0] > 0.0
            });
            // 2.5 % of 200, and three standard errors more.
            let above = above.count();
            assert!(above <= 11, "{above} of 200 with {n} samples");
        }
    }

    #[test]
    fn few_samples_have_a_wider_interval_than_the_percentiles() {
        let few = [stratum(&[0.1, -0.2, 0.4, 0.3, -0.1])];
        assert!(expanded_tail(&few) < 0.01, "{}", expanded_tail(&few));
        let many = [stratum(&[0.1, -0.2, 0.4, 0.3, -0.1].repeat(100))];
        assert!((expanded_tail(&many) - TAIL).abs() < 5e-4, "{}", expanded_tail(&many));
    }
}
