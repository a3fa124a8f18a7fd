//! The canonical form of a recipe and its hash: equal for recipes that give the same weights, whatever their spelling.
//!
//! The form is a JSON object without spaces, keys in the order below, numbers as the shortest text that reads back as
//! the same float64 (`1.0`, `0.1`, `1e-7`), negative zero as zero. `recipe_sha256` is the sha256 of its UTF-8 bytes.
//!
//! ```text
//! {"version":1,
//!  "merge_method":"ties",
//!  "base_model":ID or null,
//!  "form":"models" or "slices",
//!  "stages":[{"base":ID,"base_layer_range":[0,2],            only where the method merges differences from a base
//!             "inputs":[{"model":ID,"layer_range":[0,2],"parameters":{NAME:SETTING, ...}}, ...],
//!             "parameters":{NAME:SETTING, ...}}, ...],
//!  "dtype":NAME or null, "out_dtype":NAME or null, "tokenizer":ID, "chat_template":TEXT or null,
//!  "masks":{"kind":"native","seed":7}}                        only where masks are drawn
//! ```
//!
//! * `ID` is the model's content id: paths never count. One stage is one slice; the `models` form is one stage.
//! * Inputs keep their order, because sums are rounded in that order. A base that only serves as the base is no input.
//!   Where the base is one of two inputs (SLERP), it stands first.
//! * Every parameter of the method is there, in the order of its declaration: those with a value for each model at each
//!   input, the others at the stage. A setting is resolved over the scopes (source, slice, recipe, default). It is the
//!   value alone where one value holds for all tensors, else a list of `{"filter":TEXT,"value":VALUE}`, first match
//!   first, the last without a filter where there is a catch-all. A gradient is a list of values.
//! * Without effect, and so left out: entries behind a catch-all, filters behind one that always matches first,
//!   filtered entries in front of a catch-all with the same value, the filter `*`, gradients of one point (a plain
//!   value), parameters of the base, parameters that the method does not have.
//! * Filters of a parameter with a value for each model match that model's own names, in whatever scope they stand;
//!   others match the output's.
//! * `out_dtype` is the dtype of the file where either of the two is given. `tokenizer` is the model that the tokenizer
//!   comes from.
//! * Masks are drawn where the method samples them and some density is below 1.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use super::validate::{Stage, is_base_only};
use super::{Body, FilteredValue, Gradient, Input, ModelReference, Recipe, RecipeError, Value};
use crate::document::FieldError;
use crate::merge::{
    BaseUse, DENSITY, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, find_method,
    unknown_method,
};

const VERSION: u32 = 1;

/// One resolved entry of a setting.
#[derive(Clone, PartialEq)]
struct Entry {
    filter: Option<String>,
    value: Gradient,
}

impl Recipe {
    /// The canonical form, with each model's content id in place of its path. The recipe should be valid.
    ///
    /// # Errors
    /// When a model has no content id, or the method is unknown.
    pub fn canonical(&self, content_ids: &BTreeMap<ModelReference, String>) -> Result<Json, RecipeError> {
        let method = self.method()?;
        let id = |model: &ModelReference| {
            content_ids.get(model).cloned().ok_or_else(|| RecipeError::Unidentified { model: model.clone() })
        };
        let stages: Vec<Json> =
            self.stages().iter().map(|stage| self.canonical_stage(stage, method, &id)).collect::<Result<_, _>>()?;
        let mut form = Map::new();
        form.insert("version".to_owned(), json!(VERSION));
        form.insert("merge_method".to_owned(), json!(method.name));
        form.insert("base_model".to_owned(), json!(self.base_model.as_ref().map(&id).transpose()?));
        form.insert("form".to_owned(), json!(if matches!(self.body, Body::Models(_)) { "models" } else { "slices" }));
        form.insert("stages".to_owned(), Json::Array(stages));
        form.insert("dtype".to_owned(), json!(self.dtype));
        form.insert("out_dtype".to_owned(), json!(self.out_dtype.or(self.dtype)));
        form.insert("tokenizer".to_owned(), json!(self.tokenizer_donor().as_ref().map(&id).transpose()?));
        form.insert("chat_template".to_owned(), json!(self.chat_template));
        if self.draws_masks() {
            form.insert("masks".to_owned(), json!({ "kind": self.masks.kind.name(), "seed": self.masks.seed }));
        }
        Ok(Json::Object(form))
    }

