//! The committed definition is what the types say, and an API server can take it.

#[path = "../examples/generate_crds.rs"]
#[allow(dead_code, reason = "the example's main is not called here")]
mod generate;

use std::fs;

use serde_json::Value;

/// Client-side `kubectl apply` keeps the whole object in one annotation of at most this many bytes.
const ANNOTATION_LIMIT: usize = 262_144;

fn definition() -> Value {
    serde_json::to_value(lcl_crds::custom_resource_definition()).unwrap()
}

/// Calls `visit` for every object in `value`.
fn walk(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(fields) => {
            visit(fields);
            fields.values().for_each(|value| walk(value, visit));
        }
        Value::Array(items) => items.iter().for_each(|value| walk(value, visit)),
        _ => {}
    }
}

#[test]
fn the_committed_files_are_up_to_date() {
    for (path, expected) in [
        (generate::path(), generate::render().unwrap()),
        (generate::template_path(), generate::render_template().unwrap()),
        (generate::page_path(), generate::render_page().unwrap()),
    ] {
        let committed = fs::read_to_string(&path).unwrap();
        assert!(committed == expected, "{} differs from the types: run `cargo run -p lcl-crds --example generate_crds`", path.display());
    }
}

#[test]
fn the_committed_yaml_reads_back_as_the_same_definition() {
    let committed = fs::read_to_string(generate::path()).unwrap();
    let read: Value = serde_saphyr::from_str(&committed).unwrap();
    assert_eq!(read, definition());
}

#[test]
fn the_definition_fits_the_annotation_of_a_client_side_apply() {
    let size = definition().to_string().len();
    assert!(size < ANNOTATION_LIMIT, "{size} bytes");
}

#[test]
fn nothing_is_nullable_and_every_rule_has_a_message() {
    let mut rules = 0;
    walk(&definition(), &mut |fields| {
        assert!(!fields.contains_key("nullable"), "{fields:?}");
        for rule in fields.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(!message.is_empty() && !message.contains('\n'), "{rule}");
            rules += 1;
        }
    });
    assert!(rules > 30, "{rules} rules found");
}

/// What an API server demands of a "structural schema" before it takes a definition.
#[test]
fn the_schema_is_structural() {
    fn check(schema: &Value, path: &str) {
        for keyword in ["$ref", "allOf", "anyOf", "oneOf", "not", "definitions", "dependencies", "uniqueItems", "patternProperties"] {
            assert!(schema.get(keyword).is_none(), "{path} has {keyword}");
        }
        let is_int_or_string = schema["x-kubernetes-int-or-string"] == Value::Bool(true);
        assert!(schema["type"].is_string() != is_int_or_string, "{path} must have a type or be int-or-string");
        assert!(!(schema.get("properties").is_some() && schema.get("additionalProperties").is_some()), "{path} is map and object");
        assert_eq!(schema["type"] == "array", schema["items"].is_object(), "{path}");
        for key in schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten() {
            let required = schema["items"]["required"].as_array().cloned().unwrap_or_default();
            assert!(required.contains(key), "{path}: the list's key {key} is not required");
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            check(field, &format!("{path}.{name}"));
        }
        for inner in ["items", "additionalProperties"].into_iter().filter_map(|keyword| schema.get(keyword)) {
            check(inner, &format!("{path}[]"));
        }
    }
    check(&definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "");
}

#[test]
fn every_field_of_the_spec_is_documented() {
    fn check(schema: &Value, path: &str) {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let description = field["description"].as_str().unwrap_or_default();
            assert!(description.len() > 10, "{path} has no description for `kubectl explain`");
            // The pod's own fields are documented by Kubernetes.
            if name != "template" && name != "affinity" {
                check(field, &path);
            }
        }
    }
    let definition = definition();
    check(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec");
}

#[test]
fn names_columns_and_subresources_are_those_users_rely_on() {
    let definition = definition();
    let spec = &definition["spec"];
    assert_eq!(definition["metadata"]["name"], "lcltrainingjobs.lcl.dev");
    assert_eq!(spec["names"]["kind"], lcl_crds::KIND);
    assert_eq!(spec["names"]["plural"], lcl_crds::PLURAL);
    assert_eq!(spec["group"], lcl_crds::GROUP);
    assert_eq!(spec["names"]["shortNames"], serde_json::json!(["lcljob"]));
    assert_eq!(spec["names"]["categories"], serde_json::json!(["all"]));
    let version = &spec["versions"][0];
    assert_eq!(version["name"], lcl_crds::VERSION);
    let columns: Vec<_> = version["additionalPrinterColumns"].as_array().unwrap().iter().map(|column| &column["name"]).collect();
    assert_eq!(columns, ["State", "Workers", "Step", "Restarts", "Checkpoint", "Age"]);
    let scale = &version["subresources"]["scale"];
    assert_eq!(scale["specReplicasPath"], ".spec.workers.replicas");
    assert_eq!(scale["statusReplicasPath"], ".status.workers.ready");
    assert_eq!(scale["labelSelectorPath"], ".status.workers.selector");
    assert!(version["subresources"]["status"].is_object());
}

/// Of every field of the spec the page says what becomes of a change.
#[test]
fn the_page_says_of_every_field_when_a_change_takes_effect() {
    let page = generate::render_page().unwrap();
    let spec = page.split("## `status`").next().unwrap();
    let rows: Vec<&str> = spec.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 100, "{} rows", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_end_matches(" |").rsplit(" | ").collect();
        assert!(!cells[0].trim().is_empty() && cells[1].trim().len() > 10, "{row}");
    }
    for (field, change) in
        [("| `preset` |", "| never |"), ("| `steps` |", "starts again with it |"), ("| `replicas` |", "leave in order |")]
    {
        let row = spec.lines().find(|line| line.starts_with(field)).unwrap();
        assert!(row.ends_with(change), "{row}");
    }
}
