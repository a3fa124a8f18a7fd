//! Several searches on one history: the budget goes to whoever earns improvement; and a fresh start when nobody does.
//!
//! The genetic algorithm starts. Then every member of the team gets a share of the proposals that follows what its
//! recent ones were worth: a proposal is worth the more the higher its outcome ranks among everything known. All
//! members learn from all outcomes of the team, so each continues from the best point of all.
//!
//! Merges have many good places, and a search settles in one of them. When a team has gone long without a new best, a
//! new one starts from a design of its own and knows the baselines only; the team with the best point goes on with a
//! share of the proposals (restarts: Auger and Hansen 2005).

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng as _;

use super::cma_es::{self, CmaEs};
use super::contract::objective;
use super::genetic::{self, Genetic};
use super::local::Local;
use super::settings::Settings;
use super::tpe::Tpe;
use super::{Ask, Content, Landscape, Outcome, Placement, Setup, Strategy, StrategyError};
use crate::random;
use crate::scores::Status;
use crate::space::Genome;

/// Share of a member's earlier worth that an outcome leaves.
const MEMORY: f64 = 0.9;
/// Outcomes that earn anything: those among this many best.
const ELITE: usize = 20;
/// The genetic algorithm proposes alone until it has made this many proposals fewer than there are genes, within the
/// bounds [`START`]. The others' models need more points where there are more genes.
const START_LESS: usize = 12;
/// Fewest and most proposals that the genetic algorithm makes alone.
const START: (usize, usize) = (12, 60);
/// One proposal in this many is left to the team with the best point, while a newer team searches.
const BEST_TURN: u64 = 2;

/// `[strategy]` of kind `portfolio`: the genetic algorithm's settings, and these.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameters {
    genetic: genetic::Parameters,
    /// Proposals of the genetic algorithm before the others join.
    start: usize,
    /// Least share of the proposals of every member.
    least: f64,
    /// Outcomes of a team without a new best before another starts.
    patience: usize,
}

impl Parameters {
    pub(super) fn read(settings: &mut Settings<'_>, genes: usize) -> Result<Self, StrategyError> {
        let genetic = genetic::Parameters::read(settings)?;
        let patience = genetic.patience().unwrap_or((150 + 2 * genes).min(300));
        Ok(Self {
            genetic: genetic.without_restarts(),
            start: settings.whole("start", start(genes), 0..=1_000_000)?,
            least: settings.number("least", 0.1, 0.0..=0.25)?,
            patience,
        })
    }
}

/// The genetic algorithm's proposals before the others join, unless the settings say how many.
fn start(genes: usize) -> usize {
    genes.saturating_sub(START_LESS).clamp(START.0, START.1)
}

struct Member {
    strategy: Box<dyn Strategy>,
    /// Recent worth of its proposals.
    worth: f64,
    /// Least value that its worth counts as.
    trust: f64,
    /// Proposals owed to it: its shares added up, less what it made.
    owed: f64,
    /// Nothing more to propose until something new is learnt.
    done: bool,
}

/// Searches that share what they know.
struct Team {
    members: Vec<Member>,
    asked: usize,
    /// The best scores, best first.
    elite: Vec<f64>,
    /// Outcomes since the best of its own proposals improved.
    stagnant: usize,
    best: f64,
}

impl Team {
    fn new(parameters: &Parameters, landscape: &Arc<dyn Landscape>, setup: &Setup) -> Self {
        let member = |strategy, trust| Member { strategy, worth: 0.5, trust, owed: 0.0, done: false };
        let cma_es = CmaEs::follower(cma_es::Parameters::default(), landscape.clone(), setup);
        Self {
            members: vec![
                member(Box::new(Genetic::new(parameters.genetic.clone(), landscape.clone(), setup)), 0.1),
                member(Box::new(Local::new(landscape.clone(), setup)), 0.1),
                member(Box::new(Tpe::follower(landscape.clone(), setup)), 0.02),
                member(Box::new(cma_es), 0.02),
            ],
            asked: 0,
            elite: Vec::new(),
            stagnant: 0,
            best: f64::NEG_INFINITY,
        }
    }

