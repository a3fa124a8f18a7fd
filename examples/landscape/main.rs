//! Runs a strategy on the digits merge landscapes, in process: our merge core, a forward pass of the small network, one
//! JSON line a run. docs/search.md has the commands; scripts/digits_images.py prepares the images.
//!
//! `landscape --zoo evals/digits/tasks --images tasks.safetensors --space dare8 --strategy portfolio --seeds 0-9
//! --budget 1000`
//!
//! With `--listen` it answers an optimizer of another program instead (scripts/landscape_peers.py): a line with the
//! names of the genes first, then one line for each line `{"genes": [numbers from 0 to 1], "split": "validation" or
//! "test"}`.

mod network;

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Tensor};
use clap::Parser;
use evomerge::config::{RunConfig, StrategyConfig, StrategyKind};
use evomerge::merge::{MergeOptions, Merger, WriteMode};
use evomerge::recipe::Recipe;
use evomerge::score::ObjectiveTask;
use evomerge::scores::Status;
use evomerge::scores::{MetricValue, PerSample, SampleId, TaskScores};
use evomerge::search::{Models, seed_genomes};
use evomerge::space::{Genome, SearchSpace, base_recipe, soup_recipe};
use evomerge::strategy::{self, Ask, Content, Landscape, Outcome, Placement, Setup, Strategy};

/// The best so far is reported at these numbers of evaluations.
const BUDGETS: [u64; 6] = [50, 100, 200, 300, 500, 1000];
/// The task of a zoo that has only one.
const ONLY_TASK: &str = "digits";

type Failure = Box<dyn Error>;

/// Runs a strategy on a merge landscape of the digits zoo.
#[derive(Parser)]
struct Arguments {
    /// Folder with base and experts.
    #[arg(long)]
    zoo: PathBuf,
    /// Images and labels, made by scripts/digits_images.py.
    #[arg(long)]
    images: PathBuf,
    /// dare8: dare_ties, weight and density a source; dare24 and dare48: the same in each of three or six layer groups;
    /// ties24 and ties48: so with ties; arithmetic12: task_arithmetic, a weight a source and layer group; slerp6: slerp
    /// of the first two experts, a t a layer; soup: linear, a weight a source, for the zoos with one task; mixed17: the
    /// method (task_arithmetic, ties or dare_ties), a weight a source and layer group, a density a source.
    #[arg(long, value_parser = ["dare8", "ties24", "dare24", "arithmetic12", "ties48", "dare48", "slerp6", "soup", "mixed17"])]
    space: String,
    /// A `[strategy]` table, or only its kind.
    #[arg(long, default_value = "portfolio")]
    strategy: String,
    /// First and last seed.
    #[arg(long, default_value = "0-9")]
    seeds: String,
    #[arg(long, default_value_t = 1000)]
    budget: u64,
    /// As a run with one evaluator at a time has it.
    #[arg(long, default_value_t = 2)]
    look_ahead: u64,
    /// Candidates are written here.
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
    /// Scores genomes that come in on the standard input.
    #[arg(long)]
    listen: bool,
}

