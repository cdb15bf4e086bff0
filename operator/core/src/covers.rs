//! Is what is wanted there already? Pure.

use serde_json::Value;

/// Whether `live` says everything that `wanted` says. Objects may have more fields than wanted (defaults, what others own), lists may not
/// have more entries; an absent field covers an empty one.
#[must_use]
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| covers(live.get(key).unwrap_or(&Value::Null), wanted))
        }
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len() && live.iter().zip(wanted).all(|(live, wanted)| covers(live, wanted))
        }
        (Value::Null, Value::Object(wanted)) => wanted.is_empty(),
        (Value::Null, Value::Array(wanted)) => wanted.is_empty(),
        (live, wanted) => live == wanted,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_add_is_no_difference_and_what_they_change_is() {
        let wanted = json!({ "data": { "a": "1" }, "ports": [{ "port": 1 }], "labels": {} });
        for (live, expected) in [
            (json!({ "data": { "a": "1", "b": "2" }, "ports": [{ "port": 1, "nodePort": 3 }], "status": {} }), true),
            (json!({ "data": { "a": "2" }, "ports": [{ "port": 1 }] }), false),
            (json!({ "data": { "a": "1" }, "ports": [{ "port": 1 }, { "port": 2 }] }), false),
            (json!({ "data": { "a": "1" }, "ports": [] }), false),
            (json!({ "ports": [{ "port": 1 }] }), false),
            (json!(null), false),
        ] {
            assert_eq!(covers(&live, &wanted), expected, "{live}");
        }
    }
}
