//! Recipes from files: TOML, and mergekit's YAML.
//!
//! Both use the same keys. What a merge could not honour is refused by name, never skipped: a recipe that is read says
//! everything that its file says. What has no effect in mergekit is named beside the recipe.

use std::collections::BTreeMap;
use std::path::Path;

use super::anchors::{is_renamed, rename_anchor_holders};
use super::{Body, Input, Masks, ModelReference, Parameters, Recipe, RecipeError, Setting, Slice, UNION, parameters};
use crate::checkpoint::{Dtype, HubId};
use crate::document::{Content, Field, FieldError, Fields, Node, text_of};
use crate::merge::{BaseUse, MethodSpecification, find_method, methods, unknown_method};
use crate::suggestion::nearest;

/// Chat templates that mergekit knows by name; only the text of a template can be copied.
const NAMED_TEMPLATES: [&str; 6] = ["auto", "alpaca", "chatml", "exaone", "llama3", "mistral"];

/// Endings of weights, which somebody may give in place of a recipe.
const WEIGHTS: [&str; 5] = ["safetensors", "bin", "gguf", "pt", "pth"];

/// Keys beside the method that configurations carry although mergekit does not know them there.
const PASSED_OVER: [&str; 3] = ["random_seed", "int8_mask", "embed_slerp"];

/// How top-level keys begin that hold anchors for the rest of the file.
const ANCHORS: &str = "x-";

/// Top-level keys of configurations beside [`PASSED_OVER`], those of [`OTHER_TOOLS`] and those that begin with [`ANCHORS`].
const TOP_LEVEL: [&str; 12] = [
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
];

/// Keys of configurations that other tools of mergekit read, and what to do with these.
const OTHER_TOOLS: [(&str, &str); 3] = [
    ("experts", MIXTURE),
    ("gate_mode", MIXTURE),
    (
        "genome",
        "this is a configuration of mergekit-evolve; a search has a run file here (docs/run-file.md): `evomerge search RUN.toml`",
    ),
];
const MIXTURE: &str = "this is a configuration of mergekit-moe, which builds a mixture of experts; evomerge merges models into one \
    of their own architecture, so make the mixture with mergekit-moe";

/// A recipe with what its file says of the models' contents.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeFile {
    /// What is to be merged; it has passed [`Recipe::validate`].
    pub recipe: Recipe,
    /// Content id by model, where the file lists them: the models that the recipe was made for.
    pub content_ids: BTreeMap<ModelReference, String>,
    /// What mergekit's YAML says without effect, or has an effect that it does not say; for people.
    pub ignored: Vec<String>,
    /// For the lines of errors that show later.
    document: Node,
}

impl RecipeFile {
    /// Reads `.toml`, or YAML under any other ending but those of weights: mergekit takes any.
    ///
    /// # Errors
    /// When the file cannot be read, or does not hold a valid recipe.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let ending = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_lowercase();
        let parse = match ending.as_str() {
            "toml" => Self::from_toml,
            ending if WEIGHTS.contains(&ending) => return Err(RecipeError::FileType { path: path.to_owned() }),
            _ => Self::from_mergekit_yaml,
        };
        let bytes = std::fs::read(path).map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
        let text = text_of(bytes).map_err(RecipeError::from);
        text.and_then(|text| parse(&text)).map_err(|error| error.in_document(&path.display().to_string()))
    }

    /// An error of this recipe that only showed when models were opened, with the file that the recipe came from and the
    /// line of the key.
    pub fn locate(&self, error: RecipeError, path: &Path) -> RecipeError {
        error.in_lines_of(&self.document).in_document(&path.display().to_string())
    }

    /// Reads the text of a TOML recipe. Model names are taken as they stand.
    ///
    /// # Errors
    /// When it is not a valid recipe.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        read_document(&Node::from_toml(text)?, Syntax::Toml)
    }

    /// Reads a `MergeConfiguration` of mergekit 0.1.5.
    ///
    /// # Errors
    /// When it is not valid, or asks for something that is not supported.
    pub fn from_mergekit_yaml(text: &str) -> Result<Self, RecipeError> {
        let read = |text: &str| read_document(&Node::from_yaml(text)?, Syntax::Yaml);
        let mut known: Vec<&str> = OTHER_TOOLS.iter().map(|(key, _)| *key).collect();
        known.extend(TOP_LEVEL.iter().chain(&PASSED_OVER));
        // A slip in a key that means something stays a mistake, whether it holds an anchor or not.
        let (renamed, holders) = rename_anchor_holders(text, |key| {
            !key.starts_with(ANCHORS) && nearest(key, known.iter().copied()).is_some()
        });
        let file = read(text);
        // Only a text that cannot be read as it is has keys that stand in the way.
        if file.is_ok() || holders.is_empty() {
            return file;
        }
        let mut file = read(&renamed)?;
        let note = |key: &str| format!("`{key}`: passed over but for its anchor, here as in mergekit");
        file.ignored.extend(holders.into_iter().map(note));
        Ok(file)
    }
}

