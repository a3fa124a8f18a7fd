//! Who is alive: the best distinct points since the last restart.

use super::super::archive::Point;
use crate::score::best_first;

/// The places of the best `size` points whose outcome is known, best first; equal ones in order of age. Points with a
/// score come before infeasible ones, which fill up a population only as long as it has nobody better.
pub(super) fn best(points: &[Point], candidates: impl Iterator<Item = usize>, size: usize) -> Vec<usize> {
    let mut ranked: Vec<(usize, f64)> =
        candidates.filter_map(|place| points[place].fitness.rank().map(|rank| (place, rank))).collect();
    ranked.sort_by(|a, b| best_first(a.1, b.1).then(a.0.cmp(&b.0)));
    ranked.dedup_by(|a, b| points[a.0].effective == points[b.0].effective);
    ranked.truncate(size);
    ranked.into_iter().map(|(place, _)| place).collect()
}
