//! The pod that decides membership.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, HTTPGetAction, Pod, PodSpec, Probe, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use crate::{
    build::{
        BuildContext, COORDINATOR_PAIR, INCIDENT_ANNOTATION,
        certificates::{mount_certificates, secret_name},
        labels::COORDINATOR_ROLE,
        metadata,
        pod_defaults::{fill_pod, set_env},
        service::coordinator_name,
        service_account::service_account_name,
    },
    job::ValidatedJob,
    timeouts::Timeouts,
};

/// Name of the coordinator's container.
pub const COORDINATOR_CONTAINER: &str = "coordinator";
/// The coordinator's epoch, on its pod.
pub const EPOCH_ANNOTATION: &str = "lcl.dev/coordinator-epoch";
/// Port of its gRPC service.
pub const COORDINATOR_PORT: i32 = 7433;
/// Port of its `/metrics` and `/healthz`, in plain HTTP; the operator's own.
pub(super) const METRICS_PORT: i32 = 8080;

/// `<job>-coordinator` for the given epoch, a number that grows with every coordinator of the job: by it members and checkpoints tell a new
/// coordinator from an old one. It keeps nothing on disk.
pub(crate) fn build_coordinator_pod(job: &ValidatedJob, context: &BuildContext, epoch: u64) -> Pod {
    let mut container = Container {
        name: COORDINATOR_CONTAINER.to_owned(),
        image: Some(context.pins.coordinator_image.clone()),
        image_pull_policy: context.image_pull_policy.clone(),
        ports: Some([("grpc", COORDINATOR_PORT), ("metrics", METRICS_PORT)].map(port).into()),
        readiness_probe: Some(Probe {
            // The gRPC port takes nobody without a certificate.
            http_get: Some(HTTPGetAction {
                path: Some("/healthz".to_owned()),
                port: IntOrString::String("metrics".to_owned()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(2),
            ..Probe::default()
        }),
        resources: Some(resources(job)),
        ..Container::default()
    };
    set_environment(&mut container, job, context, epoch);
    let mut spec = PodSpec { termination_grace_period_seconds: Some(10), ..placement(job) };
    mount_certificates(&mut spec, &mut container, secret_name(job, context), COORDINATOR_PAIR);
    spec.containers.push(container);
    fill_pod(&mut spec, service_account_name(job), COORDINATOR_CONTAINER);
    let mut pod_metadata = metadata(job, context, coordinator_name(job), COORDINATOR_ROLE);
    pod_metadata.annotations = Some(annotations(epoch, context.incident));
    Pod { metadata: pod_metadata, spec: Some(spec), status: None }
}

fn resources(job: &ValidatedJob) -> ResourceRequirements {
    let given = job.spec().coordinator.as_ref().and_then(|coordinator| coordinator.resources.clone());
    given.unwrap_or_else(|| ResourceRequirements {
        requests: Some(quantities([("cpu", "50m"), ("memory", "64Mi")])),
        limits: Some(quantities([("memory", "512Mi")])),
        claims: None,
    })
}

/// Where the pod may run and with what its image is pulled: as the job says, or else as its workers do, which a cluster has made room for.
/// Affinities and spreading are not taken over: they are about the workers themselves.
fn placement(job: &ValidatedJob) -> PodSpec {
    let own = job.spec().coordinator.clone().unwrap_or_default();
    let workers = job.pod().cloned().unwrap_or_default();
    PodSpec {
        node_selector: own.node_selector.or(workers.node_selector),
        tolerations: own.tolerations.or(workers.tolerations),
        affinity: own.affinity,
        topology_spread_constraints: own.topology_spread_constraints,
        priority_class_name: own.priority_class_name.or(workers.priority_class_name),
        runtime_class_name: own.runtime_class_name.or(workers.runtime_class_name),
        scheduler_name: own.scheduler_name,
        image_pull_secrets: own.image_pull_secrets.or(workers.image_pull_secrets),
        ..PodSpec::default()
    }
}

fn port((name, number): (&str, i32)) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: number, protocol: Some("TCP".to_owned()), ..ContainerPort::default() }
}

/// Whoever scrapes by annotation finds the metrics; whoever selects pods by label (a `PodMonitor`) names the port.
fn annotations(epoch: u64, incident: i64) -> BTreeMap<String, String> {
    [
        (EPOCH_ANNOTATION, epoch.to_string()),
        (INCIDENT_ANNOTATION, incident.to_string()),
        ("prometheus.io/scrape", "true".to_owned()),
        ("prometheus.io/port", METRICS_PORT.to_string()),
        ("prometheus.io/path", "/metrics".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// All addresses of the family that the job's Service has, which is the first of the pod's. A pinned program of an earlier release may know no
/// way out on a node without IPv6.
fn any_address(context: &BuildContext) -> &'static str {
    let is_ipv6 = context.pins.address.as_ref().is_none_or(|address| address.contains(':'));
    if is_ipv6 { "[::]" } else { "0.0.0.0" }
}

fn set_environment(container: &mut Container, job: &ValidatedJob, context: &BuildContext, epoch: u64) {
    let any = any_address(context);
    let members = i64::from(job.members_per_worker());
    let workers = job.world();
    set_env(container, "LCL_LISTEN", &format!("{any}:{COORDINATOR_PORT}"));
    set_env(container, "LCL_METRICS_LISTEN", &format!("{any}:{METRICS_PORT}"));
    set_env(container, "LCL_EPOCH", &epoch.to_string());
    set_env(container, "LCL_MIN_MEMBERS", &(i64::from(workers.min) * members).to_string());
    set_env(container, "LCL_DESIRED_MEMBERS", &(i64::from(workers.desired) * members).to_string());
    set_env(container, "LCL_MAX_MEMBERS", &(i64::from(workers.max) * members).to_string());
    set_env(container, "LCL_LOG_FORMAT", "json");
    for (name, value) in Timeouts::of(job).variables() {
        set_env(container, name, &value);
    }
}

fn quantities<const N: usize>(values: [(&str, &str); N]) -> BTreeMap<String, Quantity> {
    values.map(|(name, value)| (name.to_owned(), Quantity(value.to_owned()))).into()
}
