//! `evomerge methods`.

use super::arguments::Methods;
use super::error::CliError;
use super::output::{Output, table};
use crate::exit::ExitCode;
use crate::merge::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, find_method,
    methods, unknown_method,
};

pub(super) fn run(arguments: &Methods, output: Output) -> Result<ExitCode, CliError> {
    let chosen: Vec<&MethodSpecification> = match &arguments.method {
        None => methods().to_vec(),
        Some(name) => {
            vec![find_method(name).ok_or_else(|| CliError::Usage(unknown_method(name)))?]
        }
    };
    let text: String = chosen.iter().map(|method| describe(method)).collect::<Vec<_>>().join("\n");
    let json: Vec<serde_json::Value> = chosen.iter().map(|method| to_json(method)).collect();
    output.result(&text, &serde_json::Value::Array(json))?;
    Ok(ExitCode::Done)
}

fn describe(method: &MethodSpecification) -> String {
    let rows: Vec<Vec<String>> = method.parameters.iter().map(row).collect();
    let mut text = format!("{}: {}\n  {}, {}", method.name, method.help, inputs(method), base(method.base));
    if method.samples_masks {
        text.push_str(", random masks");
    }
    text.push('\n');
    for line in table(&["parameter", "per", "default", "search range", "meaning"], &rows).lines() {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

fn row(parameter: &ParameterSpecification) -> Vec<String> {
    let scope = match parameter.scope {
        ParameterScope::Source => "model",
        ParameterScope::Tensor => "merge",
    };
    let (default, range) = match parameter.kind {
        ParameterKind::Number { default, low, high } => {
            (default.map(|value| value.to_string()), format!("{low} to {high}"))
        }
        ParameterKind::Integer { default, low, high } => {
            (default.map(|value| value.to_string()), format!("{low} to {high}"))
        }
        ParameterKind::Bool { default } => (Some(default.to_string()), "true or false".into()),
    };
    let default = default.unwrap_or_else(|| "required".into());
    vec![parameter.name.into(), scope.into(), default, range, parameter.help.into()]
}

fn inputs(method: &MethodSpecification) -> String {
    match method.inputs {
        InputCount::Exactly(1) => "one model".into(),
        InputCount::Exactly(count) => format!("{count} models"),
        InputCount::AtLeast(1) => "any number of models".into(),
        InputCount::AtLeast(count) => format!("at least {count} models"),
    }
}

fn base(base: BaseUse) -> &'static str {
    match base {
        BaseUse::None => "no base model",
        BaseUse::Required => "base model required",
        BaseUse::Optional => "base model optional",
        BaseUse::Input => "base model is one of them",
    }
}

fn to_json(method: &MethodSpecification) -> serde_json::Value {
    let parameters: Vec<serde_json::Value> = method
        .parameters
        .iter()
        .map(|parameter| {
            let kind = match parameter.kind {
                ParameterKind::Number { default, low, high } => {
                    serde_json::json!({ "type": "number", "default": default, "low": low, "high": high })
                }
                ParameterKind::Integer { default, low, high } => {
                    serde_json::json!({ "type": "integer", "default": default, "low": low, "high": high })
                }
                ParameterKind::Bool { default } => serde_json::json!({ "type": "bool", "default": default }),
            };
            let scope = if parameter.scope == ParameterScope::Source { "model" } else { "merge" };
            serde_json::json!({ "name": parameter.name, "per": scope, "value": kind, "help": parameter.help })
        })
        .collect();
    serde_json::json!({
        "name": method.name,
        "help": method.help,
        "inputs": inputs(method),
        "base": base(method.base),
        "samples_masks": method.samples_masks,
        "parameters": parameters,
    })
}
