//! `verdict.json`: what a finished search leaves for whoever reads its results.

use std::path::Path;

use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use super::run_folder::RunFolder;
use super::{SearchError, export};
use crate::score::Verdict;
use crate::score::alarms::Alarm;

/// The verdict and the alarms of a finished search, read from its folder.
#[derive(Clone, Debug, PartialEq)]
pub struct VerdictDocument {
    /// What the hold-out said.
    pub verdict: Verdict,
    /// What makes the scores doubtful. `None`: the version that wrote the file did not tell, or in a form that this one
    /// cannot read.
    pub alarms: Option<Vec<Alarm>>,
    /// Search evaluations that had ended then; `None`: the version that wrote the file did not tell.
    pub evaluations: Option<u64>,
    /// The whole document as it stands in the file: one of an earlier version has fewer fields.
    pub json: Value,
}

/// Reads the verdict of the run in `folder`; `None`: there is none, or it cannot be read.
pub fn read_verdict(folder: &Path) -> Option<VerdictDocument> {
    let text = std::fs::read_to_string(RunFolder::verdict_in(folder)).ok()?;
    let json: Value = serde_json::from_str(&text).ok()?;
    let verdict = Verdict::deserialize(&json).ok()?;
    let alarms = json.get("alarms").and_then(|alarms| Vec::deserialize(alarms).ok());
    let evaluations = json.get("evaluations").and_then(Value::as_u64);
    Some(VerdictDocument { verdict, alarms, evaluations, json })
}

/// The fields of the file in order: those of the verdict, then the alarms and the number of evaluations.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    alarms: &'a [Alarm],
    evaluations: u64,
}

/// Writes the verdict of the run in `folder`, after so many search evaluations.
pub(super) fn write_verdict(
    folder: &Path,
    verdict: &Verdict,
    alarms: &[Alarm],
    evaluations: u64,
) -> Result<(), SearchError> {
    let text = serde_json::to_string_pretty(&Document { verdict, alarms, evaluations })
        .map_err(|error| SearchError::Worker(error.to_string()))?;
    export::write(&RunFolder::verdict_in(folder), (text + "\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first version knew neither rivals nor alarms.
    #[test]
    fn a_file_of_the_first_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_verdict(folder.path()).is_none());
        let winner = serde_json::json!({
            "candidate_id": "c", "index": 3, "origin": "sbx", "search_score": 0.75, "holdout_score": 0.5,
        });
        let written = serde_json::json!({
            "verdict": "no_evidence", "winner": winner, "baseline": null, "difference": null, "interval": null,
            "paired": false, "n": { "t": 4 }, "over_statement": null, "reused": false, "finalists": [winner],
            "sentence": "s",
        });
        std::fs::write(RunFolder::verdict_in(folder.path()), written.to_string()).unwrap();
        let read = read_verdict(folder.path()).unwrap();
        assert_eq!((read.verdict.winner.index, &read.alarms, &read.json), (3, &None, &written));
        assert_eq!(read.evaluations, None);

        write_verdict(folder.path(), &read.verdict, &[], 7).unwrap();
        let again = read_verdict(folder.path()).unwrap();
        assert_eq!((again.verdict, again.alarms, again.evaluations), (read.verdict, Some(vec![]), Some(7)));
    }
}