impl Recipe {
    /// Reads a file; see [`RecipeFile::read`].
    ///
    /// # Errors
    /// When the file cannot be read, or does not hold a valid recipe.
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        RecipeFile::read(path).map(|file| file.recipe)
    }

    /// Reads the text of a TOML recipe.
    ///
    /// # Errors
    /// When it is not a valid recipe.
    pub fn from_toml(text: &str) -> Result<Self, RecipeError> {
        RecipeFile::from_toml(text).map(|file| file.recipe)
    }

    /// Reads a `MergeConfiguration` of mergekit 0.1.5.
    ///
    /// # Errors
    /// When it is not valid, or asks for something that is not supported.
    pub fn from_mergekit_yaml(text: &str) -> Result<Self, RecipeError> {
        RecipeFile::from_mergekit_yaml(text).map(|file| file.recipe)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Syntax {
    Toml,
    Yaml,
}

fn read_document(node: &Node, syntax: Syntax) -> Result<RecipeFile, RecipeError> {
    let root = node.root();
    if syntax == Syntax::Yaml {
        refuse_other_tools(&root)?;
    }
    let mut fields = root.fields()?;
    let method = read_method(&mut fields)?;
    let base_model = fields.take("base_model").map(|field| read_model(&field, syntax)).transpose()?;
    let dtype = fields.take("dtype").map(|field| read_dtype(&field)).transpose()?;
    let out_dtype = fields.take("out_dtype").map(|field| read_dtype(&field)).transpose()?;
    let tokenizer_source = read_tokenizer_source(&mut fields, syntax)?;
    let chat_template = fields.take("chat_template").map(|field| read_chat_template(&field)).transpose()?;
    let mut reader = Reader { method, syntax, ignored: Vec::new() };
    let of_recipe = reader.parameters(fields.take("parameters"), false)?;
    let (body, of_module) = reader.body(&mut fields, base_model.as_ref())?;
    let parameters = within(of_module, of_recipe);
    let (masks, content) = match syntax {
        Syntax::Toml => (read_masks(fields.take("masks"))?, fields.take("content")),
        Syntax::Yaml => (Masks::default(), None),
    };
    if syntax == Syntax::Yaml && tokenizer_source.as_deref() == Some(UNION) {
        let note = "`tokenizer_source`: the base's tokenizer is the union where all models have the same tokens, as is checked; \
                    vocabularies that differ are not joined";
        reader.ignored.push(note.to_owned());
    }
    if syntax == Syntax::Yaml {
        // Configurations in one file have names, which are mergekit-multi's; mergekit-yaml passes over them.
        let _ = fields.take("name");
        for key in fields.pass_over(ANCHORS).into_iter().filter(|key| !is_renamed(key)) {
            reader
                .ignored
                .push(format!("`{key}`: passed over, as keys are that begin with {ANCHORS} (they hold anchors)"));
        }
        for key in PASSED_OVER {
            if fields.take(key).is_some() {
                reader.ignored.push(format!("`{key}`: has no effect in a configuration, here as in mergekit"));
            }
        }
    }
    reader.finish(fields)?;
    let recipe = Recipe {
        merge_method: method.name.to_owned(),
        base_model,
        body,
        parameters,
        dtype,
        out_dtype,
        tokenizer_source,
        chat_template,
        masks,
    };
    recipe.validate().map_err(|error| error.in_lines_of(node))?;
    let content_ids = read_content(content, &recipe)?;
    Ok(RecipeFile { recipe, content_ids, ignored: reader.ignored, document: node.clone() })
}

/// Says whose configuration it is where it is not one of mergekit-yaml.
fn refuse_other_tools(root: &Field<'_>) -> Result<(), FieldError> {
    let entries = root.named()?;
    if entries.iter().any(|(key, _)| *key == "merge_method") {
        return Ok(());
    }
    let found = OTHER_TOOLS.iter().find_map(|(key, what)| {
        let (_, field) = entries.iter().find(|(name, _)| name == key)?;
        Some(field.error(*what))
    });
    found.map_or(Ok(()), Err)
}

fn read_method(fields: &mut Fields<'_>) -> Result<&'static MethodSpecification, FieldError> {
    let field = fields.require("merge_method", "the name of a merge method")?;
    let name = field.word()?;
    find_method(name).ok_or_else(|| field.error(unknown_method(name)))
}

/// mergekit takes PyTorch's names as well (`torch.bfloat16`).
fn read_dtype(field: &Field<'_>) -> Result<Dtype, FieldError> {
    let name = field.word()?;
    name.strip_prefix("torch.").unwrap_or(name).parse().map_err(|reason: String| field.error(reason))
}

fn names_revision(location: &str) -> bool {
    HubId::parse(location).is_some_and(|id| id.revision.is_some())
}

/// A model: text, where `+` comes before a LoRA adapter and, in an id, `@` before a revision, or mergekit's mapping,
/// which holds paths as they are.
fn read_model(field: &Field<'_>, syntax: Syntax) -> Result<ModelReference, FieldError> {
    if matches!(field.node.content, Content::Table(_)) {
        return read_model_mapping(field, syntax);
    }
    let model = ModelReference::parse(field.word()?).map_err(|reason| field.error(reason))?;
    let mut parts = std::iter::once(&model.location).chain(&model.adapter);
    if syntax == Syntax::Yaml && parts.any(|part| part.contains('@') && !names_revision(part)) {
        return Err(field.error(
            "`@` stands between a Hugging Face id and a revision (`organisation/name@revision`); if it is part of a path, \
             write {model: {path: \"...\"}}",
        ));
    }
    Ok(model)
}

fn read_model_mapping(field: &Field<'_>, syntax: Syntax) -> Result<ModelReference, FieldError> {
    let mut fields = field.fields()?;
    if let Some(field) = fields.take("override_architecture") {
        return Err(field.error("not supported; remove it"));
    }
    let location = read_path(&fields.require("model", "`path` of the model")?, syntax)?;
    let adapter = fields.take("lora").map(|field| read_path(&field, syntax)).transpose()?;
    fields.finish()?;
    Ok(ModelReference { location, adapter })
}

fn read_path(field: &Field<'_>, syntax: Syntax) -> Result<String, FieldError> {
    if matches!(field.node.content, Content::Text(_)) {
        return Ok(field.word()?.to_owned());
    }
    let mut fields = field.fields()?;
    let revision = fields.take("revision");
    let path = fields.require("path", "a folder or a Hugging Face id")?;
    fields.finish()?;
    let Some(revision) = revision else {
        let path = path.word()?;
        // To mergekit, a folder with `@` in its name; without the dot it would be read as an id's revision.
        let is_folder = syntax == Syntax::Yaml && names_revision(path);
        return Ok(if is_folder { format!("./{path}") } else { path.to_owned() });
    };
    let location = format!("{}@{}", path.word()?, revision.word()?);
    if names_revision(&location) {
        Ok(location)
    } else {
        Err(revision.error("only models by Hugging Face id (`organisation/name`) have revisions"))
    }
}

fn read_tokenizer_source(fields: &mut Fields<'_>, syntax: Syntax) -> Result<Option<String>, FieldError> {
    let source = fields.take("tokenizer_source");
    let table = fields.take("tokenizer");
    let field = match (source, table) {
        (None, None) => return Ok(None),
        (Some(source), None) => source,
        (Some(_), Some(table)) => return Err(table.error("give either this or `tokenizer_source`")),
        (None, Some(table)) => {
            let mut inner = table.fields()?;
            for key in ["tokens", "pad_to_multiple_of"] {
                if let Some(field) = inner.take(key) {
                    return Err(field.error("changing the vocabulary is not supported; only `source` is"));
                }
            }
            let source = inner.require("source", "`base` or a model")?;
            inner.finish()?;
            source
        }
    };
    let model = read_model(&field, syntax)?.to_string();
    Ok(Some(model))
}

fn read_chat_template(field: &Field<'_>) -> Result<String, FieldError> {
    let text = field.word()?;
    if NAMED_TEMPLATES.contains(&text) {
        return Err(
            field.error(format!("templates by name (`{text}`) are not supported; give the template's Jinja text"))
        );
    }
    if !text.contains('{') {
        let named = NAMED_TEMPLATES.join("`, `");
        return Err(field.error(format!(
            "`{text}` is no template: expected Jinja text, which has `{{{{` or `{{%` in it (mergekit's names, `{named}`, are not \
             supported)"
        )));
    }
    Ok(text.to_owned())
}

/// Reads what belongs to the method.
struct Reader {
    method: &'static MethodSpecification,
    syntax: Syntax,
    ignored: Vec<String>,
}

impl Reader {
    /// In mergekit's `models`, ranges of layers have no effect, and a base that is not listed comes last.
    fn adapt_as_mergekit(&mut self, inputs: &mut Vec<Input>, base: Option<&ModelReference>) {
        for (index, input) in inputs.iter_mut().enumerate() {
            if input.layer_range.take().is_some() {
                let note = "has no effect in `models`, here as in mergekit: whole models are merged";
                self.ignored.push(format!("`models[{index}].layer_range`: {note}"));
            }
        }
        let merges_base = matches!(self.method.base, BaseUse::None | BaseUse::Input);
        if let Some(base) = base.filter(|base| merges_base && !inputs.iter().any(|input| input.model == **base)) {
            self.ignored.push(format!(
                "`models`: the base model `{base}` is not listed and is merged all the same, here as in mergekit"
            ));
            inputs.push(Input { model: base.clone(), layer_range: None, parameters: Parameters::new() });
        }
    }

    /// Ends the reading of a table. mergekit passes over keys that it does not know; whoever wrote one meant something.
    fn finish(&self, fields: Fields<'_>) -> Result<(), FieldError> {
        fields.finish().map_err(|mut error| {
            let key = error.key.rsplit('.').next().unwrap_or_default();
            let is_parameter = methods().iter().any(|method| method.parameter(key).is_some());
            if is_parameter {
                error.reason = format!("{}; parameters stand under `parameters`", error.reason);
            }
            let is_body = ["models", "slices", "modules"].contains(&key);
            if self.syntax == Syntax::Yaml && !is_body {
                error.reason =
                    format!("{}; mergekit passes over this key: without it, the merge is mergekit's", error.reason);
            }
            error
        })
    }

    /// What is merged, with the parameters of the module that it stands in.
    fn body(
        &mut self,
        fields: &mut Fields<'_>,
        base: Option<&ModelReference>,
    ) -> Result<(Body, Parameters), FieldError> {
        let [modules, models, slices] = self.without_empty(["modules", "models", "slices"].map(|key| fields.take(key)));
        let Some(modules) = modules else {
            return Ok((self.models_or_slices(fields, [models, slices], base)?, Parameters::new()));
        };
        let only = self.only_module(&modules, base)?;
        models.or(slices).map_or(Ok(only), |other| Err(other.error("give either this or `modules`")))
    }

    /// What is empty is absent to mergekit, where something else is not.
    fn without_empty<'a, const N: usize>(&self, bodies: [Option<Field<'a>>; N]) -> [Option<Field<'a>>; N] {
        let is_empty = |field: &Field<'_>| match &field.node.content {
            Content::List(items) => items.is_empty(),
            Content::Table(entries) => entries.is_empty(),
            _ => false,
        };
        match self.syntax == Syntax::Yaml && bodies.iter().flatten().any(|field| !is_empty(field)) {
            true => bodies.map(|field| field.filter(|field| !is_empty(field))),
            false => bodies,
        }
    }

    /// mergekit's `modules` of a model that has one, which it calls `default`.
    fn only_module(
        &mut self,
        field: &Field<'_>,
        base: Option<&ModelReference>,
    ) -> Result<(Body, Parameters), FieldError> {
        let modules = field.named()?;
        let [("default", module)] = modules.as_slice() else {
            let reason =
                "models of several modules are not supported; use `models` or `slices`, or one module `default`";
            return Err(field.error(reason));
        };
        let mut fields = module.fields()?;
        let parameters = self.parameters(fields.take("parameters"), false)?;
        let given = self.without_empty(["models", "slices"].map(|key| fields.take(key)));
        let body = self.models_or_slices(&fields, given, base)?;
        self.finish(fields)?;
        Ok((body, parameters))
    }

    fn models_or_slices(
        &mut self,
        fields: &Fields<'_>,
        [models, slices]: [Option<Field<'_>>; 2],
        base: Option<&ModelReference>,
    ) -> Result<Body, FieldError> {
        match (models, slices) {
            (Some(models), None) => {
                let mut inputs: Vec<Input> =
                    models.list()?.iter().map(|field| self.input(field)).collect::<Result<_, _>>()?;
                if self.syntax == Syntax::Yaml {
                    self.adapt_as_mergekit(&mut inputs, base);
                }
                Ok(Body::Models(inputs))
            }
            (None, Some(slices)) => {
                let slices = slices.list()?;
                Ok(Body::Slices(slices.iter().map(|field| self.slice(field)).collect::<Result<_, _>>()?))
            }
            (Some(_), Some(slices)) => Err(slices.error("give either this or `models`")),
            (None, None) => Err(fields.error("missing: `models` (whole models) or `slices` (runs of layers)")),
        }
    }

    fn slice(&mut self, field: &Field<'_>) -> Result<Slice, FieldError> {
        let mut fields = field.fields()?;
        if let Some(field) = fields.take("residual_weight") {
            return Err(field.error("not supported (mergekit reads it and does nothing with it); remove it"));
        }
        let sources = fields.require("sources", "the models that the slice is made of")?.list()?;
        let base_model = fields.take("base_model").map(|field| read_model(&field, self.syntax)).transpose()?;
        let parameters = self.parameters(fields.take("parameters"), false)?;
        self.finish(fields)?;
        let sources = sources.iter().map(|field| self.input(field)).collect::<Result<_, _>>()?;
        Ok(Slice { sources, base_model, parameters })
    }

    fn input(&mut self, field: &Field<'_>) -> Result<Input, FieldError> {
        let mut fields = field.fields()?;
        let model = read_model(&fields.require("model", "a folder or a Hugging Face id")?, self.syntax)?;
        let layer_range = fields.take("layer_range").map(|field| read_layer_range(&field)).transpose()?;
        let parameters = self.parameters(fields.take("parameters"), true)?;
        self.finish(fields)?;
        Ok(Input { model, layer_range, parameters })
    }

    /// mergekit drops what its method does not have, and under a model what has one value for all. So does this, with a
    /// note, where any method has it; else it is a slip.
    fn parameters(&mut self, field: Option<Field<'_>>, source: bool) -> Result<Parameters, FieldError> {
        let is_of_another = |name: &str| methods().iter().any(|method| method.parameter(name).is_some());
        let mut ignored = Vec::new();
        let mut skip = |name: &str, field: &Field<'_>| {
            let skipped = self.syntax == Syntax::Yaml && is_of_another(name);
            if skipped {
                let why = match self.method.parameter(name) {
                    Some(_) => "has no effect under a model, here as in mergekit".to_owned(),
                    None => format!("has no effect with {}, here as in mergekit", self.method.name),
                };
                ignored.push(field.error(why).to_string());
            }
            skipped
        };
        let parameters = parameters::read(field, self.method, source, &mut skip)?;
        self.ignored.extend(ignored);
        Ok(parameters)
    }
}

