//! How much may be spent: evaluations, samples, active time. Exact: never one over.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::BudgetConfig;

use super::SearchError;

/// Limits of a run and what has been spent.
#[derive(Clone, Debug)]
pub struct Budget {
    limits: BudgetConfig,
    evaluations: u64,
    samples: u64,
}

impl Budget {
    /// A budget of which nothing is spent yet.
    pub fn new(limits: BudgetConfig) -> Self {
        Self { limits, evaluations: 0, samples: 0 }
    }

    /// What the run file and the command line allow.
    pub fn limits(&self) -> &BudgetConfig {
        &self.limits
    }

    /// Evaluations asked for.
    pub fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// Samples asked for, as far as the evaluator says how many there are.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Counts an evaluation of `samples` samples that was asked for.
    pub fn spend(&mut self, samples: u64) {
        self.evaluations += 1;
        self.samples = self.samples.saturating_add(samples);
    }

    /// Why one more evaluation of `samples` samples would be too much, if it would.
    pub fn refuses(&self, samples: u64) -> Option<String> {
        if let Some(limit) = self.limits.evaluations.filter(|limit| self.evaluations >= *limit) {
            let more = if self.evaluations > limit {
                format!(" ({} were asked for)", self.evaluations)
            } else {
                String::new()
            };
            return Some(format!("budget of {limit} evaluations used{more}"));
        }
        let limit = self.limits.samples.filter(|limit| self.samples.saturating_add(samples) > *limit)?;
        Some(format!("{} of {limit} samples used, the next evaluation would take {samples}", self.samples))
    }

    /// Whether the active time is used up.
    pub fn out_of_time(&self, active: Duration) -> bool {
        self.limits.wall_clock.is_some_and(|limit| active >= limit)
    }

    /// Refuses a budget that cannot pay for `baselines` evaluations of `samples` samples each.
    ///
    /// # Errors
    /// [`SearchError::Settings`], with the least that would do.
    pub fn check_minimum(&self, baselines: u64, samples: u64) -> Result<(), SearchError> {
        if let Some(limit) = self.limits.evaluations.filter(|limit| *limit < baselines) {
            return Err(SearchError::Settings(format!(
                "budget.evaluations = {limit} is smaller than the {baselines} evaluations of the baselines (base, sources, \
                 uniform soup); set at least {baselines}"
            )));
        }
        let needed = baselines.saturating_mul(samples);
        if let Some(limit) = self.limits.samples.filter(|limit| *limit < needed) {
            return Err(SearchError::Settings(format!(
                "budget.samples = {limit} is smaller than the {needed} samples of the {baselines} baselines ({samples} each); \
                 set at least {needed}"
            )));
        }
        if self.limits.samples.is_some() && samples == 0 {
            return Err(SearchError::Settings(
                "budget.samples needs an evaluator that says how many samples its tasks have; use budget.evaluations"
                    .into(),
            ));
        }
        Ok(())
    }
}

/// What a run has come to: by this pace, what is left takes so long.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Evaluations that have ended.
    pub evaluations: u64,
    /// Samples that these were asked for.
    pub samples: u64,
    /// The active time that they took.
    pub active: Duration,
}

impl Pace {
    /// The active time until the first of `limits` is reached; `None` where nothing says.
    pub fn time_left(&self, limits: &BudgetConfig) -> Option<Duration> {
        let by_count = [(limits.evaluations, self.evaluations), (limits.samples, self.samples)]
            .into_iter()
            .filter_map(|(limit, done)| self.time_until(limit?, done));
        let by_clock = limits.wall_clock.map(|limit| limit.saturating_sub(self.active));
        by_count.chain(by_clock).min()
    }

    fn time_until(&self, limit: u64, done: u64) -> Option<Duration> {
        let share = limit.saturating_sub(done) as f64 / done as f64;
        // Nothing done has no pace.
        Duration::try_from_secs_f64(self.active.as_secs_f64() * share).ok().filter(|_| done > 0)
    }
}

/// `limits` as the ledger keeps them of every start.
pub(super) fn limits_document(limits: &BudgetConfig) -> Value {
    json!({
        "evaluations": limits.evaluations,
        "wall_clock_s": limits.wall_clock.map(|limit| limit.as_secs_f64()),
        "samples": limits.samples,
    })
}

/// The limits of a start, in the ledger's document of them; what is no limit is none.
pub fn recorded_limits(document: &Value) -> BudgetConfig {
    let wall_clock = document["wall_clock_s"].as_f64();
    BudgetConfig {
        evaluations: document["evaluations"].as_u64(),
        samples: document["samples"].as_u64(),
        wall_clock: wall_clock.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(evaluations: Option<u64>, samples: Option<u64>) -> Budget {
        Budget::new(BudgetConfig { evaluations, samples, wall_clock: None })
    }

    #[test]
    fn never_one_over() {
        let mut budget = budget(Some(3), Some(25));
        for _ in 0..2 {
            assert_eq!(budget.refuses(10), None);
            budget.spend(10);
        }
        assert!(budget.refuses(10).is_some_and(|reason| reason.contains("samples")));
        assert_eq!(budget.refuses(5), None);
        budget.spend(5);
        assert_eq!(budget.refuses(0).as_deref(), Some("budget of 3 evaluations used"));
        // A budget may be lowered between two starts.
        budget.limits.evaluations = Some(2);
        assert_eq!(budget.refuses(0).as_deref(), Some("budget of 2 evaluations used (3 were asked for)"));
    }

    #[test]
    fn the_minimum_is_named() {
        let error = budget(Some(5), None).check_minimum(6, 10).unwrap_err().to_string();
        assert!(error.contains("at least 6"), "{error}");
        let error = budget(None, Some(59)).check_minimum(6, 10).unwrap_err().to_string();
        assert!(error.contains("at least 60"), "{error}");
        budget(Some(6), Some(60)).check_minimum(6, 10).unwrap();
    }

    #[test]
    fn the_first_limit_that_the_pace_reaches_says_what_is_left() {
        let pace = Pace { evaluations: 20, samples: 300, active: Duration::from_secs(100) };
        let after = |limits: Value| pace.time_left(&recorded_limits(&limits)).map(|left| left.as_secs());
        assert_eq!(after(json!({ "evaluations": 50 })), Some(150));
        assert_eq!(after(json!({ "evaluations": 50, "wall_clock_s": 160.0 })), Some(60));
        assert_eq!(after(json!({ "evaluations": 10, "wall_clock_s": 160.0 })), Some(0));
        assert_eq!(after(json!({ "samples": 900 })), Some(200));
        assert_eq!(after(json!({ "samples": 900, "evaluations": 50 })), Some(150));
        assert_eq!(after(json!({})), None);
        let nothing = Pace { evaluations: 0, samples: 0, active: Duration::ZERO };
        assert_eq!(nothing.time_left(&recorded_limits(&json!({ "evaluations": 50 }))), None);
    }

    #[test]
    fn limits_come_back_from_their_document() {
        let limits = BudgetConfig { evaluations: Some(7), samples: None, wall_clock: Some(Duration::from_secs(90)) };
        assert_eq!(recorded_limits(&limits_document(&limits)), limits);
        assert_eq!(recorded_limits(&Value::Null), BudgetConfig::default());
    }
}
