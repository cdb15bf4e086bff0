//! Jobs for tests, and a short way to change one field of them.

#![allow(dead_code, reason = "every test uses a part")]

use serde_json::{Map, Value, json};

/// The shortest valid job.
pub(crate) fn minimal_job() -> Value {
    json!({
        "apiVersion": "lcl.dev/v1alpha1",
        "kind": "LCLTrainingJob",
        "metadata": { "name": "job" },
        "spec": {
            "model": { "preset": "tiny" },
            "data": { "webdataset": { "shards": ["/data/a.tar"] } },
            "optimization": { "steps": 100, "globalBatchSize": 8, "schedule": { "constant": { "warmupSteps": 0 } } },
            "checkpoint": { "uri": "file:///runs/a" },
        },
    })
}

/// Applies assignments such as `spec.optimization.steps = 1; spec.elastic = {'minWorkers': 1}`. Values are JSON with single quotes;
/// `delete` takes the field away. Objects on the way are made.
pub(crate) fn assign(job: &mut Value, assignments: &str) {
    for assignment in assignments.split(';').map(str::trim).filter(|assignment| !assignment.is_empty()) {
        let (path, value) = assignment.split_once(" = ").unwrap_or_else(|| panic!("{assignment} is no assignment"));
        let names: Vec<&str> = path.trim().split('.').collect();
        let (last, parents) = names.split_last().unwrap();
        let parent = parents
            .iter()
            .fold(&mut *job, |object, name| object.as_object_mut().unwrap().entry(*name).or_insert_with(|| Value::Object(Map::new())));
        let parent = parent.as_object_mut().unwrap();
        if value == "delete" {
            parent.remove(*last);
        } else {
            let value = serde_json::from_str(&value.replace('\'', "\"")).unwrap_or_else(|error| panic!("{assignment}: {error}"));
            parent.insert((*last).to_owned(), value);
        }
    }
}
