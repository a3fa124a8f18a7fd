//! What every strategy must pass, and a driver in miniature to show it: no clock, no files, outcomes computed in place.
//!
//! [`check`] runs the whole suite on a kind of strategy; a strategy of your own passes it before it is used.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Ask, Content, Landscape, Outcome, Placement, Proposal, SeedGenome, Setup, Strategy, StrategyError};
use crate::scores::Status;
use crate::space::{Gene, GeneKind, Genome};

/// A search space of loose genes.
#[derive(Clone, Debug)]
pub struct TestSpace {
    genes: Vec<Gene>,
    /// `(gene, controller, level)`: the gene has an effect only while the controller has that level.
    conditions: Vec<(usize, usize, usize)>,
}

impl TestSpace {
    /// A space in which every gene has an effect.
    pub fn new(genes: Vec<Gene>) -> Self {
        Self { genes, conditions: Vec::new() }
    }

    /// `count` real genes.
    pub fn reals(count: usize) -> Self {
        let gene = |place| Gene {
            layer_group: Some(place % 3),
            model: Some(place / 3 % 4),
            ..real(&format!("weight.{place}"))
        };
        Self::new((0..count).map(gene).collect())
    }

    /// The gene has an effect only while `controller`, a categorical gene, has that level.
    pub fn inactive_unless(mut self, gene: usize, controller: usize, level: usize) -> Self {
        self.conditions.push((gene, controller, level));
        self
    }
}

impl Landscape for TestSpace {
    fn genes(&self) -> &[Gene] {
        &self.genes
    }

    fn active(&self, genome: &Genome) -> Vec<bool> {
        let mut active = vec![true; self.genes.len()];
        for &(gene, controller, level) in &self.conditions {
            let value = self.genes[controller].kind.levels().map_or(0, |levels| levels.of(genome.0[controller]));
            active[gene] &= value == level;
        }
        active
    }
}

/// A real gene in `[0, 1]`.
pub fn real(name: &str) -> Gene {
    gene(name, GeneKind::Real { low: 0.0, high: 1.0, log: false })
}

/// An integer gene.
pub fn integer(name: &str, low: i64, high: i64) -> Gene {
    gene(name, GeneKind::Integer { low, high })
}

/// A categorical gene.
pub fn category(name: &str, choices: usize) -> Gene {
    gene(name, GeneKind::Categorical { choices: (0..choices).map(|choice| choice.to_string()).collect() })
}

fn gene(name: &str, kind: GeneKind) -> Gene {
    let parameter = name.split('.').next().unwrap_or(name).to_owned();
    Gene {
        name: name.to_owned(),
        parameter,
        kind,
        init: 0.5,
        model: None,
        layer_group: None,
        module: None,
        methods: vec![],
    }
}

/// What the miniature driver answers to a proposal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// Scored, with this objective: higher is better, and it is finite.
    Score(f64),
    /// The candidate's own fault: worst fitness.
    Infeasible,
    /// Given up: no fitness.
    Failed,
}

/// One evaluation of the miniature driver.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What the strategy proposed; its index is the row's place.
    pub proposal: Proposal,
    /// What the oracle said of it.
    pub answer: Answer,
}

/// A strategy that broke the contract, in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {what}")]
pub struct Violation {
    /// The case of the suite.
    pub case: String,
    /// What went wrong.
    pub what: String,
}

fn violation<T>(what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { case: String::new(), what: what.into() })
}

/// What a proposal is evaluated as: proposals that share it are duplicates.
pub type Identity = Vec<u64>;

/// The answers of a run.
pub trait Oracle {
    /// The answer to a proposal under this index.
    fn answer(&self, index: u64, content: &Content) -> Answer;

    /// What makes two contents the same candidate.
    fn identity(&self, content: &Content) -> Identity {
        match content {
            Content::Base => vec![0],
            Content::Soup(members) => [1].into_iter().chain(members.iter().map(|member| *member as u64)).collect(),
            Content::Genome(genome) => [2].into_iter().chain(genome.0.iter().map(|value| value.to_bits())).collect(),
        }
    }
}

