//! Genes: one searched quantity each, as a number in `[0, 1]`.

use super::{Gene, GeneKind, GeneValue};

/// Steps of one unit in the last place that [`Gene::unit`] looks around for an exact inverse.
const NEIGHBOURS: u32 = 8;

/// The values of a discrete gene, from 0, each with an equal share of `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Levels(usize);

impl Levels {
    /// So many; at least one.
    pub fn new(count: usize) -> Self {
        Self(count.max(1))
    }

    /// How many there are.
    pub fn count(self) -> usize {
        self.0
    }

    /// The level whose share holds `unit`.
    pub fn of(self, unit: f64) -> usize {
        ((unit * self.0 as f64) as usize).min(self.0 - 1)
    }

    /// The middle of a level's share.
    pub fn middle(self, level: usize) -> f64 {
        (level as f64 + 0.5) / self.0 as f64
    }
}

impl GeneKind {
    /// The levels of a discrete gene; `None`: continuous.
    pub fn levels(&self) -> Option<Levels> {
        match self {
            Self::Real { .. } => None,
            Self::Integer { low, high } => {
                Some(Levels::new(usize::try_from(high.saturating_sub(*low).saturating_add(1)).unwrap_or(1)))
            }
            Self::Categorical { choices } => Some(Levels::new(choices.len())),
        }
    }
}

impl Gene {
    /// What `unit` stands for. Total: numbers outside `[0, 1]` are clamped, NaN counts as the gene's `init`.
    pub fn value(&self, unit: f64) -> GeneValue {
        let unit = self.clamp(unit);
        match &self.kind {
            GeneKind::Real { low, high, log } => GeneValue::Real(real_value(*low, *high, *log, unit)),
            GeneKind::Integer { low, high } => GeneValue::Integer(low.saturating_add(share(unit, span(*low, *high)))),
            GeneKind::Categorical { choices } => GeneValue::Choice(share(unit, choices.len() as f64) as usize),
        }
    }

    /// The number in `[0, 1]` that stands for a value: the inverse of [`Gene::value`], exact where rounding allows it;
    /// the middle of its share for integers and choices. Values outside the range are clamped.
    pub fn unit(&self, value: &GeneValue) -> f64 {
        let number = match value {
            GeneValue::Real(number) => *number,
            GeneValue::Integer(number) => *number as f64,
            GeneValue::Choice(index) => *index as f64,
        };
        if number.is_nan() {
            return self.init;
        }
        match &self.kind {
            GeneKind::Real { low, high, log } => real_unit(*low, *high, *log, number),
            GeneKind::Integer { low, high } => middle(number.round() - *low as f64, span(*low, *high)),
            GeneKind::Categorical { choices } => middle(number, choices.len() as f64),
        }
    }

    /// The value as text: shortest decimal, whole number, or the choice's name.
    pub fn format(&self, unit: f64) -> String {
        match self.value(unit) {
            GeneValue::Real(number) => number.to_string(),
            GeneValue::Integer(number) => number.to_string(),
            GeneValue::Choice(index) => match &self.kind {
                GeneKind::Categorical { choices } => choices.get(index).cloned().unwrap_or_default(),
                _ => index.to_string(),
            },
        }
    }

    /// A number in `[0, 1]`.
    pub(super) fn clamp(&self, unit: f64) -> f64 {
        if unit.is_nan() { self.init } else { unit.clamp(0.0, 1.0) }
    }
}

/// How many whole numbers lie in `low..=high`.
fn span(low: i64, high: i64) -> f64 {
    (high as f64 - low as f64 + 1.0).max(1.0)
}

/// Which of `count` equal shares of `[0, 1]` holds `unit`, from 0; unlike [`Levels::of`], of more than fit into a number
/// of the machine.
fn share(unit: f64, count: f64) -> i64 {
    (unit * count).floor().min(count - 1.0).max(0.0) as i64
}

/// The middle of share `index` of `count`; unlike [`Levels::middle`], the nearest one where there is no such share.
fn middle(index: f64, count: f64) -> f64 {
    ((index + 0.5) / count).clamp(0.5 / count, 1.0 - 0.5 / count)
}

