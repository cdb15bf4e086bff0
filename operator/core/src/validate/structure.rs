//! The structural part of the schema: types, required and unknown fields, ranges, lengths, patterns, lists with unique keys.
//!
//! Own code rather than a JSON Schema library: a structural schema is a small subset of JSON Schema with Kubernetes' own keywords
//! (`x-kubernetes-*`), unknown fields are errors although the schema does not say so, and every message has to name the rule in words.

use lcl_crds::explain_pattern;
use regex::Regex;
use serde_json::{Map, Number, Value};

use super::FieldError;

/// A value and where it stands.
struct Field<'a> {
    path: &'a str,
    value: &'a Value,
}

impl Field<'_> {
    fn breaks(&self, rule: impl Into<String>) -> FieldError {
        FieldError::new(self.path, Some(self.value), rule)
    }
}

/// Appends an error for everything in `value`, which stands at `path`, that does not fit `schema`.
pub(super) fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let field = Field { path, value };
    if value.is_null() {
        errors.push(field.breaks("must not be empty: give a value or leave the field out"));
        return;
    }
    if !has_type(schema, value) {
        let limit = if value.is_u64() { " below 2^63" } else { "" };
        errors.push(field.breaks(format!("must be {}{limit}", expected_type(schema))));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let names: Vec<_> = allowed.iter().map(|name| name.as_str().map_or_else(|| name.to_string(), str::to_owned)).collect();
        errors.push(field.breaks(format!("must be one of {}", names.join(", "))));
    }
    match value {
        Value::Number(number) => check_number(schema, number, &field, errors),
        Value::String(text) => check_string(schema, text, &field, errors),
        Value::Array(items) => check_list(schema, items, &field, errors),
        Value::Object(fields) => check_object(schema, fields, path, errors),
        Value::Null | Value::Bool(_) => {}
    }
}

fn is_set(schema: &Value, keyword: &str) -> bool {
    schema.get(keyword).and_then(Value::as_bool).unwrap_or(false)
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if is_set(schema, "x-kubernetes-int-or-string") {
        return value.is_string() || value.is_i64();
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64(),
        Some("number") => value.is_number(),
        _ => true,
    }
}

fn expected_type(schema: &Value) -> &'static str {
    if is_set(schema, "x-kubernetes-int-or-string") {
        return "a whole number or a string";
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => "an object",
        Some("array") => "a list",
        Some("string") => "a string (put it in quotes)",
        Some("boolean") => "true or false",
        Some("integer") => "a whole number",
        Some("number") => "a number",
        _ => "of another type",
    }
}

fn check_number(schema: &Value, number: &Number, field: &Field<'_>, errors: &mut Vec<FieldError>) {
    let Some(number) = number.as_f64() else { return };
    let bound = |keyword| schema.get(keyword).and_then(Value::as_f64);
    if let Some(least) = bound("minimum").filter(|least| number < *least) {
        errors.push(field.breaks(format!("must be at least {least}")));
    }
    if let Some(greatest) = bound("maximum").filter(|greatest| number > *greatest) {
        errors.push(field.breaks(format!("must be at most {greatest}")));
    }
}

fn check_string(schema: &Value, text: &str, field: &Field<'_>, errors: &mut Vec<FieldError>) {
    check_size(schema, &Extent::of_string(text), field, errors);
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        // A pattern of ours that does not compile is found by a test; then nothing may pass.
        let matches = Regex::new(pattern).is_ok_and(|regex| regex.is_match(text));
        if !matches {
            errors.push(field.breaks(explain_pattern(pattern).map_or_else(|| format!("must match {pattern}"), str::to_owned)));
        }
    }
}

/// A length and the keywords that bound it.
struct Extent {
    size: usize,
    least: &'static str,
    greatest: &'static str,
    unit: &'static str,
}

impl Extent {
    fn of_string(text: &str) -> Self {
        Self { size: text.chars().count(), least: "minLength", greatest: "maxLength", unit: "characters" }
    }

    fn of_list(items: &[Value]) -> Self {
        Self { size: items.len(), least: "minItems", greatest: "maxItems", unit: "entries" }
    }
}

fn check_size(schema: &Value, Extent { size, least, greatest, unit }: &Extent, field: &Field<'_>, errors: &mut Vec<FieldError>) {
    let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_u64);
    if let Some(least) = bound(least).filter(|least| (*size as u64) < *least) {
        errors.push(field.breaks(format!("must have at least {least} {unit}")));
    }
    if let Some(greatest) = bound(greatest).filter(|greatest| *size as u64 > *greatest) {
        errors.push(field.breaks(format!("must have at most {greatest} {unit}")));
    }
}

fn check_list(schema: &Value, items: &[Value], field: &Field<'_>, errors: &mut Vec<FieldError>) {
    check_size(schema, &Extent::of_list(items), field, errors);
    let path = field.path;
    if let Some(item_schema) = schema.get("items") {
        for (index, item) in items.iter().enumerate() {
            check(item_schema, item, &format!("{path}[{index}]"), errors);
        }
    }
    if schema.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("map") {
        check_unique(schema, items, path, errors);
    }
}

fn check_unique(schema: &Value, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let keys: Vec<&str> =
        schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let key_of = |item: &Value| keys.iter().map(|key| item.get(key).cloned()).collect::<Option<Vec<Value>>>();
    for (index, item) in items.iter().enumerate() {
        let earlier = items.get(..index).unwrap_or_default();
        if let Some(first) = key_of(item).and_then(|key| earlier.iter().position(|other| key_of(other).as_ref() == Some(&key))) {
            let field = format!("{path}[{index}].{}", keys.join("+"));
            errors.push(FieldError::new(field, keys.first().and_then(|key| item.get(key)), format!("must differ from {path}[{first}]")));
        }
    }
}

fn check_object(schema: &Value, fields: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        let has_default = properties.and_then(|properties| properties.get(name)).is_some_and(|schema| schema.get("default").is_some());
        if !fields.contains_key(name) && !has_default {
            errors.push(FieldError::missing(format!("{path}.{name}")));
        }
    }
    if let Some(greatest) = schema.get("maxProperties").and_then(Value::as_u64).filter(|greatest| fields.len() as u64 > *greatest) {
        errors.push(FieldError::new(path, None, format!("must have at most {greatest} entries")));
    }
    for (name, value) in fields {
        let field_path = format!("{path}.{name}");
        let known = properties.and_then(|properties| properties.get(name));
        if let Some(field_schema) = known.or_else(|| schema.get("additionalProperties").filter(|values| values.is_object())) {
            check(field_schema, value, &field_path, errors);
        } else if !is_set(schema, "x-kubernetes-preserve-unknown-fields") {
            let names = properties.into_iter().flat_map(Map::keys).map(String::as_str);
            errors.push(FieldError::unknown(&field_path, names));
        }
    }
}

/// Writes whole numbers as floating-point where the schema says `number`, as the API server does before it evaluates rules:
/// to CEL `1` and `1.0` are of different types.
pub(super) fn unify_numbers(schema: &Value, value: &mut Value) {
    match value {
        Value::Number(number) if schema.get("type").and_then(Value::as_str) == Some("number") => {
            if let Some(float) = number.as_f64().and_then(Number::from_f64) {
                *number = float;
            }
        }
        Value::Array(items) => {
            if let Some(item_schema) = schema.get("items") {
                for item in items {
                    unify_numbers(item_schema, item);
                }
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                if let Some(field_schema) = schema.get("properties").and_then(|properties| properties.get(name)) {
                    unify_numbers(field_schema, field);
                }
            }
        }
        _ => {}
    }
}
