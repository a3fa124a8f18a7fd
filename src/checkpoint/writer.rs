//! Writes a checkpoint: all bytes from any thread in any order, visible all at once or not at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::io::Errno;

use super::directory::{INDEX_FILE, SINGLE_FILE, is_plain_name};
use super::disk::{check_space, create_new, no_space, reserve, sync, sync_directory, write_error};
use super::error::{CheckpointError, quote};
use super::mapping::{open_regular, start_writing};
use super::output::{OutputFile, Place, Plan, PlannedFile, index_json, plan};
use super::partial::{PartialDirectory, Way, check_destination, split};
use super::spare::{OpenFile, SpareCheckpoints};

/// Room left free for the small files of a checkpoint, in bytes.
const RESERVE: u64 = 64 << 10;

/// A checkpoint in the making, in `<destination>.partial-...` beside its destination; inside it where that is an empty
/// directory that nothing can take the place of.
///
/// The weight files are exactly those that the safetensors library would write for the same tensors and the metadata
/// `{"format": "pt"}`. Dropped without [`Self::finish`], everything is removed again.
#[derive(Debug)]
pub struct CheckpointWriter {
    destination: PathBuf,
    /// Directories that get a new entry: the destination's parent, and those above it where parents were missing.
    entries: Vec<PathBuf>,
    partial: PartialDirectory,
    plan: Plan,
    files: Vec<OpenFile>,
    /// Where the files go when the checkpoint is not needed any more.
    spares: Option<SpareCheckpoints>,
    written: BTreeMap<String, AtomicU64>,
    durable: bool,
    replace: bool,
}

impl CheckpointWriter {
    /// Starts a checkpoint at `destination`, which must not exist or be an empty directory. Its parent directories are made where they are
    /// missing. Disk space for all weights is looked for here, and reserved on disks, so that a full one shows now.
    /// With `durable` the finished checkpoint survives a power cut.
    ///
    /// # Errors
    /// The destination exists, there is not enough space, the folder is not writable, or the files break the format
    /// (duplicate names, shapes that overflow, names that leave the folder).
    pub fn create(destination: &Path, files: &[OutputFile], durable: bool) -> Result<Self, CheckpointError> {
        Self::start(destination, files, durable, false, None)
    }

    /// As [`Self::create`], but [`Self::finish`] replaces what is at the destination: an empty directory, or one that
    /// holds a `config.json`. The old checkpoint stays whole until the new one is.
    ///
    /// # Errors
    /// As [`Self::create`]; also when the destination is anything but a checkpoint.
    pub fn create_replacing(destination: &Path, files: &[OutputFile], durable: bool) -> Result<Self, CheckpointError> {
        Self::start(destination, files, durable, true, None)
    }

    /// As [`Self::create_replacing`], not durable; written over the pages of a spare checkpoint of the same layout
    /// where there is one.
    ///
    /// # Errors
    /// As [`Self::create_replacing`].
    pub fn create_over(
        destination: &Path,
        files: &[OutputFile],
        spares: &SpareCheckpoints,
    ) -> Result<Self, CheckpointError> {
        Self::start(destination, files, false, true, Some(spares))
    }

    fn start(
        destination: &Path,
        files: &[OutputFile],
        durable: bool,
        replace: bool,
        spares: Option<&SpareCheckpoints>,
    ) -> Result<Self, CheckpointError> {
        let invalid = |reason| CheckpointError::Output { path: destination.to_owned(), reason };
        let plan = plan(files).map_err(invalid)?;
        // Without a separator at its end: with one, a link's name is that of what it leads to.
        let destination = &destination.components().collect::<PathBuf>();
        let way = check_destination(destination, replace)?;
        let entries = match way {
            Way::Beside => directories_that_change(destination)?,
            Way::Inside => vec![destination.clone()],
        };
        let partial = PartialDirectory::create(destination, way)?;
        let spare = spares.map(|spares| spares.take(&plan, partial.path())).transpose()?.flatten();
        let open = match spare {
            Some(files) => files,
            None => create_files(destination, &partial, &plan)?,
        };
        for (open, file) in open.iter().zip(&plan.files) {
            let failed = |source| write_error(&open.path, partial.path(), file.size, source);
            open.file.write_all_at(&file.header, 0).map_err(failed)?;
        }
        let written = plan.places.keys().map(|name| (name.clone(), AtomicU64::new(0))).collect();
        Ok(Self {
            destination: destination.to_owned(),
            entries,
            partial,
            plan,
            files: open,
            spares: spares.cloned(),
            written,
            durable,
            replace,
        })
    }

