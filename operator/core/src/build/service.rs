//! The address under which workers find the coordinator.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use lcl_crds::COORDINATOR_SUFFIX;

use crate::{
    build::{
        BuildContext, COORDINATOR_PORT,
        labels::{COORDINATOR_ROLE, pod_labels},
        metadata,
    },
    job::ValidatedJob,
};

/// Name of the coordinator's pod and Service.
#[must_use]
pub fn coordinator_name(job: &ValidatedJob) -> String {
    format!("{}{COORDINATOR_SUFFIX}", job.name())
}

/// Where a coordinator at this IP is reached, as an address of either family is written.
#[must_use]
pub fn coordinator_endpoint(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:{COORDINATOR_PORT}") } else { format!("{ip}:{COORDINATOR_PORT}") }
}

/// The Service `<job>-coordinator`. Its cluster IP is what workers are told, so that they need no DNS and no new address when the
/// coordinator is replaced. Not-ready pods are published: workers connect while the coordinator is still coming up, and a
/// probe that fails once must not cut them off.
pub(crate) fn build_service(job: &ValidatedJob, context: &BuildContext) -> Service {
    let selector = pod_labels(job, context, Some(COORDINATOR_ROLE));
    Service {
        metadata: metadata(job, context, coordinator_name(job), COORDINATOR_ROLE),
        spec: Some(ServiceSpec {
            // Made anew it has the address again that the workers know.
            cluster_ip: context.pins.address.clone(),
            type_: Some("ClusterIP".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector),
            ports: Some(vec![ServicePort {
                name: Some("grpc".to_owned()),
                port: COORDINATOR_PORT,
                target_port: Some(IntOrString::String("grpc".to_owned())),
                app_protocol: Some("kubernetes.io/h2c".to_owned()),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
