//! Layer stacking: which blocks of layers a recipe is made of, and in which order.
//!
//! The data-flow space of Akiba et al. 2024, "Evolutionary Optimization of Model Merging Recipes": the blocks of layers
//! are laid out in order, several times behind each other (passes), and genes say what stands in each place (slot).
//! There, a slot belongs to one layer of one model and is on or off. Here, a slot belongs to one block, and its gene
//! names the model that the block comes from, or none: one gene for all models, and the depth of a block is kept within
//! a pass.

use super::layers::LayerGroups;
use super::plan::is_input;
use super::{Gene, GeneKind, GeneValue, ModelFacts, SpaceError};
use crate::config::{StackConfig, StackScale};
use crate::merge::MethodSpecification;
use crate::recipe::{FilteredValue, Gradient, Setting, Slice, Value};

/// How the genes' choices show that a slot is empty, and that the block comes from the merge of the sources. Folders
/// cannot be mistaken for them.
const NONE: &str = "(none)";
const MERGED: &str = "(merged)";

/// Where a block comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The merge of the sources.
    Merged,
    /// One source (index) as it is.
    Source(usize),
}

/// A block that is in the stack.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub slot: usize,
    pub origin: Origin,
    /// The layer group that it is a copy of.
    pub group: usize,
    /// Factor of what it adds to the residual stream.
    pub scale: f64,
}

/// The slots of a space and their genes.
#[derive(Clone, Debug)]
pub(super) struct Stack {
    passes: usize,
    /// Layers of each group.
    lengths: Vec<usize>,
    max_layers: usize,
    /// What a slot's gene chooses from, after "nothing".
    origins: Vec<Origin>,
    scale: Option<StackScale>,
    /// Index of the first slot's gene; the others follow, pass by pass.
    first_slot: usize,
    /// Index of the first slot's factor, where blocks are scaled; the others follow.
    first_scale: usize,
}

impl Stack {
    /// Lays out the slots. The genes come with [`Stack::add_genes`].
    ///
    /// # Errors
    /// Without layers, or when a block has more layers than a recipe may have, or nothing would be scaled.
    pub fn new(
        config: &StackConfig,
        methods: &[&'static MethodSpecification],
        facts: &ModelFacts,
        groups: &LayerGroups,
    ) -> Result<Self, SpaceError> {
        let lengths: Vec<usize> = groups.0.iter().map(|(first, end)| end - first).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Err(SpaceError::NothingToStack);
        }
        let all = lengths.iter().sum::<usize>().saturating_mul(config.passes.get());
        let max_layers = config.max_layers.map_or(all, std::num::NonZeroUsize::get).min(all);
        if max_layers < longest {
            return Err(SpaceError::LongBlock { most: max_layers, longest });
        }
        if let Some(scale) = &config.scale {
            check_modules(&scale.modules, facts)?;
        }
        let sources = (0..facts.sources.len()).filter(|source| {
            config.blocks.has_sources() && methods.iter().all(|method| is_input(method, facts, *source))
        });
        let merged = config.blocks.has_merged().then_some(Origin::Merged);
        Ok(Self {
            passes: config.passes.get(),
            lengths,
            max_layers,
            origins: merged.into_iter().chain(sources.map(Origin::Source)).collect(),
            scale: config.scale.clone(),
            first_slot: 0,
            first_scale: 0,
        })
    }

    /// Adds the genes `stack.PASS.gGROUP`, and `scale.PASS.gGROUP` where blocks are scaled. A search starts with one
    /// model as it is: the merged one, or the first source.
    pub fn add_genes(&mut self, genes: &mut Vec<Gene>, facts: &ModelFacts) {
        let names = self.origins.iter().map(|origin| match origin {
            Origin::Merged => MERGED.to_owned(),
            Origin::Source(source) => facts.sources.get(*source).map(|(name, _)| name.clone()).unwrap_or_default(),
        });
        let choices: Vec<String> = std::iter::once(NONE.to_owned()).chain(names).collect();
        self.first_slot = genes.len();
        for slot in 0..self.slots() {
            let mut gene = self.gene("stack", slot, GeneKind::Categorical { choices: choices.clone() });
            gene.init = gene.unit(&GeneValue::Choice(usize::from(slot < self.lengths.len())));
            genes.push(gene);
        }
        self.first_scale = genes.len();
        if let Some(StackScale { low, high, init, .. }) = self.scale.clone() {
            for slot in 0..self.slots() {
                let mut gene = self.gene("scale", slot, GeneKind::Real { low, high, log: false });
                gene.init = gene.unit(&GeneValue::Real(init));
                genes.push(gene);
            }
        }
    }

    fn gene(&self, parameter: &str, slot: usize, kind: GeneKind) -> Gene {
        let (pass, group) = (slot / self.lengths.len() + 1, slot % self.lengths.len());
        Gene {
            name: format!("{parameter}.{pass}.g{group}"),
            parameter: format!("{parameter}.{pass}"),
            kind,
            init: 0.5,
            model: None,
            layer_group: Some(group),
            module: None,
            methods: Vec::new(),
        }
    }

    fn slots(&self) -> usize {
        self.passes * self.lengths.len()
    }

    /// Fewest and most layers of a recipe.
    pub fn layer_counts(&self) -> (usize, usize) {
        (self.lengths.iter().copied().min().unwrap_or(0), self.max_layers)
    }

    /// The blocks of a genome, in order; never none. An empty stack is the one that a search starts with. Where there
    /// are too many layers, blocks are taken from both ends in turn while they fit: what is next to the embeddings and
    /// next to the head is needed most.
    pub fn pieces(&self, genes: &[Gene], units: &[f64]) -> Vec<Piece> {
        let mut wanted = self.wanted(genes, |gene| units.get(gene).copied().unwrap_or(f64::NAN));
        if wanted.is_empty() {
            wanted = self.wanted(genes, |gene| genes[gene].init);
        }
        self.fitting(wanted)
    }

