//! The run file: what a search is told to do (docs/run-file.md). Types here are resolved: paths absolute or Hugging
//! Face ids, defaults filled in, unknown keys refused.

mod duration;
mod error;
mod evaluator;
mod identity;
mod kinds;
mod models;
mod read;
mod space;
mod stack;
mod tasks;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::checkpoint::Dtype;

pub use duration::parse as parse_duration;
pub use error::ConfigError;
pub(crate) use evaluator::{MOST_THREADS, endpoint_url, program_of};
pub use identity::{Difference, differences, makes_models};
pub use kinds::{StrategyKind, TestFunction};

/// A model as the run file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSource {
    /// Folder name (on a clash with its parent's): used in gene names, origins and tables.
    pub name: String,
    /// The name as the run file has it, for messages; paths in recipes are `location`.
    pub written: String,
    /// Absolute path, or a Hugging Face id where no such path exists.
    pub location: String,
    /// Absolute path or Hugging Face id of a LoRA adapter that is laid over the model at `location`.
    pub adapter: Option<String>,
}

/// `[models]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelsConfig {
    /// The common ancestor. `None`: methods that merge task vectors cannot be used, and the first source gives
    /// configuration and tokenizer.
    pub base: Option<ModelSource>,
    /// At least one.
    pub sources: Vec<ModelSource>,
}

/// How one parameter's gene is declared in `[space.genes]`.
#[derive(Clone, Debug, PartialEq)]
pub enum GeneConfig {
    /// Frozen to a number.
    Number(f64),
    /// Frozen to a truth value.
    Bool(bool),
    /// Searched inside a range.
    Search(GeneSearch),
    /// Tied to another gene.
    SameAs(String),
}

/// A searched gene: `{ low, high, per, scale, integer, init, models }`.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneSearch {
    /// Least value.
    pub low: f64,
    /// Greatest value, above `low`.
    pub high: f64,
    /// What has a value of its own, each once; empty: one value for all.
    pub per: Vec<GenePer>,
    /// Whether the logarithm is searched; `low` is above 0 then.
    pub log: bool,
    /// Whole numbers only; not together with `log`.
    pub integer: bool,
    /// Where the search starts, inside the range. `None`: an equal share for `weight`, else the method's default or the
    /// middle.
    pub init: Option<f64>,
    /// Single models frozen to a number, by name.
    pub models: BTreeMap<String, f64>,
    /// How strongly conflicts between sources widen and narrow the range; 0: not at all.
    pub conflict_prior: f64,
}

/// What a parameter gets a gene of its own for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GenePer {
    /// `"model"`: each source.
    Model,
    /// `"layer_group"`: each group of [`SpaceConfig::layers`].
    LayerGroup,
    /// `"module"`: each of [`SpaceConfig::modules`], and everything else.
    Module,
}

impl GenePer {
    const ALL: [Self; 3] = [Self::Model, Self::LayerGroup, Self::Module];

    /// The word in the run file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::LayerGroup => "layer_group",
            Self::Module => "module",
        }
    }
}

/// How layers are grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerGrouping {
    /// This number of groups.
    Groups(NonZeroUsize),
    /// Groups of this number of layers.
    Granularity(NonZeroUsize),
    /// Groups that the weights suggest.
    Auto,
    /// What [`Self::Auto`] came to: the first layer of each group, ascending from 0.
    Blocks(Vec<usize>),
}

/// `[space]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SpaceConfig {
    /// At least one; more than one makes the method a gene.
    pub methods: Vec<String>,
    /// The layer groups, which are also the blocks of a stack; one group by default.
    pub layers: LayerGrouping,
    /// Substring filters; everything else is one more group.
    pub modules: Vec<String>,
    /// Whether values change linearly over the layers instead of from group to group.
    pub interpolate: bool,
    /// In file order.
    pub genes: Vec<(String, GeneConfig)>,
    /// Layer stacking; `None`: every recipe has the sources' layers in their order.
    pub stack: Option<StackConfig>,
}