/// The parameters of a scope and of one around it, as one scope: what the inner one says of a tensor comes first, and
/// where none of its filters match, the outer one decides.
fn within(inner: Parameters, mut outer: Parameters) -> Parameters {
    for (name, Setting(mut entries)) in inner {
        let around = outer.remove(&name).map_or_else(Vec::new, |setting| setting.0);
        entries.extend(around);
        outer.insert(name, Setting(entries));
    }
    outer
}

fn read_layer_range(field: &Field<'_>) -> Result<(usize, usize), FieldError> {
    match field.list()?.as_slice() {
        [first, end] => Ok((first.size()?, end.size()?)),
        _ => Err(field.error("expected two numbers: the first layer, and the one after the last")),
    }
}

fn read_masks(field: Option<Field<'_>>) -> Result<Masks, FieldError> {
    let mut masks = Masks::default();
    let Some(field) = field else { return Ok(masks) };
    let mut fields = field.fields()?;
    if let Some(field) = fields.take("kind") {
        masks.kind = field.word()?.parse().map_err(|reason: String| field.error(reason))?;
    }
    if let Some(field) = fields.take("seed") {
        masks.seed = field.unsigned()?;
    }
    fields.finish()?;
    Ok(masks)
}

/// Content ids by the models' names as text, which are the recipe's.
fn read_content(field: Option<Field<'_>>, recipe: &Recipe) -> Result<BTreeMap<ModelReference, String>, FieldError> {
    let Some(field) = field else { return Ok(BTreeMap::new()) };
    let models = recipe.models();
    let reference = |name: &str| match models.iter().find(|model| model.to_string() == name) {
        Some(model) => (*model).clone(),
        None => ModelReference::parse(name).unwrap_or_else(|_| ModelReference::new(name)),
    };
    let ids = field.named()?;
    ids.into_iter().map(|(model, id)| Ok((reference(model), id.word()?.to_owned()))).collect()
}
