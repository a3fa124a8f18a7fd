//! The models of a run: opened once, compared, identified.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::SearchError;
use crate::checkpoint::{self, Checkpoint, ContentIds, LayerLayout};
use crate::config::{LayerGrouping, ModelSource, RunConfig};
use crate::merge::agreement::{Agreement, layer_agreements};
use crate::merge::structure::{LayerProfile, layer_profiles};
use crate::merge::{Merger, MergerOptions};
use crate::recipe::{MaskKind, Masks, ModelReference};
use crate::space::{ModelFacts, stack_recipe, whole_recipe};

/// Base and sources of a run.
pub struct Models {
    /// What the search space needs to know of them.
    pub facts: ModelFacts,
    /// `None`: the evaluator works without checkpoints, and none was opened.
    pub merger: Option<Arc<Merger>>,
    /// Content ids of the weights, by model: recipes are hashed with them; `name:NAME` without checkpoints.
    pub content_ids: BTreeMap<ModelReference, String>,
    /// Ids of what is not weights ([`Checkpoint::settings_id`]), by model; empty without checkpoints.
    pub settings_ids: Arc<BTreeMap<ModelReference, String>>,
    /// Base (where there is one) and sources.
    checkpoints: Vec<Arc<Checkpoint>>,
    /// Bytes of the largest candidate; 0 without checkpoints.
    pub candidate_bytes: u64,
    /// What [`Self::profiles`] found: it reads all weights, once.
    profiles: OnceLock<Vec<LayerProfile>>,
}

impl Models {
    /// Opens, compares and hashes the models of `config`. With `checkpoints` false only their names are used: a
    /// closed-form landscape needs no files.
    ///
    /// # Errors
    /// [`SearchError`] where a model cannot be opened, holds values that are not finite, or does not fit the others.
    pub fn open(config: &RunConfig, checkpoints: bool) -> Result<Self, SearchError> {
        if checkpoints { Self::open_checkpoints(config) } else { Ok(Self::names_only(config)) }
    }

    fn open_checkpoints(config: &RunConfig) -> Result<Self, SearchError> {
        let cache = ContentIds::in_user_cache();
        let (mut content_ids, mut settings_ids) = (BTreeMap::new(), BTreeMap::new());
        let mut opened: Vec<(&ModelSource, Checkpoint)> = Vec::new();
        let mut scanned = BTreeSet::new();
        for model in config.models.base.iter().chain(&config.models.sources) {
            let checkpoint = checkpoint::open_model(&model.location, model.adapter.as_deref(), &config.directory)?;
            // One scan of a base that adapters share.
            let known = scanned.contains(checkpoint.path());
            let place = if known { checkpoint.first_nonfinite_of_adapter() } else { checkpoint.first_nonfinite() };
            if model.adapter.is_none() {
                scanned.insert(checkpoint.path().to_owned());
            }
            if let Some(place) = place {
                return Err(SearchError::BadData(format!(
                    "model {}: {place}; a merge would spread it: repair the checkpoint or leave it out",
                    reference(model)
                )));
            }
            content_ids.insert(reference(model), checkpoint.content_id(&cache)?);
            settings_ids.insert(reference(model), checkpoint.settings_id()?);
            opened.push((model, checkpoint));
        }
        checkpoint::align_names(opened.iter_mut().map(|(_, checkpoint)| checkpoint));
        let opened: Vec<(&ModelSource, Arc<Checkpoint>)> =
            opened.into_iter().map(|(model, checkpoint)| (model, Arc::new(checkpoint))).collect();
        let by_reference: BTreeMap<ModelReference, Arc<Checkpoint>> =
            opened.iter().map(|(model, checkpoint)| (reference(model), checkpoint.clone())).collect();
        let pairs: Vec<(&str, &Checkpoint)> =
            opened.iter().map(|(model, checkpoint)| (model.name.as_str(), checkpoint.as_ref())).collect();
        let merger = Arc::new(Merger::new(by_reference, cache, MergerOptions::default())?);
        checkpoint::compare(&pairs, |tensor| merger.may_be_missing(tensor))?;
        let Some((_, first)) = opened.first() else {
            return Err(SearchError::Settings("models.sources is empty".into()));
        };
        let facts = ModelFacts {
            // Soups name no base; the output is stored as the base is all the same.
            dtype: config.output.dtype.or(first.dtype()),
            layers: first.layers(),
            tensors: first.tensors().keys().cloned().collect(),
            ..bare_facts(config, LayerLayout::default())
        };
        let candidate_bytes = merger.required_bytes(&whole_recipe(&facts))?;
        let checkpoints = opened.into_iter().map(|(_, checkpoint)| checkpoint).collect();
        let profiles = OnceLock::new();
        let settings_ids = Arc::new(settings_ids);
        Ok(Self { facts, merger: Some(merger), content_ids, settings_ids, checkpoints, candidate_bytes, profiles })
    }