/// A genome to be scored for another program.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    genes: Vec<f64>,
    split: Split,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Split {
    Validation,
    Test,
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let bench = Bench::open(&arguments)?;
    if arguments.listen {
        return bench.listen();
    }
    let (first, last) = arguments.seeds.split_once('-').unwrap_or((&arguments.seeds, &arguments.seeds));
    for seed in first.parse::<u64>()?..=last.parse()? {
        let line = bench.run(&arguments, seed)?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// The run file of a landscape.
fn run_file(zoo: &Path, space: &str) -> Result<RunConfig, Failure> {
    let weights_and_densities = |groups: usize, densities: bool| {
        let per = if groups > 1 { "[\"model\", \"layer_group\"]" } else { "[\"model\"]" };
        let gene = format!("{{ low = 0.0, high = 1.0, per = {per} }}");
        let density = if densities { format!("density = {gene}\n") } else { String::new() };
        format!("layer_groups = {groups}\n[space.genes]\nweight = {gene}\n{density}lambda = 1.0\nnormalize = false\n")
    };
    let (method, rest) = match space {
        "mixed17" => (
            "task_arithmetic\", \"ties\", \"dare_ties",
            "layer_groups = 3\n[space.genes]\nweight = { low = 0.0, high = 1.0, per = [\"model\", \"layer_group\"] }\n\
             density = { low = 0.0, high = 1.0, per = [\"model\"] }\nlambda = 1.0\nnormalize = false\n"
                .to_owned(),
        ),
        "dare8" => ("dare_ties", weights_and_densities(1, true)),
        "dare24" => ("dare_ties", weights_and_densities(3, true)),
        "dare48" => ("dare_ties", weights_and_densities(6, true)),
        "ties48" => ("ties", weights_and_densities(6, true)),
        "arithmetic12" => ("task_arithmetic", weights_and_densities(3, false)),
        "slerp6" => (
            "slerp",
            "layer_groups = 6\n[space.genes]\nt = { low = 0.0, high = 1.0, per = [\"layer_group\"] }\n".to_owned(),
        ),
        "soup" => ("linear", "[space.genes]\nweight = { low = 0.0, high = 1.0, per = [\"model\"] }\n".to_owned()),
        _ => ("ties", weights_and_densities(3, true)),
    };
    let (base, mut sources) = if space == "soup" {
        ("", models(&zoo.join("models"), "models/")?)
    } else {
        ("base = \"base\"\n", models(zoo, "")?.into_iter().filter(|name| name.starts_with("expert-")).collect())
    };
    sources.truncate(if space == "slerp6" { 2 } else { usize::MAX });
    let text = format!(
        "name = \"landscape\"\nseed = 0\n[models]\n{base}sources = {sources:?}\n[space]\nmethod = [\"{method}\"]\n{rest}\
         [budget]\nevaluations = 1000\n[evaluator]\nkind = \"function\"\nname = \"sphere\"\n[[tasks]]\nname = \"t\"\n\
         [output]\ndtype = \"float32\"\n"
    );
    Ok(RunConfig::parse(&text, &std::path::absolute(zoo)?)?)
}

/// The names of what is in a folder, in order, with a prefix.
fn models(folder: &Path, prefix: &str) -> Result<Vec<String>, Failure> {
    let entries = std::fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = entries.map(|name| format!("{prefix}{name}")).collect();
    names.sort();
    Ok(names)
}

/// The images of one task in one split.
struct Images {
    task: String,
    pixels: Tensor,
    labels: Vec<u8>,
}

struct Bench {
    models: Models,
    merger: Arc<Merger>,
    space: Arc<SearchSpace>,
    validation: Vec<Images>,
    test: Vec<Images>,
    folder: PathBuf,
}

/// What one candidate scored: the mean over the tasks, and each task's hits.
struct Scores {
    mean: f64,
    hits: Vec<Vec<f64>>,
}

impl Bench {
    fn open(arguments: &Arguments) -> Result<Self, Failure> {
        let config = run_file(&arguments.zoo, &arguments.space)?;
        let models = Models::open(&config, true)?;
        let merger = models.merger.clone().ok_or("no checkpoints")?;
        let space = config.search_space()?.ok_or("no space")?;
        let folder = arguments.scratch.join(format!("landscape-evomerge-{}", std::process::id()));
        let bytes = std::fs::read(&arguments.images)?;
        Ok(Self {
            space: Arc::new(SearchSpace::new(space, &models.facts)?),
            merger,
            models,
            validation: images(&bytes, "val")?,
            test: images(&bytes, "test")?,
            folder,
        })
    }

    fn recipe(&self, content: &Content) -> Result<Recipe, Failure> {
        Ok(match content {
            Content::Base => base_recipe(&self.models.facts).ok_or("no base")?,
            Content::Soup(members) => soup_recipe(&self.models.facts, members),
            Content::Genome(genome) => self.space.decode(genome),
        })
    }

    fn score(&self, content: &Content, images: &[Images]) -> Result<Scores, Failure> {
        let options = MergeOptions { mode: WriteMode::Replace { durable: false }, ..MergeOptions::default() };
        self.merger.materialize(&self.recipe(content)?, &self.folder, &options)?;
        let weights = candle_core::safetensors::load(self.folder.join("model.safetensors"), &Device::Cpu)?;
        let hits: Vec<Vec<f64>> = images.iter().map(|images| images.hits(&weights)).collect::<Result<_, _>>()?;
        let accuracy = |hits: &Vec<f64>| hits.iter().sum::<f64>() / hits.len() as f64;
        Ok(Scores { mean: hits.iter().map(accuracy).sum::<f64>() / hits.len() as f64, hits })
    }

    fn listen(&self) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let names: Vec<&str> = self.space.genes().iter().map(|gene| gene.name.as_str()).collect();
        writeln!(out, "{}", serde_json::json!({ "genes": names }))?;
        out.flush()?;
        for line in std::io::stdin().lock().lines() {
            let question: Question = serde_json::from_str(&line?)?;
            let in_range = |value: &f64| (0.0..=1.0).contains(value);
            if question.genes.len() != names.len() || !question.genes.iter().all(in_range) {
                return Err(format!("expected {} numbers from 0 to 1", names.len()).into());
            }
            let images = match question.split {
                Split::Validation => &self.validation,
                Split::Test => &self.test,
            };
            let scores = self.score(&Content::Genome(Genome(question.genes)), images)?;
            let accuracies = images.iter().zip(&scores.hits);
            let tasks: BTreeMap<&str, f64> = accuracies
                .map(|(images, hits)| (images.task.as_str(), hits.iter().sum::<f64>() / hits.len() as f64))
                .collect();
            writeln!(out, "{}", serde_json::json!({ "mean": scores.mean, "tasks": tasks }))?;
            out.flush()?;
        }
        Ok(())
    }

    fn setup(&self, arguments: &Arguments, seed: u64) -> Setup {
        let sources = self.models.facts.sources.len();
        let landscape: Arc<dyn Landscape> = self.space.clone();
        let has_base = self.models.facts.base.is_some();
        Setup {
            seed,
            sources,
            has_base,
            evaluations: Some(arguments.budget),
            look_ahead: usize::try_from(arguments.look_ahead).unwrap_or(usize::MAX),
            seeds: seed_genomes(&self.space, has_base, sources),
            model_stock: self.space.model_stock(&self.models.agreements()),
            landscape: Some(landscape),
            objective: self.validation.iter().map(|images| goal(&images.task)).collect(),
        }
    }

    fn run(&self, arguments: &Arguments, seed: u64) -> Result<serde_json::Value, Failure> {
        let table = if arguments.strategy.contains('=') {
            arguments.strategy.clone()
        } else {
            format!("kind = \"{}\"", arguments.strategy)
        };
        let mut settings: toml::Table = table.parse()?;
        let kind = settings.remove("kind").and_then(|kind| StrategyKind::of_name(kind.as_str()?));
        let kind = kind.ok_or("--strategy: no such `kind` (docs/strategies.md lists them)")?;
        let config = StrategyConfig { kind, look_ahead: None, settings };
        let mut strategy = strategy::build(&config, self.setup(arguments, seed))?;
        let started = Instant::now();
        let trace = self.drive(&mut *strategy, arguments)?;
        let wall = started.elapsed().as_secs_f64();
        let mut at = serde_json::Map::new();
        let mut tested: HashMap<u64, f64> = HashMap::new();
        for budget in BUDGETS.into_iter().filter(|budget| *budget <= trace.evaluations) {
            let Some((found, value, content)) = trace.best.iter().rev().find(|(found, _, _)| *found <= budget) else {
                continue;
            };
            let test = match tested.get(found) {
                Some(test) => *test,
                None => self.score(content, &self.test)?.mean,
            };
            tested.insert(*found, test);
            at.insert(budget.to_string(), serde_json::json!({ "val": value, "test": test, "found": found }));
        }
        let best: Vec<_> = trace.best.iter().map(|(found, value, _)| serde_json::json!([found, value])).collect();
        Ok(serde_json::json!({
            "zoo": arguments.zoo.file_name().map(|name| name.to_string_lossy()), "space": arguments.space,
            "method": arguments.strategy, "seed": seed, "n": trace.evaluations, "wall_s": wall, "eval_s": trace.seconds, "at": at,
            "inc": best, "origins": trace.origins,
        }))
    }

    /// Proposal k sees the outcomes up to k less the look-ahead, as in a search.
    fn drive(&self, strategy: &mut dyn Strategy, arguments: &Arguments) -> Result<Trace, Failure> {
        let mut trace = Trace::default();
        let mut known: HashMap<String, u64> = HashMap::new();
        let mut outcomes: Vec<Outcome> = Vec::new();
        let (mut told, mut duplicates) = (0usize, 0);
        let mut needed = 0;
        while trace.evaluations < arguments.budget && duplicates < 1_000 {
            needed = needed.max((outcomes.len() as u64 + 1).saturating_sub(arguments.look_ahead));
            while (told as u64) < needed {
                strategy.tell(&outcomes[told])?;
                told += 1;
            }
            let proposal = match strategy.ask()? {
                Ask::Done(_) => break,
                Ask::Wait { until } => {
                    needed = until + 1;
                    continue;
                }
                Ask::Proposal(proposal) => proposal,
            };
            let identity = self.recipe(&proposal.content)?.sha256(&self.models.content_ids)?;
            if let Some(of) = known.get(&identity) {
                duplicates += 1;
                strategy.place(Placement::Duplicate { of: *of });
                continue;
            }
            duplicates = 0;
            let index = outcomes.len() as u64;
            known.insert(identity, index);
            strategy.place(Placement::Asked { index });
            let started = Instant::now();
            let scores = self.score(&proposal.content, &self.validation)?;
            trace.seconds += started.elapsed().as_secs_f64();
            trace.evaluations += 1;
            *trace.origins.entry(proposal.origin.clone()).or_default() += 1;
            if trace.best.last().is_none_or(|(_, best, _)| scores.mean > *best + 1e-12) {
                trace.best.push((trace.evaluations, scores.mean, proposal.content.clone()));
            }
            outcomes.push(self.outcome(index, scores));
        }
        Ok(trace)
    }

    fn outcome(&self, index: u64, scores: Scores) -> Outcome {
        let tasks = self.validation.iter().zip(scores.hits).map(|(images, hits)| (images.task.clone(), task(hits)));
        Outcome { index, status: Status::Scored, objective: Some(scores.mean), tasks: tasks.collect(), fidelity: 1.0 }
    }
}

fn task(hits: Vec<f64>) -> TaskScores {
    let value = hits.iter().sum::<f64>() / hits.len() as f64;
    let ids = (0..hits.len() as i64).map(SampleId::Number).collect();
    TaskScores {
        n: hits.len() as u64,
        n_truncated: None,
        metrics: BTreeMap::from([("accuracy".to_owned(), MetricValue { value, stderr: None })]),
        per_sample: Some(PerSample { ids, scores: BTreeMap::from([("accuracy".to_owned(), hits)]) }),
    }
}

fn goal(task: &str) -> ObjectiveTask {
    ObjectiveTask { name: task.to_owned(), metric: "accuracy".to_owned(), weight: 1.0, maximize: true }
}

#[derive(Default)]
struct Trace {
    evaluations: u64,
    /// Seconds spent merging and scoring.
    seconds: f64,
    /// Evaluation (from 1), score and content whenever the best improved.
    best: Vec<(u64, f64, Content)>,
    origins: BTreeMap<String, u64>,
}

/// All tasks of a split, in alphabetical order.
fn images(bytes: &[u8], split: &str) -> Result<Vec<Images>, Failure> {
    let archive = safetensors::SafeTensors::deserialize(bytes)?;
    let mut names: Vec<&str> = archive.names();
    names.sort_unstable();
    let stems = names.iter().filter_map(|name| name.strip_suffix("_x"));
    let of_split = stems.filter(|stem| *stem == split || stem.starts_with(&format!("{split}_")));
    let read = |stem: &str| -> Result<Images, Failure> {
        let pixels = archive.tensor(&format!("{stem}_x"))?;
        let values: Vec<f32> = pixels.data().iter().map(|value| f32::from(*value) / 255.0).collect();
        let pixels = Tensor::from_vec(values, pixels.shape(), &Device::Cpu)?;
        let labels = archive.tensor(&format!("{stem}_y"))?.data().to_vec();
        let task = stem.strip_prefix(split).and_then(|task| task.strip_prefix('_')).unwrap_or(ONLY_TASK);
        Ok(Images { task: task.to_owned(), pixels, labels })
    };
    of_split.map(read).collect()
}

impl Images {
    /// One number an image: 1 where the network reads it right.
    fn hits(&self, weights: &HashMap<String, Tensor>) -> Result<Vec<f64>, Failure> {
        let read = network::read(weights, &self.pixels)?;
        Ok(read.iter().zip(&self.labels).map(|(a, b)| f64::from(u8::from(*a == u32::from(*b)))).collect())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