impl<F: Fn(u64, &Content) -> Answer> Oracle for F {
    fn answer(&self, index: u64, content: &Content) -> Answer {
        self(index, content)
    }
}

/// Drives a strategy as a search does: proposal k is asked for when exactly the outcomes up to k - `window` were told,
/// or those that it waits for. Ends after `evaluations`, when the strategy is done, or after 1,000 duplicates in a row.
///
/// # Errors
/// A [`Violation`] of the contract.
pub fn drive(
    strategy: &mut dyn Strategy,
    oracle: &dyn Oracle,
    window: u64,
    evaluations: u64,
) -> Result<Vec<Row>, Violation> {
    let mut rows: Vec<Row> = Vec::new();
    let mut known: HashMap<Identity, u64> = HashMap::new();
    let (mut told, mut duplicates) = (0, 0);
    while (rows.len() as u64) < evaluations && duplicates < 1_000 {
        let asked = rows.len() as u64;
        tell_up_to(strategy, &rows, &mut told, (asked + 1).saturating_sub(window))?;
        match ask(strategy)? {
            Ask::Done(_) => break,
            Ask::Wait { until } if until < told => {
                return violation(format!("waits for evaluation {until}, told before"));
            }
            Ask::Wait { until } if until >= asked => {
                return violation(format!("waits for evaluation {until}, never asked"));
            }
            Ask::Wait { until } => tell_up_to(strategy, &rows, &mut told, until + 1)?,
            Ask::Proposal(proposal) => {
                check_proposal(&proposal, asked)?;
                let identity = oracle.identity(&proposal.content);
                if let Some(&of) = known.get(&identity) {
                    duplicates += 1;
                    strategy.place(Placement::Duplicate { of });
                    continue;
                }
                duplicates = 0;
                known.insert(identity, asked);
                strategy.place(Placement::Asked { index: asked });
                let answer = oracle.answer(asked, &proposal.content);
                rows.push(Row { proposal: *proposal, answer });
            }
        }
    }
    tell_up_to(strategy, &rows, &mut told, rows.len() as u64)?;
    Ok(rows)
}

/// Asks; a wait is answered by the caller.
fn ask(strategy: &mut dyn Strategy) -> Result<Ask, Violation> {
    strategy.ask().map_err(|error| Violation { case: String::new(), what: error.to_string() })
}

fn tell_up_to(strategy: &mut dyn Strategy, rows: &[Row], told: &mut u64, end: u64) -> Result<(), Violation> {
    while *told < end.min(rows.len() as u64) {
        let answer = rows[*told as usize].answer;
        if let Err(error) = strategy.tell(&outcome(*told, answer)) {
            return violation(format!("refuses outcome {told}: {error}"));
        }
        *told += 1;
    }
    Ok(())
}

/// The outcome with this answer.
pub fn outcome(index: u64, answer: Answer) -> Outcome {
    let (status, objective) = match answer {
        Answer::Score(score) => (Status::Scored, Some(score)),
        Answer::Infeasible => (Status::Infeasible, None),
        Answer::Failed => (Status::Failed, None),
    };
    Outcome { index, status, objective, tasks: BTreeMap::new(), fidelity: 1.0 }
}

fn check_proposal(proposal: &Proposal, asked: u64) -> Result<(), Violation> {
    if let Content::Genome(genome) = &proposal.content
        && let Some(value) = genome.0.iter().find(|value| !(0.0..=1.0).contains(*value))
    {
        return violation(format!("proposal {asked} has a gene at {value}, outside 0 to 1"));
    }
    if let Content::Soup(members) = &proposal.content
        && (members.is_empty() || members.windows(2).any(|pair| pair[0] > pair[1]))
    {
        return violation(format!("proposal {asked} is a soup of {members:?}, which do not ascend"));
    }
    if let Some(parent) = proposal.parents.iter().find(|parent| **parent >= asked) {
        return violation(format!("proposal {asked} names evaluation {parent} as a parent"));
    }
    if !(proposal.fidelity > 0.0 && proposal.fidelity <= 1.0) {
        return violation(format!("proposal {asked} has fidelity {}", proposal.fidelity));
    }
    if proposal.origin.is_empty() {
        return violation(format!("proposal {asked} has no origin"));
    }
    Ok(())
}

