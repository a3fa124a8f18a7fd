//! What a parameter is worth for one tensor: scopes, filters and gradients, as mergekit resolves them.

use std::collections::BTreeMap;

use super::MergeError;
use super::specification::{MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification};
use crate::recipe::{Gradient, Parameters, Setting, Value};

/// A parameter's value for one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterValue {
    /// The value of a [`ParameterKind::Number`]; finite.
    Number(f64),
    /// The value of a [`ParameterKind::Integer`]; what a gradient gives is rounded to a whole number.
    Integer(i64),
    /// The value of a [`ParameterKind::Bool`].
    Bool(bool),
}

/// The parameters of one output tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResolvedParameters {
    /// Parameters with one value for the tensor.
    pub tensor: BTreeMap<&'static str, ParameterValue>,
    /// The parameters of each source, in the order of the sources.
    pub sources: Vec<BTreeMap<&'static str, ParameterValue>>,
}

impl ResolvedParameters {
    pub(crate) fn number(&self, name: &str) -> Result<f64, MergeError> {
        number(&self.tensor, name)
    }

    pub(crate) fn integer(&self, name: &str) -> Result<i64, MergeError> {
        match self.tensor.get(name) {
            Some(ParameterValue::Integer(number)) => Ok(*number),
            _ => Err(undeclared(name)),
        }
    }

    pub(crate) fn truth(&self, name: &str) -> Result<bool, MergeError> {
        match self.tensor.get(name) {
            Some(ParameterValue::Bool(truth)) => Ok(*truth),
            _ => Err(undeclared(name)),
        }
    }

    /// That parameter of every source.
    pub(crate) fn source_numbers(&self, name: &str) -> Result<Vec<f64>, MergeError> {
        self.sources.iter().map(|source| number(source, name)).collect()
    }
}

fn number(values: &BTreeMap<&'static str, ParameterValue>, name: &str) -> Result<f64, MergeError> {
    match values.get(name) {
        Some(ParameterValue::Number(number)) => Ok(*number),
        _ => Err(undeclared(name)),
    }
}

fn undeclared(name: &str) -> MergeError {
    MergeError::Internal(format!("a method asks for parameter `{name}`, which it has not declared so"))
}

/// Where in a slice a tensor stands, in `[0, 1]`: the place at which gradients are read.
///
/// Layer `index` of `count` is at `index / (count - 1)`, the only layer of a slice at 1, and so is a block of another tower
/// of the model among that tower's. Every other tensor is at 0: embeddings, final norm and head take a gradient's first
/// value.
pub(crate) fn depth(layer: Option<(usize, usize)>) -> f64 {
    match layer {
        None => 0.0,
        Some((_, 0 | 1)) => 1.0,
        Some((index, count)) => index as f64 / (count - 1) as f64,
    }
}

/// The value that a scope's setting gives a tensor: the first entry whose filter is a part of the name; `None`: none
/// is.
fn select<'a>(setting: &'a Setting, tensor: &str) -> Option<&'a Gradient> {
    let matches = |filter: &Option<String>| match filter.as_deref() {
        None | Some("*") => true,
        Some(part) => tensor.contains(part),
    };
    setting.0.iter().find(|entry| matches(&entry.filter)).map(|entry| &entry.value)
}

/// Piecewise linear for numbers, in steps for truth values.
fn read_gradient(gradient: &Gradient, depth: f64) -> Option<Value> {
    let points = match gradient {
        Gradient::Scalar(value) => return Some(value.clone()),
        Gradient::Points(points) => points,
    };
    let last = points.len().checked_sub(1)?;
    let position = depth.clamp(0.0, 1.0) * last as f64;
    let low = (position as usize).min(last);
    let high = (low + 1).min(last);
    let share = position - low as f64;
    match (&points[low], &points[high]) {
        (Value::Number(low), Value::Number(high)) => Some(Value::Number((1.0 - share) * low + share * high)),
        (value, _) => Some(value.clone()),
    }
}

