//! Races over a landscape with questions of different difficulty.

use super::super::Setup;
use super::super::build::build_raced;
use super::super::conformance::{TestSpace, check, setup};
use super::*;
use crate::config::{StrategyConfig, StrategyKind};
use crate::score::ObjectiveTask;
use crate::scores::{MetricValue, PerSample, SampleId, TaskScores};

const SAMPLES: u64 = 160;

fn race() -> Race {
    let task = ObjectiveTask { name: "t".into(), metric: "acc".into(), weight: 1.0, maximize: true };
    Race { fidelities: vec![1.0 / 16.0, 0.25, 1.0], keep: 0.25, objective: Objective { tasks: vec![task] }, seed: 7 }
}

fn config(kind: StrategyKind) -> StrategyConfig {
    StrategyConfig { kind, ..StrategyConfig::default() }
}

/// 0/1 answers to the first questions; question `j` is answered when the ability is above a fixed number.
fn answer(content: &Content, index: u64, fidelity: f64) -> Outcome {
    let ability = match content {
        Content::Genome(genome) => {
            1.0 - genome.0.iter().map(|value| (value - 0.3).powi(2)).sum::<f64>() / genome.0.len() as f64
        }
        Content::Base => 0.2,
        Content::Soup(members) => 0.5 + 0.02 * members.len() as f64,
    };
    let n = (SAMPLES as f64 * fidelity).ceil() as u64;
    let right = |sample: u64| random::stream(1, "question", sample).next_u64() as f64 / 2f64.powi(64) < ability;
    let values: Vec<f64> = (0..n).map(|sample| f64::from(u8::from(right(sample)))).collect();
    let mean = values.iter().sum::<f64>() / n as f64;
    let scores = TaskScores {
        n,
        metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value: mean, stderr: None })]),
        per_sample: Some(PerSample {
            ids: (0..n as i64).map(SampleId::Number).collect(),
            scores: BTreeMap::from([("acc".to_owned(), values)]),
        }),
        ..TaskScores::default()
    };
    let tasks = BTreeMap::from([("t".to_owned(), scores)]);
    Outcome { index, status: Status::Scored, objective: Some(mean), tasks, fidelity }
}

/// Runs a raced strategy, every outcome told `late` proposals later.
fn run(kind: StrategyKind, evaluations: u64, late: u64) -> Vec<(Proposal, Outcome)> {
    run_seeded(kind, evaluations, late, 7)
}

fn run_seeded(kind: StrategyKind, evaluations: u64, late: u64, seed: u64) -> Vec<(Proposal, Outcome)> {
    let setup = Setup { seed, ..setup(TestSpace::reals(4), late as usize) };
    let mut strategy = build_raced(&config(kind), setup, Some(race())).unwrap();
    let mut rows: Vec<(Proposal, Outcome)> = Vec::new();
    let mut told = 0;
    while (rows.len() as u64) < evaluations {
        let asked = rows.len() as u64;
        let mut needed = (asked + 1).saturating_sub(late);
        loop {
            while told < needed {
                strategy.tell(&rows[told as usize].1).unwrap();
                told += 1;
            }
            match strategy.ask().unwrap() {
                Ask::Wait { until } => {
                    assert!(until >= told && until < asked, "{until}: {told} told, {asked} asked");
                    needed = until + 1;
                }
                Ask::Done(_) => return rows,
                Ask::Proposal(proposal) => {
                    strategy.place(Placement::Asked { index: asked });
                    let outcome = answer(&proposal.content, asked, proposal.fidelity);
                    rows.push((*proposal, outcome));
                    break;
                }
            }
        }
    }
    rows
}

#[test]
fn raced_strategies_conform() {
    for kind in [StrategyKind::Genetic, StrategyKind::Random, StrategyKind::CmaEs] {
        check(&|setup| build_raced(&config(kind), setup, Some(race())))
            .unwrap_or_else(|found| panic!("{kind}: {found}"));
    }
}

