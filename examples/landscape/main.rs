//! Runs a strategy on the digits merge landscapes, in process: our merge core, a forward pass of the small network, one
//! JSON line a run. docs/search.md has the commands; scripts/digits_images.py prepares the images.
//!
//! `landscape --zoo evals/digits/tasks --images tasks.safetensors --space dare8 --strategy portfolio --seeds 0-9
//! --budget 1000`
//!
//! With `--racing` candidates race as with `[racing]`; with `--divisor 4` there are a quarter of the samples only.
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
use clap::{Parser, ValueEnum};
use evomerge::config::{RunConfig, StrategyConfig, StrategyKind};
use evomerge::merge::{MergeOptions, Merger, WriteMode};
use evomerge::random;
use evomerge::recipe::Recipe;
use evomerge::score::{Objective, ObjectiveTask};
use evomerge::scores::{MetricValue, PerSample, SampleId, Status, TaskScores};
use evomerge::search::{Models, seed_genomes};
use evomerge::space::{Genome, SearchSpace, base_recipe, soup_recipe};
use evomerge::strategy::{
    self, Ask, Content, Landscape, Outcome, PROMOTION, Placement, Proposal, Race, Setup, Strategy,
};
use rand::seq::SliceRandom as _;

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
    /// The search space: method and genes.
    #[arg(long)]
    space: Space,
    /// A `[strategy]` table, or only its kind.
    #[arg(long, default_value = "portfolio")]
    strategy: String,
    /// First and last seed.
    #[arg(long, default_value = "0-9")]
    seeds: String,
    #[arg(long, default_value_t = 1000)]
    budget: u64,
    /// Candidates race, as with `[racing]` in a run file.
    #[arg(long)]
    racing: bool,
    /// The search may take the samples of `--budget` evaluations divided by this. Results stand under the number of
    /// evaluations before the division.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    divisor: u64,
    /// The look-ahead of the search; the default is that of a run whose evaluator takes one candidate at a time.
    #[arg(long, default_value_t = 2)]
    look_ahead: u64,
    /// Candidates are written here.
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
    /// Scores genomes that come in on the standard input.
    #[arg(long)]
    listen: bool,
}

