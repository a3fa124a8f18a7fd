//! Names in the order that people expect.

use std::cmp::Ordering;

/// Numbers inside names compare by value: `run-2` before `run-10`. Only equal names are equal.
pub(crate) fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a, b);
    loop {
        let (Some(x), Some(y)) = (left.chars().next(), right.chars().next()) else {
            return left.len().cmp(&right.len()).then_with(|| a.cmp(b));
        };
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let (number, rest) = split_number(left);
            let (other, other_rest) = split_number(right);
            let order = number.len().cmp(&other.len()).then_with(|| number.cmp(other));
            if order != Ordering::Equal {
                return order;
            }
            (left, right) = (rest, other_rest);
        } else if x == y {
            (left, right) = (&left[x.len_utf8()..], &right[y.len_utf8()..]);
        } else {
            return x.cmp(&y);
        }
    }
}

/// The digits at the start without leading zeros, and what follows.
fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (text[..end].trim_start_matches('0'), &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_by_value_and_the_order_is_total() {
        let sorted = [
            "",
            "layers.01.a",
            "layers.1.a",
            "layers.2",
            "layers.2.a",
            "layers.2.b",
            "layers.10.a",
            "layers.99999999999999999999.a",
            "layers.100000000000000000000.a",
            "norm",
        ];
        for (first, a) in sorted.iter().enumerate() {
            for (second, b) in sorted.iter().enumerate() {
                assert_eq!(natural_order(a, b), first.cmp(&second), "{a:?} {b:?}");
            }
        }
    }
}