/// The value that the scopes, narrowest first, give a tensor; the default where none does, `None` without one.
///
/// # Errors
/// The value has another type than the method declares.
pub(crate) fn resolve(
    specification: &ParameterSpecification,
    scopes: &[&Parameters],
    tensor: &str,
    depth: f64,
) -> Result<Option<ParameterValue>, String> {
    let given = scopes
        .iter()
        .filter_map(|scope| scope.get(specification.name))
        .find_map(|setting| select(setting, tensor))
        .and_then(|gradient| read_gradient(gradient, depth));
    let Some(value) = given else {
        return Ok(match specification.kind {
            ParameterKind::Number { default, .. } => default.map(ParameterValue::Number),
            ParameterKind::Integer { default, .. } => default.map(ParameterValue::Integer),
            ParameterKind::Bool { default } => Some(ParameterValue::Bool(default)),
        });
    };
    let name = specification.name;
    match (specification.kind, value) {
        (ParameterKind::Number { .. }, Value::Number(number)) if number.is_finite() => {
            Ok(Some(ParameterValue::Number(number)))
        }
        // A gradient of whole numbers may pass through others.
        (ParameterKind::Integer { .. }, Value::Number(number)) if number.is_finite() => {
            Ok(Some(ParameterValue::Integer(number.round() as i64)))
        }
        (ParameterKind::Bool { .. }, Value::Bool(truth)) => Ok(Some(ParameterValue::Bool(truth))),
        (ParameterKind::Bool { .. }, Value::Number(number)) if number == 0.0 || number == 1.0 => {
            Ok(Some(ParameterValue::Bool(number == 1.0)))
        }
        (ParameterKind::Bool { .. }, _) => Err(format!("parameter `{name}` must be true or false")),
        (_, _) => Err(format!("parameter `{name}` must be a finite number")),
    }
}

/// The parameters of `method` that belong to `scope`.
pub(crate) fn of_scope(
    method: &MethodSpecification,
    scope: ParameterScope,
) -> impl Iterator<Item = &'static ParameterSpecification> {
    method.parameters.iter().filter(move |parameter| parameter.scope == scope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::find_method;
    use crate::recipe::FilteredValue;

    fn setting(entries: &[(Option<&str>, &[f64])]) -> Setting {
        let entry = |(filter, points): &(Option<&str>, &[f64])| FilteredValue {
            filter: filter.map(str::to_owned),
            value: Gradient::Points(points.iter().map(|point| Value::Number(*point)).collect()),
        };
        Setting(entries.iter().map(entry).collect())
    }

    fn number(scopes: &[&Parameters], tensor: &str, depth: f64) -> Option<ParameterValue> {
        let specification = find_method("ties").and_then(|method| method.parameter("weight")).unwrap();
        resolve(specification, scopes, tensor, depth).unwrap()
    }

    #[test]
    fn layers_are_spread_over_a_slice_and_all_else_is_at_its_start() {
        assert_eq!(depth(None), 0.0);
        assert_eq!(depth(Some((0, 1))), 1.0);
        assert_eq!(depth(Some((0, 4))), 0.0);
        assert_eq!(depth(Some((1, 4))), 1.0 / 3.0);
        assert_eq!(depth(Some((3, 4))), 1.0);
    }

    #[test]
    fn the_first_filter_that_matches_wins_and_no_match_falls_through() {
        let source = Parameters::from([("weight".into(), setting(&[(Some("mlp"), &[0.1]), (Some("up"), &[0.2])]))]);
        let slice = Parameters::from([("weight".into(), setting(&[(Some("Norm"), &[0.3])]))]);
        let recipe = Parameters::from([("weight".into(), setting(&[(Some("*"), &[0.4])]))]);
        let scopes = [&source, &slice, &recipe];
        assert_eq!(number(&scopes, "layers.0.mlp.up_proj.weight", 0.0), Some(ParameterValue::Number(0.1)));
        assert_eq!(number(&scopes, "layers.0.up.weight", 0.0), Some(ParameterValue::Number(0.2)));
        assert_eq!(number(&scopes, "layers.0.Norm.weight", 0.0), Some(ParameterValue::Number(0.3)));
        // Upper and lower case differ.
        assert_eq!(number(&scopes, "layers.0.norm.weight", 0.0), Some(ParameterValue::Number(0.4)));
        assert_eq!(number(&scopes[..2], "layers.0.norm.weight", 0.0), None);
    }

    #[test]
    fn gradients_are_piecewise_linear() {
        let recipe = Parameters::from([("weight".into(), setting(&[(None, &[0.0, 1.0, 0.5])]))]);
        for (depth, expected) in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 0.75), (1.0, 0.5)] {
            assert_eq!(number(&[&recipe], "any", depth), Some(ParameterValue::Number(expected)));
        }
    }

    #[test]
    fn gradients_of_truth_values_go_in_steps() {
        let points = Gradient::Points(vec![Value::Bool(true), Value::Bool(false)]);
        let entry = FilteredValue { filter: None, value: points };
        let recipe = Parameters::from([("normalize".into(), Setting(vec![entry]))]);
        let specification = find_method("ties").and_then(|method| method.parameter("normalize")).unwrap();
        let at = |depth| resolve(specification, &[&recipe], "any", depth).unwrap();
        assert_eq!(at(0.9), Some(ParameterValue::Bool(true)));
        assert_eq!(at(1.0), Some(ParameterValue::Bool(false)));
    }
}
