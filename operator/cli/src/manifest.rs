//! Reads manifests: YAML documents as JSON values, with the place in the file of every field.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use lcl_crds::KIND;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Why a manifest cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not valid YAML: {reason}", path = path.display())]
    Parse { path: PathBuf, reason: String },
}

/// Line and column, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Place {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// One YAML document.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    /// Where each field stands, by its path (`spec.data.webdataset.shards[0]`).
    places: BTreeMap<String, Place>,
}

impl Document {
    /// The object's kind, if it says one.
    pub(crate) fn kind(&self) -> Option<&str> {
        self.value.get("kind").and_then(Value::as_str)
    }

    /// Whether the document is, or may be meant as, a job: other kinds are passed over.
    pub(crate) fn is_job(&self) -> bool {
        self.kind().is_none_or(|kind| kind.eq_ignore_ascii_case(KIND))
    }

    /// The object's name, if it says one.
    pub(crate) fn name(&self) -> Option<&str> {
        self.value.get("metadata")?.get("name")?.as_str()
    }

    /// Where a field stands, or the nearest field around it that is there.
    pub(crate) fn find(&self, field: &str) -> Option<Place> {
        let mut path = field;
        loop {
            if let Some(place) = self.places.get(path) {
                return Some(*place);
            }
            if path.is_empty() {
                return None;
            }
            path = path.rfind(['.', '[']).and_then(|end| path.get(..end)).unwrap_or_default();
        }
    }
}

/// Reads all documents of a file; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<Vec<Document>, ManifestError> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    let text = text.map_err(|source| ManifestError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|error| ManifestError::Parse { path: path.to_owned(), reason: error.to_string() })
}

fn parse(text: &str) -> Result<Vec<Document>, serde_saphyr::Error> {
    let nodes: Vec<Spanned<Node>> = serde_saphyr::from_multiple(text)?;
    let documents = nodes.into_iter().map(|node| {
        let mut places = BTreeMap::new();
        let place = place_of(&node);
        let value = flatten(node.value, String::new(), place, &mut places);
        Document { value, places }
    });
    // An empty document (a stray `---`) means nothing.
    Ok(documents.filter(|document| !document.value.is_null()).collect())
}

/// A YAML value that remembers where its parts stand.
enum Node {
    Scalar(Value),
    List(Vec<Spanned<Node>>),
    Object(Vec<(Spanned<String>, Spanned<Node>)>),
}

fn place_of<T>(spanned: &Spanned<T>) -> Place {
    Place { line: spanned.referenced.line(), column: spanned.referenced.column() }
}

fn flatten(node: Node, path: String, place: Place, places: &mut BTreeMap<String, Place>) -> Value {
    let value = match node {
        Node::Scalar(value) => value,
        Node::List(items) => {
            let items = items.into_iter().enumerate().map(|(index, item)| {
                let place = place_of(&item);
                flatten(item.value, format!("{path}[{index}]"), place, places)
            });
            Value::Array(items.collect())
        }
        Node::Object(fields) => {
            let fields = fields.into_iter().map(|(name, field)| {
                let place = place_of(&name);
                let field_path = if path.is_empty() { name.value.clone() } else { format!("{path}.{}", name.value) };
                let value = flatten(field.value, field_path, place, places);
                (name.value, value)
            });
            Value::Object(fields.collect::<Map<_, _>>())
        }
    };
    places.insert(path, place);
    value
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Number::from_f64(value).map(|number| Node::Scalar(Value::Number(number))).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut object = Vec::new();
        while let Some(field) = fields.next_entry()? {
            object.push(field);
        }
        Ok(Node::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TWO: &str = "\
kind: ConfigMap
---
kind: LCLTrainingJob
metadata:
  name: a
spec:
  data:
    webdataset: {shards: [/a.tar,
      /b.tar]}
  on: 1.5
  off: ~
---
";

    #[test]
    fn documents_become_values_and_empty_ones_are_left_out() {
        let documents = parse(TWO).unwrap();
        assert_eq!(documents.len(), 2);
        assert!(!documents[0].is_job());
        let job = &documents[1];
        assert!(job.is_job());
        assert_eq!(job.name(), Some("a"));
        let spec = json!({ "data": { "webdataset": { "shards": ["/a.tar", "/b.tar"] } }, "on": 1.5, "off": null });
        assert_eq!(job.value["spec"], spec);
    }

    #[test]
    fn every_field_has_its_place_and_a_missing_one_that_of_its_parent() {
        let documents = parse(TWO).unwrap();
        let check = |field: &str, line, column| assert_eq!(documents[1].find(field), Some(Place { line, column }), "{field}");
        check("metadata.name", 5, 3);
        check("spec.data.webdataset.shards[1]", 9, 7);
        check("spec.on", 10, 3);
        check("spec.optimization.steps", 6, 1);
        check("spec.data.webdataset.shards[7].x", 8, 18);
        check("nothing", 3, 1);
    }

    #[test]
    fn a_number_that_is_not_finite_and_a_doubled_key_are_refused_with_their_line() {
        for (text, words) in [("a: 1\nb: .nan\n", "finite"), ("a: 1\na: 2\n", "duplicate")] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(words) && message.contains("line 2"), "{message}");
        }
    }
}