    fn wanted(&self, genes: &[Gene], unit: impl Fn(usize) -> f64) -> Vec<Piece> {
        let piece = |slot: usize| {
            let GeneValue::Choice(choice) = genes[self.first_slot + slot].value(unit(self.first_slot + slot)) else {
                return None;
            };
            let origin = *self.origins.get(choice.checked_sub(1)?)?;
            let scale = match self.scale {
                Some(_) => match genes[self.first_scale + slot].value(unit(self.first_scale + slot)) {
                    GeneValue::Real(scale) => scale,
                    _ => 1.0,
                },
                None => 1.0,
            };
            Some(Piece { slot, origin, group: slot % self.lengths.len(), scale })
        };
        (0..self.slots()).filter_map(piece).collect()
    }

    fn fitting(&self, wanted: Vec<Piece>) -> Vec<Piece> {
        let mut room = self.max_layers;
        let mut taken = vec![false; wanted.len()];
        for step in 0..wanted.len() {
            let place = if step % 2 == 0 { step / 2 } else { wanted.len() - 1 - step / 2 };
            let length = self.lengths[wanted[place].group];
            if length <= room {
                taken[place] = true;
                room -= length;
            }
        }
        wanted.into_iter().zip(taken).filter_map(|(piece, taken)| taken.then_some(piece)).collect()
    }

    /// Whether blocks may come from there.
    pub fn holds(&self, origin: Origin) -> bool {
        self.origins.contains(&origin)
    }

    /// Whether the stack is one model as it is.
    pub fn is_whole(&self, pieces: &[Piece], origin: Origin) -> bool {
        pieces.len() == self.lengths.len()
            && pieces.iter().enumerate().all(|(place, piece)| {
                (piece.group, piece.origin) == (place, origin) && (self.scale.is_none() || piece.scale == 1.0)
            })
    }

    /// Whether a gene has an effect on this stack; genes of parameters only have one where merged layers are in it.
    pub fn is_active(&self, index: usize, gene: &Gene, pieces: &[Piece]) -> bool {
        if (self.first_slot..self.first_slot + self.slots()).contains(&index) {
            return true;
        }
        if self.scale.is_some() && index >= self.first_scale {
            return pieces.iter().any(|piece| self.first_scale + piece.slot == index);
        }
        let choice = matches!(gene.kind, GeneKind::Categorical { .. }) && gene.layer_group.is_none();
        let fits =
            |piece: &Piece| piece.origin == Origin::Merged && gene.layer_group.is_none_or(|group| group == piece.group);
        choice || pieces.iter().any(fits)
    }

    /// Sets the genes of a genome to one model as it is.
    pub fn set_whole(&self, genes: &[Gene], units: &mut [f64], origin: Origin) {
        let choice = self.origins.iter().position(|known| *known == origin).map_or(0, |place| place + 1);
        for slot in 0..self.slots() {
            let gene = self.first_slot + slot;
            let choice = if slot < self.lengths.len() { choice } else { 0 };
            units[gene] = genes[gene].unit(&GeneValue::Choice(choice));
            if self.scale.is_some() {
                let gene = self.first_scale + slot;
                units[gene] = genes[gene].unit(&GeneValue::Real(1.0));
            }
        }
    }

    /// The `scale` of a block: for what writes to the residual stream only, as layers are scaled in mergekit. Nothing
    /// where the factor is 1.
    pub fn scale_setting(&self, piece: &Piece) -> Option<Setting> {
        let scale = self.scale.as_ref().filter(|_| piece.scale != 1.0)?;
        let entry = |filter: Option<&String>, value| FilteredValue {
            filter: filter.cloned(),
            value: Gradient::Scalar(Value::Number(value)),
        };
        let scaled = scale.modules.iter().map(|module| entry(Some(module), piece.scale));
        Some(Setting(scaled.chain([entry(None, 1.0)]).collect()))
    }
}

/// A filter is of use where it matches a tensor of a layer.
fn check_modules(modules: &[String], facts: &ModelFacts) -> Result<(), SpaceError> {
    let in_layers = || facts.tensors.iter().filter(|tensor| facts.layers.layer_of(tensor).is_some());
    let matches = |module: &String| in_layers().any(|tensor| tensor.contains(module.as_str()));
    if facts.tensors.is_empty() || modules.iter().any(matches) {
        return Ok(());
    }
    Err(SpaceError::NothingToScale { modules: modules.to_vec() })
}

/// The slices, with those made one that continue each other: the same models with the same parameters, layer after
/// layer.
pub(super) fn joined(slices: impl Iterator<Item = Slice>) -> Vec<Slice> {
    let mut stack: Vec<Slice> = Vec::new();
    for slice in slices {
        match stack.last_mut() {
            Some(last) if continues(last, &slice) => {
                for (before, after) in last.sources.iter_mut().zip(&slice.sources) {
                    if let (Some(range), Some((_, end))) = (&mut before.layer_range, after.layer_range) {
                        range.1 = end;
                    }
                }
            }
            _ => stack.push(slice),
        }
    }
    stack
}

fn continues(before: &Slice, after: &Slice) -> bool {
    before.base_model == after.base_model
        && before.parameters == after.parameters
        && before.sources.len() == after.sources.len()
        && before.sources.iter().zip(&after.sources).all(|(before, after)| {
            let ends = before.layer_range.map(|(_, end)| end);
            before.model == after.model
                && before.parameters == after.parameters
                && ends.is_some()
                && ends == after.layer_range.map(|(first, _)| first)
        })
}
