//! From a strategy's proposal to a candidate: recipe, hashes, evaluation id.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize as _;
use sha2::{Digest, Sha256};

use super::SearchError;
use super::models::Models;
use super::schedule::Identity;
use crate::digest::hex;
use crate::evaluate::{CandidateRequest, EvaluationRequest, Samples, TaskRequest};
use crate::ledger::AskedRecord;
use crate::recipe::{ModelReference, Recipe};
use crate::space::{Genome, ModelFacts, SearchSpace, base_recipe, soup_recipe};
use crate::strategy::{Content, Proposal, baseline_contents};

/// A proposal made concrete.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What is merged.
    pub recipe: Recipe,
    /// The recipe's canonical hash, in hex: the same for two proposals that are one candidate.
    pub recipe_sha256: String,
    /// First 16 hex digits of `recipe_sha256`.
    pub id: String,
    /// Idempotency, cache and log key.
    pub evaluation_id: String,
    /// Empty for baselines.
    pub genome: Vec<f64>,
    /// Gene names with decoded values; empty for baselines.
    pub genes: Vec<(String, String)>,
    /// The recipe in canonical form.
    pub canonical: serde_json::Value,
    /// What is asked of the evaluator.
    pub tasks: Vec<TaskRequest>,
    /// Fraction of the full samples that `tasks` ask for, in (0, 1].
    pub fidelity: f64,
    /// 0, and more where the same samples are to be answered anew.
    pub replicate: u32,
}

impl Identity for Candidate {
    fn key(&self) -> &str {
        &self.evaluation_id
    }

    fn candidate(&self) -> &str {
        &self.recipe_sha256
    }
}

/// What all evaluations of a run have in common.
#[derive(Clone, Debug)]
pub struct EvaluationContext {
    pub run_id: String,
    pub run_name: String,
    pub tasks: Vec<TaskRequest>,
    pub fingerprint: String,
    /// Ids of what is not weights, by model; empty where there are no models on disk.
    pub settings: Arc<BTreeMap<ModelReference, String>>,
}

/// First 16 hex digits of a recipe's hash: what people and file names call a candidate.
fn candidate_id(recipe_sha256: &str) -> String {
    recipe_sha256.chars().take(16).collect()
}

/// The recipe of base or soup. `None`: there is no base, or it is a point of the search space.
fn baseline_recipe(content: &Content, facts: &ModelFacts) -> Option<Recipe> {
    match content {
        Content::Base => base_recipe(facts),
        Content::Soup(members) => Some(soup_recipe(facts, members)),
        Content::Genome(_) => None,
    }
}

/// Base, sources and uniform soup, each with its candidate's id; copies among the models share one.
pub fn baselines(models: &Models) -> Result<Vec<(Content, String)>, SearchError> {
    let facts = &models.facts;
    let contents = baseline_contents(facts.base.is_some(), facts.sources.len()).into_iter();
    let with_recipe = contents.filter_map(|content| baseline_recipe(&content, facts).map(|recipe| (content, recipe)));
    with_recipe.map(|(content, recipe)| Ok((content, candidate_id(&recipe.sha256(&models.content_ids)?)))).collect()
}

/// The id of the soup of these sources.
pub fn soup_id(models: &Models, members: &[usize]) -> Result<String, SearchError> {
    let mut members = members.to_vec();
    members.sort_unstable();
    Ok(candidate_id(&soup_recipe(&models.facts, &members).sha256(&models.content_ids)?))
}

/// What the strategy proposed for a recorded evaluation.
///
/// # Errors
/// [`SearchError::BadData`] where the record holds no proposal.
fn content_of(asked: &AskedRecord) -> Result<Content, SearchError> {
    Content::deserialize(&asked.content).map_err(|error| {
        SearchError::BadData(format!("ledger: the proposal of evaluation {} cannot be read: {error}", asked.index))
    })
}

/// Whether a recorded evaluation is one of base, source or soup. What a strategy bred is none, even where all genes are
/// frozen.
///
/// # Errors
/// [`SearchError::BadData`] where the record holds no proposal.
pub fn is_baseline(asked: &AskedRecord) -> Result<bool, SearchError> {
    Ok(!matches!(content_of(asked)?, Content::Genome(_)))
}

impl Candidate {
    /// Decodes a proposal to be scored on `tasks`. Total: every proposal of a strategy is a valid candidate.
    ///
    /// # Errors
    /// [`SearchError::Settings`] for a genome without a space, or the base of a run that has none.
    pub fn from_proposal(
        proposal: &Proposal,
        models: &Models,
        space: Option<&SearchSpace>,
        context: &EvaluationContext,
        tasks: Vec<TaskRequest>,
    ) -> Result<Self, SearchError> {
        let (recipe, genome, genes) = match &proposal.content {
            Content::Genome(genome) => {
                let space = space.ok_or_else(|| SearchError::Settings("a search needs a [space]".into()))?;
                (space.decode(genome), genome.0.clone(), gene_values(space, genome))
            }
            baseline => {
                let recipe = baseline_recipe(baseline, &models.facts)
                    .ok_or_else(|| SearchError::Settings("the run has no base model".into()))?;
                (recipe, Vec::new(), Vec::new())
            }
        };
        let canonical = recipe.canonical(&models.content_ids)?;
        let recipe_sha256 = recipe.sha256(&models.content_ids)?;
        // A proposal is evaluated for the first time; [`Self::from_record`] makes the replicates.
        let replicate = 0;
        Ok(Self {
            id: candidate_id(&recipe_sha256),
            evaluation_id: evaluation_id(
                &recipe_sha256,
                &context.settings_of(&recipe),
                &tasks,
                proposal.fidelity,
                replicate,
                &context.fingerprint,
            ),
            fidelity: proposal.fidelity,
            replicate,
            recipe,
            recipe_sha256,
            genome,
            genes,
            canonical,
            tasks,
        })
    }

