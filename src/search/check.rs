//! What `evomerge check` finds out: sizes, prices, and the smallest gain that the hold-out can show.

mod race;

use std::path::{Path, PathBuf};
use std::time::Duration;

use race::RacePrice;

use super::frozen::{Frozen, frozen_before};
use super::prepare::{Prepared, candidate_parent};
use super::repeats::Repeats;
use super::run_folder::RunFolder;
use super::{SearchError, alarms};
use crate::checkpoint::available_space;
use crate::config::{EvaluatorKind, HoldoutSource};
use crate::evaluate::{TaskCapability, TaskRequest};
use crate::files::{check_writable_folder, nearest_existing};
use crate::ledger::{AskedRecord, Ledger};
use crate::plural::counted;
use crate::score::ObjectiveTask;
use crate::score::alarms::Alarm;
use crate::score::power::{self, FEWEST_SAMPLES, SAMPLES_FOR_A_TENTH};

/// A run file that holds together, and what running it means.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Findings {
    /// `name` of the run file.
    pub name: String,
    /// What is there of the run already; `None`: nothing.
    pub run: Option<String>,
    /// Whether there is a base model.
    pub base: bool,
    /// How many sources there are.
    pub sources: usize,
    /// Names of all genes, in genome order; empty where only soups are made.
    pub genes: Vec<String>,
    /// Kind of the evaluator.
    pub evaluator: String,
    /// Evaluations that it takes at once.
    pub concurrency: usize,
    /// How many endpoints the run file names, those of the hold-out too; 0 for other kinds of evaluators.
    pub endpoints: usize,
    /// Those of them that cannot be asked now.
    pub unreachable: Vec<Unreachable>,
    /// One line a task.
    pub tasks: Vec<String>,
    /// Evaluations of base, sources and uniform soup.
    pub baselines: u64,
    /// Whether a greedy soup follows them.
    pub greedy_soup: bool,
    /// Fewest and most evaluations that its trials take, were there budget enough; `None`: none is made.
    pub greedy_soup_evaluations: Option<[u64; 2]>,
    /// The limits and what they come to, in one line.
    pub budget: String,
    /// How candidates race; `None`: every candidate is scored in full.
    pub racing: Option<String>,
    /// Where sources pull apart, by pair, the strongest conflict first.
    pub conflicts: Vec<Conflict>,
    /// What is scored again, outside the budget.
    pub repeats: String,
    /// What is scored on it and how much it can show, in one line.
    pub holdout: String,
    /// Smallest gain in the objective that the hold-out shows with 80 % power, for scores of 0 or 1; `None` for other
    /// scores, and where the hold-out is too small to show any.
    pub smallest_gain: Option<f64>,
    /// What makes the tasks doubtful.
    pub alarms: Vec<Alarm>,
    /// Fewest and most layers of a candidate, where the space stacks layers.
    pub layers: Option<(usize, usize)>,
    /// Bytes of the largest candidate.
    pub candidate_bytes: u64,
    /// Where candidates would lie while they are evaluated.
    #[serde(serialize_with = "crate::files::serialize_path")]
    pub candidate_folder: PathBuf,
    /// Candidates there at once.
    pub slots: usize,
    /// Bytes free there; `None` where the file system does not say.
    pub free_bytes: Option<u64>,
}

/// An endpoint that a search would do without for now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unreachable {
    /// As the run file names it.
    pub endpoint: String,
    /// Why it cannot be asked.
    pub reason: String,
}

/// Two sources' task vectors over all layers.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Conflict {
    /// Their names.
    pub sources: [String; 2],
    /// Mean over layers of the cosine between their task vectors.
    pub cosine: f64,
    /// Mean over layers of the share of elements that they move in opposite directions; half is what chance gives.
    pub sign_disagreement: f64,
    /// The layer with the lowest cosine.
    pub worst_layer: usize,
}

