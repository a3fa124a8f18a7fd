//! Groups of consecutive layers.

use super::SpaceError;
use crate::checkpoint::LayerLayout;
use crate::config::LayerGrouping;

/// The layers of each group, `[first, end)`; never empty. Without numbered tensors it is one group without layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LayerGroups(pub Vec<(usize, usize)>);

impl LayerGroups {
    /// Layer N of L belongs to group floor(N x groups / L), or to floor(N / granularity). `known` says whether the
    /// layout was read from checkpoints; if not, each group stands for one layer.
    pub fn new(grouping: &LayerGrouping, layout: &LayerLayout, known: bool) -> Result<Self, SpaceError> {
        let layers = match (layout.count, grouping) {
            (0, _) if known => return Ok(Self(vec![(0, 0)])),
            (0, LayerGrouping::Groups(groups)) => groups.get(),
            (0, _) => 1,
            (layers, _) => layers,
        };
        let groups = match grouping {
            LayerGrouping::Groups(groups) => groups.get(),
            LayerGrouping::Granularity(size) => layers.div_ceil(size.get()),
            LayerGrouping::Blocks(starts) => starts.len(),
            // Nobody looked at the weights.
            LayerGrouping::Auto => 1,
        };
        if groups > layers {
            return Err(SpaceError::TooManyGroups { groups, layers });
        }
        let first = |group: usize| match grouping {
            // The first N with floor(N x groups / layers) = group.
            LayerGrouping::Groups(_) => (group * layers).div_ceil(groups),
            LayerGrouping::Granularity(size) => (group * size.get()).min(layers),
            LayerGrouping::Blocks(starts) => starts.get(group).copied().unwrap_or(layers),
            LayerGrouping::Auto => group * layers,
        };
        Ok(Self((0..groups).map(|group| (first(group), first(group + 1))).collect()))
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    fn groups(
        grouping: fn(NonZeroUsize) -> LayerGrouping,
        number: usize,
        layers: usize,
    ) -> Result<Vec<(usize, usize)>, SpaceError> {
        let layout = LayerLayout { count: layers, ..LayerLayout::default() };
        LayerGroups::new(&grouping(NonZeroUsize::new(number).unwrap()), &layout, true).map(|groups| groups.0)
    }

    #[test]
    fn splits_as_documented() {
        assert_eq!(groups(LayerGrouping::Groups, 3, 4).unwrap(), [(0, 2), (2, 3), (3, 4)]);
        assert_eq!(groups(LayerGrouping::Groups, 1, 4).unwrap(), [(0, 4)]);
        assert_eq!(groups(LayerGrouping::Granularity, 8, 20).unwrap(), [(0, 8), (8, 16), (16, 20)]);
        assert_eq!(groups(LayerGrouping::Granularity, 8, 4).unwrap(), [(0, 4)]);
        assert_eq!(groups(LayerGrouping::Groups, 3, 0).unwrap(), [(0, 0)]);
        assert!(matches!(groups(LayerGrouping::Groups, 5, 4), Err(SpaceError::TooManyGroups { groups: 5, layers: 4 })));
    }

    #[test]
    fn found_blocks_are_taken_as_they_are() {
        let layout = LayerLayout { count: 6, ..LayerLayout::default() };
        let groups = LayerGroups::new(&LayerGrouping::Blocks(vec![0, 1, 4]), &layout, true).unwrap();
        assert_eq!(groups.0, [(0, 1), (1, 4), (4, 6)]);
        assert_eq!(LayerGroups::new(&LayerGrouping::Auto, &layout, true).unwrap().0, [(0, 6)]);
    }

    proptest! {
        #[test]
        fn every_layer_is_in_the_group_of_its_formula(layers in 1..200_usize, groups_wanted in 1..200_usize) {
            prop_assume!(groups_wanted <= layers);
            let split = groups(LayerGrouping::Groups, groups_wanted, layers).unwrap();
            prop_assert_eq!(split.len(), groups_wanted);
            for layer in 0..layers {
                let (first, end) = split[layer * groups_wanted / layers];
                prop_assert!((first..end).contains(&layer));
            }
        }
    }
}