/// Minus the squared distance to 0.3 in every gene; baselines score little.
pub fn sphere(content: &Content) -> f64 {
    match content {
        Content::Genome(genome) => -genome.0.iter().map(|value| (value - 0.3).powi(2)).sum::<f64>(),
        Content::Base => -100.0,
        Content::Soup(members) => -50.0 + members.len() as f64 - members[0] as f64 * 0.1,
    }
}

/// Builds the strategy under test.
pub type Builder<'a> = &'a dyn Fn(Setup) -> Result<Box<dyn Strategy>, StrategyError>;

/// One case of the suite.
type Case = fn(Builder<'_>) -> Result<(), Violation>;

/// A set-up with three sources and a base on this space.
pub fn setup(space: TestSpace, look_ahead: usize) -> Setup {
    let dimensions = space.genes.len();
    let point = |value: f64| Genome(vec![value; dimensions]);
    let seed = |content, value: f64| SeedGenome { genome: point(value), content };
    Setup {
        seed: 7,
        landscape: Some(Arc::new(space)),
        sources: 3,
        has_base: true,
        evaluations: None,
        look_ahead,
        seeds: vec![seed(Content::Base, 0.0), seed(Content::Soup(vec![0, 1, 2]), 0.4)],
        model_stock: Some(point(0.1)),
        objective: vec![],
    }
}

/// Runs the suite.
///
/// # Errors
/// The first [`Violation`].
pub fn check(build: Builder<'_>) -> Result<(), Violation> {
    let cases: [(&str, Case); 9] = [
        ("same seed, same proposals", repeats),
        ("a longer run starts like a shorter one", replays),
        ("outcomes come late", late_outcomes),
        ("failed and infeasible candidates", bad_candidates),
        ("all scores equal", flat),
        ("no gene, one and many", dimensions),
        ("discrete and conditional genes", discrete),
        ("duplicates", duplicates),
        ("broken calls", broken_calls),
    ];
    for (case, run) in cases {
        run(build).map_err(|violation| Violation { case: case.to_owned(), ..violation })?;
    }
    Ok(())
}

fn make(build: Builder<'_>, setup: Setup) -> Result<Box<dyn Strategy>, Violation> {
    build(setup).or_else(|error| violation(format!("cannot be built: {error}")))
}

fn scored(_index: u64, content: &Content) -> Answer {
    Answer::Score(sphere(content))
}

fn run(build: Builder<'_>, setup: Setup, oracle: &dyn Oracle, evaluations: u64) -> Result<Vec<Row>, Violation> {
    let window = setup.look_ahead as u64;
    drive(&mut *make(build, setup)?, oracle, window, evaluations)
}

fn repeats(build: Builder<'_>) -> Result<(), Violation> {
    let once = run(build, setup(TestSpace::reals(6), 8), &scored, 120)?;
    if once != run(build, setup(TestSpace::reals(6), 8), &scored, 120)? {
        return violation("two runs with one seed differ");
    }
    let other = run(build, Setup { seed: 8, ..setup(TestSpace::reals(6), 8) }, &scored, 120)?;
    let searched = once.iter().filter(|row| matches!(row.proposal.content, Content::Genome(_))).count();
    if searched > 3 && once == other { violation("the seed makes no difference") } else { Ok(()) }
}

fn replays(build: Builder<'_>) -> Result<(), Violation> {
    let long = run(build, setup(TestSpace::reals(4), 8), &scored, 90)?;
    for length in [1, 7, 40] {
        let short = run(build, setup(TestSpace::reals(4), 8), &scored, length)?;
        if short[..] != long[..short.len()] {
            return violation(format!("the first {length} evaluations differ"));
        }
    }
    Ok(())
}

fn late_outcomes(build: Builder<'_>) -> Result<(), Violation> {
    for window in [1, 2, 8, 64] {
        let rows = run(build, setup(TestSpace::reals(5), window), &scored, 100)?;
        let baselines = rows.iter().filter(|row| !matches!(row.proposal.content, Content::Genome(_))).count();
        if baselines < 5 {
            return violation(format!("window {window}: {baselines} baselines were proposed"));
        }
    }
    Ok(())
}

fn bad_candidates(build: Builder<'_>) -> Result<(), Violation> {
    let mixed = |index: u64, content: &Content| match index % 5 {
        1 => Answer::Failed,
        3 => Answer::Infeasible,
        _ => Answer::Score(sphere(content)),
    };
    run(build, setup(TestSpace::reals(4), 8), &mixed, 100)?;
    run(build, setup(TestSpace::reals(4), 8), &|_, _: &Content| Answer::Failed, 60)?;
    run(build, setup(TestSpace::reals(4), 8), &|_, _: &Content| Answer::Infeasible, 60)?;
    Ok(())
}

fn flat(build: Builder<'_>) -> Result<(), Violation> {
    run(build, setup(TestSpace::reals(4), 8), &|_, _: &Content| Answer::Score(0.5), 80)?;
    // Enormous and tiny scores are scores.
    let extreme = |index: u64, _: &Content| Answer::Score([1e300, -1e300, 1e-300, 0.0][index as usize % 4]);
    run(build, setup(TestSpace::reals(4), 8), &extreme, 80)?;
    Ok(())
}

fn dimensions(build: Builder<'_>) -> Result<(), Violation> {
    for (genes, evaluations) in [(0, 60), (1, 60), (500, 60)] {
        let rows = run(build, setup(TestSpace::reals(genes), 8), &scored, evaluations)?;
        let wrong = |row: &Row| matches!(&row.proposal.content, Content::Genome(genome) if genome.0.len() != genes);
        if rows.iter().any(wrong) {
            return violation(format!("a genome of a space of {genes} genes has another length"));
        }
    }
    // Nothing to search, and the only point is a baseline that was scored already.
    let rows = run(build, setup(TestSpace::reals(0), 8), &PointIsUniformSoup, 60)?;
    if rows.iter().any(|row| matches!(row.proposal.content, Content::Genome(_))) {
        return violation("a point that is a baseline is evaluated again");
    }
    Ok(())
}

struct PointIsUniformSoup;

impl Oracle for PointIsUniformSoup {
    fn answer(&self, index: u64, content: &Content) -> Answer {
        scored(index, content)
    }

    fn identity(&self, content: &Content) -> Identity {
        match content {
            Content::Genome(_) => scored.identity(&Content::Soup(vec![0, 1, 2])),
            other => scored.identity(other),
        }
    }
}

/// Twelve points in all: three levels by four.
fn small_space() -> TestSpace {
    TestSpace::new(vec![category("method", 3), integer("k", 1, 4)])
}

fn discrete(build: Builder<'_>) -> Result<(), Violation> {
    let rows = run(build, setup(small_space(), 8), &scored, 200)?;
    let points = rows.iter().filter(|row| matches!(row.proposal.content, Content::Genome(_))).count();
    if points > 12 {
        return violation(format!("{points} points of a space of twelve were proposed"));
    }
    let mixed = TestSpace::new(vec![real("x"), category("method", 2), integer("k", 1, 9), real("y")]);
    let rows = run(build, setup(mixed.inactive_unless(0, 1, 1), 8), &scored, 80)?;
    let mut seen = std::collections::HashSet::new();
    for row in &rows {
        let Content::Genome(genome) = &row.proposal.content else { continue };
        let (method, k) = ((genome.0[1] * 2.0) as u64, (genome.0[2] * 9.0) as u64);
        let x = if method == 0 { 0 } else { genome.0[0].to_bits() };
        if !seen.insert((x, method.min(1), k.min(8), genome.0[3].to_bits())) {
            return violation("a point was proposed twice under different values of a gene without effect");
        }
    }
    Ok(())
}

/// Candidates are the same when their first gene rounds to the same tenth.
struct Rounded;

impl Oracle for Rounded {
    fn answer(&self, _index: u64, content: &Content) -> Answer {
        Answer::Score(sphere(content))
    }

    fn identity(&self, content: &Content) -> Identity {
        match content {
            Content::Genome(genome) => vec![9, (genome.0[0] * 10.0).round() as u64],
            other => scored.identity(other),
        }
    }
}

fn duplicates(build: Builder<'_>) -> Result<(), Violation> {
    // Never ends in anything but a full set of answers or a good reason.
    let rows = run(build, setup(TestSpace::reals(2), 8), &Rounded, 60)?;
    if rows.len() > 18 { violation("more evaluations than candidates") } else { Ok(()) }
}

fn broken_calls(build: Builder<'_>) -> Result<(), Violation> {
    let mut strategy = make(build, setup(TestSpace::reals(2), 8))?;
    if strategy.tell(&outcome(3, Answer::Score(1.0))).is_ok() {
        return violation("takes an outcome of an evaluation that was never asked");
    }
    let Ask::Proposal(_) = ask(&mut *strategy)? else { return violation("has nothing to propose at the start") };
    if strategy.ask().is_ok() {
        return violation("proposes again before its proposal was placed");
    }
    strategy.place(Placement::Asked { index: 0 });
    for score in [f64::NAN, f64::INFINITY] {
        if !matches!(strategy.tell(&outcome(0, Answer::Score(score))), Err(StrategyError::NotFinite { index: 0 })) {
            return violation(format!("takes the score {score}"));
        }
    }
    if let Err(error) = strategy.tell(&outcome(0, Answer::Score(0.5))) {
        return violation(format!("refuses a good outcome: {error}"));
    }
    if strategy.tell(&outcome(0, Answer::Score(0.5))).is_ok() {
        return violation("takes one outcome twice");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;
    use crate::config::{StrategyConfig, StrategyKind};

    #[test]
    fn every_kind_conforms() {
        for kind in StrategyKind::ALL {
            let config = StrategyConfig { kind, ..StrategyConfig::default() };
            check(&|setup| build(&config, setup)).unwrap_or_else(|violation| panic!("{kind}: {violation}"));
        }
    }

    #[test]
    fn options_conform_as_well() {
        for (kind, settings) in [
            (StrategyKind::Genetic, "niching = true"),
            (StrategyKind::GreedySoup, "backward = true"),
            (StrategyKind::GreedySoup, "replacement = true\nbackward = true"),
            (StrategyKind::Nsga2, "groups = 3"),
            (StrategyKind::Portfolio, "least = 0.25\nstart = 0"),
        ] {
            let config = StrategyConfig { kind, look_ahead: None, settings: settings.parse().unwrap() };
            check(&|setup| build(&config, setup)).unwrap_or_else(|violation| panic!("{kind}: {violation}"));
        }
    }

    #[test]
    fn the_suite_catches_a_strategy_that_takes_everything() {
        struct Careless;
        impl Strategy for Careless {
            fn ask(&mut self) -> Result<Ask, StrategyError> {
                Ok(Ask::Done("nothing".to_owned()))
            }
            fn place(&mut self, _placement: Placement) {}
            fn tell(&mut self, _outcome: &Outcome) -> Result<(), StrategyError> {
                Ok(())
            }
        }
        assert!(check(&|_| Ok(Box::new(Careless))).is_err());
    }
}
