//! Schema of the worker's pod template: that of Kubernetes itself, cut and bounded so that it fits a custom resource.
//!
//! The full structural schema (not `x-kubernetes-preserve-unknown-fields`) is used, so that a misspelt field of the template is refused,
//! by the API server and offline alike. What is changed, and why:
//! - descriptions are dropped: they are four fifths of the size, and `kubectl explain pod.spec` has them;
//! - `metadata` keeps only labels and annotations, the rest is the operator's;
//! - ephemeral containers, which a template must not hold, are dropped;
//! - of what Kubernetes has got since 1.33 only `schedulingGroup` (1.36) is there: what else is new is to be judged before it is let through,
//!   since a pod may reach more by it (`podCertificate` gives credentials for the API server), and older clusters drop it without a word;
//! - quantities have the pattern of what Kubernetes can read, or a job with `32GiB` would be taken and its pods refused;
//! - lists that rules walk are bounded, or the API server refuses the rules as too expensive;
//! - lists with a natural key are maps, so that server-side apply merges them and doubles are refused.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use crate::{names::WORKER_CONTAINER, patterns::QUANTITY};

/// Environment variables that the operator sets itself, and those by which torch's own launcher tells a process its place.
pub const RESERVED_ENV_NAMES: [&str; 13] = [
    "RANK",
    "WORLD_SIZE",
    "LCL_CONFIG",
    "LCL_COORDINATOR",
    "LCL_INSECURE",
    "LCL_JOB",
    "LCL_JOB_UID",
    "LCL_LOG_FORMAT",
    "LCL_MEMBERS_PER_WORKER",
    "LCL_NODE",
    "LCL_POD_IP",
    "LCL_WORKER",
    "LCL_WORKER_INDEX",
];
/// Beginnings of environment variables that the operator, or torch's own launcher, claims.
pub const RESERVED_ENV_PREFIXES: [&str; 2] = ["MASTER_", "PET_"];

/// Fields that a pod has got since Kubernetes 1.33, wherever they stand, but for `schedulingGroup`.
const NEWER_FIELDS: [&str; 7] =
    ["bindMountOptions", "defaultUser", "evictionResponders", "fileKeyRef", "hostnameOverride", "podCertificate", "restartPolicyRules"];
/// The same below a part of the pod, where other parts have long had fields of these names.
const NEWER_FIELDS_BELOW: [(&str, &str); 3] = [("emptyDir", "mode"), ("grpc", "mode"), ("httpGet", "protocol")];
/// And this one where it is a number: elsewhere it is a name.
const NEWER_NUMBER: &str = "user";

/// Containers of one kind in a pod; a trainer and a few sidecars.
const MAX_CONTAINERS: u32 = 16;
/// Environment variables of a container.
const MAX_ENV: u32 = 256;
/// Characters of an environment variable's name.
const MAX_ENV_NAME: u32 = 256;

/// Schema of [`PodTemplateSpec`] for the field `template`.
pub(crate) fn pod_template_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = PodTemplateSpec::json_schema(generator).to_value();
    drop_descriptions(&mut schema);
    drop_newer_fields(&mut schema, "template");
    give_quantities_their_pattern(&mut schema);
    schema["properties"]["metadata"] = json!({
        "type": "object",
        "properties": {
            "labels": { "type": "object", "additionalProperties": { "type": "string" } },
            "annotations": { "type": "object", "additionalProperties": { "type": "string" } },
        },
    });
    schema["properties"]["spec"]["x-kubernetes-validations"] = json!([{
        "rule": format!("self.containers.exists(c, c.name == '{WORKER_CONTAINER}')"),
        "message": format!("must hold a container named `{WORKER_CONTAINER}`, in which the trainer runs"),
        "fieldPath": ".containers",
    }]);
    let spec = &mut schema["properties"]["spec"]["properties"];
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("ephemeralContainers");
    }
    for kind in ["containers", "initContainers"] {
        bound_containers(&mut spec[kind]);
    }
    make_map(&mut spec["volumes"], "name");
    Schema::try_from(schema).unwrap_or_default()
}

/// Schema of one field of a pod, by its name in manifests.
pub(crate) fn pod_field_schema(generator: &mut SchemaGenerator, name: &str) -> Schema {
    let mut schema = PodTemplateSpec::json_schema(generator).to_value();
    drop_descriptions(&mut schema);
    drop_newer_fields(&mut schema, "template");
    Schema::try_from(schema["properties"]["spec"]["properties"][name].take()).unwrap_or_default()
}

fn bound_containers(containers: &mut Value) {
    make_map(containers, "name");
    containers["maxItems"] = json!(MAX_CONTAINERS);
    let fields = &mut containers["items"]["properties"];
    make_map(&mut fields["volumeMounts"], "mountPath");
    let env = &mut fields["env"];
    make_map(env, "name");
    env["maxItems"] = json!(MAX_ENV);
    env["items"]["properties"]["name"]["maxLength"] = json!(MAX_ENV_NAME);
    env["items"]["x-kubernetes-validations"] = json!([{
        "rule": reserved_env_rule(),
        "message": "is set by the operator or means something to torch's launcher (RANK, WORLD_SIZE, MASTER_*, PET_*, LCL_JOB and the like): must not be given",
        "fieldPath": ".name",
    }]);
}

fn reserved_env_rule() -> String {
    let names = RESERVED_ENV_NAMES.map(|name| format!("'{name}'")).join(", ");
    let prefixes = RESERVED_ENV_PREFIXES.map(|prefix| format!("!self.name.startsWith('{prefix}')"));
    format!("!(self.name in [{names}]) && {}", prefixes.join(" && "))
}

fn make_map(list: &mut Value, key: &str) {
    list["x-kubernetes-list-type"] = json!("map");
    list["x-kubernetes-list-map-keys"] = json!([key]);
}

/// The fields that hold amounts: maps by resource, and single ones.
fn give_quantities_their_pattern(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match name.as_str() {
                    "limits" | "requests" | "overhead" => set_pattern(&mut field["additionalProperties"]),
                    "sizeLimit" | "divisor" => set_pattern(field),
                    _ => {}
                }
                give_quantities_their_pattern(field);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(give_quantities_their_pattern),
        _ => {}
    }
}

fn set_pattern(schema: &mut Value) {
    if schema["x-kubernetes-int-or-string"] == true {
        schema["pattern"] = json!(QUANTITY);
    }
}

/// Drops what is newer than what was judged; `part`: the field whose schema it is.
fn drop_newer_fields(schema: &mut Value, part: &str) {
    let is_newer = |name: &str, field: &Value| {
        NEWER_FIELDS.contains(&name) || NEWER_FIELDS_BELOW.contains(&(part, name)) || (name == NEWER_NUMBER && field["type"] == "integer")
    };
    if let Some(fields) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        fields.retain(|name, field| !is_newer(name, field));
        for (name, field) in fields.iter_mut() {
            drop_newer_fields(field, name);
        }
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(inner) {
            drop_newer_fields(inner, part);
        }
    }
}

fn drop_descriptions(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            // A property may itself be called "description": only the keyword (a text) goes.
            if fields.get("description").is_some_and(Value::is_string) {
                fields.remove("description");
            }
            fields.values_mut().for_each(drop_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_descriptions),
        _ => {}
    }
}
