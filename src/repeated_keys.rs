//! Finds keys that appear twice in a JSON object, which `serde_json` lets pass: it takes the last value.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Characters of a repeated key that a message shows.
const SHOWN: usize = 80;

/// Refuses JSON in which an object has a key twice: nobody can tell which of the two values is meant (RFC 8259,
/// section 4).
///
/// # Errors
/// The text is not JSON, or a key appears twice in one object; the first such key is named.
pub(crate) fn refuse_repeated_keys(bytes: &[u8]) -> serde_json::Result<()> {
    serde_json::from_slice::<KeysOnce>(bytes).map(|_| ())
}

/// Any JSON value, passed over.
struct KeysOnce;

impl<'de> Deserialize<'de> for KeysOnce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Look)
    }
}

struct Look;

impl<'de> Visitor<'de> for Look {
    type Value = KeysOnce;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeysOnce, A::Error> {
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if seen.contains(&key) {
                let shown: String = key.chars().take(SHOWN).collect();
                return Err(A::Error::custom(format_args!("the key {shown:?} appears twice in one object")));
            }
            seen.insert(key);
            map.next_value::<KeysOnce>()?;
        }
        Ok(KeysOnce)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<KeysOnce, A::Error> {
        while list.next_element::<KeysOnce>()?.is_some() {}
        Ok(KeysOnce)
    }

    fn visit_bool<E>(self, _: bool) -> Result<KeysOnce, E> {
        Ok(KeysOnce)
    }

    fn visit_i64<E>(self, _: i64) -> Result<KeysOnce, E> {
        Ok(KeysOnce)
    }

    fn visit_u64<E>(self, _: u64) -> Result<KeysOnce, E> {
        Ok(KeysOnce)
    }

    fn visit_f64<E>(self, _: f64) -> Result<KeysOnce, E> {
        Ok(KeysOnce)
    }

    fn visit_str<E>(self, _: &str) -> Result<KeysOnce, E> {
        Ok(KeysOnce)
    }

    fn visit_unit<E>(self) -> Result<KeysOnce, E> {
        Ok(KeysOnce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_appears_once_in_an_object() {
        for text in ["{}", r#"{"a": {"b": [1, -2, 0.5, "x", null, true]}, "b": {"b": {}}}"#, "[{\"a\": 1}, {\"a\": 2}]"]
        {
            refuse_repeated_keys(text.as_bytes()).unwrap();
        }
        for text in [r#"{"a": 1, "a": 1}"#, r#"{"t": [{"x": {"a": 1, "b": 2, "\u0061": 3}}]}"#] {
            let error = refuse_repeated_keys(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("the key \"a\" appears twice"), "{error}");
        }
        assert!(refuse_repeated_keys(b"{").is_err());
        let long = "x".repeat(1000);
        let text = format!(r#"{{"{long}": 1, "{long}": 2}}"#);
        let error = refuse_repeated_keys(text.as_bytes()).unwrap_err().to_string();
        assert!(error.len() < 200, "{error}");
    }
}
