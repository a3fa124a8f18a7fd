//! Task data: JSON lines of one kind a file.
//!
//! | kind | keys | metrics |
//! |---|---|---|
//! | exact match | `prompt`, `answer` | `exact_match` |
//! | multiple choice | `prompt`, `choices`, `gold` | `acc`, `acc_norm` |
//! | perplexity | `text` | `bits_per_byte` |
//!
//! Every line may have an `id` (an integer or a string); without one it is the line's number from 0. Blank lines are
//! skipped but counted; a byte-order mark at the beginning is passed over.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::digest::hex;
use crate::evaluate::{EvaluateError, MetricCapability, TaskCapability, hash_parts};
use crate::repeated_keys::refuse_repeated_keys;
use crate::scores::SampleId;

/// How a sample is asked and judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskKind {
    ExactMatch,
    MultipleChoice,
    Perplexity,
}

impl TaskKind {
    /// The metrics that fit this kind, the default first.
    pub(super) const fn metrics(self) -> &'static [&'static str] {
        match self {
            Self::ExactMatch => &["exact_match"],
            Self::MultipleChoice => &["acc", "acc_norm"],
            Self::Perplexity => &["bits_per_byte"],
        }
    }

    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::ExactMatch => "exact match (prompt, answer)",
            Self::MultipleChoice => "multiple choice (prompt, choices, gold)",
            Self::Perplexity => "perplexity (text)",
        }
    }

    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::ExactMatch => &["prompt", "answer"],
            Self::MultipleChoice => &["prompt", "choices", "gold"],
            Self::Perplexity => &["text"],
        }
    }
}

/// What one sample asks.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    ExactMatch { prompt: String, answer: String },
    MultipleChoice { prompt: String, choices: Vec<String>, gold: usize },
    Perplexity { text: String },
}

impl Content {
    const fn kind(&self) -> TaskKind {
        match self {
            Self::ExactMatch { .. } => TaskKind::ExactMatch,
            Self::MultipleChoice { .. } => TaskKind::MultipleChoice,
            Self::Perplexity { .. } => TaskKind::Perplexity,
        }
    }

    /// sha256 over the kind and every field with its length: the same sample in two files has the same hash,
    /// whatever its id, the order of its keys or its escapes.
    fn sha256(&self) -> String {
        match self {
            Self::ExactMatch { prompt, answer } => hash_parts(["exact_match", prompt, answer]),
            Self::MultipleChoice { prompt, choices, gold } => {
                let choices = choices.iter().map(String::as_str);
                hash_parts(["multiple_choice", prompt].into_iter().chain(choices).chain([gold.to_string().as_str()]))
            }
            Self::Perplexity { text } => hash_parts(["perplexity", text]),
        }
    }
}

/// One sample of a task.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) id: SampleId,
    pub(super) content: Content,
}

/// A task's data, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TaskData {
    pub(super) kind: TaskKind,
    /// In file order; never empty; all of `kind`; ids unique.
    pub(super) samples: Vec<Sample>,
    /// sha256 of the file's bytes.
    pub(super) file_sha256: String,
}

impl TaskData {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`EvaluateError::TaskData`] with the file, the line and the field at fault.
    pub(super) fn read(path: &Path) -> Result<Self, EvaluateError> {
        let fail = |reason: String| EvaluateError::TaskData { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
        let file_sha256 = hex(&Sha256::digest(&bytes));
        let text = str::from_utf8(&bytes).map_err(|error| {
            let line = bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
            fail(format!("line {line}: not UTF-8"))
        })?;
        let samples = parse(text.strip_prefix('\u{feff}').unwrap_or(text)).map_err(fail)?;
        let kind = samples.first().ok_or_else(|| fail("is empty: expected one JSON object a line".to_owned()))?;
        Ok(Self { kind: kind.content.kind(), samples, file_sha256 })
    }

    /// What callers may ask of this task.
    pub(super) fn capability(&self) -> TaskCapability {
        let metric = |name: &&str| {
            let is_bits = self.kind == TaskKind::Perplexity;
            let capability = MetricCapability {
                higher_is_better: !is_bits,
                min: Some(0.0),
                max: (!is_bits).then_some(1.0),
                is_mean: !is_bits,
            };
            ((*name).to_owned(), capability)
        };
        TaskCapability {
            n_samples: self.samples.len() as u64,
            sample_ids: Some(self.samples.iter().map(|sample| sample.id.clone()).collect()),
            metrics: self.kind.metrics().iter().map(metric).collect::<BTreeMap<_, _>>(),
            supports_sample_ids: true,
            supports_limit: true,
            supports_per_sample: true,
            sample_hashes: Some(self.samples.iter().map(|sample| sample.content.sha256()).collect()),
            sample_set: None,
        }
    }
}

