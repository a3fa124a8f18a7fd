//! From what a file calls a model to the directory that holds it: a path, or a Hugging Face id in the local cache.

use std::path::{Component, Path, PathBuf};

use super::error::{CheckpointError, quote};
use super::model::Checkpoint;

/// Longest `refs/<revision>` file that is read: a commit and a line end.
const MAX_REFERENCE: u64 = 256;

/// Finds a model: the path `location` (relative to `relative_to`) where it exists, else the Hugging Face id
/// `[organisation/]name[@revision]` in the local cache (`$HF_HUB_CACHE`, `$HF_HOME/hub`, `~/.cache/huggingface/hub`).
/// Nothing is downloaded.
///
/// # Errors
/// [`CheckpointError::Unresolved`] says where it looked and how to download the model.
pub fn resolve_location(location: &str, relative_to: &Path) -> Result<PathBuf, CheckpointError> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    resolve_in(location, relative_to, hub_directory(variable).as_deref())
}

/// Opens a model by the location that a recipe or run file gives, and lays the LoRA adapter over it where one is given.
///
/// # Errors
/// Whatever [`resolve_location`] and the opening of the two directories find.
pub fn open_model(location: &str, adapter: Option<&str>, relative_to: &Path) -> Result<Checkpoint, CheckpointError> {
    let path = match (resolve_location(location, relative_to), adapter) {
        (Err(CheckpointError::Unresolved { location: shown, reason }), Some(adapter))
            if relative_to.join(format!("{location}+{adapter}")).exists() =>
        {
            let reason = format!(
                "{reason}; where `+` is part of the path and no adapter follows, write {{ model = {{ path = \"...\" }} }}"
            );
            return Err(CheckpointError::Unresolved { location: shown, reason });
        }
        (path, _) => path?,
    };
    match adapter {
        None => Checkpoint::open(&path),
        Some(adapter) => Checkpoint::open_with_adapter(&path, &resolve_location(adapter, relative_to)?),
    }
}

/// The directory of downloaded models, by the rules of `huggingface_hub`.
fn hub_directory(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface").join("hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache").join("huggingface").join("hub")))
}

fn resolve_in(location: &str, relative_to: &Path, hub: Option<&Path>) -> Result<PathBuf, CheckpointError> {
    let unresolved = |reason| CheckpointError::Unresolved { location: quote(location), reason };
    if location.is_empty() {
        return Err(unresolved("expected a path or a Hugging Face id, found nothing".to_owned()));
    }
    let path = relative_to.join(location);
    if path.exists() {
        return Ok(path);
    }
    let looked = format!("there is no {}", path.display());
    let Some(HubId { repository: id, revision }) = HubId::parse(location) else {
        return Err(unresolved(format!("{looked}; expected a model's directory")));
    };
    let Some(hub) = hub else {
        return Err(unresolved(format!("{looked}, and no Hugging Face cache is known: set HF_HOME")));
    };
    let repository = hub.join(format!("models--{}", id.replace('/', "--")));
    find_snapshot(&repository, revision.unwrap_or("main")).map_err(|reason| {
        let download = match revision {
            Some(revision) => format!("hf download {id} --revision {revision}"),
            None => format!("hf download {id}"),
        };
        unresolved(format!("{looked}, and {reason}; to download it: `{download}`"))
    })
}

/// A model on the Hugging Face hub: `[organisation/]name[@revision]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubId<'a> {
    /// `[organisation/]name`.
    pub repository: &'a str,
    /// A branch, tag or commit; `None`: `main`.
    pub revision: Option<&'a str>,
}

impl<'a> HubId<'a> {
    /// Reads a location; `None` for what cannot be an id.
    pub fn parse(location: &'a str) -> Option<Self> {
        let (repository, revision) = match location.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (location, None),
        };
        let part = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
            (1..=96).contains(&part.len()) && part.bytes().all(allowed) && !part.starts_with(['.', '-'])
        };
        let is_name = repository.split('/').count() <= 2 && repository.split('/').all(part);
        (is_name && revision.is_none_or(stays_inside)).then_some(Self { repository, revision })
    }
}

/// Whether a revision, which may have slashes, stays in its folder.
fn stays_inside(revision: &str) -> bool {
    !revision.is_empty()
        && !revision.ends_with('/')
        && !revision.chars().any(char::is_control)
        && Path::new(revision).components().all(|component| matches!(component, Component::Normal(_)))
}

