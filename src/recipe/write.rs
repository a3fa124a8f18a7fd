//! Recipes to text: TOML, which says everything, and YAML for mergekit.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::checkpoint::HubId;

use super::{Body, FilteredValue, Gradient, Input, ModelReference, Parameters, Recipe, Setting, Value};

impl Recipe {
    /// The recipe as TOML. `content_ids` is written along as a table, so that whoever rebuilds the merge can tell
    /// whether the models are still the same; it may be empty.
    pub fn to_toml(&self, content_ids: &BTreeMap<ModelReference, String>) -> String {
        let mut text = String::new();
        for (key, value) in self.header(&toml_model, &quote) {
            line(&mut text, key, &value);
        }
        toml_parameters(&mut text, "parameters", &self.parameters);
        text.push_str("\n[masks]\n");
        line(&mut text, "kind", &quote(self.masks.kind.name()));
        line(&mut text, "seed", &self.masks.seed.to_string());
        match &self.body {
            Body::Models(inputs) => inputs.iter().for_each(|input| toml_input(&mut text, "models", input)),
            Body::Slices(slices) => {
                for slice in slices {
                    text.push_str("\n[[slices]]\n");
                    if let Some(base) = &slice.base_model {
                        line(&mut text, "base_model", &toml_model(base));
                    }
                    toml_parameters(&mut text, "slices.parameters", &slice.parameters);
                    slice.sources.iter().for_each(|input| toml_input(&mut text, "slices.sources", input));
                }
            }
        }
        if !content_ids.is_empty() {
            text.push_str("\n# What the models held when this was written.\n[content]\n");
            for (model, id) in content_ids {
                line(&mut text, &quote(&model.to_string()), &quote(id));
            }
        }
        text
    }

    /// The recipe as a `MergeConfiguration` that mergekit 0.1.5 reads. Model names stand as they are in the recipe.
    /// Kind and seed of masks have no place in it, which a comment says where masks are drawn.
    pub fn to_mergekit_yaml(&self) -> String {
        let mut text = String::new();
        if self.draws_masks() {
            let _ = writeln!(
                text,
                "# This method drops weights at random. mergekit draws other random numbers than evomerge ({} masks, seed {}),\n\
                 # so its merge will differ from evomerge's, which recipe.toml gives.",
                self.masks.kind.name(),
                self.masks.seed
            );
        }
        for (key, value) in self.header(&yaml_model, &yaml_text) {
            let _ = writeln!(text, "{key}: {value}");
        }
        match &self.body {
            Body::Models(inputs) => {
                text.push_str("models:\n");
                inputs.iter().for_each(|input| yaml_input(&mut text, "", input));
            }
            Body::Slices(slices) => {
                text.push_str("slices:\n");
                for slice in slices {
                    text.push_str("- sources:\n");
                    slice.sources.iter().for_each(|input| yaml_input(&mut text, "  ", input));
                    if let Some(base) = &slice.base_model {
                        let _ = writeln!(text, "  base_model: {}", yaml_model(base));
                    }
                    yaml_parameters(&mut text, "  ", &slice.parameters);
                }
            }
        }
        yaml_parameters(&mut text, "", &self.parameters);
        text
    }

    /// The keys with one text each, in the order of both formats, written by `model` and `word`.
    fn header(
        &self,
        model: &dyn Fn(&ModelReference) -> String,
        word: &dyn Fn(&str) -> String,
    ) -> Vec<(&'static str, String)> {
        let mut header = vec![("merge_method", word(&self.merge_method))];
        let tokenizer = |source: &String| match self.models().into_iter().find(|model| model.to_string() == *source) {
            Some(found) => model(found),
            None => word(source),
        };
        let optional = [
            ("base_model", self.base_model.as_ref().map(model)),
            ("dtype", self.dtype.map(|dtype| word(dtype.name()))),
            ("out_dtype", self.out_dtype.map(|dtype| word(dtype.name()))),
            ("tokenizer_source", self.tokenizer_source.as_ref().map(tokenizer)),
            ("chat_template", self.chat_template.as_deref().map(word)),
        ];
        header.extend(optional.into_iter().filter_map(|(key, value)| Some((key, value?))));
        header
    }
}

fn line(text: &mut String, key: &str, value: &str) {
    let _ = writeln!(text, "{key} = {value}");
}

/// A double-quoted string that TOML, YAML and JSON read alike: everything that is not plainly printable is escaped.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for symbol in text.chars() {
        match symbol {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            ' ' => quoted.push(' '),
            _ if symbol.is_control() || symbol.is_whitespace() || symbol == '\u{feff}' || is_noncharacter(symbol) => {
                let code = u32::from(symbol);
                let _ = if code > 0xffff { write!(quoted, "\\U{code:08x}") } else { write!(quoted, "\\u{code:04x}") };
            }
            _ => quoted.push(symbol),
        }
    }
    quoted.push('"');
    quoted
}

fn is_noncharacter(symbol: char) -> bool {
    u32::from(symbol) & 0xfffe == 0xfffe || ('\u{fdd0}'..='\u{fdef}').contains(&symbol)
}

fn toml_input(text: &mut String, table: &str, input: &Input) {
    let _ = writeln!(text, "\n[[{table}]]");
    line(text, "model", &toml_model(&input.model));
    if let Some((first, end)) = input.layer_range {
        line(text, "layer_range", &format!("[{first}, {end}]"));
    }
    toml_parameters(text, &format!("{table}.parameters"), &input.parameters);
}

