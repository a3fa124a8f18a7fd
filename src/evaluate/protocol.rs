//! Eval protocol v1 on the wire (docs/eval-protocol.openapi.yaml): the documents that a client and an evaluator
//! exchange, over HTTP or in files. Unknown fields are ignored, so that a newer evaluator can be asked by an older
//! client.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{Capabilities, EvaluationRequest, Fault, MetricCapability, Samples, TaskCapability};
use crate::scores::SampleId;

/// The version that this program speaks.
pub const VERSION: &str = "1.0";

/// Tasks larger than this get no generated sample ids.
const MOST_GENERATED_IDS: u64 = 10_000_000;

/// `GET /v1/health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(expecting = "a health document")]
pub struct WireHealth {
    /// `ok`, `degraded`, `starting` or `draining`.
    pub status: String,
    /// New at every start of the server.
    #[serde(default)]
    pub instance_id: String,
}

/// `GET /v1/capabilities`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(expecting = "a capabilities document")]
pub struct WireCapabilities {
    /// Versions of the protocol that the server speaks; one that starts with `1.` must be among them.
    pub protocol: Vec<String>,
    /// As in [`WireHealth`]: another one than before says that the server has restarted.
    pub instance_id: String,
    /// A hash over all that can change a score; the same for all endpoints of a pool, unless the run file allows
    /// others.
    pub fingerprint: String,
    /// How the server takes candidates, `path` or `recipe`; without `path` it is of no use to this program.
    pub sources: Vec<String>,
    /// Whether a candidate that is scored again gets the same scores; `false` where the server does not say.
    #[serde(default)]
    pub deterministic: bool,
    /// What the server can score: every task of the run must be among them.
    pub tasks: Vec<WireTaskCapability>,
    /// How much the server takes; without limits where it does not say.
    #[serde(default)]
    pub limits: WireLimits,
}

/// One task that an evaluator offers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(expecting = "a task with its metrics")]
pub struct WireTaskCapability {
    /// How requests, answers and run files call the task.
    pub name: String,
    /// The server's version of the task: sent back in requests, and part of the fingerprint that evaluation ids rest
    /// on. The schema requires it, here it may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Samples that the task has, numbered from 0 where `sample_ids` are supported; 0 counts as unknown.
    pub n_samples: u64,
    /// A hash over all samples: a hold-out that has the same one as a task of the search is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_set_sha256: Option<String>,
    /// What a request may ask for: `limit`, `sample_ids`, `per_sample`, `seed`, `fidelity`. The first three are looked
    /// at.
    #[serde(default)]
    pub supports: Vec<String>,
    /// At least one; the first is the metric of a run file that names none.
    pub metrics: Vec<WireMetricCapability>,
}

/// One metric of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(expecting = "a metric with `name` and `higher_is_better`")]
pub struct WireMetricCapability {
    /// How requests, answers and run files call the metric.
    pub name: String,
    /// Whether higher is better; a `goal` in the run file that contradicts it is refused.
    pub higher_is_better: bool,
    /// How the value comes from the scores by sample: `mean`, `ratio`, `perplexity` or `other`. Only `mean` can be
    /// checked, and nothing is assumed without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<String>,
    /// Least value: an answer below it is refused. `None`: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Greatest value: an answer above it is refused. `None`: no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// What an evaluator bears.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(expecting = "an object of limits")]
pub struct WireLimits {
    /// Evaluations at once; a run keeps to it even if its `in_flight` is larger. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_inflight: Option<u64>,
    /// Longest timeout that a request may ask for, in seconds; the run's own is cut to it. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_timeout_s: Option<f64>,
    /// Seconds between two signs of life of a worker; after three times as long without one it counts as lost. `None`:
    /// silence means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval_s: Option<f64>,
}

/// `POST /v1/evaluations`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireRequest {
    /// Always [`VERSION`].
    pub protocol: String,
    /// sha256 over everything that determines the answer, also sent as `Idempotency-Key`; at most 128 characters.
    pub evaluation_id: String,
    /// Who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<WireRun>,
    /// The fingerprint that the endpoint announced: if it has another one by now, it answers with status 412. `None`
    /// for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_fingerprint: Option<String>,
    /// What is scored.
    pub candidate: WireCandidate,
    /// What it is scored on; at least one.
    pub tasks: Vec<WireTaskRequest>,
    /// Share of the samples that this is, in `(0, 1]`. A label: `limit` and `sample_ids` of the tasks decide.
    pub fidelity: f64,
    /// `none`, `scores` or `full`.
    #[serde(default)]
    pub per_sample: String,
    /// Seconds from receipt to answer, so that clocks need not agree; this program always says how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<f64>,
    /// 0, and counted up where the same is asked again and wants new answers.
    #[serde(default)]
    pub replicate: u32,
}

