//! `[models]`: where the models are and what they are called.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::{ModelSource, ModelsConfig};
use crate::checkpoint::{HubId, is_adapter_folder, resolve_location};
use crate::document::{Content, Field, FieldError};
use crate::natural_order::natural_order;

pub(super) fn read(field: &Field<'_>, directory: &Path) -> Result<ModelsConfig, FieldError> {
    let mut fields = field.fields()?;
    let base = fields.take("base").map(|field| locate_base(&field, directory)).transpose()?;
    let sources_field = fields.require("sources", "the models to merge: a list, or { glob = \"sweep/run-*\" }")?;
    let mut sources = read_sources(&sources_field, directory, base.as_ref())?;
    fields.finish()?;
    let mut base = base;
    name_models(base.iter_mut().chain(&mut sources));
    Ok(ModelsConfig { base, sources })
}

fn read_sources(
    field: &Field<'_>,
    directory: &Path,
    base: Option<&ModelSource>,
) -> Result<Vec<ModelSource>, FieldError> {
    if matches!(field.node.content, Content::Table(_)) {
        return read_glob(field, directory, base);
    }
    let items = field.list()?;
    if items.is_empty() {
        return Err(field.error("at least one model is needed"));
    }
    let mut sources: Vec<ModelSource> = Vec::with_capacity(items.len());
    for item in items {
        let source = locate(&item, directory)?;
        let source = with_base(source, base, directory).map_err(|reason| item.error(reason))?;
        if let Some(other) = sources.iter().find(|other| other.is_same_model(&source)) {
            return Err(item.error(format!("{:?} is the same model as {:?}", source.written, other.written)));
        }
        sources.push(source);
    }
    Ok(sources)
}

impl ModelSource {
    /// Whether both are made of the same folders.
    pub(super) fn is_same_model(&self, other: &Self) -> bool {
        (&self.location, &self.adapter) == (&other.location, &other.adapter)
    }

    /// What the model is called after: its adapter, where it has one.
    fn named_after(&self) -> &str {
        self.adapter.as_deref().unwrap_or(&self.location)
    }
}

/// A model, or `model+adapter`. A `+` inside an existing path is a part of it.
fn locate(field: &Field<'_>, directory: &Path) -> Result<ModelSource, FieldError> {
    let written = field.word()?;
    let not_text = || field.error("the path is not valid UTF-8");
    let (location, adapter) = split_adapter(written, directory).map_err(|reason| field.error(reason))?;
    let mut source = model(&place(location, directory), written).ok_or_else(not_text)?;
    if let Some(adapter) = adapter {
        source.adapter = Some(place(adapter, directory).to_str().ok_or_else(not_text)?.to_owned());
    }
    Ok(source)
}

fn locate_base(field: &Field<'_>, directory: &Path) -> Result<ModelSource, FieldError> {
    let base = locate(field, directory)?;
    with_base(base, None, directory).map_err(|reason| field.error(reason))
}

/// Where something lies: an absolute path, or a Hugging Face id.
fn place(written: &str, directory: &Path) -> PathBuf {
    let path = directory.join(written);
    match resolve(&path) {
        Some(found) => found,
        None if HubId::parse(written).is_some() => PathBuf::from(written),
        // Whoever opens it says that it is missing, and where it was looked for: bad data, not a bad run file.
        None => without_dots(&path),
    }
}

/// The parts of `model+adapter`. Of several `+`, the one counts in front of which there is a folder.
fn split_adapter<'a>(written: &'a str, directory: &Path) -> Result<(&'a str, Option<&'a str>), String> {
    if !written.contains('+') || directory.join(written).exists() {
        return Ok((written, None));
    }
    let splits: Vec<(&str, &str)> =
        written.match_indices('+').map(|(at, _)| (&written[..at], &written[at + 1..])).collect();
    let there = |text: &str| !text.is_empty() && directory.join(text).is_dir();
    let found = splits.iter().find(|(model, adapter)| there(model) && there(adapter));
    match found.or_else(|| splits.iter().find(|(model, _)| there(model))).or(splits.first()) {
        Some((model, adapter)) if !model.trim().is_empty() && !adapter.trim().is_empty() => Ok((model, Some(adapter))),
        _ => Err("expected a model, or `model+adapter` with both sides given".to_owned()),
    }
}

