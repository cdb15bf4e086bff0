//! `docs/api.md`: every field of the definition with its meaning, default, rules, and what becomes of a change.

use std::{collections::BTreeMap, fmt::Write};

use lcl_crds::explain_pattern;
use serde_json::Value;

/// Fields that are Kubernetes' own, with the type that its documentation describes.
const KUBERNETES: &[(&str, &str)] = &[
    ("spec.workers.template", "PodTemplateSpec"),
    ("spec.workers.resources", "ResourceRequirements"),
    ("spec.coordinator.resources", "ResourceRequirements"),
    ("spec.coordinator.affinity", "Affinity"),
    ("spec.coordinator.tolerations", "list of Toleration"),
    ("spec.coordinator.topologySpreadConstraints", "list of TopologySpreadConstraint"),
    ("spec.coordinator.imagePullSecrets", "list of LocalObjectReference"),
    ("status.conditions", "list of Condition"),
];

const RESTART: &str = "at one step: the group writes a checkpoint, ends, and starts again with it";

/// When a change takes effect, by the longest beginning of a field's path. What must not change says so by a rule.
const EFFECTS: &[(&str, &str)] = &[
    ("spec.model", RESTART),
    ("spec.data", RESTART),
    ("spec.optimization", RESTART),
    ("spec.checkpoint", RESTART),
    ("spec.suspend", "at once"),
    ("spec.managedBy", "at once"),
    ("spec.activeDeadlineSeconds", "at once"),
    ("spec.preRunningDeadlineSeconds", "at once"),
    ("spec.ttlSecondsAfterFinished", "at once"),
    ("spec.cleanPodPolicy", "at once"),
    ("spec.failurePolicy", "at the next end of a pod; a budget that is spent by its new limit at once"),
    ("spec.elastic.evictSlowMembers", "at once: the coordinator is replaced, the workers train on"),
    ("spec.timeouts", "at once: the coordinator is replaced, the workers train on"),
    ("spec.serviceAccount", "at once on the account; pods that run keep the identity that they were started with"),
    ("spec.elastic", "at once, without a pod that is touched"),
    ("spec.workers.replicas", "at once: workers are added, or leave in order"),
    ("spec.workers", "with the next pods that are created"),
    ("spec.workers.template", "with the next pods that are created; another image of the container `worker` starts the group again"),
    ("spec.coordinator", "with the next pod of the coordinator"),
];

/// A rule that says that a field must not change.
const FIXED: &str = "must not change after the job was created";

/// The page.
pub(crate) fn render() -> Result<String, Box<dyn std::error::Error>> {
    let definition = serde_json::to_value(lcl_crds::custom_resource_definition())?;
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut page = Page::default();
    page.text.push_str(HEAD);
    page.object(&schema["spec"], "spec", false);
    page.object(&schema["status"], "status", false);
    Ok(page.text)
}

const HEAD: &str = "<!-- Generated from crds/src by `cargo run -p lcl-crds --example generate_crds`. Do not edit. -->
# The LCLTrainingJob, field by field

`lcl.dev/v1alpha1`, kind `LCLTrainingJob`, short name `lcljob`. The same texts are in `kubectl explain lcljob.spec`; `lcl validate` checks the same rules without a cluster. A field without a default may be left out unless it is **required**. *Change* says whether a field of a stored job may be changed, and when that takes effect on a job that runs.

