//! Who is asked and told when: the part of the driver that makes a run repeatable.
//!
//! Proposal `k` sees the outcomes of indices up to `k - W` and no others, told in order of index, however fast or slow
//! they arrived; a strategy that needs more says so by [`Ask::Wait`]. Live search and replay of the ledger go through
//! this one path, which is why a resumed run proposes what an uninterrupted one would have.

use std::collections::{BTreeMap, HashMap};

use super::shared_samples::SharedSamples;
use crate::strategy::{Ask, Outcome, PROMOTION, Placement, Proposal, Strategy, StrategyError};

/// Duplicates in a row after which the space counts as exhausted.
const DUPLICATES_UNTIL_EXHAUSTED: u32 = 1_000;

/// The answer of [`Schedule::next`].
#[derive(Debug)]
pub enum Step<C> {
    /// A new evaluation under this index.
    New {
        /// From 0, without gaps.
        index: u64,
        /// What the strategy wants.
        proposal: Proposal,
        /// What `identify` made of it.
        candidate: C,
    },
    /// Outcomes are missing; call again when one has arrived.
    Blocked,
    /// The strategy has nothing more.
    Done(String),
}

/// A candidate's identity as far as duplicates go.
pub trait Identity {
    /// Equal for two evaluations that need not both be made.
    fn key(&self) -> &str;
    /// Equal for two evaluations of the same candidate, on whatever samples.
    fn candidate(&self) -> &str;
}

/// Asks and tells one strategy.
pub struct Schedule {
    strategy: Box<dyn Strategy>,
    look_ahead: u64,
    /// Index of the next new evaluation.
    next_index: u64,
    /// Outcomes of all lower indices have been told.
    told: u64,
    /// Outcomes that must be told before the next ask, beyond the look-ahead's own demand.
    waits_for: u64,
    outcomes: BTreeMap<u64, Outcome>,
    samples: SharedSamples,
    known: HashMap<String, u64>,
    /// The first evaluation of each candidate.
    candidates: HashMap<String, u64>,
    duplicates: u32,
    done: Option<String>,
}

impl Schedule {
    /// `look_ahead` is W: at most that many evaluations are open at a time.
    pub fn new(strategy: Box<dyn Strategy>, look_ahead: u64) -> Self {
        Self {
            strategy,
            look_ahead: look_ahead.max(1),
            next_index: 0,
            told: 0,
            waits_for: 0,
            outcomes: BTreeMap::new(),
            samples: SharedSamples::default(),
            known: HashMap::new(),
            candidates: HashMap::new(),
            duplicates: 0,
            done: None,
        }
    }

    /// Whoever proposes.
    pub fn strategy(&self) -> &dyn Strategy {
        self.strategy.as_ref()
    }

    /// All outcomes so far, by index.
    pub fn outcomes(&self) -> &BTreeMap<u64, Outcome> {
        &self.outcomes
    }

    /// Takes an outcome in; the strategy hears of it when its turn comes.
    pub fn finished(&mut self, mut outcome: Outcome) {
        self.samples.share(&mut outcome.tasks);
        self.outcomes.insert(outcome.index, outcome);
    }

    /// The next new evaluation, if the strategy may be asked and has one. `identify` turns a proposal into a candidate.
    ///
    /// # Errors
    /// [`StrategyError`] of a broken contract; those of `identify`.
    pub fn next<C: Identity, E: From<StrategyError>>(
        &mut self,
        mut identify: impl FnMut(&Proposal) -> Result<C, E>,
    ) -> Result<Step<C>, E> {
        loop {
            if let Some(reason) = &self.done {
                return Ok(Step::Done(reason.clone()));
            }
            let needed = self.waits_for.max((self.next_index + 1).saturating_sub(self.look_ahead));
            if !self.tell_up_to(needed)? {
                return Ok(Step::Blocked);
            }
            match self.strategy.ask()? {
                Ask::Done(reason) => self.done = Some(reason),
                Ask::Wait { until } => self.wait_for(until)?,
                Ask::Proposal(proposal) => {
                    let candidate = identify(&proposal)?;
                    if let Some(of) = self.duplicate_of(&proposal, &candidate) {
                        self.strategy.place(Placement::Duplicate { of });
                        self.count_duplicate();
                        continue;
                    }
                    let index = self.next_index;
                    self.next_index += 1;
                    self.duplicates = 0;
                    self.known.insert(candidate.key().to_string(), index);
                    self.candidates.entry(candidate.candidate().to_string()).or_insert(index);
                    self.strategy.place(Placement::Asked { index });
                    return Ok(Step::New { index, proposal: *proposal, candidate });
                }
            }
        }
    }