/// A folder that holds a LoRA adapter and no model is laid over the base of the run.
fn with_base(source: ModelSource, base: Option<&ModelSource>, directory: &Path) -> Result<ModelSource, String> {
    let holds_adapter = || resolve_location(&source.location, directory).is_ok_and(|folder| is_adapter_folder(&folder));
    if source.adapter.is_some() || !holds_adapter() {
        return Ok(source);
    }
    match base {
        Some(ModelSource { location, adapter: None, .. }) => {
            Ok(ModelSource { location: location.clone(), adapter: Some(source.location), ..source })
        }
        Some(_) => Err(format!(
            "{:?} is a LoRA adapter, and models.base has one already: write \"MODEL+{}\" with the model that it belongs to",
            source.written, source.written
        )),
        None => Err(format!(
            "{:?} is a LoRA adapter, not a whole model: write \"MODEL+{}\" with the model that it belongs to, or name that \
             model as models.base",
            source.written, source.written
        )),
    }
}

fn model(location: &Path, written: &str) -> Option<ModelSource> {
    let location = location.to_str()?.to_owned();
    Some(ModelSource { name: String::new(), written: written.to_owned(), location, adapter: None })
}

/// The absolute path of something that exists. A link at the end keeps its own name: it is what the user calls the
/// model.
fn resolve(path: &Path) -> Option<PathBuf> {
    if !path.exists() {
        return None;
    }
    match (path.parent(), path.components().next_back()) {
        (Some(parent), Some(Component::Normal(name))) => Some(std::fs::canonicalize(parent).ok()?.join(name)),
        _ => std::fs::canonicalize(path).ok(),
    }
}

/// Takes `.` and `..` out of a path that need not exist.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

fn read_glob(field: &Field<'_>, directory: &Path, base: Option<&ModelSource>) -> Result<Vec<ModelSource>, FieldError> {
    let mut fields = field.fields()?;
    let pattern_field = fields.require("glob", "a pattern such as \"sweep/run-*\"")?;
    fields.finish()?;
    let pattern = pattern_field.word()?;
    let folders = match_folders(directory, pattern);
    let mut sources = Vec::with_capacity(folders.len());
    for folder in folders {
        let Some(location) = resolve(&folder) else { continue };
        let written = folder.strip_prefix(directory).unwrap_or(&folder).display().to_string();
        let source =
            model(&location, &written).ok_or_else(|| pattern_field.error("matches a path that is not valid UTF-8"))?;
        if base.is_none_or(|base| !base.is_same_model(&source)) {
            sources.push(with_base(source, base, directory).map_err(|reason| pattern_field.error(reason))?);
        }
    }
    if sources.is_empty() {
        return Err(pattern_field.error(format!("no folder matches {pattern:?} in {}", directory.display())));
    }
    Ok(sources)
}

/// Folders that match a pattern, in natural order. `*` and `?` match inside one path component and skip hidden entries.
fn match_folders(directory: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut folders = vec![directory.to_owned()];
    for component in Path::new(pattern).components() {
        let text = component.as_os_str().to_string_lossy();
        let mut next = Vec::new();
        for folder in folders {
            if !text.contains(['*', '?']) {
                next.push(folder.join(component));
                continue;
            }
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            let matching = entries.flatten().filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with('.') == text.starts_with('.') && matches_pattern(&name, &text)
            });
            next.extend(matching.map(|entry| entry.path()));
        }
        folders = next;
    }
    folders.retain(|folder| folder.is_dir());
    folders.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    folders
}

fn matches_pattern(name: &str, pattern: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // `reached[i]`: the part of the pattern read so far matches the first `i` characters of the name.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for symbol in pattern.chars() {
        if symbol == '*' {
            for i in 1..reached.len() {
                reached[i] |= reached[i - 1];
            }
        } else {
            for i in (1..reached.len()).rev() {
                reached[i] = reached[i - 1] && (symbol == '?' || symbol == name[i - 1]);
            }
            reached[0] = false;
        }
    }
    reached[name.len()]
}

