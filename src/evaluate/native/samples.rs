//! Which samples of a task an evaluation uses.

use std::collections::{HashMap, HashSet};

use rand::Rng;

use crate::evaluate::{Fault, Samples};
use crate::random::stream;
use crate::scores::SampleId;

/// Positions in `ids` that `samples` asks for. [`Samples::Ids`] keep their order; the others are in data order.
///
/// # Errors
/// A configuration fault for an id that the task does not have, one asked for twice, and an empty choice.
pub(super) fn select(task: &str, ids: &[SampleId], samples: &Samples, seed: u64) -> Result<Vec<usize>, Fault> {
    match samples {
        Samples::All => Ok((0..ids.len()).collect()),
        Samples::Limit(0) => Err(empty(task)),
        Samples::Limit(limit) => {
            let mut chosen = permutation(ids.len(), seed);
            chosen.truncate(usize::try_from(*limit).unwrap_or(usize::MAX));
            chosen.sort_unstable();
            Ok(chosen)
        }
        Samples::Ids(wanted) if wanted.is_empty() => Err(empty(task)),
        Samples::Ids(wanted) => {
            let positions: HashMap<&SampleId, usize> = ids.iter().enumerate().map(|(at, id)| (id, at)).collect();
            let mut seen = HashSet::new();
            wanted
                .iter()
                .map(|id| match positions.get(id) {
                    None => Err(Fault::configuration(
                        "invalid_request",
                        format!("task `{task}` has no sample with id {id}"),
                    )),
                    Some(_) if !seen.insert(id) => Err(Fault::configuration(
                        "invalid_request",
                        format!("task `{task}`: id {id} is asked for twice"),
                    )),
                    Some(&at) => Ok(at),
                })
                .collect()
        }
    }
}

fn empty(task: &str) -> Fault {
    Fault::configuration("invalid_request", format!("task `{task}`: no sample is asked for; ask for at least one"))
}

/// The fixed order whose beginnings are the limited subsets. Sorted by a random key rather than shuffled by a library,
/// so that the order stays the same across versions.
fn permutation(n: usize, seed: u64) -> Vec<usize> {
    let mut random = stream(seed, "native samples", 0);
    let keys: Vec<u64> = (0..n).map(|_| random.next_u64()).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_unstable_by_key(|&at| (keys[at], at));
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(n: usize) -> Vec<SampleId> {
        (0..n as i64).map(SampleId::Number).collect()
    }

    #[test]
    fn ids_are_checked_and_keep_their_order() {
        let ids = numbers(5);
        let wanted = |list: &[i64]| Samples::Ids(list.iter().map(|&id| SampleId::Number(id)).collect());
        assert_eq!(select("add", &ids, &wanted(&[3, 0]), 1).unwrap(), [3, 0]);
        assert!(select("add", &ids, &wanted(&[7]), 1).unwrap_err().detail.contains("no sample with id 7"));
        assert!(select("add", &ids, &wanted(&[1, 1]), 1).unwrap_err().detail.contains("twice"));
        assert!(select("add", &ids, &wanted(&[]), 1).is_err());
        assert!(select("add", &ids, &Samples::Limit(0), 1).is_err());
        assert!(select("add", &ids, &Samples::Ids(vec![SampleId::Text("3".into())]), 1).is_err());
    }

    #[test]
    fn the_order_is_pinned() {
        assert_eq!(permutation(8, 7), [2, 5, 3, 4, 7, 0, 6, 1]);
        assert_ne!(permutation(50, 7), permutation(50, 8));
    }

    proptest! {
        #[test]
        fn subsets_are_nested(n in 1usize..80, seed: u64, small in 1u64..80, more in 0u64..80) {
            let ids = numbers(n);
            let few = select("t", &ids, &Samples::Limit(small), seed).unwrap();
            let many = select("t", &ids, &Samples::Limit(small + more), seed).unwrap();
            prop_assert_eq!(few.len(), n.min(small as usize));
            prop_assert!(few.iter().all(|at| many.contains(at)));
            prop_assert!(few.is_sorted());
        }
    }
}
