//! Checks the contract of ask and tell around any strategy, so that no strategy has to.

use std::collections::BTreeSet;

use super::{Ask, Content, Outcome, Placement, SoupTrace, Strategy, StrategyError};
use crate::scores::Status;

/// A strategy whose callers are checked.
pub(super) struct Checked {
    inner: Box<dyn Strategy>,
    awaits_placement: bool,
    asked: BTreeSet<u64>,
    last_told: Option<u64>,
}

impl Checked {
    pub(super) fn new(inner: Box<dyn Strategy>) -> Self {
        Self { inner, awaits_placement: false, asked: BTreeSet::new(), last_told: None }
    }
}

/// The objective of an outcome: `None` unless it was scored.
pub(super) fn objective(outcome: &Outcome) -> Result<Option<f64>, StrategyError> {
    match (outcome.status, outcome.objective) {
        (Status::Scored, Some(value)) if value.is_finite() => Ok(Some(value)),
        (Status::Scored, _) => Err(StrategyError::NotFinite { index: outcome.index }),
        _ => Ok(None),
    }
}

impl Strategy for Checked {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        if self.awaits_placement {
            return Err(StrategyError::NotPlaced);
        }
        let ask = self.inner.ask()?;
        self.awaits_placement = matches!(ask, Ask::Proposal(_));
        Ok(ask)
    }

    fn place(&mut self, placement: Placement) {
        self.awaits_placement = false;
        if let Placement::Asked { index } = placement {
            self.asked.insert(index);
        }
        self.inner.place(placement);
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let index = outcome.index;
        if self.awaits_placement {
            return Err(StrategyError::NotPlaced);
        }
        if let Some(last) = self.last_told.filter(|last| index <= *last) {
            return Err(StrategyError::OutOfOrder { index, last });
        }
        if !self.asked.contains(&index) {
            return Err(StrategyError::Unknown { index });
        }
        objective(outcome)?;
        self.last_told = Some(index);
        self.inner.tell(outcome)
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        objective(outcome)?;
        self.inner.learn(content, outcome)
    }

    fn settle(&mut self) -> Result<(), StrategyError> {
        self.inner.settle()
    }

    fn hypervolume(&self) -> Option<f64> {
        self.inner.hypervolume()
    }

    fn soup_trace(&self) -> Option<&SoupTrace> {
        self.inner.soup_trace()
    }
}
