//! The smallest gain that a paired comparison of 0/1 scores can be expected to show.
//!
//! **What is assumed.** A rate of one half and a correlation of one half between the two candidates' scores on a
//! sample, so that the difference of two scores has a standard deviation of one half (Miller 2024, "Adding Error Bars to
//! Evals", section on paired differences).
//!
//! **Few samples.** What decides is the exact test of signs ([`super::compare`]), which asks more of few samples than a
//! normal approximation knows: three samples never show anything, whatever the gain. So its power is summed exactly: of
//! `n` samples, `K ~ Bin(n, q)` differ, and `X ~ Bin(K, 1/2 + gain / (2 q))` of them are in favour of the better
//! candidate, where `q = 1/4 + gain^2` gives the standard deviation above. **Many samples:** the normal formula.

use super::distributions::NORMAL_975_AND_800;

/// Level of the comparison on one side; it has two.
const TAIL: f64 = 0.025;
/// Share of comparisons that are to show the gain.
const POWER: f64 = 0.8;
/// Standard deviation of the difference of two 0/1 scores on one sample.
const PAIRED_DEVIATION: f64 = 0.5;
/// Number of samples beyond which the normal formula is within two percent.
const MANY: u64 = 2_000;
/// Step in which gains are tried before the place is narrowed down.
const STEP: f64 = 0.005;

/// Fewest samples that can show a gain: five differences of one sign in a row come about by chance too often.
pub const FEWEST_SAMPLES: u64 = 6;
/// Samples that show a gain of a tenth, to the nearest ten above: what to wish for, where there are too few.
pub const SAMPLES_FOR_A_TENTH: u64 = 220;

/// The number of equally weighted samples whose mean has the same error as tasks of these (share of the objective,
/// samples), rounded down: for tasks of like size and weight, their samples together. Every task has samples.
pub fn effective_samples(tasks: &[(f64, u64)]) -> u64 {
    let variance: f64 = tasks.iter().map(|(share, samples)| share.powi(2) / *samples as f64).sum();
    // Shares that sum to one by rounding alone must not cost a sample.
    (1.0 / variance * (1.0 + 1e-12)).floor() as u64
}

/// The smallest gain that `samples` show with 80 % power, for scores of 0 or 1; `None` where no gain can be shown.
pub fn smallest_gain(samples: u64) -> Option<f64> {
    if samples < FEWEST_SAMPLES {
        return None;
    }
    if samples > MANY {
        return Some(NORMAL_975_AND_800 * PAIRED_DEVIATION / (samples as f64).sqrt());
    }
    let test = SignTest::new(samples as usize);
    let mut above = (1..).map(|step| f64::from(step) * STEP).find(|gain| *gain >= 1.0 || test.power(*gain) >= POWER)?;
    let mut below = above - STEP;
    for _ in 0..20 {
        let middle = f64::midpoint(below, above);
        if test.power(middle) >= POWER { above = middle } else { below = middle }
    }
    Some(above.min(1.0))
}

/// The same of scores that are not matched sample by sample: by the normal formula, for a rate of one half.
pub fn smallest_unpaired_gain(samples: u64) -> Option<f64> {
    let gain = NORMAL_975_AND_800 * (0.5 / samples as f64).sqrt();
    (samples >= FEWEST_SAMPLES && gain < 1.0).then_some(gain)
}

/// The test of signs on a number of samples.
struct SignTest {
    /// Natural logarithms of the factorials up to the number of samples.
    log_factorials: Vec<f64>,
    /// How many samples have to be in favour, by the number of samples that differ.
    wanted: Vec<usize>,
}

impl SignTest {
    fn new(samples: usize) -> Self {
        let mut log_factorials = vec![0.0; samples + 1];
        for number in 1..=samples {
            log_factorials[number] = log_factorials[number - 1] + (number as f64).ln();
        }
        let mut test = Self { log_factorials, wanted: Vec::with_capacity(samples + 1) };
        // Of none, one: impossible. From one number to the next, as many or one more is wanted: `tail` stays the
        // probability of at least `wanted` heads of `differ` coins.
        let (mut wanted, mut tail) = (1, 0.0);
        test.wanted.push(wanted);
        for differ in 1..=samples {
            tail += 0.5 * test.probability(differ - 1, wanted - 1, 0.5);
            if tail > TAIL {
                tail -= test.probability(differ, wanted, 0.5);
                wanted += 1;
            }
            test.wanted.push(wanted);
        }
        test
    }