    /// `recipe_sha256`: 64 hexadecimal digits over the canonical form.
    ///
    /// # Errors
    /// As [`Recipe::canonical`].
    pub fn sha256(&self, content_ids: &BTreeMap<ModelReference, String>) -> Result<String, RecipeError> {
        Ok(crate::digest::hex(&Sha256::digest(self.canonical(content_ids)?.to_string().as_bytes())))
    }

    /// Whether the merge draws random masks: the method samples them and some density that it uses is below 1.
    pub fn draws_masks(&self) -> bool {
        let Some(method) = find_method(&self.merge_method).filter(|method| method.samples_masks) else { return false };
        let Some(density) = method.parameter(DENSITY) else { return true };
        self.stages().iter().any(|stage| {
            let inputs = stage.inputs.iter().filter(|input| !is_base_only(stage, method, input));
            inputs.into_iter().any(|input| {
                let entries = self.resolve(stage, Some(input), density);
                entries.iter().any(|entry| values(&entry.value).iter().any(is_below_one))
            })
        })
    }

    fn method(&self) -> Result<&'static MethodSpecification, RecipeError> {
        find_method(&self.merge_method)
            .ok_or_else(|| FieldError::new("merge_method", unknown_method(&self.merge_method)).into())
    }

    /// The model whose tokenizer files are copied.
    fn tokenizer_donor(&self) -> Option<ModelReference> {
        match self.named_tokenizer() {
            Some(name) => {
                let named = self.models().into_iter().find(|model| model.to_string() == name);
                Some(named.cloned().unwrap_or_else(|| ModelReference::new(name)))
            }
            None => self.base_model.clone().or_else(|| self.body.inputs().next().map(|input| input.model.clone())),
        }
    }

    fn canonical_stage(
        &self,
        stage: &Stage<'_>,
        method: &MethodSpecification,
        id: &impl Fn(&ModelReference) -> Result<String, RecipeError>,
    ) -> Result<Json, RecipeError> {
        let is_base = |input: &&Input| stage.base == Some(&input.model);
        let mut form = Map::new();
        // Without a use for it the method has none, but the output's type and files follow a slice's own.
        let own_base = stage.slice.and_then(|slice| slice.base_model.as_ref());
        let has_own_base = own_base.is_some() && own_base != self.base_model.as_ref();
        if let Some(base) = stage.base.filter(|_| method.base != BaseUse::None || has_own_base) {
            form.insert("base".to_owned(), json!(id(base)?));
            if let Some(range) = stage.inputs.iter().find(is_base).and_then(|input| input.layer_range) {
                form.insert("base_layer_range".to_owned(), json!([range.0, range.1]));
            }
        }
        let mut inputs: Vec<&Input> = stage.inputs.iter().filter(|input| !is_base_only(stage, method, input)).collect();
        if method.base == BaseUse::Input {
            inputs.sort_by_key(|input| !is_base(input));
        }
        let mut listed = Vec::with_capacity(inputs.len());
        for input in inputs {
            let mut entry = Map::new();
            entry.insert("model".to_owned(), json!(id(&input.model)?));
            if let Some((first, end)) = input.layer_range {
                entry.insert("layer_range".to_owned(), json!([first, end]));
            }
            let own = self.canonical_parameters(stage, Some(input), method);
            entry.insert("parameters".to_owned(), own);
            listed.push(Json::Object(entry));
        }
        form.insert("inputs".to_owned(), Json::Array(listed));
        form.insert("parameters".to_owned(), self.canonical_parameters(stage, None, method));
        Ok(Json::Object(form))
    }

    /// Parameters of one input, or (without an input) those that the whole stage shares.
    fn canonical_parameters(&self, stage: &Stage<'_>, input: Option<&Input>, method: &MethodSpecification) -> Json {
        let scope = if input.is_some() { ParameterScope::Source } else { ParameterScope::Tensor };
        let parameters = method.parameters.iter().filter(|parameter| parameter.scope == scope);
        let resolved = parameters.map(|parameter| {
            let entries = self.resolve(stage, input, parameter);
            (parameter.name.to_owned(), canonical_setting(&entries))
        });
        Json::Object(resolved.collect())
    }

    /// The entries that decide a parameter, from the nearest scope to the default, without those that cannot be
    /// reached.
    fn resolve(&self, stage: &Stage<'_>, input: Option<&Input>, parameter: &ParameterSpecification) -> Vec<Entry> {
        let scopes =
            [input.map(|input| &input.parameters), stage.slice.map(|slice| &slice.parameters), Some(&self.parameters)];
        let mut entries: Vec<Entry> = Vec::new();
        for setting in scopes.into_iter().flatten().filter_map(|scope| scope.get(parameter.name)) {
            for written in &setting.0 {
                let entry = canonical_entry(written);
                let shadowed = entry.filter.as_ref().is_some_and(|filter| {
                    let hides = |earlier: &Entry| {
                        earlier.filter.as_ref().is_some_and(|earlier| filter.contains(earlier.as_str()))
                    };
                    entries.iter().any(hides)
                });
                let catch_all = entry.filter.is_none();
                if !shadowed {
                    entries.push(entry);
                }
                if catch_all {
                    return without_needless(entries);
                }
            }
        }
        if let Some(value) = default_value(parameter) {
            entries.push(Entry { filter: None, value: Gradient::Scalar(value) });
        }
        without_needless(entries)
    }
}

