//! Random and Sobol search: points that learn nothing. The yardstick for everything else.

use std::sync::Arc;

use super::archive::Archive;
use super::{Ask, Content, Landscape, Outcome, Placement, Proposal, Strategy, StrategyError, space_filling};
use crate::random;
use crate::space::Genome;

/// Draws for one proposal before a space counts as exhausted.
const TRIES: u64 = 1_000;

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
        for _ in 0..TRIES {
            let genome = self.draw();
            if self.archive.contains(&self.archive.effective(&genome)) {
                continue;
            }
            self.open = Some(self.archive.add(genome.clone(), 0));
            return Ok(Ask::Proposal(Box::new(Proposal {
                content: Content::Genome(genome),
                origin: self.source.origin().to_owned(),
                parents: vec![],
                generation: 0,
                fidelity: 1.0,
                replicate: 0,
            })));
        }
        Ok(Ask::Done("search space exhausted".to_owned()))
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