";

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// A section for an object, then those of the objects in it.
    fn object(&mut self, schema: &Value, path: &str, is_fixed: bool) {
        let Some(properties) = schema["properties"].as_object() else { return };
        let rules = Rules::of(schema);
        let is_spec = path.starts_with("spec");
        // Writing to a string cannot fail.
        let _ = write!(self.text, "## `{path}`\n\n{}\n\n", description(schema));
        for rule in &rules.own {
            let _ = writeln!(self.text, "- {rule}");
        }
        if !rules.own.is_empty() {
            self.text.push('\n');
        }
        let head = if is_spec {
            "| field | type | default | meaning and rules | change |\n|---|---|---|---|---|\n"
        } else {
            "| field | type | meaning |\n|---|---|---|\n"
        };
        self.text.push_str(head);
        let mut nested = Vec::new();
        for (name, field) in properties {
            let field_path = format!("{path}.{name}");
            let is_required = schema["required"].as_array().into_iter().flatten().any(|required| required == name);
            let own = Rules::of(field);
            let mut said = rules.of_fields.get(name).cloned().unwrap_or_default();
            said.extend(own.own.iter().filter(|_| !is_object(field)).cloned());
            let fixed = is_fixed || said.iter().chain(&own.own).any(|rule| rule == FIXED);
            said.retain(|rule| rule != FIXED);
            said.splice(0..0, limits(field));
            let rules = if said.is_empty() { String::new() } else { format!(" *{}.*", capital(&said.join("; "))) };
            let meaning = format!("{}{rules}", description(field));
            let _ = if is_spec {
                let default = if is_required { "**required**".to_owned() } else { default(field) };
                let change = if fixed { "never" } else { effect(&field_path) };
                writeln!(self.text, "| `{name}` | {} | {default} | {} | {change} |", kind(&field_path, field), cell(&meaning))
            } else {
                writeln!(self.text, "| `{name}` | {} | {} |", kind(&field_path, field), cell(&meaning))
            };
            if KUBERNETES.iter().all(|(known, _)| *known != field_path) {
                let (inner, suffix) = if field["type"] == "array" { (&field["items"], "[]") } else { (field, "") };
                if inner["properties"].is_object() {
                    nested.push((inner, format!("{field_path}{suffix}"), fixed));
                }
            }
        }
        self.text.push('\n');
        for (inner, path, fixed) in nested {
            self.object(inner, &path, fixed);
        }
    }
}

/// What rules say of an object as a whole, and of its fields.
#[derive(Default)]
struct Rules {
    own: Vec<String>,
    of_fields: BTreeMap<String, Vec<String>>,
}

impl Rules {
    fn of(schema: &Value) -> Self {
        let mut rules = Self::default();
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let message = rule["message"].as_str().unwrap_or_default().to_owned();
            match rule["fieldPath"]
                .as_str()
                .map(|path| path.trim_start_matches('.').split_once('.').unwrap_or((path.trim_start_matches('.'), "")))
            {
                None => rules.own.push(message),
                Some((field, "")) => rules.of_fields.entry(field.to_owned()).or_default().push(message),
                Some((field, rest)) => rules.of_fields.entry(field.to_owned()).or_default().push(format!("`{rest}` {message}")),
            }
        }
        rules
    }
}

fn is_object(field: &Value) -> bool {
    field["properties"].is_object()
}

fn description(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn default(field: &Value) -> String {
    match &field["default"] {
        Value::Null => String::new(),
        value => format!("`{}`", cell(&value.to_string())),
    }
}

/// Rules that the structure of the schema holds.
fn limits(field: &Value) -> Vec<String> {
    let mut limits = Vec::new();
    if let Some(values) = field["enum"].as_array() {
        let values: Vec<_> = values.iter().filter_map(Value::as_str).map(|value| format!("`{value}`")).collect();
        limits.push(format!("one of {}", values.join(", ")));
    }
    for (key, words) in [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minItems", "entries: at least"),
        ("maxItems", "entries: at most"),
        ("maxLength", "characters: at most"),
    ] {
        if let Some(value) = field[key].as_f64() {
            limits.push(format!("{words} {value}"));
        }
    }
    let patterns = [&field["pattern"], &field["items"]["pattern"]];
    limits.extend(patterns.into_iter().filter_map(|pattern| explain_pattern(pattern.as_str()?)).map(str::to_owned));
    limits
}

fn kind(path: &str, field: &Value) -> String {
    if let Some((_, kind)) = KUBERNETES.iter().find(|(known, _)| *known == path) {
        return (*kind).to_owned();
    }
    let simple = |field: &Value| match field["type"].as_str() {
        Some("array") => "list".to_owned(),
        Some(kind) => kind.to_owned(),
        None => "integer or string".to_owned(),
    };
    match field["type"].as_str() {
        Some("array") => format!("list of {}", simple(&field["items"])),
        Some("object") if field["additionalProperties"].is_object() => format!("map of {}", simple(&field["additionalProperties"])),
        Some("string") if field["format"] == "date-time" => "time".to_owned(),
        _ => simple(field),
    }
}

/// When a change of a field takes effect.
fn effect(path: &str) -> &'static str {
    let fits =
        EFFECTS.iter().filter(|(known, _)| path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '['])));
    fits.max_by_key(|(known, _)| known.len()).map_or("", |(_, effect)| effect)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
