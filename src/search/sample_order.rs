//! Fixed orders of a task's samples: every start of a run draws the same ones.

use sha2::{Digest, Sha256};

use crate::scores::SampleId;

/// A sample's place in an order, or its side of a split, that `purpose`, seed and task fix.
pub(super) fn sample_hash(purpose: &str, seed: u64, task: &str, id: &SampleId) -> [u8; 32] {
    Sha256::digest(serde_json::json!([purpose, seed, task, id]).to_string().as_bytes()).into()
}

/// Brings samples into the order of their hashes, which differs from purpose to purpose.
pub(super) fn sort_by_hash(purpose: &str, seed: u64, task: &str, ids: &mut [SampleId]) {
    ids.sort_by_cached_key(|id| sample_hash(purpose, seed, task, id));
}