impl SpaceConfig {
    /// Whether the range of a gene depends on conflicts between the sources.
    pub fn has_conflict_prior(&self) -> bool {
        let has = |gene: &GeneConfig| matches!(gene, GeneConfig::Search(search) if search.conflict_prior != 0.0);
        self.genes.iter().any(|(_, gene)| has(gene))
    }
}

/// `[space.stack]`: which blocks of layers a model is stacked from, and in which order (data-flow space, Akiba et al.
/// 2024).
#[derive(Clone, Debug, PartialEq)]
pub struct StackConfig {
    /// How often all blocks are laid out behind each other.
    pub passes: NonZeroUsize,
    /// Most layers that a recipe may have; `None`: as many as the passes have.
    pub max_layers: Option<NonZeroUsize>,
    /// What can be stacked: follows from the method and `with_sources`.
    pub blocks: StackBlocks,
    /// A factor for each block, of sources only; `None`: blocks stay as they are.
    pub scale: Option<StackScale>,
}

/// Which models the blocks of a stack come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackBlocks {
    /// The sources as they are (with `passthrough`).
    Sources,
    /// The merge of the sources by the space's method.
    Merged,
    /// The merge, and beside it the sources as they are (`with_sources`).
    MergedAndSources,
}

impl StackBlocks {
    /// Whether the sources' own blocks can be stacked.
    pub const fn has_sources(self) -> bool {
        matches!(self, Self::Sources | Self::MergedAndSources)
    }

    /// Whether the merged model's blocks can be stacked.
    pub const fn has_merged(self) -> bool {
        matches!(self, Self::Merged | Self::MergedAndSources)
    }
}

/// The factor of a block's contribution to the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StackScale {
    /// Least factor; 0.5 by default.
    pub low: f64,
    /// Greatest factor, above `low`; 1.5 by default.
    pub high: f64,
    /// Where the search starts, inside the range; by default 1, or the end that is nearest to it.
    pub init: f64,
    /// Substrings of the names of tensors that write to the residual stream: these are scaled.
    pub modules: Vec<String>,
}

/// `[strategy]`: the kind and its settings, checked by the strategy itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StrategyConfig {
    /// What proposes candidates; the portfolio by default.
    pub kind: StrategyKind,
    /// Most evaluations that are open at a time, up to 10,000. `None`: decided at the first start, by what the evaluator
    /// takes.
    pub look_ahead: Option<NonZeroUsize>,
    /// All other keys of the table.
    pub settings: toml::Table,
}

/// `[budget]`: at least one limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BudgetConfig {
    /// Search evaluations, at least 1; baselines and failed ones count, the hold-out does not.
    pub evaluations: Option<u64>,
    /// Active time, summed over restarts; what is in flight at the limit may finish.
    pub wall_clock: Option<Duration>,
    /// Samples asked for, at least 1; turns racing on.
    pub samples: Option<u64>,
}

/// `[racing]`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RacingConfig {
    /// Fidelities, the full one included; 1 turns racing off. `None`: as many as leave the first enough samples.
    pub rungs: Option<u32>,
    /// Each rung has this many times the samples of the one before, and one in this many candidates goes on.
    pub reduction: u32,
}

impl Default for RacingConfig {
    fn default() -> Self {
        Self { rungs: None, reduction: 4 }
    }
}

/// `[repeats]`: which candidates are scored again on the samples that they were scored on before.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct RepeatsConfig {
    /// Finalists and best baseline, once more before the verdict. `None`: unless the evaluator is deterministic.
    pub finalists: Option<bool>,
    /// Evaluations in full between two scorings of the sentinel; 0: never. `None`: 50, or never
    /// where the evaluator is deterministic.
    pub sentinel: Option<u64>,
}

