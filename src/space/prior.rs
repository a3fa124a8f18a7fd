//! Ranges of weights from conflicts between sources: wider where a source pulls away from the others, narrower where
//! they go the same way. No evaluation is spent on it.
//!
//! The conflict of a source with the others in a layer group is the mean of `(1 - cosine) / 2` over its layers and the
//! other sources, between the task vectors: 0 where they are parallel, 1/2 where they have nothing to do with each
//! other, 1 where they are opposite. A place (source, layer group) gets the factor `(conflict / mean
//! conflict)^strength`, and its range reaches that many times as far from the start value as the run file says, to both
//! sides.

use super::ModelFacts;
use super::layers::LayerGroups;
use crate::config::{GenePer, GeneSearch};
use crate::merge::structure::LayerProfile;

/// Least and greatest factor.
const FACTORS: (f64, f64) = (0.5, 2.0);
/// Factors are rounded to parts of this, so that the last bits of sums over weights decide nothing.
const PARTS: f64 = 100.0;

/// Factors of the ranges of one parameter.
#[derive(Clone, Debug, Default)]
pub(super) struct Prior {
    /// By source and layer group; one entry where genes do not tell them apart. Empty: no prior.
    factors: Vec<Vec<f64>>,
    /// Asked for, but there are no weights to look at.
    blind: bool,
}

impl Prior {
    /// Nothing where the run file does not ask for it.
    pub fn new(search: &GeneSearch, facts: &ModelFacts, groups: &LayerGroups) -> Self {
        if search.conflict_prior == 0.0 {
            return Self::default();
        }
        let all: Vec<usize> = (0..facts.sources.len()).collect();
        let layers: Vec<(usize, usize)> = groups.0.clone();
        let one = |per: GenePer| !search.per.contains(&per);
        let sources =
            if one(GenePer::Model) { vec![all] } else { all.into_iter().map(|source| vec![source]).collect() };
        let ranges = if one(GenePer::LayerGroup) { vec![(0, usize::MAX)] } else { layers };
        let conflict = |sources: &Vec<usize>, range: &(usize, usize)| {
            let layers = facts.profiles.iter().take(range.1).skip(range.0);
            mean(layers.flat_map(|layer| sources.iter().flat_map(|source| conflicts(layer, *source))))
        };
        let conflicts: Vec<Vec<Option<f64>>> =
            sources.iter().map(|sources| ranges.iter().map(|range| conflict(sources, range)).collect()).collect();
        let Some(whole) = mean(conflicts.iter().flatten().flatten().copied()).filter(|whole| *whole > 0.0) else {
            return Self { factors: Vec::new(), blind: true };
        };
        let factor = |conflict: &Option<f64>| {
            let factor = conflict.map_or(1.0, |conflict| (conflict / whole).powf(search.conflict_prior));
            (factor.clamp(FACTORS.0, FACTORS.1) * PARTS).round() / PARTS
        };
        let factors = conflicts.iter().map(|row| row.iter().map(factor).collect()).collect();
        Self { factors, blind: false }
    }

    fn factor(&self, source: Option<usize>, group: Option<usize>) -> f64 {
        let row = self.factors.get(source.unwrap_or(0));
        row.and_then(|row| row.get(group.unwrap_or(0))).copied().unwrap_or(1.0)
    }

    /// The range of one gene. It never crosses 0 where the declared one does not.
    pub fn range(&self, search: &GeneSearch, start: f64, source: Option<usize>, group: Option<usize>) -> GeneSearch {
        let factor = self.factor(source, group);
        let mut search = search.clone();
        if factor == 1.0 {
            return search;
        }
        let (low, high) = (search.low, search.high);
        let reach = |bound: f64| match search.log {
            true => start * (bound / start).powf(factor),
            false => start + factor * (bound - start),
        };
        let (lowest, highest) =
            (if low >= 0.0 { 0.0 } else { f64::NEG_INFINITY }, if high <= 0.0 { 0.0 } else { f64::INFINITY });
        let wider = (reach(low).max(lowest), reach(high).min(highest));
        if (wider.1 - wider.0).is_finite() {
            (search.low, search.high) = wider;
        }
        search
    }

