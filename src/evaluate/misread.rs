//! What is wrong with a JSON document that is not the one that was wanted, for people: where the fault is, what stands
//! there, and what should.

use serde_json::error::Category;

use super::text::shortened;
use crate::python_json::end_of_string;

/// Bytes of the document that are shown before and after a place where it is no JSON.
const SURROUNDINGS: usize = 60;

/// The error of a document, in words. A value of the wrong kind is named by its path, such as
/// `tasks.add.metrics.accuracy.value`; where the document is no JSON at all, what stands around the fault is shown.
pub(super) fn told(document: &[u8], error: &serde_json::Error) -> String {
    let end = place_of(document, error);
    let told = match error.classify() {
        Category::Data => {
            let message = in_words(&error.to_string());
            match path_to(&document[..end]) {
                path if path.is_empty() => message,
                path => format!("`{path}`: {message}"),
            }
        }
        Category::Syntax | Category::Eof | Category::Io => {
            let around = &document[end.saturating_sub(SURROUNDINGS)..document.len().min(end + SURROUNDINGS)];
            // The ends may lie within a character.
            let around = String::from_utf8_lossy(around).trim_matches('\u{fffd}').trim().to_owned();
            if around.is_empty() { error.to_string() } else { format!("{error}, near: {around}") }
        }
    };
    shortened(&told)
}

/// How many bytes of the document had been read when the error was found.
fn place_of(document: &[u8], error: &serde_json::Error) -> usize {
    let mut line_ends = document.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = error.line().checked_sub(2).and_then(|lines_before| line_ends.nth(lines_before)).unwrap_or(0);
    document.len().min(start + error.column())
}

/// A container that the text is inside of.
enum Inside {
    /// An object, with where the key lies whose value comes or has just come.
    Object(Option<(usize, usize)>),
    /// A list, with the number of items before this one.
    List(usize),
}

/// The path of the value that the text, the beginning of a JSON document, ends at or in.
fn path_to(text: &[u8]) -> String {
    // A list that has only been opened is itself the value.
    let text = text.strip_suffix(b"[").unwrap_or(text);
    let mut containers = Vec::new();
    let mut last_string = (0, 0);
    let mut at = 0;
    while at < text.len() {
        let mut next = at + 1;
        match text[at] {
            b'"' => {
                next = end_of_string(text, at);
                last_string = (at + 1, next.saturating_sub(1).max(at + 1));
            }
            b'{' => containers.push(Inside::Object(None)),
            b'[' => containers.push(Inside::List(0)),
            b'}' | b']' => {
                containers.pop();
            }
            b':' => {
                if let Some(Inside::Object(key)) = containers.last_mut() {
                    *key = Some(last_string);
                }
            }
            b',' => match containers.last_mut() {
                Some(Inside::Object(key)) => *key = None,
                Some(Inside::List(items)) => *items += 1,
                None => {}
            },
            _ => {}
        }
        at = next;
    }
    let mut path = String::new();
    for container in containers {
        match container {
            Inside::Object(Some((start, end))) => {
                let dot = if path.is_empty() { "" } else { "." };
                path.push_str(&format!("{dot}{}", String::from_utf8_lossy(&text[start..end])));
            }
            Inside::Object(None) => {}
            Inside::List(items) => path.push_str(&format!("[{items}]")),
        }
    }
    path
}

/// An error about a value without its line and column, and without the parser's names for kinds of values.
fn in_words(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    let wrong = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) {
        Some((found, wanted)) => format!("found {}, expected {}", found_in_words(found), wanted_in_words(wanted)),
        None => message.to_owned(),
    }
}

fn found_in_words(found: &str) -> String {
    const KINDS: [(&str, &str); 6] = [
        ("floating point ", "the number "),
        ("integer ", "the number "),
        ("string ", "the text "),
        ("boolean ", "the truth value "),
        ("map", "an object"),
        ("sequence", "a list"),
    ];
    let known = KINDS.iter().find_map(|(kind, word)| Some(format!("{word}{}", found.strip_prefix(kind)?)));
    known.unwrap_or_else(|| found.to_owned())
}

fn wanted_in_words(wanted: &str) -> &str {
    match wanted {
        "f64" => "a number",
        "u64" => "a whole number",
        "a string" => "a text",
        "a map" => "an object",
        "a sequence" => "a list",
        "a boolean" => "a truth value",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{WireCapabilities, WireEvaluation};
    use super::*;
    use crate::repeated_keys::refuse_repeated_keys;

    fn misread(document: &str) -> String {
        told(document.as_bytes(), &serde_json::from_str::<WireEvaluation>(document).unwrap_err())
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_by_its_path() {
        let metric = |metric: &str| format!(r#"{{"tasks": {{"add": {{"n": 6, "metrics": {{"m": {metric}}}}}}}}}"#);
        let unknown = format!(r#"{{"unknown": ["{}", {{"a": 1}}], "tasks": []}}"#, "x".repeat(300));
        for (document, expected) in [
            (
                metric("0.5"),
                r#"`tasks.add.metrics.m`: found the number `0.5`, expected a metric, such as {"value": 0.5}"#,
            ),
            (metric(r#"{"value": "0.5"}"#), r#"`tasks.add.metrics.m.value`: found the text "0.5", expected a number"#),
            (
                metric("{\n\"stderr\": 1,\n\"value\": {}}"),
                "`tasks.add.metrics.m.value`: found an object, expected a number",
            ),
            (unknown, "`tasks`: found a list, expected an object"),
        ] {
            assert_eq!(misread(&document), expected);
        }
        let missing = r#"{"tasks": {"rev": {"metrics": {}}, "add": {"n": 4}}}"#;
        assert_eq!(misread(missing), "`tasks.add`: missing field `metrics`");
        let scores =
            r#"{"tasks": {"add": {"metrics": {}, "per_sample": {"ids": [1], "scores": {"m": [1, "y\"]", 2]}}}}}"#;
        let expected = r#"`tasks.add.per_sample.scores.m[1]`: found the text "y\"]", expected a number"#;
        assert_eq!(misread(scores), expected);
        let null = misread("null");
        assert!(null.starts_with("found null, expected an evaluation, such as {\"tasks\": "), "{null}");
    }

    #[test]
    fn where_there_is_no_json_the_surroundings_are_shown() {
        let told = misread("<html><h1>It works!</h1>");
        assert!(told.contains("line 1 column 1") && told.ends_with("near: <html><h1>It works!</h1>"), "{told}");
        let told = misread(&format!("{{\"unknown\": [{}0],\n\"here\" 5}}", "0, ".repeat(100)));
        assert!(told.ends_with("0], \"here\" 5}") && told.len() < 200, "{told}");
        assert!(!misread("").contains("near"), "nothing is near");
    }

    #[test]
    fn a_repeated_key_is_named_with_its_object() {
        let document = r#"{"tasks": {"add": {}, "rev": {}, "add": {}}}"#;
        let told = told(document.as_bytes(), &refuse_repeated_keys(document.as_bytes()).unwrap_err());
        assert_eq!(told, "`tasks`: the key \"add\" appears twice in one object");
    }

    #[test]
    fn no_type_of_the_program_is_named() {
        for document in ["1", "[true]", r#"{"tasks": [4]}"#, r#"{"protocol": 1}"#, r#"{"limits": 4}"#] {
            let error = serde_json::from_str::<WireCapabilities>(document).unwrap_err();
            let told = told(document.as_bytes(), &error);
            assert!(!told.contains("Wire") && !told.contains("struct"), "{told}");
        }
    }
}
