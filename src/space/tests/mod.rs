//! Spaces over small made-up models: what genomes mean, tensor by tensor.

mod genes;
mod groups;
mod properties;
mod soups;

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::config::RunConfig;
use crate::recipe::{Body, Gradient, Input, MaskKind, Parameters, Recipe, Value};

const LAYERS: usize = 5;

/// A model whose final norm's name is part of every layer's norm's name.
pub(super) fn tensors() -> Vec<String> {
    let layer = |layer: usize| {
        ["self_attn.q.weight", "mlp.up.weight", "model.norm.weight"].map(|name| format!("model.layers.{layer}.{name}"))
    };
    let outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"].map(str::to_owned);
    (0..LAYERS).flat_map(layer).chain(outside).collect()
}

pub(super) fn facts(sources: &[&str], base: Option<&str>) -> ModelFacts {
    let reference = |name: &str| ModelReference::new(format!("/models/{name}"));
    ModelFacts {
        base: base.map(reference),
        sources: sources.iter().map(|name| ((*name).to_owned(), reference(name))).collect(),
        layers: LayerLayout {
            prefix: "model.layers.".to_owned(),
            count: LAYERS,
            first: vec!["model.embed_tokens.weight".to_owned()],
            last: vec!["lm_head.weight".to_owned(), "model.norm.weight".to_owned()],
        },
        tensors: tensors(),
        dtype: Some(Dtype::Float32),
        masks: Masks { kind: MaskKind::Native, seed: 7 },
        profiles: Vec::new(),
    }
}

/// `[space]` as the run file would give it.
pub(super) fn config(sources: &[&str], base: Option<&str>, space: &str) -> SpaceConfig {
    let base = base.map(|base| format!("base = '{base}', ")).unwrap_or_default();
    let text = format!(
        "name = 'x'\nmodels = {{ {base}sources = {sources:?} }}\nbudget = {{ evaluations = 9 }}\ntasks = [{{ name = 'y' }}]\n\
         evaluator = {{ kind = 'function', name = 'sphere' }}\n[space]\n{space}\n"
    );
    RunConfig::parse(&text, Path::new("/nowhere")).unwrap_or_else(|error| panic!("{error}\n{text}")).space.unwrap()
}

pub(super) fn space(sources: &[&str], base: Option<&str>, text: &str) -> SearchSpace {
    SearchSpace::new(&config(sources, base, text), &facts(sources, base)).unwrap()
}

pub(super) fn names(space: &SearchSpace) -> Vec<&str> {
    space.genes().iter().map(|gene| gene.name.as_str()).collect()
}

pub(super) fn ids(recipe: &Recipe) -> BTreeMap<ModelReference, String> {
    recipe.models().into_iter().map(|model| (model.clone(), model.to_string())).collect()
}

pub(super) fn hash(recipe: &Recipe) -> String {
    recipe.sha256(&ids(recipe)).unwrap()
}

/// The layer of a tensor; nothing for those without.
fn layer_of(tensor: &str) -> Option<usize> {
    tensor.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

fn is_first(tensor: &str) -> bool {
    tensor.contains("embed")
}

/// A parameter of one tensor by mergekit's rules: slice, scopes, filters, gradients.
fn resolve(recipe: &Recipe, tensor: &str, parameter: &str, model: Option<&ModelReference>) -> Option<f64> {
    let layer = layer_of(tensor);
    let (inputs, slice, first, length): (&[Input], Option<&Parameters>, usize, usize) = match &recipe.body {
        Body::Models(inputs) => (inputs, None, 0, LAYERS),
        Body::Slices(slices) => {
            let holds = |slice: &&crate::recipe::Slice| {
                let (first, end) = slice.sources[0].layer_range.unwrap();
                layer.is_some_and(|layer| (first..end).contains(&layer))
            };
            let slice = match layer {
                Some(_) => slices.iter().find(holds).unwrap(),
                None if is_first(tensor) => slices.first().unwrap(),
                None => slices.last().unwrap(),
            };
            let (first, end) = slice.sources[0].layer_range.unwrap();
            (&slice.sources, Some(&slice.parameters), first, end - first)
        }
    };
    let own = model.map(|model| &inputs.iter().find(|input| input.model == *model).unwrap().parameters);
    let scopes = [own, slice, Some(&recipe.parameters)];
    let entries = scopes.into_iter().flatten().filter_map(|scope| scope.get(parameter)).flat_map(|setting| &setting.0);
    let mut matching =
        entries.filter(|entry| entry.filter.as_ref().is_none_or(|filter| tensor.contains(filter.as_str())));
    let number = |value: &Value| match value {
        Value::Number(number) => *number,
        Value::Bool(truth) => f64::from(u8::from(*truth)),
    };
    match &matching.next()?.value {
        Gradient::Scalar(value) => Some(number(value)),
        Gradient::Points(points) => {
            let t = match (layer, length) {
                (None, _) => 0.0,
                (Some(_), 1) => 1.0,
                (Some(layer), length) => (layer - first) as f64 / (length - 1) as f64,
            };
            let position = t * (points.len() - 1) as f64;
            let (left, share) = ((position.floor() as usize).min(points.len() - 1), position.fract());
            let right = (left + 1).min(points.len() - 1);
            Some(number(&points[left]) * (1.0 - share) + number(&points[right]) * share)
        }
    }
}
