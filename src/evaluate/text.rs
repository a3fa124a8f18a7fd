//! Texts of evaluators, made fit to be shown.

use std::time::Duration;

/// At most 400 characters on one line, without control characters: it goes to terminals, tables and reports.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 400;
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST + 1).collect();
    match clean.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &clean[..end]),
        None => clean,
    }
}

/// A duration as people say it: `12 h`, `1 min 30 s`.
pub(super) fn in_words(duration: Duration) -> String {
    const UNITS: [(&str, u128); 4] = [("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];
    let (mut left, mut parts) = (duration.as_millis(), Vec::new());
    for (unit, length) in UNITS {
        if left >= length {
            parts.push(format!("{} {unit}", left / length));
        }
        left %= length;
    }
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_made_harmless() {
        assert_eq!(shortened("a\u{1b}[31m\nb"), "a [31m b");
        assert_eq!(shortened(&"x".repeat(1000)).len(), 403);
    }

    #[test]
    fn durations_are_said_in_units() {
        let said = |milliseconds| in_words(Duration::from_millis(milliseconds));
        assert_eq!(
            [0, 300, 60_000, 90_000, 43_200_000, 90_000_001].map(said),
            ["0 s", "300 ms", "1 min", "1 min 30 s", "12 h", "25 h 1 ms"]
        );
    }
}
