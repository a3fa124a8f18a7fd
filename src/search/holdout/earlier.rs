//! Whether another run opened the same hold-out before: one that `--fresh` moved aside, a soup, or the search that a soup
//! belongs to. Their ledgers are only read, and one that cannot be read tells nothing.

use std::fs::DirEntry;
use std::path::PathBuf;

use serde_json::Value;

use crate::ledger::{Ledger, fact};
use crate::scores::Status;
use crate::search::frozen::HOLDOUT_FINGERPRINT;
use crate::search::run_folder::RunFolder;

/// When, and by which run, a hold-out was opened.
#[derive(Debug, PartialEq)]
pub(super) struct Opening {
    /// The run's folder.
    pub folder: PathBuf,
    /// When its first score was recorded: in UTC, RFC 3339.
    pub at: String,
}

/// The first opening of the hold-out of the run with this ledger by another run of its family, if it came before the
/// run's own.
pub(super) fn opening_before(ledger: &Ledger) -> Option<Opening> {
    let (record, own) = (Record::of(ledger)?, opened_at(ledger));
    let path = std::path::absolute(ledger.path()).ok()?;
    let folder = path.parent()?;
    let may_be_of_family = |entry: &DirEntry| {
        let other = entry.file_name();
        Some(other.as_os_str()) != folder.file_name()
            && other.to_str().is_some_and(|other| may_hold(other, &record.family))
    };
    let opening = |entry: DirEntry| {
        let folder = entry.path();
        let other = Ledger::open_at_rest(&RunFolder::ledger_in(&folder)).ok()?;
        if Record::of(&other)? != record {
            return None;
        }
        Some(Opening { at: opened_at(&other)?, folder })
    };
    let others = std::fs::read_dir(folder.parent()?).ok()?.flatten().filter(may_be_of_family).filter_map(opening);
    let first = others.min_by(|one, other| one.at.cmp(&other.at))?;
    own.is_none_or(|own| first.at < own).then_some(first)
}

/// What `evomerge soup` adds to the name of a run.
const SOUP: &str = "-soup";

/// Whether a folder has the name of one that a run of this family may lie in: its own, its soup's, or one that
/// `--fresh` moved either aside to. Runs of other names have such folders too (`llama-3.1` beside `llama-3`).
fn may_hold(folder: &str, family: &str) -> bool {
    let Some(rest) = folder.strip_prefix(family) else { return false };
    let rest = rest.strip_prefix(SOUP).unwrap_or(rest);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    rest.is_empty() || rest.strip_prefix('.').is_some_and(is_number)
}

/// When the first score on the hold-out was recorded; `None`: there is none.
fn opened_at(ledger: &Ledger) -> Option<String> {
    let scored = ledger.all_holdout().ok()?.into_values().filter(|record| record.status == Status::Scored);
    scored.map(|record| record.finished_at).min()
}

/// What two runs have in common whose verdicts may have been compared.
#[derive(Debug, PartialEq)]
struct Record {
    /// The name that their run files give them; of a soup, that of the run it belongs to.
    family: String,
    /// The hold-out.
    seal: Seal,
}

impl Record {
    /// That of a recorded run; `None`: it has no hold-out.
    fn of(ledger: &Ledger) -> Option<Self> {
        let identity: Value = serde_json::from_str(&ledger.fact(fact::IDENTITY).ok()??).ok()?;
        let name = ledger.fact(fact::RUN_NAME).ok()??;
        // A search may have such a name of its own. Soups have no space, and nothing else than their name tells whose
        // they are.
        let of_soup = identity["space"].is_null().then(|| name.strip_suffix(SOUP)).flatten();
        let family = of_soup.unwrap_or(&name).to_owned();
        Some(Self { family, seal: Seal::of(&identity)? })
    }
}

/// What two hold-outs of the same samples have in common.
#[derive(Debug, PartialEq)]
struct Seal {
    /// Who scores it.
    fingerprint: String,
    /// Where its samples come from, as far as the fingerprint does not cover it.
    source: Value,
}

