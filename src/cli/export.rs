//! `evomerge export`: a run's best model as a folder that stands by itself.

use super::arguments::Export;
use super::error::CliError;
use super::model_card;
use super::models::{OpenModels, materialize};
use super::output::{Output, say};
use crate::exit::ExitCode;
use crate::files::path_text;
use crate::ledger::{Ledger, fact};
use crate::merge::{MergeOptions, MergerOptions, WriteMode};
use crate::recipe::RecipeFile;
use crate::search::{RunFolder, export_record, read_verdict};

pub(super) fn run(arguments: &Export, output: Output) -> Result<ExitCode, CliError> {
    let path = RunFolder::ledger_in(&arguments.results);
    let ledger = Ledger::open_for_reading(&path)?;
    let (asked, told) = export_record(&ledger, arguments.candidate.as_deref())?;
    let RecipeFile { recipe, content_ids, .. } = RecipeFile::from_toml(&asked.recipe)?;
    // Recipes of a run name their models absolutely; the folder only matters for Hugging Face ids.
    let models = OpenModels::open(&recipe, &arguments.results)?;
    models.check_content(&content_ids, &arguments.results)?;
    models.refuse_to_replace(&arguments.out, &path)?;
    let merger = models.merger(MergerOptions::default())?;
    let verdict = read_verdict(&arguments.results);
    let run = ledger.fact(fact::RUN_NAME)?.unwrap_or_default();
    let card = model_card::of_run(&run, &asked, told.as_ref(), &recipe, verdict.as_ref(), &arguments.results);
    let extra = model_card::files(&asked.recipe, &recipe, card);
    let options = MergeOptions { mode: WriteMode::durable(arguments.force), files: &extra, ..MergeOptions::default() };
    let report = materialize(&merger, &recipe, &arguments.out, options, output)?;
    if !output.quiet {
        say(&format!("candidate {} ({}, evaluation {})", asked.candidate_id, asked.origin, asked.index));
        report.notes.iter().for_each(|note| say(&format!("note: {note}")));
    }
    let json = serde_json::json!({
        "out": path_text(&arguments.out), "candidate_id": asked.candidate_id, "index": asked.index, "origin": asked.origin,
        "objective": told.and_then(|record| record.objective), "fidelity": asked.fidelity, "notes": report.notes,
    });
    output.result(&format!("{}\n", arguments.out.display()), &json)?;
    Ok(ExitCode::Done)
}
