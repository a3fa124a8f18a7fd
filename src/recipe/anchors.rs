//! Top-level keys of YAML configurations that stand there for their anchors alone, as in `const_tag: &MODEL org/name`.
//!
//! mergekit passes over keys that it does not know, and people repeat one such key for every anchor. Here unknown and
//! repeated keys are mistakes, so these get names of their own that recipes are known to pass over.

use std::borrow::Cow;

/// What the new names begin with; recipes pass over keys that begin with `x-`.
const HOLDER: &str = "x-anchor-holder";

/// The text with each top-level key that means nothing (`is_known` says no) and holds an anchor under a name of its own,
/// line by line, and what these keys were called, each once, in their order.
pub(super) fn rename_anchor_holders(text: &str, is_known: impl Fn(&str) -> bool) -> (Cow<'_, str>, Vec<&str>) {
    let mut names: Vec<&str> = Vec::new();
    let mut renamed = String::with_capacity(text.len());
    let mut count = 0;
    for line in text.split_inclusive('\n') {
        match anchor_holder(line).filter(|(key, _)| !is_known(key)) {
            Some((key, rest)) => {
                count += 1;
                renamed.push_str(&format!("{HOLDER}-{count}{rest}"));
                if !names.contains(&key) {
                    names.push(key);
                }
            }
            None => renamed.push_str(line),
        }
    }
    if names.is_empty() { (Cow::Borrowed(text), names) } else { (Cow::Owned(renamed), names) }
}

/// Whether a key of a document is one that [`rename_anchor_holders`] made.
pub(super) fn is_renamed(key: &str) -> bool {
    key.starts_with(HOLDER)
}

/// The key of a top-level line `key: &ANCHOR ...`, and the line from the colon on.
fn anchor_holder(line: &str) -> Option<(&str, &str)> {
    let end = line.find(|character: char| !(character.is_ascii_alphanumeric() || "_-.".contains(character)))?;
    let (key, rest) = line.split_at(end);
    let value = rest.strip_prefix(':')?;
    let is_separated = value.starts_with([' ', '\t']);
    (!key.is_empty() && is_separated && value.trim_start().starts_with('&')).then_some((key, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_anchors_get_names_of_their_own() {
        let text = "tag: &A 1\ntag: &B 2\nbase_model: &C x\nmodels:\n  tag: &D 3\nplain: y\nenv: &E\n  a: 1\n";
        let (renamed, names) = rename_anchor_holders(text, |key| key == "base_model");
        assert_eq!(names, ["tag", "env"]);
        assert_eq!(
            renamed,
            "x-anchor-holder-1: &A 1\nx-anchor-holder-2: &B 2\nbase_model: &C x\nmodels:\n  tag: &D 3\nplain: y\n\
             x-anchor-holder-3: &E\n  a: 1\n"
        );
        assert!(is_renamed("x-anchor-holder-1") && !is_renamed("x-anchors"));
    }

    #[test]
    fn other_texts_stay_as_they_are() {
        for text in ["", "a: 1\n", "- &A 1\n", "a:&b\n", ": &A 1", "a b: &A 1", "merge_method: linear"] {
            assert_eq!(rename_anchor_holders(text, |_| false), (Cow::Borrowed(text), vec![]), "{text}");
        }
    }
}
