//! Reads `[strategy]`: typed settings with ranges; what nobody asked for is an error with a suggestion.

use std::ops::RangeInclusive;

use super::StrategyError;
use crate::suggestion::nearest;

/// The settings of one strategy while they are read.
pub(super) struct Settings<'a> {
    table: &'a toml::Table,
    /// Keys asked for so far.
    known: Vec<&'static str>,
}

impl<'a> Settings<'a> {
    pub(super) fn new(table: &'a toml::Table) -> Self {
        Self { table, known: Vec::new() }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a toml::Value> {
        self.known.push(key);
        self.table.get(key)
    }

    /// A whole number in `range`.
    pub(super) fn whole(
        &mut self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, StrategyError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_integer().and_then(|number| usize::try_from(number).ok());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| refuse(key, format!("{value} is no whole number from {} to {}", range.start(), range.end())))
    }

    /// A number in `range`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> Result<f64, StrategyError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let number = value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| refuse(key, format!("{value} is no number from {} to {}", range.start(), range.end())))
    }

    /// A truth value.
    pub(super) fn truth(&mut self, key: &'static str, default: bool) -> Result<bool, StrategyError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| refuse(key, format!("{value} is neither true nor false")))
    }

    /// One of `choices`: its place among them. The first is the default.
    pub(super) fn choice(&mut self, key: &'static str, choices: &[&str]) -> Result<usize, StrategyError> {
        let Some(value) = self.get(key) else { return Ok(0) };
        let place = value.as_str().and_then(|text| choices.iter().position(|choice| *choice == text));
        place.ok_or_else(|| refuse(key, format!("{value} is none of {}", choices.join(", "))))
    }

    /// Refuses what was never asked for.
    pub(super) fn finish(self, kind: &str) -> Result<(), StrategyError> {
        let Some(key) = self.table.keys().find(|key| !self.known.contains(&key.as_str())) else { return Ok(()) };
        let mut reason = format!("strategy `{kind}` has no such setting");
        match nearest(key, self.known.iter().copied()) {
            Some(near) => reason.push_str(&format!("; did you mean `{near}`?")),
            None if self.known.is_empty() => reason.push_str("; it has none at all"),
            None => reason.push_str(&format!("; it has {}", self.known.join(", "))),
        }
        Err(refuse(key, reason))
    }
}

pub(super) fn refuse(key: &str, reason: String) -> StrategyError {
    StrategyError::Setting { key: key.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn reads_what_is_there_and_defaults_the_rest() {
        let table = table("population = 30\nrate = 1\nkeep = \"not_worse\"\nflag = true");
        let mut settings = Settings::new(&table);
        assert_eq!(settings.whole("population", 20, 4..=100).unwrap(), 30);
        assert_eq!(settings.number("rate", 0.5, 0.0..=1.0).unwrap(), 1.0);
        assert_eq!(settings.choice("keep", &["better", "not_worse"]).unwrap(), 1);
        assert!(settings.truth("flag", false).unwrap());
        assert_eq!(settings.whole("tournament", 3, 1..=9).unwrap(), 3);
        settings.finish("genetic").unwrap();
    }

    #[test]
    fn refuses_wrong_and_unknown_settings() {
        let table = table("populaton = 30\nrate = 1.5\nkeep = \"best\"\nsize = 2.5");
        let mut settings = Settings::new(&table);
        let message = |error: StrategyError| {
            assert_eq!(error.exit_code(), crate::exit::ExitCode::BadConfiguration);
            error.to_string()
        };
        assert!(message(settings.number("rate", 0.5, 0.0..=1.0).unwrap_err()).contains("1.5"));
        assert!(message(settings.choice("keep", &["better"]).unwrap_err()).contains("better"));
        assert!(message(settings.whole("size", 1, 1..=9).unwrap_err()).contains("2.5"));
        settings.whole("population", 20, 4..=100).unwrap();
        let text = message(settings.finish("genetic").unwrap_err());
        assert!(text.contains("populaton") && text.contains("did you mean `population`"), "{text}");
    }
}
