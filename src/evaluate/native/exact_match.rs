//! Greedy decoding in batches of equally long prompts.

use super::deadline::Deadline;
use super::fault;
use super::model::Model;
use crate::evaluate::Fault;

/// An answer as it was generated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Tokens before the end token.
    pub(super) ids: Vec<u32>,
    /// No end token came within the limit.
    pub(super) truncated: bool,
}

/// Answers the prompts (all of one length, at least one token) with the likeliest token at every step, up to an end
/// token or `max_new_tokens` tokens, the end token counted.
///
/// # Errors
/// A candidate fault for logits that are not finite; what `deadline` says.
pub(super) fn greedy(
    model: &Model,
    prompts: &[&[u32]],
    max_new_tokens: usize,
    deadline: &Deadline,
) -> Result<Vec<Answer>, Fault> {
    let mut answers = vec![Answer { ids: Vec::new(), truncated: true }; prompts.len()];
    // Rows of the batch, by the prompt that each belongs to; finished ones leave once they are half of it.
    let mut rows: Vec<usize> = (0..prompts.len()).collect();
    let mut cache = model.cache();
    let mut input = prompts.concat();
    for _ in 0..max_new_tokens {
        deadline.check()?;
        let hidden = model.forward(&input, rows.len(), &mut cache)?;
        let length = input.len() / rows.len();
        let last = hidden.narrow(1, length - 1, 1).and_then(|h| h.squeeze(1)).map_err(fault::tensor)?;
        let logits = model.logits(&last)?;
        let next: Vec<u32> = logits.chunks_exact(model.architecture.vocabulary).map(likeliest).collect();
        for (&row, &token) in rows.iter().zip(&next) {
            let answer = &mut answers[row];
            if !answer.truncated {
                continue;
            }
            if model.architecture.eos.contains(&token) {
                answer.truncated = false;
            } else {
                answer.ids.push(token);
            }
        }
        let open: Vec<u32> = (0..rows.len()).filter(|&at| answers[rows[at]].truncated).map(|at| at as u32).collect();
        if open.is_empty() {
            break;
        }
        input = next;
        if open.len() * 2 <= rows.len() {
            cache.keep_rows(&open)?;
            rows = open.iter().map(|&at| rows[at as usize]).collect();
            input = open.iter().map(|&at| input[at as usize]).collect();
        }
    }
    Ok(answers)
}

/// Index of the largest logit, the first of equals.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (at, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = at;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::likeliest;

    #[test]
    fn the_first_of_equals_wins() {
        assert_eq!(likeliest(&[-1.0, 2.0, 2.0, 0.0]), 1);
        assert_eq!(likeliest(&[-1.0]), 0);
    }
}
