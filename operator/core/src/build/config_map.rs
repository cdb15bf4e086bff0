//! The trainer's configuration, mounted by every worker.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use lcl_trainer_config::Device;

use crate::{
    build::{BuildContext, labels::COORDINATOR_ROLE, metadata, worker_pod::CACHE_FOLDER},
    job::ValidatedJob,
    paths::PathMapping,
    pins::pinned_spec,
    render::{Surroundings, render_trainer_config},
};

/// Key of the configuration in the `ConfigMap`, and the file's name in the container.
pub const CONFIG_FILE: &str = "trainer-config.json";

/// Threads that read and decode in a worker whose job does not say.
const DATA_THREADS: usize = 4;

/// Key of the parts of the spec that it was made from.
pub const SPEC_FILE: &str = "spec.json";

/// The configuration of one group, under the name that is pinned: it never changes, so that a worker that is replaced reads what the others
/// have read.
pub(crate) fn build_config_map(job: &ValidatedJob, context: &BuildContext) -> ConfigMap {
    let surroundings = Surroundings {
        paths: PathMapping::in_container(),
        device: Device::Auto,
        threads: None,
        cache_folder: Some(CACHE_FOLDER),
        data_threads: DATA_THREADS,
    };
    // A configuration is numbers, texts and lists: it always has a JSON form.
    let json = serde_json::to_string_pretty(&render_trainer_config(job, &surroundings)).unwrap_or_default();
    let data = [(CONFIG_FILE.to_owned(), json), (SPEC_FILE.to_owned(), pinned_spec(job).to_string())];
    ConfigMap {
        metadata: metadata(job, context, context.pins.config.clone(), COORDINATOR_ROLE),
        data: Some(BTreeMap::from(data)),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}
