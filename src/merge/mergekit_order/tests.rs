//! Against what mergekit 0.1.5 and CPython 3.11 did (`scripts/record_mergekit_order.py`).

use serde::Deserialize;

use super::architectures::Architecture;
use super::integer_set::IntegerSet;
use super::schedule::{VocabularyStep, order};
use super::{is_head, scheduled_tensors};
use crate::merge::PlannedSlice;

#[derive(Deserialize)]
struct Recorded {
    sets: Vec<RecordedSet>,
    schedules: Vec<RecordedSchedule>,
}

#[derive(Deserialize)]
struct RecordedSet {
    seed: u64,
    operations: usize,
    bound: u64,
    first: Vec<usize>,
    pops: usize,
    checksum: u64,
}

#[derive(Deserialize)]
struct RecordedSchedule {
    architecture: String,
    untied: Vec<usize>,
    vocabulary: String,
    slices: Vec<RecordedSlice>,
    order: Vec<usize>,
}

#[derive(Deserialize)]
struct RecordedSlice {
    sources: Vec<(usize, usize)>,
    layers: usize,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("../../../tests/data/mergekit_order.json")).unwrap()
}

/// The generator that the script draws operations with.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What comes out while two of three operations put an integer in, and after them.
fn pops(record: &RecordedSet) -> Vec<usize> {
    let (mut draws, mut set, mut out) = (Draws(record.seed), IntegerSet::new(), Vec::new());
    for _ in 0..record.operations {
        match draws.below(3) {
            0 => out.extend(set.pop()),
            _ => set.insert(draws.below(record.bound) as usize),
        }
    }
    out.extend(std::iter::from_fn(|| set.pop()));
    out
}

#[test]
fn integers_come_out_of_a_set_as_they_do_in_python() {
    for record in recorded().sets {
        let out = pops(&record);
        assert_eq!(out[..record.first.len()], record.first, "seed {}", record.seed);
        let checksum =
            out.iter().fold(0_u64, |sum, integer| sum.wrapping_mul(31).wrapping_add(*integer as u64).wrapping_add(1));
        assert_eq!((out.len(), checksum), (record.pops, record.checksum), "seed {}", record.seed);
    }
}

#[test]
fn an_integer_is_in_a_set_once_and_an_empty_set_gives_none() {
    let mut set = IntegerSet::new();
    for integer in [5, 13, 5, 21] {
        set.insert(integer);
    }
    let mut out: Vec<_> = std::iter::from_fn(|| set.pop()).collect();
    out.sort_unstable();
    assert_eq!(out, [5, 13, 21]);
    assert_eq!(set.pop(), None);
}

#[test]
fn tensors_are_merged_in_the_order_of_mergekit() {
    for (index, case) in recorded().schedules.into_iter().enumerate() {
        let architecture = Architecture::named(&case.architecture).unwrap();
        let slice = |slice: RecordedSlice| PlannedSlice { sources: slice.sources, layers: slice.layers };
        let slices: Vec<PlannedSlice> = case.slices.into_iter().map(slice).collect();
        let stores = |model, name: &str| !is_head(name) || case.untied.contains(&model);
        let vocabulary = match case.vocabulary.as_str() {
            "truncate" => VocabularyStep::Truncate,
            "permute" => VocabularyStep::Permute,
            _ => VocabularyStep::Keep,
        };
        assert_eq!(order(&scheduled_tensors(architecture, &slices, stores), vocabulary), case.order, "case {index}");
    }
}

#[test]
fn weights_after_the_layers_have_as_many_sources_as_the_first_slice() {
    let architecture = Architecture::named("LlamaForCausalLM").unwrap();
    let slices =
        [PlannedSlice { sources: vec![(0, 0)], layers: 1 }, PlannedSlice { sources: vec![(1, 0), (0, 1)], layers: 1 }];
    let scheduled = scheduled_tensors(architecture, &slices, |_, name| !is_head(name));
    let norm = scheduled.last().unwrap();
    assert_eq!(norm.name, "model.norm.weight");
    assert_eq!(norm.loads.iter().map(|load| load.model).collect::<Vec<_>>(), [1]);
}
