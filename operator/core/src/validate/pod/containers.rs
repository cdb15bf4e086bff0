//! Containers and init containers.

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, PodSpec, Probe, SeccompProfile, SecurityContext, VolumeMount},
    apimachinery::pkg::util::intstr::IntOrString,
};
use lcl_crds::WORKER_CONTAINER;

use super::{
    Findings, HIGHEST_ID, environment, has_backsteps, resources,
    syntax::{DNS_LABEL, PORT},
    volumes::OWN_VOLUMES,
};
use crate::build::CONFIG_FOLDER;

/// All containers of a pod.
pub(super) fn check(path: &str, spec: &PodSpec, findings: &mut Findings<'_>) {
    let volumes: Vec<&str> = spec.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
    let regular = spec.containers.iter().enumerate().map(|(index, container)| (format!("{path}.containers[{index}]"), container));
    let init = spec.init_containers.iter().flatten().enumerate();
    let init = init.map(|(index, container)| (format!("{path}.initContainers[{index}]"), container));
    for (field, container) in regular.chain(init.clone()) {
        check_container(&field, container, &volumes, findings);
    }
    for (index, container) in spec.containers.iter().enumerate() {
        let field = format!("{path}.containers[{index}]");
        if container.name == WORKER_CONTAINER {
            check_config_folder(&field, container, findings);
            environment::check_of_worker(&format!("{field}.env"), container, findings);
        } else if container.image.as_deref().unwrap_or_default().is_empty() {
            findings.missing(format!("{field}.image"));
        }
        check_probes(&field, container, findings);
        check_host_ports(&field, container, spec.host_network == Some(true), findings);
    }
    for (field, container) in init {
        if container.image.as_deref().unwrap_or_default().is_empty() {
            findings.missing(format!("{field}.image"));
        }
        if let Some(position) = spec.containers.iter().position(|other| other.name == container.name) {
            findings.add(&format!("{field}.name"), container.name.as_str(), format!("must differ from {path}.containers[{position}]"));
        }
        check_init_container(&field, container, findings);
    }
}

