//! `trials.csv`: one row a finished search evaluation, in order of index (design: columns keep their names).

use std::collections::BTreeMap;
use std::path::Path;

use super::{AskedRecord, Ledger, LedgerError, ToldRecord};
use crate::scores::Scores;

/// Writes `trials.csv` from the ledger, atomically. `tasks` gives the order of the score columns.
///
/// # Errors
/// [`LedgerError::Export`] where the table cannot be written; those of reading the ledger.
pub fn write_trials(ledger: &Ledger, path: &Path, tasks: &[String]) -> Result<(), LedgerError> {
    let asked = ledger.all_asked()?;
    let told = ledger.all_told_without_samples()?;
    let bytes = render(&asked, &told, tasks).map_err(|reason| export_error(path, &reason))?;
    crate::files::write_atomically(path, &bytes).map_err(|error| export_error(path, &error.to_string()))
}

fn export_error(path: &Path, reason: &str) -> LedgerError {
    LedgerError::Export { path: path.to_path_buf(), reason: reason.to_string() }
}

fn render(asked: &[AskedRecord], told: &BTreeMap<u64, ToldRecord>, tasks: &[String]) -> Result<Vec<u8>, String> {
    let genes = gene_columns(asked);
    let metrics = metric_columns(told.values().map(|outcome| &outcome.tasks), tasks);

    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header(&genes, &metrics)).map_err(|error| error.to_string())?;
    let ids: BTreeMap<u64, &str> = asked.iter().map(|record| (record.index, record.candidate_id.as_str())).collect();
    for record in asked {
        let Some(outcome) = told.get(&record.index) else { continue };
        writer.write_record(row(record, outcome, &ids, &genes, &metrics)).map_err(|error| error.to_string())?;
    }
    writer.into_inner().map_err(|error| error.to_string())
}

/// Genes in the order of the first record that has them (every genome of a run has the same ones).
fn gene_columns(asked: &[AskedRecord]) -> Vec<String> {
    asked
        .iter()
        .find(|record| !record.genes.is_empty())
        .map(|record| record.genes.iter().map(|(name, _)| name.clone()).collect())
        .unwrap_or_default()
}

/// `(task, metric)` pairs that any outcome has, tasks in the run's order.
fn metric_columns<'a>(scores: impl Iterator<Item = &'a Scores>, tasks: &[String]) -> Vec<(String, String)> {
    let mut found: Vec<(usize, String, String)> = scores
        .flat_map(|scores| scores.iter())
        .flat_map(|(task, scores)| {
            let place = tasks.iter().position(|name| name == task).unwrap_or(tasks.len());
            scores.metrics.keys().map(move |metric| (place, task.clone(), metric.clone()))
        })
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, task, metric)| (task, metric)).collect()
}

fn header(genes: &[String], metrics: &[(String, String)]) -> Vec<String> {
    let mut columns: Vec<String> =
        ["index", "candidate_id", "parent_ids", "origin", "generation", "fidelity", "status", "objective"]
            .map(String::from)
            .to_vec();
    columns.extend(genes.iter().map(|gene| format!("gene.{gene}")));
    columns.extend(metrics.iter().map(|(task, metric)| format!("score.{task}.{metric}")));
    columns.extend(metrics.iter().map(|(task, metric)| format!("stderr.{task}.{metric}")));
    columns.extend(
        ["n_samples", "materialize_s", "evaluate_s", "started_at", "finished_at", "attempts", "error"]
            .map(String::from),
    );
    columns
}

