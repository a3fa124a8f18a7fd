//! Texts of evaluators, made fit to be shown.

/// At most 400 characters on one line, without control characters: it goes to terminals, tables and reports.
pub(super) fn shortened(text: &str) -> String {
    const MOST: usize = 400;
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST + 1).collect();
    match clean.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &clean[..end]),
        None => clean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_made_harmless() {
        assert_eq!(shortened("a\u{1b}[31m\nb"), "a [31m b");
        assert_eq!(shortened(&"x".repeat(1000)).len(), 403);
    }
}
