//! From gene declarations to genes, and to where each value of each parameter comes from.

use super::layers::LayerGroups;
use super::prior::Prior;
use super::{Gene, GeneKind, GeneValue, ModelFacts};
use crate::config::{GeneConfig, GenePer, GeneSearch, SpaceConfig};
use crate::merge::{BaseUse, InputCount, MethodSpecification, ParameterKind, ParameterSpecification};

/// The gene that stands for `density = 1 - drop_rate`.
const DROP_RATE: &str = "drop_rate";
const DENSITY: &str = "density";

/// Where one value of a parameter comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell {
    Frozen(f64),
    /// Index of a gene.
    Gene(usize),
}

/// Where all values of one parameter come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The method's name of the parameter.
    pub parameter: &'static str,
    /// Whether the cells hold 1 minus the parameter (`drop_rate`).
    pub inverted: bool,
    /// Sizes of the three dimensions: models, layer groups, modules; 1 where they share a value.
    pub sizes: [usize; 3],
    /// In row-major order.
    pub cells: Vec<Cell>,
}

impl Plan {
    /// The cell for a source, a layer group and a module.
    pub fn cell(&self, model: usize, group: usize, module: usize) -> Cell {
        let at = |index: usize, dimension: usize| index.min(self.sizes[dimension] - 1);
        let index = (at(model, 0) * self.sizes[1] + at(group, 1)) * self.sizes[2] + at(module, 2);
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
pub(super) struct Layout {
    pub genes: Vec<Gene>,
    pub plans: Vec<Plan>,
    pub method_gene: Option<usize>,
    pub pair_gene: Option<usize>,
    pub source_gene: Option<usize>,
    pub pairs: Vec<(usize, usize)>,
    /// What conflicts between sources did to ranges, in words.
    pub prior: Option<String>,
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

pub(super) fn build(
    config: &SpaceConfig,
    methods: &[&'static MethodSpecification],
    facts: &ModelFacts,
    groups: &LayerGroups,
) -> Layout {
    let mut layout = Layout {
        genes: Vec::new(),
        plans: Vec::new(),
        method_gene: None,
        pair_gene: None,
        source_gene: None,
        pairs: Vec::new(),
        prior: None,
    };
    if methods.len() > 1 {
        layout.method_gene = Some(layout.genes.len());
        let choices = methods.iter().map(|method| method.name.to_owned()).collect();
        layout.genes.push(categorical("method", choices, Vec::new()));
    }
    let paired: Vec<usize> =
        (0..methods.len()).filter(|index| takes_pair(methods[*index], facts.sources.len())).collect();
    if !paired.is_empty() {
        let count = facts.sources.len();
        layout.pairs = (0..count).flat_map(|first| (first + 1..count).map(move |second| (first, second))).collect();
        let name = |index: usize| facts.sources[index].0.as_str();
        let choices =
            layout.pairs.iter().map(|(first, second)| format!("{}+{}", name(*first), name(*second))).collect();
        layout.pair_gene = Some(layout.genes.len());
        layout.genes.push(categorical(
            "pair",
            choices,
            if paired.len() == methods.len() { Vec::new() } else { paired },
        ));
    }
    let single: Vec<usize> =
        (0..methods.len()).filter(|index| takes_one(methods[*index], facts.sources.len())).collect();
    // A stack of the sources' own layers says by itself where each comes from.
    let stacks_sources = config.stack.as_ref().is_some_and(|stack| !stack.merged);
    if !single.is_empty() && !stacks_sources {
        let choices = facts.sources.iter().map(|(name, _)| name.clone()).collect();
        layout.source_gene = Some(layout.genes.len());
        let methods = if single.len() == methods.len() { Vec::new() } else { single };
        layout.genes.push(categorical("source", choices, methods));
    }
    for (name, gene) in &config.genes {
        if !matches!(gene, GeneConfig::SameAs(_)) {
            add_parameter(&mut layout, config, methods, facts, groups, name, gene);
        }
    }
    // Tied parameters read the cells of the gene that they are tied to.
    for (name, gene) in &config.genes {
        let GeneConfig::SameAs(other) = gene else { continue };
        let tied = layout
            .plans
            .iter()
            .find(|plan| plan.parameter == parameter_name(other) && plan.inverted == (other == DROP_RATE));
        if let (Some(tied), Some((specification, _))) = (tied.cloned(), find_parameter(methods, name)) {
            layout.plans.push(Plan { parameter: specification.name, inverted: name == DROP_RATE, ..tied });
        }
    }
    layout
}

fn categorical(name: &str, choices: Vec<String>, methods: Vec<usize>) -> Gene {
    let init = 0.5 / choices.len().max(1) as f64;
    let kind = GeneKind::Categorical { choices };
    let (name, parameter) = (name.to_owned(), name.to_owned());
    Gene { name, parameter, kind, init, model: None, layer_group: None, module: None, methods }
}

fn parameter_name(gene: &str) -> &str {
    if gene == DROP_RATE { DENSITY } else { gene }
}

/// The declaration behind a gene and the methods that have it.
fn find_parameter(
    methods: &[&'static MethodSpecification],
    gene: &str,
) -> Option<(&'static ParameterSpecification, Vec<usize>)> {
    let name = parameter_name(gene);
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

fn add_parameter(
    layout: &mut Layout,
    config: &SpaceConfig,
    methods: &[&'static MethodSpecification],
    facts: &ModelFacts,
    groups: &LayerGroups,
    name: &str,
    gene: &GeneConfig,
) {
    let Some((specification, _)) = find_parameter(methods, name) else { return };
    let mut plan =
        Plan { parameter: specification.name, inverted: name == DROP_RATE, sizes: [1; 3], cells: Vec::new() };
    let search = match gene {
        GeneConfig::Search(search) => search,
        GeneConfig::Number(number) => return layout.plans.push(Plan { cells: vec![Cell::Frozen(*number)], ..plan }),
        GeneConfig::Bool(truth) => {
            return layout.plans.push(Plan { cells: vec![Cell::Frozen(f64::from(u8::from(*truth)))], ..plan });
        }
        GeneConfig::SameAs(_) => return,
    };
    let using = methods_of(config, methods, name);
    let size = |per: GenePer, size: usize| if search.per.contains(&per) { size } else { 1 };
    let modules = config.modules.len() + 1;
    plan.sizes = [
        size(GenePer::Model, facts.sources.len()),
        size(GenePer::LayerGroup, groups.len()),
        size(GenePer::Module, modules),
    ];
    let prior = Prior::new(search, facts, groups);
    let start = initial(name, search, specification, facts.sources.len());
    for model in 0..plan.sizes[0] {
        let own = search.per.contains(&GenePer::Model).then_some(model);
        let model_name = own.and_then(|model| facts.sources.get(model)).map(|(name, _)| name.as_str());
        let effective: Vec<usize> = using
            .iter()
            .copied()
            .filter(|index| own.is_none_or(|model| is_input(methods[*index], facts, model)))
            .collect();
        let frozen = model_name.and_then(|model| search.models.get(model)).copied();
        // A source that is the base of every method would have a gene without effect.
        let frozen = frozen.or(if effective.is_empty() { Some(search.low) } else { None });
        for group in 0..plan.sizes[1] {
            for module in 0..plan.sizes[2] {
                if let Some(frozen) = frozen {
                    plan.cells.push(Cell::Frozen(frozen));
                    continue;
                }
                let layer_group = search.per.contains(&GenePer::LayerGroup).then_some(group);
                let module = search.per.contains(&GenePer::Module).then_some(module);
                let mut gene = Gene {
                    name: gene_name(config, name, model_name, layer_group, module),
                    parameter: name.to_owned(),
                    kind: gene_kind(&prior.range(search, start, own, layer_group)),
                    init: 0.5,
                    model: own,
                    layer_group,
                    module,
                    methods: if effective.len() == methods.len() { Vec::new() } else { effective.clone() },
                };
                gene.init = gene.unit(&GeneValue::Real(start));
                plan.cells.push(Cell::Gene(layout.genes.len()));
                layout.genes.push(gene);
            }
        }
    }
    layout.plans.push(plan);
    layout.prior = prior.notice(name).or(layout.prior.take());
}

fn gene_kind(search: &GeneSearch) -> GeneKind {
    if search.integer {
        GeneKind::Integer { low: search.low as i64, high: search.high as i64 }
    } else {
        GeneKind::Real { low: search.low, high: search.high, log: search.log }
    }
}

/// `init` where it is given; else an equal share for weights, the method's default for parameters that have one inside the
/// range, and the middle of the range for the rest.
fn initial(name: &str, search: &GeneSearch, specification: &ParameterSpecification, sources: usize) -> f64 {
    let default = match specification.kind {
        ParameterKind::Number { default, .. } => default,
        ParameterKind::Integer { default, .. } => default.map(|number| number as f64),
        ParameterKind::Bool { default } => Some(f64::from(u8::from(default))),
    };
    let default = if name == DROP_RATE { default.map(|density| 1.0 - density) } else { default };
    let middle =
        if search.log { (search.low * search.high).sqrt() } else { search.low + (search.high - search.low) / 2.0 };
    match (search.init, default) {
        (Some(init), _) => init,
        (None, Some(default)) => default.clamp(search.low, search.high),
        (None, None) if name == "weight" => (1.0 / sources.max(1) as f64).clamp(search.low, search.high),
        (None, None) => middle,
    }
}

fn gene_name(
    config: &SpaceConfig,
    parameter: &str,
    model: Option<&str>,
    layer_group: Option<usize>,
    module: Option<usize>,
) -> String {
    let module = module.map(|module| config.modules.get(module).map_or("rest", String::as_str));
    let group = layer_group.map(|group| format!("g{group}"));
    [Some(parameter), model, group.as_deref(), module].into_iter().flatten().collect::<Vec<_>>().join(".")
}
