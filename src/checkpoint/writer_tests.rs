use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use safetensors::Dtype;

use super::super::fixtures::safetensors_bytes;
use super::super::model::Checkpoint;
use super::super::output::{OutputTensor, shard_layout};
use super::*;
use crate::exit::ExitCode;

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> OutputTensor {
    OutputTensor { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn single(tensors: Vec<OutputTensor>) -> Vec<OutputFile> {
    vec![OutputFile { name: "model.safetensors".to_owned(), tensors }]
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|index| (seed * 31 + index * 7) as u8).collect()
}

fn entries(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn small(destination: &Path, replace: bool, byte: u8) -> Result<PathBuf, CheckpointError> {
    let files = single(vec![tensor("a.weight", Dtype::U8, &[4])]);
    let writer = CheckpointWriter::create(destination, &files, WriteMode::durable(replace))?;
    writer.put_file("config.json", format!("{{\"byte\": {byte}}}").as_bytes())?;
    writer.write_at("a.weight", 0, &[byte; 4])?;
    writer.finish()
}

const DTYPES: [Dtype; 8] =
    [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64, Dtype::I64, Dtype::U8, Dtype::BOOL, Dtype::I32];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any set of tensors, written in pieces and out of order, gives the library's bytes.
    #[test]
    fn same_bytes_as_the_safetensors_library(
        described in prop::collection::btree_map(
            "[a-z.0-9\"é\u{1F600}\\\\]{1,12}",
            (0..DTYPES.len(), prop::collection::vec(0usize..5, 0..4)),
            0..10,
        ),
        piece in 1usize..40,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let tensors: Vec<OutputTensor> =
            described.iter().map(|(name, (dtype, shape))| tensor(name, DTYPES[*dtype], shape)).collect();
        let data: Vec<Vec<u8>> = tensors
            .iter()
            .enumerate()
            .map(|(seed, tensor)| pattern(seed, tensor.byte_len().unwrap()))
            .collect();
        let out = folder.path().join("out");
        let writer = CheckpointWriter::create(&out, &single(tensors.clone()), WriteMode::default()).unwrap();
        for (tensor, bytes) in tensors.iter().zip(&data).rev() {
            let pieces: Vec<(usize, &[u8])> = bytes.chunks(piece).enumerate().collect();
            for (index, bytes) in pieces.into_iter().rev() {
                writer.write_at(&tensor.name, (index * piece) as u64, bytes).unwrap();
            }
        }
        let written = std::fs::read(writer.finish().unwrap().join("model.safetensors")).unwrap();
        let views: Vec<_> = tensors
            .iter()
            .zip(&data)
            .map(|(tensor, bytes)| (tensor.name.as_str(), tensor.dtype, tensor.shape.as_slice(), bytes.as_slice()))
            .collect();
        prop_assert_eq!(written, safetensors_bytes(&views));
    }
}

#[test]
fn many_threads_write_one_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let destination = folder.path().join("deep/er/out");
    let bytes = pattern(3, 1 << 20);
    let files = single(vec![tensor("w", Dtype::F32, &[1 << 18])]);
    let writer = CheckpointWriter::create(&destination, &files, WriteMode::default()).unwrap();
    bytes
        .par_chunks(4096)
        .enumerate()
        .try_for_each(|(index, chunk)| writer.write_at("w", index as u64 * 4096, chunk))
        .unwrap();
    writer.put_file("config.json", b"{}").unwrap();
    assert!(!destination.exists(), "nothing is visible before finish");
    writer.finish().unwrap();
    assert_eq!(entries(&folder.path().join("deep/er")), ["out"]);
    assert_eq!(Checkpoint::open(&destination).unwrap().bytes("w"), Some(bytes.as_slice()));
}

#[test]
fn every_directory_that_gets_an_entry_is_made_durable() {
    let folder = tempfile::tempdir().unwrap();
    let [one, two] = ["a", "a/b"].map(|path| folder.path().join(path));
    let changed = |path: &str| directories_that_change(Path::new(path)).unwrap();
    assert_eq!(directories_that_change(&two.join("out")).unwrap(), [two.clone(), one, folder.path().to_owned()]);
    assert_eq!(changed("out"), [Path::new(".")]);
    assert_eq!(changed("no/such/out"), ["no/such", "no", "."].map(Path::new));
    small(&two.join("out"), false, 1).unwrap();
}