/// Looks at a prepared run. `results` is where it would leave its folder, or has left it; with `fresh` nothing matters of a
/// run that is there but whether a process uses it.
///
/// # Errors
/// [`SearchError::Settings`] where candidates have no room, [`SearchError::Write`] where their folder refuses them,
/// [`SearchError::Changed`] where a run of this name was started with other settings.
pub fn check(prepared: &Prepared, results: &Path, fresh: bool) -> Result<Findings, SearchError> {
    let config = &prepared.config;
    let run = existing_run(prepared, &results.join(&config.name), fresh)?;
    let concurrency = prepared.evaluator.concurrency().get();
    let capacity = prepared.slots();
    let folder = candidate_parent(prepared, &results.join(&config.name), capacity as u64);
    let free = available_space(nearest_existing(&folder));
    let needed = prepared.models.candidate_bytes.saturating_mul(capacity as u64);
    if let Some(free) = free.filter(|free| needed > *free) {
        return Err(SearchError::Settings(format!(
            "candidates need {needed} bytes in {} ({capacity} of {} bytes), {free} are free; lower candidates.slots or name \
             another candidates.dir",
            folder.display(),
            prepared.models.candidate_bytes
        )));
    }
    for folder in [folder.as_path(), results] {
        refuse_unwritable(folder)?;
    }
    let shown = shown_gain(prepared);
    let greedy_soup_evaluations = race::greedy_soup(prepared);
    Ok(Findings {
        name: config.name.clone(),
        run,
        base: prepared.models.facts.base.is_some(),
        sources: prepared.models.facts.sources.len(),
        genes: prepared.space.iter().flat_map(|space| space.genes()).map(|gene| gene.name.clone()).collect(),
        evaluator: prepared.evaluator.kind().to_string(),
        concurrency,
        endpoints: count_endpoints(prepared),
        unreachable: unreachable(prepared),
        tasks: prepared
            .objective
            .tasks
            .iter()
            .zip(&prepared.tasks)
            .map(|(task, request)| describe_task(prepared, task, request))
            .collect(),
        baselines: prepared.baselines,
        greedy_soup: greedy_soup_evaluations.is_some(),
        greedy_soup_evaluations,
        budget: describe_budget(prepared),
        racing: race::describe(prepared),
        conflicts: conflicts(prepared),
        repeats: describe_repeats(prepared),
        holdout: describe_holdout(prepared, shown),
        smallest_gain: match shown {
            ShownGain::From(gain) | ShownGain::Unpaired(gain) => Some(gain),
            ShownGain::None | ShownGain::Unknown => None,
        },
        alarms: alarms::before(prepared),
        layers: prepared.space.as_ref().and_then(|space| space.layer_counts()),
        candidate_bytes: prepared.models.candidate_bytes,
        candidate_folder: folder,
        slots: capacity,
        free_bytes: free,
    })
}

/// What the run in `folder` has come to, and whether a search with these settings continues it.
fn existing_run(prepared: &Prepared, folder: &Path, fresh: bool) -> Result<Option<String>, SearchError> {
    let user = in_use(folder);
    let shown = folder.display();
    let path = RunFolder::ledger_in(folder);
    let of_user = |user: String| format!("{shown} is {user}");
    if fresh || Ledger::is_blank(&path) {
        return Ok(user.map(of_user));
    }
    let ledger = Ledger::open_for_reading(&path)?;
    let Some(frozen) = frozen_before(&ledger, prepared)? else { return Ok(user.map(of_user)) };
    let finished = counted(ledger.all_told_in_short()?.len() as u64, "evaluation");
    if let Some(user) = user {
        return Ok(Some(format!("{shown} has {finished} and is {user}")));
    }
    Ok(Some(match spent(prepared, &frozen, &ledger.all_asked()?, ledger.active_time()?.unwrap_or_default()) {
        Some(spent) => format!(
            "{shown} has {finished}, and its budget is spent: {spent}; a search continues it without new evaluations, \
             --fresh starts anew"
        ),
        None => format!("{shown} has {finished}, which a search continues; --fresh starts anew"),
    }))
}

/// Who uses the run in `folder`, and what follows; `None`: nobody does.
fn in_use(folder: &Path) -> Option<String> {
    if !RunFolder::is_locked(folder) {
        return None;
    }
    let user = RunFolder::owner(folder).map_or("another process".to_owned(), |owner| format!("process {owner}"));
    Some(format!("in use by {user}: a search is refused until that has ended"))
}

