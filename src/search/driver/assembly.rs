//! What a search is made of, and its records as plain data.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ledger::{Ledger, ToldRecord, fact};
use crate::merge::Merger;
use crate::search::SearchError;
use crate::search::fidelity::Parts;
use crate::search::frozen::Frozen;
use crate::search::landscape::seed_genomes;
use crate::search::pipeline::MaterializeStage;
use crate::search::prepare::{Prepared, candidate_parent};
use crate::search::progress::Progress;
use crate::search::run_folder::RunFolder;
use crate::search::slots::{Slots, sweep_earlier};
use crate::strategy::{Landscape, Outcome, Setup};

pub(super) fn parts(prepared: &Prepared, frozen: &Frozen, progress: &dyn Progress) -> Option<Parts> {
    let Some(config) = &frozen.racing else {
        if prepared.config.effective_racing().is_some() {
            progress.line("no racing: the run began without; every candidate is scored in full");
        }
        return None;
    };
    let (tasks, evaluator) = (&prepared.tasks, prepared.evaluator.as_ref());
    let planned = match &frozen.race_basis {
        Some(basis) => Parts::on(basis, config, tasks, evaluator),
        // Decided at the first start, whatever the evaluator has learned since.
        None => Err(Parts::plan(config, tasks, evaluator)
            .err()
            .unwrap_or_else(|| "the evaluator took no parts of the samples when the run began".to_owned())),
    };
    match planned {
        Ok(parts) => Some(parts),
        Err(reason) => {
            progress.line(&format!("no racing: {reason}; every candidate is scored in full"));
            None
        }
    }
}

pub(super) fn setup(prepared: &Prepared, frozen: &Frozen) -> Setup {
    let sources = prepared.models.facts.sources.len();
    let has_base = prepared.models.facts.base.is_some();
    let seeds = prepared.space.iter().flat_map(|space| seed_genomes(space, has_base, sources));
    Setup {
        seed: prepared.config.seed,
        sources,
        has_base,
        evaluations: frozen.planned_evaluations,
        look_ahead: usize::try_from(frozen.look_ahead).unwrap_or(usize::MAX),
        seeds: seeds.collect(),
        model_stock: prepared.model_stock(),
        objective: prepared.objective.tasks.clone(),
        landscape: prepared.space.clone().map(|space| space as Arc<dyn Landscape>),
    }
}

pub(super) fn materialize_stage(
    prepared: &Prepared,
    folder: &RunFolder,
    ledger: &Ledger,
    frozen: &Frozen,
    progress: &Arc<dyn Progress>,
) -> Result<Option<MaterializeStage>, SearchError> {
    let Some(merger) = prepared.models.merger.clone() else { return Ok(None) };
    let capacity = prepared.slots();
    let earlier = ledger.fact(fact::CANDIDATE_FOLDER)?.map(PathBuf::from);
    sweep_earlier(folder.path(), earlier.as_deref());
    let parent = candidate_parent(prepared, folder.path(), capacity as u64);
    // Before there is anything in it.
    ledger.set_fact(fact::CANDIDATE_FOLDER, &parent.to_string_lossy())?;
    let slots = Arc::new(Slots::claim(&parent, &frozen.run_id)?);
    let save_statistics = keep_statistics(&merger, &folder.statistics(), progress)?;
    Ok(Some(MaterializeStage { merger, slots, capacity, save_statistics }))
}

/// Takes up what earlier starts found out about whole tensors; answers what saves what this one finds out. A file that
/// cannot be read or written costs time and is told once.
fn keep_statistics(
    merger: &Arc<Merger>,
    path: &Path,
    progress: &Arc<dyn Progress>,
) -> Result<Arc<dyn Fn() + Send + Sync>, SearchError> {
    if let Some(reason) = merger.keep_statistics(path)? {
        progress.line(&format!("warning: {}: {reason}; its statistics are computed again", path.display()));
    }
    match merger.kept_statistics() {
        0 => {}
        known => progress.line(&format!("{known} statistics of whole tensors are known from earlier starts")),
    }
    let (merger, path, progress) = (merger.clone(), path.to_path_buf(), progress.clone());
    let told = AtomicBool::new(false);
    Ok(Arc::new(move || {
        if let Err(error) = merger.save_statistics()
            && !told.swap(true, Ordering::Relaxed)
        {
            let path = path.display();
            progress.line(&format!(
                "warning: {path} cannot be written ({error}): the next start computes its statistics again"
            ));
        }
    }))
}

/// The outcome of an evaluation on the share `fidelity` of the samples.
pub(super) fn outcome_of(record: ToldRecord, fidelity: f64) -> Outcome {
    let ToldRecord { index, status, objective, tasks, .. } = record;
    Outcome { index, status, objective, tasks, fidelity }
}
