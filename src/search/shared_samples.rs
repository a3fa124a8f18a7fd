//! Answers on the same samples hold one list of their ids: a search keeps every answer, and ids take more memory than
//! scores.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::scores::{SampleIds, TaskScores};

/// Most lists kept for each task, the latest ones: a race has one for each part and one for each part put together.
const MOST_LISTS: usize = 8;

/// The lists of ids that answers have had lately, by task.
#[derive(Default)]
pub(super) struct SharedSamples(HashMap<String, VecDeque<SampleIds>>);

impl SharedSamples {
    /// Gives an answer the ids of an earlier one where they are the same.
    pub(super) fn share(&mut self, tasks: &mut BTreeMap<String, TaskScores>) {
        for (task, scores) in tasks {
            let Some(samples) = &mut scores.per_sample else { continue };
            let lists = self.0.entry(task.clone()).or_default();
            if let Some(known) = lists.iter().find(|known| **known == samples.ids) {
                samples.ids = known.clone();
                continue;
            }
            if lists.len() == MOST_LISTS {
                lists.pop_front();
            }
            lists.push_back(samples.ids.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{PerSample, SampleId};

    fn answer(ids: std::ops::Range<i64>) -> BTreeMap<String, TaskScores> {
        let ids: SampleIds = ids.map(SampleId::Number).collect();
        let scores = BTreeMap::from([("acc".to_owned(), vec![1.0; ids.len()])]);
        let task = TaskScores { per_sample: Some(PerSample { ids, scores }), ..TaskScores::default() };
        BTreeMap::from([("task".to_owned(), task)])
    }

    fn ids(answer: &BTreeMap<String, TaskScores>) -> &SampleIds {
        &answer["task"].per_sample.as_ref().unwrap().ids
    }

    #[test]
    fn equal_lists_are_held_once_and_others_keep_their_own() {
        let mut shared = SharedSamples::default();
        let mut answers: Vec<_> = [0..9, 0..5, 0..9, 5..9, 0..5].map(answer).into();
        let before = answers.clone();
        answers.iter_mut().for_each(|answer| shared.share(answer));
        assert_eq!(answers, before);
        let same = |a: usize, b: usize| std::ptr::eq(ids(&answers[a]).as_ptr(), ids(&answers[b]).as_ptr());
        assert!(same(0, 2) && same(1, 4) && !same(0, 1) && !same(1, 3));
    }

    #[test]
    fn only_the_latest_lists_are_kept() {
        let mut shared = SharedSamples::default();
        for end in 0..100 {
            shared.share(&mut answer(0..end));
        }
        assert_eq!(shared.0["task"].len(), MOST_LISTS);
    }
}
