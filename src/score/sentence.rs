//! The verdict in words.

use super::distributions::{student_975, student_upper_quantile};
use super::verdict::{Decision, RivalVerdict, TaskVerdict, Verdict};
use crate::plural::counted;

/// The verdict in some sentences, for people.
pub fn sentence(verdict: &Verdict) -> String {
    let mut text = main_sentence(verdict);
    text.push_str(&rivals_sentence(verdict));
    if verdict.rivals_left_out > 0 {
        let others = counted(verdict.rivals_left_out as u64, "more baseline");
        text.push_str(&format!(" {others} that may be as good were not scored on the hold-out."));
    }
    // Of many tasks, some are worse by chance: the level is shared among them (Holm's first step; an end of an interval
    // at 95 % is as many errors away as Student's t says).
    let is_lost = |name: &str, task: &TaskVerdict, high: f64| {
        let degrees = verdict.n.get(name).map_or(u64::MAX, |n| n.saturating_sub(1).max(1));
        let errors = student_975(degrees as f64) * task.difference / (task.difference - high);
        // Without a width, or with the rounding of one, nothing is chance.
        high < 0.0 && (high <= task.difference || errors >= beyond(verdict.tasks.len(), degrees))
    };
    text.extend(verdict.tasks.iter().filter(|_| verdict.tasks.len() > 1).filter_map(|(name, task)| {
        let [low, high] = task.interval.filter(|[_, high]| is_lost(name, task, *high))?;
        let digits = digits(&[task.difference, low, high]);
        Some(format!(
            " Task {name} is worse than with the best baseline{}, by {:+.digits$} ({low:+.digits$} to {high:+.digits$}).",
            verdict.baseline.as_ref().map_or(String::new(), |baseline| format!(" ({})", baseline.origin)),
            task.difference
        ))
    }));
    if let (Decision::Improvement | Decision::NoEvidence, Some(over)) = (verdict.verdict, verdict.over_statement) {
        let digits = digits(&[over, verdict.winner.search_score]);
        text.push_str(&format!(" The winner's search score is {} its hold-out score.", above(over, digits)));
    }
    if let Some(again) = verdict.winner.rescored {
        let digits = digits(&[again]);
        text.push_str(&format!(" Scored again on the search samples, the winner has {again:.digits$}"));
        text.push_str(&match verdict.rescoring_over_statement {
            Some(over) if over == verdict.winner.search_score - again => {
                format!("; its search score is {} that.", above(over, digits))
            }
            Some(over) => {
                let change = match over {
                    0.0 => "the same".to_owned(),
                    _ if over > 0.0 => format!("{over:.digits$} lower"),
                    _ => format!("{:.digits$} higher", -over),
                };
                format!("; the finalist with the best search score scored {change} when it was scored again.")
            }
            None => ".".to_owned(),
        });
    }
    if verdict.reused {
        text.push_str(" The hold-out had been opened before: it is no longer untouched evidence.");
    }
    text
}

/// Where a score lies that is larger than another one by `over`.
fn above(over: f64, digits: usize) -> String {
    match over {
        0.0 => "the same as".to_owned(),
        _ if over > 0.0 => format!("{over:.digits$} above"),
        _ => format!("{:.digits$} below", -over),
    }
}

/// What is said of the baselines that may be as good as the best one.
fn rivals_sentence(verdict: &Verdict) -> String {
    let hardest = verdict.rivals.iter().filter(|rival| !rival.is_beaten()).min_by(|first, second| {
        let low = |rival: &RivalVerdict| rival.interval.map_or(f64::NEG_INFINITY, |[low, _]| low);
        low(first).total_cmp(&low(second))
    });
    let Some(rival) = hardest else {
        return match verdict.rivals.len() {
            0 => String::new(),
            1 => format!(
                " It is better than {} as well, which may be as good a baseline.",
                verdict.rivals[0].baseline.origin
            ),
            others => format!(" It is better than each of {others} others as well that may be as good baselines."),
        };
    };
    let name = &rival.baseline.origin;
    match (rival.difference, rival.interval) {
        (Some(difference), Some([low, high])) => {
            let digits = digits(&[difference, low, high]);
            format!(
                " It is not shown to be better than {name}, which by its search score may be as good a baseline: \
                 {difference:+.digits$} ({low:+.digits$} to {high:+.digits$})."
            )
        }
        (Some(difference), None) => {
            let digits = digits(&[difference]);
            format!(
                " It is not shown to be better than {name}, which by its search score may be as good a baseline: \
                 {difference:+.digits$}, and no interval."
            )
        }
        (None, _) => {
            format!(" {name}, which by its search score may be as good a baseline, has no score on the hold-out.")
        }
    }
}

