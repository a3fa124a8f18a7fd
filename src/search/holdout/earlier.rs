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
    let (seal, own) = (Seal::of(ledger)?, opened_at(ledger));
    let path = std::path::absolute(ledger.path()).ok()?;
    let folder = path.parent()?;
    let name = folder.file_name()?.to_str()?;
    let is_of_family = |entry: &DirEntry| {
        let other = entry.file_name();
        other.to_str().is_some_and(|other| other != name && family(other) == family(name))
    };
    let opening = |entry: DirEntry| {
        let folder = entry.path();
        let other = Ledger::open_for_reading(&RunFolder::ledger_in(&folder)).ok()?;
        if Seal::of(&other)? != seal {
            return None;
        }
        Some(Opening { at: opened_at(&other)?, folder })
    };
    let others = std::fs::read_dir(folder.parent()?).ok()?.flatten().filter(is_of_family).filter_map(opening);
    let first = others.min_by(|one, other| one.at.cmp(&other.at))?;
    own.is_none_or(|own| first.at < own).then_some(first)
}

/// What the names of a run, of its soups and of what `--fresh` moved aside have in common.
fn family(name: &str) -> &str {
    let shorter = name.strip_suffix("-soup").or_else(|| {
        let (stem, number) = name.rsplit_once('.')?;
        (!number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())).then_some(stem)
    });
    shorter.filter(|stem| !stem.is_empty()).map_or(name, family)
}

/// When the first score on the hold-out was recorded; `None`: there is none.
fn opened_at(ledger: &Ledger) -> Option<String> {
    let scored = ledger.all_holdout().ok()?.into_values().filter(|record| record.status == Status::Scored);
    scored.map(|record| record.finished_at).min()
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
    /// That of a recorded run; `None`: it has no hold-out.
    fn of(ledger: &Ledger) -> Option<Self> {
        let identity: Value = serde_json::from_str(&ledger.fact(fact::IDENTITY).ok()??).ok()?;
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

    /// The ledger of a run with this hold-out, opened at that time.
    fn ledger(results: &Path, name: &str, holdout: Value, fingerprint: &str, at: &str) -> Ledger {
        std::fs::create_dir_all(results.join(name)).unwrap();
        let ledger = Ledger::open(&RunFolder::ledger_in(&results.join(name))).unwrap();
        let identity =
            json!({ "evaluator": { "kind": "native" }, "holdout": holdout, (HOLDOUT_FINGERPRINT): fingerprint });
        ledger.set_fact(fact::IDENTITY, &identity.to_string()).unwrap();
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

    #[test]
    fn names_of_one_run_are_of_one_family() {
        for name in ["run", "run.1", "run.12", "run-soup", "run-soup.2", "run.1-soup"] {
            assert_eq!(family(name), "run");
        }
        assert_eq!(["run.", "run.x1", ".1", "soup"].map(family), ["run.", "run.x1", ".1", "soup"]);
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
        // Of another family, by another evaluator, or of other data.
        assert_eq!(found(&ledger(results, "other", share(0.5), "f", "")), None);
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