fn toml_parameters(text: &mut String, table: &str, parameters: &Parameters) {
    let given: Vec<_> = parameters.iter().filter(|(_, setting)| !setting.0.is_empty()).collect();
    if given.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n[{table}]");
    for (name, setting) in given {
        let value = match plain(setting) {
            Some(value) => gradient(value, &toml_number),
            None => list(setting.0.iter().map(|entry| {
                let filter = entry.filter.as_ref().map(|filter| format!("filter = {}, ", quote(filter)));
                let value = gradient(&entry.value, &toml_number);
                format!("{{ {}value = {value} }}", filter.unwrap_or_default())
            })),
        };
        line(text, name, &value);
    }
}

fn yaml_input(text: &mut String, indent: &str, input: &Input) {
    let _ = writeln!(text, "{indent}- model: {}", yaml_model(&input.model));
    if let Some((first, end)) = input.layer_range {
        let _ = writeln!(text, "{indent}  layer_range: [{first}, {end}]");
    }
    yaml_parameters(text, &format!("{indent}  "), &input.parameters);
}

fn yaml_parameters(text: &mut String, indent: &str, parameters: &Parameters) {
    let given: Vec<_> = parameters.iter().filter(|(_, setting)| !setting.0.is_empty()).collect();
    if given.is_empty() {
        return;
    }
    let _ = writeln!(text, "{indent}parameters:");
    for (name, setting) in given {
        if let Some(value) = plain(setting) {
            let _ = writeln!(text, "{indent}  {name}: {}", gradient(value, &yaml_number));
            continue;
        }
        let _ = writeln!(text, "{indent}  {name}:");
        for entry in &setting.0 {
            let value = gradient(&entry.value, &yaml_number);
            let _ = match &entry.filter {
                Some(filter) => writeln!(text, "{indent}  - filter: {}\n{indent}    value: {value}", yaml_text(filter)),
                None => writeln!(text, "{indent}  - value: {value}"),
            };
        }
    }
}

/// The value of a setting that has nothing else.
fn plain(setting: &Setting) -> Option<&Gradient> {
    match setting.0.as_slice() {
        [FilteredValue { filter: None, value }] => Some(value),
        _ => None,
    }
}

fn gradient(gradient: &Gradient, number: &dyn Fn(f64) -> String) -> String {
    let show = |value: &Value| match value {
        Value::Number(value) => number(*value),
        Value::Bool(truth) => truth.to_string(),
    };
    match gradient {
        Gradient::Scalar(value) => show(value),
        Gradient::Points(points) => list(points.iter().map(show)),
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

/// The shortest decimal that reads back as the same number.
fn toml_number(number: f64) -> String {
    format!("{number:?}")
}

/// As TOML, but with a point and a signed exponent: YAML 1.1 takes `1e-7` for text.
fn yaml_number(number: f64) -> String {
    let text = format!("{number:?}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let mantissa = if mantissa.contains('.') { mantissa.to_owned() } else { format!("{mantissa}.0") };
    let sign = if exponent.starts_with('-') { "" } else { "+" };
    format!("{mantissa}e{sign}{exponent}")
}

/// A model as text, or as a table where the text would be read as another model.
fn toml_model(model: &ModelReference) -> String {
    if ModelReference::parse(&model.to_string()).as_ref() == Ok(model) {
        return quote(&model.to_string());
    }
    let path = |location: &str| match revision_of(location) {
        Some((id, revision)) => format!("{{ path = {}, revision = {} }}", quote(id), quote(revision)),
        None => format!("{{ path = {} }}", quote(location)),
    };
    match &model.adapter {
        Some(adapter) => format!("{{ model = {}, lora = {} }}", path(&model.location), path(adapter)),
        None => format!("{{ model = {} }}", path(&model.location)),
    }
}

/// A model as text, or as a mapping where mergekit would read `@` or `+` in a path as a revision or a LoRA.
fn yaml_model(model: &ModelReference) -> String {
    let parts = || std::iter::once(&model.location).chain(&model.adapter);
    let is_plain = |part: &str| match revision_of(part) {
        Some((_, revision)) => !revision.contains(['@', '+']),
        None => !part.contains(['@', '+']),
    };
    if parts().all(|part| is_plain(part)) {
        return yaml_text(&model.to_string());
    }
    let path = |location: &str| match revision_of(location) {
        Some((id, revision)) => format!("{{path: {}, revision: {}}}", quote(id), quote(revision)),
        None => format!("{{path: {}}}", quote(location)),
    };
    match &model.adapter {
        Some(adapter) => format!("{{model: {}, lora: {}}}", path(&model.location), path(adapter)),
        None => format!("{{model: {}}}", path(&model.location)),
    }
}

/// Id and revision of a location that names both.
fn revision_of(location: &str) -> Option<(&str, &str)> {
    let id = HubId::parse(location)?;
    Some((id.repository, id.revision?))
}

/// Text without quotes where every YAML reader takes it for text, else with them.
fn yaml_text(text: &str) -> String {
    let starts_plainly = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    let word = text.to_ascii_lowercase();
    let reserved = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"].contains(&word.as_str());
    if starts_plainly && plain && !reserved { text.to_owned() } else { quote(text) }
}