    /// What became of the ranges, in words; nothing without a prior.
    pub fn notice(&self, parameter: &str) -> Option<String> {
        if self.blind {
            return Some(format!(
                "conflict_prior: no conflicts to look at, so the ranges of `{parameter}` stay as they are"
            ));
        }
        let factors = || self.factors.iter().flatten().copied();
        let (least, greatest) = (factors().reduce(f64::min)?, factors().reduce(f64::max)?);
        Some(format!("ranges of `{parameter}` from conflicts between sources: {least} to {greatest} times as wide"))
    }
}

/// How far a source pulls away from each other one in a layer; none of sources that did not move.
fn conflicts(layer: &LayerProfile, source: usize) -> impl Iterator<Item = f64> {
    let count = layer.movement.len();
    let pairs = (0..count).flat_map(move |first| (first + 1..count).map(move |second| (first, second)));
    pairs.zip(&layer.pairs).filter_map(move |((first, second), pair)| {
        let moved = layer.movement[first] > 0.0 && layer.movement[second] > 0.0;
        (moved && (first == source || second == source)).then_some((1.0 - pair.cosine) / 2.0)
    })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, facts, space};
    use super::super::{GeneKind, GeneValue, SearchSpace};
    use super::*;
    use crate::merge::structure::PairProfile;
    use proptest::prelude::*;

    /// Two sources, cosines by layer.
    fn profiles(cosines: &[f64]) -> Vec<LayerProfile> {
        let pair = |cosine: &f64| PairProfile { cosine: *cosine, sign_disagreement: 0.5 };
        cosines.iter().map(|cosine| LayerProfile { movement: vec![0.1, 0.2], pairs: vec![pair(cosine)] }).collect()
    }

    fn with_profiles(text: &str, profiles: Vec<LayerProfile>) -> SearchSpace {
        let (sources, base) = (["a", "b"], Some("base"));
        let facts = ModelFacts { profiles, ..facts(&sources, base) };
        SearchSpace::new(&config(&sources, base, text), &facts).unwrap()
    }

    fn ranges(space: &SearchSpace) -> Vec<(String, f64, f64)> {
        let range = |gene: &super::super::Gene| match gene.kind {
            GeneKind::Real { low, high, .. } => Some((gene.name.clone(), low, high)),
            _ => None,
        };
        space.genes().iter().filter_map(range).collect()
    }

    const SPACE: &str = "method = 'task_arithmetic'\ngranularity = 1\n[space.genes]\n";

    #[test]
    fn ranges_are_wide_where_sources_pull_apart() {
        let text =
            format!("{SPACE}weight = {{ low = 0, high = 2, init = 0.5, per = ['layer_group'], conflict_prior = 1 }}");
        // Conflicts 0.5, 0.25, 0.75, 0.5, 0.5: their mean is 0.5.
        let space = with_profiles(&text, profiles(&[0.0, 0.5, -0.5, 0.0, 0.0]));
        let expected = [(0.0, 2.0), (0.25, 1.25), (0.0, 2.75), (0.0, 2.0), (0.0, 2.0)];
        assert_eq!(ranges(&space).iter().map(|(_, low, high)| (*low, *high)).collect::<Vec<_>>(), expected);
        // Where a search starts stays the same.
        for (gene, unit) in space.genes().iter().zip(space.init().0) {
            assert_eq!(gene.value(unit), GeneValue::Real(0.5));
        }
        assert_eq!(space.notices(), ["ranges of `weight` from conflicts between sources: 0.5 to 1.5 times as wide"]);
    }

    #[test]
    fn strength_and_bounds_of_the_factor() {
        let text = |strength: &str| {
            format!(
                "{SPACE}weight = {{ low = -1, high = 1, init = 0, per = ['layer_group'], conflict_prior = {strength} }}"
            )
        };
        let highs = |strength: &str, cosines: &[f64]| -> Vec<f64> {
            let space = with_profiles(&text(strength), profiles(cosines));
            ranges(&space).iter().map(|(_, low, high)| if *low == -*high { *high } else { f64::NAN }).collect()
        };
        assert_eq!(highs("2", &[0.0, 0.5, -0.5, 0.0, 0.0]), [1.0, 0.5, 2.0, 1.0, 1.0]);
        assert_eq!(highs("0.5", &[0.0, 0.5, -0.5, 0.0, 0.0]), [1.0, 0.71, 1.22, 1.0, 1.0]);
        assert_eq!(highs("0", &[0.0, 0.5, -0.5, 0.0, 0.0]), [1.0; 5]);
        // The last bits of a sum over weights change nothing.
        assert_eq!(highs("1", &[0.0, 0.5, -0.5, 0.0, 1e-12]), highs("1", &[0.0, 0.5, -0.5, 0.0, 0.0]));
    }

    #[test]
    fn a_source_that_goes_its_own_way_has_the_widest_range() {
        let pair = |cosine| PairProfile { cosine, sign_disagreement: 0.5 };
        // a and b agree, c does not; d did not move and has no say.
        let layer = LayerProfile {
            movement: vec![0.1, 0.1, 0.1, 0.0],
            pairs: vec![pair(0.5), pair(0.0), pair(0.0), pair(0.0), pair(0.0), pair(0.0)],
        };
        let sources = ["a", "b", "c", "d"];
        let facts = ModelFacts { profiles: vec![layer; 5], ..facts(&sources, Some("base")) };
        let text = "method = 'ties'\ngenes = { weight = { low = 0, high = 1, init = 0, conflict_prior = 1 } }\n";
        let space = SearchSpace::new(&config(&sources, Some("base"), text), &facts).unwrap();
        let highs: Vec<f64> = ranges(&space).iter().map(|(_, _, high)| *high).collect();
        // Conflicts 3/8, 3/8, 1/2; their mean is 5/12.
        assert_eq!(highs, [0.9, 0.9, 1.2, 1.0]);
    }

    #[test]
    fn without_weights_ranges_stay() {
        let text = format!("{SPACE}weight = {{ low = 0, high = 2, per = ['model'], conflict_prior = 1 }}");
        let blind = space(&["a", "b"], Some("base"), &text);
        assert!(blind.notices().iter().any(|notice| notice.contains("stay as they are")), "{:?}", blind.notices());
        assert!(ranges(&blind).iter().all(|(_, low, high)| (*low, *high) == (0.0, 2.0)));
        let alike = with_profiles(&text, profiles(&[1.0; 5]));
        assert!(alike.notices().iter().any(|notice| notice.contains("stay as they are")), "{:?}", alike.notices());
    }

    proptest! {
        #[test]
        fn ranges_hold_their_start_and_keep_their_side_of_zero(
            low in -2.0..2.0_f64, width in 0.01..3.0_f64, place in 0.0..=1.0_f64, log: bool,
            strength in 0.0..=4.0_f64, cosines in proptest::collection::vec(-1.0..=1.0_f64, 5)
        ) {
            let low = if log { low.abs() + 0.01 } else { low };
            let high = low + width;
            let init = (low + place * width).clamp(low, high);
            let scale = if log { "log" } else { "linear" };
            let text = format!(
                "{SPACE}weight = {{ low = {low:?}, high = {high:?}, init = {init:?}, scale = '{scale}', conflict_prior = {strength:?} }}"
            );
            let space = with_profiles(&text, profiles(&cosines));
            for (name, least, greatest) in ranges(&space) {
                prop_assert!(least.is_finite() && greatest.is_finite() && least < greatest, "{name} {least} {greatest}");
                prop_assert!(least <= init + 1e-12 && init <= greatest + 1e-12, "{name} {least} {init} {greatest}");
                prop_assert!(low < 0.0 || least >= 0.0);
                prop_assert!(high > 0.0 || greatest <= 0.0);
                prop_assert!(!log || least > 0.0);
            }
        }
    }
}
