//! Facts of a ledger that are JSON documents.

use serde::de::DeserializeOwned;

use super::SearchError;
use crate::ledger::Ledger;

/// A recorded fact; `None`: the ledger does not have it (those of earlier versions lack some).
///
/// # Errors
/// [`SearchError::BadData`] where it is there and cannot be read: to go on without it could be another run.
pub(super) fn json_fact<T: DeserializeOwned>(ledger: &Ledger, key: &str) -> Result<Option<T>, SearchError> {
    let Some(text) = ledger.fact(key)? else { return Ok(None) };
    let unreadable = |error| {
        SearchError::BadData(format!(
            "ledger: `{key}` cannot be read ({error}): restore the ledger from a copy, or start anew with --fresh"
        ))
    };
    serde_json::from_str(&text).map(Some).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::fact;

    #[test]
    fn a_fact_that_cannot_be_read_is_no_absent_one() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger.sqlite")).unwrap();
        assert_eq!(json_fact::<Vec<String>>(&ledger, fact::TASKS).unwrap(), None);
        ledger.set_fact(fact::TASKS, r#"["add", "rev"]"#).unwrap();
        assert_eq!(json_fact::<Vec<String>>(&ledger, fact::TASKS).unwrap().unwrap(), ["add", "rev"]);
        ledger.set_fact(fact::TASKS, r#"["add""#).unwrap();
        let error = json_fact::<Vec<String>>(&ledger, fact::TASKS).unwrap_err();
        assert!(matches!(error, SearchError::BadData(_)) && error.to_string().contains(fact::TASKS), "{error}");
    }
}