fn parse(text: &str) -> Result<Vec<Sample>, String> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut seen = HashSet::new();
    for (number, line) in text.split('\n').enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let sample = parse_line(number, line).map_err(|reason| format!("line {}: {reason}", number + 1))?;
        if let Some(first) = samples.first()
            && first.content.kind() != sample.content.kind()
        {
            return Err(format!(
                "line {}: is {}, but the file began with {}; one file holds one kind of sample",
                number + 1,
                sample.content.kind().describe(),
                first.content.kind().describe(),
            ));
        }
        if !seen.insert(sample.id.clone()) {
            return Err(format!(
                "line {}: id {} is taken by an earlier line (a line without `id` has its number from 0 as id)",
                number + 1,
                sample.id
            ));
        }
        samples.push(sample);
    }
    Ok(samples)
}

fn parse_line(number: usize, line: &str) -> Result<Sample, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {}", in_line(&error)))?;
    refuse_repeated_keys(line.as_bytes()).map_err(|error| in_line(&error))?;
    let Value::Object(object) = value else {
        return Err(format!("expected a JSON object, found {}", type_name(&value)));
    };
    let kind = if object.contains_key("choices") {
        TaskKind::MultipleChoice
    } else if object.contains_key("text") {
        TaskKind::Perplexity
    } else if object.contains_key("prompt") || object.contains_key("answer") {
        TaskKind::ExactMatch
    } else {
        return Err("expected `prompt` and `answer`, or `prompt`, `choices` and `gold`, or `text`".to_owned());
    };
    check_keys(&object, kind)?;
    let content = match kind {
        TaskKind::ExactMatch => {
            Content::ExactMatch { prompt: string(&object, "prompt")?, answer: string(&object, "answer")? }
        }
        TaskKind::MultipleChoice => {
            let choices = choices(&object)?;
            let gold = gold(&object, choices.len())?;
            Content::MultipleChoice { prompt: string(&object, "prompt")?, choices, gold }
        }
        TaskKind::Perplexity => {
            let text = string(&object, "text")?;
            if text.is_empty() {
                return Err("`text` is empty".to_owned());
            }
            Content::Perplexity { text }
        }
    };
    Ok(Sample { id: id(&object, number)?, content })
}

/// The parser's words with its column alone: to it, every line is line 1.
fn in_line(error: &serde_json::Error) -> String {
    let (text, column) = (error.to_string(), error.column());
    match text.strip_suffix(&format!(" at line {} column {column}", error.line())) {
        Some(said) => format!("{said} (column {column})"),
        None => text,
    }
}

fn check_keys(object: &Map<String, Value>, kind: TaskKind) -> Result<(), String> {
    if let Some(missing) = kind.keys().iter().find(|key| !object.contains_key(**key)) {
        return Err(format!("`{missing}` is missing; {} needs it", kind.describe()));
    }
    match object.keys().find(|key| key.as_str() != "id" && !kind.keys().contains(&key.as_str())) {
        Some(unknown) => Err(format!(
            "unknown key `{unknown}`; {} has {} and, if wanted, id",
            kind.describe(),
            kind.keys().join(", ")
        )),
        None => Ok(()),
    }
}

