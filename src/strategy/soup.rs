//! The greedy soup of Wortsman et al. 2022 (Model soups): sources in order of their score, each kept if the uniform
//! average with it scores better.

use serde::{Deserialize, Serialize};

use crate::score::best_first;

/// How a greedy soup came about, for reports. Sources are indices into the run's sources.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SoupTrace {
    /// The scored sources, best first; ties in source order.
    pub order: Vec<usize>,
    /// The additions tried, in order; the first source of `order` starts the soup and is no step.
    pub steps: Vec<SoupStep>,
    /// Whether sources may join again once all were tried.
    #[serde(default)]
    pub replacement: bool,
    /// The additions tried after those, pass by pass over `order`.
    #[serde(default)]
    pub repeats: Vec<SoupStep>,
    /// The soup's sources, in order of joining; with `replacement` one may be there several times.
    pub members: Vec<usize>,
    /// The soup's objective.
    pub score: Option<f64>,
    /// Whether each member is tried without once all sources were tried.
    #[serde(default)]
    pub backward: bool,
    /// The removals tried, in order of joining.
    #[serde(default)]
    pub removals: Vec<SoupRemoval>,
    /// Whether everything was tried; `false` while it runs, and when the budget cut it.
    pub complete: bool,
}

/// One addition tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SoupStep {
    /// The source that was tried.
    pub added: usize,
    /// Objective of the soup with it; `None` if that could not be scored.
    pub score: Option<f64>,
    /// Whether it stayed.
    pub kept: bool,
}

/// One removal tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SoupRemoval {
    /// The source left out for the trial.
    pub source: usize,
    /// Objective of the soup without it; `None` if that could not be scored.
    pub score: Option<f64>,
    /// Whether it stayed out.
    pub removed: bool,
}

/// Passes that a soup takes over its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Passes {
    /// After the first pass, sources may join again until a whole pass keeps none.
    pub(super) replacement: bool,
    /// At the end, each member is tried without.
    pub(super) backward: bool,
}

impl Passes {
    /// Fewest and most evaluations that the trials of a soup of so many sources take, where each of these is scored.
    ///
    /// The most is a bound: among the trials may be soups that are known by then and not evaluated again.
    pub(super) fn evaluations(self, sources: usize) -> [u64; 2] {
        if sources < 2 {
            return [0; 2];
        }
        let (sources, share) = (sources as u64, SHARE as u64);
        // Where all sources but the last one joined, the last step is the uniform soup, which is known.
        let fewest = match (sources, self.replacement) {
            (2, _) => 0,
            (_, true) => sources - 1,
            (_, false) => sources - 2,
        };
        // Of two sources the only step is the uniform soup.
        let steps = if sources == 2 { 0 } else { sources - 1 };
        // A pass goes on until nothing was kept since every open source was tried: the longest way fills the soup, and
        // keeps as late as it can.
        let repeats =
            if self.replacement { sources * ((share - 1) * sources - 2) + sources * (sources + 1) / 2 } else { 0 };
        let members = if self.replacement { share * sources } else { sources };
        let removals = if self.backward && members > 2 { members } else { 0 };
        [fewest, steps + repeats + removals]
    }
}

/// Parts of a soup that one source makes up at most.
const SHARE: usize = 4;

