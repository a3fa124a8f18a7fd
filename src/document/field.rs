//! Reading a document key by key.

use std::num::NonZeroUsize;

use super::{Content, Entry, FieldError, Node, join};
use crate::suggestion::{hint, nearest};

/// A value with the path that leads to it.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    /// The value.
    pub node: &'a Node,
    /// Dotted path; empty: the whole document.
    pub path: String,
    /// Of the key, or of the list's item; from 1. `None` where the parser does not say.
    pub line: Option<usize>,
}

impl<'a> Field<'a> {
    pub(super) const fn new(node: &'a Node, path: String, line: Option<usize>) -> Self {
        Self { node, path, line }
    }

    /// An error at this place.
    pub fn error(&self, reason: impl Into<String>) -> FieldError {
        FieldError { key: self.path.clone(), line: self.line, reason: reason.into() }
    }

    /// An error at this place: it is something else than `what`.
    pub fn expected(&self, what: &str) -> FieldError {
        let found = match &self.node.content {
            Content::Integer(number) => number.to_string(),
            Content::Float(number) => format!("{number:?}"),
            other => other.kind().to_owned(),
        };
        self.error(format!("expected {what}, found {found}"))
    }

    /// The value as text.
    ///
    /// # Errors
    /// When it is something else, also a number: a number as text must be quoted.
    pub fn text(&self) -> Result<&'a str, FieldError> {
        match &self.node.content {
            Content::Text(text) => Ok(text),
            Content::Integer(_) | Content::Float(_) => {
                Err(self.error(format!("expected text, found {}; quote it", self.node.content.kind())))
            }
            _ => Err(self.expected("text")),
        }
    }

    /// Text that is not empty.
    ///
    /// # Errors
    /// When it is empty or no text.
    pub fn word(&self) -> Result<&'a str, FieldError> {
        let text = self.text()?;
        if text.trim().is_empty() { Err(self.error("must not be empty")) } else { Ok(text) }
    }

    /// A finite number.
    ///
    /// # Errors
    /// When it is no number, infinite or NaN.
    pub fn number(&self) -> Result<f64, FieldError> {
        match &self.node.content {
            Content::Integer(number) => Ok(*number as f64),
            Content::Float(number) if number.is_finite() => Ok(*number),
            Content::Float(number) => Err(self.error(format!("must be a finite number, not {number}"))),
            _ => Err(self.expected("a number")),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it is something else.
    pub fn truth(&self) -> Result<bool, FieldError> {
        match &self.node.content {
            Content::Bool(truth) => Ok(*truth),
            _ => Err(self.expected("true or false")),
        }
    }

    /// A whole number of `0..=2^64 - 1`.
    ///
    /// # Errors
    /// When it is something else or out of that range.
    pub fn unsigned(&self) -> Result<u64, FieldError> {
        self.whole(0)
    }

    /// A whole number of `1..=2^64 - 1`.
    ///
    /// # Errors
    /// When it is something else or out of that range.
    pub fn positive(&self) -> Result<u64, FieldError> {
        self.whole(1)
    }

    fn whole(&self, least: u64) -> Result<u64, FieldError> {
        let Content::Integer(number) = &self.node.content else { return Err(self.expected("a whole number")) };
        if *number < i128::from(least) {
            return Err(self.error(format!("must be at least {least}, not {number}")));
        }
        u64::try_from(*number).map_err(|_| self.error(format!("must be at most 2^64 - 1, not {number}")))
    }

    /// A whole number that fits memory sizes.
    ///
    /// # Errors
    /// When it is something else or out of range.
    pub fn size(&self) -> Result<usize, FieldError> {
        self.fitting(self.unsigned()?)
    }

    /// A whole number of at least 1 that fits memory sizes.
    ///
    /// # Errors
    /// When it is something else or out of range.
    pub fn count(&self) -> Result<NonZeroUsize, FieldError> {
        let number = self.fitting(self.positive()?)?;
        NonZeroUsize::new(number).ok_or_else(|| self.error("must be at least 1"))
    }

    fn fitting(&self, number: u64) -> Result<usize, FieldError> {
        usize::try_from(number).map_err(|_| self.error(format!("{number} is too large")))
    }

    /// A whole number from 1 to `most`.
    ///
    /// # Errors
    /// When it is something else or out of that range.
    pub fn count_up_to(&self, most: usize) -> Result<NonZeroUsize, FieldError> {
        match self.count()? {
            count if count.get() <= most => Ok(count),
            count => Err(self.error(format!("must be at most {most}, but is {count}"))),
        }
    }

    /// The items of a list.
    ///
    /// # Errors
    /// When it is no list.
    pub fn list(&self) -> Result<Vec<Field<'a>>, FieldError> {
        let Content::List(nodes) = &self.node.content else { return Err(self.expected("a list")) };
        let item = |(index, node): (usize, &'a Node)| {
            Field::new(node, format!("{}[{index}]", self.path), node.line.or(self.line))
        };
        Ok(nodes.iter().enumerate().map(item).collect())
    }

    /// The items of a list of texts that are not empty.
    ///
    /// # Errors
    /// When it is something else.
    pub fn words(&self) -> Result<Vec<String>, FieldError> {
        self.list()?.iter().map(|item| item.word().map(str::to_owned)).collect()
    }

    /// The keys of a table, to be read one by one.
    ///
    /// # Errors
    /// When it is no table.
    pub fn fields(&self) -> Result<Fields<'a>, FieldError> {
        let Content::Table(entries) = &self.node.content else { return Err(self.expected("a table of keys")) };
        Ok(Fields { entries, path: self.path.clone(), line: self.line, known: Vec::new(), passed_over: None })
    }

    /// All keys of a table whose keys are names, in file order.
    ///
    /// # Errors
    /// When it is no table.
    pub fn named(&self) -> Result<Vec<(&'a str, Field<'a>)>, FieldError> {
        let Content::Table(entries) = &self.node.content else { return Err(self.expected("a table")) };
        Ok(entries.iter().map(|entry| (entry.key.as_str(), entry_field(&self.path, entry))).collect())
    }
}

