//! Text to tokens and back, with a candidate's own `tokenizer.json`, and the task data's tokens, kept across
//! candidates.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::data::{Content, Sample};
use super::fault;
use crate::evaluate::Fault;
use crate::evaluate::fault::{TOKENIZER_INVALID, TOKENIZER_MISSING};
use crate::lock::lock;

/// Tokenizers kept; candidates of a run share one, so more is for surprises.
const KEPT: usize = 4;

/// A sample's tokens.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Encoded {
    /// The prompt, with the tokens that the tokenizer puts before a text.
    ExactMatch(Vec<u32>),
    /// Context and continuation of each choice; a context may be empty.
    MultipleChoice(Vec<(Vec<u32>, Vec<u32>)>),
    /// The text without special tokens.
    Perplexity(Vec<u32>),
}

/// A tokenizer with the tokens of all samples that were asked for so far.
pub(super) struct Tokens {
    tokenizer: Tokenizer,
    /// Special tokens that the tokenizer puts after a text.
    appended: usize,
    /// By task name, aligned with the task's samples.
    tasks: Mutex<HashMap<String, Arc<Vec<Encoded>>>>,
}

impl Tokens {
    fn parse(bytes: &[u8], path: &Path) -> Result<Self, Fault> {
        let invalid =
            |error: tokenizers::Error| Fault::configuration(TOKENIZER_INVALID, format!("{}: {error}", path.display()));
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(invalid)?;
        tokenizer.with_truncation(None).map_err(invalid)?;
        tokenizer.with_padding(None);
        let probe = tokenizer.encode("a", true).map_err(invalid)?;
        let special = probe.get_special_tokens_mask();
        let trailing = special.iter().rev().take_while(|mask| **mask == 1).count();
        let appended = if trailing == special.len() { 0 } else { trailing };
        Ok(Self { tokenizer, appended, tasks: Mutex::new(HashMap::new()) })
    }

    /// The tokens of all samples of `task`, made at the first call.
    pub(super) fn task(&self, task: &str, samples: &[Sample]) -> Result<Arc<Vec<Encoded>>, Fault> {
        let mut tasks = lock(&self.tasks);
        if let Some(encoded) = tasks.get(task) {
            return Ok(encoded.clone());
        }
        let encoded = samples
            .iter()
            .map(|sample| self.encode_sample(sample).map_err(|reason| sample_fault(task, sample, &reason)))
            .collect::<Result<Vec<_>, _>>()?;
        let encoded = Arc::new(encoded);
        tasks.insert(task.to_owned(), encoded.clone());
        Ok(encoded)
    }

    fn encode_sample(&self, sample: &Sample) -> Result<Encoded, String> {
        match &sample.content {
            Content::ExactMatch { prompt, .. } => Ok(Encoded::ExactMatch(self.encode_prompt(prompt)?)),
            Content::MultipleChoice { prompt, choices, .. } => choices
                .iter()
                .map(|choice| self.encode_pair(prompt, choice))
                .collect::<Result<_, _>>()
                .map(Encoded::MultipleChoice),
            Content::Perplexity { text } => {
                let encoding = self.tokenizer.encode_fast(text.as_str(), false).map_err(|error| error.to_string())?;
                match encoding.get_ids() {
                    [] => Err("the tokenizer makes no token of its text".to_owned()),
                    ids => Ok(Encoded::Perplexity(ids.to_vec())),
                }
            }
        }
    }

    /// As a call of the tokenizer, special tokens included, but for those that it appends (an end token after a prompt
    /// would end the answer before it begins).
    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|error| error.to_string())?;
        let mut ids = encoding.get_ids().to_vec();
        ids.truncate(ids.len().saturating_sub(self.appended));
        Ok(ids)
    }

    /// Splits as the language model evaluation harness does: spaces that end the context move to the continuation; the
    /// continuation is what the whole's tokens have beyond as many as the context alone has.
    fn encode_pair(&self, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        let kept = context.trim_end();
        let whole = format!("{context}{continuation}");
        let mut whole = self.encode_prompt(&whole)?;
        let context = self.encode_prompt(kept)?;
        if context.len() >= whole.len() {
            return Err(format!("the choice {continuation:?} has no token of its own after its prompt"));
        }
        let continuation = whole.split_off(context.len());
        Ok((whole, continuation))
    }

    /// Text of `ids`, special tokens included, nothing trimmed.
    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, Fault> {
        self.tokenizer
            .decode(ids, false)
            .map_err(|error| Fault::configuration(TOKENIZER_INVALID, format!("tokens cannot be decoded: {error}")))
    }
}

