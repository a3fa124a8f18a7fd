//! From gene declarations to genes, and to where each value of each parameter comes from.

use super::layers::LayerGroups;
use super::prior::Prior;
use super::{Gene, GeneKind, GeneValue, ModelFacts};
use crate::config::{GeneConfig, GenePer, GeneSearch, SpaceConfig};
use crate::merge::{
    BaseUse, DROP_RATE, InputCount, MethodSpecification, ParameterKind, ParameterSpecification, complement,
    parameter_of_gene,
};

/// What one value of a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Of parameters that sources share: any.
    pub source: usize,
    /// Layer group.
    pub group: usize,
    /// As the space tells modules apart; the last is everything else.
    pub module: usize,
}

/// Where one value of a parameter comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell {
    Frozen(f64),
    /// Index of a gene.
    Gene(usize),
}

impl Cell {
    pub fn gene(&self) -> Option<usize> {
        match self {
            Self::Frozen(_) => None,
            Self::Gene(index) => Some(*index),
        }
    }
}

/// Where all values of one parameter come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The method's name of the parameter.
    pub parameter: &'static str,
    /// Whether the cells hold the parameter's complement ([`DROP_RATE`]).
    pub inverted: bool,
    /// Sizes of the three dimensions: models, layer groups, modules; 1 where they share a value.
    pub sizes: [usize; 3],
    /// In row-major order.
    pub cells: Vec<Cell>,
}

impl Plan {
    /// One value everywhere, for the parameter behind a gene's name.
    fn frozen(specification: &ParameterSpecification, gene: &str, number: f64) -> Self {
        Self {
            parameter: specification.name,
            inverted: gene == DROP_RATE,
            sizes: [1; 3],
            cells: vec![Cell::Frozen(number)],
        }
    }

    /// The cell that a place reads.
    pub fn cell(&self, place: Place) -> Cell {
        let Place { source, group, module } = place;
        let at = |index: usize, dimension: usize| index.min(self.sizes[dimension] - 1);
        let index = (at(source, 0) * self.sizes[1] + at(group, 1)) * self.sizes[2] + at(module, 2);
        self.cells[index]
    }

    pub const fn per_group(&self) -> bool {
        self.sizes[1] > 1
    }

    pub const fn per_module(&self) -> bool {
        self.sizes[2] > 1
    }
}

/// Genes and plans of a space; the genes `method`, `pair` and `source` come first.
#[derive(Default)]
pub(super) struct Layout {
    pub genes: Vec<Gene>,
    pub plans: Vec<Plan>,
    pub method_gene: Option<usize>,
    pub pair_gene: Option<usize>,
    pub source_gene: Option<usize>,
    pub pairs: Vec<(usize, usize)>,
    /// What conflicts between sources did to ranges, in words.
    pub prior_notices: Vec<String>,
}

/// Whether `pair` chooses the method's two inputs.
pub(super) fn takes_pair(method: &MethodSpecification, sources: usize) -> bool {
    method.inputs == InputCount::Exactly(2) && sources > 2
}

/// Whether `source` chooses the method's only input.
pub(super) fn takes_one(method: &MethodSpecification, sources: usize) -> bool {
    method.inputs == InputCount::Exactly(1) && sources > 1
}

/// Whether a source is an input of the method: one that is the base itself has no task vector.
pub(super) fn is_input(method: &MethodSpecification, facts: &ModelFacts, source: usize) -> bool {
    let drops_base = matches!(method.base, BaseUse::Required | BaseUse::Optional);
    !drops_base || facts.sources.get(source).is_some_and(|(_, model)| facts.base.as_ref() != Some(model))
}

/// Lays out genes and plans: the choices first, then the parameters in the run file's order, then those tied to others.
pub(super) fn build(
    config: &SpaceConfig,
    methods: &[&'static MethodSpecification],
    facts: &ModelFacts,
    groups: &LayerGroups,
) -> Layout {
    let mut builder = Builder { config, methods, facts, groups, layout: Layout::default() };
    builder.add_method();
    builder.add_pair();
    builder.add_source();
    for (name, gene) in &config.genes {
        builder.add_parameter(name, gene);
    }
    for (name, gene) in &config.genes {
        if let GeneConfig::SameAs(target) = gene {
            builder.tie(name, target);
        }
    }
    builder.layout
}

/// A layout that is being made.
struct Builder<'a> {
    config: &'a SpaceConfig,
    methods: &'a [&'static MethodSpecification],
    facts: &'a ModelFacts,
    groups: &'a LayerGroups,
    layout: Layout,
}

/// A parameter that genes are made for.
struct SearchedParameter<'a> {
    /// As the run file calls it.
    name: &'a str,
    search: &'a GeneSearch,
    prior: Prior,
    /// Where its genes start.
    start: f64,
    /// Models, layer groups and modules that have genes of their own; 1 where they share them.
    sizes: [usize; 3],
}

impl SearchedParameter<'_> {
    fn varies_per(&self, per: GenePer) -> bool {
        self.search.per.contains(&per)
    }
}