    /// The evaluation that makes this one unnecessary: the same samples of the same candidate; and for a strategy's own
    /// proposal any evaluation of the candidate, since a race goes on from the first.
    fn duplicate_of(&self, proposal: &Proposal, candidate: &impl Identity) -> Option<u64> {
        let of_strategy = proposal.origin != PROMOTION;
        let first = self.candidates.get(candidate.candidate()).filter(|_| of_strategy);
        first.or_else(|| self.known.get(candidate.key())).copied()
    }

    /// Tells everything that is there, for a strategy that will not be asked again: its own account is complete then.
    ///
    /// # Errors
    /// [`StrategyError`] of a broken contract.
    pub fn settle(&mut self) -> Result<(), StrategyError> {
        self.tell_up_to(self.next_index)?;
        self.strategy.settle()
    }

    /// Whether all outcomes below `needed` are told now.
    fn tell_up_to(&mut self, needed: u64) -> Result<bool, StrategyError> {
        while self.told < needed {
            let Some(outcome) = self.outcomes.get(&self.told) else { return Ok(false) };
            self.strategy.tell(outcome)?;
            self.told += 1;
        }
        Ok(true)
    }

    fn wait_for(&mut self, until: u64) -> Result<(), StrategyError> {
        if until < self.told || until >= self.next_index {
            return Err(StrategyError::Wait { until, told: self.told, asked: self.next_index });
        }
        self.waits_for = until + 1;
        Ok(())
    }