    /// Where base and sources lie, copies of earlier ones left out, which are never scored; empty without checkpoints.
    pub fn folders(&self) -> Vec<PathBuf> {
        let models = self.facts.base.iter().chain(self.facts.sources.iter().map(|(_, model)| model));
        let mut seen = BTreeSet::new();
        let distinct =
            self.checkpoints.iter().zip(models).filter(|(_, model)| seen.insert(self.content_ids.get(*model)));
        distinct.map(|(checkpoint, _)| checkpoint.path().to_owned()).collect()
    }

    /// A line for every source that has the weights of the base or of an earlier source.
    pub fn copies(&self) -> Vec<String> {
        let base = self.facts.base.iter().map(|base| ("the base".to_owned(), base));
        let sources = self.facts.sources.iter().map(|(name, model)| (format!("source {name}"), model));
        let models: Vec<(String, &ModelReference)> = base.chain(sources).collect();
        let first_sources = usize::from(self.facts.base.is_some());
        let copy = |at: usize| {
            let (name, model) = &models[at];
            let content = self.content_ids.get(*model);
            let (of, _) = models[..at].iter().find(|(_, other)| self.content_ids.get(*other) == content)?;
            Some(format!("{name} is a copy of {of}: they have the same weights"))
        };
        (first_sources..models.len()).filter_map(copy).collect()
    }

    /// What whoever uses a merge of all models should know of it; nothing without checkpoints.
    ///
    /// # Errors
    /// [`SearchError`] where they cannot be merged.
    pub fn notes(&self) -> Result<Vec<String>, SearchError> {
        let Some(merger) = &self.merger else { return Ok(Vec::new()) };
        Ok(merger.notes(&whole_recipe(&self.facts))?)
    }

    /// Makes room for candidates of that many layers, all of them like the largest one.
    ///
    /// # Errors
    /// [`SearchError`] where a layer's size cannot be told.
    pub fn expect_layers(&mut self, layers: usize) -> Result<(), SearchError> {
        let Some(merger) = &self.merger else { return Ok(()) };
        let mut heaviest = (0, 0);
        for layer in 0..self.facts.layers.count {
            heaviest = heaviest.max((merger.required_bytes(&stack_recipe(&self.facts, &[layer]))?, layer));
        }
        let bytes = merger.required_bytes(&stack_recipe(&self.facts, &vec![heaviest.1; layers]))?;
        self.candidate_bytes = self.candidate_bytes.max(bytes);
        Ok(())
    }

    /// How the sources moved from the base, layer by layer; `None` without a base, or where no checkpoint was opened.
    /// Reads all weights, the first time.
    pub fn profiles(&self) -> Option<&[LayerProfile]> {
        self.facts.base.as_ref()?;
        let (base, sources) = self.checkpoints.split_first()?;
        let sources: Vec<&Checkpoint> = sources.iter().map(Arc::as_ref).collect();
        Some(self.profiles.get_or_init(|| layer_profiles(base, &sources)))
    }

    /// How far the sources moved the same way, layer by layer ([`layer_agreements`]); nothing without a base, or where no
    /// checkpoint was opened. Reads some of the weights.
    pub fn agreements(&self) -> Vec<Agreement> {
        let Some((base, sources)) = self.checkpoints.split_first().filter(|_| self.facts.base.is_some()) else {
            return Vec::new();
        };
        let sources: Vec<&Checkpoint> = sources.iter().map(Arc::as_ref).collect();
        layer_agreements(base, &sources)
    }

    fn names_only(config: &RunConfig) -> Self {
        let layers = match config.space.as_ref().map(|space| &space.layers) {
            Some(LayerGrouping::Groups(groups)) if groups.get() > 1 => groups.get(),
            _ => 0,
        };
        let layout = LayerLayout { prefix: "model.layers.".into(), count: layers, ..LayerLayout::default() };
        let models = config.models.base.iter().chain(&config.models.sources);
        let content_ids = models.map(|model| (reference(model), format!("name:{}", model.name))).collect();
        Self {
            facts: bare_facts(config, layout),
            merger: None,
            content_ids,
            settings_ids: Arc::default(),
            checkpoints: Vec::new(),
            candidate_bytes: 0,
            profiles: OnceLock::new(),
        }
    }
}

fn bare_facts(config: &RunConfig, layers: LayerLayout) -> ModelFacts {
    ModelFacts {
        base: config.models.base.as_ref().map(reference),
        sources: config.models.sources.iter().map(|model| (model.name.clone(), reference(model))).collect(),
        layers,
        tensors: Vec::new(),
        dtype: config.output.dtype,
        masks: Masks { kind: MaskKind::Native, seed: config.seed },
        profiles: Vec::new(),
    }
}

fn reference(model: &ModelSource) -> ModelReference {
    ModelReference { location: model.location.clone(), adapter: model.adapter.clone() }
}
