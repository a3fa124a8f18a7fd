//! JSON as Python writes it: bare `NaN`, `Infinity`, `-Infinity`, and numbers beyond the range of a double. They are
//! taken out before parsing: by `null`, so that a program's non-finite score is seen as what it is, or by marked texts,
//! so that what was read can be written again; so can whole numbers beyond 64 bits, which Python has too.

/// What a marked text begins with.
const MARK: &str = "\\u0000";

/// The same JSON with every number that is not finite replaced by `null`. Text inside strings is left alone; anything
/// else that is not JSON stays as it is, for the parser to refuse.
pub(crate) fn without_nonfinite(text: &str) -> String {
    with_words_as(text, is_nonfinite, |_| "null".to_owned())
}

/// The same JSON with every number that is not finite, and every whole number beyond 64 bits, as a marked text, which
/// [`unmark_nonfinite`] makes a bare word again.
pub(crate) fn mark_nonfinite(text: &str) -> String {
    with_words_as(text, is_marked, |word| format!("\"{MARK}{word}\""))
}

/// JSON in which marked texts are the words that they were made of.
pub(crate) fn unmark_nonfinite(json: &str) -> String {
    let start = format!("\"{MARK}");
    let mut parts = json.split(start.as_str());
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('"') {
            Some((word, rest)) if is_marked(word) => {
                text.push_str(word);
                text.push_str(rest);
            }
            _ => {
                text.push_str(&start);
                text.push_str(part);
            }
        }
    }
    text
}

fn with_words_as(text: &str, is_word: impl Fn(&str) -> bool, replace: impl Fn(&str) -> String) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                let end = end_of_word(bytes, at);
                if is_word(&text[at..end]) {
                    out.push_str(&text[start..at]);
                    out.push_str(&replace(&text[at..end]));
                    start = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    out.push_str(&text[start..]);
    out
}

/// Index after the closing quote of the string that starts at `at` (or the end of the text).
pub(crate) fn end_of_string(bytes: &[u8], at: usize) -> usize {
    let mut next = at + 1;
    while next < bytes.len() {
        match bytes[next] {
            b'\\' => next += 2,
            b'"' => return next + 1,
            _ => next += 1,
        }
    }
    bytes.len()
}

fn end_of_word(bytes: &[u8], at: usize) -> usize {
    let in_word = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
    bytes[at..].iter().position(|byte| !in_word(byte)).map_or(bytes.len(), |length| at + length)
}

/// Words that the parser would refuse or change.
fn is_marked(word: &str) -> bool {
    let digits = word.strip_prefix('-').unwrap_or(word);
    // A whole number as JSON writes it, which the parser would make a double.
    let is_whole = !digits.starts_with('0') && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_nonfinite(word) || is_whole && word.parse::<i64>().is_err() && word.parse::<u64>().is_err()
}

fn is_nonfinite(word: &str) -> bool {
    if matches!(word, "NaN" | "Infinity" | "-Infinity") {
        return true;
    }
    let number = word.strip_prefix('-').unwrap_or(word).starts_with(|c: char| c.is_ascii_digit());
    number && word.parse::<f64>().is_ok_and(|value| !value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::{mark_nonfinite, unmark_nonfinite, without_nonfinite};
    use proptest::prelude::*;

    #[test]
    fn only_numbers_that_are_not_finite_change() {
        let text = r#"{"NaN": NaN, "a": [-Infinity, Infinity, 1e400, -1e999, 1e-400, -0, true], "s": "NaN \" Infinity", "é": 1}"#;
        let expected =
            r#"{"NaN": null, "a": [null, null, null, null, 1e-400, -0, true], "s": "NaN \" Infinity", "é": 1}"#;
        assert_eq!(without_nonfinite(text), expected);
        for same in ["", "\"", "\"\\", "NaNo", "nan", "-inf", "{\"a\": -Inf}"] {
            assert_eq!(without_nonfinite(same), same);
        }
    }

    #[test]
    fn what_was_marked_is_written_as_it_was() {
        let text = r#"{"limit":[0.0,Infinity,-Infinity,1e400],"s":"Infinity","é":NaN}"#;
        let value: serde_json::Value = serde_json::from_str(&mark_nonfinite(text)).unwrap();
        assert_eq!(value["limit"][1], "\0Infinity");
        assert_eq!(unmark_nonfinite(&value.to_string()), text);
        let own = r#"{"a":"\u0000Infinite","b":"\\u0000NaN"}"#;
        assert_eq!(unmark_nonfinite(own), own);
        let whole = "123456789012345678901234567890";
        let text =
            format!(r#"{{"a":[{whole},-{whole},18446744073709551615,-9223372036854775808,0,-7],"s":"{whole}"}}"#);
        let value: serde_json::Value = serde_json::from_str(&mark_nonfinite(&text)).unwrap();
        assert_eq!(value["a"][2], u64::MAX);
        assert_eq!(unmark_nonfinite(&value.to_string()), text);
        assert_eq!(without_nonfinite(whole), whole, "a score is a double");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}") {
            let _ = without_nonfinite(&text);
        }

        #[test]
        fn proper_json_is_left_alone(values in prop::collection::vec(-1e9..1e9f64, 0..8), name in "[a-zA-Z\"\\\\]{0,8}") {
            let text = serde_json::json!({ name: values }).to_string();
            prop_assert_eq!(without_nonfinite(&text), text);
        }
    }
}
