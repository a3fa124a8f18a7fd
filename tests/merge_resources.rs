//! What a merge takes and what it leaves: anonymous memory that does not grow with the models, and nothing
//! half-written.

#[path = "support/skipping.rs"]
mod skipping;

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use skipping::skip;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const THREADS: u64 = 2;
/// 64 MiB and 8 MiB a thread.
const LIMIT: u64 = (64 + 8 * THREADS) * MIB;
const MODELS: [&str; 3] = ["base", "a", "b"];
const METHODS: [&str; 7] = ["linear", "slerp", "ties", "dare_linear", "dare_ties", "della", "sce"];

/// Three models of two bfloat16 tensors of `elements` each, and a recipe for every method.
struct Family {
    folder: TempDir,
}

impl Family {
    /// The first `dense` elements of each tensor are small numbers that differ between the models; the others are
    /// zeros, in files with holes.
    fn new(elements: u64, dense: u64) -> Self {
        let columns = if elements.is_multiple_of(4096) { 4096 } else { elements };
        Self::of_shape(&[elements / columns, columns], dense)
    }

    /// The same with tensors of any shape.
    fn of_shape(shape: &[u64], dense: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let family = Self { folder };
        let elements: u64 = shape.iter().product();
        let header = format!(
            r#"{{"layers.0.w":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[0,{}]}},"layers.1.w":{{"dtype":"BF16","shape":{shape:?},"data_offsets":[{},{}]}}}}"#,
            2 * elements,
            2 * elements,
            4 * elements
        );
        for (model, name) in (0_u32..).zip(MODELS) {
            std::fs::create_dir(family.path(name)).unwrap();
            std::fs::write(family.path(name).join("config.json"), "{}").unwrap();
            let mut file = File::create(family.path(name).join("model.safetensors")).unwrap();
            file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
            file.write_all(header.as_bytes()).unwrap();
            let start = 8 + header.len() as u64;
            file.set_len(start + 4 * elements).unwrap();
            for tensor in [0, 1_u32] {
                let value = |index: u32| {
                    let mixed = (index ^ model << 28 ^ tensor << 27).wrapping_mul(0x9E37_79B9);
                    ((0x3C00 | mixed >> 23) as u16 | (mixed << 15) as u16).to_le_bytes()
                };
                let bytes: Vec<u8> = (0..dense as u32).flat_map(value).collect();
                file.write_all_at(&bytes, start + u64::from(tensor) * 2 * elements).unwrap();
            }
        }
        for method in METHODS {
            std::fs::write(family.recipe(method), recipe(method)).unwrap();
        }
        family
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn recipe(&self, method: &str) -> PathBuf {
        self.path(&format!("{method}.yml"))
    }

    fn command(&self, method: &str, out: &Path) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("evomerge"));
        command.arg("merge").arg(self.recipe(method)).arg("--out").arg(out).args(["--threads", &THREADS.to_string()]);
        // Content ids of other tests' files are nobody's business here.
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    fn merge(&self, method: &str, out: &Path) -> Output {
        self.command(method, out).output().unwrap()
    }
}

fn recipe(method: &str) -> String {
    match method {
        "slerp" => {
            "merge_method: slerp\nbase_model: a\nparameters: {t: 0.3}\nmodels: [{model: a}, {model: b}]\n".to_owned()
        }
        "sce" => {
            "merge_method: sce\nbase_model: base\nparameters: {select_topk: 0.4}\nmodels: [{model: a}, {model: b}]\n"
                .to_owned()
        }
        _ => {
            let density = if method == "linear" { "" } else { ", density: 0.4" };
            let base = if method == "linear" { "" } else { "base_model: base\n" };
            let source = |name, weight| format!("  - {{model: {name}, parameters: {{weight: {weight}{density}}}}}\n");
            format!("merge_method: {method}\n{base}models:\n{}{}", source("a", 0.7), source("b", 0.4))
        }
    }
}

/// The largest resident anonymous memory seen while the process ran, in bytes.
fn peak_anonymous(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0 kB");
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().unwrap();
        peak = peak.max(1024 * kibibytes);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak;
        }
        // Between two samples, not for anything to happen.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The largest resident anonymous memory of each method's merge of `family`.