/// Where the bearer token for eval endpoints is. The run file never holds the token itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// `token_env`: name of the environment variable that holds it.
    Environment(String),
    /// `token_file`: a file that holds it, mode 0600.
    File(PathBuf),
}

/// What repeated timeouts of one candidate come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// The evaluation has failed: no fitness.
    #[default]
    Fail,
    /// The candidate is infeasible: worst fitness.
    Worst,
}

impl OnTimeout {
    /// Both, in the order in which messages list them.
    pub const ALL: [Self; 2] = [Self::Fail, Self::Worst];

    /// The word in the run file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Worst => "worst",
        }
    }
}

/// `[evaluator]` of kind `http`.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpConfig {
    /// Base URLs, each once and without a slash at the end; at least one.
    pub endpoints: Vec<String>,
    /// `None`: requests carry no token.
    pub token: Option<TokenSource>,
    /// Sends the token over plain http off loopback.
    pub allow_insecure_token: bool,
    /// Evaluations at once, an endpoint.
    pub in_flight: NonZeroUsize,
    /// Endpoints whose fingerprints differ are taken as equivalent.
    pub allow_different_fingerprints: bool,
    /// What repeated timeouts mean; no fitness by default.
    pub on_timeout: OnTimeout,
}

/// `[evaluator]` of kind `command`.
#[derive(Clone, Debug, PartialEq)]
pub struct CommandConfig {
    /// `{candidate_dir}`, `{request_file}`, `{result_file}`, `{result_dir}`, `{recipe_file}`, `{slot}`, `{seed}`,
    /// `{replicate}` are replaced.
    pub argv: Vec<String>,
    /// Programs at once; 1 by default.
    pub in_flight: NonZeroUsize,
    /// Part of the fingerprint: change it when the program's scores change.
    pub version: Option<String>,
    /// The same candidate always gets the same scores.
    pub deterministic: bool,
    /// Working directory of the program: the run file's folder.
    pub directory: PathBuf,
}

/// `[evaluator]` of kind `function`: closed-form landscapes, noise, latency and faults to order.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionConfig {
    /// The shape of the landscape.
    pub function: TestFunction,
    /// Standard deviation of the noise on each sample's score.
    pub noise: f64,
    /// Samples a task has, from 1 to 10,000,000.
    pub samples: u64,
    /// Time that an evaluation takes; none by default.
    pub latency: Duration,
    /// Extra latency, drawn uniformly up to this.
    pub latency_jitter: Duration,
    /// Share of candidates that are infeasible by themselves.
    pub infeasible_rate: f64,
    /// Share of attempts that fail as an endpoint would.
    pub fault_rate: f64,
    /// Evaluations at once; 1 by default.
    pub in_flight: NonZeroUsize,
}

/// `[evaluator]` of kind `native`.
#[derive(Clone, Debug, PartialEq)]
pub struct NativeConfig {
    /// Threads; scores do not depend on it. `None`: all cores.
    pub threads: Option<NonZeroUsize>,
    /// Prompts decoded together at most.
    pub batch: NonZeroUsize,
    /// Longest answer in tokens, where a task says nothing else; 64 by default.
    pub max_new_tokens: usize,
}

/// Limits and patience of an evaluator, from the run file.
#[derive(Clone, Debug, PartialEq)]
pub struct Patience {
    /// One evaluation, from request to answer.
    pub timeout: Duration,
    /// How long a start waits for an endpoint that is down.
    pub startup_timeout: Duration,
    /// How long a run waits when nothing answers any more.
    pub max_outage: Duration,
    /// Attempts an evaluation gets that count.
    pub max_attempts: u32,
}

/// `[evaluator]`.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluatorConfig {
    /// What scores, with the settings of its kind.
    pub kind: EvaluatorKind,
    /// How long an answer may take and how often it is asked for.
    pub patience: Patience,
}

