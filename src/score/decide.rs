//! Decides the verdict from what candidates scored on the hold-out.

use std::collections::BTreeMap;

use super::objective::{Objective, ObjectiveTask};
use super::paired::compare;
use super::sentence::sentence;
use super::verdict::{Contender, Decision, RivalVerdict, TaskVerdict, Verdict, VerdictCandidate, VerdictQuestion};
use super::{Comparison, ScoreError};
use crate::scores::Scores;

/// Decides.
///
/// # Errors
/// [`ScoreError::NoFinalist`] without finalists; others if hold-out scores lack a task of the objective.
pub fn decide(question: &VerdictQuestion<'_>) -> Result<Verdict, ScoreError> {
    let first = question.finalists.first().ok_or(ScoreError::NoFinalist)?;
    let shown = |contender: &Contender<'_>| show(question.objective, contender);
    let winner = shown(first);
    let baseline = question.baseline.as_ref().map(shown);
    let comparison = comparison(question, first)?;
    let rivals = rivals(question, first)?;
    let is_baseline = baseline.as_ref().is_some_and(|baseline| baseline.candidate_id == winner.candidate_id);
    let same = (question.holdout.is_some() && is_baseline).then_some(0.0);
    let verdict = match &comparison {
        _ if question.holdout.is_none() => Decision::NoHoldout,
        _ if is_baseline => Decision::NoEvidence,
        _ if !question.unscored_baselines.is_empty() => Decision::NoEvidence,
        Some(Comparison { interval: Some([low, _]), .. })
            if *low > 0.0 && rivals.iter().all(RivalVerdict::is_beaten) =>
        {
            Decision::Improvement
        }
        _ => Decision::NoEvidence,
    };
    let answer = Verdict {
        verdict,
        over_statement: winner.holdout_score.map(|holdout| winner.search_score - holdout),
        rescoring_over_statement: rescoring_over_statement(&question.finalists),
        winner,
        baseline,
        rivals,
        rivals_left_out: question.rivals_left_out,
        difference: comparison.as_ref().map(|comparison| comparison.difference).or(same),
        interval: comparison.as_ref().and_then(|comparison| comparison.interval),
        paired: comparison.as_ref().is_some_and(Comparison::is_paired),
        unpaired_because: comparison.as_ref().and_then(|comparison| comparison.pairing.because().map(str::to_owned)),
        n: comparison.map(|comparison| comparison.n).unwrap_or_default(),
        tasks: by_task(question, first)?,
        reused: question.holdout.is_some_and(|holdout| holdout.reused),
        finalists: question.finalists.iter().map(shown).collect(),
        sentence: String::new(),
    };
    let mut text = sentence(&answer);
    if question.holdout.is_some() && !question.unscored_baselines.is_empty() {
        text.push_str(&format!(
            " The best baseline is not known, for want of a score of {}.",
            question.unscored_baselines.join(", ")
        ));
    }
    Ok(Verdict { sentence: text, ..answer })
}

fn show(objective: &Objective, contender: &Contender<'_>) -> VerdictCandidate {
    VerdictCandidate {
        candidate_id: contender.candidate_id.clone(),
        index: contender.index,
        origin: contender.origin.clone(),
        search_score: contender.search_score,
        rescored: contender.rescored,
        holdout_score: contender.holdout.and_then(|scores| objective.value(scores)),
    }
}

/// Winner against baseline on the hold-out; `None` where one of them has no scores there, or they are one.
fn comparison(question: &VerdictQuestion<'_>, winner: &Contender<'_>) -> Result<Option<Comparison>, ScoreError> {
    let Some([winner, baseline]) = two_held_out(question, winner) else { return Ok(None) };
    compare(question.objective, winner, baseline, question.seed).map(Some)
}