    /// Writes a part of a tensor: `bytes` from byte `offset` of it on. Any thread, any order; every byte exactly once.
    ///
    /// # Errors
    /// The tensor is unknown, the part does not lie inside it, or the disk refuses.
    pub fn write_at(&self, tensor: &str, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let length = bytes.len() as u64;
        let (Some(&Place { file, start, length: whole }), Some(written)) =
            (self.plan.places.get(tensor), self.written.get(tensor))
        else {
            return Err(self.invalid(format!("tensor {} was not announced", quote(tensor))));
        };
        if offset.checked_add(length).is_none_or(|end| end > whole) {
            return Err(self.invalid(format!(
                "{length} bytes from byte {offset} on do not fit tensor {} of {whole} bytes",
                quote(tensor)
            )));
        }
        let OpenFile { path, file, pages } = &self.files[file];
        if !pages.as_ref().is_some_and(|pages| pages.write_at(start + offset, bytes)) {
            file.write_all_at(bytes, start + offset)
                .map_err(|source| write_error(path, self.partial.path(), length, source))?;
        }
        if self.durable {
            // So that little is left to wait for at the end.
            start_writing(file, start + offset, length);
        }
        written.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Whether parts of a tensor that are written at the same time do not wait for each other: a file system takes one
    /// write at a time to a file, the pages of a spare file any number.
    pub fn writes_in_parallel(&self, tensor: &str) -> bool {
        let place = self.plan.places.get(tensor);
        place.and_then(|place| self.files.get(place.file)).is_some_and(|open| open.pages.is_some())
    }

    /// Adds a small file (`config.json`, a recipe, a model card).
    ///
    /// # Errors
    /// The name is not a plain file name or is taken, or the disk refuses.
    pub fn put_file(&self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let (path, mut file) = self.add(name)?;
        let failed = |source| write_error(&path, self.partial.path(), bytes.len() as u64, source);
        file.write_all(bytes).map_err(failed)?;
        self.settle(&path, &file)
    }

    /// Copies a file (a sidecar) under its own name. Links are followed; the copy has this process's ownership and
    /// mode.
    ///
    /// # Errors
    /// `source` is not a regular file, its name is taken, or the disk refuses.
    pub fn copy_file(&self, source: &Path) -> Result<(), CheckpointError> {
        let (mut from, identity) = open_regular(source)?;
        let name = source.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (path, mut file) = self.add(name)?;
        std::io::copy(&mut from, &mut file)
            .map_err(|source| write_error(&path, self.partial.path(), identity.size, source))?;
        self.settle(&path, &file)
    }

    fn add(&self, name: &str) -> Result<(PathBuf, File), CheckpointError> {
        if !is_plain_name(name) || name == INDEX_FILE {
            return Err(self.invalid(format!("{} cannot be the name of an added file", quote(name))));
        }
        let path = self.partial.path().join(name);
        let file = create_new(&path)?;
        Ok((path, file))
    }

    fn settle(&self, path: &Path, file: &File) -> Result<(), CheckpointError> {
        if self.durable { sync(path, file) } else { Ok(()) }
    }

    /// Completes the checkpoint and moves it to its destination in one step; the destination's path.
    ///
    /// # Errors
    /// A tensor has not been written completely, the destination exists by now, or the disk refuses; nothing is left
    /// behind then, and a checkpoint that was to be replaced is as it was. Only where the very last step fails, making
    /// the move itself durable, the checkpoint is in place.
    pub fn finish(mut self) -> Result<PathBuf, CheckpointError> {
        for ((name, place), written) in self.plan.places.iter().zip(self.written.values()) {
            let (written, whole) = (written.load(Ordering::Relaxed), place.length);
            if written != whole {
                let reason = format!("{written} bytes were written of tensor {}, which has {whole}", quote(name));
                return Err(self.invalid(reason));
            }
        }
        if self.files.len() > 1 || self.plan.files[0].name != SINGLE_FILE {
            let path = self.partial.path().join(INDEX_FILE);
            let mut file = create_new(&path)?;
            let json = index_json(&self.plan);
            let failed = |source| write_error(&path, self.partial.path(), json.len() as u64, source);
            file.write_all(json.as_bytes()).map_err(failed)?;
            self.settle(&path, &file)?;
        }
        if self.durable {
            self.files.par_iter().try_for_each(|open| sync(&open.path, &open.file))?;
            sync_directory(self.partial.path())?;
        }
        self.partial.publish(&self.destination, self.replace)?;
        if let Some(spares) = &self.spares {
            spares.keep_open(&self.destination, std::mem::take(&mut self.files));
        }
        if self.durable {
            self.entries.iter().try_for_each(|directory| sync_directory(directory))?;
        }
        Ok(self.destination.clone())
    }

    fn invalid(&self, reason: String) -> CheckpointError {
        CheckpointError::Output { path: self.destination.clone(), reason }
    }
}

/// New files of the planned sizes.
fn create_files(destination: &Path, partial: &PartialDirectory, plan: &Plan) -> Result<Vec<OpenFile>, CheckpointError> {
    let needed = plan.files.iter().fold(RESERVE, |sum, file| sum.saturating_add(file.size));
    check_space(destination, partial.path(), needed)?;
    let create = |file: &PlannedFile| {
        let path = partial.path().join(&file.name);
        let handle = create_new(&path)?;
        reserve(&handle, file.size).map_err(|error| match error {
            Errno::NOSPC | Errno::DQUOT => no_space(destination, partial.path(), needed),
            error => CheckpointError::Write { path: path.clone(), source: error.into() },
        })?;
        Ok(OpenFile { path, file: handle, pages: None })
    };
    plan.files.iter().map(create).collect()
}

/// The destination's parent, and above it every directory up to the first that is there already.
fn directories_that_change(destination: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let (parent, _) = split(destination)?;
    let mut directories = Vec::new();
    for directory in parent.ancestors() {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        directories.push(directory.to_owned());
        if directory.is_dir() {
            break;
        }
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
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
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn small(destination: &Path, replace: bool, byte: u8) -> Result<PathBuf, CheckpointError> {
        let files = single(vec![tensor("a.weight", Dtype::U8, &[4])]);
        let writer = CheckpointWriter::start(destination, &files, true, replace, None)?;
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
            let writer = CheckpointWriter::create(&folder.path().join("out"), &single(tensors.clone()), false).unwrap();
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
        let writer = CheckpointWriter::create(&destination, &files, false).unwrap();
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
        let writer = CheckpointWriter::create(&folder.path().join("out"), &single(vec![]), false).unwrap();
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
        let writer = CheckpointWriter::create(&folder.path().join("out"), &files, false).unwrap();
        writer.write_at("w", 4, &[0; 12]).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(error.to_string().contains("12 bytes were written of tensor `w`, which has 16"), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Internal);
        drop(CheckpointWriter::create(&folder.path().join("out"), &files, false).unwrap());
        assert_eq!(entries(folder.path()), [""; 0]);
    }

    #[test]
    fn parts_outside_of_a_tensor_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = single(vec![tensor("w", Dtype::U8, &[4])]);
        let writer = CheckpointWriter::create(&folder.path().join("out"), &files, false).unwrap();
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
        drop(CheckpointWriter::create(&link, &single(vec![]), false).unwrap());
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
        let writer = CheckpointWriter::create(&out, &single(vec![]), false).unwrap();
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
        CheckpointWriter::create(&out, &single(vec![]), false).unwrap().finish().unwrap();
        assert_eq!(entries(folder.path()), ["out"]);
        assert!(!entries(&out).is_empty());
    }

    #[test]
    fn a_disk_that_is_too_small_is_found_before_writing() {
        let folder = tempfile::tempdir().unwrap();
        let files = single(vec![tensor("w", Dtype::F32, &[1 << 30, 1 << 28])]);
        let error = CheckpointWriter::create(&folder.path().join("out"), &files, false).unwrap_err();
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
            let result = CheckpointWriter::create(&folder.path().join("out"), &files, false);
            assert!(matches!(result, Err(CheckpointError::Output { .. })), "{files:?}");
        }
        assert_eq!(entries(folder.path()), [""; 0]);
    }

    #[test]
    fn shards_and_index_are_as_transformers_writes_them() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = vec![
            tensor("b", Dtype::F32, &[2]),
            tensor("a", Dtype::BF16, &[3]),
            tensor("é\u{7f}😀\"", Dtype::F16, &[1]),
        ];
        let files = shard_layout(tensors, 10);
        let writer = CheckpointWriter::create(&folder.path().join("out"), &files, true).unwrap();
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
}
