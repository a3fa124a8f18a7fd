//! The search space: genes, genomes, and the total map from a genome to a recipe.
//!
//! What varies over layer groups makes the recipe take the `slices` form, one slice a group: mergekit takes embeddings
//! from the first slice and final norm and head from the last one, which is the grouping that we want. With
//! `interpolate` the recipe keeps the `models` form and has gradients. What varies over modules is written with
//! filters. With `[space.stack]` genes decide which blocks of layers a recipe is stacked from.

mod baseline;
mod decode;
mod gene;
mod layers;
mod model_stock;
#[cfg(test)]
mod model_stock_tests;
mod plan;
mod prior;
mod stack;
#[cfg(test)]
mod stack_tests;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Dtype, LayerLayout};
use crate::config::{GeneConfig, GenePer, LayerGrouping, SpaceConfig};
use crate::exit::ExitCode;
use crate::merge::structure::LayerProfile;
use crate::merge::{MethodSpecification, find_method};
use crate::recipe::{Masks, ModelReference, RecipeError};
use layers::LayerGroups;
use plan::{Place, Plan};
use stack::Stack;

pub use baseline::{Encoded, base_recipe, soup_recipe, stack_recipe, whole_recipe};
pub use gene::Levels;

/// A point of the search space: one number in `[0, 1]` a gene, in gene order. [`Gene::value`] gives its meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Genome(pub Vec<f64>);

/// What a gene's number in `[0, 1]` stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum GeneKind {
    /// `low + u (high - low)`, or the same in the logarithm.
    Real {
        /// Value at `u = 0`.
        low: f64,
        /// Value at `u = 1`.
        high: f64,
        /// Whether the logarithm is divided evenly; `low` is above 0 then.
        log: bool,
    },
    /// An integer of `low..=high`, each with an equal share of `[0, 1]`.
    Integer {
        /// Least value.
        low: i64,
        /// Greatest value.
        high: i64,
    },
    /// One of the choices, each with an equal share of `[0, 1]`.
    Categorical {
        /// What tables call them, in order.
        choices: Vec<String>,
    },
}

/// One searched quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Gene {
    /// `weight.expert-add.g0.mlp`: parameter, then model, layer group and module as far as the gene has them.
    pub name: String,
    /// The parameter that the gene sets (`weight`, `density`, ...; `method`, `pair` and `source` for the categorical
    /// genes; `stack.1` and `scale.1` for the first pass of a stack).
    pub parameter: String,
    /// What its number stands for.
    pub kind: GeneKind,
    /// Where a search without better knowledge starts, in `[0, 1]`.
    pub init: f64,
    /// Index into the run's sources.
    pub model: Option<usize>,
    /// The layer group, from 0, that it is for; `None`: all of them.
    pub layer_group: Option<usize>,
    /// Index into the run's module filters; the number of filters stands for "everything else".
    pub module: Option<usize>,
    /// Indices into the space's methods for which this gene has an effect; empty: all of them.
    pub methods: Vec<usize>,
}

/// A gene's decoded value.
#[derive(Clone, Debug, PartialEq)]
pub enum GeneValue {
    /// Of a [`GeneKind::Real`].
    Real(f64),
    /// Of a [`GeneKind::Integer`].
    Integer(i64),
    /// Of a [`GeneKind::Categorical`]: index into its choices.
    Choice(usize),
}

/// What the space must know of the run's models.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// The base model, where the run has one.
    pub base: Option<ModelReference>,
    /// Name and reference of each source, in the run's order.
    pub sources: Vec<(String, ModelReference)>,
    /// Which tensors are layers, and which come before and behind them.
    pub layers: LayerLayout,
    /// Names of all tensors; may be empty where no checkpoint is opened, and then the layout is taken as unknown.
    pub tensors: Vec<String>,
    /// Output dtype of every recipe.
    pub dtype: Option<Dtype>,
    /// Kind and seed of the masks of every recipe.
    pub masks: Masks,
    /// How the sources moved from the base, layer by layer; needed only where a gene has a prior from conflicts.
    pub profiles: Vec<LayerProfile>,
}