/// Names every model after its folder (that of its adapter, where it has one), with as many parents in front as it
/// takes to be unique.
fn name_models<'a>(models: impl Iterator<Item = &'a mut ModelSource>) {
    let mut models: Vec<_> = models.collect();
    let mut depth: BTreeMap<String, usize> = models.iter().map(|model| (model.named_after().to_owned(), 1)).collect();
    loop {
        let mut taken: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (location, depth) in &depth {
            taken.entry(last_components(location, *depth)).or_default().push(location.clone());
        }
        let mut changed = false;
        for location in taken.into_values().filter(|locations| locations.len() > 1).flatten() {
            let depth = depth.entry(location.clone()).or_default();
            if last_components(&location, *depth + 1) != last_components(&location, *depth) {
                *depth += 1;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    for model in &mut models {
        model.name = last_components(model.named_after(), depth.get(model.named_after()).copied().unwrap_or(1));
    }
    // One adapter over several models.
    let shares_name = |model: &ModelSource| {
        let twins = models.iter().filter(|other| other.name == model.name && !other.is_same_model(model));
        model.adapter.is_some() && twins.count() > 0
    };
    let shared: Vec<usize> = (0..models.len()).filter(|index| shares_name(models[*index])).collect();
    let longest = shared.iter().map(|index| models[*index].location.matches('/').count() + 1).max().unwrap_or(0);
    for depth in 1..=longest {
        let name = |index: &usize| {
            let model = &models[*index];
            format!("{}+{}", last_components(&model.location, depth), model.name)
        };
        let names: Vec<String> = shared.iter().map(name).collect();
        if depth == longest || names.iter().collect::<BTreeSet<_>>().len() == names.len() {
            shared.iter().zip(names).for_each(|(index, name)| models[*index].name = name);
            break;
        }
    }
}

/// The last parts of a path or id; a revision, which may have slashes, stays whole.
fn last_components(location: &str, count: usize) -> String {
    let revision = HubId::parse(location).and_then(|id| id.revision);
    let path = revision.map_or(location, |revision| &location[..location.len() - revision.len()]);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    parts[parts.len().saturating_sub(count)..].join("/") + revision.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(locations: &[&str]) -> Vec<String> {
        let mut models: Vec<_> =
            locations.iter().map(|location| model(Path::new(location), location).unwrap()).collect();
        name_models(models.iter_mut());
        models.into_iter().map(|model| model.name).collect()
    }

    #[test]
    fn revisions_are_part_of_a_name() {
        assert_eq!(names(&["org/a@v1", "org/a@refs/pr/1", "org/a"]), ["a@v1", "a@refs/pr/1", "a"]);
        assert_eq!(place("org/name@v1.0", Path::new("/nowhere")), Path::new("org/name@v1.0"));
    }

    #[test]
    fn names_are_folders_and_on_a_clash_their_parents_too() {
        assert_eq!(names(&["/a/x", "/a/y"]), ["x", "y"]);
        assert_eq!(names(&["/a/run-1/last", "/a/run-2/last", "/b"]), ["run-1/last", "run-2/last", "b"]);
        assert_eq!(names(&["/a/p/last", "/b/p/last"]), ["a/p/last", "b/p/last"]);
        assert_eq!(names(&["org/x", "other/x"]), ["org/x", "other/x"]);
        assert_eq!(names(&["/x", "/a/x"]), ["x", "a/x"]);
        assert_eq!(names(&["/a/x", "/a/x"]), ["x", "x"]);
    }

    #[test]
    fn numbers_sort_by_value() {
        let mut names = ["run-10", "run-2", "run-02b", "run-1", "run", "a9"];
        names.sort_by(|a, b| natural_order(a, b));
        assert_eq!(names, ["a9", "run", "run-1", "run-2", "run-02b", "run-10"]);
    }

    #[test]
    fn patterns_match_inside_one_component() {
        for (name, pattern, expected) in [
            ("run-10", "run-*", true),
            ("run-", "run-*", true),
            ("xrun-1", "run-*", false),
            ("run-1", "run-?", true),
            ("run-10", "run-?", false),
            ("abcabd", "a*d", true),
            ("abcabd", "*bc*", true),
            ("", "*", true),
        ] {
            assert_eq!(matches_pattern(name, pattern), expected, "{name} {pattern}");
        }
    }
}
