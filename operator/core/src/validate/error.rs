//! What is wrong with a manifest, field by field.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// Longest text of a value in a message: a line of a terminal.
const LONGEST_VALUE: usize = 80;

/// Least similarity (Jaro-Winkler) at which a known name is offered for an unknown one; below it, suggestions mislead more than they help.
const LEAST_SIMILARITY: f64 = 0.8;

/// A field that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct FieldError {
    /// Path of the field, such as `spec.data.webdataset.shards[0]`. Empty for the object itself.
    pub field: String,
    /// Its value as JSON, shortened; `None` when the field is missing or has no business there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What it has to be.
    pub rule: String,
}

impl FieldError {
    pub(crate) fn new(field: impl Into<String>, value: Option<&Value>, rule: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.map(shorten), rule: rule.into() }
    }

    pub(crate) fn missing(field: impl Into<String>) -> Self {
        Self::new(field, None, "must be given")
    }

    /// A field that the schema does not know, with the nearest of its neighbours.
    pub(crate) fn unknown<'a>(path: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let name = path.rsplit('.').next().unwrap_or(path);
        let nearest = known
            .map(|candidate| (strsim::jaro_winkler(&name.to_lowercase(), &candidate.to_lowercase()), candidate))
            .filter(|(similarity, _)| *similarity >= LEAST_SIMILARITY)
            .max_by(|(left, _), (right, _)| left.total_cmp(right));
        let rule = match nearest {
            Some((_, candidate)) => format!("no such field; did you mean `{candidate}`?"),
            None => "no such field".to_owned(),
        };
        Self::new(path, None, rule)
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = if self.field.is_empty() { "the manifest" } else { &self.field };
        match &self.value {
            Some(value) => write!(f, "{field} is {value}, but {}", self.rule),
            None => write!(f, "{field}: {}", self.rule),
        }
    }
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(LONGEST_VALUE) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Every broken rule of one manifest, each once; never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// The errors.
    #[must_use]
    pub fn as_slice(&self) -> &[FieldError] {
        &self.0
    }
}

impl From<Vec<FieldError>> for FieldErrors {
    fn from(errors: Vec<FieldError>) -> Self {
        let mut unique: Vec<FieldError> = Vec::with_capacity(errors.len());
        for error in errors {
            if !unique.contains(&error) {
                unique.push(error);
            }
        }
        Self(unique)
    }
}

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}
