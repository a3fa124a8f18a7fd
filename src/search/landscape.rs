//! The search space as strategies see it.

use crate::space::{Gene, Genome, SearchSpace};
use crate::strategy::{Content, Landscape, SeedGenome, baseline_contents};

/// Base, sources and uniform soup as points of the space, as far as it has them. Where a search would start with the
/// uniform soup under other weights, that point is one of them too.
pub fn seed_genomes(space: &SearchSpace, has_base: bool, sources: usize) -> Vec<SeedGenome> {
    let contents = baseline_contents(has_base, sources);
    let mut seeds: Vec<SeedGenome> = contents.iter().filter_map(|content| space.encode(content)).collect();
    let start = SeedGenome { genome: space.init(), content: Content::Soup((0..sources).collect()) };
    if space.starts_at_uniform_soup() && !seeds.iter().any(|seed| seed.genome == start.genome) {
        seeds.push(start);
    }
    seeds
}

impl Landscape for SearchSpace {
    fn genes(&self) -> &[Gene] {
        self.genes()
    }

    fn active(&self, genome: &Genome) -> Vec<bool> {
        self.active(genome)
    }

    fn encode(&self, content: &Content) -> Option<SeedGenome> {
        let encoded = match content {
            Content::Base => self.encode_base(),
            Content::Soup(members) => self.encode_soup(members),
            Content::Genome(_) => None,
        }?;
        // What is encoded decodes to the baseline up to the rounding of task vectors. The baseline's score is then as
        // good a guide for the strategy as the genome's own would be, and costs no evaluation.
        Some(SeedGenome { genome: encoded.genome, content: content.clone() })
    }
}
