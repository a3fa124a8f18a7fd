//! What can be said on the command line.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::mergekit_flags::MergekitFlags;
use super::quantities::{parse_count, parse_duration, parse_threads};
use crate::checkpoint::Dtype;
use crate::config::RunConfig;

/// Finds the best way to merge a set of fine-tuned language models, and proves that it did.
#[derive(Debug, Parser)]
#[command(name = "evomerge", version, about, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 internal error, 2 usage, 64 no evidence of improvement (with \
    --require-improvement), 65 bad input data, 73 disk full, not writable or in the way, 75 stopped but resumable, 78 bad configuration.")]
pub(super) struct Arguments {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct Common {
    /// Print results and errors only
    #[arg(short, long, global = true, overrides_with = "verbose")]
    pub quiet: bool,
    /// Print more: every evaluation of a search; bytes and speed of a merge
    #[arg(short, long, global = true, action = clap::ArgAction::Count, overrides_with = "quiet")]
    pub verbose: u8,
    /// Print the result as one JSON document on stdout (text and progress go to stderr)
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run or continue a search
    Search(Search),
    /// Run the soup strategies only (uniform and greedy); writes NAME-soup
    Soup(Soup),
    /// Materialize one recipe
    Merge(Merge),
    /// Score one checkpoint with a run's evaluator and tasks
    Evaluate(Evaluate),
    /// Validate a run file and everything it names, without running it
    Check(Check),
    /// Show where a run stands, from another shell
    Status(Status),
    /// Materialize the best model of a run, with recipe and model card
    Export(Export),
    /// Replay recorded scores: what uniform allocation and successive halving would have chosen
    Simulate(Simulate),
    /// List the merge methods with their parameters and ranges
    Methods(Methods),
}

/// Options of the commands that run something.
#[derive(Clone, Debug, Args)]
pub(super) struct RunArguments {
    /// The run file (docs/run-file.md)
    #[arg(value_name = "RUN.toml")]
    pub run_file: PathBuf,
    #[command(flatten)]
    pub results: Results,
    #[command(flatten)]
    pub instead: Instead,
    /// Exit with 64 unless the hold-out shows an improvement over the best baseline
    #[arg(long)]
    pub require_improvement: bool,
    /// Move an existing run of that name to NAME.1 and start anew
    #[arg(long)]
    pub fresh: bool,
}

/// The folder of results where the command line names no other.
pub(super) const RESULTS: &str = "results";

/// The folder of results.
#[derive(Clone, Debug, Args)]
pub(super) struct Results {
    /// Where results go: NAME/ under this folder, which starts at the current directory [default: results]
    #[arg(long = "results", value_name = "DIR")]
    chosen: Option<PathBuf>,
}

impl Results {
    /// Whether the command line names it.
    pub(super) fn is_chosen(&self) -> bool {
        self.chosen.is_some()
    }
}

impl Deref for Results {
    type Target = Path;