    /// The probability that the test shows a gain of that size.
    fn power(&self, gain: f64) -> f64 {
        let samples = self.wanted.len() - 1;
        // Gains beyond .866 leave no sample without a difference, and less than the standard deviation assumed.
        let differing = (PAIRED_DEVIATION.powi(2) + gain * gain).min(1.0);
        let in_favour = (0.5 + gain / (2.0 * differing)).min(1.0);
        let of_differing = |differ: usize| {
            let reached = self.probability(samples, differ, differing);
            // What hardly ever comes about need not be summed.
            if reached < 1e-12 {
                return 0.0;
            }
            reached
                * (self.wanted[differ]..=differ).map(|heads| self.probability(differ, heads, in_favour)).sum::<f64>()
        };
        (FEWEST_SAMPLES as usize..=samples).map(of_differing).sum()
    }

    /// The probability of exactly `heads` of `coins` that each show heads with probability `rate`.
    fn probability(&self, coins: usize, heads: usize, rate: f64) -> f64 {
        if heads > coins {
            return 0.0;
        }
        let tails = coins - heads;
        // 0 ln 0 is 0 here: no coin, no doubt.
        let power = |rate: f64, count: usize| if count == 0 { 0.0 } else { count as f64 * rate.ln() };
        let ways = self.log_factorials[coins] - self.log_factorials[heads] - self.log_factorials[tails];
        (ways + power(rate, heads) + power(1.0 - rate, tails)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_gains() {
        // Summed with another program's binomial distribution, in steps of .0005.
        for (samples, gain) in [(6, 0.927), (9, 0.838), (17, 0.430), (39, 0.251), (91, 0.159), (400, 0.0730)] {
            let found = smallest_gain(samples).unwrap();
            assert!((found - gain).abs() < 0.002, "{samples}: {found}, expected {gain}");
        }
    }

    #[test]
    fn unpaired_comparisons_show_larger_gains_of_all_but_few_samples() {
        assert_eq!((smallest_unpaired_gain(5), smallest_unpaired_gain(6).is_some()), (None, true));
        // 1.96 and 0.8416 standard errors of two means of 200 answers with a rate of one half.
        assert!((smallest_unpaired_gain(200).unwrap() - 2.8016 * (2.0 * 0.25 / 200.0_f64).sqrt()).abs() < 1e-12);
        for samples in [20, 50, 220, 1_000, 5_000] {
            assert!(smallest_unpaired_gain(samples) > smallest_gain(samples), "{samples}");
        }
    }

    #[test]
    fn the_normal_formula_promises_too_much_of_few_samples() {
        for (samples, power) in [(9, 0.1937), (17, 0.5166), (39, 0.6898), (91, 0.7302), (400, 0.7707)] {
            let normal = NORMAL_975_AND_800 * PAIRED_DEVIATION / (samples as f64).sqrt();
            let found = SignTest::new(samples).power(normal);
            assert!((found - power).abs() < 0.001, "{samples}: {found}, expected {power}");
        }
    }

    #[test]
    fn fewer_than_six_samples_show_nothing() {
        for samples in 0..FEWEST_SAMPLES {
            assert_eq!(smallest_gain(samples), None);
        }
        assert_eq!(SignTest::new(5).power(1.0), 0.0);
        assert!((SignTest::new(6).power(1.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn as_many_signs_as_the_tables_of_the_sign_test_want() {
        let test = SignTest::new(1_000);
        for (differ, wanted) in [(5, 6), (6, 6), (8, 8), (9, 8), (11, 10), (12, 10), (20, 15), (50, 33), (100, 61)] {
            assert_eq!(test.wanted[differ], wanted, "of {differ}");
        }
    }

    #[test]
    fn a_larger_gain_is_shown_too() {
        for samples in [6, 7, 8, 9, 12, 14, 15, 25, 40] {
            let (test, gain) = (SignTest::new(samples), smallest_gain(samples as u64).unwrap());
            let steps = (0..=50).map(|step| gain + (1.0 - gain) * f64::from(step) / 50.0);
            let least = steps.map(|gain| test.power(gain)).fold(f64::INFINITY, f64::min);
            assert!(least >= POWER - 1e-9, "{samples}: {least}");
        }
    }

    #[test]
    fn few_and_many_samples_meet() {
        let (exact, normal) = (smallest_gain(MANY).unwrap(), smallest_gain(MANY + 1).unwrap());
        assert!((exact / normal - 1.0).abs() < 0.02, "{exact} {normal}");
        let [few, enough] = [SAMPLES_FOR_A_TENTH - 10, SAMPLES_FOR_A_TENTH].map(|n| smallest_gain(n).unwrap());
        assert!(few > 0.1 && enough <= 0.1, "{few} {enough}");
    }

    #[test]
    fn unlike_tasks_count_for_less_than_their_samples() {
        assert_eq!(effective_samples(&[(1.0, 17)]), 17);
        assert_eq!(effective_samples(&[(1.0 / 3.0, 7), (1.0 / 3.0, 7), (1.0 / 3.0, 7)]), 21);
        assert_eq!(effective_samples(&[(0.5, 300), (0.5, 20)]), 75);
    }
}