fn check_container(path: &str, container: &Container, volumes: &[&str], findings: &mut Findings<'_>) {
    findings.check_name(&DNS_LABEL, &format!("{path}.name"), &container.name);
    let policy = container.image_pull_policy.as_deref();
    findings.check_one_of(&format!("{path}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    let policy = container.termination_message_policy.as_deref();
    findings.check_one_of(&format!("{path}.terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]);
    check_ports(&format!("{path}.ports"), container.ports.as_deref().unwrap_or_default(), findings);
    environment::check(path, container, findings);
    let privileged = container.security_context.as_ref().and_then(|context| context.privileged) == Some(true);
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        check_mount(&format!("{path}.volumeMounts[{index}]"), mount, volumes, privileged, findings);
    }
    if let Some(resources) = &container.resources {
        resources::check(&format!("{path}.resources"), resources, findings);
    }
    // A worker's pod is never restarted in its place.
    for (index, policy) in container.resize_policy.iter().flatten().enumerate() {
        let field = |name: &str| format!("{path}.resizePolicy[{index}].{name}");
        findings.check_one_of(&field("resourceName"), Some(&policy.resource_name), &["cpu", "memory"]);
        findings.check_one_of(&field("restartPolicy"), Some(&policy.restart_policy), &["NotRequired"]);
    }
    if let Some(security) = &container.security_context {
        check_security(&format!("{path}.securityContext"), security, findings);
    }
}

fn check_init_container(path: &str, container: &Container, findings: &mut Findings<'_>) {
    if container.restart_policy.as_deref() == Some("Always") {
        check_probes(path, container, findings);
        return;
    }
    for (name, is_given) in [
        ("lifecycle", container.lifecycle.is_some()),
        ("livenessProbe", container.liveness_probe.is_some()),
        ("readinessProbe", container.readiness_probe.is_some()),
        ("startupProbe", container.startup_probe.is_some()),
    ] {
        if is_given {
            findings.add_rule(&format!("{path}.{name}"), "must not be given for an init container unless its restartPolicy is Always");
        }
    }
}

/// The configuration is mounted unless something else is mounted in its place: then the trainer does not find it.
fn check_config_folder(path: &str, container: &Container, findings: &mut Findings<'_>) {
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        if mount.mount_path.trim_end_matches('/') == CONFIG_FOLDER {
            let field = format!("{path}.volumeMounts[{index}].mountPath");
            findings.add(&field, mount.mount_path.as_str(), "is the folder in which the operator mounts the trainer's configuration");
        }
    }
}

fn check_ports(path: &str, ports: &[ContainerPort], findings: &mut Findings<'_>) {
    for (index, port) in ports.iter().enumerate() {
        let field = |name: &str| format!("{path}[{index}].{name}");
        findings.check_optional_name(&PORT, &field("name"), port.name.as_deref());
        let name = port.name.as_deref().filter(|name| !name.is_empty());
        if name.is_some() && ports.get(..index).unwrap_or_default().iter().any(|other| other.name.as_deref() == name) {
            findings.add(&field("name"), name.unwrap_or_default(), "must not be given twice");
        }
        findings.check_range(&field("containerPort"), Some(port.container_port), 1, Some(65_535));
        findings.check_range(&field("hostPort"), port.host_port.filter(|port| *port != 0), 1, Some(65_535));
        findings.check_one_of(&field("protocol"), port.protocol.as_deref(), &["TCP", "UDP", "SCTP"]);
    }
}

fn check_host_ports(path: &str, container: &Container, is_on_host: bool, findings: &mut Findings<'_>) {
    for (index, port) in container.ports.iter().flatten().enumerate().filter(|_| is_on_host) {
        // Without one Kubernetes fills in the container's.
        if let Some(host_port) = port.host_port.filter(|host_port| *host_port != 0 && *host_port != port.container_port) {
            findings.add(&format!("{path}.ports[{index}].hostPort"), host_port, "must be containerPort when hostNetwork is true");
        }
    }
}

fn check_mount(path: &str, mount: &VolumeMount, volumes: &[&str], privileged: bool, findings: &mut Findings<'_>) {
    let field = |name: &str| format!("{path}.{name}");
    if !volumes.contains(&mount.name.as_str()) && !OWN_VOLUMES.contains(&mount.name.as_str()) {
        let known = if volumes.is_empty() { "there is none".to_owned() } else { format!("there are {}", volumes.join(", ")) };
        findings.add(&field("name"), mount.name.as_str(), format!("must be a volume of the pod: {known}"));
    }
    findings.check_given(&field("mountPath"), &mount.mount_path);
    let (sub_path, expression) = (mount.sub_path.as_deref().unwrap_or_default(), mount.sub_path_expr.as_deref().unwrap_or_default());
    findings.check_path_below(&field("subPath"), sub_path);
    findings.check_path_below(&field("subPathExpr"), expression);
    if !sub_path.is_empty() && !expression.is_empty() {
        findings.add(&field("subPathExpr"), expression, "must not be given together with subPath");
    }
    let propagation = mount.mount_propagation.as_deref();
    findings.check_one_of(&field("mountPropagation"), propagation, &["None", "HostToContainer", "Bidirectional"]);
    if propagation == Some("Bidirectional") && !privileged {
        findings.add(&field("mountPropagation"), "Bidirectional", "must not be given unless the container is privileged");
    }
    let recursive = mount.recursive_read_only.as_deref();
    findings.check_one_of(&field("recursiveReadOnly"), recursive, &["Disabled", "IfPossible", "Enabled"]);
    if matches!(recursive, Some("IfPossible" | "Enabled")) && mount.read_only != Some(true) {
        findings.add(&field("recursiveReadOnly"), recursive.unwrap_or_default(), "must not be given unless readOnly is true");
    }
}

fn check_security(path: &str, security: &SecurityContext, findings: &mut Findings<'_>) {
    for (name, id) in [("runAsUser", security.run_as_user), ("runAsGroup", security.run_as_group)] {
        findings.check_range(&format!("{path}.{name}"), id, 0, Some(HIGHEST_ID));
    }
    if security.privileged == Some(true) && security.allow_privilege_escalation == Some(false) {
        findings.add(&format!("{path}.allowPrivilegeEscalation"), false, "must not be false when privileged is true");
    }
    if let Some(profile) = &security.seccomp_profile {
        check_seccomp(&format!("{path}.seccompProfile"), profile, findings);
    }
}

pub(super) fn check_seccomp(path: &str, profile: &SeccompProfile, findings: &mut Findings<'_>) {
    findings.check_one_of(&format!("{path}.type"), Some(&profile.type_), &["Localhost", "RuntimeDefault", "Unconfined"]);
    let field = format!("{path}.localhostProfile");
    match (profile.type_ == "Localhost", &profile.localhost_profile) {
        (true, None) => findings.missing(field),
        (true, Some(name)) => findings.check_path_below(&field, name),
        (false, Some(name)) => findings.add(&field, name.as_str(), "must not be given unless the type is Localhost"),
        (false, None) => {}
    }
}

fn check_probes(path: &str, container: &Container, findings: &mut Findings<'_>) {
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        if let Some(probe) = probe {
            check_probe(&format!("{path}.{name}"), probe, name == "readinessProbe", findings);
        }
    }
    let hooks = container.lifecycle.iter().flat_map(|lifecycle| [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)]);
    for (name, hook) in hooks.filter_map(|(name, hook)| Some((name, hook.as_ref()?))) {
        let given = [hook.exec.is_some(), hook.http_get.is_some(), hook.tcp_socket.is_some(), hook.sleep.is_some()];
        check_single(&format!("{path}.lifecycle.{name}"), &given, "exec, httpGet, tcpSocket and sleep", findings);
    }
}

