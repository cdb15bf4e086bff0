//! Schema of what a container asks for.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::patterns::QUANTITY;

/// Requests and limits: Kubernetes' names of resources, with amounts.
pub(crate) fn resources_schema(_: &mut SchemaGenerator) -> Schema {
    let amounts = |description: &str| {
        json_schema!({
            "description": description,
            "type": "object",
            "maxProperties": 64,
            "additionalProperties": { "x-kubernetes-int-or-string": true, "pattern": QUANTITY },
        })
    };
    let requests = amounts("What is reserved on the node. Of what is left out here as much as its limit.");
    let limits = amounts("What the container may use at most. Devices are given here.");
    json_schema!({ "type": "object", "properties": { "requests": requests, "limits": limits } })
}