/// The winner against each rival on the hold-out.
fn rivals(question: &VerdictQuestion<'_>, winner: &Contender<'_>) -> Result<Vec<RivalVerdict>, ScoreError> {
    let of_rival = |rival: &Contender<'_>| {
        let both = winner.holdout.zip(rival.holdout).filter(|_| question.holdout.is_some());
        let comparison = match both {
            Some((winner, rival)) => Some(compare(question.objective, winner, rival, question.seed)?),
            None => None,
        };
        Ok(RivalVerdict {
            baseline: show(question.objective, rival),
            difference: comparison.as_ref().map(|comparison| comparison.difference),
            interval: comparison.and_then(|comparison| comparison.interval),
        })
    };
    question.rivals.iter().map(of_rival).collect()
}

/// Search score minus second score of the finalist with the best search score. It was selected by its first score only,
/// so its second score is unbiased. Ties are averaged, because their order depends on the second score.
fn rescoring_over_statement(finalists: &[Contender<'_>]) -> Option<f64> {
    let best = finalists.iter().map(|finalist| finalist.search_score).reduce(f64::max)?;
    let again = finalists.iter().filter(|finalist| finalist.search_score == best).filter_map(|best| best.rescored);
    let (count, sum) = again.fold((0, 0.0), |(count, sum), score| (count + 1, sum + score));
    (count > 0).then(|| best - sum / f64::from(count))
}

/// The [`comparison`] of each task by itself; empty where there is no comparison.
fn by_task(
    question: &VerdictQuestion<'_>,
    winner: &Contender<'_>,
) -> Result<BTreeMap<String, TaskVerdict>, ScoreError> {
    let mut tasks = BTreeMap::new();
    let Some([winner, baseline]) = two_held_out(question, winner) else { return Ok(tasks) };
    for task in question.objective.weighted_tasks() {
        // A weight below zero turns the direction, here as in the whole.
        let alone = Objective { tasks: vec![ObjectiveTask { weight: task.weight.signum(), ..task.clone() }] };
        let Comparison { difference, interval, .. } = compare(&alone, winner, baseline, question.seed)?;
        if let (Some(winner), Some(baseline)) = (alone.value(winner), alone.value(baseline)) {
            tasks.insert(task.name.clone(), TaskVerdict { winner, baseline, difference, interval });
        }
    }
    Ok(tasks)
}

/// Scores of winner and best baseline on the hold-out, where these are two.
fn two_held_out<'a>(question: &VerdictQuestion<'a>, winner: &Contender<'a>) -> Option<[&'a Scores; 2]> {
    let baseline = question.baseline.as_ref().filter(|_| question.holdout.is_some())?;
    let scores = [winner.holdout?, baseline.holdout?];
    (baseline.candidate_id != winner.candidate_id).then_some(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;
    use crate::score::{ObjectiveTask, OpenedHoldout, may_be_as_good};
    use crate::scores::{MetricValue, PerSample, SampleId, TaskScores};
    use rand::Rng as _;

    fn scores(values: &[f64]) -> Scores {
        let value = values.iter().sum::<f64>() / values.len() as f64;
        let task = TaskScores {
            n: values.len() as u64,
            metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr: None })]),
            per_sample: Some(PerSample {
                ids: (0..values.len() as i64).map(SampleId::Number).collect(),
                scores: BTreeMap::from([("acc".to_owned(), values.to_vec())]),
            }),
            ..TaskScores::default()
        };
        BTreeMap::from([("a".to_owned(), task)])
    }

    fn objective() -> Objective {
        Objective {
            tasks: vec![ObjectiveTask { name: "a".to_owned(), metric: "acc".to_owned(), weight: 1.0, maximize: true }],
        }
    }

    fn contender<'a>(id: &str, search_score: f64, holdout: Option<&'a Scores>) -> Contender<'a> {
        Contender {
            candidate_id: id.to_owned(),
            index: 3,
            origin: "source".to_owned(),
            search_score,
            rescored: None,
            holdout,
        }
    }

    fn ask<'a>(
        objective: &'a Objective,
        winner: Contender<'a>,
        baseline: Option<Contender<'a>>,
        has_holdout: bool,
    ) -> Verdict {
        let question = VerdictQuestion {
            objective,
            finalists: vec![winner],
            baseline,
            rivals: vec![],
            rivals_left_out: 0,
            unscored_baselines: vec![],
            holdout: has_holdout.then_some(OpenedHoldout { reused: false }),
            seed: 7,
        };
        decide(&question).unwrap()
    }

    #[test]
    fn a_clear_gain_is_an_improvement() {
        let (good, bad) = (scores(&[1.0; 40]), scores(&[[1.0, 0.0]; 20].concat()));
        let objective = objective();
        let verdict = ask(&objective, contender("w", 1.0, Some(&good)), Some(contender("b", 0.6, Some(&bad))), true);
        assert_eq!((verdict.verdict, verdict.difference, verdict.paired), (Decision::Improvement, Some(0.5), true));
        assert_eq!((verdict.over_statement, verdict.n["a"]), (Some(0.0), 40));
        assert!(verdict.interval.unwrap()[0] > 0.0);
        assert!(verdict.sentence.starts_with("Improvement"));
        let back = ask(&objective, contender("w", 1.0, Some(&bad)), Some(contender("b", 0.6, Some(&good))), true);
        assert_eq!((back.verdict, back.difference), (Decision::NoEvidence, Some(-0.5)));
        assert_eq!(back.over_statement, Some(0.5));
    }

    /// Nothing is to be estimated where both are the same candidate.
    #[test]
    fn a_winner_that_is_the_baseline_differs_by_nothing() {
        let shared = scores(&[[1.0, 0.0]; 20].concat());
        let objective = objective();
        let of = || contender("b", 0.6, Some(&shared));
        let verdict = ask(&objective, of(), Some(of()), true);
        assert_eq!((verdict.verdict, verdict.difference, verdict.interval), (Decision::NoEvidence, Some(0.0), None));
        assert!(verdict.sentence.contains("the best baseline itself"), "{}", verdict.sentence);
    }

    /// The reason for want of an interval is the one that there is.
    #[test]
    fn samples_that_are_not_shared_are_named() {
        let values = [[1.0, 0.0]; 20].concat();
        let (all, some) = (scores(&values), scores(&values[..30]));
        let objective = objective();
        let verdict = ask(&objective, contender("w", 1.0, Some(&all)), Some(contender("b", 0.6, Some(&some))), true);
        assert_eq!((verdict.verdict, verdict.interval, verdict.paired), (Decision::NoEvidence, None, false));
        assert!(verdict.sentence.contains("share 30 of 40 samples of task `a`"), "{}", verdict.sentence);
        assert!(verdict.unpaired_because.unwrap().contains("30 of 40"));
    }

    #[test]
    fn a_gain_that_hides_a_loss_says_so() {
        let [all, half, none] = [vec![1.0; 40], [[1.0, 0.0]; 20].concat(), vec![0.0; 40]];
        let of = |a: &[f64], b: &[f64]| {
            let tasks = [("a", a), ("b", b)].map(|(name, values)| (name.to_owned(), scores(values)["a"].clone()));
            BTreeMap::from(tasks)
        };
        let (winner, baseline) = (of(&all, &none), of(&none, &half));
        let task =
            |name: &str, weight: f64| ObjectiveTask { name: name.to_owned(), weight, ..objective().tasks[0].clone() };
        let objective = Objective { tasks: vec![task("a", 3.0), task("b", 1.0)] };
        let verdict =
            ask(&objective, contender("w", 1.0, Some(&winner)), Some(contender("b", 0.6, Some(&baseline))), true);
        assert_eq!((verdict.verdict, verdict.difference), (Decision::Improvement, Some(0.625)));
        let loss = &verdict.tasks["b"];
        assert_eq!((loss.winner, loss.baseline, loss.difference), (0.0, 0.5, -0.5));
        assert!(loss.interval.unwrap()[1] < 0.0);
        assert_eq!(verdict.tasks["a"].difference, 1.0);
        assert!(
            verdict.sentence.contains("Task b is worse than with the best baseline (source)"),
            "{}",
            verdict.sentence
        );
        assert!(!verdict.sentence.contains("Task a"), "{}", verdict.sentence);
    }

    /// Grades that are lower by the same on every sample leave no room for chance.
    #[test]
    fn a_certain_loss_is_told() {
        let grades = |a: f64, b: f64| {
            let task = |shift: f64| {
                scores(&(0..40).map(|place| f64::from(place % 7) + shift).collect::<Vec<_>>())["a"].clone()
            };
            BTreeMap::from([("a".to_owned(), task(a)), ("b".to_owned(), task(b))])
        };
        let task = |name: &str| ObjectiveTask { name: name.to_owned(), ..objective().tasks[0].clone() };
        let objective = Objective { tasks: vec![task("a"), task("b")] };
        let (winner, baseline) = (grades(3.0, 0.0), grades(0.0, 1.0));
        let verdict =
            ask(&objective, contender("w", 1.0, Some(&winner)), Some(contender("b", 0.6, Some(&baseline))), true);
        let [low, high] = verdict.tasks["b"].interval.unwrap();
        assert!((-1.1..=-1.0).contains(&low) && (-0.95..-0.8).contains(&high), "{low} {high}");
        assert!(verdict.sentence.contains("Task b is worse"), "{}", verdict.sentence);
    }

    /// Tasks by themselves point where the objective does.
    #[test]
    fn a_task_by_itself_keeps_its_direction() {
        let (more, less) = (scores(&[1.0; 40]), scores(&[[1.0, 0.0]; 20].concat()));
        let task = |weight: f64, maximize: bool| ObjectiveTask { weight, maximize, ..objective().tasks[0].clone() };
        for (task, expected) in [(task(-1.0, true), -0.5), (task(2.0, false), -0.5), (task(-2.0, false), 0.5)] {
            let objective = Objective { tasks: vec![task] };
            let verdict =
                ask(&objective, contender("w", 1.0, Some(&more)), Some(contender("b", 0.6, Some(&less))), true);
            assert_eq!((verdict.difference, verdict.tasks["a"].difference), (Some(expected), expected));
        }
    }

    #[test]
    fn numbers_of_samples_that_nobody_knows_are_left_out() {
        let unknown = |value: f64| {
            let metrics = BTreeMap::from([("acc".to_owned(), MetricValue { value, stderr: None })]);
            BTreeMap::from([("a".to_owned(), TaskScores { metrics, ..TaskScores::default() })])
        };
        let (winner, baseline) = (unknown(0.9), unknown(0.7));
        let objective = objective();
        let verdict =
            ask(&objective, contender("w", 1.0, Some(&winner)), Some(contender("b", 0.6, Some(&baseline))), true);
        assert!(!verdict.sentence.contains("samples on") && !verdict.sentence.contains(" 0 "), "{}", verdict.sentence);
        assert!(verdict.sentence.contains("no standard errors above zero"), "{}", verdict.sentence);
    }

    #[test]
    fn a_baseline_without_a_score_might_be_the_best() {
        let (good, bad) = (scores(&[1.0; 40]), scores(&[[1.0, 0.0]; 20].concat()));
        let question = VerdictQuestion {
            objective: &objective(),
            finalists: vec![contender("w", 1.0, Some(&good))],
            baseline: Some(contender("b", 0.6, Some(&bad))),
            rivals: vec![],
            rivals_left_out: 0,
            unscored_baselines: vec!["source:a".to_owned()],
            holdout: Some(OpenedHoldout { reused: false }),
            seed: 7,
        };
        let verdict = decide(&question).unwrap();
        assert_eq!((verdict.verdict, verdict.difference), (Decision::NoEvidence, Some(0.5)));
        assert!(verdict.sentence.contains("for want of a score of source:a"), "{}", verdict.sentence);
    }

    /// The best baseline by search score may be a lucky one: the winner has to beat all that may be as good.
    #[test]
    fn an_improvement_is_one_on_every_baseline_that_may_be_the_best() {
        let share = |of: usize| scores(&[vec![1.0; of], vec![0.0; 40 - of]].concat());
        let (winner, lucky, beaten, equal) = (share(36), share(20), share(18), share(35));
        let verdict = |rivals: &[(&str, Option<&Scores>)]| {
            let question = VerdictQuestion {
                objective: &objective(),
                finalists: vec![contender("w", 1.0, Some(&winner))],
                baseline: Some(contender("b", 0.7, Some(&lucky))),
                rivals: rivals.iter().map(|(id, holdout)| contender(id, 0.69, *holdout)).collect(),
                rivals_left_out: 2,
                unscored_baselines: vec![],
                holdout: Some(OpenedHoldout { reused: false }),
                seed: 7,
            };
            decide(&question).unwrap()
        };
        let beats_all = verdict(&[("c", Some(&beaten))]);
        assert_eq!(beats_all.verdict, Decision::Improvement);
        assert!(beats_all.sentence.contains("better than source as well"), "{}", beats_all.sentence);
        assert!(
            beats_all.sentence.contains("2 more baselines that may be as good were not scored"),
            "{}",
            beats_all.sentence
        );
        let not_one = verdict(&[("c", Some(&beaten)), ("d", Some(&equal))]);
        assert_eq!((not_one.verdict, not_one.difference), (Decision::NoEvidence, Some(0.4)));
        assert!(not_one.sentence.contains("not shown to be better than source"), "{}", not_one.sentence);
        assert_eq!(not_one.rivals[1].difference.map(|difference| (1e3 * difference).round()), Some(25.0));
        let unscored = verdict(&[("c", None)]);
        assert_eq!(unscored.verdict, Decision::NoEvidence);
        assert!(unscored.sentence.contains("has no score on the hold-out"), "{}", unscored.sentence);
    }

    /// The winner is chosen by both scores; the best by the first one alone says what chance adds to that.
    #[test]
    fn the_finalist_with_the_best_search_score_tells_of_chance() {
        let again = |id: &'static str, search: f64, again: f64| Contender {
            rescored: Some(again),
            ..contender(id, search, None)
        };
        let objective = objective();
        let question = |finalists| VerdictQuestion {
            objective: &objective,
            finalists,
            baseline: None,
            rivals: vec![],
            rivals_left_out: 0,
            unscored_baselines: vec![],
            holdout: None,
            seed: 7,
        };
        let verdict = decide(&question(vec![again("w", 0.7, 0.7), again("lucky", 0.75, 0.6)])).unwrap();
        assert!((verdict.rescoring_over_statement.unwrap() - 0.15).abs() < 1e-12);
        let said = "; the finalist with the best search score scored 0.1500 lower when it was scored again.";
        assert!(verdict.sentence.contains(said), "{}", verdict.sentence);
        let verdict = decide(&question(vec![again("w", 0.7, 0.8), again("unlucky", 0.71, 0.73)])).unwrap();
        assert!(verdict.sentence.contains("scored 0.0200 higher when it was scored again."), "{}", verdict.sentence);
        let verdict = decide(&question(vec![again("w", 0.7, 0.8), again("same", 0.71, 0.71)])).unwrap();
        assert!(verdict.sentence.contains("scored the same when it was scored again."), "{}", verdict.sentence);
        // Who comes first of several with the best search score has the better second one.
        let equals =
            vec![again("w", 0.75, 0.7), again("x", 0.75, 0.6), again("y", 0.7, 0.6), contender("z", 0.75, None)];
        let verdict = decide(&question(equals)).unwrap();
        assert!((verdict.rescoring_over_statement.unwrap() - 0.1).abs() < 1e-12);
        assert!(verdict.sentence.contains("scored 0.1000 lower when it was scored again."), "{}", verdict.sentence);
    }

    /// Searches that found nothing: one baseline is the best, candidates are a little worse than it, and some baselines that
    /// are worse still may look the best on the search samples.
    #[test]
    fn a_lucky_baseline_does_not_make_an_improvement() {
        let objective = objective();
        let rates = [0.70, 0.67, 0.67, 0.67, 0.67, 0.67];
        let draw = |run: u64, who: &str, rate: f64, n: usize| {
            let mut dice = random::stream(run, who, n as u64);
            let right = || f64::from(u8::from(f64::from(dice.next_u32()) < rate * 2f64.powi(32)));
            scores(&std::iter::repeat_with(right).take(n).collect::<Vec<f64>>())
        };
        let (mut alone, mut with_rivals) = (0, 0);
        for run in 0..40 {
            let searched: Vec<Scores> =
                rates.iter().enumerate().map(|(place, rate)| draw(run, &format!("b{place}"), *rate, 300)).collect();
            let held_out: Vec<Scores> =
                rates.iter().enumerate().map(|(place, rate)| draw(run, &format!("b{place}"), *rate, 3_000)).collect();
            let value = |place: usize| objective.value(&searched[place]).unwrap();
            let best = (0..rates.len()).max_by(|one, other| value(*one).total_cmp(&value(*other))).unwrap();
            let winner = draw(run, "w", 0.695, 3_000);
            let may_be = (0..rates.len())
                .filter(|place| *place != best && may_be_as_good(&objective, &searched[best], &searched[*place]));
            let mut question = VerdictQuestion {
                objective: &objective,
                finalists: vec![contender("w", 0.75, Some(&winner))],
                baseline: Some(contender("b", value(best), Some(&held_out[best]))),
                rivals: vec![],
                rivals_left_out: 0,
                unscored_baselines: vec![],
                holdout: Some(OpenedHoldout { reused: false }),
                seed: run,
            };
            if decide(&question).unwrap().verdict == Decision::Improvement {
                alone += 1;
                question.rivals = may_be.map(|place| contender("r", value(place), Some(&held_out[place]))).collect();
                with_rivals += usize::from(decide(&question).unwrap().verdict == Decision::Improvement);
            }
        }
        assert!(alone >= 5 && with_rivals <= 3, "{alone} and {with_rivals} of 40");
    }

    #[test]
    fn a_baseline_that_wins_is_no_evidence() {
        let own = scores(&[1.0, 0.0, 1.0]);
        let objective = objective();
        let verdict = ask(&objective, contender("b", 0.7, Some(&own)), Some(contender("b", 0.7, Some(&own))), true);
        assert_eq!((verdict.verdict, verdict.difference), (Decision::NoEvidence, Some(0.0)));
        let unscored = ask(&objective, contender("b", 0.7, None), Some(contender("b", 0.7, None)), true);
        assert_eq!((unscored.verdict, unscored.difference), (Decision::NoEvidence, Some(0.0)));
        assert!(verdict.sentence.contains("best baseline itself"));
    }

    #[test]
    fn what_is_missing_never_becomes_an_improvement() {
        let own = scores(&[1.0, 1.0, 1.0]);
        let objective = objective();
        let sealed = ask(&objective, contender("w", 0.7, None), Some(contender("b", 0.1, None)), false);
        assert_eq!((sealed.verdict, sealed.difference), (Decision::NoHoldout, None));
        let unscored = ask(&objective, contender("w", 0.7, None), Some(contender("b", 0.1, Some(&own))), true);
        assert_eq!(unscored.verdict, Decision::NoEvidence);
        assert!(unscored.sentence.contains("winner could not be scored"));
        let alone = ask(&objective, contender("w", 0.7, Some(&own)), None, true);
        assert_eq!(alone.verdict, Decision::NoEvidence);
        let question = VerdictQuestion {
            objective: &objective,
            finalists: vec![],
            baseline: None,
            rivals: vec![],
            rivals_left_out: 0,
            unscored_baselines: vec![],
            holdout: Some(OpenedHoldout { reused: false }),
            seed: 7,
        };
        assert_eq!(decide(&question), Err(ScoreError::NoFinalist));
    }

    #[test]
    fn serde_names_are_the_contract() {
        let (good, bad) = (scores(&[1.0; 8]), scores(&[0.0; 8]));
        let objective = objective();
        let mut verdict =
            ask(&objective, contender("w", 1.0, Some(&good)), Some(contender("b", 0.0, Some(&bad))), true);
        verdict.reused = true;
        assert!(sentence(&verdict).contains("opened before"));
        let json = serde_json::to_value(&verdict).unwrap();
        assert_eq!(json["verdict"], "improvement");
        assert_eq!(json["winner"]["search_score"], 1.0);
        assert_eq!(json["baseline"]["holdout_score"], 0.0);
        assert_eq!(json["interval"][1], 1.0);
        assert_eq!(json["n"]["a"], 8);
        assert_eq!(serde_json::from_value::<Verdict>(json).unwrap(), verdict);
    }
}
