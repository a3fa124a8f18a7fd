//! Several objectives at once: dominance, fronts, crowding and hypervolume. More is better in every objective.

use super::space_filling;
use crate::score::best_first;

/// Points that the hypervolume is estimated with.
const PROBES: u64 = 4_096;

/// Whether `a` is at least as good as `b` everywhere and better somewhere. `None` stands for a point that has no
/// objectives because it is infeasible: everything else dominates it.
pub(super) fn dominates(a: Option<&[f64]>, b: Option<&[f64]>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.iter().zip(b).all(|(x, y)| x >= y) && a.iter().zip(b).any(|(x, y)| x > y),
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// The front of each point: 0 for those that nobody dominates, 1 for those that only front 0 dominates, and so on.
pub(super) fn fronts(points: &[Option<&[f64]>]) -> Vec<usize> {
    let mut front = vec![usize::MAX; points.len()];
    let mut left: Vec<usize> = (0..points.len()).collect();
    let mut number = 0;
    while !left.is_empty() {
        let free = |place: &usize| !left.iter().any(|other| dominates(points[*other], points[*place]));
        let (best, rest): (Vec<usize>, Vec<usize>) = left.iter().copied().partition(free);
        best.into_iter().for_each(|place| front[place] = number);
        left = rest;
        number += 1;
    }
    front
}

/// How lonely each of these points is among them (Deb et al. 2002): the sum over the objectives of the distance between
/// its neighbours, as a share of the range; infinite at the ends.
pub(super) fn crowding(points: &[&[f64]]) -> Vec<f64> {
    let objectives = points.first().map_or(0, |point| point.len());
    let mut distances = vec![0.0; points.len()];
    for objective in 0..objectives {
        let value = |place: usize| points[place][objective];
        let mut order: Vec<usize> = (0..points.len()).collect();
        // Worst first.
        order.sort_by(|a, b| best_first(value(*b), value(*a)));
        let (Some(first), Some(last)) = (order.first(), order.last()) else { break };
        let range = value(*last) - value(*first);
        distances[*first] = f64::INFINITY;
        distances[*last] = f64::INFINITY;
        for window in order.windows(3).filter(|_| range > 0.0 && range.is_finite()) {
            distances[window[1]] += (value(window[2]) - value(window[0])) / range;
        }
    }
    distances
}

/// The share, in `[0, 1]`, of the box between the worst and the best value seen of each objective that the points
/// dominate: a hypervolume without a reference point to choose. Estimated with a Sobol sequence to about a percent.
/// `None` for no point, and for one objective: the best point dominates all of its range.
pub(super) fn hypervolume(points: &[&[f64]]) -> Option<f64> {
    let objectives = points.first().map(|point| point.len()).filter(|objectives| *objectives > 1)?;
    let bound = |pick: fn(f64, f64) -> f64| -> Vec<f64> {
        (0..objectives)
            .map(|objective| points.iter().map(|point| point[objective]).reduce(pick).unwrap_or(0.0))
            .collect()
    };
    let (low, high) = (bound(f64::min), bound(f64::max));
    let front: Vec<&&[f64]> =
        points.iter().filter(|point| !points.iter().any(|other| dominates(Some(other), Some(point)))).collect();
    let dominated = |probe: &u64| {
        let share = space_filling::sobol(0, *probe, objectives);
        let probe: Vec<f64> = (0..objectives)
            .map(|objective| low[objective] + share[objective] * (high[objective] - low[objective]))
            .collect();
        front.iter().any(|point| point.iter().zip(&probe).all(|(x, y)| x >= y))
    };
    Some((0..PROBES).filter(dominated).count() as f64 / PROBES as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fronts_peel_off_and_infeasible_points_come_last() {
        let points: [Option<&[f64]>; 5] =
            [Some(&[1.0, 0.0]), Some(&[0.0, 1.0]), Some(&[0.5, -1.0]), None, Some(&[-1.0, -1.0])];
        assert_eq!(fronts(&points), vec![0, 0, 1, 3, 2]);
        assert_eq!(fronts(&[Some(&[1.0][..]), Some(&[1.0][..])]), vec![0, 0]);
    }

    #[test]
    fn the_ends_and_the_lonely_are_kept() {
        let points: [&[f64]; 4] = [&[0.0, 1.0], &[0.1, 0.9], &[0.2, 0.8], &[1.0, 0.0]];
        let distances = crowding(&points);
        assert!(distances[0].is_infinite() && distances[3].is_infinite());
        assert!(distances[2] > distances[1]);
    }

    #[test]
    fn hypervolume_is_the_dominated_share() {
        let one = hypervolume(&[&[0.0, 0.0], &[1.0, 1.0]]).unwrap();
        assert_eq!(one, 1.0);
        // Two steps of a stair: 1 - 0.5 * 0.5.
        let stair = hypervolume(&[&[0.0, 0.0], &[1.0, 0.5], &[0.5, 1.0]]).unwrap();
        assert!((stair - 0.75).abs() < 0.01, "{stair}");
        assert_eq!(hypervolume(&[]), None);
        assert_eq!(hypervolume(&[&[0.0], &[1.0]]), None, "one objective");
    }
}
