//! The end of a run: everything at rest, the tables written, the finalists scored again, the hold-out opened, the
//! verdict decided.

use std::collections::{BTreeMap, BTreeSet};

use super::Search;
use crate::ledger::{PhaseRecord, VerdictPhase, event};
use crate::recipe::Recipe;
use crate::score::repeats::{TwoScores, order};
use crate::score::{Verdict, best_first, may_be_as_good};
use crate::scores::Status;
use crate::search::best::note_winner;
use crate::search::repeats::FinalRescoring;
use crate::search::report::{Row, RunReport};
use crate::search::verdict_file::write_verdict;
use crate::search::{LatestOutcomes, SearchError, alarms, export, holdout};
use crate::strategy::origin;

/// Origin of a finalist that the greedy soup tried on its way.
const SOUP_TRIAL: &str = "greedy_soup_trial";

impl Search {
    /// Ends a run in good order, whatever ended it: nothing stays running, the tables are written. The run is locked until
    /// its end is on record: whoever finds it free finds out how it ended, and a next start comes after that.
    pub(in crate::search) async fn leave(
        mut self,
        outcome: Result<String, SearchError>,
    ) -> Result<RunReport, SearchError> {
        self.pipeline.stop_merging();
        self.stop_evaluations().await;
        self.pipeline.abandon().await;
        // Nothing is written to where another run may be by now.
        self.folder.check_place()?;
        let saved = self.save_tables();
        let concluded = match outcome {
            Ok(reason) => match saved {
                Ok(()) => self.conclude(reason).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(self.start_over_or_keep(error)),
        };
        // Last: who reads that a run has ended finds its verdict.
        let payload = match &concluded {
            Ok(report) => serde_json::json!({ "reason": report.reason }),
            Err(error) => serde_json::json!({ "error": error.to_string() }),
        };
        let recorded = self.ledger.event(event::STOPPED, None, &payload);
        let report = concluded?;
        recorded?;
        Ok(report)
    }

    /// Forgets a run of which nothing came but failures, so that the next start asks for everything again; `trials.csv`
    /// tells of them until then. What was under way when there were too many of them may have been scored since, and is
    /// kept.
    fn start_over_or_keep(&self, error: SearchError) -> SearchError {
        match error {
            SearchError::TooManyFailures { failed, finished, last, keeps_nothing: true } => {
                let keeps_nothing = match self.has_only_failures() {
                    Ok(keeps_nothing) => keeps_nothing,
                    Err(error) => return error,
                };
                if keeps_nothing && let Err(error) = self.ledger.start_over() {
                    return error.into();
                }
                SearchError::TooManyFailures { failed, finished, last, keeps_nothing }
            }
            other => other,
        }
    }

    /// Whether every evaluation on record was given up.
    fn has_only_failures(&self) -> Result<bool, SearchError> {
        let told = LatestOutcomes::of(&self.ledger)?.in_short()?;
        Ok(told.values().all(|record| record.status == Status::Failed))
    }

    /// The active time, which ends here, and the table of trials, whether or not the other can be written.
    fn save_tables(&mut self) -> Result<(), SearchError> {
        self.clock.stop();
        let timed = self.clock.save(&self.ledger);
        export::write_table(self.folder.path(), &self.ledger, &self.prepared.config)?;
        Ok(timed?)
    }

    /// After an error: cancels what is still with the evaluator and keeps what it answers meanwhile.
    async fn stop_evaluations(&mut self) {
        if self.pipeline.idle() {
            return;
        }
        self.pipeline.cancel();
        while !self.pipeline.idle() {
            if let Ok(Some(finished)) = self.pipeline.next().await {
                let _ = self.finish(finished);
            }
        }
    }

    /// Opens the hold-out and says what was found.
    async fn conclude(&mut self, reason: String) -> Result<RunReport, SearchError> {
        self.schedule.settle()?;
        if let Some(share) = self.schedule.strategy().hypervolume() {
            self.progress.line(&format!(
                "the candidates dominate {:.1} % of the box between the worst and the best value seen of each objective",
                100.0 * share
            ));
        }
        let soup = self.schedule.strategy().soup_trace().cloned();
        let soup_index = self.greedy_soup()?.map(|row| row.index);
        let names = self.prepared.source_names();
        let members = soup.iter().flat_map(|soup| &soup.members);
        let soup_sources = members.filter_map(|source| names.get(*source).cloned()).collect();
        self.ask_for_given_up().await?;
        let shortlist = self.choose().await?;
        let best = shortlist.finalists.first().cloned();
        let verdict = match &best {
            Some(_) => Some(self.verdict(&shortlist).await?),
            None => None,
        };
        let baseline = shortlist.baseline.as_ref();
        let ended = alarms::Ended {
            objectives: &self.objectives(),
            unreached_baselines: self.unreached_baselines()?,
            best: best.as_ref(),
            baseline,
        };
        let alarms = alarms::after(&self.prepared, &self.ledger, &ended)?;
        if let Some(verdict) = &verdict {
            write_verdict(self.folder.path(), verdict, &alarms, self.rows.len() as u64)?;
        }
        Ok(RunReport {
            has_models: self.stage.is_some(),
            name: self.prepared.config.name.clone(),
            folder: self.folder.path().to_path_buf(),
            evaluations: self.rows.len() as u64,
            scored: self.count(Status::Scored),
            infeasible: self.count(Status::Infeasible),
            failed: self.count(Status::Failed),
            reason,
            active_s: self.clock.active().as_secs_f64(),
            best,
            baselines: self.baselines_and_trials().cloned().collect(),
            soup,
            soup_sources,
            soup_index,
            alarms,
            verdict,
        })
    }

    fn final_rescoring(&self) -> FinalRescoring<'_> {
        FinalRescoring { rescoring: self.rescoring(), equipment: self.pipeline.equipment(), stop: &self.stop }
    }

