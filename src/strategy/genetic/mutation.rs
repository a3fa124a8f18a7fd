//! Small changes of one genome. Numbers stay in `[0, 1]`.

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

use crate::space::{Gene, GeneKind};

/// Polynomial mutation (Deb and Goyal 1996) of each gene with probability `rate`; discrete genes get another value.
/// Steps are small for a large `eta`.
pub(in crate::strategy) fn polynomial(genes: &[Gene], genome: &mut [f64], rate: f64, eta: f64, rng: &mut impl Rng) {
    for (gene, value) in genes.iter().zip(genome) {
        if rng.random::<f64>() >= rate {
            continue;
        }
        match gene.kind {
            GeneKind::Real { .. } => *value = polynomial_step(*value, eta, rng.random()),
            _ => *value = another_level(gene, *value, rng),
        }
    }
}

fn polynomial_step(value: f64, eta: f64, draw: f64) -> f64 {
    let power = eta + 1.0;
    let step = if draw < 0.5 {
        (2.0 * draw + (1.0 - 2.0 * draw) * (1.0 - value).powf(power)).powf(1.0 / power) - 1.0
    } else {
        1.0 - (2.0 * (1.0 - draw) + (2.0 * draw - 1.0) * value.powf(power)).powf(1.0 / power)
    };
    (value + step).clamp(0.0, 1.0)
}

/// Gaussian mutation with standard deviation `step` of each gene with probability `rate`, at least one; reflected at
/// the bounds. Discrete genes get another value with probability `step` instead.
pub(super) fn gaussian(genes: &[Gene], genome: &mut [f64], rate: f64, step: f64, rng: &mut impl Rng) {
    let always = rng.random_range(0..genes.len());
    for (place, (gene, value)) in genes.iter().zip(genome).enumerate() {
        if rng.random::<f64>() >= rate && place != always {
            continue;
        }
        match gene.kind {
            GeneKind::Real { .. } => *value = reflect(*value + step * rng.sample::<f64, _>(StandardNormal)),
            _ if rng.random::<f64>() < step => *value = another_level(gene, *value, rng),
            _ => {}
        }
    }
}

/// Gaussian mutation of whole ties (`tie` is that of each gene): every real gene of a tie moves by the same step, each
/// tie with probability `rate`, at least one; cut at the bounds.
pub(super) fn shift(genes: &[Gene], tie: &[usize], genome: &mut [f64], rate: f64, step: f64, rng: &mut impl Rng) {
    let ties = tie.iter().max().map_or(0, |last| last + 1);
    let always = rng.random_range(0..ties);
    let mut moves = vec![0.0; ties];
    for (number, by) in moves.iter_mut().enumerate() {
        let moved = rng.random::<f64>() < rate || number == always;
        let draw: f64 = rng.sample(StandardNormal);
        *by = if moved { step * draw } else { 0.0 };
    }
    for ((gene, tie), value) in genes.iter().zip(tie).zip(genome) {
        if matches!(gene.kind, GeneKind::Real { .. }) {
            *value = (*value + moves[*tie]).clamp(0.0, 1.0);
        }
    }
}

/// Into `[0, 1]` by reflection at the nearer bound, then cut.
pub(super) fn reflect(value: f64) -> f64 {
    let inside = if value < 0.0 {
        -value
    } else if value > 1.0 {
        2.0 - value
    } else {
        value
    };
    inside.clamp(0.0, 1.0)
}

/// A discrete gene's other value: a neighbour of an integer twice out of three times, else any.
fn another_level(gene: &Gene, value: f64, rng: &mut impl Rng) -> f64 {
    let Some(levels) = gene.kind.levels().filter(|levels| levels.count() > 1) else { return value };
    let (level, count) = (levels.of(value), levels.count());
    let near = matches!(gene.kind, GeneKind::Integer { .. }) && rng.random_range(0..3) > 0;
    let other = if near {
        let up = if level == 0 { true } else { level + 1 < count && rng.random::<bool>() };
        if up { level + 1 } else { level - 1 }
    } else {
        (level + rng.random_range(1..count)) % count
    };
    levels.middle(other)
}

#[cfg(test)]
mod tests {
    use super::super::super::conformance::{category, integer, real};
    use super::*;
    use crate::random;
    use proptest::prelude::*;

    #[test]
    fn discrete_genes_always_change() {
        let genes = [category("method", 3), integer("n", 1, 4), category("only", 1)];
        let mut rng = random::stream(7, "test", 0);
        for _ in 0..500 {
            let mut genome = [0.5, 0.1, 0.5];
            polynomial(&genes, &mut genome, 1.0, 20.0, &mut rng);
            assert_ne!((genome[0] * 3.0) as usize, 1);
            assert_ne!((genome[1] * 4.0) as usize, 0);
            assert_eq!(genome[2], 0.5);
        }
    }

    #[test]
    fn gaussian_steps_have_their_size() {
        let genes = [real("x")];
        let mut rng = random::stream(7, "test", 0);
        let mut sum = 0.0;
        for _ in 0..5_000 {
            let mut genome = [0.5];
            gaussian(&genes, &mut genome, 0.0, 0.05, &mut rng);
            sum += (genome[0] - 0.5_f64).powi(2);
        }
        assert!(((sum / 5_000.0).sqrt() - 0.05).abs() < 0.003);
    }

    proptest! {
        #[test]
        fn mutants_stay_in_bounds(value in 0.0..=1.0f64, eta in 0.0..50.0f64, step in 0.0..3.0f64, seed: u64) {
            let genes = [real("x"), real("y")];
            let mut rng = random::stream(seed, "test", 0);
            let mut genome = [value, 1.0 - value];
            polynomial(&genes, &mut genome, 1.0, eta, &mut rng);
            gaussian(&genes, &mut genome, 1.0, step, &mut rng);
            shift(&genes, &[0, 0], &mut genome, 1.0, step, &mut rng);
            prop_assert!(genome.iter().all(|value| (0.0..=1.0).contains(value)), "{genome:?}");
        }
    }
}
