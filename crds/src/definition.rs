//! The `CustomResourceDefinition`, from the Rust types.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use kube::CustomResourceExt;

use crate::{LCLTrainingJob, names::MAX_NAME_LENGTH, patterns::JOB_NAME};

/// The definition that is installed in a cluster and that the offline validation reads.
///
/// It differs from [`LCLTrainingJob::crd`] in three points:
/// - No field is nullable. `Option` in Rust says that a field may be left out; an explicit `null` would be a third state that rules with
///   `has()` would have to know.
/// - A fractional minimum stands as a rule too: an API server cuts it to a whole number when the value is written as one, so that `0` would
///   pass a minimum of 1e-12.
/// - The job's name is bounded, so that the names derived from it are valid. Name and generateName are the only parts of the metadata that
///   a definition may restrict, and it may do so only by schema: a rule's `fieldPath` must not point there.
#[must_use]
pub fn custom_resource_definition() -> CustomResourceDefinition {
    let mut definition = LCLTrainingJob::crd();
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            forbid_null(schema);
            repeat_fractional_minimum(schema);
            schema.properties.get_or_insert_default().insert("metadata".to_owned(), metadata_schema());
        }
    }
    definition
}

fn metadata_schema() -> JSONSchemaProps {
    let name = JSONSchemaProps {
        type_: Some("string".to_owned()),
        max_length: Some(MAX_NAME_LENGTH),
        pattern: Some(JOB_NAME.to_owned()),
        ..JSONSchemaProps::default()
    };
    JSONSchemaProps {
        type_: Some("object".to_owned()),
        properties: Some(BTreeMap::from([("name".to_owned(), name)])),
        ..JSONSchemaProps::default()
    }
}

fn forbid_null(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        forbid_null(property);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => forbid_null(items),
        Some(JSONSchemaPropsOrArray::Schemas(schemas)) => schemas.iter_mut().for_each(forbid_null),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        forbid_null(values);
    }
}

fn repeat_fractional_minimum(schema: &mut JSONSchemaProps) {
    if let Some(minimum) = schema.minimum.filter(|minimum| minimum.fract() != 0.0) {
        schema.x_kubernetes_validations.get_or_insert_default().push(ValidationRule {
            rule: format!("self >= {minimum:?}"),
            message: Some(format!("must be at least {minimum}")),
            ..ValidationRule::default()
        });
    }
    for property in schema.properties.iter_mut().flat_map(|properties| properties.values_mut()) {
        repeat_fractional_minimum(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        repeat_fractional_minimum(items);
    }
}
