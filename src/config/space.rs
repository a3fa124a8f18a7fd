//! `[space]`: what is searched, checked against the declarations of the merge methods.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use super::values::{check_range, named, one_of};
use super::{GeneConfig, GenePer, GeneSearch, LayerGrouping, ModelsConfig, SpaceConfig};
use crate::document::{Content, Field, FieldError, Fields};
use crate::merge::{
    BaseUse, DENSITY, DROP_RATE, InputCount, MethodSpecification, ParameterKind, ParameterScope,
    ParameterSpecification, complement, find_method, parameter_of_gene, unknown_method,
};
use crate::suggestion::{hint, suggestion};

/// Highest strength of `conflict_prior`.
const MOST_PRIOR: f64 = 4.0;

/// More groups than any model has layers.
const MOST_LAYER_GROUPS: usize = 10_000;

/// What genes are checked against.
struct Context<'a> {
    methods: Vec<&'static MethodSpecification>,
    models: &'a ModelsConfig,
    modules: bool,
    layer_groups: bool,
}

impl Context<'_> {
    /// The declaration of the parameter behind a gene, from the first method that has it.
    fn parameter(&self, gene: &str) -> Option<&'static ParameterSpecification> {
        let name = parameter_of_gene(gene);
        self.methods.iter().find_map(|method| method.parameter(name))
    }

    /// Everything that the parameter can vary over in this space.
    fn widest(&self, parameter: &ParameterSpecification) -> Vec<GenePer> {
        if matches!(parameter.kind, ParameterKind::Bool { .. }) {
            return Vec::new();
        }
        let mut per = Vec::new();
        if parameter.scope == ParameterScope::Source {
            per.push(GenePer::Model);
        }
        if self.layer_groups {
            per.push(GenePer::LayerGroup);
        }
        if self.modules {
            per.push(GenePer::Module);
        }
        per
    }
}

pub(super) fn read(field: &Field<'_>, models: &ModelsConfig) -> Result<SpaceConfig, FieldError> {
    let mut fields = field.fields()?;
    let method_field = fields.require("method", "a merge method, or a list of them")?;
    let methods = read_methods(&method_field)?;
    for method in &methods {
        check_models(method, &method_field, models)?;
    }
    let layers = read_layers(&mut fields)?;
    if layers == LayerGrouping::Auto && models.base.is_none() {
        let reason = "missing: `layer_groups = \"auto\"` compares the sources with their base model";
        return Err(FieldError::new("models.base", reason));
    }
    let modules = read_modules(&mut fields)?;
    let interpolate = fields.take("interpolate").map_or(Ok(false), |field| field.truth())?;
    let stack_field = fields.take("stack");
    let genes_field = fields.take("genes");
    fields.finish()?;
    let stack =
        stack_field.as_ref().map(|field| super::stack::read(field, &methods, &layers, interpolate)).transpose()?;
    let context = Context {
        methods,
        models,
        modules: !modules.is_empty(),
        layer_groups: !matches!(layers, LayerGrouping::Groups(NonZeroUsize::MIN)),
    };
    if let (Some(field), Some(_)) = (genes_field.as_ref(), stack.as_ref().filter(|stack| !stack.blocks.has_merged())) {
        return Err(field.error("passthrough has no genes beside `space.stack`; its factors are `space.stack.scale`"));
    }
    let genes = read_genes(genes_field, &context)?;
    let methods = context.methods.iter().map(|method| method.name.to_owned()).collect();
    Ok(SpaceConfig { methods, layers, modules, interpolate, genes, stack })
}