fn row(
    asked: &AskedRecord,
    told: &ToldRecord,
    ids: &BTreeMap<u64, &str>,
    genes: &[String],
    metrics: &[(String, String)],
) -> Vec<String> {
    let parents: Vec<&str> = asked.parents.iter().filter_map(|index| ids.get(index).copied()).collect();
    let mut cells = vec![
        asked.index.to_string(),
        text(&asked.candidate_id),
        text(&parents.join(" ")),
        text(&asked.origin),
        asked.generation.to_string(),
        asked.fidelity.to_string(),
        told.status.name().to_owned(),
        told.objective.map(|value| value.to_string()).unwrap_or_default(),
    ];
    let values: BTreeMap<&str, &str> =
        asked.genes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    cells.extend(genes.iter().map(|gene| gene_value(values.get(gene.as_str()).copied().unwrap_or_default())));
    let metric = |task: &str, metric: &str| told.tasks.get(task).and_then(|scores| scores.metrics.get(metric));
    cells.extend(
        metrics.iter().map(|(task, name)| metric(task, name).map(|found| found.value.to_string()).unwrap_or_default()),
    );
    cells.extend(metrics.iter().map(|(task, name)| {
        metric(task, name).and_then(|found| found.stderr).map(|value| value.to_string()).unwrap_or_default()
    }));
    let seconds = |value: Option<f64>| value.map(|value| format!("{value:.3}")).unwrap_or_default();
    cells.extend([
        told.n_samples.to_string(),
        seconds(told.materialize_s),
        seconds(told.evaluate_s),
        told.started_at.clone().unwrap_or_default(),
        told.finished_at.clone(),
        told.attempts.to_string(),
        text(told.error.as_deref().unwrap_or_default()),
    ]);
    cells
}

/// A cell of text. One that a spreadsheet would run as a formula, by its first character, gets an apostrophe in front,
/// by which it is shown as text instead. Numbers may begin in the same way and are no text.
fn text(cell: &str) -> String {
    if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{cell}") } else { cell.to_owned() }
}

/// A gene's value: a number as it is, the name of a choice as text.
fn gene_value(value: &str) -> String {
    if value.parse::<f64>().is_ok() { value.to_owned() } else { text(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{MetricValue, Status, TaskScores};

    #[test]
    fn text_is_no_formula_and_numbers_stay_numbers() {
        let asked = AskedRecord {
            index: 0,
            candidate_id: "=1".to_owned(),
            recipe_sha256: String::new(),
            evaluation_id: String::new(),
            recipe: String::new(),
            content: serde_json::Value::Null,
            genes: [("weight", "-0.5"), ("method", "ties"), ("source", "-expert"), ("pair", "=a+b")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            origin: "+origin".to_owned(),
            parents: vec![0],
            generation: 0,
            fidelity: 1.0,
            replicate: 0,
            samples: 0,
            asked_at: String::new(),
        };
        let scores = TaskScores {
            metrics: BTreeMap::from([("acc".to_owned(), MetricValue { value: -0.25, stderr: Some(0.5) })]),
            ..TaskScores::default()
        };
        let told = ToldRecord {
            index: 0,
            status: Status::Scored,
            objective: Some(-0.25),
            tasks: BTreeMap::from([("add".to_owned(), scores)]),
            n_samples: 4,
            materialize_s: None,
            evaluate_s: Some(1.0),
            started_at: None,
            finished_at: "now".to_owned(),
            attempts: 1,
            error: Some("\tcmd|' /C calc'!A0".to_owned()),
        };
        let bytes = render(&[asked], &BTreeMap::from([(0, told)]), &["add".to_owned()]).unwrap();
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        let row = reader.records().next().unwrap().unwrap();
        let expected = [
            "0",
            "'=1",
            "'=1",
            "'+origin",
            "0",
            "1",
            "scored",
            "-0.25",
            "-0.5",
            "ties",
            "'-expert",
            "'=a+b",
            "-0.25",
            "0.5",
            "4",
            "",
            "1.000",
            "",
            "now",
            "1",
            "'\tcmd|' /C calc'!A0",
        ];
        assert_eq!(row, expected.to_vec());
        assert_eq!(["-x", "@x", "\rx", "=x"].map(text), ["'-x", "'@x", "'\rx", "'=x"]);
        assert_eq!(["", "x-y", "'x"].map(text), ["", "x-y", "'x"]);
    }
}
