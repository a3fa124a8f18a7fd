//! A run's evaluator and tasks without its models, for scoring any checkpoint.

use std::path::Path;
use std::sync::Arc;

use super::prepare::{connect, evaluator_tasks, objective, task_requests};
use super::{Progress, SearchError, Stop, candidate};
use crate::config::RunConfig;
use crate::evaluate::{Evaluator, TaskRequest};
use crate::score::Objective;

/// What scores, on which tasks, and how their scores become one number.
pub struct Scorer {
    /// Connected, and it takes checkpoints.
    pub evaluator: Arc<dyn Evaluator>,
    /// What an evaluation in full asks for.
    pub tasks: Vec<TaskRequest>,
    /// How the scores of the tasks become one number.
    pub objective: Objective,
}

/// Connects the evaluator of a run file.
///
/// # Errors
/// [`SearchError`] where the evaluator cannot be reached, or does not know the tasks; [`SearchError::Stopped`].
pub async fn connect_evaluator(
    config: &RunConfig,
    scratch: &Path,
    progress: &Arc<dyn Progress>,
    stop: &Stop,
) -> Result<Scorer, SearchError> {
    let evaluator = connect(config, &evaluator_tasks(&config.tasks), scratch, progress, stop).await?;
    if !evaluator.needs_checkpoint() {
        return Err(SearchError::Settings(format!(
            "the {} evaluator scores genomes, not checkpoints; evaluate needs another one",
            evaluator.kind()
        )));
    }
    let objective = objective(config, evaluator.as_ref())?;
    let tasks = task_requests(config, &objective, evaluator.as_ref())?;
    Ok(Scorer { evaluator, tasks, objective })
}

/// The evaluation id of a checkpoint that no recipe made, of this content and these settings.
pub fn evaluation_id(content: &str, settings: &str, tasks: &[TaskRequest], fingerprint: &str) -> String {
    candidate::evaluation_id(content, &[settings], tasks, 1.0, 0, fingerprint)
}