impl Seal {
    /// That of a run with this identity; `None`: it has no hold-out.
    fn of(identity: &Value) -> Option<Self> {
        let fingerprint = identity.get(HOLDOUT_FINGERPRINT)?.as_str()?.to_owned();
        let mut source = identity.get("holdout")?.as_object()?.clone();
        source.remove("finalists");
        // Two shares of the same samples, drawn by whatever seed, have some of these in common.
        if let Some(share) = source.get_mut("fraction") {
            *share = true.into();
        }
        // Fingerprints cover the data, wherever they lie; not those of programs.
        if identity["evaluator"]["kind"] != "command"
            && let Some(paths) = source.get_mut("data")
        {
            *paths = true.into();
        }
        Some(Self { fingerprint, source: source.into() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::ledger::HoldoutRecord;

    /// The ledger of a run with this hold-out, opened at that time, in a folder: one that is moved aside has a number
    /// after its name, and one without a search space is a soup.
    fn run_in(results: &Path, folder: &str, name: &str, space: Value, seal: (Value, &str), at: &str) -> Ledger {
        std::fs::create_dir_all(results.join(folder)).unwrap();
        let ledger = Ledger::open(&RunFolder::ledger_in(&results.join(folder))).unwrap();
        let identity = json!({
            "space": space, "evaluator": { "kind": "native" }, "holdout": seal.0, (HOLDOUT_FINGERPRINT): seal.1
        });
        ledger.set_facts(&[(fact::IDENTITY, &identity.to_string()), (fact::RUN_NAME, name)]).unwrap();
        if !at.is_empty() {
            let record = HoldoutRecord {
                evaluation_id: "ev_1".into(),
                candidate_id: "c".into(),
                status: Status::Scored,
                tasks: BTreeMap::new(),
                error: None,
                finished_at: at.into(),
            };
            ledger.holdout(&record).unwrap();
        }
        ledger
    }

    /// The ledger of the run "run", or of its soup.
    fn ledger(results: &Path, folder: &str, holdout: Value, fingerprint: &str, at: &str) -> Ledger {
        let (name, space) = if folder.contains(SOUP) { ("run-soup", Value::Null) } else { ("run", json!({})) };
        run_in(results, folder, name, space, (holdout, fingerprint), at)
    }

    #[test]
    fn folders_of_one_family_have_its_name_and_a_number() {
        for folder in ["run", "run.1", "run.12", "run-soup", "run-soup.2"] {
            assert!(may_hold(folder, "run"), "{folder}");
        }
        for folder in
            ["ru", "run.", "run.x1", "run.1.2", "run-soup.", "run-soup-soup", "run-1", "run1", "runs", "other"]
        {
            assert!(!may_hold(folder, "run"), "{folder}");
        }
    }

    /// Versions in names are no numbers of runs that were moved aside, and soups may be what a search is about.
    #[test]
    fn runs_of_other_names_are_of_other_families() {
        let results = tempfile::tempdir().unwrap();
        let results = results.path();
        let found = |ledger: &Ledger| opening_before(ledger).map(|opening| opening.folder);
        let seal = || (json!({ "fraction": 0.5, "finalists": 5 }), "f");
        let search = |name: &str, at: &str| run_in(results, name, name, json!({}), seal(), at);
        search("llama-3.1", "2026-01-01");
        assert_eq!(found(&search("llama-3.2", "2026-01-02")), None);
        assert_eq!(found(&search("llama-3", "2026-01-03")), None);
        let soup = run_in(results, "llama-3.2-soup", "llama-3.2-soup", Value::Null, seal(), "");
        assert_eq!(found(&soup), Some(results.join("llama-3.2")));
        let fresh = run_in(results, "llama-3.1.1", "llama-3.1", json!({}), seal(), "");
        assert_eq!(found(&fresh), Some(results.join("llama-3.1")));
        search("tomato", "2026-01-01");
        assert_eq!(found(&search("tomato-soup", "2026-01-02")), None);
        let soup = run_in(results, "tomato-soup-soup", "tomato-soup-soup", Value::Null, seal(), "");
        assert_eq!(found(&soup), Some(results.join("tomato-soup")));
    }

    #[test]
    fn another_run_of_the_family_that_opened_the_same_hold_out_first_is_found() {
        let results = tempfile::tempdir().unwrap();
        let results = results.path();
        let share = |fraction: f64| json!({ "fraction": fraction, "finalists": 5 });
        let found = |ledger: &Ledger| opening_before(ledger).map(|opening| opening.at);
        let first = ledger(results, "run.1", share(0.5), "f", "2026-01-01");
        let second = ledger(results, "run", share(0.4), "f", "2026-01-02");
        let soup = ledger(results, "run-soup", share(0.5), "f", "");
        assert_eq!([&first, &second, &soup].map(found), [None, Some("2026-01-01".into()), Some("2026-01-01".into())]);
        // By another evaluator, or of other data.
        assert_eq!(found(&ledger(results, "run.2", share(0.5), "g", "")), None);
        let paths = |path: &str| json!({ "data": { "t": path }, "finalists": 3 });
        assert_eq!(found(&ledger(results, "run.3", paths("here"), "f", "2026-01-03")), None);
        // The data lie elsewhere now.
        assert_eq!(found(&ledger(results, "run.4", paths("there"), "f", "")), Some("2026-01-03".into()));
        // What cannot be read tells nothing.
        std::fs::create_dir(results.join("run.5")).unwrap();
        std::fs::write(RunFolder::ledger_in(&results.join("run.5")), "no ledger").unwrap();
        assert_eq!(found(&second), Some("2026-01-01".into()));
    }
}