    /// Tells readers of the ledger what is scored from here on.
    fn enter(&self, phase: VerdictPhase, candidates: Vec<String>, rivals: Vec<String>) -> Result<(), SearchError> {
        let record = PhaseRecord { phase, candidates, rivals };
        Ok(self.ledger.event(event::PHASE, None, &serde_json::json!(record))?)
    }

    /// A baseline without a score leaves every claim open, and whatever kept it from one may be over.
    async fn ask_for_given_up(&mut self) -> Result<(), SearchError> {
        let (given_up, candidates): (Vec<u64>, Vec<String>) =
            self.given_up_baselines().map(|row| (row.index, row.candidate_id.clone())).unzip();
        if given_up.is_empty() || self.best.is_none() {
            return Ok(());
        }
        self.enter(VerdictPhase::Baselines, candidates, Vec::new())?;
        for scored in self.final_rescoring().score_given_up(&given_up).await? {
            let row = self.row(&scored);
            if self.note(row) {
                self.mark_winner(scored.index)?;
            }
        }
        Ok(())
    }

    /// The finalists, scored again where the evaluator's answers may vary, the best first. The hold-out has no part in
    /// it.
    async fn choose(&self) -> Result<Shortlist, SearchError> {
        let finalists = self.finalists(self.repeats.finalists_of(&self.prepared))?;
        let shortlist = if finalists.is_empty() || !self.repeats.finalists {
            Shortlist { finalists, baseline: self.best_baseline()?.cloned(), again: BTreeMap::new() }
        } else {
            self.choose_again(finalists).await?
        };
        if let Some(winner) = shortlist.finalists.first() {
            let is_best = self.best.is_some_and(|best| best.index == winner.index);
            // Else `best/` holds it already; after an earlier verdict it may hold another one.
            if self.repeats.finalists || self.has_winner || !is_best {
                self.mark_winner(winner.index)?;
            }
        }
        if let Some(index) = self.last_sentinel_due().filter(|_| !shortlist.finalists.is_empty()) {
            self.enter(VerdictPhase::Sentinel, Vec::new(), Vec::new())?;
            self.final_rescoring().score_sentinel(index).await?;
        }
        Ok(shortlist)
    }

    /// Finalists and best baseline in the order of both their scores.
    async fn choose_again(&self, mut finalists: Vec<Row>) -> Result<Shortlist, SearchError> {
        let wanted = finalists.len();
        let ids: BTreeSet<String> = finalists.iter().map(|row| row.candidate_id.clone()).collect();
        // The best baseline may turn out to be the best of all.
        finalists.extend(self.best_baseline()?.filter(|row| !ids.contains(&row.candidate_id)).cloned());
        let (indices, candidates): (Vec<u64>, Vec<String>) =
            finalists.iter().map(|row| (row.index, row.candidate_id.clone())).unzip();
        self.enter(VerdictPhase::Finalists, candidates, Vec::new())?;
        let again = self.final_rescoring().score_finalists(&indices).await?;
        let two = |row: &Row| TwoScores {
            search: row.objective.unwrap_or(f64::NAN),
            again: again.get(&row.candidate_id).copied(),
        };
        let places = order(&finalists.iter().map(two).collect::<Vec<_>>());
        // By the same two scores as the winner: by the first alone, a lucky baseline would stand for a better one.
        let apart = self.soups_apart()?;
        let baselines: BTreeSet<u64> = self.baselines_and_trials().map(|row| row.index).collect();
        let is_baseline = |row: &&Row| baselines.contains(&row.index) && !apart.contains(&row.index);
        let baseline = places.iter().map(|of| &finalists[*of]).find(is_baseline).cloned();
        let added = finalists.get(wanted).map(|_| wanted);
        let finalists: Vec<Row> = places
            .iter()
            .enumerate()
            .filter(|(place, of)| *place == 0 || Some(**of) != added)
            .map(|(_, of)| finalists[*of].clone())
            .collect();
        Ok(Shortlist { finalists, baseline, again })
    }