/// The limit that leaves no room for one more evaluation, with what has come of it; `None`: there is room.
fn spent(prepared: &Prepared, frozen: &Frozen, asked: &[AskedRecord], active: Duration) -> Option<String> {
    let limits = &prepared.config.budget;
    let evaluations = asked.len() as u64;
    if let Some(limit) = limits.evaluations.filter(|limit| evaluations >= *limit) {
        return Some(format!("{evaluations} of {}", counted(limit, "evaluation")));
    }
    // A run that began without a race goes on without.
    let raced = frozen.racing.as_ref().and_then(|_| RacePrice::of(prepared)).and_then(Result::ok);
    let cheapest = raced.map_or(prepared.samples, |price| price.cheapest());
    let samples = asked.iter().fold(0_u64, |sum, record| sum.saturating_add(record.samples));
    if let Some(limit) = limits.samples.filter(|limit| samples.saturating_add(cheapest) > *limit) {
        let samples_of = format!("{samples} of {}", counted(limit, "sample"));
        // What is left is less than the cheapest evaluation takes.
        return Some(if samples < limit { format!("{samples_of}, and one more takes {cheapest}") } else { samples_of });
    }
    let limit = limits.wall_clock.filter(|limit| active >= *limit)?;
    Some(format!("{:.1} of {} s of active time", active.as_secs_f64(), limit.as_secs_f64()))
}

/// How many endpoints the run file names.
fn count_endpoints(prepared: &Prepared) -> usize {
    let of_search = match &prepared.config.evaluator.kind {
        EvaluatorKind::Http(http) => http.endpoints.len(),
        _ => 0,
    };
    let of_holdout = match prepared.config.holdout.as_ref().map(|holdout| &holdout.source) {
        Some(HoldoutSource::Endpoints(endpoints)) => endpoints.len(),
        _ => 0,
    };
    of_search + of_holdout
}

/// Endpoints of the search and the hold-out that cannot be asked now, each once.
fn unreachable(prepared: &Prepared) -> Vec<Unreachable> {
    let of_holdout = prepared.holdout.iter().flat_map(|holdout| holdout.evaluator.waiting());
    let mut found: Vec<Unreachable> = Vec::new();
    for waiting in prepared.evaluator.waiting().into_iter().chain(of_holdout) {
        if found.iter().all(|known| known.endpoint != waiting.endpoint) {
            found.push(Unreachable { endpoint: waiting.endpoint, reason: waiting.reason });
        }
    }
    found
}

/// Refuses a folder that a search could not make or write to.
fn refuse_unwritable(folder: &Path) -> Result<(), SearchError> {
    let refused = |source| SearchError::Write { path: folder.to_path_buf(), source };
    if let Some(file) = folder.ancestors().find(|path| path.symlink_metadata().is_ok() && !path.is_dir()) {
        let reason = format!("{} is no folder", file.display());
        return Err(refused(std::io::Error::new(std::io::ErrorKind::NotADirectory, reason)));
    }
    check_writable_folder(folder).map_err(refused)
}

/// What is asked of a task, and how many of its samples.
fn describe_task(prepared: &Prepared, task: &ObjectiveTask, request: &TaskRequest) -> String {
    let known = prepared.evaluator.capabilities().tasks.get(&task.name).map_or(0, |known| known.n_samples);
    let samples = request.samples.count(known).unwrap_or(0);
    let direction = if task.maximize { "higher" } else { "lower" };
    let samples = if samples == 0 { "an unknown number of samples".to_owned() } else { counted(samples, "sample") };
    format!("{}: {} ({direction} is better), weight {}, {samples}", task.name, task.metric, task.weight)
}

