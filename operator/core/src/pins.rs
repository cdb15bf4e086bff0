//! What a group that runs keeps, though the job or the operator changes: its configuration, its images, its coordinator's address.
//!
//! Members must all train by one configuration and one release; a pod that is replaced gets what the others have. What a change of the job
//! alters of this takes effect on all members at one step: the group writes a checkpoint, ends, and starts again with it. A new release of
//! the operator alone changes nothing of a group that runs.

use lcl_crds::{LCLTrainingJobStatus, PinnedStatus, WORKER_CONTAINER};
use serde_json::{Map, Value, json};

use crate::{job::ValidatedJob, validate::complete};

/// Parts of the spec that the trainer's configuration is made of.
const PARTS: [&str; 4] = ["model", "data", "optimization", "checkpoint"];
/// The worker's image, where the template names one.
const IMAGE: &str = "image";

/// What a group is started with: what the operator would pin now.
#[must_use]
pub fn offer(job: &ValidatedJob, generation: i64, coordinator_image: &str, trainer_image: &str) -> PinnedStatus {
    let own = job.worker_container().and_then(|container| container.image.clone());
    PinnedStatus {
        generation,
        config: format!("{}-config-{generation}", job.name()),
        coordinator_image: coordinator_image.to_owned(),
        trainer_image: own.unwrap_or_else(|| trainer_image.to_owned()),
        address: None,
        authority: None,
        certificates_expire: None,
    }
}

/// What holds for the pods that are there. `None`: none is there and none was, so that the next ones may have anything.
#[must_use]
pub fn in_force(status: &LCLTrainingJobStatus, has_pods: bool) -> Option<&PinnedStatus> {
    let was_created = status.workers.as_ref().is_some_and(|workers| workers.created > 0);
    status.pinned.as_ref().filter(|_| has_pods || was_created)
}

/// The parts of a job's spec that a group keeps, as they are stored beside its configuration.
#[must_use]
pub fn pinned_spec(job: &ValidatedJob) -> Value {
    let spec = serde_json::to_value(job.spec()).unwrap_or_default();
    let mut parts: Map<String, Value> = PARTS.iter().map(|part| ((*part).to_owned(), spec[*part].clone())).collect();
    if let Some(image) = job.worker_container().and_then(|container| container.image.as_ref()) {
        parts.insert(IMAGE.to_owned(), json!(image));
    }
    Value::Object(parts)
}

/// The first field of the spec in which the job differs from what a group was started with. A field that is new in the definition differs in
/// nothing from its default.
#[must_use]
pub fn find_change(pinned: &Value, job: &ValidatedJob) -> Option<String> {
    let now = pinned_spec(job);
    if pinned[IMAGE] != now[IMAGE] {
        return Some(format!("spec.workers.template.spec.containers[{WORKER_CONTAINER}].image"));
    }
    let whole = |parts: &Value| complete(&json!({ "spec": parts }))["spec"].take();
    let (before, now) = (whole(pinned), whole(&now));
    PARTS.iter().find_map(|part| find_difference(&before[*part], &now[*part], format!("spec.{part}")))
}

fn find_difference(before: &Value, now: &Value, path: String) -> Option<String> {
    let (Value::Object(old), Value::Object(new)) = (before, now) else { return (before != now).then_some(path) };
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().find_map(|name| find_difference(&before[name], &now[name], format!("{path}.{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::validate;

    fn job(steps: i64) -> ValidatedJob {
        let manifest = json!({
            "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "metadata": { "name": "job" },
            "spec": {
                "model": { "preset": "tiny" }, "data": { "webdataset": { "shards": ["/a.tar"] } },
                "optimization": { "steps": steps, "globalBatchSize": 8 }, "checkpoint": { "uri": "file:///runs/a" },
            },
        });
        validate(&manifest).unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// What an earlier release has pinned lacks the fields that are new since.
    #[test]
    fn a_field_that_is_new_in_the_definition_is_no_change_and_one_that_was_changed_is_named() {
        let mut pinned = pinned_spec(&job(100));
        pinned["data"].as_object_mut().and_then(|data| data.remove("maxBadFraction")).expect("a field with a default");
        pinned["optimization"].as_object_mut().and_then(|fields| fields.remove("seed")).expect("another");
        assert_eq!(find_change(&pinned, &job(100)), None);
        assert_eq!(find_change(&pinned, &job(101)).as_deref(), Some("spec.optimization.steps"));
        pinned["data"]["maxBadFraction"] = json!(0.5);
        assert_eq!(find_change(&pinned, &job(100)).as_deref(), Some("spec.data.maxBadFraction"));
    }
}
