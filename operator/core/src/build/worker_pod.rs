//! A worker's pod: the user's template with the trainer's parts merged in.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        ConfigMapVolumeSource, Container, EmptyDirVolumeSource, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
        PreferredSchedulingTerm, Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use lcl_crds::{WORKER_CONTAINER, WORKER_INFIX};
use lcl_trainer_config::{CACHE_BYTES, ShardEntry, is_object_uri};

use crate::{
    build::{
        BuildContext, HISTORY_ANNOTATION, INCIDENT_ANNOTATION, WORKER_PAIR,
        certificates::{CERTIFICATES_VOLUME, mount_certificates, secret_name},
        config_map::CONFIG_FILE,
        labels::{WORKER_INDEX_LABEL, WORKER_ROLE},
        metadata,
        pod_defaults::{fill_pod, set_env, set_env_from_field, set_env_unless_given},
        service::coordinator_endpoint,
        service_account::service_account_name,
    },
    job::ValidatedJob,
    resources::AppliedResources,
};

/// Where the configuration is mounted.
pub(crate) const CONFIG_FOLDER: &str = "/etc/lcl";
/// Volumes of the operator; their names are out of a user's way.
const CONFIG_VOLUME: &str = "lcl-config";
const SHARED_MEMORY_VOLUME: &str = "lcl-shm";
const TEMPORARY_VOLUME: &str = "lcl-tmp";
const CACHE_VOLUME: &str = "lcl-cache";
pub(crate) const OWN_VOLUMES: [&str; 5] = [CONFIG_VOLUME, SHARED_MEMORY_VOLUME, TEMPORARY_VOLUME, CACHE_VOLUME, CERTIFICATES_VOLUME];
/// Where the cache of data is mounted, when data come from an object store and the job does not say where it is.
pub(crate) const CACHE_FOLDER: &str = "/var/cache/lcl";
/// The volume's limit beside the cache's: indexes lie there too, and a pod over the limit is evicted.
const CACHE_VOLUME_PART: u64 = 4;
/// Room for what libtorch and NCCL share between a pod's processes. It counts as the pod's memory only as far as it is used.
const SHARED_MEMORY: &str = "8Gi";
/// Time to finish a step and commit a checkpoint after SIGTERM, when the template does not say.
const GRACE_SECONDS: i64 = 120;
/// Of the grace period, what is left for the worker to say how it ended, and for its sidecars; of a short one half.
const AFTER_DRAIN: i64 = 10;
/// A node's name, the one field that nodes are selected by.
const NODE_NAME_FIELD: &str = "metadata.name";
/// The greatest that there is.
const GREATEST_WEIGHT: i32 = 100;
/// Place of a pod among its peers, as batch Jobs label it: topology-aware schedulers order by it.
const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// How long a worker is given to end. Less than nothing, which only a job stored under older rules can ask for, is a second, as
/// Kubernetes has it.
pub(crate) fn worker_grace_seconds(job: &ValidatedJob) -> i64 {
    match job.pod().and_then(|pod| pod.termination_grace_period_seconds).unwrap_or(GRACE_SECONDS) {
        ..0 => 1,
        seconds => seconds,
    }
}

/// How long the members of a worker may take to leave in order, in seconds.
fn drain_seconds(job: &ValidatedJob) -> i64 {
    let grace = worker_grace_seconds(job);
    (grace - AFTER_DRAIN).max(grace / 2)
}

/// `<job>-w-<index>`.
#[must_use]
pub fn worker_pod_name(job: &ValidatedJob, index: u32) -> String {
    format!("{}{WORKER_INFIX}{index}", job.name())
}

/// Which worker's pod it is by its name: the inverse of [`worker_pod_name`].
pub(crate) fn worker_pod_index(job: &ValidatedJob, name: &str) -> Option<u32> {
    let index = name.strip_prefix(job.name())?.strip_prefix(WORKER_INFIX)?.parse().ok()?;
    // Numbers are written in more ways than one: `01`, `+1`.
    (worker_pod_name(job, index) == name).then_some(index)
}