/// A space that these models cannot be searched in.
#[derive(Debug, thiserror::Error)]
pub enum SpaceError {
    /// There are fewer layers than groups.
    #[error("`space.layer_groups`: {groups} layer groups for {layers} layers; ask for at most {layers}")]
    TooManyGroups {
        /// Groups asked for.
        groups: usize,
        /// Layers that the models have.
        layers: usize,
    },
    /// A stack of models without numbered layers.
    #[error("`space.stack`: the models have no numbered layers that could be stacked")]
    NothingToStack,
    /// The longest block of a stack would never fit.
    #[error(
        "`space.stack.max_layers` is {most}, but the longest block has {longest} layers; ask for at least {longest}"
    )]
    LongBlock {
        /// The most layers that a recipe may have.
        most: usize,
        /// Layers of the longest block.
        longest: usize,
    },
    /// Factors for tensors that no layer has.
    #[error(
        "`space.stack.scale_modules`: no layer has a tensor with {} in its name; name what writes to the residual stream of \
         these models",
        modules.iter().map(|module| format!("{module:?}")).collect::<Vec<_>>().join(" or ")
    )]
    NothingToScale {
        /// The filters, none of which matches.
        modules: Vec<String>,
    },
    /// A method that this version does not have.
    #[error("`space.method`: unknown merge method `{name}`")]
    UnknownMethod {
        /// As the space names it.
        name: String,
    },
    /// A method's recipes are not valid: the number of models, the base or a parameter does not fit.
    #[error("`space`: the method {method} cannot be used with these models: {source}")]
    Recipe {
        /// The method.
        method: String,
        /// What is wrong with its recipes.
        source: RecipeError,
    },
}

impl SpaceError {
    /// What the process tells its caller: always a bad configuration.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::TooManyGroups { .. }
            | Self::NothingToStack
            | Self::LongBlock { .. }
            | Self::NothingToScale { .. }
            | Self::UnknownMethod { .. }
            | Self::Recipe { .. } => ExitCode::BadConfiguration,
        }
    }
}

/// All recipes that a search can propose.
#[derive(Clone, Debug)]
pub struct SearchSpace {
    genes: Vec<Gene>,
    methods: Vec<String>,
    specifications: Vec<&'static MethodSpecification>,
    plans: Vec<Plan>,
    method_gene: Option<usize>,
    pair_gene: Option<usize>,
    source_gene: Option<usize>,
    /// Pairs of sources, in the order of the choices of `pair`.
    pairs: Vec<(usize, usize)>,
    modules: Vec<String>,
    groups: LayerGroups,
    interpolate: bool,
    stack: Option<Stack>,
    /// Tensors that a gradient needs entries for by name, longest first, and the group that gives their values.
    named_tensors: Vec<(String, TensorGroup)>,
    facts: ModelFacts,
    notices: Vec<String>,
}

impl SearchSpace {
    /// Lays the space out over these models.
    ///
    /// # Errors
    /// When there are more layer groups than layers, or a method's recipes would not be valid for these models.
    pub fn new(config: &SpaceConfig, facts: &ModelFacts) -> Result<Self, SpaceError> {
        let find = |name: &String| find_method(name).ok_or_else(|| SpaceError::UnknownMethod { name: name.clone() });
        let specifications = config.methods.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let known = !facts.tensors.is_empty() || facts.layers.count > 0;
        let groups = LayerGroups::new(&config.layers, &facts.layers, known)?;
        let mut layout = plan::build(config, &specifications, facts, &groups);
        let stack = config.stack.as_ref().map(|stack| Stack::new(stack, &specifications, facts, &groups));
        let mut stack = stack.transpose()?;
        if let Some(stack) = &mut stack {
            stack.add_genes(&mut layout.genes, facts);
        }
        let space = Self {
            notices: notices(config, facts, known, &layout.plans).into_iter().chain(layout.prior_notices).collect(),
            genes: layout.genes,
            methods: config.methods.clone(),
            specifications,
            plans: layout.plans,
            method_gene: layout.method_gene,
            pair_gene: layout.pair_gene,
            source_gene: layout.source_gene,
            pairs: layout.pairs,
            modules: config.modules.clone(),
            groups,
            interpolate: config.interpolate,
            stack,
            named_tensors: named_tensors(facts),
            facts: facts.clone(),
        };
        space.check_methods()?;
        Ok(space)
    }

    fn check_methods(&self) -> Result<(), SpaceError> {
        for (index, method) in self.methods.iter().enumerate() {
            let mut genome = self.init();
            if let Some(gene) = self.method_gene {
                genome.0[gene] = self.genes[gene].unit(&GeneValue::Choice(index));
            }
            let check = self.decode(&genome).validate();
            check.map_err(|source| SpaceError::Recipe { method: method.clone(), source })?;
        }
        Ok(())
    }