fn string(object: &Map<String, Value>, key: &str) -> Result<String, String> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("`{key}` must be a string, found {}", type_name(other))),
        None => Err(format!("`{key}` is missing")),
    }
}

fn choices(object: &Map<String, Value>) -> Result<Vec<String>, String> {
    let Some(Value::Array(values)) = object.get("choices") else {
        return Err("`choices` must be a list of strings".to_owned());
    };
    let mut choices = Vec::with_capacity(values.len());
    for (index, value) in values.iter().enumerate() {
        match value {
            Value::String(text) if !text.is_empty() => choices.push(text.clone()),
            Value::String(_) => return Err(format!("`choices[{index}]` is empty")),
            other => return Err(format!("`choices[{index}]` must be a string, found {}", type_name(other))),
        }
    }
    if choices.len() < 2 {
        return Err(format!("`choices` has {} entries; a choice needs at least 2", choices.len()));
    }
    Ok(choices)
}

fn gold(object: &Map<String, Value>, choices: usize) -> Result<usize, String> {
    let value = object.get("gold").unwrap_or(&Value::Null);
    value.as_u64().and_then(|gold| usize::try_from(gold).ok()).filter(|gold| *gold < choices).ok_or_else(|| {
        format!("`gold` must be the index of the right choice, a whole number from 0 to {}, found {value}", choices - 1)
    })
}

fn id(object: &Map<String, Value>, number: usize) -> Result<SampleId, String> {
    match object.get("id") {
        None => Ok(SampleId::Number(number as i64)),
        Some(Value::String(text)) => Ok(SampleId::Text(text.clone())),
        Some(value) => value
            .as_i64()
            .map(SampleId::Number)
            .ok_or_else(|| format!("`id` must be a string or a 64-bit whole number, found {value}")),
    }
}

const fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<TaskData, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        TaskData::read(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_each_kind() {
        let exact =
            read("{\"prompt\":\"a\",\"answer\":\"b\"}\n\n{\"id\":\"x\",\"prompt\":\"c\",\"answer\":\"\"}\n").unwrap();
        assert_eq!(exact.kind, TaskKind::ExactMatch);
        assert_eq!(exact.samples[0].id, SampleId::Number(0));
        assert_eq!(exact.samples[1].id, SampleId::Text("x".into()));
        let choice = read("{\"prompt\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":1,\"id\":-7}\r\n").unwrap();
        assert_eq!(choice.samples[0].id, SampleId::Number(-7));
        assert_eq!(choice.kind.metrics(), ["acc", "acc_norm"]);
        let text = read("{\"text\":\"é\"}").unwrap();
        assert!(!text.capability().metrics["bits_per_byte"].higher_is_better);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let data = read("\u{feff}{\"prompt\":\"a\",\"answer\":\"b\"}\n").unwrap();
        assert_eq!(data.samples[0].id, SampleId::Number(0));
    }

    #[test]
    fn a_line_that_is_no_json_has_one_number() {
        let error = read("{\"text\":\"a\"}\n{\"text\":").unwrap_err();
        assert!(error.ends_with("line 2: not JSON: EOF while parsing a value (column 8)"), "{error}");
    }

    #[test]
    fn a_blank_line_is_counted() {
        let data = read("\n{\"prompt\":\"a\",\"answer\":\"b\"}\n").unwrap();
        assert_eq!(data.samples[0].id, SampleId::Number(1));
    }

    #[test]
    fn names_line_and_field_of_bad_data() {
        let good = "{\"prompt\":\"a\",\"answer\":\"b\"}\n";
        let cases: &[(&str, &[&str])] = &[
            ("", &["is empty"]),
            ("\n \n", &["is empty"]),
            ("{\"prompt\":", &["line 1", "not JSON"]),
            ("[1]", &["line 1", "a list"]),
            ("{}", &["line 1", "`prompt`"]),
            ("{\"prompt\":\"a\"}", &["line 1", "`answer` is missing"]),
            ("{\"prompt\":\"a\",\"answer\":3}", &["line 1", "`answer` must be a string, found a number"]),
            ("{\"prompt\":\"a\",\"answer\":\"b\",\"anwser\":\"c\"}", &["line 1", "unknown key `anwser`"]),
            ("{\"prompt\":\"a\",\"choices\":[\"b\"],\"gold\":0}", &["line 1", "at least 2"]),
            ("{\"prompt\":\"a\",\"choices\":[\"b\",1],\"gold\":0}", &["`choices[1]` must be a string"]),
            ("{\"prompt\":\"a\",\"choices\":[\"b\",\"\"],\"gold\":0}", &["`choices[1]` is empty"]),
            ("{\"prompt\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":2}", &["`gold`", "from 0 to 1, found 2"]),
            ("{\"prompt\":\"a\",\"choices\":[\"b\",\"c\"]}", &["`gold` is missing"]),
            ("{\"prompt\":\"a\",\"choices\":\"bc\",\"gold\":0}", &["`choices` must be a list"]),
            ("{\"text\":\"\"}", &["`text` is empty"]),
            ("{\"text\":\"a\",\"id\":1.5}", &["`id`", "1.5"]),
            ("{\"text\":\"a\",\"text\":\"b\"}", &["line 1", "the key \"text\" appears twice"]),
        ];
        for (text, parts) in cases {
            let error = read(text).unwrap_err();
            for part in *parts {
                assert!(error.contains(part), "{text}: {error} lacks {part}");
            }
        }
        let error = read(&format!("{good}{{\"prompt\":\"c\",\"answer\":\"d\",\"id\":0}}")).unwrap_err();
        assert!(error.contains("line 2") && error.contains("id 0"), "{error}");
        let error = read(&format!("{good}{{\"text\":\"d\"}}")).unwrap_err();
        assert!(error.contains("line 2") && error.contains("one kind"), "{error}");
    }

    #[test]
    fn not_utf8_names_its_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"text\":\"a\"}\n{\"text\":\"\xff\"}\n").unwrap();
        let error = TaskData::read(file.path()).unwrap_err().to_string();
        assert!(error.contains("line 2: not UTF-8"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = TaskData::read(Path::new("nowhere/add.jsonl")).unwrap_err().to_string();
        assert!(error.contains("add.jsonl") && error.contains("cannot be read"), "{error}");
    }

    #[test]
    fn hashes_see_content_and_nothing_else() {
        let hashes = |text: &str| read(text).unwrap().capability().sample_hashes.unwrap();
        let plain = hashes("{\"prompt\":\"a\",\"answer\":\"b\"}");
        assert_eq!(plain, hashes("{\"id\":9,\"answer\":\"\\u0062\",\"prompt\":\"a\"}"));
        assert_ne!(plain, hashes("{\"prompt\":\"ab\",\"answer\":\"\"}"));
        assert_ne!(
            hashes("{\"prompt\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":0}"),
            hashes("{\"prompt\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":1}")
        );
    }

    #[test]
    fn hashes_are_pinned() {
        for (text, hash) in [
            (r#"{"prompt":"a","answer":"b"}"#, "9e9e6ab8cf2364a09a05499a396122ffed49b794d8bfbc1d6a2a56b0af127a6d"),
            (
                r#"{"prompt":"a","choices":["b","ç"],"gold":1}"#,
                "f6f88adfa2580565e0e0a76e9509234d8713b0d0f685779fd73fd11f900909b4",
            ),
            (r#"{"text":"t"}"#, "09502a72a8cdbe8ad05358a94b0c3ca9384c6e221523b6bf052c7b1c2738389e"),
        ] {
            assert_eq!(read(text).unwrap().capability().sample_hashes.unwrap(), [hash], "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_data_or_an_error(text in "\\PC{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn strings_come_back_whole(prompt in any::<String>(), answer in any::<String>()) {
            let line = serde_json::json!({"prompt": prompt, "answer": answer}).to_string();
            let samples = parse(&line).unwrap();
            prop_assert_eq!(&samples[0].content, &Content::ExactMatch { prompt, answer });
        }
    }
}