fn describe_budget(prepared: &Prepared) -> String {
    let limits = &prepared.config.budget;
    let mut parts = Vec::new();
    if let Some(evaluations) = limits.evaluations {
        let raced = RacePrice::of(prepared).and_then(Result::ok);
        parts.push(match (prepared.samples, raced) {
            (0, _) => counted(evaluations, "evaluation"),
            (samples, None) => {
                let all = evaluations.saturating_mul(samples);
                let (evaluations, samples) = (counted(evaluations, "evaluation"), counted(samples, "sample"));
                format!("{evaluations} of {samples} ({all} in all)")
            }
            (samples, Some(price)) => {
                let [least, most] = price.samples_of(prepared, evaluations);
                let (evaluations, samples) = (counted(evaluations, "evaluation"), counted(samples, "sample"));
                format!("{evaluations} of up to {samples} (about {least:.0} to {most:.0} in all)")
            }
        });
    }
    if let Some(samples) = limits.samples {
        let evaluations = samples / prepared.samples.max(1);
        let (samples, evaluations) = (counted(samples, "sample"), counted(evaluations, "evaluation"));
        parts.push(format!("{samples} ({evaluations} of {})", prepared.samples));
    }
    if let Some(limit) = limits.wall_clock {
        parts.push(format!("{} s of active time", limit.as_secs_f64()));
    }
    parts.join(", ")
}

fn conflicts(prepared: &Prepared) -> Vec<Conflict> {
    let Some(profiles) = prepared.models.profiles().filter(|profiles| !profiles.is_empty()) else { return Vec::new() };
    let names = prepared.source_names();
    let layers = profiles.len() as f64;
    let mut found = Vec::new();
    let mut pair = 0;
    for first in 0..names.len() {
        for second in first + 1..names.len() {
            let of_pair = || profiles.iter().map(|profile| profile.pairs[pair]);
            let worst = of_pair().enumerate().min_by(|(_, one), (_, other)| one.cosine.total_cmp(&other.cosine));
            found.push(Conflict {
                sources: [names[first].clone(), names[second].clone()],
                cosine: of_pair().map(|profile| profile.cosine).sum::<f64>() / layers,
                sign_disagreement: of_pair().map(|profile| profile.sign_disagreement).sum::<f64>() / layers,
                worst_layer: worst.map_or(0, |(layer, _)| layer),
            });
            pair += 1;
        }
    }
    found.sort_by(|one, other| one.cosine.total_cmp(&other.cosine));
    found
}

fn describe_repeats(prepared: &Prepared) -> String {
    let deterministic = prepared.evaluator.capabilities().deterministic;
    let repeats = Repeats::of(&prepared.config.repeats, deterministic);
    let samples = prepared.samples;
    let each = if samples > 0 { format!(", {} each", counted(samples, "sample")) } else { String::new() };
    let mut parts = Vec::new();
    let mut most = Some(0);
    if repeats.finalists {
        let finalists = repeats.finalists_of(prepared);
        parts.push(format!("{} and the best baseline before the verdict", counted(finalists as u64, "finalist")));
        most = most.map(|most| most + finalists as u64 + 1);
    }
    if let Some(every) = repeats.sentinel {
        parts.push(format!("a baseline every {every} evaluations in full"));
        let limits = &prepared.config.budget;
        let by_samples = limits.samples.filter(|_| samples > 0).map(|limit| limit / samples);
        let evaluations = [limits.evaluations, by_samples].into_iter().flatten().min();
        // Once more at the end, where half of the distance has passed.
        let sentinels = evaluations.map(|evaluations| (evaluations + every.get() / 2) / every);
        most = most.zip(sentinels).map(|(most, sentinels)| most + sentinels);
    }
    if parts.is_empty() {
        return if deterministic { "nothing: the evaluator is deterministic" } else { "nothing" }.into();
    }
    let most =
        most.map(|most| format!("; {} at most, outside the budget", counted(most, "evaluation"))).unwrap_or_default();
    format!("{}{each}{most}", parts.join(", "))
}

