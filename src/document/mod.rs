//! Documents that people write (TOML, YAML), as one tree that remembers lines, so that every complaint names its key.
//!
//! [`Fields`] reads a table key by key; whatever was not asked for is an unknown key, refused with a suggestion.

mod field;
mod toml;
mod yaml;

pub use field::{Field, Fields};

/// A value of a document with the line it starts on.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What stands there.
    pub content: Content,
    /// From 1; `None` where the parser does not say.
    pub line: Option<usize>,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// YAML's `null`, or a key with nothing behind it; TOML has none.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number; out of the range of its key, it is refused by whoever reads it.
    Integer(i128),
    /// A number with a point or an exponent. Infinities and NaN come through; [`Field::number`] refuses them.
    Float(f64),
    /// Text, quoted or not.
    Text(String),
    /// Values in file order.
    List(Vec<Node>),
    /// In file order.
    Table(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Without quotes.
    pub key: String,
    /// Of the key, in YAML of its value; from 1. `None` where the parser does not say.
    pub line: Option<usize>,
    /// The key's value.
    pub node: Node,
}

impl Content {
    /// What it is, in the words of a message.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a truth value",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl Node {
    /// Reads TOML.
    ///
    /// # Errors
    /// A [`FieldError`] without a key when the text is not TOML.
    pub fn from_toml(text: &str) -> Result<Self, FieldError> {
        toml::parse(text)
    }

    /// Reads one YAML document. Duplicate keys are errors.
    ///
    /// # Errors
    /// A [`FieldError`] without a key when the text is not YAML.
    pub fn from_yaml(text: &str) -> Result<Self, FieldError> {
        yaml::parse(text)
    }

    /// The line of the key that this path leads to, or of the last one on the way there.
    pub fn line_of(&self, path: &[&str]) -> Option<usize> {
        let [key, rest @ ..] = path else { return None };
        let Content::Table(entries) = &self.content else { return None };
        let entry = entries.iter().find(|entry| entry.key == *key)?;
        entry.node.line_of(rest).or(entry.line)
    }

    /// The line of what a path of an error leads to (dots between keys, `[index]` behind those of lists), or of the
    /// last part on the way there.
    pub fn line_at(&self, path: &str) -> Option<usize> {
        match &self.content {
            Content::Table(entries) => {
                let path = path.strip_prefix('.').unwrap_or(path);
                let behind = |entry: &Entry| rest_behind(path, &join("", &entry.key));
                let (entry, rest) = entries.iter().find_map(|entry| Some((entry, behind(entry)?)))?;
                entry.node.line_at(rest).or(entry.line)
            }
            Content::List(items) => {
                let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                item.line_at(rest).or(item.line)
            }
            _ => None,
        }
    }

    /// The tree as the value of no key: start here.
    pub fn root(&self) -> Field<'_> {
        Field::new(self, String::new(), self.line)
    }
}

/// The bytes of a document as text.
///
/// # Errors
/// A [`FieldError`] without a key, with the line of the first byte that is not UTF-8.
pub fn text_of(bytes: Vec<u8>) -> Result<String, FieldError> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        let byte = error.as_bytes()[at];
        let reason = format!("not UTF-8 text: byte {at} (from 0) is 0x{byte:02x}; save the file as UTF-8");
        FieldError { key: String::new(), line: Some(line), reason }
    })
}

/// What is wrong with one key of a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct FieldError {
    /// Dotted path of the key; empty: the whole document.
    pub key: String,
    /// From 1.
    pub line: Option<usize>,
    /// What is wrong, for people; where possible, with what is expected or was meant.
    pub reason: String,
}

impl FieldError {
    /// Of a key that the document does not have, or whose line is not known.
    pub fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { key: key.into(), line: None, reason: reason.into() }
    }

    fn describe(&self) -> String {
        let line = self.line.map(|line| format!("line {line}: ")).unwrap_or_default();
        if self.key.is_empty() {
            format!("{line}{}", self.reason)
        } else {
            format!("{line}`{}`: {}", self.key, self.reason)
        }
    }
}

/// What stands in a path behind the key that it begins with; `None`: it begins with another one.
fn rest_behind<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    path.strip_prefix(key).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// `parent.key`, with quotes where the key is not a plain word.
pub fn join(parent: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
    let key = if plain { key.to_owned() } else { format!("{key:?}") };
    if parent.is_empty() { key } else { format!("{parent}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::{Node, text_of};

    #[test]
    fn paths_of_errors_lead_to_lines() {
        let yaml = Node::from_yaml("a: 1\nab:\n- x: 1\n- x: 2\n  \"y.z\":\n    v: [1,\n        2]\n").unwrap();
        let toml = Node::from_toml("a = 1\n[[ab]]\nx = 1\n[[ab]]\nx = 2\n[ab.'y.z']\nv = [1,\n2]\n").unwrap();
        for (path, in_yaml, in_toml) in [
            ("a", 1, 1),
            ("ab[0].x", 3, 3),
            ("ab[1].x", 4, 5),
            ("ab[1].\"y.z\".v[1]", 7, 8),
            ("ab[1].\"y.z\".v[2]", 6, 7),
            ("ab[0].missing", 3, 2),
        ] {
            assert_eq!((yaml.line_at(path), toml.line_at(path)), (Some(in_yaml), Some(in_toml)), "{path}");
        }
        for (path, line) in [("", None), ("b", None), ("abc", None), ("[0]", None), ("a[", Some(1))] {
            assert_eq!(yaml.line_at(path), line, "{path}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_names_byte_and_line() {
        assert_eq!(text_of(b"a = 1\n".to_vec()).unwrap(), "a = 1\n");
        let error = text_of(b"a = 1\nb = \"\xe9\"\n".to_vec()).unwrap_err();
        assert_eq!(error.to_string(), "line 2: not UTF-8 text: byte 11 (from 0) is 0xe9; save the file as UTF-8");
    }
}