fn sample_fault(task: &str, sample: &Sample, reason: &str) -> Fault {
    Fault::configuration("task_failed", format!("task `{task}`, sample {}: {reason}", sample.id))
}

/// Tokenizers by the hash of their file.
#[derive(Default)]
pub(super) struct Tokenizers {
    kept: Mutex<Vec<([u8; 32], Arc<Tokens>)>>,
}

impl Tokenizers {
    /// The tokenizer of the checkpoint in `folder`.
    ///
    /// # Errors
    /// A configuration fault when there is none, or one that cannot be parsed.
    pub(super) fn of(&self, folder: &Path) -> Result<Arc<Tokens>, Fault> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound if folder.is_dir() => Fault::configuration(TOKENIZER_MISSING, missing(folder)),
            _ => fault::unreadable(format!("{} cannot be read: {error}", path.display())),
        })?;
        let key: [u8; 32] = Sha256::digest(&bytes).into();
        let mut kept = lock(&self.kept);
        if let Some((_, tokens)) = kept.iter().find(|(hash, _)| *hash == key) {
            return Ok(tokens.clone());
        }
        let tokens = Arc::new(Tokens::parse(&bytes, &path)?);
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push((key, tokens.clone()));
        Ok(tokens)
    }
}

fn missing(folder: &Path) -> String {
    let advice = "put the one of the models' family into the folder of the model that candidates take it from (the \
                  base, or a source by itself); `AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one";
    format!("{} has no tokenizer.json, which the native evaluator needs: {advice}", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::FaultClass;

    const ZOO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/evals/tiny-llama/base");

    #[test]
    fn a_tokenizer_is_parsed_once() {
        let tokenizers = Tokenizers::default();
        let first = tokenizers.of(Path::new(ZOO)).unwrap();
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(Path::new(ZOO).join("tokenizer.json"), copy.path().join("tokenizer.json")).unwrap();
        assert!(Arc::ptr_eq(&first, &tokenizers.of(copy.path()).unwrap()));
    }

    #[test]
    fn a_missing_or_broken_tokenizer_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizers = Tokenizers::default();
        let fault = tokenizers.of(folder.path()).err().unwrap();
        assert_eq!((fault.class, fault.code.as_str()), (FaultClass::Configuration, "tokenizer_missing"));
        assert!(fault.detail.contains("save_pretrained"), "{}", fault.detail);
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let fault = tokenizers.of(folder.path()).err().unwrap();
        assert_eq!((fault.class, fault.code.as_str()), (FaultClass::Configuration, "tokenizer_invalid"));
        let fault = tokenizers.of(&folder.path().join("gone")).err().unwrap();
        assert_eq!(fault.class, FaultClass::Infrastructure);
    }

    #[test]
    fn prompts_begin_with_the_begin_token_and_pairs_split_at_it() {
        let tokens = Tokenizers::default().of(Path::new(ZOO)).unwrap();
        assert_eq!(tokens.encode_prompt("a=").unwrap(), [1, 15, 68]);
        assert_eq!(tokens.encode_prompt("").unwrap(), [1]);
        assert_eq!(tokens.encode_pair("a= ", "b").unwrap(), (vec![1, 15, 68], vec![4, 16]));
        assert_eq!(tokens.decode(&[15, 2, 16]).unwrap(), "a<eos>b");
    }

    #[test]
    fn appended_end_tokens_are_dropped() {
        let text = std::fs::read_to_string(Path::new(ZOO).join("tokenizer.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let processor = &mut json["post_processor"];
        processor["single"]
            .as_array_mut()
            .unwrap()
            .push(serde_json::json!({"SpecialToken": {"id": "<eos>", "type_id": 0}}));
        processor["special_tokens"]["<eos>"] = serde_json::json!({"id": "<eos>", "ids": [2], "tokens": ["<eos>"]});
        let tokens = Tokens::parse(json.to_string().as_bytes(), Path::new("tokenizer.json")).unwrap();
        assert_eq!(tokens.encode_prompt("a").unwrap(), [1, 15]);
        assert_eq!(tokens.encode_prompt("").unwrap(), [1]);
        assert_eq!(tokens.encode_prompt("a<eos>").unwrap(), [1, 15, 2]);
    }
}
