//! Tests that need something of the machine that not every machine has.

/// Says on standard error that a test, or the rest of it, is skipped, because the machine lacks `need` (`why` says how
/// that shows). Fails instead where the environment variable `EVOMERGE_TEST_ALL`, a list with commas, has `need` or
/// `all` in it: there, the machine has to have it.
pub fn skip(need: &str, why: &str) {
    let required = std::env::var("EVOMERGE_TEST_ALL").unwrap_or_default();
    let is_required = required.split(',').any(|word| word == need || word == "all");
    assert!(!is_required, "EVOMERGE_TEST_ALL is `{required}`, but {why}");
    eprintln!("skipped: {why}");
}