    /// A candidate as the ledger has it, to be scored on the context's tasks under that replicate.
    ///
    /// # Errors
    /// [`SearchError`] where recipe or proposal of the record cannot be read, or the recipe names models that the run
    /// does not have.
    pub fn from_record(
        asked: &AskedRecord,
        models: &Models,
        context: &EvaluationContext,
        replicate: u32,
    ) -> Result<Self, SearchError> {
        let recipe = Recipe::from_toml(&asked.recipe)?;
        let settings = context.settings_of(&recipe);
        let genome = match content_of(asked)? {
            Content::Genome(genome) => genome.0,
            Content::Base | Content::Soup(_) => Vec::new(),
        };
        Ok(Self {
            canonical: recipe.canonical(&models.content_ids)?,
            recipe,
            recipe_sha256: asked.recipe_sha256.clone(),
            id: asked.candidate_id.clone(),
            evaluation_id: evaluation_id(
                &asked.recipe_sha256,
                &settings,
                &context.tasks,
                1.0,
                replicate,
                &context.fingerprint,
            ),
            fidelity: 1.0,
            replicate,
            tasks: context.tasks.clone(),
            genome,
            genes: asked.genes.clone(),
        })
    }

    /// The request for this candidate, materialized at `path`.
    pub fn request(&self, context: &EvaluationContext, path: Option<PathBuf>) -> EvaluationRequest {
        EvaluationRequest {
            evaluation_id: self.evaluation_id.clone(),
            run_id: context.run_id.clone(),
            run_name: context.run_name.clone(),
            candidate: CandidateRequest {
                id: self.id.clone(),
                recipe_sha256: self.recipe_sha256.clone(),
                path,
                recipe: self.canonical.clone(),
                genome: self.genome.clone(),
            },
            tasks: self.tasks.clone(),
            fidelity: self.fidelity,
            replicate: self.replicate,
        }
    }
}

impl EvaluationContext {
    /// Ids of the settings of a recipe's models.
    pub fn settings_of(&self, recipe: &Recipe) -> Vec<&str> {
        recipe.models().into_iter().filter_map(|model| self.settings.get(model)).map(String::as_str).collect()
    }
}

/// sha256 over everything that determines the answer to `tasks`, asked of the evaluator with this fingerprint about a
/// candidate (its recipe's hash, or its content) whose models have these settings; not the run's name, so that runs can
/// share scores.
pub fn evaluation_id(
    candidate: &str,
    settings: &[&str],
    tasks: &[TaskRequest],
    fidelity: f64,
    replicate: u32,
    fingerprint: &str,
) -> String {
    let tasks: Vec<serde_json::Value> = tasks
        .iter()
        .map(|task| {
            let samples = match &task.samples {
                Samples::All => serde_json::json!("all"),
                Samples::Limit(limit) => serde_json::json!({ "limit": limit }),
                Samples::Ids(ids) => serde_json::json!({ "ids": ids }),
            };
            serde_json::json!([task.name, task.metric, samples, task.seed])
        })
        .collect();
    let parts = if settings.is_empty() {
        serde_json::json!(["evomerge evaluation v1", candidate, tasks, fidelity, fingerprint, replicate])
    } else {
        serde_json::json!(["evomerge evaluation v2", candidate, settings, tasks, fidelity, fingerprint, replicate])
    };
    format!("ev_{}", hex(&Sha256::digest(parts.to_string().as_bytes())))
}

fn gene_values(space: &SearchSpace, genome: &Genome) -> Vec<(String, String)> {
    let active = space.active(genome);
    space
        .genes()
        .iter()
        .zip(&genome.0)
        .zip(active)
        .map(|((gene, unit), active)| (gene.name.clone(), if active { gene.format(*unit) } else { String::new() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(fingerprint: &str, samples: Samples, recipe: &str, fidelity: f64, replicate: u32) -> String {
        let context = context(fingerprint, samples);
        evaluation_id(recipe, &["s"], &context.tasks, fidelity, replicate, fingerprint)
    }

    fn context(fingerprint: &str, samples: Samples) -> EvaluationContext {
        EvaluationContext {
            run_id: "r".into(),
            run_name: "n".into(),
            tasks: vec![TaskRequest { name: "add".into(), metric: "exact_match".into(), samples, seed: 7 }],
            fingerprint: fingerprint.into(),
            settings: Arc::default(),
        }
    }

    #[test]
    fn the_evaluation_id_changes_with_whatever_changes_the_answer() {
        let first = id("f", Samples::All, "r1", 1.0, 0);
        assert_eq!(first, id("f", Samples::All, "r1", 1.0, 0));
        let others = [
            id("g", Samples::All, "r1", 1.0, 0),
            id("f", Samples::Limit(3), "r1", 1.0, 0),
            id("f", Samples::All, "r2", 1.0, 0),
            id("f", Samples::All, "r1", 0.5, 0),
            id("f", Samples::All, "r1", 1.0, 1),
        ];
        assert!(others.iter().all(|other| *other != first));
        let context = context("f", Samples::All);
        assert_ne!(evaluation_id("r1", &["another"], &context.tasks, 1.0, 0, "f"), first);
        assert!(first.len() <= 128);
    }
}