/// What is tried next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trial {
    Step(usize),
    Repeat(usize),
    Removal(usize),
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
    pub(super) fn start(scores: &[Option<f64>], passes: Passes) -> Self {
        let mut scored: Vec<(usize, f64)> =
            scores.iter().enumerate().filter_map(|(source, score)| score.map(|score| (source, score))).collect();
        // Stable: equal scores stay in source order.
        scored.sort_by(|a, b| best_first(a.1, b.1));
        Self {
            members: scored.iter().take(1).map(|(source, _)| *source).collect(),
            score: scored.first().map(|(_, score)| *score),
            complete: scored.len() < 2,
            order: scored.into_iter().map(|(source, _)| source).collect(),
            steps: Vec::new(),
            replacement: passes.replacement,
            repeats: Vec::new(),
            backward: passes.backward,
            removals: Vec::new(),
        }
    }

    /// The sources of the next soup to score, ascending; `None` when all were tried.
    pub(super) fn next(&self) -> Option<Vec<usize>> {
        let mut members = self.members.clone();
        match self.trial()? {
            Trial::Step(added) | Trial::Repeat(added) => members.push(added),
            Trial::Removal(left_out) => leave_out(&mut members, left_out),
        }
        members.sort_unstable();
        Some(members)
    }

    /// The source whose addition is tried next.
    pub(super) fn addition(&self) -> Option<usize> {
        match self.trial()? {
            Trial::Step(added) | Trial::Repeat(added) => Some(added),
            Trial::Removal(_) => None,
        }
    }

    fn trial(&self) -> Option<Trial> {
        let step = self.order.get(self.steps.len() + 1).map(|added| Trial::Step(*added));
        step.or_else(|| self.repeat().map(Trial::Repeat)).or_else(|| self.removal().map(Trial::Removal))
    }

    /// The next source to add once more: cycles through `order` and ends when every source was tried since the last
    /// addition that was kept. Skips the only member (the soup would not change) and sources that already have
    /// [`SHARE`] parts.
    fn repeat(&self) -> Option<usize> {
        if !self.replacement || !self.removals.is_empty() {
            return None;
        }
        let place_of = |step: &SoupStep| self.order.iter().position(|source| *source == step.added);
        let start = self.repeats.last().and_then(place_of).map_or(0, |last| last + 1);
        let tried: Vec<usize> =
            self.repeats.iter().rev().take_while(|step| !step.kept).map(|step| step.added).collect();
        let parts = |source: usize| self.members.iter().filter(|member| **member == source).count();
        let is_open =
            |source: &usize| !tried.contains(source) && parts(*source) < SHARE && parts(*source) < self.members.len();
        self.order.iter().copied().cycle().skip(start).take(self.order.len()).find(is_open)
    }

    /// The member to try without: each once, in order of joining, as long as another is left.
    fn removal(&self) -> Option<usize> {
        let kept = self.steps.iter().chain(&self.repeats).filter(|step| step.kept).map(|step| step.added);
        let joined: Vec<usize> = self.order.iter().take(1).copied().chain(kept).collect();
        if !self.backward || self.members.len() < 2 || joined.len() < 3 {
            // Of two, each alone was tried before they joined.
            return None;
        }
        joined.get(self.removals.len()).copied()
    }

    /// Takes the score of the soup that [`Self::next`] returned.
    pub(super) fn scored(&mut self, score: Option<f64>, keep: Keep) {
        let better = score.zip(self.score).is_some_and(|(score, best)| keep.accepts(score, best));
        match self.trial() {
            Some(trial @ (Trial::Step(added) | Trial::Repeat(added))) => {
                if better {
                    self.members.push(added);
                    self.score = score;
                }
                let tried = if matches!(trial, Trial::Step(_)) { &mut self.steps } else { &mut self.repeats };
                tried.push(SoupStep { added, score, kept: better });
            }
            Some(Trial::Removal(source)) => {
                if better {
                    leave_out(&mut self.members, source);
                    self.score = score;
                }
                self.removals.push(SoupRemoval { source, score, removed: better });
            }
            None => {}
        }
        self.complete = self.next().is_none();
    }
}

