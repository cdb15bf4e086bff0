//! The sources of the data: one, or those of a mixture.

use serde_json::Value;

/// Calls `visit` with each source and its path in the manifest.
pub(super) fn for_each(spec: &Value, mut visit: impl FnMut(&Value, &str)) {
    let Some(data) = spec.pointer("/data") else { return };
    visit(data, "spec.data");
    let mixed = data.pointer("/mixture/sources").and_then(Value::as_array);
    for (index, source) in mixed.into_iter().flatten().enumerate() {
        visit(source, &format!("spec.data.mixture.sources[{index}]"));
    }
}
