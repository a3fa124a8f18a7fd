//! The total map from genomes to recipes.

use super::plan::{Cell, Place, Plan, is_input, takes_one, takes_pair};
use super::stack::{Origin, Piece, Stack, joined};
use super::{Gene, GeneValue, Genome, SearchSpace, TensorGroup};
use crate::merge::{
    BaseUse, DENSITY, MethodSpecification, ParameterKind, ParameterScope, ParameterSpecification, Untrimmed, complement,
};
use crate::recipe::{Body, FilteredValue, Gradient, Input, ModelReference, Parameters, Recipe, Setting, Slice, Value};

/// Sums of weights nearer to 0 than this cannot be divided by.
const SMALLEST_SUM: f64 = 1e-8;

const EPSILON: &str = "epsilon";
/// How far inside its bounds a repaired density lies.
const MARGIN: f64 = 1e-3;

/// How near a decoded parameter must be to the one that was aimed at.
const TOLERANCE: f64 = 1e-9;

/// The density nearest to `density` at which no chance to keep an element leaves `(0, 1)`. A density of 1 drops nothing
/// and is left alone, unless values between it and another are read off a gradient.
fn repaired_density(density: f64, epsilon: f64, interpolated: bool) -> f64 {
    if (density >= 1.0 && !interpolated) || epsilon >= 0.5 - MARGIN {
        return 1.0;
    }
    density.clamp(epsilon + MARGIN, 1.0 - epsilon - MARGIN)
}

/// One input of the merge: a model, and the source whose genes it follows.
struct DecodedInput {
    model: ModelReference,
    source: usize,
}

/// A genome made whole: one number in `[0, 1]` a gene, and what follows from it.
pub(super) struct Decoded<'a> {
    space: &'a SearchSpace,
    units: Vec<f64>,
    method: &'static MethodSpecification,
    inputs: Vec<DecodedInput>,
    /// The base that the recipe names.
    base: Option<ModelReference>,
    /// Whether the base is an extra entry of every slice.
    base_apart: bool,
    /// What the recipe is stacked from, in order; empty where the space does not stack layers.
    pieces: Vec<Piece>,
    /// Genes without effect because of others' values; their `init` stands in `units`.
    idle: Vec<bool>,
}

impl SearchSpace {
    /// The recipe of a genome. Total: missing numbers and NaN count as the gene's `init`, numbers outside `[0, 1]` are
    /// clamped, numbers too many are ignored. Where a normalized linear merge would divide by (nearly) zero, because
    /// all weights of a layer group and module are zero or cancel out, these weights are all set to 1. Where a density
    /// is too near to 0 or 1 for its `epsilon` (DELLA), the nearest one that is not takes its place. A stack without a
    /// block is the one that the search starts with, and one with too many layers lacks blocks in its middle.
    pub fn decode(&self, genome: &Genome) -> Recipe {
        self.decoded(genome).recipe()
    }

    /// Which genes have an effect in this genome: those that the chosen method uses, for models that take part. A source
    /// whose weight is zero takes no part.
    pub fn active(&self, genome: &Genome) -> Vec<bool> {
        let decoded = self.decoded(genome);
        let method = self.specifications.iter().position(|method| method.name == decoded.method.name).unwrap_or(0);
        let is_active = |(index, gene): (usize, &Gene)| {
            let used = gene.methods.is_empty() || gene.methods.contains(&method);
            let takes_part = gene.model.is_none_or(|model| decoded.sources().any(|source| source == model));
            let stacked = self.stack.as_ref().is_none_or(|stack| stack.is_active(index, gene, &decoded.pieces));
            used && takes_part && stacked && !decoded.idle[index]
        };
        self.genes.iter().enumerate().map(is_active).collect()
    }

    /// The decoded value of every gene, with or without effect.
    pub fn values(&self, genome: &Genome) -> Vec<GeneValue> {
        let unit = |index: usize| genome.0.get(index).copied().unwrap_or(f64::NAN);
        self.genes.iter().enumerate().map(|(index, gene)| gene.value(unit(index))).collect()
    }