    /// What each member will be owed with its share of the next proposal, in order of places; `None` for one that has
    /// nothing to propose, which gets none.
    fn claims(&self, parameters: &Parameters) -> Vec<Option<f64>> {
        let weight = |member: &Member| member.worth.max(member.trust);
        let waiting = || self.members.iter().filter(|member| !member.done);
        let total: f64 = waiting().map(weight).sum();
        let free = 1.0 - parameters.least * waiting().count() as f64;
        let claim = |member: &Member| member.owed + (parameters.least + free * weight(member) / total);
        self.members.iter().map(|member| (!member.done).then(|| claim(member))).collect()
    }

    /// The next proposal of a member, with its place; `None` when nobody has any. In turn, the member that is owed most
    /// makes it; the first ones are the first member's.
    fn ask(&mut self, parameters: &Parameters) -> Result<Option<(usize, Ask)>, StrategyError> {
        loop {
            let is_start = self.asked < parameters.start && !self.members[0].done;
            let claims = self.claims(parameters);
            let waiting = (0..claims.len()).filter(|place| claims[*place].is_some());
            let most = waiting.reduce(|best, next| if claims[next] > claims[best] { next } else { best });
            let Some(turn) = (if is_start { Some(0) } else { most }) else { return Ok(None) };
            let ask = self.members[turn].strategy.ask()?;
            if matches!(ask, Ask::Done(_)) {
                self.members[turn].done = true;
                continue;
            }
            if !is_start {
                for (member, claim) in self.members.iter_mut().zip(claims) {
                    member.owed = claim.unwrap_or(member.owed);
                }
                self.members[turn].owed -= 1.0;
            }
            self.asked += usize::from(matches!(ask, Ask::Proposal(_)));
            return Ok(Some((turn, ask)));
        }
    }

    fn place(&mut self, owner: usize, genome: &Genome, placement: Placement) {
        for (place, member) in self.members.iter_mut().enumerate() {
            if place == owner {
                member.strategy.place(placement);
            } else {
                member.strategy.watch(genome, placement);
            }
        }
    }

    fn tell(&mut self, owner: usize, genome: Genome, outcome: &Outcome) -> Result<(), StrategyError> {
        let content = Content::Genome(genome);
        for (place, member) in self.members.iter_mut().enumerate() {
            member.done = false;
            if place == owner {
                member.strategy.tell(outcome)?;
            } else {
                member.strategy.learn(&content, outcome)?;
            }
        }
        let score = objective(outcome)?;
        if outcome.status == Status::Failed {
            // It says nothing of the candidate, nor of who proposed it.
            return Ok(());
        }
        self.stagnant += 1;
        if let Some(score) = score.filter(|score| *score > self.best) {
            self.best = score;
            self.stagnant = 0;
        }
        let worth = score.map_or(0.0, |score| self.enter_and_rate(score));
        let member = &mut self.members[owner];
        member.worth = MEMORY * member.worth + (1.0 - MEMORY) * worth;
        Ok(())
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        if let Some(score) = objective(outcome)? {
            self.enter_and_rate(score);
        }
        for member in &mut self.members {
            member.strategy.learn(content, outcome)?;
        }
        Ok(())
    }