impl Builder<'_> {
    fn add_method(&mut self) {
        if self.methods.len() > 1 {
            let choices = self.methods.iter().map(|method| method.name.to_owned()).collect();
            self.layout.method_gene = Some(self.add_gene(categorical("method", choices, Vec::new())));
        }
    }

    fn add_pair(&mut self) {
        let count = self.facts.sources.len();
        let paired = self.methods_where(|method| takes_pair(method, count));
        if paired.is_empty() {
            return;
        }
        let pairs: Vec<(usize, usize)> =
            (0..count).flat_map(|first| (first + 1..count).map(move |second| (first, second))).collect();
        let name = |index: usize| self.facts.sources[index].0.as_str();
        let choices = pairs.iter().map(|(first, second)| format!("{}+{}", name(*first), name(*second))).collect();
        let gene = categorical("pair", choices, self.unless_all(paired));
        self.layout.pair_gene = Some(self.add_gene(gene));
        self.layout.pairs = pairs;
    }

    fn add_source(&mut self) {
        let single = self.methods_where(|method| takes_one(method, self.facts.sources.len()));
        // A stack of the sources' own layers says by itself where each comes from.
        let stacks_sources = self.config.stack.as_ref().is_some_and(|stack| !stack.blocks.has_merged());
        if single.is_empty() || stacks_sources {
            return;
        }
        let choices = self.facts.sources.iter().map(|(name, _)| name.clone()).collect();
        let gene = categorical("source", choices, self.unless_all(single));
        self.layout.source_gene = Some(self.add_gene(gene));
    }

    /// A parameter of at least one method, with a value or a search of its own.
    fn add_parameter(&mut self, name: &str, gene: &GeneConfig) {
        let Some((specification, _)) = find_parameter(self.methods, name) else { return };
        let plan = match gene {
            GeneConfig::Search(search) => self.search(name, search, specification),
            GeneConfig::Number(number) => Plan::frozen(specification, name, *number),
            GeneConfig::Bool(truth) => Plan::frozen(specification, name, f64::from(u8::from(*truth))),
            GeneConfig::SameAs(_) => return,
        };
        self.layout.plans.push(plan);
    }

    /// A tied parameter reads the cells of the gene that it is tied to.
    fn tie(&mut self, name: &str, target: &str) {
        let is_target =
            |plan: &&Plan| plan.parameter == parameter_of_gene(target) && plan.inverted == (target == DROP_RATE);
        let tied = self.layout.plans.iter().find(is_target).cloned();
        if let (Some(tied), Some((specification, _))) = (tied, find_parameter(self.methods, name)) {
            self.layout.plans.push(Plan { parameter: specification.name, inverted: name == DROP_RATE, ..tied });
        }
    }

    /// Makes the genes of a parameter.
    fn search(&mut self, name: &str, search: &GeneSearch, specification: &ParameterSpecification) -> Plan {
        let size = |per: GenePer, size: usize| if search.per.contains(&per) { size } else { 1 };
        let parameter = SearchedParameter {
            name,
            search,
            prior: Prior::new(search, self.facts, self.groups),
            start: initial(name, search, specification, self.facts.sources.len()),
            sizes: [
                size(GenePer::Model, self.facts.sources.len()),
                size(GenePer::LayerGroup, self.groups.len()),
                size(GenePer::Module, self.config.modules.len() + 1),
            ],
        };
        let using = methods_of(self.config, self.methods, name);
        let mut cells = Vec::new();
        for model in 0..parameter.sizes[0] {
            let model = parameter.varies_per(GenePer::Model).then_some(model);
            cells.extend(self.cells_of_model(&parameter, model, &using));
        }
        self.layout.prior_notices.extend(parameter.prior.notice(name));
        Plan { parameter: specification.name, inverted: name == DROP_RATE, sizes: parameter.sizes, cells }
    }

    /// The cells of one source, or of all where they share them: frozen together, or a gene each. `using` are the
    /// methods that the parameter has an effect for.
    fn cells_of_model(
        &mut self,
        parameter: &SearchedParameter<'_>,
        model: Option<usize>,
        using: &[usize],
    ) -> Vec<Cell> {
        let [_, groups, modules] = parameter.sizes;
        let takes_part = |method: usize| model.is_none_or(|model| is_input(self.methods[method], self.facts, model));
        let effective: Vec<usize> = using.iter().copied().filter(|method| takes_part(*method)).collect();
        let frozen = self.model_name(model).and_then(|name| parameter.search.models.get(name)).copied();
        // A source that is the base of every method would have a gene without effect.
        if let Some(number) = frozen.or(effective.is_empty().then_some(parameter.search.low)) {
            return vec![Cell::Frozen(number); groups * modules];
        }
        let methods = self.unless_all(effective);
        let mut cells = Vec::with_capacity(groups * modules);
        for group in 0..groups {
            let layer_group = parameter.varies_per(GenePer::LayerGroup).then_some(group);
            for module in 0..modules {
                let module = parameter.varies_per(GenePer::Module).then_some(module);
                let mut gene = Gene {
                    name: self.gene_name(parameter.name, model, layer_group, module),
                    parameter: parameter.name.to_owned(),
                    kind: gene_kind(&parameter.prior.range(parameter.search, parameter.start, model, layer_group)),
                    init: 0.5,
                    model,
                    layer_group,
                    module,
                    methods: methods.clone(),
                };
                gene.init = gene.unit(&GeneValue::Real(parameter.start));
                cells.push(Cell::Gene(self.add_gene(gene)));
            }
        }
        cells
    }

    /// The gene's index.
    fn add_gene(&mut self, gene: Gene) -> usize {
        self.layout.genes.push(gene);
        self.layout.genes.len() - 1
    }

    fn methods_where(&self, holds: impl Fn(&MethodSpecification) -> bool) -> Vec<usize> {
        (0..self.methods.len()).filter(|index| holds(self.methods[*index])).collect()
    }

    /// Methods as a gene lists them: none where it has an effect for all.
    fn unless_all(&self, methods: Vec<usize>) -> Vec<usize> {
        if methods.len() == self.methods.len() { Vec::new() } else { methods }
    }

    fn model_name(&self, model: Option<usize>) -> Option<&str> {
        self.facts.sources.get(model?).map(|(name, _)| name.as_str())
    }

    fn gene_name(
        &self,
        parameter: &str,
        model: Option<usize>,
        layer_group: Option<usize>,
        module: Option<usize>,
    ) -> String {
        let module = module.map(|module| self.config.modules.get(module).map_or("rest", String::as_str));
        let group = layer_group.map(|group| format!("g{group}"));
        let parts = [Some(parameter), self.model_name(model), group.as_deref(), module];
        parts.into_iter().flatten().collect::<Vec<_>>().join(".")
    }
}

