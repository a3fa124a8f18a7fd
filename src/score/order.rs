//! The order of preference among scores.

use std::cmp::Ordering;

/// Orders the better of two scores first; one that is missing comes last, and 0 and -0 are equal.
///
/// Neither is NaN, which has no place in an order: an objective that is no finite number is refused when it is told
/// ([`StrategyError::NotFinite`](crate::strategy::StrategyError::NotFinite)), and what stands for the score of an
/// infeasible candidate is minus infinity.
pub fn best_first(first: impl Into<Option<f64>>, second: impl Into<Option<f64>>) -> Ordering {
    let (first, second): (Option<f64>, Option<f64>) = (first.into(), second.into());
    // Nothing is less than any number.
    second.partial_cmp(&first).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_come_first_and_missing_ones_last() {
        let mut scores = [None, Some(-1.0), Some(f64::NEG_INFINITY), Some(0.5), Some(2.0)];
        scores.sort_by(|a, b| best_first(*a, *b));
        assert_eq!(scores, [Some(2.0), Some(0.5), Some(-1.0), Some(f64::NEG_INFINITY), None]);
        assert_eq!(best_first(0.0_f64, -0.0_f64), Ordering::Equal);
        assert_eq!(best_first(1.0_f64, 0.0_f64), Ordering::Less);
    }
}
