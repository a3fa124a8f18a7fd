//! Who breeds.

use rand::{Rng, RngExt};

/// Tournament selection: the best of `size` members drawn with replacement. `members` is the number of members, best
/// first, at least one; the answer is a place among them.
pub(super) fn tournament(members: usize, size: usize, rng: &mut impl Rng) -> usize {
    (0..size.max(1)).map(|_| rng.random_range(0..members)).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::tournament;
    use crate::random;

    #[test]
    fn the_best_are_drawn_more_often() {
        let mut rng = random::stream(7, "test", 0);
        let mut counts = [0; 10];
        for _ in 0..10_000 {
            counts[tournament(10, 3, &mut rng)] += 1;
        }
        // The best of ten wins a tournament of three with probability 1 - 0.9^3.
        assert!((counts[0] as f64 / 10_000.0 - 0.271).abs() < 0.02, "{counts:?}");
        assert!(counts[0] > counts[4] && counts[4] > counts[9]);
        assert_eq!(tournament(1, 3, &mut rng), 0);
    }
}
