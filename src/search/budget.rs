//! How much may be spent: evaluations, samples, active time. Exact: never one over.

use std::time::Duration;

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
    /// Of which nothing is spent yet.
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
        self.samples += samples;
    }

    /// Why one more evaluation of `samples` samples would be too much, if it would.
    pub fn refuses(&self, samples: u64) -> Option<String> {
        if self.limits.evaluations.is_some_and(|limit| self.evaluations >= limit) {
            return Some(format!("budget of {} evaluations used", self.evaluations));
        }
        let limit = self.limits.samples.filter(|limit| self.samples + samples > *limit)?;
        Some(format!("{} of {limit} samples used, an evaluation takes {samples}", self.samples))
    }

    /// Whether the active time is used up.
    pub fn out_of_time(&self, active: Duration) -> bool {
        self.limits.wall_clock.is_some_and(|limit| active >= limit)
    }

    /// Refuses a budget that cannot pay for `baselines` evaluations of `samples` samples each.
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
        assert!(budget.refuses(0).is_some_and(|reason| reason.contains("3 evaluations")));
    }

    #[test]
    fn the_minimum_is_named() {
        let error = budget(Some(5), None).check_minimum(6, 10).unwrap_err().to_string();
        assert!(error.contains("at least 6"), "{error}");
        let error = budget(None, Some(59)).check_minimum(6, 10).unwrap_err().to_string();
        assert!(error.contains("at least 60"), "{error}");
        budget(Some(6), Some(60)).check_minimum(6, 10).unwrap();
    }
}
