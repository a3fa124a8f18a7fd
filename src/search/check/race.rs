//! What a race will cost, and how many candidates it will have room for.

use crate::config::EvaluatorKind;
use crate::evaluate::Samples;
use crate::search::fidelity::Parts;
use crate::search::prepare::{Prepared, count_samples};
use crate::strategy::{ONE_REFERENCE_IN, greedy_soup_evaluations};

/// Highest promoted share, as a multiple of the intended one: in a short race the first results have few rivals, and a
/// search that gets better has its latest results among the best (43 % of the first hundred on `tasks`/ties24 of
/// docs/search.md, where a quarter is intended).
const HIGHEST_SHARE_MULTIPLE: f64 = 2.0;
/// The highest promoted share is assumed to be at least this.
const HIGHEST_SHARE_FLOOR: f64 = 0.4;
/// The lowest promoted share is assumed to be at most this: candidates that can no longer be the best are not promoted,
/// whatever their rank.
const LOWEST_SHARE_CEILING: f64 = 0.1;

/// What a candidate costs on average.
#[derive(Clone, Copy)]
struct Cost {
    samples: f64,
    /// Evaluations: the first one and its promotions.
    evaluations: f64,
}

/// What a race costs.
pub(super) struct RacePrice {
    parts: Parts,
    /// Samples of the rungs.
    rungs: Vec<u64>,
    /// Cost of a candidate with the lowest promoted share, and with the highest.
    costs: [Cost; 2],
}

impl RacePrice {
    /// `None`: no racing; an error says why a race that was asked for is off.
    pub(super) fn of(prepared: &Prepared) -> Option<Result<Self, String>> {
        let config = prepared.config.effective_racing()?;
        let parts = match Parts::plan(&config, &prepared.tasks, prepared.evaluator.as_ref()) {
            Ok(parts) => parts,
            Err(reason) => return Some(Err(reason)),
        };
        let samples = |fidelity: &f64| {
            let requests = parts.requests(&prepared.tasks, *fidelity, None);
            count_samples(&requests, prepared.evaluator.as_ref())
        };
        let rungs: Vec<u64> = parts.fidelities.iter().map(samples).collect();
        let lowest = parts.keep.min(LOWEST_SHARE_CEILING);
        let highest = (HIGHEST_SHARE_MULTIPLE * parts.keep).clamp(HIGHEST_SHARE_FLOOR, 1.0);
        let shares = [lowest, highest];
        let costs = shares.map(|share| cost(&parts, &rungs, share, prepared.samples));
        Some(Ok(Self { parts, rungs, costs }))
    }

    /// Samples of the first rung, which no evaluation takes fewer of.
    pub(super) fn cheapest(&self) -> u64 {
        self.rungs.first().copied().unwrap_or(0)
    }

    /// Least and most samples that this number of evaluations takes in all.
    pub(super) fn samples_of(&self, prepared: &Prepared, evaluations: u64) -> [f64; 2] {
        let all = |cost: Cost, in_full: u64| {
            let in_full = evaluations.min(in_full);
            let others = if has_candidates(prepared) { evaluations - in_full } else { 0 };
            in_full.saturating_mul(prepared.samples) as f64 + others as f64 / cost.evaluations * cost.samples
        };
        let of_cost = |cost: Cost| sorted(evaluations_in_full(prepared).map(|in_full| all(cost, in_full)));
        widest(self.costs.map(of_cost))
    }

