//! Values that several sections of the run file have: words and durations.

use std::time::Duration;

use super::duration;
use crate::document::{Content, Field, FieldError};
use crate::suggestion::suggestion;

/// The one of `kinds` that the field names.
pub(super) fn named<Kind: Copy>(
    field: &Field<'_>,
    kinds: &[Kind],
    name: fn(Kind) -> &'static str,
) -> Result<Kind, FieldError> {
    let word = field.word()?;
    let found = kinds.iter().copied().find(|kind| name(*kind) == word);
    found.ok_or_else(|| unknown_value(field, word, kinds.iter().map(|kind| name(*kind))))
}

/// One of a few words.
pub(super) fn one_of<'a>(field: &Field<'a>, words: &[&str]) -> Result<&'a str, FieldError> {
    let word = field.word()?;
    if words.contains(&word) { Ok(word) } else { Err(unknown_value(field, word, words.iter().copied())) }
}

fn unknown_value<'w>(field: &Field<'_>, word: &str, known: impl IntoIterator<Item = &'w str>) -> FieldError {
    field.error(format!("unknown value `{word}`; {}", suggestion(word, known, "expected")))
}

/// Refuses a range that nothing can be searched in: empty, or wider than numbers go. `instead` says how not to search.
pub(super) fn check_range(field: &Field<'_>, low: f64, high: f64, instead: &str) -> Result<(), FieldError> {
    if !(high - low).is_finite() {
        return Err(field.error(format!("the range from {low} to {high} is too large a number")));
    }
    if low >= high {
        return Err(field.error(format!("`low` ({low}) must be below `high` ({high}); {instead}")));
    }
    Ok(())
}

/// A length of time, in quotes; it may be zero.
pub(super) fn read_duration(field: &Field<'_>) -> Result<Duration, FieldError> {
    let expected = "expected a duration such as \"90s\", \"30m\", \"1h30m\" or \"8h\"";
    match &field.node.content {
        Content::Text(text) => duration::parse(text).ok_or_else(|| field.error(format!("{expected}, found {text:?}"))),
        other => Err(field.error(format!("{expected}, in quotes; found {}", other.kind()))),
    }
}

/// A length of time above zero, in quotes.
pub(super) fn read_positive_duration(field: &Field<'_>) -> Result<Duration, FieldError> {
    let duration = read_duration(field)?;
    if duration.is_zero() { Err(field.error("must be longer than nothing")) } else { Ok(duration) }
}
