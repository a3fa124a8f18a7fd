//! Eval protocol v1 on the wire (docs/eval-protocol.openapi.yaml): the documents that a client and an evaluator
//! exchange, over HTTP or in files. Unknown fields are ignored, so that a newer evaluator can be asked by an older
//! client.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Capabilities, EvaluationRequest, Fault, MetricCapability, SampleId, Samples, TaskCapability};

/// The version that this program speaks.
pub const VERSION: &str = "1.0";

/// Tasks larger than this get no generated sample ids.
const MOST_GENERATED_IDS: u64 = 10_000_000;

/// `GET /v1/health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireHealth {
    /// `ok`, `degraded`, `starting` or `draining`.
    pub status: String,
    /// New at every start of the server.
    #[serde(default)]
    pub instance_id: String,
}

/// `GET /v1/capabilities`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireCapabilities {
    pub protocol: Vec<String>,
    pub instance_id: String,
    pub fingerprint: String,
    pub sources: Vec<String>,
    #[serde(default)]
    pub deterministic: bool,
    pub tasks: Vec<WireTaskCapability>,
    #[serde(default)]
    pub limits: WireLimits,
}

/// One task that an evaluator offers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireTaskCapability {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    pub n_samples: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_set_sha256: Option<String>,
    #[serde(default)]
    pub supports: Vec<String>,
    pub metrics: Vec<WireMetricCapability>,
}

/// One metric of a task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireMetricCapability {
    pub name: String,
    pub higher_is_better: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// What an evaluator bears.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WireLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_inflight: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_timeout_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval_s: Option<f64>,
}

/// `POST /v1/evaluations`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireRequest {
    pub protocol: String,
    pub evaluation_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<WireRun>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_fingerprint: Option<String>,
    pub candidate: WireCandidate,
    pub tasks: Vec<WireTaskRequest>,
    pub fidelity: f64,
    /// `none`, `scores` or `full`.
    #[serde(default)]
    pub per_sample: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<f64>,
    #[serde(default)]
    pub replicate: u32,
}

/// The run that asks, for the evaluator's logs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireRun {
    pub id: String,
    pub name: String,
}

/// The candidate of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireCandidate {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe_sha256: Option<String>,
    pub source: WireSource,
}

/// Where the candidate's weights come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WireSource {
    /// A checkpoint folder that the evaluator can read, with the sizes of its files.
    Path {
        path: String,
        #[serde(default)]
        files: BTreeMap<String, WireFile>,
    },
    /// A recipe that the evaluator materializes itself.
    Recipe { recipe: serde_json::Value },
}

/// One file of a candidate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireFile {
    pub size: u64,
}

/// One task of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WireTaskRequest {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default)]
    pub metrics: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample_ids: Option<Vec<SampleId>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// The answer to a request. Fields that a program may leave out in a result file are optional here; what an endpoint
/// has to say is enforced when the answer is checked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WireEvaluation {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_id: Option<String>,
    /// `queued`, `running`, `succeeded`, `failed` or `cancelled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_age_s: Option<f64>,
    #[serde(default)]
    pub tasks: BTreeMap<String, WireTaskScores>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<WireProblem>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub timing: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One task of an answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WireTaskScores {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_truncated: Option<u64>,
    pub metrics: BTreeMap<String, WireMetric>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_sample: Option<WirePerSample>,
}

/// One metric of an answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WireMetric {
    /// `null` with `nonfinite` where the number is not finite.
    pub value: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonfinite: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub higher_is_better: Option<bool>,
}

/// Scores sample by sample.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WirePerSample {
    pub ids: Vec<SampleId>,
    pub scores: BTreeMap<String, Vec<Option<f64>>>,
}

/// An error by RFC 9457 with the protocol's extension members. All optional: real servers leave things out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WireProblem {
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retryable: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_counts: Option<bool>,
}

impl WireCapabilities {
    /// Whether a version of the protocol that this program understands is offered.
    pub fn speaks_our_protocol(&self) -> bool {
        self.protocol.iter().any(|version| version.starts_with("1."))
    }

    /// The same in the terms of the crate. Samples of a task that takes sample ids are numbered `0..n_samples`: the
    /// protocol has no list of ids.
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
        let numbered = supports("sample_ids") && self.n_samples <= MOST_GENERATED_IDS;
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
    }

    #[test]
    fn a_path_source_lists_sizes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), b"{}").unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let WireSource::Path { files, .. } = path_source(folder.path()).unwrap() else { panic!("a path") };
        assert_eq!(
            files.iter().map(|(name, file)| (name.as_str(), file.size)).collect::<Vec<_>>(),
            [("config.json", 2)]
        );
        assert_eq!(path_source(Path::new("/no/such/folder")).unwrap_err().class, FaultClass::Configuration);
    }
}