/// Takes a source out once.
fn leave_out(members: &mut Vec<usize>, source: usize) {
    if let Some(position) = members.iter().position(|member| *member == source) {
        members.remove(position);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::RngExt;

    use super::*;
    use crate::random::stream;

    #[test]
    fn adds_in_order_and_keeps_what_helps() {
        let mut trace = SoupTrace::start(&[Some(0.5), None, Some(0.7), Some(0.5)], Passes::default());
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
        let mut trace = SoupTrace::start(&[Some(0.5), Some(0.5), Some(0.1)], Passes::default());
        trace.scored(Some(0.5), Keep::NotWorse);
        trace.scored(None, Keep::NotWorse);
        assert_eq!((trace.members, trace.score, trace.complete), (vec![0, 1], Some(0.5), true));
    }

    #[test]
    fn one_source_or_none_is_complete_at_once() {
        assert!(SoupTrace::start(&[Some(1.0), None], Passes::default()).complete);
        let none = SoupTrace::start(&[None], Passes::default());
        assert_eq!((none.complete, none.next(), none.score), (true, None, None));
    }

    #[test]
    fn a_backward_pass_drops_who_has_become_superfluous() {
        let mut trace =
            SoupTrace::start(&[Some(0.7), Some(0.6), Some(0.5)], Passes { backward: true, ..Passes::default() });
        trace.scored(Some(0.8), Keep::Better);
        trace.scored(Some(0.9), Keep::Better);
        assert_eq!((trace.next(), trace.complete), (Some(vec![1, 2]), false));
        trace.scored(Some(0.95), Keep::Better);
        assert_eq!(trace.next(), Some(vec![2]));
        trace.scored(Some(0.5), Keep::Better);
        assert_eq!(trace.next(), Some(vec![1]));
        trace.scored(None, Keep::Better);
        assert_eq!((trace.members.as_slice(), trace.score, trace.complete), (&[1, 2][..], Some(0.95), true));
        assert_eq!(trace.removals[0], SoupRemoval { source: 0, score: Some(0.95), removed: true });

        let mut pair = SoupTrace::start(&[Some(0.7), Some(0.6)], Passes { backward: true, ..Passes::default() });
        pair.scored(Some(0.8), Keep::Better);
        assert!(pair.complete, "the two alone are known");
    }

    #[test]
    fn with_replacement_sources_join_until_a_pass_keeps_none() {
        let passes = Passes { replacement: true, backward: true };
        let mut trace = SoupTrace::start(&[Some(0.6), Some(0.5)], passes);
        let mut tried = Vec::new();
        // Two parts of source 0 and one of source 1 are best.
        let score = |members: &[usize]| {
            let share = members.iter().filter(|member| **member == 0).count() as f64 / members.len() as f64;
            1.0 - (share - 0.66).abs()
        };
        while let Some(members) = trace.next() {
            trace.scored(Some(score(&members)), Keep::Better);
            tried.push(members);
        }
        assert_eq!(tried[..4], [vec![0, 1], vec![0, 0, 1], vec![0, 0, 1, 1], vec![0, 0, 0, 1]]);
        assert_eq!((trace.members.as_slice(), trace.complete), (&[0, 1, 0][..], true));
        assert_eq!(trace.removals.len(), 3, "each part was tried without");

        let mut endless = SoupTrace::start(&[Some(0.5), Some(0.5)], Passes { replacement: true, ..Passes::default() });
        while endless.next().is_some() {
            endless.scored(Some(0.5), Keep::NotWorse);
        }
        assert_eq!(endless.members.len(), 2 * SHARE);
    }

    /// More of the only source of a soup is the same soup, however its score counts.
    #[test]
    fn a_soup_of_one_source_takes_no_more_of_it() {
        let passes = Passes { replacement: true, backward: true };
        let mut trace = SoupTrace::start(&[Some(0.6), Some(0.5), Some(0.4)], passes);
        let mut tried = Vec::new();
        while let Some(members) = trace.next() {
            tried.push(members.clone());
            trace.scored(Some(if members.iter().all(|member| *member == 0) { 0.6 } else { 0.1 }), Keep::NotWorse);
        }
        assert_eq!(tried, [vec![0, 1], vec![0, 2], vec![0, 1], vec![0, 2]]);
        assert_eq!((trace.members.as_slice(), trace.complete), (&[0][..], true));

        // More and more of source 0, but its share.
        let mut trace = SoupTrace::start(&[Some(0.6), Some(0.5)], Passes { replacement: true, ..Passes::default() });
        while let Some(members) = trace.next() {
            let share = members.iter().filter(|member| **member == 0).count() as f64 / members.len() as f64;
            trace.scored(Some(0.7 + 0.1 * share), Keep::Better);
        }
        assert_eq!(trace.members, [0, 1, 0, 0, 0]);
    }

    /// The evaluations of a soup whose trials are kept as `keep` says: those of soups that were not known before.
    fn evaluations(sources: usize, passes: Passes, mut keep: impl FnMut() -> bool) -> u64 {
        let mut trace = SoupTrace::start(&vec![Some(0.0); sources], passes);
        let mut known: BTreeSet<Vec<usize>> = (0..sources).map(|source| vec![source]).collect();
        known.insert((0..sources).collect());
        let mut evaluated = 0;
        while let Some(members) = trace.next() {
            evaluated += u64::from(known.insert(members));
            let score = trace.score.unwrap_or(0.0) + if keep() { 1.0 } else { -1.0 };
            trace.scored(Some(score), Keep::Better);
        }
        evaluated
    }

    #[test]
    fn no_soup_takes_fewer_or_more_evaluations_than_foreseen() {
        for (replacement, backward) in [(false, false), (false, true), (true, false), (true, true)] {
            let passes = Passes { replacement, backward };
            for sources in 2..6 {
                let [fewest, most] = passes.evaluations(sources);
                let mut found = BTreeSet::new();
                for round in 0..200_u64 {
                    let mut draws = stream(7, "soup trials", round);
                    // From soups that keep nothing to soups that keep everything.
                    let share = round as f64 / 199.0;
                    found.insert(evaluations(sources, passes, || draws.random::<f64>() < share));
                }
                let (least, greatest) = (found.first().copied(), found.last().copied());
                let is_inside =
                    least.is_some_and(|least| least >= fewest) && greatest.is_some_and(|most_of| most_of <= most);
                assert!(is_inside, "{sources} sources, {passes:?}: {found:?}, foreseen {fewest} to {most}");
                if !backward {
                    assert_eq!(least, Some(fewest), "{sources} sources, {passes:?}");
                }
                if !replacement && !backward {
                    assert_eq!(greatest, Some(most), "{sources} sources");
                }
            }
            assert_eq!(passes.evaluations(1), [0, 0]);
        }
    }

    /// The most trials that any way to keep them leads to.
    fn most_trials(trace: &SoupTrace) -> u64 {
        if trace.next().is_none() {
            return 0;
        }
        let after = |change: f64| {
            let mut trace = trace.clone();
            trace.scored(trace.score.map(|score| score + change), Keep::Better);
            most_trials(&trace)
        };
        1 + after(1.0).max(after(-1.0))
    }

    #[test]
    fn the_most_trials_are_those_of_the_longest_way() {
        for (sources, replacement, backward) in
            [(2, true, false), (3, false, true), (4, false, true), (5, false, false)]
        {
            let passes = Passes { replacement, backward };
            let trials = most_trials(&SoupTrace::start(&vec![Some(0.0); sources], passes));
            // Of two sources, the first trial is the uniform soup.
            let known = u64::from(sources == 2);
            assert_eq!(passes.evaluations(sources)[1], trials - known, "{sources} sources, {passes:?}");
        }
    }
}
