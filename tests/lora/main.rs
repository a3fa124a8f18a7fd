//! LoRA adapters as sources: merges with them are merges of the models that they make, adapters that do not fit are
//! refused, and a search takes them from start to export.

mod heads;
mod merges;
mod models;
mod nested;
mod program;
mod refusals;
#[path = "../support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;
