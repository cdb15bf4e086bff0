//! The filters of pairs, parsed and checked as the trainer does it: no schema can say what an expression is.

use lcl_filter::Filter;
use serde_json::Value;

use super::FieldError;

/// Appends an error for every filter that the trainer would refuse.
pub(super) fn check(spec: &Value, errors: &mut Vec<FieldError>) {
    check_source(spec.pointer("/data"), "spec.data", errors);
    let mixed = spec.pointer("/data/mixture/sources").and_then(Value::as_array);
    for (index, source) in mixed.into_iter().flatten().enumerate() {
        check_source(Some(source), &format!("spec.data.mixture.sources[{index}]"), errors);
    }
}

fn check_source(source: Option<&Value>, path: &str, errors: &mut Vec<FieldError>) {
    let Some(filter) = source.and_then(|source| source.pointer("/webdataset/filter")) else { return };
    if let Some(Err(error)) = filter.as_str().map(Filter::parse) {
        errors.push(FieldError::new(format!("{path}.webdataset.filter"), Some(filter), error.to_string()));
    }
}