fn describe_holdout(prepared: &Prepared, shown: ShownGain) -> String {
    let Some(plan) = &prepared.holdout else {
        return "none: nothing will show that the winner is better on other data".into();
    };
    let samples =
        if plan.samples > 0 { format!("{} each", counted(plan.samples, "sample")) } else { "all samples".to_owned() };
    let mut text = format!(
        "{} and the best baseline, {samples} (where the winner is ahead by more than chance, also baselines that may be as good)",
        counted(plan.finalists as u64, "finalist")
    );
    if matches!(prepared.config.evaluator.kind, EvaluatorKind::Command(_)) {
        text.push_str(
            "; answers without `per_sample`, or `stderr` and `n`, give no interval, and so never an improvement",
        );
    }
    match shown {
        ShownGain::From(gain) => text.push_str(&format!(
            "; shows gains from about {gain:.3} over one baseline (80 % power, paired, for scores of 0 or 1 with a rate and a \
             correlation of one half), and larger ones over several that are alike"
        )),
        ShownGain::Unpaired(gain) => text.push_str(&format!(
            "; shows gains from about {gain:.3} over one baseline (80 % power, for scores of 0 or 1 with a rate of one half; \
             unpaired, since the evaluator gives no scores by sample), and larger ones over several that are alike"
        )),
        ShownGain::None => text.push_str(&format!(
            "; so few samples can show no gain: it takes at least {FEWEST_SAMPLES}, no task with a single one, and about \
             {SAMPLES_FOR_A_TENTH} for a gain of 0.1 (80 % power, paired, for scores of 0 or 1 with a rate and a \
             correlation of one half)"
        )),
        ShownGain::Unknown => {}
    }
    text
}

/// What a hold-out can be expected to show.
#[derive(Clone, Copy, Debug)]
enum ShownGain {
    /// Gains of this size and above.
    From(f64),
    /// Gains of this size and above, without scores by sample.
    Unpaired(f64),
    /// None: it has too few samples.
    None,
    /// There is no hold-out, or one with scores other than 0 and 1 or of unknown size.
    Unknown,
}

/// From the hold-out's sizes, for tasks whose samples score 0 or 1.
fn shown_gain(prepared: &Prepared) -> ShownGain {
    let Some(tasks) = holdout_sizes(prepared) else { return ShownGain::Unknown };
    // Of a single sample nothing can be said, and so nothing of an objective that it is part of.
    if tasks.iter().any(|(_, samples)| *samples < 2) {
        return ShownGain::None;
    }
    let samples = power::effective_samples(&tasks);
    if is_paired(prepared) {
        power::smallest_gain(samples).map_or(ShownGain::None, ShownGain::From)
    } else {
        power::smallest_unpaired_gain(samples).map_or(ShownGain::None, ShownGain::Unpaired)
    }
}

/// Whether the hold-out's evaluator gives scores by sample of all tasks that count.
fn is_paired(prepared: &Prepared) -> bool {
    let Some(plan) = &prepared.holdout else { return false };
    let gives = |request: &TaskRequest| {
        let known = plan.evaluator.capabilities().tasks.get(&request.name);
        known.is_none_or(|known| known.supports_per_sample)
    };
    let counts = plan.objective.tasks.iter().zip(&plan.tasks).filter(|(task, _)| task.weight != 0.0);
    counts.map(|(_, request)| request).all(gives)
}

/// Share of the objective and number of samples of each task that counts; `None` where a size is not known or the scores
/// are not 0 and 1.
fn holdout_sizes(prepared: &Prepared) -> Option<Vec<(f64, u64)>> {
    let plan = prepared.holdout.as_ref()?;
    let total = plan.objective.total_weight();
    let size = |(task, request): (&ObjectiveTask, &TaskRequest)| {
        let known = plan.evaluator.capabilities().tasks.get(&request.name)?;
        let samples = request.samples.count(known.n_samples).filter(|samples| *samples > 0)?;
        scores_zero_or_one(known, &task.metric).then_some((task.weight.abs() / total, samples))
    };
    plan.objective.tasks.iter().zip(&plan.tasks).filter(|(task, _)| task.weight != 0.0).map(size).collect()
}

fn scores_zero_or_one(known: &TaskCapability, metric: &str) -> bool {
    let range = known.metrics.get(metric).filter(|metric| metric.is_mean).map(|metric| (metric.min, metric.max));
    range == Some((Some(0.0), Some(1.0)))
}