/// The run that asks, for the evaluator's logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireRun {
    /// Tells runs apart, also two of one run file; `evaluate` where there is no run.
    pub id: String,
    /// `name` of the run file.
    pub name: String,
}

/// The candidate of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireCandidate {
    /// First 16 hex digits of `recipe_sha256`; an endpoint's answer must repeat it.
    pub id: String,
    /// The recipe's canonical hash, in hex; of a checkpoint that no recipe made, its content id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe_sha256: Option<String>,
    /// Where its weights are.
    pub source: WireSource,
}

/// Where the candidate's weights come from. The protocol also has recipes, for evaluators that materialize candidates
/// themselves; this program sends none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WireSource {
    /// A checkpoint folder that the evaluator can read, with the sizes of its files.
    Path {
        /// Absolute, and the same for both sides.
        path: String,
        /// The regular files in the folder, by name, so that an evaluator can refuse a folder that it sees only half.
        #[serde(default)]
        files: BTreeMap<String, WireFile>,
    },
}

/// One file of a candidate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireFile {
    /// In bytes: whoever sees another size sees another candidate.
    pub size: u64,
}

/// One task of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireTaskRequest {
    /// The evaluator's name of the task.
    pub name: String,
    /// As the evaluator announced it; `None` where it did not, or where endpoints may have different ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What is to be measured: of this program, the one metric that counts.
    #[serde(default)]
    pub metrics: Vec<String>,
    /// How many samples to use, the first of the evaluator's own fixed order. `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// The samples to use; `None`: all, up to `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_ids: Option<Vec<SampleId>>,
    /// Seeds the order behind `limit`, and sampling where the evaluator samples; below 2^31.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// The answer to a request. Fields that a program may leave out in a result file are optional here; what an endpoint
/// has to say is enforced when the answer is checked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(expecting = r#"an evaluation, such as {"tasks": {"TASK": {"metrics": {"METRIC": {"value": 0.5}}}}}"#)]
pub struct WireEvaluation {
    /// The request's `evaluation_id`: an endpoint must repeat it, a program may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_id: Option<String>,
    /// The id of the request's candidate: an endpoint must repeat it, a program may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_id: Option<String>,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The server that answers: if it is another than at the handshake, scores count only once it has shown that it is
    /// the same evaluator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// If given, it must be the one that the endpoint announced, unless the run file allows others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// While it runs: seconds since the worker last gave a sign of life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_age_s: Option<f64>,
    /// Scores by task: one entry for each task asked for, and no other.
    #[serde(default)]
    pub tasks: BTreeMap<String, WireTaskScores>,
    /// Why it failed, where `status` says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireProblem>,
    /// For people, about an answer that counts all the same; the first 20 are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One task of an answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(expecting = r#"a task, such as {"metrics": {"METRIC": {"value": 0.5}}}"#)]
pub struct WireTaskScores {
    /// Samples scored. An endpoint must say it; a program that leaves it out has scored all that were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Answers cut by the generation limit, where the evaluator counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_truncated: Option<u64>,
    /// By the metric's name; the one asked for must be there.
    pub metrics: BTreeMap<String, WireMetric>,
    /// Required of an endpoint that lists `per_sample` for the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_sample: Option<WirePerSample>,
}

/// One metric of an answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(expecting = r#"a metric, such as {"value": 0.5}"#)]
pub struct WireMetric {
    /// `null` with `nonfinite` where the number is not finite.
    pub value: Option<f64>,
    /// `nan`, `inf` or `-inf`: the candidate cannot be scored, and that is its own fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonfinite: Option<String>,
    /// Standard error of `value`; finite and not negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// Whether higher is better: where it is given, it must be as announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub higher_is_better: Option<bool>,
}

/// Scores sample by sample.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(expecting = r#"scores by sample, such as {"ids": [0, 1], "scores": {"METRIC": [0.5, 1]}}"#)]
pub struct WirePerSample {
    /// Each sample once, in any order: all that were scored.
    pub ids: Vec<SampleId>,
    /// By metric, a score for each of `ids`. A `null` is a program's word for a number that is not finite; of an
    /// endpoint it is an error.
    pub scores: BTreeMap<String, Vec<Option<f64>>>,
}

/// An error by RFC 9457 with the protocol's extension members. All optional: real servers leave things out. Each is read
/// for itself, and one of another type than the protocol's counts as left out: what the others say of who is to blame
/// must not be lost for it. `type`, `status` and `instance` are not looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(expecting = "an error, such as {\"code\": \"out_of_memory\", \"class\": \"resource\"}")]
pub struct WireProblem {
    /// The kind of problem in a few words; shown where there is no `detail`.
    #[serde(default, deserialize_with = "text_or_none", skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What went wrong this time, for people.
    #[serde(default, deserialize_with = "text_or_none", skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The protocol's word for it (`out_of_memory`, `unknown_task`, ...): a known one decides what is done, whatever
    /// the class says.
    #[serde(default, deserialize_with = "text_or_none", skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Who is to blame (`candidate`, `resource`, `infrastructure`, `configuration`, `cancelled`), which decides where
    /// the code is not known.
    #[serde(default, deserialize_with = "text_or_none", skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// `false`: a further attempt would fail too, so there is none.
    #[serde(default, deserialize_with = "truth_or_none", skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    /// Seconds to stay away, where the answer has no `Retry-After`.
    #[serde(default, deserialize_with = "number_or_none", skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<f64>,
    /// `false`: back-pressure, which does not count against the attempts allowed.
    #[serde(default, deserialize_with = "truth_or_none", skip_serializing_if = "Option::is_none")]
    pub attempt_counts: Option<bool>,
}

fn text_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Plain::deserialize(deserializer)? {
        Plain::Text(text) => Some(text),
        _ => None,
    })
}

