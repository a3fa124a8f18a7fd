//! Run files on closed-form landscapes, and ways to start the program on them.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use evomerge::ledger::{AskedRecord, Ledger};

/// A scratch folder with one run file over a landscape.
pub struct Scratch {
    pub folder: tempfile::TempDir,
}

/// Base and three sources that need not exist, ten genes, two tasks.
pub const SPACE: &str = r#"
[models]
base = "base"
sources = ["a", "b", "c"]
[space]
method = ["task_arithmetic", "ties"]
[space.genes]
weight = { low = 0.0, high = 1.0, per = ["model"] }
density = { low = 0.1, high = 1.0, per = ["model"] }
"#;

/// Two tasks and a hold-out by fraction.
pub const TASKS: &str = r#"
[[tasks]]
name = "one"
[[tasks]]
name = "two"
[holdout]
fraction = 0.4
"#;

impl Scratch {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `NAME.toml` and returns its path.
    pub fn run_file(&self, name: &str, evaluations: u64, evaluator: &str, rest: &str) -> PathBuf {
        let path = self.path(&format!("{name}.toml"));
        let text = format!(
            "name = \"{name}\"\nseed = 5\n[budget]\nevaluations = {evaluations}\n[evaluator]\nkind = \"function\"\n{evaluator}\n{rest}"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `evomerge ARGUMENTS`, in the scratch folder.
    pub fn evomerge(&self, arguments: &[&str]) -> Output {
        command(self.folder.path(), arguments).output().unwrap()
    }

    /// A search that must succeed; its JSON document.
    pub fn search(&self, run_file: &Path, more: &[&str]) -> serde_json::Value {
        let mut arguments = vec!["search", run_file.to_str().unwrap(), "--json"];
        arguments.extend(more);
        let output = self.evomerge(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `evomerge ARGUMENTS`, which runs or continues the search in `run`, killed once its ledger has at least `told`
    /// outcomes.
    pub fn kill_at(&self, arguments: &[&str], run: &str, told: usize) {
        let ledger = self.path(run).join("ledger.sqlite");
        let outcomes = || {
            let told = Ledger::open_for_reading(&ledger).and_then(|ledger| ledger.all_told_in_short());
            told.map_or(0, |told| told.len())
        };
        let mut child = command(self.folder.path(), arguments).stdout(Stdio::null()).spawn().unwrap();
        wait_until(|| {
            let ended = child.try_wait().unwrap();
            assert_eq!(ended, None, "the search ended before it had {told} outcomes");
            outcomes() >= told
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The evaluations that the run `run` in the folder `results` has asked for.
    pub fn asked(&self) -> Vec<AskedRecord> {
        let ledger = Ledger::open_for_reading(&self.path("results/run/ledger.sqlite")).unwrap();
        ledger.all_asked().unwrap()
    }

    /// The rows of `trials.csv` without timings.
    pub fn trials(&self, results: &str, name: &str) -> Vec<Vec<(String, String)>> {
        let path = self.path(results).join(name).join("trials.csv");
        let mut reader = csv::Reader::from_path(&path).unwrap();
        let header = reader.headers().unwrap().clone();
        let timing = ["materialize_s", "evaluate_s", "started_at", "finished_at", "attempts"];
        reader
            .records()
            .map(|record| {
                let record = record.unwrap();
                let cells = header.iter().zip(record.iter());
                cells
                    .filter(|(column, _)| !timing.contains(column))
                    .map(|(column, cell)| (column.to_string(), cell.to_string()))
                    .collect()
            })
            .collect()
    }
}

/// Copies the files of a folder into another one, which is made if it is missing.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Polls a condition that another process brings about.
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("waited in vain");
}

pub fn command(folder: &Path, arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("evomerge"));
    command.current_dir(folder).args(arguments);
    command
}

/// A cell of a trials row.
pub fn cell<'a>(row: &'a [(String, String)], column: &str) -> &'a str {
    row.iter().find(|(name, _)| name == column).map(|(_, value)| value.as_str()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