#[cfg(target_os = "linux")]
fn peaks(family: &Family, elements: u64) -> [u64; METHODS.len()] {
    METHODS.map(|method| {
        let out = family.path("out");
        let peak = peak_anonymous(family.command(method, &out));
        assert!(peak > 0 && peak < LIMIT, "{method}, {elements} elements a tensor: {} MiB", peak / MIB);
        let written = std::fs::metadata(out.join("model.safetensors")).unwrap().len();
        assert!(written > 4 * elements);
        std::fs::remove_dir_all(&out).unwrap();
        peak
    })
}

#[test]
#[cfg(target_os = "linux")]
fn anonymous_memory_does_not_grow_with_the_models() {
    // 24 MiB a model, all of it numbers.
    peaks(&Family::new(6 << 20, 6 << 20), 6 << 20);
    // 48 MiB a model, and eight times as much: a buffer of one byte an element would show with 84 MiB.
    let [small, large] = [12 << 20, 96 << 20].map(|elements| peaks(&Family::new(elements, 1 << 20), elements));
    for (method, (small, large)) in METHODS.iter().zip(small.iter().zip(large)) {
        // Masks are remembered, one bit an element, in 32 MiB at most.
        let bounded = if method.starts_with('d') { 32 * MIB } else { 0 };
        assert!(large < small + bounded + 4 * MIB, "{method}: {} KiB, then {} KiB", small >> 10, large >> 10);
    }
}

/// As many experts in one tensor as some models have them: ranks run through the middle dimension.
#[test]
#[cfg(target_os = "linux")]
fn fused_experts_take_no_more_than_other_tensors() {
    // 120 MiB a model; a byte an element of one tensor would take 30 MiB, as it did besides numbers of four bytes.
    let family = Family::of_shape(&[30, 1024, 1024], 1 << 20);
    for method in ["della", "della_linear", "ties", "dare_ties"] {
        std::fs::write(family.recipe(method), recipe(method)).unwrap();
        let out = family.path("out");
        let peak = peak_anonymous(family.command(method, &out));
        assert!(peak > 0 && peak < 60 * MIB, "{method}: {} MiB", peak / MIB);
        std::fs::remove_dir_all(&out).unwrap();
    }
}

