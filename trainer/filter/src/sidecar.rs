//! Reading some fields of a sample's json and passing over all others.
//!
//! Comes in: the bytes of the json, and names of fields of its object. Goes out: their values. Nothing else of it is kept.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// Most bytes of a sidecar: hundreds of times what img2dataset writes.
pub const SIDECAR_BYTES_LIMIT: u32 = 1 << 20;

/// A sidecar that is no JSON object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the json is no JSON object: {0}")]
pub struct BrokenSidecar(String);

/// The values of these fields, in their order; `None` for one that is not there. Python's `NaN` and `Infinity`, which are no JSON, are read as
/// null.
pub fn fields_of(sidecar: &[u8], fields: &[impl AsRef<str>]) -> Result<Vec<Option<Value>>, BrokenSidecar> {
    match parse(sidecar, fields) {
        Ok(values) => Ok(values),
        Err(error) => {
            let replaced = without_infinities(sidecar).ok_or_else(|| BrokenSidecar(error.to_string()))?;
            parse(&replaced, fields).map_err(|_| BrokenSidecar(error.to_string()))
        }
    }
}

fn parse(sidecar: &[u8], fields: &[impl AsRef<str>]) -> Result<Vec<Option<Value>>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(sidecar);
    let values = deserializer.deserialize_map(Fields(fields))?;
    deserializer.end()?;
    Ok(values)
}

/// The same with null for the three numbers that Python writes and JSON does not have; `None` where there is none of them.
fn without_infinities(sidecar: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest, mut found) = (Vec::with_capacity(sidecar.len()), sidecar, false);
    let mut in_text = false;
    while let Some((&byte, after)) = rest.split_first() {
        if in_text && byte == b'\\' {
            let (pair, after) = rest.split_at(rest.len().min(2));
            out.extend_from_slice(pair);
            rest = after;
            continue;
        }
        in_text ^= byte == b'"';
        let number = [&b"NaN"[..], b"-Infinity", b"Infinity"].into_iter().find(|number| !in_text && rest.starts_with(number));
        if let Some(number) = number {
            out.extend_from_slice(b"null");
            rest = rest.get(number.len()..).unwrap_or_default();
            found = true;
        } else {
            out.push(byte);
            rest = after;
        }
    }
    found.then_some(out)
}

/// Takes the values of some fields out of an object.
struct Fields<'f, F>(&'f [F]);

impl<'de, F: AsRef<str>> Visitor<'de> for Fields<'_, F> {
    type Value = Vec<Option<Value>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = vec![None; self.0.len()];
        while let Some(name) = map.next_key_seed(Name)? {
            match self.0.iter().position(|field| field.as_ref() == name).and_then(|place| values.get_mut(place)) {
                Some(place) => *place = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(values)
    }
}

/// A name, borrowed where it has no escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn wanted_fields_are_read_and_all_others_passed_over() {
        let sidecar = br#" {"a": 1, "b": {"c": [1, {"a": 9}]}, "exif": "{\"a\": 7}", "caf\u00e9": null, "a b": "x"} "#;
        let found = fields_of(sidecar, &["café", "b", "none", "a", "a b"]).unwrap();
        assert_eq!(found, [Some(Value::Null), Some(json!({"c": [1, {"a": 9}]})), None, Some(json!(1)), Some(json!("x"))]);
        assert_eq!(fields_of(b"{}", &["a"]), Ok(vec![None]));
    }

    #[test]
    fn what_is_no_object_is_broken() {
        for sidecar in [&b""[..], b"[]", b"7", b"{\"a\": 1", b"{\"a\": 1} x", b"{\"a\": \xff}", b"{a: 1}", b"{\"a\": NaNo}", b"null"] {
            assert!(fields_of(sidecar, &["a"]).is_err(), "{}", String::from_utf8_lossy(sidecar));
        }
        // Also behind the last field that is wanted: half a file is not the sample's json.
        assert!(fields_of(b"{\"a\": 1, \"b\": [", &["a"]).is_err());
    }

    #[test]
    fn numbers_that_only_python_writes_are_null_and_texts_that_spell_them_stay() {
        let sidecar = br#"{"a": NaN, "b": [-Infinity, Infinity], "c": "a NaN \" NaN", "NaN": 1}"#;
        let found = fields_of(sidecar, &["a", "b", "c", "NaN"]).unwrap();
        assert_eq!(found, [Some(json!(null)), Some(json!([null, null])), Some(json!("a NaN \" NaN")), Some(json!(1))]);
    }
}