#[test]
fn candidates_start_small_and_climb_rung_by_rung() {
    let rows = run(StrategyKind::Random, 300, 8);
    let baselines = rows.iter().take_while(|(proposal, _)| !matches!(proposal.content, Content::Genome(_))).count();
    assert!(rows[..baselines].iter().all(|(proposal, _)| proposal.fidelity == 1.0));
    let mut count = [0usize; 3];
    let mut references = 0;
    for (proposal, _) in &rows[baselines..] {
        let rung = race().fidelities.iter().position(|fidelity| *fidelity == proposal.fidelity).unwrap();
        if rung == 2 && proposal.origin != PROMOTION {
            references += 1;
            continue;
        }
        count[rung] += 1;
        assert_eq!(proposal.origin == PROMOTION, rung > 0);
        if rung > 0 {
            let (parent, _) = &rows[proposal.parents[0] as usize];
            assert_eq!(parent.content, proposal.content);
            assert_eq!(parent.fidelity, race().fidelities[rung - 1]);
        }
    }
    assert!((8..30).contains(&references), "one in sixteen: {references}");
    // The best quarter of a rung goes on at most, as far as there is hope.
    assert!(count[1] * 5 < count[0] * 2 && count[1] > 8, "{count:?}");
    assert!(count[2] > 2 && count[2] <= count[1], "{count:?}");
}

#[test]
fn a_race_finds_more_for_the_same_samples() {
    let samples = |rows: &[(Proposal, Outcome)]| {
        let paid = |(proposal, outcome): &(Proposal, Outcome)| {
            let known = proposal.parents.first().filter(|_| proposal.origin == PROMOTION);
            outcome.tasks["t"].n - known.map_or(0, |parent| rows[*parent as usize].1.tasks["t"].n)
        };
        rows.iter().map(paid).sum::<u64>()
    };
    let (mut race_best, mut uniform_best) = (0.0, 0.0);
    for seed in 1..=12 {
        let rows = run_seeded(StrategyKind::Random, 400, 8, seed);
        let full = rows.iter().filter(|row| row.0.fidelity == 1.0).filter_map(|row| row.1.objective);
        race_best += full.fold(0.0, f64::max);
        // The same strategy without a race spends all samples on full evaluations: the first of the very same
        // candidates.
        let budget = (samples(&rows) / SAMPLES) as usize;
        let fresh = rows.iter().filter(|row| row.0.origin != PROMOTION).take(budget);
        uniform_best += fresh.filter_map(|row| answer(&row.0.content, 0, 1.0).objective).fold(0.0, f64::max);
        assert!(budget < 150, "{budget}");
    }
    assert!(race_best > uniform_best, "{race_best} against {uniform_best}");
}

#[test]
fn who_stopped_early_is_never_told_as_better_than_the_best() {
    let mut racing = Racing::new(Box::new(Listening::default()), race());
    let seen = answer(&Content::Soup(vec![0]), 0, 1.0);
    racing.learn(&Content::Soup(vec![0]), &seen).unwrap();
    for index in 1..60 {
        let Ask::Proposal(proposal) = racing.ask().unwrap() else { panic!("no proposal") };
        racing.place(Placement::Asked { index });
        racing.tell(&answer(&proposal.content, index, proposal.fidelity)).unwrap();
        let best = racing.best.unwrap();
        for entry in racing.entries.values().filter_map(|entry| entry.over.as_ref()) {
            assert!(entry.objective.unwrap() <= best);
        }
    }
}

#[test]
fn who_won_the_way_up_is_no_reference() {
    let mut racing = Racing::new(Box::new(Listening::default()), race());
    let seen = answer(&Content::Soup(vec![0]), 0, 1.0);
    racing.learn(&Content::Soup(vec![0]), &seen).unwrap();
    let (mut drawn, mut winners) = (0, 0);
    for index in 1..300 {
        let Ask::Proposal(proposal) = racing.ask().unwrap() else { panic!("no proposal") };
        racing.place(Placement::Asked { index });
        racing.tell(&answer(&proposal.content, index, proposal.fidelity)).unwrap();
        if proposal.fidelity == 1.0 {
            *(if proposal.origin == PROMOTION { &mut winners } else { &mut drawn }) += 1;
        }
    }
    assert!(drawn > 0 && drawn < REFERENCES && winners > 0, "{drawn} by lot, {winners} won");
    assert_eq!(racing.references.len(), drawn);
    // Rivals stand at what the references of now say.
    for rung in 0..2 {
        for rival in &racing.results[rung] {
            let anew = racing.estimate(rung, &rival.outcome).and_then(|estimate| estimate.objective);
            assert_eq!(anew, Some(rival.value), "rung {rung}");
        }
    }
}