#[test]
fn files_have_the_mode_that_the_umask_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let source = folder.path().join("tokenizer.json");
    std::fs::write(&source, "{}").unwrap();
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o400)).unwrap();
    let writer = CheckpointWriter::create(&folder.path().join("out"), &single(vec![]), WriteMode::default()).unwrap();
    writer.copy_file(&source).unwrap();
    let out = writer.finish().unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(entries(&out), ["model.safetensors", "tokenizer.json"]);
    for name in entries(&out) {
        assert_eq!(mode(&out.join(name)), mode(&plain));
    }
}

#[test]
fn incomplete_tensors_are_refused_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let files = single(vec![tensor("w", Dtype::F32, &[4]), tensor("none", Dtype::F32, &[0])]);
    let writer = CheckpointWriter::create(&folder.path().join("out"), &files, WriteMode::default()).unwrap();
    writer.write_at("w", 4, &[0; 12]).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(error.to_string().contains("12 bytes were written of tensor `w`, which has 16"), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Internal);
    drop(CheckpointWriter::create(&folder.path().join("out"), &files, WriteMode::default()).unwrap());
    assert_eq!(entries(folder.path()), [""; 0]);
}

#[test]
fn parts_outside_of_a_tensor_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let files = single(vec![tensor("w", Dtype::U8, &[4])]);
    let writer = CheckpointWriter::create(&folder.path().join("out"), &files, WriteMode::default()).unwrap();
    for (name, offset) in [("w", 2), ("w", u64::MAX), ("v", 0)] {
        assert!(matches!(writer.write_at(name, offset, &[0; 3]), Err(CheckpointError::Output { .. })));
    }
    for name in ["", "..", "a/b", "../config.json", "a\0", "model.safetensors.index.json", "model.safetensors"] {
        assert!(writer.put_file(name, b"").is_err(), "{name:?}");
    }
}

#[test]
fn an_existing_destination_is_kept_unless_told() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    small(&out, false, 1).unwrap();
    let error = small(&out, false, 2).unwrap_err();
    assert!(matches!(error, CheckpointError::Exists { .. }));
    assert_eq!(error.exit_code(), ExitCode::NotWritable);
    let old = Checkpoint::open(&out).unwrap();
    assert_eq!(old.bytes("a.weight"), Some([1; 4].as_slice()));
    small(&out, true, 3).unwrap();
    assert_eq!(old.bytes("a.weight"), Some([1; 4].as_slice()), "who has mapped the old one keeps it");
    assert!(matches!(old.verify_unchanged(), Err(CheckpointError::Changed { .. })));
    assert_eq!(Checkpoint::open(&out).unwrap().bytes("a.weight"), Some([3; 4].as_slice()));
    assert_eq!(entries(folder.path()), ["out"]);
}

#[test]
fn a_checkpoint_that_a_killed_replacement_moved_aside_is_back_for_the_next_writer() {
    let folder = tempfile::tempdir().unwrap();
    let (out, aside) = (folder.path().join("out"), folder.path().join("out.partial-7-0.old"));
    small(&out, false, 1).unwrap();
    for (replace, expected) in [(false, 1), (true, 3)] {
        std::fs::rename(&out, &aside).unwrap();
        std::fs::create_dir(folder.path().join("out.partial-7-0")).unwrap();
        let written = small(&out, replace, 3);
        assert_eq!(written.is_ok(), replace, "{written:?}");
        assert_eq!(Checkpoint::open(&out).unwrap().bytes("a.weight"), Some([expected; 4].as_slice()));
        small(&out, true, 1).unwrap();
        assert_eq!(entries(folder.path()), ["out"]);
    }
}

#[test]
fn what_a_killed_replacement_left_is_there_until_another_one_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let (out, aside) = (folder.path().join("out"), folder.path().join("out.partial-7-0.old"));
    let finished = folder.path().join("out.partial-7-0");
    small(&aside, false, 1).unwrap();
    small(&finished, false, 2).unwrap();
    // A model of somebody's, which nobody moved here.
    small(&folder.path().join("users"), false, 3).unwrap();
    std::fs::rename(folder.path().join("users"), &out).unwrap();
    let holds = |path: &Path| Checkpoint::open(path).unwrap().bytes("a.weight").map(|bytes| bytes[0]);
    let is_all_there = || [&aside, &finished, &out].map(|path| holds(path)) == [1, 2, 3].map(Some);
    assert!(matches!(small(&out, false, 4), Err(CheckpointError::Exists { .. })));
    assert!(is_all_there());
    let files = single(vec![tensor("a.weight", Dtype::U8, &[4])]);
    drop(CheckpointWriter::create(&out, &files, WriteMode::durable(true)).unwrap());
    assert!(is_all_there(), "the new one was not finished");
    small(&out, true, 4).unwrap();
    assert_eq!((entries(folder.path()), holds(&out)), (vec!["out".to_owned()], Some(4)));
}