/// Decimals that show three digits of the largest of these numbers: four, or more where all are small.
pub fn digits(numbers: &[f64]) -> usize {
    let largest = numbers.iter().fold(0.0_f64, |largest, number| largest.max(number.abs()));
    if largest > 0.0 && largest < 0.01 { (2 - largest.log10().floor() as i32).clamp(4, 17) as usize } else { 4 }
}

/// A score for people, with [`digits`] of its own.
pub fn shown(score: f64) -> String {
    format!("{score:.digits$}", digits = digits(&[score]))
}

/// Standard errors, of as many degrees of freedom, beyond which one of `tasks` differences lies with a chance of 2.5 %, at
/// most.
fn beyond(tasks: usize, degrees: u64) -> f64 {
    student_upper_quantile(0.025 / tasks.max(1) as f64, degrees)
}

/// Magnitude from which on squares may overflow.
const LARGEST_SQUARE: f64 = 1e154;

fn main_sentence(verdict: &Verdict) -> String {
    let winner = &verdict.winner;
    if verdict.verdict == Decision::NoHoldout {
        return format!(
            "No hold-out: the winner ({}, {}) has the search score {:.digits$}, and nothing shows that it holds on other data.",
            winner.candidate_id,
            winner.origin,
            winner.search_score,
            digits = digits(&[winner.search_score])
        );
    }
    let Some(baseline) = &verdict.baseline else {
        return "No evidence of improvement: no baseline could be scored, so there is nothing to compare with."
            .to_owned();
    };
    if baseline.candidate_id == winner.candidate_id {
        return format!(
            "No evidence of improvement: the best candidate of the search is the best baseline itself ({}).",
            baseline.origin
        );
    }
    let Some(difference) = verdict.difference else {
        let missing = if winner.holdout_score.is_none() { "winner" } else { "best baseline" };
        return format!("No evidence of improvement: the {missing} could not be scored on the hold-out.");
    };
    let n: u64 = verdict.n.values().sum();
    let samples = |before: &str| if n > 0 { format!("{before} {n} hold-out samples") } else { String::new() };
    let Some([low, high]) = verdict.interval else {
        let why = why_no_interval(verdict, [winner.holdout_score, baseline.holdout_score]);
        let digits = digits(&[difference]);
        return format!(
            "No evidence of improvement: {difference:+.digits$} over the best baseline ({}){}, and no interval: {why}.",
            baseline.origin,
            samples(" on")
        );
    };
    let how = if verdict.paired { "paired" } else { "unpaired, from standard errors" };
    let digits = digits(&[difference, low, high]);
    let interval = format!("95 % interval {low:+.digits$} to {high:+.digits$}, {how}{}", samples(","));
    match verdict.verdict {
        Decision::Improvement => format!(
            "Improvement: the winner ({}) is better than the best baseline ({}) by {difference:+.digits$} ({interval}).",
            winner.origin, baseline.origin
        ),
        // Ahead of the best baseline, and no improvement for another reason, which follows.
        _ if low > 0.0 => format!(
            "No evidence of improvement: the winner ({}) is better than the best baseline of the search ({}) by {difference:+.digits$} ({interval}).",
            winner.origin, baseline.origin
        ),
        _ => format!(
            "No evidence of improvement: the winner ({}) differs from the best baseline ({}) by {difference:+.digits$} ({interval}).",
            winner.origin, baseline.origin
        ),
    }
}

fn why_no_interval(verdict: &Verdict, scores: [Option<f64>; 2]) -> String {
    if scores.iter().flatten().any(|score| score.abs() >= LARGEST_SQUARE) {
        return "the scores are too large numbers for one".to_owned();
    }
    if verdict.n.values().any(|n| *n == 1) {
        return "one sample tells nothing of others".to_owned();
    }
    format!(
        "{}, and there are no standard errors above zero (with their `n`) from which one would follow",
        verdict.unpaired_because.as_deref().unwrap_or("samples could not be paired")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::distributions::NORMAL_975;

    #[test]
    fn small_numbers_are_shown_with_their_digits() {
        for (number, decimals) in [(0.0, 4), (0.5, 4), (0.0123, 4), (0.00812, 5), (-3.85e-5, 7), (1e-30, 17)] {
            assert_eq!(digits(&[number, 0.0]), decimals, "{number}");
        }
        assert!((beyond(1, u64::MAX) - NORMAL_975).abs() < 1e-9 && (beyond(8, u64::MAX) - 2.734).abs() < 1e-3);
        assert!((beyond(20, 7) - 4.595).abs() < 1e-3, "{}", beyond(20, 7));
    }
}
