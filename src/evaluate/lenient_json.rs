//! JSON as Python writes it: bare `NaN`, `Infinity`, `-Infinity`, and numbers beyond the range of a double. They are
//! turned into `null` before parsing, so that a program's non-finite score is seen as what it is.

/// The same JSON with every number that is not finite replaced by `null`. Text inside strings is left alone; anything
/// else that is not JSON stays as it is, for the parser to refuse.
pub(super) fn without_nonfinite(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut start = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                let end = end_of_word(bytes, at);
                if is_nonfinite(&text[at..end]) {
                    out.push_str(&text[start..at]);
                    out.push_str("null");
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
fn end_of_string(bytes: &[u8], at: usize) -> usize {
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

fn is_nonfinite(word: &str) -> bool {
    if matches!(word, "NaN" | "Infinity" | "-Infinity") {
        return true;
    }
    let number = word.trim_start_matches('-').starts_with(|c: char| c.is_ascii_digit());
    number && word.parse::<f64>().is_ok_and(|value| !value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::without_nonfinite;
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