#[test]
fn only_checkpoints_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let precious = folder.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    small(&precious, true, 1).expect("an empty directory may be replaced");
    std::fs::remove_file(precious.join("config.json")).unwrap();
    assert!(matches!(small(&precious, true, 2), Err(CheckpointError::Exists { .. })));
    let file = folder.path().join("file");
    std::fs::write(&file, "text").unwrap();
    assert!(matches!(small(&file, true, 2), Err(CheckpointError::Exists { .. })));
    assert_eq!(std::fs::read(&file).unwrap(), b"text");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    let error = small(&link, true, 2).unwrap_err().to_string();
    assert!(error.contains("is a link to a folder with something in it"), "{error}");
    assert!(small(Path::new("/"), false, 2).is_err());
    assert_eq!(entries(folder.path()), ["file", "link", "precious"]);
}

#[test]
fn an_empty_directory_behind_a_link_is_filled_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    std::fs::create_dir(&target).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    for (path, byte) in [(link.clone(), 1), (PathBuf::from(format!("{}/", link.display())), 2)] {
        small(&path, byte == 2, byte).unwrap();
        assert!(link.is_symlink());
        assert_eq!(entries(&target), ["config.json", "model.safetensors"]);
        assert_eq!(Checkpoint::open(&target).unwrap().bytes("a.weight"), Some([byte; 4].as_slice()));
        assert!(matches!(small(&path, false, 3), Err(CheckpointError::Exists { .. })));
        std::fs::remove_dir_all(&target).unwrap();
        assert!(small(&path, true, 3).unwrap_err().to_string().contains("leads to no folder"));
        std::fs::create_dir(&target).unwrap();
    }
    // What fails leaves nothing there.
    drop(CheckpointWriter::create(&link, &single(vec![]), WriteMode::default()).unwrap());
    assert_eq!(entries(&target), [""; 0]);
    assert_eq!(entries(folder.path()), ["link", "target"]);
}

#[test]
fn a_mount_point_is_filled_and_never_replaced() {
    struct Mounted(PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (other, out) = (folder.path().join("other"), folder.path().join("out"));
    for kind in [["-t", "tmpfs", "none"].as_slice(), &["--bind", other.to_str().unwrap()]] {
        for path in [&other, &out] {
            let _ = std::fs::remove_dir_all(path);
            std::fs::create_dir(path).unwrap();
        }
        let mount = std::process::Command::new("mount").args(kind).arg(&out).output();
        if !mount.is_ok_and(|mount| mount.status.success()) {
            eprintln!("nothing can be mounted here");
            return;
        }
        let mounted = Mounted(out.clone());
        small(&out, false, 1).unwrap();
        assert_eq!(entries(&out), ["config.json", "model.safetensors"]);
        for replace in [false, true] {
            let error = small(&out, replace, 2).unwrap_err().to_string();
            assert!(error.contains("mount point") && error.contains("choose a folder inside it"), "{error}");
        }
        small(&out.join("inside"), false, 3).unwrap();
        drop(mounted);
    }
    assert_eq!(entries(folder.path()), ["other", "out"]);
}

#[test]
fn an_empty_directory_is_filled_where_its_parent_is_not_writable() {
    let folder = tempfile::tempdir().unwrap();
    let (parent, out) = (folder.path().join("parent"), folder.path().join("parent/out"));
    std::fs::create_dir_all(&out).unwrap();
    std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o500)).unwrap();
    let is_bound = std::fs::write(parent.join("probe"), "").is_err();
    let made = small(&out, false, 1);
    let error = small(&out, true, 2);
    std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(0o700)).unwrap();
    made.unwrap();
    // The superuser writes anywhere.
    if is_bound {
        assert!(error.unwrap_err().to_string().contains("not writable"));
    }
    assert_eq!(entries(&out), ["config.json", "model.safetensors"]);
}

