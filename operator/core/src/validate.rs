//! Checks a manifest against the custom resource's own schema and rules, without an API server.
//!
//! Comes in: the manifest as a JSON value. Goes out: a [`ValidatedJob`], or *every* rule that is broken, each with the field's path, its
//! value and what it has to be. What the API server checks of a job has one source of truth, [`lcl_crds::custom_resource_definition`]: its
//! structural part is checked by [`structure`], its CEL expressions are evaluated by [`rules`]. What nobody checks of a job, but the API
//! server of its pods and the trainer of its configuration, is checked by [`pod`] and by the trainer's own rules, among them those for the
//! patterns of [`shards`] and the expressions of [`filters`]: what passes here passes in a cluster.

mod error;
mod filters;
mod pod;
mod rules;
mod shards;
mod sources;
mod structure;

use std::sync::LazyLock;

use kube::core::cel::apply_defaults;
use lcl_crds::{GROUP, KIND, LCLTrainingJob, VERSION};
use lcl_trainer_config::check_run_uri;
use serde_json::{Map, Value};

use crate::{job::ValidatedJob, pod_policy::PodPolicy};
pub use error::{FieldError, FieldErrors};
use rules::Subject;

/// The schema of the served version, as the API server reads it.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let definition = lcl_crds::custom_resource_definition();
    let schema =
        definition.spec.versions.into_iter().next().and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
    serde_json::to_value(schema).unwrap_or(Value::Null)
});

/// Fields of the object itself; `status` is the operator's and not looked at.
const TOP_LEVEL_FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// Fields of every object's metadata; an API server refuses others, as it does in the spec.
const METADATA_FIELDS: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Checks a new job, whose template may do nothing that an operator has to allow.
pub fn validate(manifest: &Value) -> Result<ValidatedJob, FieldErrors> {
    validate_under(manifest, &PodPolicy::default())
}

/// Checks a new job, whose template may do what is allowed.
pub fn validate_under(manifest: &Value, policy: &PodPolicy) -> Result<ValidatedJob, FieldErrors> {
    check(manifest, None, policy)
}

/// Checks a job that is about to replace `stored`: all rules of a new job, and that nothing changes that must not.
pub fn validate_change(manifest: &Value, stored: &Value) -> Result<ValidatedJob, FieldErrors> {
    check(manifest, Some(stored), &PodPolicy::default())
}

/// Reads a job without asking whether it keeps the rules: one that was stored, and runs, under other rules than these. What its pods may do
/// is asked when they are built.
pub fn read_unchecked(manifest: &Value) -> Result<ValidatedJob, FieldErrors> {
    read(complete(manifest))
}

fn read(complete: Value) -> Result<ValidatedJob, FieldErrors> {
    let job: LCLTrainingJob =
        serde_json::from_value(complete).map_err(|source| FieldErrors::from(vec![FieldError::new("spec", None, source.to_string())]))?;
    ValidatedJob::new(job).map_err(|error| FieldErrors::from(vec![error]))
}

fn check(manifest: &Value, stored: Option<&Value>, policy: &PodPolicy) -> Result<ValidatedJob, FieldErrors> {
    let mut errors = Vec::new();
    check_envelope(manifest, &mut errors);
    let spec_schema = &SCHEMA["properties"]["spec"];
    if let Some(spec) = manifest.get("spec") {
        // Checked before defaults are filled in, so that a message shows what the user wrote.
        structure::check(spec_schema, spec, "spec", &mut errors);
    }
    let complete = complete(manifest);
    let stored = stored.map(self::complete);
    rules::check(&SCHEMA, &Subject { manifest, complete: &complete, stored: stored.as_ref() }, &mut errors);
    if let Some(spec) = manifest.get("spec") {
        let mut further = Vec::new();
        pod::check(spec, policy, &mut further);
        check_checkpoint_uri(spec, &mut further);
        shards::check(spec, &mut further);
        filters::check(spec, &mut further);
        // Of a field that is wrong as a whole it makes no sense to say what is wrong in it.
        further.retain(|found| !errors.iter().any(|error| lies_in(&found.field, &error.field)));
        errors.append(&mut further);
    }
    if !errors.is_empty() {
        return Err(FieldErrors::from(errors));
    }
    read(complete)
}

/// The object as the API server sees it when it evaluates the rules: defaults filled in, numbers of the schema's kind, no status.
pub(crate) fn complete(manifest: &Value) -> Value {
    let mut object = apply_defaults(&SCHEMA, manifest);
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    structure::unify_numbers(&SCHEMA, &mut object);
    object
}

fn check_envelope(manifest: &Value, errors: &mut Vec<FieldError>) {
    let Some(fields) = manifest.as_object() else {
        errors.push(FieldError::new("", Some(manifest), format!("must be an object of kind {KIND}")));
        return;
    };
    let api_version = format!("{GROUP}/{VERSION}");
    for (field, expected) in [("apiVersion", api_version.as_str()), ("kind", KIND)] {
        match fields.get(field) {
            None => errors.push(FieldError::missing(field)),
            Some(value) if value.as_str() != Some(expected) => {
                errors.push(FieldError::new(field, Some(value), format!("must be `{expected}`")));
            }
            Some(_) => {}
        }
    }
    check_metadata(fields, errors);
    if !fields.contains_key("spec") {
        errors.push(FieldError::missing("spec"));
    }
    for field in fields.keys().filter(|field| !TOP_LEVEL_FIELDS.contains(&field.as_str())) {
        errors.push(FieldError::unknown(field, TOP_LEVEL_FIELDS.into_iter()));
    }
}

/// Whether a field is another one or a part of it.
fn lies_in(field: &str, other: &str) -> bool {
    field.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// By the trainer's own rule.
fn check_checkpoint_uri(spec: &Value, errors: &mut Vec<FieldError>) {
    let Some(uri) = spec.pointer("/checkpoint/uri") else { return };
    if let Err(problem) = uri.as_str().map_or(Ok(()), check_run_uri) {
        errors.push(FieldError::new("spec.checkpoint.uri", Some(uri), problem));
    }
}

fn check_metadata(fields: &Map<String, Value>, errors: &mut Vec<FieldError>) {
    match fields.get("metadata").map(|metadata| (metadata, metadata.get("name"))) {
        None | Some((Value::Object(_), None)) => errors.push(FieldError::missing("metadata.name")),
        Some((Value::Object(_), Some(name))) => {
            structure::check(&SCHEMA["properties"]["metadata"]["properties"]["name"], name, "metadata.name", errors);
        }
        Some((metadata, _)) => errors.push(FieldError::new("metadata", Some(metadata), "must be an object")),
    }
    if let Some(Value::Object(metadata)) = fields.get("metadata") {
        pod::check_metadata(metadata, errors);
        for field in metadata.keys().filter(|field| !METADATA_FIELDS.contains(&field.as_str())) {
            errors.push(FieldError::unknown(&format!("metadata.{field}"), METADATA_FIELDS.into_iter()));
        }
    }
}
