//! Schema of what a container asks for.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::patterns::QUANTITY;

/// Requests and limits: Kubernetes' names of resources, with amounts.
pub(crate) fn resources_schema(_: &mut SchemaGenerator) -> Schema {
    let amounts = json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "x-kubernetes-int-or-string": true, "pattern": QUANTITY },
    });
    json_schema!({ "type": "object", "properties": { "requests": amounts, "limits": amounts } })
}