    fn deref(&self) -> &Path {
        self.chosen.as_deref().unwrap_or_else(|| Path::new(RESULTS))
    }
}

/// What the command line says instead of the run file.
#[derive(Clone, Debug, Args)]
pub(super) struct Instead {
    /// Evaluations of the whole run, instead of the run file's
    #[arg(long, value_name = "N", value_parser = parse_count::<NonZeroU64>)]
    pub max_evaluations: Option<NonZeroU64>,
    /// Active time of the whole run (`90s`, `30m`, `8h`), instead of the run file's
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub wall_clock: Option<Duration>,
    /// Seed, instead of the run file's
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl Instead {
    /// Puts it in the place of what the run file says.
    pub(super) fn apply(&self, config: &mut RunConfig) {
        if let Some(evaluations) = self.max_evaluations {
            config.budget.evaluations = Some(evaluations.get());
        }
        if self.wall_clock.is_some() {
            config.budget.wall_clock = self.wall_clock;
        }
        if let Some(seed) = self.seed {
            config.seed = seed;
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  evomerge search search-spaces/quickstart.toml\n  \
    evomerge search night.toml --wall-clock 8h --require-improvement\n  \
    evomerge search night.toml            # again: continues where it was")]
pub(super) struct Search {
    #[command(flatten)]
    pub run: RunArguments,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  evomerge soup search-spaces/greedy-soup-sweep.toml\n\n\
    Scores found in NAME's ledger are taken from there and not asked for again.")]
pub(super) struct Soup {
    #[command(flatten)]
    pub run: RunArguments,
}

#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "Examples:\n  evomerge merge results/night/best/recipe.toml --out merged\n  \
    evomerge merge mergekit.yml --out merged --models-dir ~/models --dtype bfloat16\n  \
    evomerge merge config.yaml merged --copy-tokenizer --lazy-unpickle    # as for mergekit-yaml"
)]
pub(super) struct Merge {
    /// A recipe (.toml) or a mergekit configuration (.yml, .yaml)
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Folder of the merged model, as mergekit-yaml takes it: the same as --out
    #[arg(value_name = "OUT", required_unless_present = "out", conflicts_with = "out")]
    pub destination: Option<PathBuf>,
    /// Folder of the merged model
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Where relative model names are looked up [default: the recipe's own folder]
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
    /// Threads; the result does not depend on them [default: all cores]
    #[arg(long, value_name = "N", alias = "num-threads", short_alias = 'j', value_parser = parse_threads)]
    pub threads: Option<NonZeroUsize>,
    /// Seed of sampled masks, instead of the recipe's
    #[arg(long, value_name = "N", alias = "random-seed")]
    pub seed: Option<u64>,
    /// Where sampled masks come from, instead of what the recipe says
    #[arg(long, value_name = "KIND")]
    pub dare_masks: Option<MaskChoice>,
    /// Output dtype, instead of the recipe's `dtype` (float16, bfloat16, float32, float64)
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<Dtype>,
    /// Dtype of the file, instead of the recipe's `out_dtype`
    #[arg(long, value_name = "DTYPE")]
    pub out_dtype: Option<Dtype>,
    /// Largest shard (`5GB`, `500MB`, `2GiB`, or a number of bytes) [default: the shards of the base]
    #[arg(long, value_name = "SIZE", value_parser = super::quantities::parse_size)]
    pub shard_size: Option<u64>,
    /// The same as mergekit writes it (`5B`: 5 billion bytes)
    #[arg(long, value_name = "SIZE", value_parser = super::quantities::parse_mergekit_size, conflicts_with = "shard_size", hide = true)]
    pub out_shard_size: Option<u64>,
    /// Where vocabularies differ, merge the embedding rows that all models have
    #[arg(long, alias = "unsafe-truncate-embeddings", overrides_with = "no_unsafe_truncate_embeddings")]
    pub truncate_embeddings: bool,
    /// The default, as mergekit-yaml calls it
    #[arg(long, hide = true)]
    pub no_unsafe_truncate_embeddings: bool,
    /// The default, as mergekit-yaml calls it
    #[arg(long, hide = true)]
    pub no_quiet: bool,
    /// Write a model card, recipe.toml and mergekit_config.yml into the folder too
    #[arg(long, overrides_with = "no_write_model_card")]
    pub write_model_card: bool,
    /// The default
    #[arg(long, hide = true)]
    pub no_write_model_card: bool,
    /// Replace an existing model, with everything in its folder
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub mergekit: MergekitFlags,
}

impl Merge {
    /// Where the merged model goes.
    pub(super) fn output_folder(&self) -> &Path {
        // One of both is required.
        self.out.as_deref().or(self.destination.as_deref()).unwrap_or_else(|| Path::new(""))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum MaskChoice {
    /// Counter-based, independent of threads, nested in the density
    Native,
    /// The stream that mergekit 0.1.5 draws on a CPU with one thread
    Mergekit,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  evomerge evaluate search-spaces/quickstart.toml --model evals/tiny-llama/base\n  \
    evomerge evaluate night.toml --model merged --json\n  \
    evomerge evaluate night.toml --model merged --samples merged.csv"
)]
pub(super) struct Evaluate {
    /// The run file whose evaluator and tasks are used
    #[arg(value_name = "RUN.toml")]
    pub run_file: PathBuf,
    /// The checkpoint to score: a folder, or a Hugging Face id in the local cache
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// Write the scores sample by sample to a CSV file (task, sample, metric, score), where the evaluator gives them
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  evomerge check night.toml\n  evomerge check night.toml --seed 5 --wall-clock 8h")]
pub(super) struct Check {
    /// The run file
    #[arg(value_name = "RUN.toml")]
    pub run_file: PathBuf,
    /// Where results would go, or are: a run that is there must be one that `search` continues
    #[arg(long, value_name = "DIR", default_value = RESULTS)]
    pub results: PathBuf,
    #[command(flatten)]
    pub instead: Instead,
    /// Check for a search with --fresh: a run that is there plays no part
    #[arg(long)]
    pub fresh: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  evomerge status results/night\n  evomerge status results/night --json")]
pub(super) struct Status {
    /// The run's folder
    #[arg(value_name = "RESULTS_DIR")]
    pub results: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  evomerge export results/night --out merged\n  \
    evomerge export results/night --out other --candidate 3f9a")]
pub(super) struct Export {
    /// The run's folder
    #[arg(value_name = "RESULTS_DIR")]
    pub results: PathBuf,
    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Id (or its beginning) or index of another candidate than the best
    #[arg(long, value_name = "ID")]
    pub candidate: Option<String>,
    /// Replace an existing output folder
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  evomerge simulate scores.csv\n  \
    evomerge simulate results/night/ledger.sqlite --budget 3600,14400 --eta 4 --rungs 3 --json")]
pub(super) struct Simulate {
    /// A CSV file (a header, then one row a candidate: its name, then one score a sample), or a run: its folder, or its ledger.sqlite
    #[arg(value_name = "SCORES")]
    pub scores: PathBuf,
    /// Samples in all, several with commas [default: 10, 20, 50, ... samples a candidate]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub budget: Vec<u64>,
    /// Each rung of halving keeps one candidate of that many
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub eta: usize,
    /// Rungs of halving [default: until eta candidates or fewer are left]
    #[arg(long, value_name = "N", value_parser = parse_count::<NonZeroUsize>)]
    pub rungs: Option<NonZeroUsize>,
    /// Repetitions, each with samples drawn anew
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_count::<NonZeroU32>)]
    pub repetitions: NonZeroU32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Lower scores are better (CSV only)
    #[arg(long)]
    pub minimize: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  evomerge methods\n  evomerge methods ties\n  evomerge methods --json")]
pub(super) struct Methods {
    /// One method only
    #[arg(value_name = "METHOD")]
    pub method: Option<String>,
}
