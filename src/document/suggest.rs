//! The word that was probably meant.

/// The candidate nearest to `word`, if any is near enough to be a slip of the keyboard; the first of equals.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
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

/// ` Did you mean ...?` or nothing, ready to end a message.
pub(super) fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, candidates).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::nearest;

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