fn entry_field<'a>(parent: &str, entry: &'a Entry) -> Field<'a> {
    Field::new(&entry.node, join(parent, &entry.key), entry.line)
}

/// A table that is read key by key. Call [`Fields::finish`] last: it refuses what nobody asked for.
#[derive(Debug)]
pub struct Fields<'a> {
    entries: &'a [Entry],
    path: String,
    line: Option<usize>,
    known: Vec<&'static str>,
    /// How keys begin that nobody has to ask for.
    passed_over: Option<&'static str>,
}

impl<'a> Fields<'a> {
    /// The value of `key`; nothing when it is absent or null.
    pub fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (entry.node.content != Content::Null).then(|| entry_field(&self.path, entry))
    }

    /// The value of a key that must be there. `meaning` says in a few words what is missing.
    ///
    /// # Errors
    /// When it is absent; a near miss among the keys is pointed out.
    pub fn require(&mut self, key: &'static str, meaning: &str) -> Result<Field<'a>, FieldError> {
        if let Some(field) = self.take(key) {
            return Ok(field);
        }
        let others = self.entries.iter().map(|entry| entry.key.as_str()).filter(|other| !self.known.contains(other));
        let hint = nearest(key, others).map(|found| format!("; is `{found}` meant to be it?")).unwrap_or_default();
        Err(FieldError { key: join(&self.path, key), line: self.line, reason: format!("missing: {meaning}{hint}") })
    }

    /// Lets keys pass that begin with `prefix`, and gives them in file order.
    pub fn pass_over(&mut self, prefix: &'static str) -> Vec<&'a str> {
        self.passed_over = Some(prefix);
        self.entries.iter().map(|entry| entry.key.as_str()).filter(|key| key.starts_with(prefix)).collect()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// On the first key that nobody asked for, with the nearest key that is known.
    pub fn finish(self) -> Result<(), FieldError> {
        let passes = |key: &str| self.passed_over.is_some_and(|prefix| key.starts_with(prefix));
        let is_unknown = |entry: &&Entry| !self.known.contains(&entry.key.as_str()) && !passes(&entry.key);
        let Some(entry) = self.entries.iter().find(is_unknown) else { return Ok(()) };
        let hint = hint(&entry.key, self.known.iter().copied());
        let known = if hint.is_empty() { format!("; known here: {}", self.known.join(", ")) } else { hint };
        Err(entry_field(&self.path, entry).error(format!("unknown key{known}")))
    }

    /// An error at the table itself.
    pub fn error(&self, reason: impl Into<String>) -> FieldError {
        FieldError { key: self.path.clone(), line: self.line, reason: reason.into() }
    }

    /// An error at one of the table's keys, which somebody found who does not know where the table stands.
    pub fn located(&self, error: FieldError) -> FieldError {
        let entry = self.entries.iter().find(|entry| entry.key == error.key);
        let line = entry.map_or(self.line, |entry| entry.line);
        FieldError { key: join(&self.path, &error.key), line, ..error }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FieldError, Node};

    #[test]
    fn unknown_and_missing_keys_are_named_with_a_suggestion() {
        let node = Node::from_toml("[space]\nlayer_group = 3\n").unwrap();
        let mut root = node.root().fields().unwrap();
        let space = root.take("space").unwrap();
        let mut fields = space.fields().unwrap();
        assert!(fields.take("layer_groups").is_none());
        let error = fields.finish().unwrap_err().to_string();
        assert_eq!(error, "line 2: `space.layer_group`: unknown key; did you mean `layer_groups`?");

        let mut fields = space.fields().unwrap();
        let error = fields.require("layer_groups", "the number of groups").unwrap_err().to_string();
        assert!(error.contains("`space.layer_groups`") && error.contains("layer_group`"), "{error}");
    }

    #[test]
    fn wrong_types_are_named() {
        let node = Node::from_toml("a = \"x\"\nb = [1, -1]\n").unwrap();
        let mut root = node.root().fields().unwrap();
        assert_eq!(
            root.take("a").unwrap().number().unwrap_err().to_string(),
            "line 1: `a`: expected a number, found text"
        );
        let fraction = Node::from_toml("n = 20.5\nm = 3\n").unwrap();
        let mut numbers = fraction.root().fields().unwrap();
        let error = numbers.take("n").unwrap().count().unwrap_err().to_string();
        assert_eq!(error, "line 1: `n`: expected a whole number, found 20.5");
        assert_eq!(numbers.take("m").unwrap().list().unwrap_err().to_string(), "line 2: `m`: expected a list, found 3");
        let items = root.take("b").unwrap().list().unwrap();
        assert_eq!(items[0].count().unwrap().get(), 1);
        let error = items[1].unsigned().unwrap_err().to_string();
        assert!(error.contains("`b[1]`") && error.contains("-1"), "{error}");
    }

    #[test]
    fn numbers_out_of_range_are_told_the_nearest_bound() {
        let node = Node::from_toml("a = [-5, 0, 1, 18446744073709551616]\n").unwrap();
        let items = node.root().fields().unwrap().take("a").unwrap().list().unwrap();
        assert_eq!(items[0].positive().unwrap_err().reason, "must be at least 1, not -5");
        assert_eq!(items[0].unsigned().unwrap_err().reason, "must be at least 0, not -5");
        assert_eq!(items[1].count().unwrap_err().reason, "must be at least 1, not 0");
        assert_eq!((items[1].unsigned().unwrap(), items[2].positive().unwrap()), (0, 1));
        let error = items[3].unsigned().unwrap_err();
        assert_eq!(error.reason, "must be at most 2^64 - 1, not 18446744073709551616");
    }

    #[test]
    fn errors_that_others_found_get_their_place() {
        let node = Node::from_toml("x = 1\n[a]\nb = 2\n").unwrap();
        let mut root = node.root().fields().unwrap();
        let fields = root.take("a").unwrap().fields().unwrap();
        let located = |key: &str| fields.located(FieldError::new(key, "is wrong")).to_string();
        assert_eq!(located("b"), "line 3: `a.b`: is wrong");
        assert_eq!(located("c"), "line 2: `a.c`: is wrong");
    }
}
