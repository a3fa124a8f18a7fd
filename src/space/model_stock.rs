//! The point of a space where Model Stock (arXiv 2403.19522) sees the best merge: between base and average, the nearer to
//! the average the more the task vectors go the same way. It is found from the weights, free of evaluations.

use super::stack::Origin;
use super::{Genome, SearchSpace};
use crate::merge::agreement::Agreement;
use crate::merge::{DENSITY, Untrimmed};

impl SearchSpace {
    /// That point; `agreements` are the layers' ([`crate::merge::agreement::layer_agreements`]). Nothing is trimmed in it;
    /// where weights, or lambda, vary over layer groups, each group has a place of its own. Nothing where no method of
    /// the space adds task vectors, where genes are bounded or frozen elsewhere, or where the point would be the base.
    pub fn model_stock(&self, agreements: &[Agreement]) -> Option<Genome> {
        let adds = |wanted: Untrimmed| {
            let of_kind = move |method: &usize| self.specifications[*method].untrimmed == Some(wanted);
            (0..self.specifications.len()).filter(of_kind)
        };
        // Where signs are elected, the point is not quite the method's.
        let mut methods = adds(Untrimmed::TaskVectors).chain(adds(Untrimmed::Elected));
        let ratios = self.stock_ratios(agreements)?;
        methods.find_map(|method| self.stock_of_method(method, &ratios))
    }

    /// The share of the average, by layer group; `None` where it is 0 everywhere.
    fn stock_ratios(&self, agreements: &[Agreement]) -> Option<StockRatios> {
        let pooled = |agreements: &[Agreement]| {
            let mut pool = Agreement::default();
            agreements.iter().for_each(|agreement| pool.add(agreement));
            pool
        };
        let whole = pooled(agreements);
        let groups = self.groups.0.iter().map(|(first, end)| {
            let layers = agreements.get(*first..*end).filter(|layers| !layers.is_empty());
            layers.and_then(|layers| pooled(layers).stock_ratio()).or_else(|| whole.stock_ratio())
        });
        let ratios =
            StockRatios { moved: whole.moved(), whole: whole.stock_ratio()?, groups: groups.collect::<Option<_>>()? };
        (ratios.whole > 0.0 || ratios.groups.iter().any(|ratio| *ratio > 0.0)).then_some(ratios)
    }

    fn stock_of_method(&self, method: usize, ratios: &StockRatios) -> Option<Genome> {
        let lambda = self.reachable("lambda", 1.0);
        let share = 1.0 / ratios.moved as f64;
        let by_weight = |group| [("weight", ratios.of(self, "weight", group) * share / lambda), ("lambda", lambda)];
        let by_lambda = |group| [("weight", share), ("lambda", ratios.of(self, "lambda", group))];
        self.aim_by_group(method, false, by_weight).or_else(|| self.aim_by_group(method, true, by_lambda))
    }

    /// The genome of a method with these values in each layer group, if the space holds it.
    fn aim_by_group<const N: usize>(
        &self,
        method: usize,
        normalize: bool,
        values: impl Fn(usize) -> [(&'static str, f64); N],
    ) -> Option<Genome> {
        let mut genome = self.init();
        self.choose(&mut genome, self.method_gene, method);
        for source in 0..self.facts.sources.len() {
            for group in 0..self.groups.len() {
                for (parameter, value) in values(group) {
                    self.set_in(&mut genome, parameter, source, group, value);
                }
                self.set_in(&mut genome, DENSITY, source, group, 1.0);
            }
        }
        self.set(&mut genome, "normalize", 0, f64::from(u8::from(normalize)));
        let decoded = self.decoded(&genome);
        let reached = self.stack.as_ref().is_none_or(|stack| stack.is_whole(decoded.pieces(), Origin::Merged))
            && decoded.places().all(|place| {
                let wanted = values(place.group);
                // The density of a source without weight is nobody's.
                let weighs = wanted.iter().any(|(parameter, value)| *parameter == "weight" && *value != 0.0);
                wanted.iter().all(|(parameter, value)| decoded.is_about(parameter, place, *value, 1.0))
                    && (!weighs || decoded.is_about(DENSITY, place, 1.0, 1.0))
                    && decoded.normalizes(place) == normalize
            });
        reached.then_some(genome)
    }
}

/// Shares of the average.
struct StockRatios {
    /// Sources that moved.
    moved: usize,
    whole: f64,
    groups: Vec<f64>,
}

impl StockRatios {
    /// For a parameter in a layer group: the whole model's where the parameter has one value for all of them.
    fn of(&self, space: &SearchSpace, parameter: &str, group: usize) -> f64 {
        if space.plan(parameter).is_some_and(super::plan::Plan::per_group) { self.groups[group] } else { self.whole }
    }
}