/// Takes away filtered entries that give what the catch-all behind them gives anyway.
fn without_needless(mut entries: Vec<Entry>) -> Vec<Entry> {
    while let [.., before, last] = entries.as_slice() {
        if last.filter.is_some() || before.value != last.value {
            break;
        }
        entries.remove(entries.len() - 2);
    }
    entries
}

fn canonical_entry(written: &FilteredValue) -> Entry {
    let filter = written.filter.clone().filter(|filter| filter != "*" && !filter.is_empty());
    let value = match &written.value {
        Gradient::Points(points) => match points.as_slice() {
            [only] => Gradient::Scalar(canonical_value(only)),
            points => Gradient::Points(points.iter().map(canonical_value).collect()),
        },
        Gradient::Scalar(value) => Gradient::Scalar(canonical_value(value)),
    };
    Entry { filter, value }
}

fn canonical_value(value: &Value) -> Value {
    match value {
        // Adding zero turns -0 into 0 and changes nothing else.
        Value::Number(number) => Value::Number(number + 0.0),
        other => other.clone(),
    }
}

fn default_value(parameter: &ParameterSpecification) -> Option<Value> {
    match parameter.kind {
        ParameterKind::Number { default, .. } => default.map(Value::Number),
        ParameterKind::Integer { default, .. } => default.map(|number| Value::Number(number as f64)),
        ParameterKind::Bool { default } => Some(Value::Bool(default)),
    }
}

fn canonical_setting(entries: &[Entry]) -> Json {
    if let [Entry { filter: None, value, .. }] = entries {
        return json_gradient(value);
    }
    let list = entries.iter().map(|entry| {
        let mut form = Map::new();
        if let Some(filter) = &entry.filter {
            form.insert("filter".to_owned(), json!(filter));
        }
        form.insert("value".to_owned(), json_gradient(&entry.value));
        Json::Object(form)
    });
    Json::Array(list.collect())
}

fn json_gradient(gradient: &Gradient) -> Json {
    match gradient {
        Gradient::Scalar(value) => json_value(value),
        Gradient::Points(points) => Json::Array(points.iter().map(json_value).collect()),
    }
}

fn json_value(value: &Value) -> Json {
    match value {
        Value::Number(number) => json!(number),
        Value::Bool(truth) => json!(truth),
    }
}

fn values(gradient: &Gradient) -> &[Value] {
    match gradient {
        Gradient::Scalar(value) => std::slice::from_ref(value),
        Gradient::Points(points) => points,
    }
}

fn is_below_one(value: &Value) -> bool {
    matches!(value, Value::Number(number) if *number < 1.0)
}