/// A base of `rows` times `columns` zeros in two sparse bfloat16 tensors, and two adapters of rank 8 with numbers in
/// them.
#[cfg(target_os = "linux")]
fn adapted_family(folder: &Path, rows: u64, columns: u64) {
    let header = |tensors: &[(&str, &str, [u64; 2])]| {
        let mut end = 0;
        let entry = |(name, dtype, [rows, columns]): &(&str, &str, [u64; 2])| {
            let start = end;
            end += rows * columns * if *dtype == "BF16" { 2 } else { 4 };
            format!(r#""{name}":{{"dtype":"{dtype}","shape":[{rows},{columns}],"data_offsets":[{start},{end}]}}"#)
        };
        let text = format!("{{{}}}", tensors.iter().map(entry).collect::<Vec<_>>().join(","));
        (text, end)
    };
    let write = |path: PathBuf, (header, data): (String, u64), values: Option<&[u8]>| {
        let mut file = File::create(path).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        match values {
            Some(values) => file.write_all(values).unwrap(),
            None => file.set_len(8 + header.len() as u64 + data).unwrap(),
        }
    };
    std::fs::create_dir(folder.join("base")).unwrap();
    std::fs::write(folder.join("base/config.json"), "{}").unwrap();
    let shape = [rows, columns];
    write(
        folder.join("base/model.safetensors"),
        header(&[("layers.0.w.weight", "BF16", shape), ("layers.1.w.weight", "BF16", shape)]),
        None,
    );
    for (name, seed) in [("a", 1_u32), ("b", 2)] {
        let path = folder.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16}"#).unwrap();
        let (text, data) = header(&[
            ("base_model.model.layers.0.w.lora_A.weight", "F32", [8, columns]),
            ("base_model.model.layers.0.w.lora_B.weight", "F32", [rows, 8]),
            ("base_model.model.layers.1.w.lora_A.weight", "F32", [8, columns]),
            ("base_model.model.layers.1.w.lora_B.weight", "F32", [rows, 8]),
        ]);
        let value = |index: u32| {
            let mixed = (index ^ seed << 28).wrapping_mul(0x9E37_79B9);
            ((mixed >> 8) as f32 / 16_777_216.0 - 0.5).to_le_bytes()
        };
        let values: Vec<u8> = (0..data as u32 / 4).flat_map(value).collect();
        write(path.join("adapter_model.safetensors"), (text, data), Some(&values));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn adapters_are_never_merged_into_a_copy_of_the_model() {
    // 256 MiB a model; a copy of one tensor in float32 would take as much again.
    let (rows, columns) = (8 << 10, 8 << 10);
    let folder = tempfile::tempdir().unwrap();
    adapted_family(folder.path(), rows, columns);
    // Factors in float32: two adapters, two tensors.
    let adapters = 2 * 2 * 4 * 8 * (rows + columns);
    for method in ["linear", "ties", "dare_ties"] {
        let recipe = folder.path().join(format!("{method}.yml"));
        std::fs::write(
            &recipe,
            self::recipe(method).replace("model: a,", "model: base+a,").replace("model: b,", "model: base+b,"),
        )
        .unwrap();
        let out = folder.path().join("out");
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("evomerge"));
        command.arg("merge").arg(&recipe).arg("--out").arg(&out).args(["--threads", &THREADS.to_string()]);
        command.env("XDG_CACHE_HOME", folder.path().join("cache"));
        let peak = peak_anonymous(command);
        assert!(peak > 0 && peak < LIMIT + adapters, "{method}: {} MiB", peak / MIB);
        let files: Vec<String> = entries(folder.path());
        assert!(!files.iter().any(|name| name.contains("lora") || name.contains("partial")), "{files:?}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_merge_that_is_interrupted_leaves_nothing() {
    use rustix::process::Signal;

    interrupted(Signal::INT);
    // A closed terminal is no reason to leave anything behind; under `nohup` it is none to end.
    if !ignores_hangup() {
        interrupted(Signal::HUP);
    }
}

/// Whether this process ignores SIGHUP, and so do those that it starts.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1)
}

fn interrupted(signal: rustix::process::Signal) {
    let family = Family::new(64 << 20, 1 << 20);
    let out = family.path("out");
    let mut child = family.command("sce", &out).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = || entries(family.folder.path()).iter().any(|name| name.contains("partial"));
    while !begun() {
        assert!(child.try_wait().unwrap().is_none(), "the merge ended before it began to write");
        std::thread::sleep(Duration::from_millis(1));
    }
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    assert!(stderr.contains("merge cancelled"), "{stderr}");
    assert!(!out.exists() && !begun(), "{:?}", entries(family.folder.path()));
}

fn entries(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn an_existing_output_is_left_as_it_is() {
    let family = Family::new(1000, 1000);
    let out = family.path("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    let output = family.merge("linear", &out);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("not a checkpoint") && !said.contains("--force"), "{said}");
    assert_eq!(entries(&out), ["notes.txt"]);
    std::fs::write(out.join("config.json"), "{}").unwrap();
    let output = family.merge("linear", &out);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--force"));
    std::fs::remove_file(out.join("config.json")).unwrap();
    assert_eq!(entries(&out), ["notes.txt"]);
    assert!(!entries(family.folder.path()).iter().any(|name| name.contains("partial")));
}

#[test]
fn a_folder_that_is_not_writable_is_named_and_gets_nothing() {
    let family = Family::new(1000, 1000);
    // Binds every user.
    let output = family.merge("linear", Path::new("/proc/evomerge-out"));
    assert_eq!(output.status.code(), Some(73), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/proc"));

    let folder = family.path("closed");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o500)).unwrap();
    if File::create(folder.join("probe")).is_ok() {
        return skip("permissions", "permissions do not bind this user: a folder that is not writable cannot be made");
    }
    let output = family.merge("linear", &folder.join("out"));
    assert_eq!(output.status.code(), Some(73));
    assert!(String::from_utf8_lossy(&output.stderr).contains("closed"));
    assert!(entries(&folder).is_empty());
}

#[test]
fn a_full_disk_gets_nothing() {
    let family = Family::new(100_000, 100_000);
    let small = family.path("small");
    std::fs::create_dir(&small).unwrap();
    let unshare = |script: &str| {
        Command::new("unshare").args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).output()
    };
    if !unshare("mount -t tmpfs tmpfs /mnt").is_ok_and(|output| output.status.success()) {
        return skip("namespaces", "there are no user namespaces: a full disk cannot be made");
    }
    let program = assert_cmd::cargo::cargo_bin!("evomerge");
    let script = format!(
        "mount -t tmpfs -o size=300k tmpfs {0} && {1} merge {2} --out {0}/out; code=$?; ls -A {0}; exit $code",
        small.display(),
        program.display(),
        family.recipe("linear").display()
    );
    let output = unshare(&script).unwrap();
    assert_eq!(output.status.code(), Some(73), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("small"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "something is left");
}