/// The kinds of evaluator.
#[derive(Clone, Debug, PartialEq)]
pub enum EvaluatorKind {
    /// Llama-family models on the CPU, without a server.
    Native(NativeConfig),
    /// Servers that speak the eval protocol.
    Http(HttpConfig),
    /// A program, started anew for every attempt.
    Command(CommandConfig),
    /// A closed-form landscape over the genome: no model is opened.
    Function(FunctionConfig),
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Higher scores are better.
    Maximize,
    /// Lower scores are better.
    Minimize,
}

impl Goal {
    const ALL: [Self; 2] = [Self::Maximize, Self::Minimize];

    /// The word in the run file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Maximize => "maximize",
            Self::Minimize => "minimize",
        }
    }
}

/// One of `[[tasks]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskConfig {
    /// Unique; the name by which an `http` evaluator knows the task.
    pub name: String,
    /// JSON-lines file, for `native`; other evaluators do not use it.
    pub data: Option<PathBuf>,
    /// Which number counts. `None`: the first that the evaluator lists (`score` of a `command`).
    pub metric: Option<String>,
    /// Share in the objective, 1 by default; a negative one turns the direction, and not all may be 0.
    pub weight: f64,
    /// `None`: as the evaluator's `higher_is_better` says.
    pub goal: Option<Goal>,
    /// Longest answer in tokens. `None`: the evaluator's own limit.
    pub max_new_tokens: Option<usize>,
    /// Uses the first samples only (of a fixed permutation); from 1 to 2^40.
    pub limit: Option<u64>,
}

/// Where the sealed hold-out comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum HoldoutSource {
    /// Other data, by task name (native).
    Data(BTreeMap<String, PathBuf>),
    /// Other tasks of the same evaluator, by task name.
    Tasks(BTreeMap<String, String>),
    /// The same tasks on other endpoints.
    Endpoints(Vec<String>),
    /// This share of each task's samples, split by hash of (seed, task, sample id).
    Fraction(f64),
}

/// `[holdout]`.
#[derive(Clone, Debug, PartialEq)]
pub struct HoldoutConfig {
    /// Where its samples come from.
    pub source: HoldoutSource,
    /// Best candidates scored on the hold-out (default 5).
    pub finalists: NonZeroUsize,
}

/// `[candidates]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidatesConfig {
    /// `None`: RAM disk when it fits, else the run's folder.
    pub dir: Option<PathBuf>,
    /// Candidates on disk at once. `None`: one more than the evaluator takes at a time.
    pub slots: Option<NonZeroUsize>,
}

/// `[output]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputConfig {
    /// Type of the weights that are written. `None`: the base's, else the first source's.
    pub dtype: Option<Dtype>,
}

/// A whole run file.
#[derive(Clone, Debug, PartialEq)]
pub struct RunConfig {
    /// Also the folder under the results root: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// Every random choice of the run follows from it, masks included; 0 by default.
    pub seed: u64,
    /// What is merged.
    pub models: ModelsConfig,
    /// What is searched. `None`: only soups can be made.
    pub space: Option<SpaceConfig>,
    /// How it is searched.
    pub strategy: StrategyConfig,
    /// When the search stops.
    pub budget: BudgetConfig,
    /// `None`: racing only with a budget of samples.
    pub racing: Option<RacingConfig>,
    /// What is scored again, outside the budget.
    pub repeats: RepeatsConfig,
    /// What scores a candidate.
    pub evaluator: EvaluatorConfig,
    /// What it is scored on: at least one, names unique, not all with a weight of 0.
    pub tasks: Vec<TaskConfig>,
    /// Samples that are kept sealed for the verdict. `None`: the verdict can only be `no_holdout`.
    pub holdout: Option<HoldoutConfig>,
    /// Where candidates lie while they are evaluated.
    pub candidates: CandidatesConfig,
    /// How models are written.
    pub output: OutputConfig,
    /// The file's text, frozen into the run's folder.
    pub text: String,
    /// The file's folder: relative paths start here.
    pub directory: PathBuf,
}
