//! What can be checked of a recipe without opening a checkpoint.

use super::{Body, Gradient, Input, ModelReference, Parameters, Recipe, RecipeError, Setting, Slice, Value};
use crate::document::{FieldError, join};
use crate::merge::{
    BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterScope, find_method, unknown_method,
};

/// One group of inputs that are merged with each other: the whole recipe in the `models` form, or one slice.
pub(super) struct Stage<'a> {
    /// Key of the list of inputs, for messages.
    pub key: String,
    pub inputs: &'a [Input],
    pub base: Option<&'a ModelReference>,
    /// The slice, in the `slices` form.
    pub slice: Option<&'a Slice>,
}

impl Recipe {
    pub(super) fn stages(&self) -> Vec<Stage<'_>> {
        match &self.body {
            Body::Models(inputs) => {
                vec![Stage { key: "models".to_owned(), inputs, base: self.base_model.as_ref(), slice: None }]
            }
            Body::Slices(slices) => slices
                .iter()
                .enumerate()
                .map(|(index, slice)| Stage {
                    key: format!("slices[{index}].sources"),
                    inputs: &slice.sources,
                    base: slice.base_model.as_ref().or(self.base_model.as_ref()),
                    slice: Some(slice),
                })
                .collect(),
        }
    }

    /// Checks everything that needs no checkpoint: the method, the number of inputs and the base, layer ranges, names
    /// and values of parameters, and that each required parameter is given for each input. A parameter that is only
    /// given with filters may still miss a tensor; that shows when the merge is planned.
    ///
    /// # Errors
    /// On the first problem, with the key to blame.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let method = find_method(&self.merge_method)
            .ok_or_else(|| FieldError::new("merge_method", unknown_method(&self.merge_method)))?;
        check_parameters("parameters", &self.parameters, method, false)?;
        let stages = self.stages();
        if stages.is_empty() {
            return Err(FieldError::new("slices", "at least one slice is needed").into());
        }
        for stage in &stages {
            check_inputs(stage)?;
            check_ranges(stage)?;
            check_count(stage, method)?;
            if let Some(slice) = stage.slice {
                check_parameters(&stage.key.replace(".sources", ".parameters"), &slice.parameters, method, false)?;
            }
            for (index, input) in stage.inputs.iter().enumerate() {
                check_parameters(&format!("{}[{index}].parameters", stage.key), &input.parameters, method, true)?;
            }
            self.check_required(stage, method)?;
        }
        if let Some(source) = self.named_tokenizer()
            && !self.models().iter().any(|model| model.to_string() == source)
        {
            let reason = format!(
                "expected `base` or one of the recipe's models, written as there, not `{source}`; the tokenizer of a model \
                 that is not merged is yours to copy into the output"
            );
            return Err(FieldError::new("tokenizer_source", reason).into());
        }
        if method.base == BaseUse::None
            && let Some(base) = &self.base_model
            && !self.body.inputs().any(|input| input.model == *base)
            // Slices name all that they are made of; such a base gives configuration, tokenizer and dtype, as in
            // mergekit.
            && !matches!(self.body, Body::Slices(_))
        {
            let reason = format!("{} takes no base model: list `{base}` among the models, or remove this", method.name);
            return Err(FieldError::new("base_model", reason).into());
        }
        Ok(())
    }

    fn check_required(&self, stage: &Stage<'_>, method: &MethodSpecification) -> Result<(), FieldError> {
        let slice = stage.slice.map(|slice| &slice.parameters);
        for parameter in method.parameters.iter().filter(|parameter| parameter.required()) {
            let given = |scope: Option<&Parameters>| {
                scope.and_then(|scope| scope.get(parameter.name)).is_some_and(|setting| !setting.0.is_empty())
            };
            if given(Some(&self.parameters)) || given(slice) {
                continue;
            }
            let name = parameter.name;
            match parameter.scope {
                ParameterScope::Tensor => {
                    return Err(FieldError::new(
                        join("parameters", name),
                        format!("missing: {} needs `{name}`", method.name),
                    ));
                }
                ParameterScope::Source => {
                    for (index, input) in stage.inputs.iter().enumerate() {
                        if !is_base_only(stage, method, input) && !given(Some(&input.parameters)) {
                            let key = format!("{}[{index}].parameters.{name}", stage.key);
                            let reason =
                                format!("missing: {} needs `{name}` for the model `{}`", method.name, input.model);
                            return Err(FieldError::new(key, reason));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether the input only serves as the base, so that its own parameters have no effect.
pub(super) fn is_base_only(stage: &Stage<'_>, method: &MethodSpecification, input: &Input) -> bool {
    matches!(method.base, BaseUse::Required | BaseUse::Optional) && stage.base == Some(&input.model)
}

fn check_inputs(stage: &Stage<'_>) -> Result<(), FieldError> {
    if stage.inputs.is_empty() {
        return Err(FieldError::new(&stage.key, "at least one model is needed"));
    }
    for (index, input) in stage.inputs.iter().enumerate() {
        if let Some(other) = stage.inputs[..index].iter().find(|other| other.model == input.model) {
            let advice = match other.layer_range == input.layer_range {
                true => "give it one entry with the sum of the weights",
                false => "layers of one model cannot be merged with each other, here as in mergekit",
            };
            let reason = format!("`{}` is listed twice; {advice}", input.model);
            return Err(FieldError::new(format!("{}[{index}].model", stage.key), reason));
        }
    }
    Ok(())
}

fn check_ranges(stage: &Stage<'_>) -> Result<(), FieldError> {
    let mut length = None;
    for (index, input) in stage.inputs.iter().enumerate() {
        let key = format!("{}[{index}].layer_range", stage.key);
        match (stage.slice, input.layer_range) {
            (None, None) => {}
            (None, Some(_)) => {
                return Err(FieldError::new(key, "`models` merges whole models; use `slices` for ranges of layers"));
            }
            (Some(_), None) => {
                return Err(FieldError::new(key, "missing: the first layer, and the one after the last"));
            }
            (Some(_), Some((first, end))) => {
                let Some(own) = end.checked_sub(first).filter(|own| *own > 0) else {
                    return Err(FieldError::new(key, format!("[{first}, {end}] holds no layer")));
                };
                let expected = *length.get_or_insert(own);
                if own != expected {
                    let reason = format!("has {own} layers, but the first source of the slice has {expected}");
                    return Err(FieldError::new(key, reason));
                }
            }
        }
    }
    Ok(())
}

fn check_count(stage: &Stage<'_>, method: &MethodSpecification) -> Result<(), FieldError> {
    let name = method.name;
    let listed = stage.base.is_some_and(|base| stage.inputs.iter().any(|input| input.model == *base));
    let inputs = match method.base {
        BaseUse::None => stage.inputs.len(),
        BaseUse::Required | BaseUse::Input if stage.base.is_none() => {
            return Err(FieldError::new("base_model", format!("missing: {name} needs a base model")));
        }
        BaseUse::Input if !listed => {
            return Err(FieldError::new(
                &stage.key,
                format!("{name} needs the base model as one of its inputs; list it"),
            ));
        }
        BaseUse::Input => stage.inputs.len(),
        BaseUse::Required | BaseUse::Optional => {
            if stage.slice.is_some() && stage.base.is_some() && !listed {
                let reason = "the base model must be listed too, with its layer_range";
                return Err(FieldError::new(&stage.key, reason));
            }
            stage.inputs.len() - usize::from(listed)
        }
    };
    let besides = if matches!(method.base, BaseUse::Required | BaseUse::Optional) { " besides the base" } else { "" };
    match method.inputs {
        InputCount::Exactly(count) if inputs != count => {
            Err(FieldError::new(&stage.key, format!("{name} takes exactly {count} models{besides}, not {inputs}")))
        }
        // Task vectors of nobody leave the base as it is, with the adapter that it may have.
        InputCount::AtLeast(1) if listed => Ok(()),
        InputCount::AtLeast(count) if inputs < count => {
            Err(FieldError::new(&stage.key, format!("{name} takes at least {count} models{besides}, not {inputs}")))
        }
        _ => Ok(()),
    }
}

fn check_parameters(
    scope: &str,
    parameters: &Parameters,
    method: &MethodSpecification,
    source: bool,
) -> Result<(), FieldError> {
    for (name, setting) in parameters {
        let key = join(scope, name);
        let Some(specification) = method.parameter(name) else {
            return Err(FieldError::new(key, format!("unknown parameter of the method {}", method.name)));
        };
        if source && specification.scope == ParameterScope::Tensor {
            return Err(FieldError::new(key, "has one value for all models and cannot be given for one of them"));
        }
        check_values(setting, specification.kind).map_err(|reason| FieldError::new(key, reason))?;
    }
    Ok(())
}

fn check_values(setting: &Setting, kind: ParameterKind) -> Result<(), String> {
    for entry in &setting.0 {
        let values = match &entry.value {
            Gradient::Scalar(value) => std::slice::from_ref(value),
            Gradient::Points(points) => points.as_slice(),
        };
        if values.is_empty() {
            return Err("a gradient needs at least one value".to_owned());
        }
        for value in values {
            match (kind, value) {
                (ParameterKind::Bool { .. }, Value::Bool(_)) => {}
                (ParameterKind::Number { .. }, Value::Number(number)) if number.is_finite() => {}
                (ParameterKind::Integer { .. }, Value::Number(number))
                    if number.is_finite() && number.fract() == 0.0 => {}
                (ParameterKind::Bool { .. }, _) => return Err("expected true or false".to_owned()),
                (ParameterKind::Number { .. }, _) => return Err("expected a finite number".to_owned()),
                (ParameterKind::Integer { .. }, _) => return Err("expected a whole number".to_owned()),
            }
        }
    }
    Ok(())
}
