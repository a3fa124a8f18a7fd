//! Ranges of weights from conflicts between the sources of the tiny Llama zoo.
#![cfg(feature = "native")]

#[path = "support/runs.rs"]
#[allow(dead_code, reason = "shared with the tests of whole searches")]
mod runs;

use std::path::{Path, PathBuf};

use runs::{Scratch, cell, stderr};

/// The quickstart with a prior of this strength.
fn run_file(scratch: &Scratch, strength: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("search-spaces/quickstart.toml")).unwrap();
    let (before, rest) = text.split_once("[space]").unwrap();
    let (_, after) = rest.split_once("[strategy]").unwrap();
    let space = format!(
        "[space]\nmethod = 'task_arithmetic'\ngranularity = 1\n[space.genes]\n\
         weight = {{ low = 0.0, high = 1.0, init = 0.3, per = ['model', 'layer_group'], conflict_prior = {strength} }}\n[strategy]"
    );
    let text = format!("{before}{space}{after}");
    let text = text.replace("\"../evals", &format!("\"{}/evals", root.display())).replace("\"genetic\"", "\"random\"");
    let path = scratch.path("quickstart.toml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Greatest value of each weight in the trials.
fn greatest(scratch: &Scratch) -> Vec<f64> {
    let rows = scratch.trials("results", "quickstart");
    let weights: Vec<&str> =
        rows[0].iter().map(|(column, _)| column.as_str()).filter(|column| column.starts_with("gene.weight.")).collect();
    let of_gene =
        |column: &&str| rows.iter().filter_map(|row| cell(row, column).parse::<f64>().ok()).fold(0.0, f64::max);
    weights.iter().map(of_gene).collect()
}

#[test]
fn a_run_with_a_prior_continues_and_keeps_its_ranges() {
    let scratch = Scratch::new();
    let path = run_file(&scratch, "4");
    let path = path.to_str().unwrap();
    let checked = scratch.evomerge(&["check", path]);
    assert!(checked.status.success(), "{}", stderr(&checked));
    let said = stderr(&checked);
    let said = said.lines().find(|line| line.contains("conflicts between sources")).unwrap_or_else(|| panic!("{said}"));
    let factors: Vec<f64> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(factors.len() == 2 && factors[0] < 1.0 && factors[1] > 1.0, "{said}");

    for evaluations in ["16", "24"] {
        let run = scratch.evomerge(&["search", path, "--max-evaluations", evaluations, "--quiet"]);
        assert!(run.status.success(), "{}", stderr(&run));
    }
    let most = greatest(&scratch).into_iter().fold(0.0, f64::max);
    assert!(most > 1.0 && most <= 0.3 + 0.7 * factors[1] + 1e-9, "{most} of {said}");

    run_file(&scratch, "3");
    let changed = scratch.evomerge(&["search", path, "--quiet"]);
    assert_eq!(changed.status.code(), Some(78));
    assert!(stderr(&changed).contains("space.genes.weight.conflict_prior: 4.0 -> 3.0"), "{}", stderr(&changed));
}
