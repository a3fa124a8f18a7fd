//! evomerge searches for the best way to merge a set of fine-tuned language models.
//!
//! ```text
//!  run.toml -> config -> space -decode-> recipe -plan-> merge -> candidate checkpoint
//!                          ^               ^              |               |
//!                       genome          baselines     checkpoint      evaluate
//!                          |                           (sources)          | per-sample scores
//!                       strategy <- objective <- score <- ledger <--------+
//!                                                   |        |
//!                                                verdict
//! ```
//!
//! [`search`] moves data along this line and is the only room that knows all the others. What `strategy`, `score`, `space`,
//! `merge` and `recipe` give depends on their arguments alone, never on a clock, the network or global state;
//! randomness comes in as a seed. `ARCHITECTURE.md` is the long form of this page.

pub mod checkpoint;
pub mod cli;
pub mod config;
mod digest;
pub mod document;
pub mod evaluate;
pub mod exit;
pub mod files;
pub mod ledger;
mod lock;
pub mod merge;
mod natural_order;
mod plural;
mod python_json;
pub mod random;
pub mod recipe;
mod repeated_keys;
pub mod score;
pub mod scores;
pub mod search;
pub mod space;
pub mod strategy;
mod suggestion;
