//! The search space: genes, genomes, and the total map from a genome to a recipe.

use serde::{Deserialize, Serialize};

/// A point of the search space: one number in `[0, 1]` a gene, in gene order. [`Gene::value`] gives its meaning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Genome(pub Vec<f64>);

/// What a gene's number in `[0, 1]` stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum GeneKind {
    /// `low + u (high - low)`, or the same in the logarithm.
    Real { low: f64, high: f64, log: bool },
    /// An integer of `low..=high`, each with an equal share of `[0, 1]`.
    Integer { low: i64, high: i64 },
    /// One of the choices, each with an equal share of `[0, 1]`.
    Categorical { choices: Vec<String> },
}

/// One searched quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Gene {
    /// `weight.expert-add.g0.mlp`: parameter, then model, layer group and module as far as the gene has them.
    pub name: String,
    /// The parameter that the gene sets (`weight`, `density`, ...; `method` and `pair` for the two categorical genes).
    pub parameter: String,
    pub kind: GeneKind,
    /// Where a search without better knowledge starts, in `[0, 1]`.
    pub init: f64,
    /// Index into the run's sources.
    pub model: Option<usize>,
    pub layer_group: Option<usize>,
    /// Index into the run's module filters; the number of filters stands for "everything else".
    pub module: Option<usize>,
    /// Indices into the space's methods for which this gene has an effect; empty: all of them.
    pub methods: Vec<usize>,
}

/// A gene's decoded value.
#[derive(Clone, Debug, PartialEq)]
pub enum GeneValue {
    Real(f64),
    Integer(i64),
    Choice(usize),
}