    /// Fewest and most candidates that the budget has room for; `None` where nothing but time limits them.
    fn candidates(&self, prepared: &Prepared) -> Option<[f64; 2]> {
        let limits = &prepared.config.budget;
        let room = |cost: Cost, in_full: u64| {
            let left = |limit: u64, spent: u64| limit.saturating_sub(spent) as f64;
            let by_samples = limits
                .samples
                .filter(|_| cost.samples > 0.0)
                .map(|limit| left(limit, in_full.saturating_mul(prepared.samples)) / cost.samples);
            let by_evaluations = limits.evaluations.map(|limit| left(limit, in_full) / cost.evaluations);
            by_samples.into_iter().chain(by_evaluations).reduce(f64::min)
        };
        let of_cost = |cost: Cost| {
            let [one, other] = evaluations_in_full(prepared).map(|in_full| room(cost, in_full));
            Some(sorted([one?, other?]))
        };
        let [one, other] = self.costs.map(of_cost);
        Some(widest([one?, other?]))
    }
}

/// The first rung, and the later ones as often as they are reached by `share` of those before.
fn cost(parts: &Parts, rungs: &[u64], share: f64, all_samples: u64) -> Cost {
    let (mut samples, mut evaluations) = (0.0, 0.0);
    for (rung, of_rung) in rungs.iter().enumerate() {
        let known = if rung > 0 && parts.incremental { rungs[rung - 1] } else { 0 };
        let reached = share.powi(rung as i32);
        samples += of_rung.saturating_sub(known) as f64 * reached;
        evaluations += reached;
    }
    if parts.per_sample {
        let in_full = 1.0 / ONE_REFERENCE_IN as f64;
        samples += (all_samples as f64 - samples) * in_full;
        evaluations += (1.0 - evaluations) * in_full;
    }
    Cost { samples, evaluations }
}

/// Fewest and most evaluations on all samples that every search makes first: baselines, and what the greedy soup tries.
fn evaluations_in_full(prepared: &Prepared) -> [u64; 2] {
    greedy_soup(prepared).unwrap_or_default().map(|of_soup| prepared.baselines.saturating_add(of_soup))
}

/// Fewest and most evaluations of the greedy soup's trials; `None`: none is made.
pub(super) fn greedy_soup(prepared: &Prepared) -> Option<[u64; 2]> {
    greedy_soup_evaluations(&prepared.config.strategy, prepared.models.facts.sources.len())
}

/// Whether the strategy has candidates of its own.
fn has_candidates(prepared: &Prepared) -> bool {
    !prepared.config.strategy.kind.is_soup()
}

fn sorted([one, other]: [f64; 2]) -> [f64; 2] {
    [one.min(other), one.max(other)]
}

/// The range that holds two ranges.
fn widest([[low, high], [other_low, other_high]]: [[f64; 2]; 2]) -> [f64; 2] {
    [low.min(other_low), high.max(other_high)]
}

/// What lets candidates race that cannot yet.
fn remedy(prepared: &Prepared) -> &'static str {
    let is_program = matches!(prepared.config.evaluator.kind, EvaluatorKind::Command(_));
    if is_program && prepared.tasks.iter().any(|task| task.samples == Samples::All) {
        "; a program does not tell how many samples it has: give each task a `limit` (see docs/run-file.md)"
    } else {
        ""
    }
}

/// The race in words; `None`: there is none.
pub(super) fn describe(prepared: &Prepared) -> Option<String> {
    let price = match RacePrice::of(prepared)? {
        Ok(price) => price,
        Err(reason) => return Some(format!("off: {reason}{}", remedy(prepared))),
    };
    if !has_candidates(prepared) {
        return Some("nothing to race: soups are scored on all samples".to_owned());
    }
    let mut text = format!(
        "rungs of {} samples, one candidate in {:.0} goes on",
        price.rungs.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
        1.0 / price.parts.keep
    );
    if price.parts.per_sample {
        text.push_str(&format!(", one in {ONE_REFERENCE_IN} is scored in full at once"));
    } else {
        text.push_str(&format!(
            " (and one in {ONE_REFERENCE_IN} is scored in full at once where answers turn out to be means of `per_sample`)"
        ));
    }
    if let Some([least, most]) = price.candidates(prepared) {
        text.push_str(&format!("; about {least:.0} to {most:.0} candidates beside baselines and greedy soup"));
    }
    Some(text)
}
