//! The greedy soup of Wortsman et al. 2022 (Model soups): sources in order of their score, each kept if the uniform average
//! with it scores better.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// How a greedy soup came about, for reports. Sources are indices into the run's sources.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SoupTrace {
    /// The scored sources, best first; ties in source order.
    pub order: Vec<usize>,
    /// The additions tried, in order; the first source of `order` starts the soup and is no step.
    pub steps: Vec<SoupStep>,
    /// The soup's sources, in order of joining.
    pub members: Vec<usize>,
    /// The soup's objective.
    pub score: Option<f64>,
    /// Whether every source was tried; `false` while it runs, and when the budget cut it.
    pub complete: bool,
}

/// One addition tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SoupStep {
    pub added: usize,
    /// Objective of the soup with it; `None` if that could not be scored.
    pub score: Option<f64>,
    pub kept: bool,
}

/// When an addition stays in the soup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// The objective must rise.
    Better,
    /// It must not fall.
    NotWorse,
}

impl Keep {
    fn accepts(self, score: f64, best: f64) -> bool {
        match self {
            Self::Better => score > best,
            Self::NotWorse => score >= best,
        }
    }
}

impl SoupTrace {
    /// Starts from the sources' objectives (`None`: not scored, left out).
    pub(super) fn start(scores: &[Option<f64>]) -> Self {
        let mut scored: Vec<(usize, f64)> =
            scores.iter().enumerate().filter_map(|(source, score)| score.map(|score| (source, score))).collect();
        // Stable: equal scores stay in source order.
        scored.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
        Self {
            members: scored.iter().take(1).map(|(source, _)| *source).collect(),
            score: scored.first().map(|(_, score)| *score),
            complete: scored.len() < 2,
            order: scored.into_iter().map(|(source, _)| source).collect(),
            steps: Vec::new(),
        }
    }

    /// The sources of the next soup to score, ascending; `None` when all were tried.
    pub(super) fn next(&self) -> Option<Vec<usize>> {
        let mut members = self.members.clone();
        members.push(*self.order.get(self.steps.len() + 1)?);
        members.sort_unstable();
        Some(members)
    }

    /// Takes the score of the soup that [`Self::next`] returned.
    pub(super) fn scored(&mut self, score: Option<f64>, keep: Keep) {
        let Some(&added) = self.order.get(self.steps.len() + 1) else { return };
        let kept = score.zip(self.score).is_some_and(|(score, best)| keep.accepts(score, best));
        if kept {
            self.members.push(added);
            self.score = score;
        }
        self.steps.push(SoupStep { added, score, kept });
        self.complete = self.steps.len() + 1 == self.order.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_in_order_and_keeps_what_helps() {
        let mut trace = SoupTrace::start(&[Some(0.5), None, Some(0.7), Some(0.5)]);
        assert_eq!((trace.order.as_slice(), trace.members.as_slice()), (&[2, 0, 3][..], &[2][..]));
        assert_eq!(trace.next(), Some(vec![0, 2]));
        trace.scored(Some(0.7), Keep::Better);
        assert_eq!(trace.next(), Some(vec![2, 3]));
        assert!(!trace.complete);
        trace.scored(Some(0.8), Keep::Better);
        assert_eq!((trace.members.as_slice(), trace.score, trace.complete), (&[2, 3][..], Some(0.8), true));
        assert_eq!(trace.next(), None);
        assert_eq!(trace.steps[0], SoupStep { added: 0, score: Some(0.7), kept: false });
    }

    #[test]
    fn not_worse_keeps_ties_and_failures_never_join() {
        let mut trace = SoupTrace::start(&[Some(0.5), Some(0.5), Some(0.1)]);
        trace.scored(Some(0.5), Keep::NotWorse);
        trace.scored(None, Keep::NotWorse);
        assert_eq!((trace.members, trace.score, trace.complete), (vec![0, 1], Some(0.5), true));
    }

    #[test]
    fn one_source_or_none_is_complete_at_once() {
        assert!(SoupTrace::start(&[Some(1.0), None]).complete);
        let none = SoupTrace::start(&[None]);
        assert_eq!((none.complete, none.next(), none.score), (true, None, None));
    }
}