/// The snapshot of a revision: by the commit that `refs/<revision>` names, or by the commit itself.
fn find_snapshot(repository: &Path, revision: &str) -> Result<PathBuf, String> {
    if !repository.is_dir() {
        return Err(format!("no {} in the local Hugging Face cache", repository.display()));
    }
    let reference = repository.join("refs").join(revision);
    let commit = match super::mapping::read_capped(&reference, MAX_REFERENCE) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(_) => revision.to_owned(),
    };
    let is_commit = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    let snapshot = repository.join("snapshots").join(&commit);
    if is_commit && snapshot.is_dir() {
        Ok(snapshot)
    } else {
        Err(format!("{} has no snapshot of revision {}", repository.display(), quote(revision)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> tempfile::TempDir {
        let hub = tempfile::tempdir().unwrap();
        let repository = hub.path().join("models--org--name");
        std::fs::create_dir_all(repository.join("snapshots/0123abcd")).unwrap();
        std::fs::create_dir_all(repository.join("snapshots/4567")).unwrap();
        std::fs::create_dir_all(repository.join("refs/refs/pr")).unwrap();
        std::fs::write(repository.join("refs/main"), "0123abcd").unwrap();
        std::fs::write(repository.join("refs/refs/pr/1"), "4567\n").unwrap();
        std::fs::write(repository.join("refs/evil"), "../../..").unwrap();
        hub
    }

    #[test]
    fn ids_are_told_from_paths() {
        let id = |repository, revision| Some(HubId { repository, revision });
        assert_eq!(HubId::parse("org/model-7B"), id("org/model-7B", None));
        assert_eq!(HubId::parse("gpt2"), id("gpt2", None));
        assert_eq!(HubId::parse("org/name@refs/pr/1"), id("org/name", Some("refs/pr/1")));
        for path in ["../x", "/x", "a/b/c", "", "a/", "./run@2", "/runs/run@2", "a/b/c@d", "name@", "@d", "a@../b"] {
            assert_eq!(HubId::parse(path), None, "{path}");
        }
    }

    #[test]
    fn ids_lead_to_snapshots() {
        let hub = cache();
        let none = tempfile::tempdir().unwrap();
        // Deep enough that `../x` is not a matter of what else lies in the folder for temporary files.
        let deep = none.path().join("deep");
        let resolve = |location: &str| resolve_in(location, &deep, Some(hub.path()));
        let snapshots = hub.path().join("models--org--name/snapshots");
        assert_eq!(resolve("org/name").unwrap(), snapshots.join("0123abcd"));
        assert_eq!(resolve("org/name@4567").unwrap(), snapshots.join("4567"));
        assert_eq!(resolve("org/name@refs/pr/1").unwrap(), snapshots.join("4567"));
        let text = resolve("org/other").unwrap_err().to_string();
        assert!(text.contains("models--org--other") && text.contains("`hf download org/other`"), "{text}");
        let text = resolve("org/name@v2").unwrap_err().to_string();
        assert!(text.contains("revision `v2`") && text.contains("--revision v2"), "{text}");
        for location in ["org/name@evil", "org/name@../main", "org/name@", "a/b/c", "../x", "", "org/na me", "org/-x"] {
            assert!(resolve(location).is_err(), "{location}");
        }
    }

    #[test]
    fn an_existing_path_goes_before_the_cache() {
        let hub = cache();
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("org/name")).unwrap();
        let found = resolve_in("org/name", root.path(), Some(hub.path())).unwrap();
        assert_eq!(found, root.path().join("org/name"));
        let absolute = root.path().join("org").display().to_string();
        assert_eq!(resolve_in(&absolute, Path::new("elsewhere"), None).unwrap(), root.path().join("org"));
    }

    #[test]
    fn the_cache_is_where_the_hub_library_puts_it() {
        let with = |set: &[(&str, &str)]| {
            let set: Vec<(String, PathBuf)> = set.iter().map(|&(key, path)| (key.to_owned(), path.into())).collect();
            hub_directory(move |name| set.iter().find(|(key, _)| key == name).map(|(_, path)| path.clone()))
        };
        let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
        let expected = ["/a", "/b/hub", "/c/huggingface/hub", "/d/.cache/huggingface/hub"];
        for (skip, expected) in expected.iter().enumerate() {
            assert_eq!(with(&all[skip..]), Some(PathBuf::from(expected)));
        }
        assert_eq!(with(&[]), None);
    }
}
