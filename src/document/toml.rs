//! TOML to [`Node`].

use toml::de::{DeTable, DeValue};

use super::{Content, Entry, FieldError, Node};

/// Turns byte offsets into line numbers. Every key and every item asks, so that newlines are looked for once.
struct Lines {
    /// Where they stand, in order.
    newlines: Vec<usize>,
    /// Bytes of the text.
    length: usize,
}

impl Lines {
    fn of(text: &str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(offset, _)| offset).collect();
        Self { newlines, length: text.len() }
    }

    fn at(&self, offset: usize) -> Option<usize> {
        let before = self.newlines.partition_point(|newline| *newline < offset);
        (offset <= self.length).then_some(before + 1)
    }
}

pub(super) fn parse(text: &str) -> Result<Node, FieldError> {
    let lines = Lines::of(text);
    let table = DeTable::parse(text).map_err(|error| FieldError {
        key: String::new(),
        line: error.span().and_then(|span| lines.at(span.start)),
        reason: reason(text, &error),
    })?;
    Ok(Node { content: read_table(table.get_ref(), &lines, "")?, line: Some(1) })
}

/// The parser's words, with the key that it leaves out where one is there twice.
fn reason(text: &str, error: &toml::de::Error) -> String {
    let key = error.span().and_then(|span| text.get(span)).filter(|key| !key.trim().is_empty());
    match (error.message(), key) {
        ("duplicate key", Some(key)) => {
            format!("not valid TOML: the key `{}` is there twice; keep one of the two", key.trim())
        }
        (message, _) => format!("not valid TOML: {message}"),
    }
}

fn read_table(table: &DeTable<'_>, lines: &Lines, path: &str) -> Result<Content, FieldError> {
    // The parser sorts keys; spans give the file's order back.
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let read = entries.into_iter().map(|(key, value)| {
        let line = lines.at(key.span().start);
        let name = key.get_ref().to_string();
        let path = super::join(path, &name);
        let content = read_value(value.get_ref(), lines, &path, line)?;
        Ok(Entry { key: name, line, node: Node { content, line } })
    });
    Ok(Content::Table(read.collect::<Result<_, FieldError>>()?))
}

fn read_value(value: &DeValue<'_>, lines: &Lines, path: &str, line: Option<usize>) -> Result<Content, FieldError> {
    let refuse = |reason: String| Err(FieldError { key: path.to_owned(), line, reason });
    Ok(match value {
        DeValue::String(text) => Content::Text(text.to_string()),
        DeValue::Integer(integer) => match i128::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Content::Integer(number),
            Err(_) => return refuse(format!("{} is too large", integer.as_str())),
        },
        DeValue::Float(float) => match float.as_str().parse::<f64>() {
            Ok(number) => Content::Float(number),
            Err(_) => return refuse(format!("{} is not a number", float.as_str())),
        },
        DeValue::Boolean(truth) => Content::Bool(*truth),
        DeValue::Datetime(date) => return refuse(format!("a date ({date}) has no use here")),
        DeValue::Array(array) => {
            let nodes = array.iter().enumerate().map(|(index, item)| {
                let line = lines.at(item.span().start);
                let content = read_value(item.get_ref(), lines, &format!("{path}[{index}]"), line)?;
                Ok(Node { content, line })
            });
            Content::List(nodes.collect::<Result<_, FieldError>>()?)
        }
        DeValue::Table(table) => read_table(table, lines, path)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Content, Node};

    #[test]
    fn keeps_order_and_lines() {
        let node = Node::from_toml("b = 1\n\n[a]\nz = [1.5,\n  true]\ny = 0x10\n").unwrap();
        let Content::Table(entries) = &node.content else { panic!("{node:?}") };
        let names: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.line)).collect();
        assert_eq!(names, [("b", Some(1)), ("a", Some(3))]);
        let Content::Table(inner) = &entries[1].node.content else { panic!("{entries:?}") };
        assert_eq!(inner[0].key, "z");
        assert_eq!(inner[1].node.content, Content::Integer(16));
        let Content::List(items) = &inner[0].node.content else { panic!("{inner:?}") };
        assert_eq!(items[1], Node { content: Content::Bool(true), line: Some(5) });
    }

    #[test]
    fn a_key_that_is_there_twice_is_named() {
        for (text, line, key) in [
            ("seed = 1\nname = \"x\"\nseed = 2\n", 3, "`seed`"),
            ("[space]\na = 1\n[space]\nb = 2\n", 3, "`space`"),
            ("a = { b = 1, b = 2 }\n", 1, "`b`"),
        ] {
            let error = Node::from_toml(text).unwrap_err();
            assert_eq!(error.line, Some(line), "{error}");
            assert!(error.reason.contains(&format!("the key {key} is there twice")), "{error}");
        }
    }

    #[test]
    fn lines_are_counted_from_newline_to_newline() {
        let lines = super::Lines::of("a\n\nbc");
        let found: Vec<_> = (0..=6).map(|offset| lines.at(offset)).collect();
        assert_eq!(found, [Some(1), Some(1), Some(2), Some(3), Some(3), Some(3), None]);
        assert_eq!(super::Lines::of("").at(0), Some(1));
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let error = Node::from_toml("a = 1\nb = = 2\n").unwrap_err();
        assert_eq!(error.line, Some(2), "{error}");
    }
}