fn categorical(name: &str, choices: Vec<String>, methods: Vec<usize>) -> Gene {
    let init = 0.5 / choices.len().max(1) as f64;
    let kind = GeneKind::Categorical { choices };
    let (name, parameter) = (name.to_owned(), name.to_owned());
    Gene { name, parameter, kind, init, model: None, layer_group: None, module: None, methods }
}

/// The declaration behind a gene and the methods that have it.
fn find_parameter(
    methods: &[&'static MethodSpecification],
    gene: &str,
) -> Option<(&'static ParameterSpecification, Vec<usize>)> {
    let name = parameter_of_gene(gene);
    let using: Vec<usize> = (0..methods.len()).filter(|index| methods[*index].parameter(name).is_some()).collect();
    let specification = methods.get(*using.first()?)?.parameter(name)?;
    Some((specification, using))
}

/// All methods for which a declared gene has an effect, through itself or through parameters tied to it.
fn methods_of(config: &SpaceConfig, methods: &[&'static MethodSpecification], gene: &str) -> Vec<usize> {
    let tied = config.genes.iter().filter(|(_, other)| matches!(other, GeneConfig::SameAs(target) if target == gene));
    let names = tied.map(|(name, _)| name.as_str()).chain([gene]);
    let mut using: Vec<usize> =
        names.filter_map(|name| find_parameter(methods, name)).flat_map(|(_, using)| using).collect();
    using.sort_unstable();
    using.dedup();
    using
}

fn gene_kind(search: &GeneSearch) -> GeneKind {
    if search.integer {
        GeneKind::Integer { low: search.low as i64, high: search.high as i64 }
    } else {
        GeneKind::Real { low: search.low, high: search.high, log: search.log }
    }
}

/// `init` where it is given; else an equal share for weights, the method's default for parameters that have one inside
/// the range, and the middle of the range for the rest.
fn initial(name: &str, search: &GeneSearch, specification: &ParameterSpecification, sources: usize) -> f64 {
    let default = match specification.kind {
        ParameterKind::Number { default, .. } => default,
        ParameterKind::Integer { default, .. } => default.map(|number| number as f64),
        ParameterKind::Bool { default } => Some(f64::from(u8::from(default))),
    };
    let default = if name == DROP_RATE { default.map(complement) } else { default };
    let middle = if search.log {
        geometric_mean(search.low, search.high)
    } else {
        search.low + (search.high - search.low) / 2.0
    };
    match (search.init, default) {
        (Some(init), _) => init,
        (None, Some(default)) => default.clamp(search.low, search.high),
        (None, None) if name == "weight" => (1.0 / sources.max(1) as f64).clamp(search.low, search.high),
        (None, None) => middle,
    }
}

/// The geometric mean of two numbers above 0. Only where their product is out of range it comes from their roots, which
/// round otherwise: all other searches start from the bits that recorded ones started from.
fn geometric_mean(low: f64, high: f64) -> f64 {
    let product = low * high;
    if product.is_finite() && product != 0.0 { product.sqrt() } else { low.sqrt() * high.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_logarithmic_range_lies_inside_whatever_its_size() {
        for (low, high, middle) in [(1e200, 1e210, 1e205), (1e-210, 1e-200, 1e-205), (1e-4, 1.0, 1e-2)] {
            let found = geometric_mean(low, high);
            assert!((found / middle - 1.0).abs() < 1e-12, "{low} {high}: {found}");
        }
        let (low, high) = (0.003_f64, 0.7_f64);
        assert_eq!(geometric_mean(low, high).to_bits(), (low * high).sqrt().to_bits());
    }
}
