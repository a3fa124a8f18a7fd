//! The search space as strategies see it.

use crate::space::{Gene, Genome, SearchSpace};
use crate::strategy::{Content, Landscape, SeedGenome};

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