/// The pod of worker `index`. The same for every size of the world, so that scaling touches no pod that stays.
pub(crate) fn build_worker_pod(job: &ValidatedJob, context: &BuildContext, resources: &AppliedResources, index: u32) -> Pod {
    let template = job.spec().workers.template.clone().unwrap_or_default();
    let mut pod_metadata = metadata(job, context, worker_pod_name(job, index), WORKER_ROLE);
    let given = template.metadata.unwrap_or_default();
    let mut labels = given.labels.unwrap_or_default();
    labels.extend(pod_metadata.labels.take().unwrap_or_default());
    labels.insert(WORKER_INDEX_LABEL.to_owned(), index.to_string());
    labels.insert(COMPLETION_INDEX.to_owned(), index.to_string());
    pod_metadata.labels = Some(labels);
    let mut annotations = BTreeMap::from(
        // Moving a training pod to tidy up a node costs more than the node.
        [("karpenter.sh/do-not-disrupt", "true"), ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false")]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    annotations.extend(given.annotations.unwrap_or_default());
    annotations.insert(INCIDENT_ANNOTATION.to_owned(), context.incident.to_string());
    annotations.insert(HISTORY_ANNOTATION.to_owned(), context.history.to_string());
    pod_metadata.annotations = Some(annotations);

    let mut spec = template.spec.unwrap_or_default();
    let position = spec.containers.iter().position(|container| container.name == WORKER_CONTAINER);
    let mut container = position.map_or_else(Container::default, |position| spec.containers.remove(position));
    fill_worker(&mut container, job, context, index);
    set_env(&mut container, "LCL_COORDINATOR", &coordinator_endpoint(resources.address()));
    mount_certificates(&mut spec, &mut container, secret_name(job, context), WORKER_PAIR);
    // First, so that `kubectl logs` and `exec` take it without being told.
    spec.containers.insert(0, container);
    add_volumes(&mut spec, job, &resources.config().name);
    spec.hostname.get_or_insert_with(|| worker_pod_name(job, index));
    spec.termination_grace_period_seconds = Some(worker_grace_seconds(job));
    fill_pod(&mut spec, service_account_name(job), WORKER_CONTAINER);
    Pod { metadata: pod_metadata, spec: Some(spec), status: None }
}

/// A node other than this one. By its name: its label `kubernetes.io/hostname` may say something else.
fn other_than(node: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement { key: NODE_NAME_FIELD.to_owned(), operator: "NotIn".to_owned(), values: Some(vec![node.to_owned()]) }
}

/// Has a pod placed on none of these nodes.
pub(crate) fn exclude_nodes<'a>(pod: &mut Pod, nodes: impl Iterator<Item = &'a str>) {
    let others: Vec<_> = nodes.map(other_than).collect();
    if others.is_empty() {
        return;
    }
    let affinity = pod.spec.get_or_insert_default().affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let terms = &mut affinity.required_during_scheduling_ignored_during_execution.get_or_insert_default().node_selector_terms;
    if terms.is_empty() {
        terms.push(NodeSelectorTerm::default());
    }
    // One of the terms has to hold, and of a term everything.
    for term in terms {
        term.match_fields.get_or_insert_default().extend(others.iter().cloned());
    }
}

/// Has a pod placed elsewhere, if there is room elsewhere.
pub(crate) fn avoid_node(pod: &mut Pod, node: &str) {
    let elsewhere = NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![other_than(node)]) };
    let affinity = pod.spec.get_or_insert_default().affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let preferred = affinity.preferred_during_scheduling_ignored_during_execution.get_or_insert_default();
    preferred.push(PreferredSchedulingTerm { weight: GREATEST_WEIGHT, preference: elsewhere });
}

