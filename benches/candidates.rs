//! Merges as a search makes them: inputs mapped, statistics cached, written over the pages of the candidate before.
//!
//! `cargo bench --bench candidates` writes a small family and prints GB/s by method and instruction set. With
//! `-- --models DIR` (base and ft1..ft4, see `scripts/make_bench_models.py`) it prints one JSON line a method, for
//! `scripts/merge_speed.py`. More: `--repeats N`, `--isa NAME` (default with models: the widest), `--dir DIR` for the
//! candidates (default: the RAM disk), `--threads N`, and names of methods.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use evomerge::checkpoint::{Checkpoint, CheckpointWriter, ContentIds, OutputFile, OutputTensor, SpareCheckpoints};
use evomerge::merge::{Isa, MergeOptions, Merger, MergerOptions, WriteMode};
use evomerge::recipe::{ModelReference, Recipe};

const METHODS: [&str; 6] = ["linear", "task_arithmetic", "slerp", "dare_linear", "dare_ties", "ties"];
const MODELS: [&str; 5] = ["base", "ft1", "ft2", "ft3", "ft4"];

struct Options {
    models: Option<PathBuf>,
    repeats: usize,
    isa: Option<String>,
    dir: PathBuf,
    threads: Option<NonZeroUsize>,
    methods: Vec<String>,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let ram_disk = PathBuf::from("/dev/shm");
    let dir = if ram_disk.is_dir() { ram_disk } else { std::env::temp_dir() };
    let mut found = Options { models: None, repeats: 5, isa: None, dir, threads: None, methods: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            // Cargo says that this is a benchmark.
            "--bench" => {}
            "--models" => found.models = Some(value()?.into()),
            "--repeats" => found.repeats = value()?.parse()?,
            "--isa" => found.isa = Some(value()?),
            "--dir" => found.dir = value()?.into(),
            "--threads" => found.threads = Some(value()?.parse()?),
            method if METHODS.contains(&method) => found.methods.push(argument),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if found.methods.is_empty() {
        found.methods = METHODS.map(str::to_owned).to_vec();
    }
    Ok(found)
}

fn recipe(method: &str) -> String {
    let density = match method {
        "ties" => ", density: 0.5",
        "dare_linear" | "dare_ties" => ", density: 0.3",
        _ => "",
    };
    let source =
        |index: usize, weight: f64| format!("  - {{model: ft{index}, parameters: {{weight: {weight}{density}}}}}\n");
    match method {
        "slerp" => {
            "merge_method: slerp\nbase_model: ft1\ndtype: bfloat16\nparameters: {t: 0.4}\nmodels:\n  - model: ft1\n  \
                    - model: ft2\n"
                .to_owned()
        }
        _ => {
            let base = if method == "linear" { "" } else { "base_model: base\n" };
            let sources: String =
                (1..).zip([0.3, 0.25, 0.25, 0.2]).map(|(index, weight)| source(index, weight)).collect();
            format!("merge_method: {method}\n{base}dtype: bfloat16\nmodels:\n{sources}")
        }
    }
}

/// Five models of 16.8 million bfloat16 elements; 30 % of a fine-tune's differ from the base's.
fn small_family(root: &Path) -> Result<(), Box<dyn Error>> {
    const SHAPE: [usize; 2] = [1024, 1024];
    let names: Vec<String> = (0..16).map(|layer| format!("layers.{layer}.weight")).collect();
    let tensor =
        |name: &String| OutputTensor { name: name.clone(), dtype: safetensors::Dtype::BF16, shape: SHAPE.to_vec() };
    let files = [OutputFile { name: "model.safetensors".to_owned(), tensors: names.iter().map(tensor).collect() }];
    let random = |seed: u64| {
        let mixed = (seed ^ (seed >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40
    };
    let centred = |bits: u64| bits as f32 / 8_388_608.0 - 1.0;
    for (model, name) in (0_u64..).zip(MODELS) {
        let writer = CheckpointWriter::create(&root.join(name), &files, WriteMode::default())?;
        for (layer, name) in (0_u64..).zip(&names) {
            let value = |element: u64| {
                let place = layer << 32 | element;
                let base = centred(random(place)) * 0.03;
                let other = random(place ^ model << 50);
                let delta = if model > 0 && other % 10 < 3 { centred(random(other ^ place)) * 0.003 } else { 0.0 };
                (((base + delta).to_bits() >> 16) as u16).to_le_bytes()
            };
            let bytes: Vec<u8> = (0..SHAPE.iter().product::<usize>() as u64).flat_map(value).collect();
            writer.write_at(name, 0, &bytes)?;
        }
        writer.put_file("config.json", b"{}")?;
        writer.finish()?;
    }
    Ok(())
}

fn merger(models: &Path, threads: Option<NonZeroUsize>, isa: Isa) -> Result<Merger, Box<dyn Error>> {
    let mut opened = Vec::new();
    for name in MODELS {
        opened.push((ModelReference::new(name), Arc::new(Checkpoint::open(&models.join(name))?)));
    }
    let options = MergerOptions { threads, isa: Some(isa), ..MergerOptions::default() };
    Ok(Merger::new(opened, ContentIds::in_user_cache(), options)?)
}

/// Seconds that all threads of this process have computed; 0 where the system does not say.
fn processor_seconds() -> f64 {
    let status = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name in parentheses: user and system time are the fields 14 and 15 of the line, in hundredths.
    let fields = status.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// What candidates took.
struct Taken {
    /// Of each candidate, after two that fill the caches.
    seconds: Vec<f64>,
    /// Of all cores, a candidate.
    processor: f64,
    /// Moved by one candidate.
    bytes: u64,
}

fn candidates(merger: &Merger, method: &str, folder: &Path, repeats: usize) -> Result<Taken, Box<dyn Error>> {
    let recipe = folder.join("recipe.yml");
    std::fs::write(&recipe, self::recipe(method))?;
    let recipe = Recipe::read(&recipe)?;
    let spares = SpareCheckpoints::in_folder(folder);
    let (mut seconds, mut bytes, mut before) = (Vec::new(), 0, 0.0);
    for index in 0..repeats + 2 {
        if index == 2 {
            before = processor_seconds();
        }
        let candidate = folder.join(format!("candidate-{index}"));
        let start = Instant::now();
        let options = MergeOptions { mode: WriteMode::Over(&spares), ..MergeOptions::default() };
        let report = merger.materialize(&recipe, &candidate, &options)?;
        seconds.push(start.elapsed().as_secs_f64());
        bytes = report.bytes_read + report.bytes_written;
        spares.put(&candidate);
    }
    let processor = (processor_seconds() - before) / repeats as f64;
    Ok(Taken { seconds: seconds.split_off(2), processor, bytes })
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    let folder = tempfile::tempdir_in(&options.dir)?;
    let family = folder.path().join("family");
    let models = match &options.models {
        Some(models) => models,
        None => {
            small_family(&family)?;
            &family
        }
    };
    let isas = Isa::available().into_iter().filter(|isa| match (&options.isa, &options.models) {
        (Some(name), _) => isa.name() == name,
        (None, Some(_)) => *isa == Isa::detect(),
        (None, None) => true,
    });
    for isa in isas {
        for method in &options.methods {
            let merger = merger(models, options.threads, isa)?;
            let Taken { mut seconds, processor, bytes } = candidates(&merger, method, folder.path(), options.repeats)?;
            if options.models.is_some() {
                let line = serde_json::json!({
                    "method": method, "isa": isa.name(), "seconds": seconds, "processor_seconds": processor,
                });
                println!("{line}");
                continue;
            }
            seconds.sort_by(f64::total_cmp);
            let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
            let (median, fastest) = (seconds[seconds.len() / 2], seconds[0]);
            println!("{:8} {method:16} {:6.2} GB/s, fastest {:6.2}", isa.name(), rate(median), rate(fastest));
        }
    }
    Ok(())
}