    /// Enters a score among the best. How high it ranks there, from 0 to 1.
    fn enter_and_rate(&mut self, score: f64) -> f64 {
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

/// Who made a proposal.
#[derive(Clone, Debug)]
struct Owner {
    team: usize,
    member: usize,
    genome: Genome,
}

/// The strategy.
pub(super) struct Portfolio {
    parameters: Parameters,
    landscape: Arc<dyn Landscape>,
    setup: Setup,
    /// The latest is the one that searches; of the others only the best goes on.
    teams: Vec<Team>,
    /// The baselines' outcomes, for teams to come.
    baselines: Vec<(Content, Outcome)>,
    asked: u64,
    open: Option<Owner>,
    owners: BTreeMap<u64, Owner>,
    /// What came of the teams' proposals, without scores by sample: those of each team are news to the others.
    outcomes: BTreeMap<u64, (Owner, Outcome)>,
    /// Teams that proposed what another team had proposed before, and that evaluation.
    met: Vec<(usize, u64)>,
}

impl Portfolio {
    pub(super) fn new(parameters: Parameters, landscape: Arc<dyn Landscape>, setup: &Setup) -> Self {
        Self {
            teams: vec![Team::new(&parameters, &landscape, setup)],
            parameters,
            landscape,
            setup: setup.clone(),
            baselines: Vec::new(),
            asked: 0,
            open: None,
            owners: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            met: Vec::new(),
        }
    }

    /// The team with the best point; of equals the latest.
    fn best(&self) -> usize {
        let best = (0..self.teams.len()).max_by(|a, b| self.teams[*a].best.total_cmp(&self.teams[*b].best));
        best.unwrap_or(0)
    }

    /// Starts a new team where the latest has gone without progress for too long.
    fn renew(&mut self) -> Result<(), StrategyError> {
        let latest = self.teams.len() - 1;
        if self.teams[latest].stagnant < self.parameters.patience {
            return Ok(());
        }
        let seed = random::stream(self.setup.seed, "portfolio team", self.teams.len() as u64).next_u64();
        // The first team has tried that point.
        let setup = Setup { seed, model_stock: None, ..self.setup.clone() };
        let mut team = Team::new(&self.parameters, &self.landscape, &setup);
        for (content, outcome) in &self.baselines {
            team.learn(content, outcome)?;
        }
        self.teams.push(team);
        Ok(())
    }

    /// Tells teams what came of proposals of others that they made too; else they would wait for it for ever.
    fn tell_those_who_met(&mut self) -> Result<(), StrategyError> {
        for (team, of) in std::mem::take(&mut self.met) {
            match self.outcomes.get(&of) {
                Some((owner, outcome)) if owner.team != team => {
                    self.teams[team].learn(&Content::Genome(owner.genome.clone()), outcome)?;
                }
                Some(_) => {}
                None => self.met.push((team, of)),
            }
        }
        Ok(())
    }
}

impl Strategy for Portfolio {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        self.tell_those_who_met()?;
        self.renew()?;
        let latest = self.teams.len() - 1;
        let first = if self.asked.is_multiple_of(BEST_TURN) { self.best() } else { latest };
        for team in [first, latest, self.best()] {
            if let Some((member, ask)) = self.teams[team].ask(&self.parameters)? {
                if let Ask::Proposal(proposal) = &ask {
                    self.asked += 1;
                    if let Content::Genome(genome) = &proposal.content {
                        self.open = Some(Owner { team, member, genome: genome.clone() });
                    }
                }
                return Ok(ask);
            }
        }
        Ok(Ask::exhausted())
    }

    fn place(&mut self, placement: Placement) {
        let Some(owner) = self.open.take() else { return };
        self.teams[owner.team].place(owner.member, &owner.genome, placement);
        match placement {
            Placement::Asked { index } => {
                self.owners.insert(index, owner);
            }
            // Baselines are known to all teams.
            Placement::Duplicate { of } if self.owners.contains_key(&of) || self.outcomes.contains_key(&of) => {
                self.met.push((owner.team, of));
            }
            Placement::Duplicate { .. } => {}
        }
    }

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        let Some(owner) = self.owners.remove(&outcome.index) else { return Ok(()) };
        let mut kept = outcome.clone();
        kept.tasks.values_mut().for_each(|scores| scores.per_sample = None);
        let Owner { team, member, genome } = owner.clone();
        self.outcomes.insert(outcome.index, (owner, kept));
        self.teams[team].tell(member, genome, outcome)
    }

    fn learn(&mut self, content: &Content, outcome: &Outcome) -> Result<(), StrategyError> {
        self.baselines.push((content.clone(), outcome.clone()));
        self.teams.iter_mut().try_for_each(|team| team.learn(content, outcome))
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Answer, Row, TestSpace, drive, setup};
    use super::*;

    fn run(settings: &str, evaluations: u64, score: &dyn Fn(&[f64]) -> f64) -> Vec<Row> {
        let table: toml::Table = settings.parse().unwrap();
        let mut settings = Settings::new(&table);
        let setup = Setup { seeds: vec![], ..setup(TestSpace::reals(4), 8) };
        let parameters = Parameters::read(&mut settings, 4).unwrap();
        let mut portfolio = Portfolio::new(parameters, setup.landscape.clone().unwrap(), &setup);
        let oracle = |_: u64, content: &Content| match content {
            Content::Genome(genome) => Answer::Score(score(&genome.0)),
            _ => Answer::Infeasible,
        };
        drive(&mut portfolio, &oracle, 8, evaluations).unwrap()
    }

    fn origins(rows: &[Row], origin: &str) -> Vec<usize> {
        rows.iter().enumerate().filter(|(_, row)| row.proposal.origin == origin).map(|(at, _)| at).collect()
    }