/// Exactly one of several members is given.
pub(super) fn check_single(path: &str, given: &[bool], names: &str, findings: &mut Findings<'_>) {
    if given.iter().filter(|is_given| **is_given).count() != 1 {
        findings.add_rule(path, format!("exactly one of {names} must be given"));
    }
}

fn check_probe(path: &str, probe: &Probe, is_readiness: bool, findings: &mut Findings<'_>) {
    let field = |name: &str| format!("{path}.{name}");
    let given = [probe.exec.is_some(), probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.grpc.is_some()];
    check_single(path, &given, "exec, httpGet, tcpSocket and grpc", findings);
    if probe.exec.as_ref().is_some_and(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        findings.missing(field("exec.command"));
    }
    if let Some(get) = &probe.http_get {
        check_port(&field("httpGet.port"), &get.port, findings);
        findings.check_one_of(&field("httpGet.scheme"), get.scheme.as_deref(), &["HTTP", "HTTPS"]);
    }
    if let Some(socket) = &probe.tcp_socket {
        check_port(&field("tcpSocket.port"), &socket.port, findings);
    }
    if let Some(grpc) = &probe.grpc {
        findings.check_range(&field("grpc.port"), Some(grpc.port), 1, Some(65_535));
    }
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        findings.check_range(&field(name), value, 0, None);
    }
    // 0 stands for the default, which is 1.
    if let Some(threshold) = probe.success_threshold.filter(|threshold| *threshold > 1 && !is_readiness) {
        findings.add(&field("successThreshold"), threshold, "must be 1");
    }
    match probe.termination_grace_period_seconds {
        Some(seconds) if is_readiness => {
            findings.add(&field("terminationGracePeriodSeconds"), seconds, "must not be given for a readinessProbe");
        }
        seconds => findings.check_range(&field("terminationGracePeriodSeconds"), seconds, 1, None),
    }
}

fn check_port(path: &str, port: &IntOrString, findings: &mut Findings<'_>) {
    match port {
        IntOrString::Int(port) => findings.check_range(path, Some(*port), 1, Some(65_535)),
        IntOrString::String(name) => findings.check_name(&PORT, path, name),
    }
}

/// An absolute path in a container.
pub(super) fn check_host_path(path: &str, value: &str, findings: &mut Findings<'_>) {
    findings.check_given(path, value);
    if has_backsteps(value) {
        findings.add(path, value, "must not hold a `..` component");
    }
}
