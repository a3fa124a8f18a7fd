//! Reading parameter settings: scalars, gradients and filters, typed by the merge method's declaration.

use super::{FilteredValue, Gradient, Parameters, Setting, Value};
use crate::document::{Content, Field, FieldError};
use crate::merge::{DENSITY, DROP_RATE, MethodSpecification, ParameterKind, ParameterScope};
use crate::suggestion::nearest;

/// Parameters that files written for mergekit carry although they change nothing: read and dropped.
/// `int8_mask` has no numerical effect anywhere; `normalize` stands in configurations of methods that do not have it.
const WITHOUT_EFFECT: [&str; 2] = ["int8_mask", "normalize"];

/// Reads a `parameters` table. `source` says that it belongs to one input; `skip` is asked about parameters that the
/// method does not have.
pub(super) fn read(
    field: Option<Field<'_>>,
    method: &MethodSpecification,
    source: bool,
    skip: &mut dyn FnMut(&str, &Field<'_>) -> bool,
) -> Result<Parameters, FieldError> {
    let mut parameters = Parameters::new();
    let Some(field) = field else { return Ok(parameters) };
    for (name, field) in field.named()? {
        let Some(specification) = method.parameter(name) else {
            if WITHOUT_EFFECT.contains(&name) || skip(name, &field) {
                continue;
            }
            return Err(unknown(name, &field, method));
        };
        if field.node.content == Content::Null {
            return Err(field.error("left empty; give it a value, or remove the line"));
        }
        if source && specification.scope == ParameterScope::Tensor {
            if skip(name, &field) {
                continue;
            }
            let reason =
                format!("`{name}` has one value for all models: move it to the `parameters` of the recipe or slice");
            return Err(field.error(reason));
        }
        parameters.insert(name.to_owned(), read_setting(&field, specification.kind)?);
    }
    Ok(parameters)
}

fn unknown(name: &str, field: &Field<'_>, method: &MethodSpecification) -> FieldError {
    let names = method.parameters.iter().map(|parameter| parameter.name);
    let hint = match nearest(name, names.clone()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if name == DROP_RATE && method.parameter(DENSITY).is_some() => "write density = 1 - drop_rate".to_owned(),
        None if method.parameters.is_empty() => "it has none".to_owned(),
        None => format!("it has {}", names.collect::<Vec<_>>().join(", ")),
    };
    field.error(format!("unknown parameter of the method {} (mergekit passes over it); {hint}", method.name))
}

fn read_setting(field: &Field<'_>, kind: ParameterKind) -> Result<Setting, FieldError> {
    let is_table = |field: &Field<'_>| matches!(field.node.content, Content::Table(_));
    match &field.node.content {
        Content::Table(_) => Ok(Setting(vec![read_filtered(field, kind)?])),
        Content::List(_) => {
            let items = field.list()?;
            if items.first().is_some_and(is_table) {
                return Ok(Setting(items.iter().map(|item| read_filtered(item, kind)).collect::<Result<_, _>>()?));
            }
            Ok(Setting(vec![FilteredValue { filter: None, value: read_gradient(field, kind)? }]))
        }
        _ => Ok(Setting(vec![FilteredValue { filter: None, value: read_gradient(field, kind)? }])),
    }
}

fn read_filtered(field: &Field<'_>, kind: ParameterKind) -> Result<FilteredValue, FieldError> {
    let mut fields = field.fields()?;
    let filter = fields.take("filter").map(|filter| filter.text().map(str::to_owned)).transpose()?;
    let value = fields.require("value", "what the matching tensors get")?;
    fields.finish()?;
    Ok(FilteredValue { filter, value: read_gradient(&value, kind)? })
}

fn read_gradient(field: &Field<'_>, kind: ParameterKind) -> Result<Gradient, FieldError> {
    if !matches!(field.node.content, Content::List(_)) {
        return Ok(Gradient::Scalar(read_value(field, kind)?));
    }
    let items = field.list()?;
    if items.is_empty() {
        return Err(field.error("a gradient needs at least one value"));
    }
    Ok(Gradient::Points(items.iter().map(|item| read_value(item, kind)).collect::<Result<_, _>>()?))
}

fn read_value(field: &Field<'_>, kind: ParameterKind) -> Result<Value, FieldError> {
    match kind {
        ParameterKind::Number { .. } => read_number(field).map(Value::Number),
        ParameterKind::Integer { .. } => {
            let number = read_number(field)?;
            let whole = number.fract() == 0.0;
            if whole {
                Ok(Value::Number(number))
            } else {
                Err(field.error(format!("must be a whole number, not {number}")))
            }
        }
        ParameterKind::Bool { .. } => read_truth(field).map(Value::Bool),
    }
}

/// YAML 1.1 readers take `1e-1` for text, so text that is a number counts as one.
fn read_number(field: &Field<'_>) -> Result<f64, FieldError> {
    let Content::Text(text) = &field.node.content else { return field.number() };
    let digits = text.trim().trim_start_matches(['+', '-']);
    if digits.len() > 1 && digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.starts_with('0') {
        return Err(field.error(format!(
            "{text} is octal to some readers of YAML, decimal to others; write it without leading zeros"
        )));
    }
    match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(field.error(format!("expected a finite number, found the text {text:?}"))),
    }
}

/// mergekit once wrote truth values as `1.0` and `0.0`; YAML 1.1 also spells them `yes`, `no`, `on` and `off`.
fn read_truth(field: &Field<'_>) -> Result<bool, FieldError> {
    match &field.node.content {
        Content::Integer(1) => Ok(true),
        Content::Integer(0) => Ok(false),
        Content::Float(number) if *number == 1.0 => Ok(true),
        Content::Float(number) if *number == 0.0 => Ok(false),
        Content::Text(text) => match text.trim().to_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err(field.error(format!("expected true or false, found the text {text:?}"))),
        },
        _ => field.truth(),
    }
}