fn truth_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    Ok(match Plain::deserialize(deserializer)? {
        Plain::Truth(truth) => Some(truth),
        _ => None,
    })
}

fn number_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    Ok(match Plain::deserialize(deserializer)? {
        Plain::Number(number) => Some(number),
        _ => None,
    })
}

/// A value of any type. Of lists and objects nothing is kept: they may be long.
enum Plain {
    Text(String),
    Truth(bool),
    Number(f64),
    Other,
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Plain;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Plain, E> {
        Ok(Plain::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Plain, E> {
        Ok(Plain::Truth(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Plain, E> {
        Ok(Plain::Number(number as f64))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Plain, E> {
        Ok(Plain::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Plain, E> {
        Ok(Plain::Number(number))
    }

    fn visit_unit<E>(self) -> Result<Plain, E> {
        Ok(Plain::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Plain, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Plain::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plain, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Plain::Other)
    }
}

impl WireCapabilities {
    /// Whether a version of the protocol that this program understands is offered.
    pub fn speaks_our_protocol(&self) -> bool {
        self.protocol.iter().any(|version| version.starts_with("1."))
    }

    /// These capabilities in the crate's own terms. Samples of a task that takes sample ids are numbered
    /// `0..n_samples`: the protocol has no list of ids.
    pub fn to_capabilities(&self) -> Capabilities {
        let tasks = self.tasks.iter().map(|task| (task.name.clone(), task.to_capability())).collect();
        Capabilities { tasks, deterministic: self.deterministic }
    }
}

impl WireTaskCapability {
    fn to_capability(&self) -> TaskCapability {
        let supports = |what: &str| self.supports.iter().any(|supported| supported == what);
        let metrics = self.metrics.iter().map(|metric| {
            let capability = MetricCapability {
                higher_is_better: metric.higher_is_better,
                min: metric.min,
                max: metric.max,
                is_mean: metric.aggregation.as_deref() == Some("mean"),
            };
            (metric.name.clone(), capability)
        });
        // 0 stands for a number that nobody knows.
        let numbered = supports("sample_ids") && (1..=MOST_GENERATED_IDS).contains(&self.n_samples);
        TaskCapability {
            n_samples: self.n_samples,
            sample_ids: numbered.then(|| (0..self.n_samples as i64).map(SampleId::Number).collect()),
            metrics: metrics.collect(),
            supports_sample_ids: supports("sample_ids"),
            supports_limit: supports("limit"),
            supports_per_sample: supports("per_sample"),
            sample_hashes: None,
            sample_set: self.sample_set_sha256.clone(),
        }
    }
}

/// The request document for `request`.
///
/// `versions` holds the task versions that the evaluator announced. Seeds are cut to 31 bits, which every language's
/// generator takes. Per-sample scores are asked for as soon as one task can give them.
///
/// # Errors
/// A configuration fault where a task cannot do what the request needs (sample ids, a limit).
pub fn request_document(
    request: &EvaluationRequest,
    source: WireSource,
    capabilities: &Capabilities,
    versions: &BTreeMap<String, String>,
) -> Result<WireRequest, Fault> {
    let mut tasks = Vec::with_capacity(request.tasks.len());
    let mut per_sample = false;
    for task in &request.tasks {
        let (mut limit, mut sample_ids) = (None, None);
        let capability = capabilities.tasks.get(&task.name);
        match &task.samples {
            Samples::All => {}
            Samples::Limit(_) if capability.is_some_and(|known| !known.supports_limit) => {
                return Err(unsupported(&task.name, "limit", "use all samples (fidelity 1, no `limit`)"));
            }
            Samples::Limit(count) => limit = Some(*count),
            Samples::Ids(_) if capability.is_some_and(|known| !known.supports_sample_ids) => {
                return Err(unsupported(&task.name, "sample_ids", "do without sample ids (no `[holdout] fraction`)"));
            }
            Samples::Ids(ids) => sample_ids = Some(ids.clone()),
        }
        per_sample |= capability.is_some_and(|known| known.supports_per_sample);
        tasks.push(WireTaskRequest {
            name: task.name.clone(),
            version: versions.get(&task.name).cloned(),
            metrics: vec![task.metric.clone()],
            limit,
            sample_ids,
            seed: Some(task.seed & 0x7fff_ffff),
        });
    }
    Ok(WireRequest {
        protocol: VERSION.to_owned(),
        evaluation_id: request.evaluation_id.clone(),
        run: Some(WireRun { id: request.run_id.clone(), name: request.run_name.clone() }),
        expect_fingerprint: None,
        candidate: WireCandidate {
            id: request.candidate.id.clone(),
            recipe_sha256: Some(request.candidate.recipe_sha256.clone()),
            source,
        },
        tasks,
        fidelity: request.fidelity,
        per_sample: if per_sample { "scores" } else { "none" }.to_owned(),
        timeout_s: None,
        replicate: request.replicate,
    })
}

fn unsupported(task: &str, what: &str, instead: &str) -> Fault {
    Fault::configuration(
        "invalid_request",
        format!("task {task}: the evaluator does not list `{what}` among what it supports; {instead}"),
    )
}

/// The path source for a candidate's folder: its absolute path and the size of each regular file in it, so that the
/// evaluator can refuse a folder that it sees only half.
///
/// # Errors
/// A configuration fault when the folder cannot be read or its path is not UTF-8 or not absolute.
pub fn path_source(folder: &Path) -> Result<WireSource, Fault> {
    let bad = |reason: String| {
        let detail = format!("candidate folder {}: {reason}", folder.display());
        Fault::configuration("candidate_folder", detail)
    };
    let path = folder.to_str().ok_or_else(|| bad("the path is not UTF-8; choose another `[candidates] dir`".into()))?;
    if !folder.is_absolute() {
        return Err(bad("the path is not absolute".into()));
    }
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|error| bad(error.to_string()))? {
        let entry = entry.map_err(|error| bad(error.to_string()))?;
        let meta = std::fs::metadata(entry.path()).map_err(|error| bad(error.to_string()))?;
        if let (true, Some(name)) = (meta.is_file(), entry.file_name().to_str()) {
            files.insert(name.to_owned(), WireFile { size: meta.len() });
        }
    }
    Ok(WireSource::Path { path: path.to_owned(), files })
}

#[cfg(test)]
mod tests {
    use super::super::FaultClass;
    use super::*;

    const CAPABILITIES: &str = r#"{"protocol": ["1.0"], "instance_id": "boot-1", "fingerprint": "fp", "sources": ["path"],
        "deterministic": true, "limits": {"max_inflight": 2}, "some_new_field": 1,
        "tasks": [{"name": "t", "version": "3", "n_samples": 3, "supports": ["limit", "sample_ids", "per_sample"],
                   "metrics": [{"name": "z", "higher_is_better": true, "aggregation": "mean", "min": 0, "max": 1},
                               {"name": "a", "higher_is_better": false}]}]}"#;

    #[test]
    fn capabilities_are_read() {
        let wire: WireCapabilities = serde_json::from_str(CAPABILITIES).unwrap();
        assert!(wire.speaks_our_protocol());
        let capabilities = wire.to_capabilities();
        let task = &capabilities.tasks["t"];
        assert_eq!(task.sample_ids.as_deref().unwrap()[2], SampleId::Number(2));
        assert!(task.metrics["z"].is_mean && !task.metrics["a"].is_mean);
        assert_eq!((task.metrics["z"].min, task.metrics["a"].max), (Some(0.0), None));
        // How many there are is not known, nor which.
        let unknown = CAPABILITIES.replace("\"n_samples\": 3", "\"n_samples\": 0");
        let wire: WireCapabilities = serde_json::from_str(&unknown).unwrap();
        assert_eq!(wire.to_capabilities().tasks["t"].sample_ids, None);
    }

    #[test]
    fn a_path_source_lists_sizes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), b"{}").unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let WireSource::Path { files, .. } = path_source(folder.path()).unwrap();
        assert_eq!(
            files.iter().map(|(name, file)| (name.as_str(), file.size)).collect::<Vec<_>>(),
            [("config.json", 2)]
        );
        assert_eq!(path_source(Path::new("/no/such/folder")).unwrap_err().class, FaultClass::Configuration);
    }
}