    #[test]
    fn a_team_without_progress_is_followed_by_another() {
        // Nothing improves on the first point.
        let rows = run("patience = 30", 100, &|_| 0.5);
        let designs = origins(&rows, "sobol");
        assert!(designs.iter().any(|at| *at < 20) && designs.iter().any(|at| *at > 35), "{designs:?}");
        let rows = run("patience = 1000", 100, &|_| 0.5);
        assert!(origins(&rows, "sobol").iter().all(|at| *at < 20));
    }

    #[test]
    fn a_team_hears_of_what_another_one_had_proposed_before() {
        let table: toml::Table = "patience = 5".parse().unwrap();
        let setup = Setup { seeds: vec![], ..setup(TestSpace::reals(1), 1) };
        let parameters = Parameters::read(&mut Settings::new(&table), 1).unwrap();
        let mut portfolio = Portfolio::new(parameters, setup.landscape.clone().unwrap(), &setup);
        let outcome = |index| Outcome {
            index,
            status: crate::scores::Status::Scored,
            objective: Some(0.5),
            tasks: BTreeMap::new(),
            fidelity: 1.0,
        };
        let mut index = 0;
        while portfolio.teams.len() < 2 {
            assert!(matches!(portfolio.ask().unwrap(), Ask::Proposal(_)));
            portfolio.place(Placement::Asked { index });
            portfolio.tell(&outcome(index)).unwrap();
            index += 1;
        }
        // The ask that made the second team has placed its proposal; the next one of that team is called one of the
        // first.
        while portfolio.open.as_ref().is_none_or(|owner| owner.team != 1) {
            if portfolio.open.is_some() {
                portfolio.place(Placement::Asked { index });
                portfolio.tell(&outcome(index)).unwrap();
                index += 1;
            }
            assert!(matches!(portfolio.ask().unwrap(), Ask::Proposal(_)));
        }
        portfolio.place(Placement::Duplicate { of: 0 });
        assert_eq!(portfolio.met, [(1, 0)]);
        let known = portfolio.teams[1].elite.len();
        portfolio.ask().unwrap();
        assert_eq!((portfolio.teams[1].elite.len(), portfolio.met.len()), (known + 1, 0));
    }

    fn portfolio(settings: &str) -> Portfolio {
        let table: toml::Table = settings.parse().unwrap();
        let setup = Setup { seeds: vec![], ..setup(TestSpace::reals(4), 1) };
        let parameters = Parameters::read(&mut Settings::new(&table), 4).unwrap();
        Portfolio::new(parameters, setup.landscape.clone().unwrap(), &setup)
    }

    #[test]
    fn what_was_given_up_says_nothing_of_who_proposed_it() {
        let mut portfolio = portfolio("start = 1\npatience = 5");
        for index in 0..40 {
            assert!(matches!(portfolio.ask().unwrap(), Ask::Proposal(_)));
            portfolio.place(Placement::Asked { index });
            let (status, tasks) = (Status::Failed, BTreeMap::new());
            portfolio.tell(&Outcome { index, status, objective: None, tasks, fidelity: 1.0 }).unwrap();
        }
        assert_eq!((portfolio.teams.len(), portfolio.teams[0].stagnant), (1, 0));
        assert!(portfolio.teams[0].members.iter().all(|member| member.worth == 0.5));
    }

    #[test]
    fn a_member_without_proposals_saves_no_turns_up() {
        let mut portfolio = portfolio("start = 1");
        for index in 0..20 {
            portfolio.teams[0].members[1].done = true;
            assert!(matches!(portfolio.ask().unwrap(), Ask::Proposal(_)));
            portfolio.place(Placement::Asked { index });
        }
        let owed: Vec<f64> = portfolio.teams[0].members.iter().map(|member| member.owed).collect();
        assert!(owed[1] == 0.0 && owed.iter().sum::<f64>().abs() < 1e-9, "{owed:?}");
    }

    #[test]
    fn the_others_join_later_where_there_are_more_genes() {
        assert_eq!([1, 24, 48, 72, 500].map(start), [12, 12, 36, 60, 60]);
    }

    #[test]
    fn every_member_gets_its_share_once_it_joined() {
        let rows = run("start = 30", 120, &|x| -x.iter().map(|value| (value - 0.3).powi(2)).sum::<f64>());
        for origin in ["local", "tpe", "cma_es"] {
            let at = origins(&rows, origin);
            assert!(at.len() >= 5 && at.iter().all(|at| *at >= 30), "{origin}: {at:?}");
        }
    }
}