    /// Makes an evaluation's candidate the one that `best/`, `status` and `export` show.
    fn mark_winner(&self, index: u64) -> Result<(), SearchError> {
        let asked = self.ledger.asked_at(index)?;
        export::write_best(self.folder.path(), &Recipe::from_toml(&asked.recipe)?, &asked.recipe)?;
        note_winner(&self.ledger, asked.index, self.rows.len())
    }

    async fn verdict(&self, shortlist: &Shortlist) -> Result<Verdict, SearchError> {
        let opening = holdout::HoldoutOpening {
            prepared: &self.prepared,
            ledger: &self.ledger,
            equipment: self.pipeline.equipment(),
            evaluations: self.rows.len() as u64,
            unscored_baselines: self.unknown_baselines()?,
            again: &shortlist.again,
            progress: &self.progress,
            stop: &self.stop,
        };
        let rivals = match &shortlist.baseline {
            Some(baseline) => self.rivals(baseline)?,
            None => Vec::new(),
        };
        if self.prepared.holdout.is_some() {
            self.enter_holdout(shortlist, &rivals)?;
        }
        opening.verdict(&shortlist.finalists, shortlist.baseline.as_ref(), &rivals).await
    }

    /// Tells whom the hold-out is opened for.
    fn enter_holdout(&self, shortlist: &Shortlist, rivals: &[Row]) -> Result<(), SearchError> {
        let first = shortlist.finalists.iter().chain(&shortlist.baseline);
        let candidates: BTreeSet<String> = first.map(|row| row.candidate_id.clone()).collect();
        let others = rivals.iter().map(|row| row.candidate_id.clone()).filter(|rival| !candidates.contains(rival));
        // Several evaluations of one candidate are scored once.
        let others: BTreeSet<String> = others.collect();
        self.enter(VerdictPhase::Holdout, candidates.into_iter().collect(), others.into_iter().collect())
    }

    /// Base, sources, uniform soup and the greedy soup that their scores on the search samples do not tell from the best
    /// baseline, best first: one of them may be the best.
    fn rivals(&self, best: &Row) -> Result<Vec<Row>, SearchError> {
        let latest = LatestOutcomes::of(&self.ledger)?;
        let Some(scores) = latest.outcome(best.index)? else { return Ok(Vec::new()) };
        let mut rivals = Vec::new();
        let apart = self.soups_apart()?;
        let greedy = self.greedy_soup()?.filter(|row| row.origin == origin::GREEDY_SOUP);
        let others = self.first_baselines().chain(greedy).filter(|row| !apart.contains(&row.index));
        for row in others.filter(|row| row.candidate_id != best.candidate_id) {
            let Some(ranked) = row.ranked() else { continue };
            if let Some(other) = latest.outcome(row.index)?
                && may_be_as_good(&self.prepared.objective, &scores.tasks, &other.tasks)
            {
                rivals.push((ranked, row.clone()));
            }
        }
        rivals.sort_by(|(first, _), (second, _)| first.best_first(second));
        Ok(rivals.into_iter().map(|(_, row)| row).collect())
    }

    /// Objectives at full fidelity, one a candidate.
    fn objectives(&self) -> Vec<f64> {
        let mut seen = BTreeSet::new();
        let rows = self.rows.values().filter(|row| self.is_full(row));
        rows.filter_map(|row| row.objective.filter(|_| seen.insert(row.candidate_id.as_str()))).collect()
    }

    /// Who proposed a row's candidate: a promotion only gave it more samples.
    fn proposer<'a>(&'a self, row: &'a Row) -> &'a str {
        let first = self.rows.values().find(|other| other.candidate_id == row.candidate_id);
        first.map_or(&row.origin, |first| &first.origin)
    }

    /// The best candidates at full fidelity, best first. Of equals the earliest is first, but behind the greedy soup what it
    /// tried on its way.
    fn finalists(&self, wanted: usize) -> Result<Vec<Row>, SearchError> {
        let trials = self.soup_trials()?;
        let full = self.rows.values().filter(|row| self.is_full(row));
        let mut ranked: Vec<(f64, bool, &Row)> =
            full.filter_map(|row| Some((row.objective?, trials.contains(&row.index), row))).collect();
        // In order of index already.
        ranked.sort_by(|first, second| best_first(first.0, second.0).then(first.1.cmp(&second.1)));
        let mut seen = BTreeSet::new();
        let finalist = |row: &Row| {
            let mut row = row.clone();
            row.origin =
                if trials.contains(&row.index) { SOUP_TRIAL.to_owned() } else { self.proposer(&row).to_owned() };
            row
        };
        let rows = ranked.into_iter().map(|(_, _, row)| row);
        let first = rows.filter(|row| seen.insert(row.candidate_id.clone()));
        Ok(first.take(wanted).map(finalist).collect())
    }
}

/// The candidates that the verdict is about.
struct Shortlist {
    /// The finalists in order: the first carries the verdict.
    finalists: Vec<Row>,
    /// The baseline that the first finalist is compared with.
    baseline: Option<Row>,
    /// The objectives of the candidates that were scored again, by candidate.
    again: BTreeMap<String, f64>,
}

#[cfg(test)]
#[path = "conclusion_tests.rs"]
mod tests;