#[test]
fn a_destination_that_appears_meanwhile_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let writer = CheckpointWriter::create(&out, &single(vec![]), WriteMode::default()).unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("mine"), "").unwrap();
    assert!(matches!(writer.finish(), Err(CheckpointError::Exists { .. })));
    assert_eq!(entries(folder.path()), ["out"]);
    assert_eq!(entries(&out), ["mine"]);
}

#[test]
fn an_empty_directory_is_filled() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    std::fs::create_dir(&out).unwrap();
    CheckpointWriter::create(&out, &single(vec![]), WriteMode::default()).unwrap().finish().unwrap();
    assert_eq!(entries(folder.path()), ["out"]);
    assert!(!entries(&out).is_empty());
}

#[test]
fn a_disk_that_is_too_small_is_found_before_writing() {
    let folder = tempfile::tempdir().unwrap();
    let files = single(vec![tensor("w", Dtype::F32, &[1 << 30, 1 << 28])]);
    let error = CheckpointWriter::create(&folder.path().join("out"), &files, WriteMode::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::NoSpace { needed, .. } if needed > 1 << 60), "{error}");
    assert_eq!(error.exit_code(), ExitCode::NotWritable);
    assert!(error.to_string().contains("1152921504.61 GB needed"), "{error}");
    assert_eq!(entries(folder.path()), [""; 0]);
}

#[test]
fn layouts_that_no_reader_accepts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, tensors| OutputFile { name: name.to_owned(), tensors };
    let w = || vec![tensor("w", Dtype::F32, &[1])];
    let bad = [
        vec![],
        single(vec![tensor("w", Dtype::F32, &[1]), tensor("w", Dtype::F32, &[1])]),
        single(vec![tensor("__metadata__", Dtype::F32, &[1])]),
        single(vec![tensor("w", Dtype::F32, &[usize::MAX, 2])]),
        single(vec![tensor("w", Dtype::U8, &[usize::MAX]), tensor("v", Dtype::U8, &[1])]),
        single(vec![tensor("w", Dtype::F32, &[1; MAX + 1])]),
        single(vec![tensor("w", Dtype::F4, &[3])]),
        vec![file("a.safetensors", w()), file("b.safetensors", w())],
        vec![file("a.safetensors", w()), file("a.safetensors", vec![])],
        vec![file("model.safetensors", w()), file("b.safetensors", vec![])],
        vec![file("../a.safetensors", w())],
        vec![file("model.bin", w())],
    ];
    const MAX: usize = super::super::header::MAX_RANK;
    for files in bad {
        let result = CheckpointWriter::create(&folder.path().join("out"), &files, WriteMode::default());
        assert!(matches!(result, Err(CheckpointError::Output { .. })), "{files:?}");
    }
    assert_eq!(entries(folder.path()), [""; 0]);
}

#[test]
fn shards_and_index_are_as_transformers_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let tensors =
        vec![tensor("b", Dtype::F32, &[2]), tensor("a", Dtype::BF16, &[3]), tensor("é\u{7f}😀\"", Dtype::F16, &[1])];
    let files = shard_layout(tensors, 10);
    let mode = WriteMode::New { durable: true };
    let writer = CheckpointWriter::create(&folder.path().join("out"), &files, mode).unwrap();
    writer.put_file("config.json", b"{}").unwrap();
    writer.write_at("b", 0, &[1; 8]).unwrap();
    writer.write_at("a", 0, &[2; 6]).unwrap();
    writer.write_at("é\u{7f}😀\"", 0, &[3; 2]).unwrap();
    let out = writer.finish().unwrap();
    let index = std::fs::read_to_string(out.join("model.safetensors.index.json")).unwrap();
    let expected = r#"{
  "metadata": {
    "total_parameters": 6,
    "total_size": 16
  },
  "weight_map": {
    "a": "model-00002-of-00002.safetensors",
    "b": "model-00001-of-00002.safetensors",
    "\u00e9\u007f\ud83d\ude00\"": "model-00002-of-00002.safetensors"
  }
}
"#;
    assert_eq!(index, expected);
    let opened = Checkpoint::open(&out).unwrap();
    assert_eq!(opened.bytes("é\u{7f}😀\""), Some([3; 2].as_slice()));
    assert_eq!(opened.shards().len(), 2);
}