    pub(super) fn decoded(&self, genome: &Genome) -> Decoded<'_> {
        let unit = |index: usize| genome.0.get(index).copied().unwrap_or(f64::NAN);
        let units: Vec<f64> = self.genes.iter().enumerate().map(|(index, gene)| gene.clamp(unit(index))).collect();
        let choice = |gene: Option<usize>| match gene.map(|index| self.genes[index].value(units[index])) {
            Some(GeneValue::Choice(choice)) => choice,
            _ => 0,
        };
        let method = self.specifications[choice(self.method_gene)];
        let count = self.facts.sources.len();
        let chosen = if takes_pair(method, count) {
            self.pairs.get(choice(self.pair_gene)).map(|(first, second)| vec![*first, *second])
        } else if takes_one(method, count) && self.source_gene.is_some() {
            Some(vec![choice(self.source_gene)])
        } else {
            None
        };
        let possible: Vec<usize> = (0..count).filter(|source| is_input(method, &self.facts, *source)).collect();
        let sources = chosen.map_or_else(|| possible.clone(), |chosen| only_possible(chosen, &possible));
        let mut inputs: Vec<DecodedInput> = sources
            .iter()
            .map(|source| DecodedInput { model: self.facts.sources[*source].1.clone(), source: *source })
            .collect();
        let (base, base_apart) = match method.base {
            BaseUse::None => (None, false),
            BaseUse::Required | BaseUse::Optional => (self.facts.base.clone(), self.facts.base.is_some()),
            BaseUse::Input => {
                if let ([_], Some(base)) = (inputs.as_slice(), &self.facts.base) {
                    inputs.insert(0, DecodedInput { model: base.clone(), source: 0 });
                }
                (inputs.first().map(|input| input.model.clone()), false)
            }
        };
        let pieces = self.stack.as_ref().map(|stack| stack.pieces(&self.genes, &units)).unwrap_or_default();
        let mut decoded = Decoded { space: self, units, method, inputs, base, base_apart, pieces, idle: Vec::new() };
        decoded.idle = decoded.idle_genes();
        for (unit, gene) in
            decoded.units.iter_mut().zip(&self.genes).zip(&decoded.idle).filter_map(|(of, idle)| idle.then_some(of))
        {
            *unit = gene.clamp(gene.init);
        }
        decoded
    }
}

/// Puts the first sources that can be inputs in the places of those that cannot (the base has no task vector).
fn only_possible(chosen: Vec<usize>, possible: &[usize]) -> Vec<usize> {
    let mut sources: Vec<usize> = chosen.iter().copied().filter(|source| possible.contains(source)).collect();
    let others = possible.iter().copied().filter(|source| !chosen.contains(source));
    sources.extend(others.take(chosen.len() - sources.len()));
    sources.sort_unstable();
    sources
}

