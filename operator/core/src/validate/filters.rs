//! The filters of pairs, parsed and checked as the trainer does it: no schema can say what an expression is.

use lcl_filter::Filter;
use serde_json::Value;

use super::{FieldError, sources};

/// Appends an error for every filter that the trainer would refuse.
pub(super) fn check(spec: &Value, errors: &mut Vec<FieldError>) {
    sources::for_each(spec, |source, path| check_source(source, path, errors));
}

fn check_source(source: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(filter) = source.pointer("/webdataset/filter") else { return };
    if let Some(Err(error)) = filter.as_str().map(Filter::parse) {
        errors.push(FieldError::new(format!("{path}.webdataset.filter"), Some(filter), error.to_string()));
    }
}