#[test]
fn a_reference_that_failed_ends_its_own_race_only() {
    let mut racing = Racing::new(Box::new(Listening::default()), race());
    racing.learn(&Content::Soup(vec![0]), &answer(&Content::Soup(vec![0]), 0, 1.0)).unwrap();
    let (mut references, mut promotions) = (0, 0);
    for index in 1..400 {
        let Ask::Proposal(proposal) = racing.ask().unwrap() else { panic!("no proposal") };
        racing.place(Placement::Asked { index });
        let scored = answer(&proposal.content, index, proposal.fidelity);
        let is_promotion = proposal.origin == PROMOTION;
        // All references fail, and every third promotion.
        promotions += u32::from(is_promotion);
        references += u32::from(!is_promotion && proposal.fidelity == 1.0);
        let fails = if is_promotion { promotions % 3 == 0 } else { proposal.fidelity == 1.0 };
        let failed = Outcome { status: Status::Failed, objective: None, tasks: BTreeMap::new(), ..scored.clone() };
        racing.tell(if fails { &failed } else { &scored }).unwrap();
        // Told at once: the strategy has heard of all but one that is about to be promoted.
        assert_eq!(racing.entries.len(), racing.promotions.len(), "after evaluation {index}");
    }
    assert!(references > 3 && promotions > 3, "{references} references, {promotions} promotions");
    assert!(racing.references.is_empty());
}

/// Proposes a walk, and checks that outcomes come in order.
#[derive(Default)]
struct Listening {
    proposed: u64,
    last: Option<u64>,
}

impl Strategy for Listening {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        self.proposed += 1;
        let content = Content::Genome(crate::space::Genome(vec![(self.proposed as f64 * 0.618).fract()]));
        Ok(Ask::Proposal(Box::new(Proposal::new(content, "walk"))))
    }
    fn place(&mut self, _: Placement) {}
    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        assert!(self.last.is_none_or(|last| last < outcome.index));
        self.last = Some(outcome.index);
        Ok(())
    }
}

/// Proposes one point after another and notes what it is told.
#[derive(Default)]
struct Noting {
    asked: u64,
    told: std::sync::Arc<std::sync::Mutex<Vec<u64>>>,
}

impl Strategy for Noting {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        self.asked += 1;
        let value = random::stream(3, "point", self.asked).next_u64() as f64 / 2f64.powi(64);
        let content = Content::Genome(crate::space::Genome(vec![value]));
        Ok(Ask::Proposal(Box::new(Proposal::new(content, "random"))))
    }

    fn place(&mut self, _placement: Placement) {}

    fn tell(&mut self, outcome: &Outcome) -> Result<(), StrategyError> {
        self.told.lock().unwrap().push(outcome.index);
        Ok(())
    }
}

#[test]
fn at_the_end_races_that_are_over_are_told_past_those_that_are_not() {
    let noting = Noting::default();
    let told = noting.told.clone();
    let mut racing = Racing::new(Box::new(noting), race());
    let is_over = |entry: &Entry| entry.over.is_some();
    for index in 0..400 {
        let Ask::Proposal(proposal) = racing.ask().unwrap() else { panic!("nothing proposed") };
        racing.place(Placement::Asked { index });
        if index < 8 || index % 3 > 0 {
            racing.tell(&answer(&proposal.content, index, proposal.fidelity)).unwrap();
        }
    }
    let over: Vec<u64> = racing.entries.iter().filter(|(_, entry)| is_over(entry)).map(|(index, _)| *index).collect();
    assert!(over.len() > 10 && racing.entries.values().any(|entry| !is_over(entry)), "{over:?}");
    let before = told.lock().unwrap().len();
    racing.settle().unwrap();
    assert_eq!(told.lock().unwrap()[before..], over);
}