impl Decoded<'_> {
    pub(super) const fn method(&self) -> &'static MethodSpecification {
        self.method
    }

    /// What the recipe is stacked from.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The sources that are inputs, in order.
    pub(super) fn sources(&self) -> impl Iterator<Item = usize> {
        self.inputs.iter().map(|input| input.source)
    }

    /// Genes that say how task vectors are trimmed and nothing else, of task vectors that are all multiplied by zero.
    fn idle_genes(&self) -> Vec<bool> {
        let mut idle = vec![false; self.space.genes.len()];
        let weighs = self.method.parameter("weight").is_some_and(|weight| weight.scope == ParameterScope::Source);
        if self.method.base != BaseUse::Required || !weighs {
            return idle;
        }
        let trims = |parameter: &str, scope: ParameterScope| parameter != "weight" && scope == ParameterScope::Source;
        let plans = || {
            let known = |parameter: &ParameterSpecification| {
                self.space.plan(parameter.name).map(|plan| (plan, trims(parameter.name, parameter.scope)))
            };
            self.method.parameters.iter().filter_map(known)
        };
        let cells = plans().filter(|(_, trims)| *trims).flat_map(|(plan, _)| &plan.cells);
        cells.filter_map(Cell::gene).for_each(|gene| idle[gene] = true);
        for (plan, trims) in plans() {
            for place in self.places().filter(|place| !trims || self.has_weight(*place)) {
                if let Cell::Gene(gene) = plan.cell(place) {
                    idle[gene] = false;
                }
            }
        }
        idle
    }

    /// Every place of every input.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.sources().flat_map(move |source| self.space.places(source))
    }

    /// Whether a source is weighed with something but zero in a place; where weights are interpolated, in any group.
    fn has_weight(&self, place: Place) -> bool {
        let has_weight = |group: usize| self.number("weight", Place { group, ..place }) != Some(0.0);
        if self.space.interpolate { (0..self.space.groups.len()).any(has_weight) } else { has_weight(place.group) }
    }

    /// A parameter's number before any repair.
    pub(super) fn written(&self, plan: &Plan, place: Place) -> f64 {
        let written = match plan.cell(place) {
            Cell::Frozen(number) => number,
            Cell::Gene(index) => match self.space.genes[index].value(self.units[index]) {
                GeneValue::Real(number) => number,
                GeneValue::Integer(number) => number as f64,
                GeneValue::Choice(index) => index as f64,
            },
        };
        if plan.inverted { complement(written) } else { written }
    }

    /// A parameter's number, or nothing where neither a gene nor a frozen value says one.
    pub(super) fn number(&self, parameter: &str, place: Place) -> Option<f64> {
        let plan = self.space.plan(parameter)?;
        let repaired = parameter == "weight" && self.has_no_sum(plan, place);
        let written = if repaired { 1.0 } else { self.written(plan, place) };
        match self.epsilon(place).filter(|_| parameter == DENSITY) {
            Some(epsilon) => {
                Some(repaired_density(written, epsilon, self.space.interpolate && self.dimensions(plan).0))
            }
            None => Some(written),
        }
    }

    /// Whether a parameter has about the value that was aimed at, `default` being what it has without a gene or frozen
    /// value. One that the method does not have is no obstacle.
    pub(super) fn is_about(&self, parameter: &str, place: Place, wanted: f64, default: f64) -> bool {
        self.method.parameter(parameter).is_none()
            || (self.number(parameter, place).unwrap_or(default) - wanted).abs() <= TOLERANCE
    }

    /// How far the chances to keep an element lie from the density, for methods that have such a parameter.
    fn epsilon(&self, place: Place) -> Option<f64> {
        self.method.parameter(DENSITY)?;
        let specification = self.method.parameter(EPSILON)?;
        let default = match specification.kind {
            ParameterKind::Number { default, .. } => default?,
            _ => return None,
        };
        Some(self.space.plan(EPSILON).map_or(default, |plan| self.written(plan, place)).abs())
    }

    /// Whether the method averages models, so that their weights may have no sum to divide by.
    fn averages(&self) -> bool {
        self.method.untrimmed == Some(Untrimmed::Average)
    }

    /// Whether a normalized linear merge could not divide by the sum of its weights, all sources' in that place.
    fn has_no_sum(&self, weights: &Plan, place: Place) -> bool {
        if !self.averages() || !self.normalizes(place) {
            return false;
        }
        let sum: f64 = self.sources().map(|source| self.written(weights, Place { source, ..place })).sum();
        sum.abs() < SMALLEST_SUM
    }

    /// Whether the method divides by the sum of its weights in a place.
    pub(super) fn normalizes(&self, place: Place) -> bool {
        let Some(parameter) = self.method.parameter("normalize") else { return false };
        match self.space.plan("normalize") {
            Some(plan) => self.written(plan, Place { source: 0, ..place }) != 0.0,
            None => matches!(parameter.kind, ParameterKind::Bool { default: true }),
        }
    }

    /// Whether a repair of weights may depend on layer group or module although the weights do not.
    fn dimensions(&self, plan: &Plan) -> (bool, bool) {
        let mut dimensions = (plan.per_group(), plan.per_module());
        if plan.parameter == DENSITY
            && self.method.parameter(EPSILON).is_some()
            && let Some(epsilon) = self.space.plan(EPSILON)
        {
            dimensions.0 |= epsilon.per_group();
            dimensions.1 |= epsilon.per_module();
        }
        if plan.parameter == "weight"
            && self.averages()
            && let Some(normalize) = self.space.plan("normalize")
        {
            dimensions.0 |= normalize.per_group();
            dimensions.1 |= normalize.per_module();
        }
        dimensions
    }

    fn recipe(&self) -> Recipe {
        let plans: Vec<&Plan> =
            self.method.parameters.iter().filter_map(|parameter| self.space.plan(parameter.name)).collect();
        let per_group = plans.iter().any(|plan| self.dimensions(plan).0);
        let (body, parameters) = if let Some(stack) = &self.space.stack {
            (self.stacked(stack), self.parameters(ParameterScope::Tensor, 0, Extent::Model, 0))
        } else if per_group && !self.space.interpolate {
            (self.slices(), self.parameters(ParameterScope::Tensor, 0, Extent::Model, 0))
        } else {
            let extent = if per_group { Extent::Gradients } else { Extent::Model };
            let input = |input: &DecodedInput| Input {
                model: input.model.clone(),
                layer_range: None,
                parameters: self.parameters(ParameterScope::Source, input.source, extent, 0),
            };
            let shared = self.parameters(ParameterScope::Tensor, 0, extent, 0);
            (Body::Models(self.inputs.iter().map(input).collect()), shared)
        };
        Recipe {
            merge_method: self.method.name.to_owned(),
            base_model: self.base.clone(),
            body,
            parameters,
            dtype: self.space.facts.dtype,
            out_dtype: None,
            tokenizer_source: None,
            chat_template: None,
            masks: self.space.facts.masks,
        }
    }

    fn slices(&self) -> Body {
        Body::Slices((0..self.space.groups.len()).map(|group| self.slice(group)).collect())
    }

    /// The layers of one group, merged.
    fn slice(&self, group: usize) -> Slice {
        let layer_range = self.space.groups.0.get(group).copied();
        let inputs = self.inputs.iter().map(|input| Input {
            model: input.model.clone(),
            layer_range,
            parameters: self.parameters(ParameterScope::Source, input.source, Extent::Slice, group),
        });
        let parameters = self.parameters(ParameterScope::Tensor, 0, Extent::Slice, group);
        Slice { sources: self.base_input(layer_range).chain(inputs).collect(), base_model: None, parameters }
    }

    /// The base as an entry of a slice, for methods that list it.
    fn base_input(&self, layer_range: Option<(usize, usize)>) -> impl Iterator<Item = Input> {
        self.base.iter().filter(|_| self.base_apart).map(move |base| Input {
            model: base.clone(),
            layer_range,
            parameters: Parameters::new(),
        })
    }

    /// Blocks of layers behind each other; runs of blocks that continue each other are one slice.
    fn stacked(&self, stack: &Stack) -> Body {
        let slice = |piece: &Piece| match piece.origin {
            Origin::Merged => self.slice(piece.group),
            Origin::Source(source) => self.source_slice(stack, source, piece),
        };
        Body::Slices(joined(self.pieces.iter().map(slice)))
    }

    /// The layers of one source: as they are, or scaled where the method can.
    fn source_slice(&self, stack: &Stack, source: usize, piece: &Piece) -> Slice {
        let layer_range = self.space.groups.0.get(piece.group).copied();
        let one = || {
            let value = Gradient::Scalar(Value::Number(1.0));
            Setting(vec![FilteredValue { filter: None, value }])
        };
        let of_scope = |scope: ParameterScope, names: &[&str]| -> Parameters {
            let parameters = self.method.parameters.iter().filter(|parameter| parameter.scope == scope);
            let set = parameters.filter(|parameter| names.contains(&parameter.name));
            set.map(|parameter| (parameter.name.to_owned(), one())).collect()
        };
        let mut parameters = of_scope(ParameterScope::Source, &["weight", DENSITY]);
        if let Some(setting) = stack.scale_setting(piece) {
            parameters.insert("scale".to_owned(), setting);
        }
        let model = self.space.facts.sources[source].1.clone();
        let input = Input { model, layer_range, parameters };
        Slice {
            sources: self.base_input(layer_range).chain([input]).collect(),
            base_model: None,
            parameters: of_scope(ParameterScope::Tensor, &["lambda"]),
        }
    }

    /// The parameters of one scope. In the `slices` form, what all groups share stands at the recipe (sources have it
    /// in every slice).
    fn parameters(&self, scope: ParameterScope, source: usize, extent: Extent, group: usize) -> Parameters {
        let mut parameters = Parameters::new();
        for parameter in self.method.parameters.iter().filter(|parameter| parameter.scope == scope) {
            let Some(plan) = self.space.plan(parameter.name) else { continue };
            let per_group = self.dimensions(plan).0;
            let elsewhere = scope == ParameterScope::Tensor
                && match extent {
                    Extent::Slice => !per_group,
                    Extent::Model => per_group,
                    Extent::Gradients => false,
                };
            if !elsewhere {
                let gradient = extent == Extent::Gradients && per_group;
                let setting = if gradient {
                    self.gradient_setting(parameter, plan, source)
                } else {
                    self.setting(parameter, plan, source, group)
                };
                parameters.insert(parameter.name.to_owned(), setting);
            }
        }
        parameters
    }

    fn value(&self, parameter: &ParameterSpecification, place: Place) -> Value {
        let number = self.number(parameter.name, place).unwrap_or_default();
        match parameter.kind {
            ParameterKind::Bool { .. } => Value::Bool(number != 0.0),
            ParameterKind::Number { .. } | ParameterKind::Integer { .. } => Value::Number(number),
        }
    }

    /// One value, or one a module.
    fn setting(&self, parameter: &ParameterSpecification, plan: &Plan, source: usize, group: usize) -> Setting {
        let scalar = |module| Gradient::Scalar(self.value(parameter, Place { source, group, module }));
        self.by_module(plan, scalar)
    }

    fn by_module(&self, plan: &Plan, value: impl Fn(usize) -> Gradient) -> Setting {
        let modules = if self.dimensions(plan).1 { self.space.module_count() } else { 1 };
        let entries = (0..modules).map(|module| FilteredValue {
            // The last is everything else.
            filter: if module + 1 == modules { None } else { self.space.modules.get(module).cloned() },
            value: value(module),
        });
        Setting(entries.collect())
    }

    /// Gradients over the layers. Tensors without a number take a gradient's first value, which is wrong for those that
    /// belong to the last group, so these come first, by name; as do those of another tower, which would take the value of
    /// their place in it.
    fn gradient_setting(&self, parameter: &ParameterSpecification, plan: &Plan, source: usize) -> Setting {
        let groups = self.space.groups.len();
        let module_of = |name: &str| {
            if !self.dimensions(plan).1 {
                return 0;
            }
            let modules = &self.space.modules;
            modules.iter().position(|module| name.contains(module.as_str())).unwrap_or(modules.len())
        };
        let gradient = |module: usize| {
            Gradient::Points((0..groups).map(|group| self.value(parameter, Place { source, group, module })).collect())
        };
        let of_group = |group: usize, name: &str| {
            Gradient::Scalar(self.value(parameter, Place { source, group, module: module_of(name) }))
        };
        let named = self.space.named_tensors.iter().map(|(name, group)| FilteredValue {
            filter: Some(name.clone()),
            value: match group {
                TensorGroup::First => of_group(0, name),
                TensorGroup::Last => of_group(groups - 1, name),
                TensorGroup::OfLayer => gradient(module_of(name)),
            },
        });
        let mut entries: Vec<FilteredValue> = named.collect();
        entries.extend(self.by_module(plan, gradient).0);
        Setting(entries)
    }
}

/// What parameters are written for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// The whole model.
    Model,
    /// One slice.
    Slice,
    /// The whole model, with gradients for what varies over layer groups.
    Gradients,
}
