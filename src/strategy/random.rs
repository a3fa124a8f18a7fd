//! Random and Sobol search: points that learn nothing. The yardstick for everything else.

use std::sync::Arc;

use super::archive::Archive;
use super::{Ask, Content, Landscape, MAX_DRAWS, Outcome, Placement, Proposal, Strategy, StrategyError, space_filling};
use crate::random;
use crate::space::Genome;

/// Where points come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Uniform,
    Sobol,
}

impl Source {
    fn origin(self) -> &'static str {
        match self {
            Self::Uniform => "random",
            Self::Sobol => "sobol",
        }
    }
}

/// Proposes points without looking at outcomes.
pub(super) struct Sampling {
    source: Source,
    seed: u64,
    archive: Archive,
    /// Draws so far.
    drawn: u64,
    open: Option<usize>,
}

impl Sampling {
    pub(super) fn new(source: Source, seed: u64, landscape: Arc<dyn Landscape>) -> Self {
        Self { source, seed, archive: Archive::new(landscape), drawn: 0, open: None }
    }

    fn draw(&mut self) -> Genome {
        let dimensions = self.archive.landscape().genes().len();
        let index = self.drawn;
        self.drawn += 1;
        Genome(match self.source {
            Source::Uniform => {
                space_filling::uniform(&mut random::stream(self.seed, "random search", index), dimensions)
            }
            Source::Sobol => space_filling::sobol(self.seed, index, dimensions),
        })
    }
}

impl Strategy for Sampling {
    fn ask(&mut self) -> Result<Ask, StrategyError> {
        for _ in 0..MAX_DRAWS {
            let genome = self.draw();
            if self.archive.contains(&self.archive.effective(&genome)) {
                continue;
            }
            self.open = Some(self.archive.add(genome.clone(), 0));
            let proposal = Proposal::new(Content::Genome(genome), self.source.origin());
            return Ok(Ask::Proposal(Box::new(proposal)));
        }
        Ok(Ask::exhausted())
    }

    fn place(&mut self, placement: Placement) {
        if let Some(point) = self.open.take() {
            self.archive.place(point, placement);
        }
    }

    fn tell(&mut self, _outcome: &Outcome) -> Result<(), StrategyError> {
        Ok(())
    }
}
