//! Log-likelihoods of given continuations: multiple choice and perplexity.
//!
//! Every sample is computed by itself, so its numbers are the same bits whatever else is asked for.

use candle_core::Tensor;

use super::fault;
use super::model::{Cache, Model};
use crate::evaluate::Fault;

/// Positions whose logits exist at once; fixed, as it is part of how numbers come about.
const ROWS: usize = 64;

/// Log-likelihoods (natural logarithm) of each choice's continuation after its context.
///
/// What the choices' contexts have in common is computed once.
///
/// # Errors
/// A candidate fault for logits that are not finite; a configuration fault for an empty context of a model that names
/// no token to begin with.
pub(super) fn choices(model: &Model, pairs: &[(Vec<u32>, Vec<u32>)]) -> Result<Vec<f64>, Fault> {
    let prefix = prefix(model, pairs.iter().any(|(context, _)| context.is_empty()))?;
    let contexts: Vec<&[u32]> =
        pairs.iter().map(|(context, _)| if context.is_empty() { &prefix[..] } else { &context[..] }).collect();
    let shared = common_prefix(&contexts);
    // The last token of a context predicts the continuation's first: it is left to each choice.
    let shared = &shared[..shared.len().min(contexts.iter().map(|context| context.len() - 1).min().unwrap_or(0))];
    let mut begun = model.cache();
    if !shared.is_empty() {
        model.forward(shared, 1, &mut begun)?;
    }
    contexts
        .iter()
        .zip(pairs)
        .map(|(context, (_, continuation))| {
            log_likelihood(model, begun.clone(), &context[shared.len()..], continuation)
        })
        .collect()
}

/// Log-likelihood (natural logarithm) of all of `ids`, in windows of the model's context, each token predicted once.
/// The first window begins with the prefix token; a later one with as much of what came before as fits.
///
/// # Errors
/// As [`choices`].
pub(super) fn text(model: &Model, ids: &[u32], check: impl Fn() -> Result<(), Fault>) -> Result<f64, Fault> {
    let prefix = prefix(model, true)?;
    let mut total = 0.0;
    for (context, part) in windows(&prefix, ids, model.architecture.context) {
        check()?;
        total += log_likelihood(model, model.cache(), context, part)?;
    }
    Ok(total)
}

/// Windows of at most `limit` inputs as (context, tokens to predict).
fn windows<'a>(prefix: &'a [u32], ids: &'a [u32], limit: usize) -> Vec<(&'a [u32], &'a [u32])> {
    let first = ids.len().min(limit);
    let mut windows = vec![(prefix, &ids[..first])];
    let mut done = first;
    while done < ids.len() {
        let end = ids.len().min(done + limit);
        windows.push((&ids[end.saturating_sub(limit + 1)..done], &ids[done..end]));
        done = end;
    }
    windows
}

fn prefix(model: &Model, needed: bool) -> Result<Vec<u32>, Fault> {
    match model.architecture.prefix_token() {
        Some(token) => Ok(vec![token]),
        None if !needed => Ok(Vec::new()),
        None => Err(Fault::configuration(
            "tokenizer_invalid",
            "a text without context needs a token before it, but config.json names neither bos_token_id nor eos_token_id",
        )),
    }
}

fn common_prefix<'a>(lists: &[&'a [u32]]) -> &'a [u32] {
    let Some((first, rest)) = lists.split_first() else { return &[] };
    let shared = |list: &&[u32]| first.iter().zip(*list).take_while(|(a, b)| a == b).count();
    &first[..rest.iter().map(shared).min().unwrap_or(first.len())]
}

/// Sum over `continuation` of its tokens' log-probabilities, after what `cache` has seen and `context` (not empty).
fn log_likelihood(model: &Model, mut cache: Cache, context: &[u32], continuation: &[u32]) -> Result<f64, Fault> {
    let mut input = [context, continuation].concat();
    input.pop();
    let hidden = model.forward(&input, 1, &mut cache)?.squeeze(0).map_err(fault::tensor)?;
    let mut total = 0.0;
    for (block, targets) in continuation.chunks(ROWS).enumerate() {
        let from = context.len() - 1 + block * ROWS;
        let rows: Tensor = hidden.narrow(0, from, targets.len()).map_err(fault::tensor)?;
        let logits = model.logits(&rows)?;
        for (row, target) in logits.chunks_exact(model.architecture.vocabulary).zip(targets) {
            total += log_probability(row, *target);
        }
    }
    Ok(total)
}

/// Log-softmax of finite `logits` at `target`, summed in float64.
fn log_probability(logits: &[f32], target: u32) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    f64::from(logits[target as usize]) - largest - sum.ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn probabilities_sum_to_one() {
        let logits = [1000.0, 999.0, -50.0, 0.25];
        let sum: f64 = (0..4).map(|target| log_probability(&logits, target).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
        assert!((log_probability(&[0.0; 8], 3) + 8_f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn what_is_common() {
        assert_eq!(common_prefix(&[&[1, 2, 3], &[1, 2], &[1, 2, 4]]), [1, 2]);
        assert_eq!(common_prefix(&[&[1, 2, 3]]), [1, 2, 3]);
        assert!(common_prefix(&[&[1], &[2]]).is_empty());
    }

    proptest! {
        #[test]
        fn windows_predict_every_token_once(length in 1usize..40, limit in 1usize..12) {
            let ids: Vec<u32> = (0..length as u32).collect();
            let windows = windows(&[99], &ids, limit);
            let predicted: Vec<u32> = windows.iter().flat_map(|(_, part)| part.iter().copied()).collect();
            prop_assert_eq!(&predicted, &ids);
            for (context, part) in windows {
                prop_assert!(!context.is_empty());
                prop_assert!(context.len() + part.len() - 1 <= limit);
                let before = if context == [99] { 0 } else { context.last().unwrap() + 1 };
                prop_assert_eq!(before, part[0]);
            }
        }
    }
}