fn fill_worker(container: &mut Container, job: &ValidatedJob, context: &BuildContext, index: u32) {
    WORKER_CONTAINER.clone_into(&mut container.name);
    container.image = Some(context.pins.trainer_image.clone());
    if container.image_pull_policy.is_none() {
        container.image_pull_policy.clone_from(&context.image_pull_policy);
    }
    if container.command.is_none() && container.args.is_none() {
        container.args = Some(vec!["worker".to_owned()]);
    }
    container.resources.clone_from(&job.spec().workers.resources);
    for (path, volume, read_only) in
        [(CONFIG_FOLDER, CONFIG_VOLUME, Some(true)), ("/dev/shm", SHARED_MEMORY_VOLUME, None), ("/tmp", TEMPORARY_VOLUME, None)]
    {
        let mounts = container.volume_mounts.get_or_insert_default();
        if !mounts.iter().any(|mount| mount.mount_path == path) {
            mounts.push(VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), read_only, ..VolumeMount::default() });
        }
    }
    if has_cache_volume(job) {
        let mount = VolumeMount { name: CACHE_VOLUME.to_owned(), mount_path: CACHE_FOLDER.to_owned(), ..VolumeMount::default() };
        container.volume_mounts.get_or_insert_default().push(mount);
    }
    set_env(container, "LCL_JOB", job.name());
    set_env(container, "LCL_JOB_UID", &context.uid);
    set_env(container, "LCL_CONFIG", &format!("{CONFIG_FOLDER}/{CONFIG_FILE}"));
    set_env(container, "LCL_WORKER", &worker_pod_name(job, index));
    set_env(container, "LCL_WORKER_INDEX", &index.to_string());
    set_env(container, "LCL_MEMBERS_PER_WORKER", &job.members_per_worker().to_string());
    set_env_unless_given(container, "LCL_DRAIN_TIMEOUT", &drain_seconds(job).to_string());
    if let Some(threads) = threads_of_member(job) {
        set_env_unless_given(container, "LCL_THREADS", &threads.to_string());
    }
    set_env_from_field(container, "LCL_NODE", "spec.nodeName");
    set_env_from_field(container, "LCL_POD_IP", "status.podIP");
    set_env(container, "LCL_LOG_FORMAT", "json");
}

/// The processors that were asked for, shared out among the members: a node shows every container all of its processors, and members that
/// share a node would each start a thread for every one.
fn threads_of_member(job: &ValidatedJob) -> Option<u64> {
    Some((job.processors_per_worker()?.whole() / u64::from(job.members_per_worker())).max(1))
}

/// Whether data come from an object store and the job says not where they are to be kept. A list of shards may name objects too.
fn has_cache_volume(job: &ValidatedJob) -> bool {
    let is_object = |entry: &String| is_object_uri(entry) || matches!(ShardEntry::parse(entry), Ok(ShardEntry::List(_)));
    let is_given = job.spec().data.cache.as_ref().is_some_and(|cache| cache.path.is_some());
    let has_index = job.spec().data.index_path.as_deref().is_some_and(is_object_uri);
    !is_given && (has_index || job.source().lists().iter().any(|(_, list)| list.iter().any(is_object)))
}

fn add_volumes(spec: &mut PodSpec, job: &ValidatedJob, config: &str) {
    let config = Volume {
        name: CONFIG_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource { name: config.to_owned(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    };
    let empty = |name: &str, medium: Option<&str>, limit: Option<&str>| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: medium.map(str::to_owned),
            size_limit: limit.map(|limit| Quantity(limit.to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    };
    spec.volumes.get_or_insert_default().extend([
        config,
        empty(SHARED_MEMORY_VOLUME, Some("Memory"), Some(SHARED_MEMORY)),
        empty(TEMPORARY_VOLUME, None, None),
    ]);
    if has_cache_volume(job) {
        let size = job.spec().data.cache.as_ref().and_then(|cache| cache.size_gib).map_or(CACHE_BYTES >> 30, i64::unsigned_abs);
        let limit = format!("{}Gi", size + size.div_ceil(CACHE_VOLUME_PART));
        spec.volumes.get_or_insert_default().push(empty(CACHE_VOLUME, None, Some(&limit)));
    }
}
