//! Baselines: soups and the base, as recipes of their own and as points of the search space.

use super::decode::Decoded;
use super::plan::{Cell, Place, Plan};
use super::stack::{Origin, Stack};
use super::{GeneKind, GeneValue, Genome, ModelFacts, SearchSpace};
use crate::merge::{BaseUse, DENSITY, ParameterKind, Untrimmed, complement};
use crate::recipe::{Body, FilteredValue, Gradient, Input, ModelReference, Parameters, Recipe, Setting, Slice, Value};

/// A baseline as a point of the search space.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// What decodes to it.
    pub genome: Genome,
    /// Whether its weights are the baseline's, bit for bit, so that the baseline's score may stand for it. Otherwise
    /// they differ by rounding: a source is not always equal to base + (source - base).
    pub exact: bool,
}

/// The average of these sources (indices) with equal weights; one that is there several times has as many shares. One
/// source alone is that source.
pub fn soup_recipe(facts: &ModelFacts, members: &[usize]) -> Recipe {
    let models = shares(members)
        .into_iter()
        .filter_map(|(member, share)| facts.sources.get(member).map(|(_, model)| (model.clone(), share as f64)));
    average(facts, models)
}

/// How many parts of each source there are, in the order of `members`, in lowest terms.
fn shares(members: &[usize]) -> Vec<(usize, u64)> {
    let mut shares: Vec<(usize, u64)> = Vec::new();
    for member in members {
        match shares.iter_mut().find(|(known, _)| known == member) {
            Some((_, share)) => *share += 1,
            None => shares.push((*member, 1)),
        }
    }
    let common = |a: u64, b: u64| {
        let (mut a, mut b) = (a, b);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let divisor = shares.iter().fold(0, |divisor, (_, share)| common(divisor, *share)).max(1);
    shares.into_iter().map(|(member, share)| (member, share / divisor)).collect()
}

/// The base model as a recipe; nothing where the run has none.
pub fn base_recipe(facts: &ModelFacts) -> Option<Recipe> {
    facts.base.clone().map(|base| average(facts, std::iter::once((base, 1.0))))
}

/// The average of base and sources: it has every tensor that a candidate may have.
pub fn whole_recipe(facts: &ModelFacts) -> Recipe {
    let sources =
        facts.sources.iter().map(|(_, model)| model.clone()).filter(|model| Some(model) != facts.base.as_ref());
    average(facts, facts.base.clone().into_iter().chain(sources).map(|model| (model, 1.0)))
}

/// These layers of the first source, behind each other.
pub fn stack_recipe(facts: &ModelFacts, layers: &[usize]) -> Recipe {
    let whole = soup_recipe(facts, &[0]);
    let slice = |layer: &usize| {
        let one = |input: &Input| Input { layer_range: Some((*layer, layer + 1)), ..input.clone() };
        Slice { sources: whole.body.inputs().map(one).collect(), base_model: None, parameters: Parameters::new() }
    };
    Recipe { body: Body::Slices(layers.iter().map(slice).collect()), ..whole.clone() }
}

fn average(facts: &ModelFacts, models: impl Iterator<Item = (ModelReference, f64)>) -> Recipe {
    let setting =
        |weight| Setting(vec![FilteredValue { filter: None, value: Gradient::Scalar(Value::Number(weight)) }]);
    let input = |(model, weight)| Input {
        model,
        layer_range: None,
        parameters: Parameters::from([("weight".to_owned(), setting(weight))]),
    };
    Recipe {
        merge_method: "linear".to_owned(),
        base_model: None,
        body: Body::Models(models.map(input).collect()),
        parameters: Parameters::new(),
        dtype: facts.dtype,
        out_dtype: None,
        tokenizer_source: None,
        chat_template: None,
        masks: facts.masks,
    }
}

/// What is aimed at: the same value wherever the parameter varies.
#[derive(Clone, Copy)]
struct Target {
    /// By whether the source is a member.
    weight: [f64; 2],
    lambda: f64,
    normalize: bool,
}

impl SearchSpace {
    /// The genome whose recipe equals the soup of these sources, up to the rounding of task vectors; nothing where the
    /// space holds none. Methods are tried in the space's order, exact matches first.
    pub fn encode_soup(&self, members: &[usize]) -> Option<Encoded> {
        let shares = shares(members);
        if shares.iter().any(|(_, share)| *share != 1) {
            // Unequal weights have no common value to aim at.
            return None;
        }
        let mut members: Vec<usize> = shares.into_iter().map(|(member, _)| member).collect();
        members.sort_unstable();
        if members.is_empty() || members.iter().any(|member| *member >= self.facts.sources.len()) {
            return None;
        }
        let merged = self.best_of(|space, method| space.encode_soup_with(method, &members));
        merged.or_else(|| match (&self.stack, members.as_slice()) {
            (Some(stack), [source]) if stack.holds(Origin::Source(*source)) => self.encode_stacked(stack, *source),
            _ => None,
        })
    }

    /// A source as it is, in a stack of the sources' own layers.
    fn encode_stacked(&self, stack: &Stack, source: usize) -> Option<Encoded> {
        let mut genome = self.init();
        stack.set_whole(&self.genes, &mut genome.0, Origin::Source(source));
        let decoded = self.decoded(&genome);
        // A method with a base adds the source's task vector to it, which rounds.
        let exact = decoded.method().base == BaseUse::None;
        stack.is_whole(decoded.pieces(), Origin::Source(source)).then_some(Encoded { genome, exact })
    }

    /// The genome whose recipe equals the base model: no task vector is added. Nothing where the space holds none.
    pub fn encode_base(&self) -> Option<Encoded> {
        let base = self.facts.base.as_ref()?;
        let same = self.facts.sources.iter().position(|(_, model)| model == base);
        let without_vectors = self.best_of(|space, method| match space.specifications[method].untrimmed? {
            Untrimmed::TaskVectors | Untrimmed::Elected => space.encode_nothing_added(method),
            Untrimmed::Average | Untrimmed::Interpolation => None,
        });
        without_vectors.or_else(|| self.encode_soup(&[same?]))
    }

    /// Whether every gene's `init` gives the average of all sources with equal weights, whatever these are. It need not be
    /// the genome that [`Self::encode_soup`] answers with: weights that are divided by their sum say it in many ways.
    pub fn starts_at_uniform_soup(&self) -> bool {
        let init = self.init();
        let decoded = self.decoded(&init);
        let all: Vec<usize> = (0..self.facts.sources.len()).collect();
        let weight = decoded.number("weight", Place { source: 0, group: 0, module: 0 });
        let Some(weight) = weight.filter(|weight| *weight > 0.0) else { return false };
        decoded.method().untrimmed == Some(Untrimmed::Average)
            && self.reaches(&decoded, &all, Target { weight: [0.0, weight], lambda: 1.0, normalize: true })
    }

    fn best_of(&self, encode: impl Fn(&Self, usize) -> Option<Encoded>) -> Option<Encoded> {
        let mut found: Vec<Encoded> =
            (0..self.specifications.len()).filter_map(|method| encode(self, method)).collect();
        found.sort_by_key(|encoded| !encoded.exact);
        found.into_iter().next()
    }

    fn encode_soup_with(&self, method: usize, members: &[usize]) -> Option<Encoded> {
        let share = 1.0 / members.len() as f64;
        let sums = [1.0, 0.5, 2.0, 0.25, 4.0, 0.125, 0.75, 0.3, 0.2, 0.1];
        match self.specifications[method].untrimmed? {
            Untrimmed::Average => {
                // The weights' common value does not matter: they are divided by their sum. Powers of two keep every
                // bit.
                let normalized =
                    sums.iter().map(|weight| Target { weight: [0.0, *weight], lambda: 1.0, normalize: true });
                let plain = Target { weight: [0.0, share], lambda: 1.0, normalize: false };
                let mut targets = normalized.chain([plain]);
                targets.find_map(|target| {
                    let genome = self.aim(method, members, target)?;
                    let exact = self.is_exact_average(&genome, members, target);
                    Some(Encoded { genome, exact })
                })
            }
            Untrimmed::Elected if members.len() > 1 => None,
            Untrimmed::TaskVectors | Untrimmed::Elected => {
                let lambda = self.reachable("lambda", 1.0);
                let plain = Target { weight: [0.0, share / lambda], lambda, normalize: false };
                let normalized =
                    sums.iter().map(|weight| Target { weight: [0.0, *weight], lambda: 1.0, normalize: true });
                let mut targets = [plain].into_iter().chain(normalized);
                let genome = targets.find_map(|target| self.aim(method, members, target))?;
                Some(Encoded { genome, exact: false })
            }
            Untrimmed::Interpolation => self.encode_end(method, members),
        }
    }

    fn encode_nothing_added(&self, method: usize) -> Option<Encoded> {
        let lambda = self.reachable("lambda", 1.0);
        let targets = [false, true].map(|normalize| Target { weight: [0.0, 0.0], lambda, normalize });
        let genome = targets.into_iter().find_map(|target| self.aim(method, &[], target))?;
        Some(Encoded { genome, exact: true })
    }

    /// The value of a parameter's gene nearest to the one that is wanted, or what it is frozen to.
    pub(super) fn reachable(&self, parameter: &str, wanted: f64) -> f64 {
        match self.plan(parameter).map(|plan| (plan.cells.first(), plan.inverted)) {
            Some((Some(Cell::Frozen(number)), false)) if *number != 0.0 => *number,
            Some((Some(Cell::Gene(index)), false)) => match self.genes[*index].kind {
                GeneKind::Real { low, high, .. } => wanted.clamp(low, high),
                _ => wanted,
            },
            _ => wanted,
        }
    }

    /// The genome of a method with these values, if the space holds it.
    fn aim(&self, method: usize, members: &[usize], target: Target) -> Option<Genome> {
        let mut genome = self.init();
        self.choose(&mut genome, self.method_gene, method);
        let sources = self.facts.sources.len();
        for source in 0..sources {
            let weight = target.weight[usize::from(members.contains(&source))];
            self.set(&mut genome, "weight", source, weight);
            self.set(&mut genome, DENSITY, source, 1.0);
        }
        self.set(&mut genome, "lambda", 0, target.lambda);
        self.set(&mut genome, "normalize", 0, f64::from(u8::from(target.normalize)));
        self.reaches(&self.decoded(&genome), members, target).then_some(genome)
    }

    /// Whether the genome, decoded again, has the values that were aimed at: genes may be bounded, frozen or tied.
    fn reaches(&self, decoded: &Decoded<'_>, members: &[usize], target: Target) -> bool {
        let normalize = decoded.method().parameter("normalize");
        let normalizes =
            normalize.is_some_and(|parameter| matches!(parameter.kind, ParameterKind::Bool { default: true }));
        if self.stack.as_ref().is_some_and(|stack| !stack.is_whole(decoded.pieces(), Origin::Merged)) {
            return false;
        }
        let has_its_weight = |place: Place| {
            let member = members.contains(&place.source);
            decoded.is_about("weight", place, target.weight[usize::from(member)], f64::NAN)
                && (!member || decoded.is_about(DENSITY, place, 1.0, 1.0))
        };
        let [wanted, default] = [target.normalize, normalizes].map(|truth| f64::from(u8::from(truth)));
        let has_what_is_shared = |place: Place| {
            decoded.is_about("lambda", place, target.lambda, 1.0)
                && decoded.is_about("normalize", place, wanted, default)
        };
        members.iter().all(|member| decoded.sources().any(|source| source == *member))
            && decoded.places().all(has_its_weight)
            && self.places(0).all(has_what_is_shared)
    }

    /// Whether the linear merge gives the soup's bits: the common weight is a power of two, exactly, and it is divided
    /// out.
    fn is_exact_average(&self, genome: &Genome, members: &[usize], target: Target) -> bool {
        let decoded = self.decoded(genome);
        let weight = target.weight[1];
        let power = [4.0, 2.0, 1.0, 0.5, 0.25, 0.125].contains(&weight);
        power
            && target.normalize
            && decoded.places().all(|place| {
                let wanted = target.weight[usize::from(members.contains(&place.source))];
                decoded.number("weight", place) == Some(wanted)
            })
    }

    /// One end of an interpolation between two sources.
    fn encode_end(&self, method: usize, members: &[usize]) -> Option<Encoded> {
        let [member] = members else { return None };
        let pairs: Vec<(usize, Option<(usize, usize)>)> = if self.pairs.is_empty() {
            vec![(0, None)]
        } else {
            self.pairs.iter().copied().map(Some).enumerate().collect()
        };
        pairs.into_iter().find_map(|(index, pair)| {
            let mut genome = self.init();
            self.choose(&mut genome, self.method_gene, method);
            if pair.is_some() {
                self.choose(&mut genome, self.pair_gene, index);
            }
            let sources: Vec<usize> = self.decoded(&genome).sources().collect();
            let end = sources.iter().rposition(|source| source == member)?;
            self.set(&mut genome, "t", 0, end as f64);
            let decoded = self.decoded(&genome);
            let whole = self.stack.as_ref().is_none_or(|stack| stack.is_whole(decoded.pieces(), Origin::Merged));
            let reached = whole && self.places(0).all(|place| decoded.number("t", place) == Some(end as f64));
            reached.then_some(Encoded { genome, exact: false })
        })
    }

    pub(super) fn choose(&self, genome: &mut Genome, gene: Option<usize>, choice: usize) {
        if let Some(index) = gene {
            genome.0[index] = self.genes[index].unit(&GeneValue::Choice(choice));
        }
    }

    /// Sets all genes of a parameter for one source.
    pub(super) fn set(&self, genome: &mut Genome, parameter: &str, source: usize, value: f64) {
        for group in 0..self.plan(parameter).map_or(0, |plan| plan.sizes[1]) {
            self.set_in(genome, parameter, source, group, value);
        }
    }

    /// Sets all genes of a parameter for one source in one layer group.
    pub(super) fn set_in(&self, genome: &mut Genome, parameter: &str, source: usize, group: usize, value: f64) {
        let Some(plan) = self.plan(parameter) else { return };
        let value = if plan.inverted { complement(value) } else { value };
        for index in genes_of(plan, source, group) {
            genome.0[index] = self.genes[index].unit(&GeneValue::Real(value));
        }
    }
}

/// The genes that a parameter of one source depends on in one layer group.
fn genes_of(plan: &Plan, source: usize, group: usize) -> impl Iterator<Item = usize> {
    (0..plan.sizes[2]).filter_map(move |module| plan.cell(Place { source, group, module }).gene())
}