fn real_value(low: f64, high: f64, log: bool, unit: f64) -> f64 {
    // The ends are exact: `low + (high - low)` need not be `high`.
    if unit <= 0.0 {
        low
    } else if unit >= 1.0 {
        high
    } else if log {
        (low.ln() + unit * (high.ln() - low.ln())).exp().clamp(low, high)
    } else {
        (low + unit * (high - low)).clamp(low, high)
    }
}

fn real_unit(low: f64, high: f64, log: bool, value: f64) -> f64 {
    if value <= low {
        return 0.0;
    }
    if value >= high {
        return 1.0;
    }
    let guess = if log { (value.ln() - low.ln()) / (high.ln() - low.ln()) } else { (value - low) / (high - low) };
    let guess = guess.clamp(0.0, 1.0);
    let error = |unit: f64| (real_value(low, high, log, unit) - value).abs();
    let (mut down, mut up, mut best) = (guess, guess, guess);
    for _ in 0..NEIGHBOURS {
        (down, up) = (down.next_down(), up.next_up());
        for near in [down, up] {
            if (0.0..=1.0).contains(&near) && error(near) < error(best) {
                best = near;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gene(kind: GeneKind) -> Gene {
        let name = "x".to_owned();
        let none = None;
        Gene {
            parameter: name.clone(),
            name,
            kind,
            init: 0.25,
            model: none,
            layer_group: none,
            module: none,
            methods: vec![],
        }
    }

    fn real(low: f64, high: f64, log: bool) -> Gene {
        gene(GeneKind::Real { low, high, log })
    }

    #[test]
    fn values_and_text() {
        assert_eq!(real(0.0, 1.5, false).format(0.5), "0.75");
        assert_eq!(real(1e-4, 1.0, true).format(1.0), "1");
        let integer = gene(GeneKind::Integer { low: -1, high: 2 });
        let formatted: Vec<_> = [0.0, 0.24, 0.26, 0.5, 0.75, 1.0].iter().map(|unit| integer.format(*unit)).collect();
        assert_eq!(formatted, ["-1", "-1", "0", "1", "2", "2"]);
        let choice = gene(GeneKind::Categorical { choices: vec!["ties".to_owned(), "linear".to_owned()] });
        assert_eq!((choice.format(0.49), choice.format(0.5)), ("ties".to_owned(), "linear".to_owned()));
    }

    #[test]
    fn odd_numbers_have_a_meaning() {
        let real = real(1.0, 3.0, false);
        assert_eq!(real.value(f64::NAN), GeneValue::Real(1.5));
        assert_eq!(real.value(f64::INFINITY), GeneValue::Real(3.0));
        assert_eq!(real.value(-7.0), GeneValue::Real(1.0));
    }

    #[test]
    fn round_values_come_back_exactly() {
        for (low, high) in [(0.0, 1.5), (0.0, 1.0), (-0.5, 1.5), (0.0, 0.95), (-1.0, 1.0)] {
            let real = real(low, high, false);
            for value in [0.0, 0.25, 0.5, 1.0] {
                if (low..=high).contains(&value) {
                    assert_eq!(real.value(real.unit(&GeneValue::Real(value))), GeneValue::Real(value), "{low} {high}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn values_stay_in_range_and_come_back(low in -3.0..3.0_f64, width in 0.001..4.0_f64, unit in 0.0..=1.0_f64, log: bool) {
            let low = if log { low.abs() + 0.01 } else { low };
            let real = real(low, low + width, log);
            let GeneValue::Real(value) = real.value(unit) else { panic!() };
            prop_assert!((low..=low + width).contains(&value));
            let GeneValue::Real(again) = real.value(real.unit(&GeneValue::Real(value))) else { panic!() };
            prop_assert!((again - value).abs() <= 1e-12 * (1.0 + value.abs()));
        }

        #[test]
        fn integers_come_back(low in -9..9_i64, width in 0..9_i64, unit in 0.0..=1.0_f64) {
            let integer = gene(GeneKind::Integer { low, high: low + width });
            let value = integer.value(unit);
            let GeneValue::Integer(number) = value else { panic!() };
            prop_assert!((low..=low + width).contains(&number));
            prop_assert_eq!(integer.value(integer.unit(&value)), value);
        }
    }
}