/// A search space; a number in its name is that of its genes. The names on the command line and in the output are in
/// lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[value(rename_all = "lower")]
#[serde(rename_all = "lowercase")]
enum Space {
    /// dare_ties, a weight and a density a source.
    Dare8,
    /// ties, a weight and a density a source in each of three layer groups.
    Ties24,
    /// dare_ties, a weight and a density a source in each of three layer groups.
    Dare24,
    /// task_arithmetic, a weight a source in each of three layer groups.
    Arithmetic12,
    /// ties, a weight and a density a source in each of six layer groups.
    Ties48,
    /// dare_ties, a weight and a density a source in each of six layer groups.
    Dare48,
    /// slerp of the first two experts, a t in each of six layer groups.
    Slerp6,
    /// linear, a weight a source, for the zoos with one task.
    Soup,
    /// The method (task_arithmetic, ties or dare_ties), a weight a source in each of three layer groups, a density a
    /// source.
    Mixed17,
    /// linear of the experts, which divides by the sum of the weights; a weight a source in each of three layer groups.
    Linear12,
    /// task_arithmetic with weights from -0.5 to 1.5, one a source in each of three layer groups.
    Signed12,
    /// della, a weight and a density a source in each of three layer groups.
    Della24,
    /// breadcrumbs_ties, a weight and a density a source in each of three layer groups.
    Crumbs24,
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
fn run_file(zoo: &Path, space: Space) -> Result<RunConfig, Failure> {
    let weights_and_densities = |groups: usize, densities: bool| {
        let per = if groups > 1 { "[\"model\", \"layer_group\"]" } else { "[\"model\"]" };
        let gene = format!("{{ low = 0.0, high = 1.0, per = {per} }}");
        let density = if densities { format!("density = {gene}\n") } else { String::new() };
        format!("layer_groups = {groups}\n[space.genes]\nweight = {gene}\n{density}lambda = 1.0\nnormalize = false\n")
    };
    let weights = |low: f64, high: f64, rest: &str| {
        let per = "[\"model\", \"layer_group\"]";
        let weight = format!("weight = {{ low = {low:.1}, high = {high:.1}, per = {per} }}\n");
        format!("layer_groups = 3\n[space.genes]\n{weight}{rest}")
    };
    let (method, rest) = match space {
        Space::Mixed17 => (
            "task_arithmetic\", \"ties\", \"dare_ties",
            "layer_groups = 3\n[space.genes]\nweight = { low = 0.0, high = 1.0, per = [\"model\", \"layer_group\"] }\n\
             density = { low = 0.0, high = 1.0, per = [\"model\"] }\nlambda = 1.0\nnormalize = false\n"
                .to_owned(),
        ),
        Space::Dare8 => ("dare_ties", weights_and_densities(1, true)),
        Space::Ties24 => ("ties", weights_and_densities(3, true)),
        Space::Dare24 => ("dare_ties", weights_and_densities(3, true)),
        Space::Dare48 => ("dare_ties", weights_and_densities(6, true)),
        Space::Ties48 => ("ties", weights_and_densities(6, true)),
        Space::Arithmetic12 => ("task_arithmetic", weights_and_densities(3, false)),
        Space::Linear12 => ("linear", weights(0.0, 1.0, "")),
        Space::Signed12 => ("task_arithmetic", weights(-0.5, 1.5, "lambda = 1.0\nnormalize = false\n")),
        Space::Della24 => {
            let genes = weights_and_densities(3, true)
                .replace("density = { low = 0.0, high = 1.0", "density = { low = 0.1, high = 0.9");
            ("della", format!("{genes}epsilon = 0.05\n"))
        }
        Space::Crumbs24 => ("breadcrumbs_ties", format!("{}gamma = 0.01\n", weights_and_densities(3, true))),
        Space::Slerp6 => (
            "slerp",
            "layer_groups = 6\n[space.genes]\nt = { low = 0.0, high = 1.0, per = [\"layer_group\"] }\n".to_owned(),
        ),
        Space::Soup => ("linear", "[space.genes]\nweight = { low = 0.0, high = 1.0, per = [\"model\"] }\n".to_owned()),
    };
    let (base, mut sources) = if space == Space::Soup {
        ("", models(&zoo.join("models"), "models/")?)
    } else {
        ("base = \"base\"\n", models(zoo, "")?.into_iter().filter(|name| name.starts_with("expert-")).collect())
    };
    sources.truncate(if space == Space::Slerp6 { 2 } else { usize::MAX });
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
#[derive(Clone)]
struct Scores {
    mean: f64,
    hits: Vec<Vec<f64>>,
}

impl Bench {
    fn open(arguments: &Arguments) -> Result<Self, Failure> {
        let config = run_file(&arguments.zoo, arguments.space)?;
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
            // A budget of samples is no budget of evaluations where candidates race.
            evaluations: Some(arguments.budget / arguments.divisor).filter(|_| !arguments.racing),
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
        let race = arguments.racing.then(|| self.race(seed));
        let mut strategy = strategy::build_raced(&config, self.setup(arguments, seed), race)?;
        let started = Instant::now();
        let divisor = arguments.divisor;
        let trace = self.drive(&mut *strategy, arguments, &self.orders(seed))?;
        let wall = started.elapsed().as_secs_f64();
        let mut at = serde_json::Map::new();
        let mut tested: HashMap<u64, f64> = HashMap::new();
        let is_divided = arguments.racing || divisor > 1;
        let reached = if is_divided { arguments.budget } else { trace.evaluations };
        for budget in BUDGETS.into_iter().filter(|budget| *budget <= reached) {
            let affordable = |best: &&Best| best.samples * divisor <= budget * self.samples();
            let Some(best) = trace.best.iter().rev().find(affordable) else { continue };
            let test = match tested.get(&best.found) {
                Some(test) => *test,
                None => self.score(&best.content, &self.test)?.mean,
            };
            tested.insert(best.found, test);
            let found = serde_json::json!({ "val": best.value, "test": test, "found": best.found });
            at.insert(budget.to_string(), found);
        }
        let best: Vec<_> = trace.best.iter().map(|best| serde_json::json!([best.found, best.value])).collect();
        let racing = if arguments.racing { ", racing" } else { "" };
        let part = if divisor > 1 { format!(", 1/{divisor}") } else { String::new() };
        let method = format!("{}{racing}{part}", arguments.strategy);
        Ok(serde_json::json!({
            "zoo": arguments.zoo.file_name().map(|name| name.to_string_lossy()), "space": arguments.space,
            "method": method, "seed": seed, "n": trace.evaluations, "wall_s": wall, "eval_s": trace.seconds, "at": at,
            "inc": best, "origins": trace.origins,
        }))
    }

    /// The samples of an evaluation in full.
    fn samples(&self) -> u64 {
        self.validation.iter().map(|images| images.labels.len() as u64).sum()
    }

    /// The race of a run file that says no more than `[racing]`.
    fn race(&self, seed: u64) -> Race {
        let tasks = self.validation.iter().map(|images| goal(&images.task)).collect();
        Race { fidelities: vec![0.25, 1.0], keep: 0.25, objective: Objective { tasks }, seed }
    }

    /// The order in which a race asks for the samples of each task.
    fn orders(&self, seed: u64) -> Vec<Vec<usize>> {
        let order = |images: &Images| {
            let mut order: Vec<usize> = (0..images.labels.len()).collect();
            order.shuffle(&mut random::stream(seed, &format!("order of {}", images.task), 0));
            order
        };
        self.validation.iter().map(order).collect()
    }

    /// Proposal k sees the outcomes up to k less the look-ahead, as in a search.
    fn drive(
        &self,
        strategy: &mut dyn Strategy,
        arguments: &Arguments,
        orders: &[Vec<usize>],
    ) -> Result<Trace, Failure> {
        let granted = arguments.budget * self.samples() / arguments.divisor;
        let mut trace = Trace::default();
        let mut known: HashMap<String, Known> = HashMap::new();
        let mut outcomes: Vec<Outcome> = Vec::new();
        let (mut told, mut duplicates) = (0usize, 0);
        let mut needed = 0;
        while duplicates < 1_000 {
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
            let cost = match demand(&proposal, known.get(&identity), orders) {
                Demand::Nothing { of } => {
                    duplicates += 1;
                    strategy.place(Placement::Duplicate { of });
                    continue;
                }
                Demand::Samples(cost) => cost,
            };
            if trace.samples + cost > granted {
                break;
            }
            duplicates = 0;
            let index = outcomes.len() as u64;
            strategy.place(Placement::Asked { index });
            let started = Instant::now();
            let scores = match known.get(&identity) {
                Some(known) => known.scores.clone(),
                None => self.score(&proposal.content, &self.validation)?,
            };
            trace.seconds += started.elapsed().as_secs_f64();
            trace.record(&proposal, cost, scores.mean);
            let samples = first_samples(orders, proposal.fidelity);
            outcomes.push(self.outcome(index, &scores, &samples, proposal.fidelity));
            let first = known.get(&identity).map_or(index, |known| known.index);
            known.insert(identity, Known { index: first, fidelity: proposal.fidelity, scores });
        }
        Ok(trace)
    }

    /// What a strategy hears of a candidate that was scored on these samples of each task.
    fn outcome(&self, index: u64, scores: &Scores, samples: &[&[usize]], fidelity: f64) -> Outcome {
        let of_task =
            |((images, hits), samples): ((&Images, &Vec<f64>), &&[usize])| (images.task.clone(), task(hits, samples));
        let tasks: BTreeMap<String, TaskScores> =
            self.validation.iter().zip(&scores.hits).zip(samples).map(of_task).collect();
        let mean = tasks.values().map(|task| task.metrics["accuracy"].value).sum::<f64>() / tasks.len() as f64;
        let objective = Some(if fidelity >= 1.0 { scores.mean } else { mean });
        Outcome { index, status: Status::Scored, objective, tasks, fidelity }
    }
}

/// What was scored of a candidate.
struct Known {
    /// The index of its first evaluation.
    index: u64,
    /// The largest share of the samples that it was scored on.
    fidelity: f64,
    scores: Scores,
}

/// What a proposal asks of the evaluator.
enum Demand {
    /// Nothing: an earlier evaluation of the same candidate stands for it.
    Nothing { of: u64 },
    /// Scores of this many samples that its candidate has no score of yet.
    Samples(u64),
}

/// What a proposal asks for, given what is known of its candidate. Only promotions ask for more samples of a known one.
fn demand(proposal: &Proposal, known: Option<&Known>, orders: &[Vec<usize>]) -> Demand {
    let is_promoted = |known: &Known| proposal.origin == PROMOTION && proposal.fidelity > known.fidelity;
    if let Some(known) = known.filter(|known| !is_promoted(known)) {
        return Demand::Nothing { of: known.index };
    }
    let count = |fidelity: f64| first_samples(orders, fidelity).into_iter().map(<[usize]>::len).sum::<usize>() as u64;
    Demand::Samples(count(proposal.fidelity) - count(known.map_or(0.0, |known| known.fidelity)))
}

/// The samples of each task that an evaluation on this share of them is scored on.
fn first_samples(orders: &[Vec<usize>], fidelity: f64) -> Vec<&[usize]> {
    orders.iter().map(|order| &order[..(fidelity * order.len() as f64).ceil() as usize]).collect()
}

fn task(hits: &[f64], samples: &[usize]) -> TaskScores {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    let hits: Vec<f64> = samples.iter().map(|sample| hits[*sample]).collect();
    let value = hits.iter().sum::<f64>() / hits.len() as f64;
    let ids = samples.into_iter().map(|sample| SampleId::Number(sample as i64)).collect();
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
    samples: u64,
    /// Whenever the best score on all samples improved.
    best: Vec<Best>,
    origins: BTreeMap<String, u64>,
}

impl Trace {
    /// Counts an evaluation, which took `cost` samples; its score on all samples is kept where it is the best so far.
    fn record(&mut self, proposal: &Proposal, cost: u64, score: f64) {
        self.evaluations += 1;
        self.samples += cost;
        *self.origins.entry(proposal.origin.clone()).or_default() += 1;
        let is_best = self.best.last().is_none_or(|best| score > best.value + 1e-12);
        if proposal.fidelity >= 1.0 && is_best {
            let (found, samples, content) = (self.evaluations, self.samples, proposal.content.clone());
            self.best.push(Best { found, samples, value: score, content });
        }
    }
}

struct Best {
    /// Number of the evaluation, from 1.
    found: u64,
    /// Samples taken up to and including that evaluation.
    samples: u64,
    value: f64,
    content: Content,
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