    fn count_duplicate(&mut self) {
        self.duplicates += 1;
        if self.duplicates >= DUPLICATES_UNTIL_EXHAUSTED {
            self.done = Some(format!("space exhausted: {DUPLICATES_UNTIL_EXHAUSTED} duplicates in a row"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::Status;
    use crate::space::Genome;
    use crate::strategy::Content;

    struct Key(String);
    impl Identity for Key {
        fn key(&self) -> &str {
            &self.0
        }
        fn candidate(&self) -> &str {
            self.0.split('@').next().unwrap_or_default()
        }
    }

    /// Proposes the number of outcomes it has seen, so that what it saw shows in what it asks.
    #[derive(Default)]
    struct Counting {
        seen: u64,
        asked: u64,
        wait_at: Option<u64>,
    }

    impl Strategy for Counting {
        fn ask(&mut self) -> Result<Ask, StrategyError> {
            if self.wait_at == Some(self.asked) && self.seen < self.asked {
                return Ok(Ask::Wait { until: self.asked - 1 });
            }
            let genome = Genome(vec![self.asked as f64, self.seen as f64]);
            Ok(Ask::Proposal(Box::new(Proposal::new(Content::Genome(genome), "test"))))
        }
        fn place(&mut self, placement: Placement) {
            if matches!(placement, Placement::Asked { .. }) {
                self.asked += 1;
            }
        }
        fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
            assert_eq!(outcome.index, self.seen);
            self.seen += 1;
            Ok(())
        }
    }

    fn outcome(index: u64) -> Outcome {
        Outcome { index, status: Status::Scored, objective: Some(0.0), tasks: BTreeMap::new(), fidelity: 1.0 }
    }

    fn step(schedule: &mut Schedule) -> Option<(u64, Vec<f64>)> {
        let next = schedule.next::<Key, StrategyError>(|proposal| match &proposal.content {
            Content::Genome(genome) => Ok(Key(format!("{:?}", genome.0))),
            _ => unreachable!(),
        });
        match next.unwrap() {
            Step::New { index, proposal, .. } => match proposal.content {
                Content::Genome(genome) => Some((index, genome.0)),
                _ => unreachable!(),
            },
            _ => None,
        }
    }

    #[test]
    fn a_proposal_sees_exactly_the_outcomes_before_its_window() {
        let mut schedule = Schedule::new(Box::new(Counting::default()), 3);
        for index in 0..3 {
            assert_eq!(step(&mut schedule), Some((index, vec![index as f64, 0.0])));
        }
        assert_eq!(step(&mut schedule), None);
        schedule.finished(outcome(2));
        schedule.finished(outcome(1));
        assert_eq!(step(&mut schedule), None, "index 0 is still open");
        schedule.finished(outcome(0));
        assert_eq!(step(&mut schedule), Some((3, vec![3.0, 1.0])), "outcomes 1 and 2 are there but not told yet");
        assert_eq!(step(&mut schedule), Some((4, vec![4.0, 2.0])));
        assert_eq!(step(&mut schedule), Some((5, vec![5.0, 3.0])));
        assert_eq!(step(&mut schedule), None);
    }

    #[test]
    fn a_wait_is_kept() {
        let strategy = Counting { wait_at: Some(2), ..Counting::default() };
        let mut schedule = Schedule::new(Box::new(strategy), 8);
        step(&mut schedule).unwrap();
        step(&mut schedule).unwrap();
        assert_eq!(step(&mut schedule), None);
        schedule.finished(outcome(0));
        assert_eq!(step(&mut schedule), None);
        schedule.finished(outcome(1));
        assert_eq!(step(&mut schedule), Some((2, vec![2.0, 2.0])));
    }

    #[test]
    fn a_strategy_does_not_pay_for_other_samples_of_a_known_candidate_but_a_race_does() {
        struct Origins(Vec<&'static str>, Vec<Placement>);
        impl Strategy for Origins {
            fn ask(&mut self) -> Result<Ask, StrategyError> {
                let Some(origin) = self.0.pop() else { return Ok(Ask::Done("all asked".into())) };
                let fidelity = if origin == PROMOTION { 1.0 } else { 0.25 };
                let proposal = Proposal { fidelity, ..Proposal::new(Content::Base, origin) };
                Ok(Ask::Proposal(Box::new(proposal)))
            }
            fn place(&mut self, placement: Placement) {
                self.1.push(placement);
            }
            fn tell(&mut self, _: &Outcome) -> Result<(), StrategyError> {
                assert_eq!(self.1.last(), Some(&Placement::Duplicate { of: 0 }));
                Ok(())
            }
        }
        let mut schedule = Schedule::new(Box::new(Origins(vec!["bred", "bred", PROMOTION], vec![])), 2);
        let mut samples = 0;
        let mut identify = |_: &Proposal| {
            samples += 1;
            Ok::<_, StrategyError>(Key(format!("same@{samples}")))
        };
        assert!(matches!(schedule.next(&mut identify).unwrap(), Step::New { index: 0, .. }), "a promotion");
        assert!(matches!(schedule.next(&mut identify).unwrap(), Step::Done(_)), "both others are duplicates");
        let mut schedule = Schedule::new(Box::new(Origins(vec![PROMOTION, "bred"], vec![])), 2);
        assert!(matches!(schedule.next(&mut identify).unwrap(), Step::New { index: 0, .. }));
        assert!(matches!(schedule.next(&mut identify).unwrap(), Step::New { index: 1, .. }), "its promotion");
    }

    #[test]
    fn only_duplicates_end_the_search() {
        struct Same;
        impl Strategy for Same {
            fn ask(&mut self) -> Result<Ask, StrategyError> {
                Ok(Ask::Proposal(Box::new(Proposal::new(Content::Base, "test"))))
            }
            fn place(&mut self, _: Placement) {}
            fn tell(&mut self, _: &Outcome) -> Result<(), StrategyError> {
                Ok(())
            }
        }
        let mut schedule = Schedule::new(Box::new(Same), 4);
        let identify = |_: &Proposal| Ok::<_, StrategyError>(Key("same".into()));
        assert!(matches!(schedule.next(identify).unwrap(), Step::New { index: 0, .. }));
        let Step::Done(reason) = schedule.next(identify).unwrap() else { panic!("not done") };
        assert!(reason.contains("exhausted"));
        assert_eq!(schedule.next_index, 1);
    }
}
