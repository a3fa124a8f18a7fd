//! The word that was probably meant.

/// The candidate nearest to `word`, if any is near enough to be a slip of the keyboard; the first of equals.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = normalized(word);
    let mut best: Option<(f64, &str)> = None;
    for candidate in candidates {
        let other = normalized(candidate);
        let distance = strsim::damerau_levenshtein(&word, &other);
        let longest = word.chars().count().max(other.chars().count());
        let near = distance == 0 || (longest >= 2 && distance * 3 <= longest.max(3));
        let similarity = strsim::jaro_winkler(&word, &other);
        if (near || similarity >= 0.88) && best.is_none_or(|(score, _)| similarity > score) {
            best = Some((similarity, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

fn normalized(word: &str) -> String {
    word.to_lowercase().replace('-', "_")
}

/// ``; did you mean `...`?`` or nothing, ready to end a message.
pub(crate) fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// ``did you mean `...`?`` or, where no word is near, `otherwise` and all of them: `known are a, b`.
pub(crate) fn suggestion<'a>(word: &str, known: impl IntoIterator<Item = &'a str>, otherwise: &str) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    match nearest(word, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("{otherwise} {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{nearest, suggestion};

    #[test]
    fn names_the_word_that_was_meant_or_all() {
        assert_eq!(suggestion("tise", ["ties", "slerp"], "known are"), "did you mean `ties`?");
        assert_eq!(suggestion("colour", ["ties", "slerp"], "known are"), "known are ties, slerp");
    }

    #[test]
    fn finds_slips_and_nothing_else() {
        let keys = ["layer_groups", "granularity", "modules", "genes"];
        assert_eq!(nearest("layer_group", keys), Some("layer_groups"));
        assert_eq!(nearest("layer-groups", keys), Some("layer_groups"));
        assert_eq!(nearest("moduels", keys), Some("modules"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("", keys), None);
    }
}
