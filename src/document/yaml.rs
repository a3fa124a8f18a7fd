//! YAML to [`Node`].

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::{Content, Entry, FieldError, Node};

pub(super) fn parse(text: &str) -> Result<Node, FieldError> {
    // Spellings that YAML 1.1 and 1.2 read as different numbers stay text: whoever wants a number sees it refused or
    // parsed in decimal, never silently changed.
    let options = serde_saphyr::options! {
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        // `y` and `n` are names; whoever wants a truth value takes `yes` and `off` for one.
        strict_booleans: true,
        with_snippet: false,
        // Refused by whoever reads the number, with the name of its key.
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough,
    };
    serde_saphyr::from_str_with_options::<Located>(text, options).map(|located| located.0).map_err(|error| FieldError {
        key: String::new(),
        line: error.location().and_then(|location| usize::try_from(location.line()).ok()).filter(|line| *line > 0),
        reason: reason(&error.without_snippet().to_string()),
    })
}

/// The parser's words, without its advice to programmers.
fn reason(said: &str) -> String {
    if said.contains("multiple YAML documents") {
        return "several documents, with `---` between them: one file holds one; keep the one that is meant".to_owned();
    }
    let said = said.split_once(", set DuplicateKeyPolicy").map_or(said, |(said, _)| said);
    format!("not valid YAML: {said}")
}

/// A node with the line that the parser gives it.
struct Located(Node);

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        let line = usize::try_from(spanned.referenced.line()).ok().filter(|line| *line > 0);
        Ok(Self(Node { content: spanned.value, line }))
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Content, E> {
        Ok(Content::Bool(truth))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Content, E> {
        Ok(Content::Integer(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Content, E> {
        Ok(Content::Integer(number.into()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Content, E> {
        Ok(Content::Integer(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Content, E> {
        Ok(Content::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Content, E> {
        Ok(Content::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut nodes = Vec::new();
        while let Some(Located(node)) = access.next_element()? {
            nodes.push(node);
        }
        Ok(Content::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<String>()? {
            let Located(node) = access.next_value()?;
            entries.push(Entry { key, line: node.line, node });
        }
        Ok(Content::Table(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Content, Node};

    #[test]
    fn complaints_are_for_people() {
        let complaint = |text: &str| Node::from_yaml(text).unwrap_err().to_string();
        assert!(complaint("a: 1\n---\na: 2\n").contains("one file holds one"));
        let twice = complaint("a: 1\na: 2\n");
        assert!(twice.contains("duplicate") && !twice.contains("Policy"), "{twice}");
    }

    #[test]
    fn reads_what_people_write() {
        let node = Node::from_yaml("a: 1e-1\nb: [0, 0.5, x]\nc:\nd: {e: true}\nf: 007\n").unwrap();
        let Content::Table(entries) = &node.content else { panic!("{node:?}") };
        assert_eq!(entries[0].node.content, Content::Float(0.1));
        let Content::List(items) = &entries[1].node.content else { panic!("{entries:?}") };
        assert_eq!(items[0].content, Content::Integer(0));
        assert_eq!(items[2].content, Content::Text("x".to_owned()));
        assert_eq!(entries[2].node.content, Content::Null);
        assert!(matches!(entries[3].node.content, Content::Table(_)));
        assert_eq!(entries[3].line, Some(4));
        assert_eq!(entries[4].node.content, Content::Text("007".to_owned()));
    }

    #[test]
    fn refuses_duplicates_and_broken_text() {
        assert!(Node::from_yaml("a: 1\na: 2\n").is_err());
        let error = Node::from_yaml("a: [1\nb: 2\n").unwrap_err();
        assert!(error.line.is_some(), "{error}");
    }
}