    /// All genes, in genome order.
    pub fn genes(&self) -> &[Gene] {
        &self.genes
    }

    /// Number of layer groups.
    #[cfg(test)]
    fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Fewest and most layers of a recipe, where the space stacks layers.
    pub fn layer_counts(&self) -> Option<(usize, usize)> {
        self.stack.as_ref().map(Stack::layer_counts)
    }

    /// What the user should know of the space, one line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Where a search without better knowledge starts: every gene's `init`.
    pub fn init(&self) -> Genome {
        Genome(self.genes.iter().map(|gene| gene.init).collect())
    }

    fn plan(&self, parameter: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.parameter == parameter)
    }

    /// Every place of a source: each module of each layer group.
    fn places(&self, source: usize) -> impl Iterator<Item = Place> + use<> {
        let (groups, modules) = (self.groups.len(), self.module_count());
        (0..groups).flat_map(move |group| (0..modules).map(move |module| Place { source, group, module }))
    }

    /// Modules that this space tells apart, everything else being one.
    fn module_count(&self) -> usize {
        self.modules.len() + 1
    }
}

fn notices(config: &SpaceConfig, facts: &ModelFacts, known: bool, plans: &[Plan]) -> Vec<String> {
    let one = LayerGrouping::Groups(std::num::NonZeroUsize::MIN);
    let mut notices = Vec::new();
    if facts.layers.count == 0 && known {
        notices.push("the models have no numbered layers, so all tensors are one layer group".to_owned());
    } else if config.stack.is_none() && config.layers != one && !plans.iter().any(Plan::per_group) {
        let why = "there is one layer group, or no gene varies per \"layer_group\"";
        notices.push(format!("{why}: the layer groups have no effect"));
    }
    if config.layers == one {
        let varies =
            |gene: &GeneConfig| matches!(gene, GeneConfig::Search(gene) if gene.per.contains(&GenePer::LayerGroup));
        let genes: Vec<&str> =
            config.genes.iter().filter(|(_, gene)| varies(gene)).map(|(name, _)| name.as_str()).collect();
        if !genes.is_empty() {
            let genes = genes.join(", ");
            notices.push(format!(
                "{genes}: per \"layer_group\" has no effect with one layer group; `layer_groups` or `granularity` makes more"
            ));
        }
    }
    if !config.modules.is_empty() && !plans.iter().any(Plan::per_module) {
        notices.push("no gene varies per \"module\", so `modules` has no effect".to_owned());
    }
    for module in config.modules.iter().filter(|_| !facts.tensors.is_empty()) {
        if !facts.tensors.iter().any(|tensor| tensor.contains(module.as_str())) {
            notices.push(format!("no tensor's name contains the module filter {module:?}"));
        }
    }
    notices
}

/// The group that gives a tensor its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TensorGroup {
    First,
    Last,
    /// That of its layer, or the first where it has none.
    OfLayer,
}

/// The tensors outside the layers of which gradients would not give their group's value: those of the last group, and
/// those of the first that stand in another tower. With them all tensors whose names contain one of theirs: a filter by
/// the shorter name would match them too. Longest first, so that each name is caught by its own entry.
fn named_tensors(facts: &ModelFacts) -> Vec<(String, TensorGroup)> {
    let towers = facts.layers.other_towers(facts.tensors.iter().map(String::as_str));
    let in_tower = |name: &&String| towers.iter().any(|tower| tower.block_of(name).is_some());
    let first = facts.layers.first.iter().filter(in_tower).map(|name| (name.clone(), TensorGroup::First));
    let last = facts.layers.last.iter().map(|name| (name.clone(), TensorGroup::Last));
    let mut named: Vec<(String, TensorGroup)> = last.chain(first).collect();
    let is_named = |tensor: &String| named.iter().any(|(name, _)| name == tensor);
    let is_hidden =
        |tensor: &&String| !is_named(tensor) && named.iter().any(|(name, _)| tensor.contains(name.as_str()));
    let hidden: Vec<_> =
        facts.tensors.iter().filter(is_hidden).map(|name| (name.clone(), TensorGroup::OfLayer)).collect();
    named.extend(hidden);
    named.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    named
}
