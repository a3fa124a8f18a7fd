//! Several searches on one history: the budget goes to whoever earns improvement.
//!
//! The genetic algorithm starts. Then every member gets a share of the proposals that follows what its recent ones were worth:
//! a proposal is worth the more the higher its outcome ranks among everything known. All members learn from all outcomes, so
//! each continues from the best point of all.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cma_es::{self, CmaEs};
use super::contract::objective;
use super::genetic::{self, Genetic};
use super::local::Local;
use super::settings::Settings;
use super::tpe::Tpe;
use super::{Ask, Content, Landscape, Outcome, Placement, Setup, Strategy, StrategyError};
use crate::space::Genome;

/// Share of a member's earlier worth that an outcome leaves.
const MEMORY: f64 = 0.9;
/// Outcomes that earn anything: those among this many best.
const ELITE: usize = 20;

/// `[strategy]` of kind `portfolio`: the genetic algorithm's settings, and these.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameters {
    genetic: genetic::Parameters,
    /// Proposals of the genetic algorithm before the others join.
    start: usize,
    /// Least share of the proposals of every member.
    least: f64,
}

impl Parameters {
    pub(super) fn read(settings: &mut Settings<'_>) -> Result<Self, StrategyError> {
        Ok(Self {
            genetic: genetic::Parameters::read(settings)?,
            start: settings.whole("start", 12, 0..=1_000_000)?,
            least: settings.number("least", 0.1, 0.0..=0.25)?,
        })
    }
}

struct Member {
    strategy: Box<dyn Strategy>,
    /// Recent worth of its proposals, and how many of them it is based on.
    worth: f64,
    /// Proposals owed to it: its shares added up, less what it made.
    owed: f64,
    /// Nothing more to propose until something new is learnt.
    done: bool,
}

/// The strategy.
pub(super) struct Portfolio {
    parameters: Parameters,
    members: Vec<Member>,
    asked: usize,
    /// Who made the open proposal, and its genome.
    open: Option<(usize, Genome)>,
    /// Whose an evaluation is, with its genome.
    owners: BTreeMap<u64, (usize, Genome)>,
    /// The best scores, best first.
    elite: Vec<f64>,
}

impl Portfolio {
    pub(super) fn new(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        let strategies: [Box<dyn Strategy>; 4] = [
            Box::new(Genetic::new(parameters.genetic.clone(), landscape.clone(), setup)),
            Box::new(Local::new(landscape.clone(), setup)),
            Box::new(Tpe::follower(landscape.clone(), setup)),
            Box::new(CmaEs::follower(cma_es::Parameters::default(), landscape, setup)),
        ];
        let member = |strategy| Member { strategy, worth: 0.5, owed: 0.0, done: false };
        Self {
            parameters,
            members: strategies.into_iter().map(member).collect(),
            asked: 0,
            open: None,
            owners: BTreeMap::new(),
            elite: Vec::new(),
        }
    }

    /// Each member's share of the proposals.
    fn shares(&self) -> Vec<f64> {
        let least = self.parameters.least;
        let total: f64 = self.members.iter().map(|member| member.worth).sum();
        let free = 1.0 - least * self.members.len() as f64;
        let share = |member: &Member| least + free * if total > 0.0 { member.worth / total } else { 0.25 };
        self.members.iter().map(share).collect()
    }

    /// Whose turn it is: the member that is owed most.
    fn turn(&mut self) -> Option<usize> {
        if self.asked < self.parameters.start && !self.members[0].done {
            return Some(0);
        }
        let shares = self.shares();
        for (member, share) in self.members.iter_mut().zip(shares) {
            member.owed += share;
        }
        let waiting = (0..self.members.len()).filter(|member| !self.members[*member].done);
        let turn =
            waiting.reduce(|best, next| if self.members[next].owed > self.members[best].owed { next } else { best });
        if let Some(turn) = turn {
            self.members[turn].owed -= 1.0;
        }
        turn
    }

    /// How high a score ranks among the best, from 0 to 1; takes it in.
    fn rate(&mut self, score: f64) -> f64 {
        let rank = self.elite.partition_point(|other| *other > score);
        let equal = self.elite[rank..].iter().take_while(|other| **other == score).count();
        if rank >= ELITE {
            return 0.0;
        }
        self.elite.insert(rank + equal, score);
        self.elite.truncate(ELITE);
        1.0 - (rank + equal).min(ELITE) as f64 / ELITE as f64
    }
}

impl Strategy for Portfolio {
    fn name(&self) -> &'static str {
        "portfolio"
    }

    fn ask(&mut self) -> Result<Ask, StrategyError> {
        while let Some(turn) = self.turn() {
            match self.members[turn].strategy.ask()? {
                Ask::Done(_) => self.members[turn].done = true,
                Ask::Proposal(proposal) => {
                    self.asked += 1;
                    if let Content::Genome(genome) = &proposal.content {
                        self.open = Some((turn, genome.clone()));
                    }
                    return Ok(Ask::Proposal(proposal));
                }
                wait => return Ok(wait),
            }
        }
        Ok(Ask::Done("search space exhausted".to_owned()))
    }

    fn place(&mut self, placement: Placement) {
        let Some((owner, genome)) = self.open.take() else { return };
        for (place, member) in self.members.iter_mut().enumerate() {
            if place == owner {
                member.strategy.place(placement);
            } else {
                member.strategy.watch(&genome, placement);
            }
        }
        if let Placement::Asked { index } = placement {
            self.owners.insert(index, (owner, genome));
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let score = objective(outcome)?;
        let Some((owner, genome)) = self.owners.remove(&outcome.index) else { return Ok(()) };
        let content = Content::Genome(genome);
        for (place, member) in self.members.iter_mut().enumerate() {
            if place == owner {
                member.strategy.tell(outcome)?;
            } else {
                member.strategy.learn(&content, outcome)?;
            }
        }
        let worth = score.map_or(0.0, |score| self.rate(score));
        let member = &mut self.members[owner];
        member.worth = MEMORY * member.worth + (1.0 - MEMORY) * worth;
        Ok(())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        if let Some(score) = objective(outcome)? {
            self.rate(score);
        }
        for member in &mut self.members {
            member.strategy.learn(content, outcome)?;
        }
        Ok(())
    }
}