fn read_methods(field: &Field<'_>) -> Result<Vec<&'static MethodSpecification>, FieldError> {
    let items = match field.node.content {
        Content::List(_) => field.list()?,
        _ => vec![field.clone()],
    };
    if items.is_empty() {
        return Err(field.error("at least one merge method is needed"));
    }
    let mut found: Vec<&'static MethodSpecification> = Vec::new();
    for item in items {
        let name = item.word()?;
        let Some(method) = find_method(name) else { return Err(item.error(unknown_method(name))) };
        if found.iter().any(|other| other.name == name) {
            return Err(item.error(format!("`{name}` is listed twice")));
        }
        found.push(method);
    }
    Ok(found)
}

fn check_models(method: &MethodSpecification, field: &Field<'_>, models: &ModelsConfig) -> Result<(), FieldError> {
    let sources = models.sources.len();
    let name = method.name;
    match method.base {
        BaseUse::Required if models.base.is_none() => {
            return Err(FieldError {
                key: "models.base".to_owned(),
                line: None,
                reason: format!("missing: the method {name} merges differences from a base model"),
            });
        }
        BaseUse::Required
            if models
                .sources
                .iter()
                .all(|source| models.base.as_ref().is_some_and(|base| base.is_same_model(source))) =>
        {
            return Err(field.error(format!("{name} needs a source other than the base")));
        }
        // With a single source, the base model is the other input.
        BaseUse::Input if sources == 1 && models.base.is_some() => return Ok(()),
        _ => {}
    }
    match method.inputs {
        // Of more than two sources, the gene `pair` picks two; of more than one, the gene `source` picks one.
        InputCount::Exactly(2) if sources >= 2 => Ok(()),
        InputCount::Exactly(1) if sources >= 1 => Ok(()),
        InputCount::Exactly(count) if sources != count => {
            Err(field.error(format!("{name} takes {count} models, but `models.sources` has {sources}")))
        }
        InputCount::AtLeast(count) if sources < count => {
            Err(field.error(format!("{name} takes at least {count} models, but `models.sources` has {sources}")))
        }
        _ => Ok(()),
    }
}

fn read_layers(fields: &mut Fields<'_>) -> Result<LayerGrouping, FieldError> {
    match (fields.take("layer_groups"), fields.take("granularity")) {
        (None, None) => Ok(LayerGrouping::Groups(NonZeroUsize::MIN)),
        (Some(field), None) => read_groups(&field),
        (None, Some(field)) => Ok(LayerGrouping::Granularity(field.count()?)),
        (Some(_), Some(field)) => Err(field.error("give either this or `layer_groups`")),
    }
}

fn read_groups(field: &Field<'_>) -> Result<LayerGrouping, FieldError> {
    let expected = "a whole number or \"auto\"";
    match &field.node.content {
        Content::Text(text) if text == "auto" => Ok(LayerGrouping::Auto),
        Content::Text(text) => Err(field.error(format!("expected {expected}, found {text:?}"))),
        Content::Integer(_) => Ok(LayerGrouping::Groups(field.count_up_to(MOST_LAYER_GROUPS)?)),
        _ => Err(field.expected(expected)),
    }
}

fn read_modules(fields: &mut Fields<'_>) -> Result<Vec<String>, FieldError> {
    let Some(field) = fields.take("modules") else { return Ok(Vec::new()) };
    let modules = field.words()?;
    for (index, module) in modules.iter().enumerate() {
        if module == "*" || module == "rest" {
            return Err(field
                .error(format!("{module:?} is not a filter: everything else is a group of its own, called `rest`")));
        }
        // The first filter that matches wins, so a later one that contains it would never be reached.
        if let Some(earlier) = modules[..index].iter().find(|earlier| module.contains(earlier.as_str())) {
            return Err(field.error(format!(
                "{module:?} is never reached: every name with it also has {earlier:?}, which comes first"
            )));
        }
    }
    Ok(modules)
}

fn read_genes(field: Option<Field<'_>>, context: &Context<'_>) -> Result<Vec<(String, GeneConfig)>, FieldError> {
    let entries = field.as_ref().map_or(Ok(Vec::new()), Field::named)?;
    let mut genes: Vec<(String, GeneConfig)> = Vec::new();
    for (name, field) in &entries {
        if [DENSITY, DROP_RATE].contains(name)
            && genes.iter().any(|(other, _)| [DENSITY, DROP_RATE].contains(&other.as_str()))
        {
            return Err(
                field.error("`density` and `drop_rate` are one parameter (density = 1 - drop_rate); give one of them")
            );
        }
        let Some(parameter) = context.parameter(name) else { return Err(unknown_gene(name, field, context)) };
        genes.push(((*name).to_owned(), read_gene(name, field, parameter, context)?));
    }
    for (name, field) in &entries {
        check_tie(name, field, &genes, context)?;
    }
    for method in &context.methods {
        for parameter in method.parameters.iter().filter(|parameter| parameter.required()) {
            if !genes.iter().any(|(name, _)| name == parameter.name) {
                let gene = default_search(parameter.name, parameter, context);
                genes.push((parameter.name.to_owned(), GeneConfig::Search(gene)));
            }
        }
    }
    Ok(genes)
}

fn unknown_gene(name: &str, field: &Field<'_>, context: &Context<'_>) -> FieldError {
    let listed: Vec<&str> = context.methods.iter().map(|method| method.name).collect();
    let mut known: Vec<&str> = Vec::new();
    for parameter in context.methods.iter().flat_map(|method| method.parameters) {
        if !known.contains(&parameter.name) {
            known.push(parameter.name);
        }
    }
    if known.contains(&DENSITY) {
        known.push(DROP_RATE);
    }
    let hint = suggestion(name, known, "they use");
    field.error(format!("no listed method ({}) uses this gene; {hint}", listed.join(", ")))
}

fn is_bool(parameter: &ParameterSpecification) -> bool {
    matches!(parameter.kind, ParameterKind::Bool { .. })
}

/// The gene of a parameter that is searched without further word.
fn default_search(name: &str, parameter: &ParameterSpecification, context: &Context<'_>) -> GeneSearch {
    let (low, high, integer) = default_range(name, parameter);
    let per = context.widest(parameter);
    GeneSearch { low, high, per, log: false, integer, init: None, models: BTreeMap::new(), conflict_prior: 0.0 }
}

fn default_range(name: &str, parameter: &ParameterSpecification) -> (f64, f64, bool) {
    match parameter.kind {
        ParameterKind::Number { low, high, .. } if name == DROP_RATE => (complement(high), complement(low), false),
        ParameterKind::Number { low, high, .. } => (low, high, false),
        ParameterKind::Integer { low, high, .. } => (low as f64, high as f64, true),
        ParameterKind::Bool { .. } => (0.0, 1.0, true),
    }
}

fn read_gene(
    name: &str,
    field: &Field<'_>,
    parameter: &ParameterSpecification,
    context: &Context<'_>,
) -> Result<GeneConfig, FieldError> {
    match &field.node.content {
        Content::Bool(truth) if is_bool(parameter) => Ok(GeneConfig::Bool(*truth)),
        Content::Bool(_) => Err(field.error("expected a number to freeze it, or a table to search it")),
        Content::Integer(_) | Content::Float(_) => {
            let number = field.number()?;
            check_value(name, field, parameter, number)?;
            Ok(if is_bool(parameter) { GeneConfig::Bool(number == 1.0) } else { GeneConfig::Number(number) })
        }
        Content::Table(_) => {
            let mut fields = field.fields()?;
            if let Some(other) = fields.take("same_as") {
                fields.finish()?;
                return Ok(GeneConfig::SameAs(other.word()?.to_owned()));
            }
            read_search(name, field, fields, parameter, context).map(GeneConfig::Search)
        }
        other => {
            Err(field.error(format!("expected a number to freeze it, or a table to search it; found {}", other.kind())))
        }
    }
}

/// Whether a number is a value of the parameter.
fn check_value(
    name: &str,
    field: &Field<'_>,
    parameter: &ParameterSpecification,
    number: f64,
) -> Result<(), FieldError> {
    match parameter.kind {
        ParameterKind::Bool { .. } if number != 0.0 && number != 1.0 => {
            Err(field.error(format!("expected true or false, not {number}")))
        }
        ParameterKind::Integer { .. } if number.fract() != 0.0 => {
            Err(field.error(format!("must be a whole number, not {number}")))
        }
        ParameterKind::Number { .. } if [DENSITY, DROP_RATE].contains(&name) && !(0.0..=1.0).contains(&number) => {
            Err(field.error(format!("must be from 0 to 1, not {number}")))
        }
        _ => Ok(()),
    }
}

fn read_search(
    name: &str,
    field: &Field<'_>,
    mut fields: Fields<'_>,
    parameter: &ParameterSpecification,
    context: &Context<'_>,
) -> Result<GeneSearch, FieldError> {
    let mut gene = default_search(name, parameter, context);
    for (key, bound) in [("low", &mut gene.low), ("high", &mut gene.high)] {
        if let Some(field) = fields.take(key) {
            *bound = field.number()?;
            check_value(name, &field, parameter, *bound)?;
        }
    }
    check_range(field, gene.low, gene.high, "a plain number freezes a gene")?;
    if let Some(field) = fields.take("per") {
        gene.per = read_per(&field, parameter, context)?;
    }
    if let Some(field) = fields.take("scale") {
        gene.log = one_of(&field, &["linear", "log"])? == "log";
        if gene.log && gene.low <= 0.0 {
            return Err(field.error(format!("\"log\" needs `low` above 0, but it is {}", gene.low)));
        }
    }
    if let Some(field) = fields.take("integer") {
        gene.integer |= field.truth()?;
    }
    check_integer(field, &gene)?;
    if let Some(field) = fields.take("init") {
        let init = field.number()?;
        if !(gene.low..=gene.high).contains(&init) {
            return Err(field.error(format!("must be from {} to {}, not {init}", gene.low, gene.high)));
        }
        gene.init = Some(init);
    }
    if let Some(field) = fields.take("models") {
        if !gene.per.contains(&GenePer::Model) {
            return Err(field.error("freezes single models, so `per` must list \"model\""));
        }
        gene.models = read_frozen_models(name, &field, parameter, context)?;
    }
    if let Some(field) = fields.take("conflict_prior") {
        gene.conflict_prior = read_conflict_prior(name, &field, &gene, context)?;
    }
    fields.finish()?;
    Ok(gene)
}

fn check_integer(field: &Field<'_>, gene: &GeneSearch) -> Result<(), FieldError> {
    let GeneSearch { low, high, .. } = gene;
    if !gene.integer {
        return Ok(());
    }
    if low.fract() != 0.0 || high.fract() != 0.0 {
        return Err(field.error(format!("`low` ({low}) and `high` ({high}) of a whole number must be whole")));
    }
    if low.abs() > 1e15 || high.abs() > 1e15 {
        return Err(field.error("`low` and `high` of a whole number must lie within 1e15 of 0"));
    }
    if gene.log {
        return Err(field.error("`integer` and `scale = \"log\"` do not go together"));
    }
    Ok(())
}

fn read_conflict_prior(
    name: &str,
    field: &Field<'_>,
    gene: &GeneSearch,
    context: &Context<'_>,
) -> Result<f64, FieldError> {
    let strength = field.number()?;
    if !(0.0..=MOST_PRIOR).contains(&strength) {
        return Err(field.error(format!("must be from 0 to {MOST_PRIOR}, not {strength}")));
    }
    if name != "weight" {
        return Err(field.error(format!("is for `weight`, not for `{name}`")));
    }
    if context.models.base.is_none() {
        return Err(field.error("compares how the sources moved from their base, so it needs `models.base`"));
    }
    if context.models.sources.len() < 2 {
        return Err(field.error("compares sources, so it needs at least two of them"));
    }
    if gene.integer {
        return Err(field.error("does not go together with `integer`"));
    }
    let places = [GenePer::Model, GenePer::LayerGroup];
    if !gene.per.iter().any(|per| places.contains(per)) {
        return Err(field.error("tells models and layer groups apart, so `per` must list \"model\" or \"layer_group\""));
    }
    Ok(strength)
}

fn read_per(
    field: &Field<'_>,
    parameter: &ParameterSpecification,
    context: &Context<'_>,
) -> Result<Vec<GenePer>, FieldError> {
    let items = match field.node.content {
        Content::List(_) => field.list()?,
        _ => vec![field.clone()],
    };
    let mut per = Vec::new();
    for item in items {
        let one = named(&item, &GenePer::ALL, GenePer::name)?;
        if one == GenePer::Model && parameter.scope == ParameterScope::Tensor {
            return Err(item.error(format!("`{}` has one value for all models", parameter.name)));
        }
        if one == GenePer::Module && !context.modules {
            return Err(item.error("\"module\" needs `space.modules`"));
        }
        if per.contains(&one) {
            return Err(item.error("is listed twice"));
        }
        per.push(one);
    }
    per.sort_unstable();
    Ok(per)
}

fn read_frozen_models(
    name: &str,
    field: &Field<'_>,
    parameter: &ParameterSpecification,
    context: &Context<'_>,
) -> Result<BTreeMap<String, f64>, FieldError> {
    let known = || context.models.sources.iter().map(|source| source.name.as_str());
    let mut frozen = BTreeMap::new();
    for (model, field) in field.named()? {
        if !known().any(|source| source == model) {
            let hint = suggestion(model, known(), "known are");
            return Err(field.error(format!("there is no source of that name; {hint}")));
        }
        let number = field.number()?;
        check_value(name, &field, parameter, number)?;
        frozen.insert(model.to_owned(), number);
    }
    Ok(frozen)
}

/// A tie must lead to a gene that has a value of its own, of a kind and scope that fits.
fn check_tie(
    name: &str,
    field: &Field<'_>,
    genes: &[(String, GeneConfig)],
    context: &Context<'_>,
) -> Result<(), FieldError> {
    let Some((_, GeneConfig::SameAs(other))) = genes.iter().find(|(gene, _)| gene == name) else { return Ok(()) };
    let error = |reason: String| Err(FieldError { key: format!("{}.same_as", field.path), line: field.line, reason });
    let (Some((_, target)), Some(parameter), Some(target_parameter)) =
        (genes.iter().find(|(gene, _)| gene == other), context.parameter(name), context.parameter(other))
    else {
        let hint = hint(other, genes.iter().map(|(gene, _)| gene.as_str()).filter(|gene| *gene != name));
        return error(format!("there is no gene `{other}` in `space.genes`{hint}"));
    };
    if is_bool(parameter) != is_bool(target_parameter) {
        return error(format!("`{name}` and `{other}` are not of one kind"));
    }
    match target {
        GeneConfig::SameAs(_) => error(format!("`{other}` is itself tied; name the gene that it is tied to")),
        GeneConfig::Search(search)
            if search.per.contains(&GenePer::Model) && parameter.scope == ParameterScope::Tensor =>
        {
            error(format!("`{other}` has a value for each model, but `{name}` has one for all"))
        }
        GeneConfig::Search(search) => {
            let bounds =
                check_value(name, field, parameter, search.low).and(check_value(name, field, parameter, search.high));
            let whole = search.integer || !matches!(parameter.kind, ParameterKind::Integer { .. });
            if bounds.is_ok() && whole { Ok(()) } else { error(format!("values of `{other}` do not fit `{name}`")) }
        }
        GeneConfig::Number(number) => check_value(name, field, parameter, *number),
        GeneConfig::Bool(_) => Ok(()),
    }
}
