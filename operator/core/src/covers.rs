//! Is what is wanted there already? Pure.

use serde_json::Value;

/// Fields in which what others add changes what is selected or let in: of a Service and a `PodDisruptionBudget`, and of a `NetworkPolicy`. The
/// API server fills in nothing there, and takes them as a whole when they are applied.
const EXACT: [&str; 3] = ["selector", "podSelector", "ingress"];

/// Whether `live` says everything that `wanted` says. Objects may have more fields than wanted (defaults, what others own), but for some;
/// lists may not have more entries; an absent field covers an empty one.
#[must_use]
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            let live = live.get(key).unwrap_or(&Value::Null);
            covers(live, wanted) && (!EXACT.contains(&key.as_str()) || covers(wanted, live))
        }),
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

    #[test]
    fn what_others_add_to_a_selection_is_a_difference() {
        let labels = json!({ "matchLabels": { "a": "1" } });
        let wanted = json!({ "selector": { "a": "1" }, "podSelector": labels, "ingress": [{ "from": [{ "podSelector": labels }] }] });
        let changed = |path: &str, value: Value| {
            let mut live = wanted.clone();
            let (parent, name) = path.rsplit_once('/').expect("a path");
            live.pointer_mut(parent).and_then(Value::as_object_mut).expect("a parent").insert(name.to_owned(), value);
            live
        };
        assert!(covers(&changed("/policyTypes", json!(["Ingress"])), &wanted), "outside of a selection");
        assert!(covers(&changed("/podSelector/matchExpressions", json!([])), &wanted), "nothing was added");
        for live in [
            changed("/selector/b", json!("2")),
            changed("/podSelector/matchLabels/b", json!("2")),
            changed("/podSelector/matchExpressions", json!([{ "key": "b", "operator": "Exists" }])),
            changed("/ingress/0/ports", json!([{ "port": 1 }])),
            changed("/ingress/0/from/0/ipBlock", json!({ "cidr": "10.0.0.0/8" })),
        ] {
            assert!(!covers(&live, &wanted), "{live}");
        }
    }
}
