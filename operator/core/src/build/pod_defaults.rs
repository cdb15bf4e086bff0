//! What every pod of a job has unless the user says otherwise: no root, no capabilities, nothing writable but what is mounted.

use k8s_openapi::api::core::v1::{
    Container, EnvVar, EnvVarSource, ObjectFieldSelector, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext, Toleration,
};

/// User and group of the images.
const USER: i64 = 65_532;
/// Kubernetes' and the kernel's.
const ROOT: i64 = 0;
/// Seconds a pod stays on a node that is not ready or cannot be reached; the coordinator has evicted its members long before.
const TOLERATION_SECONDS: i64 = 10;

/// Fields of a container's security that its template leaves open. A field that is given wins; `drop: [ALL]` stands beside what else is
/// dropped, since less is never meant. The trainer's own container has nothing to write but what is mounted; others may.
fn container_security(given: Option<SecurityContext>, is_trainer: bool) -> SecurityContext {
    let given = given.unwrap_or_default();
    let mut capabilities = given.capabilities.clone().unwrap_or_default();
    let dropped = capabilities.drop.get_or_insert_default();
    if !dropped.iter().any(|capability| capability == "ALL") {
        dropped.push("ALL".to_owned());
    }
    SecurityContext {
        // The API server refuses `false` beside what is an escalation by itself.
        allow_privilege_escalation: given.allow_privilege_escalation.or_else(|| (!is_escalated(&given)).then_some(false)),
        read_only_root_filesystem: given.read_only_root_filesystem.or_else(|| is_trainer.then_some(true)),
        capabilities: Some(capabilities),
        ..given
    }
}

fn is_escalated(security: &SecurityContext) -> bool {
    let added = security.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
    security.privileged == Some(true) || added.into_iter().any(|capability| capability.trim_start_matches("CAP_") == "SYS_ADMIN")
}

/// Fields of a pod's security that its template leaves open.
fn pod_security(given: Option<PodSecurityContext>) -> PodSecurityContext {
    let given = given.unwrap_or_default();
    let user = given.run_as_user.unwrap_or(USER);
    PodSecurityContext {
        // The kubelet starts nobody as root who is said not to be.
        run_as_non_root: given.run_as_non_root.or_else(|| (user != ROOT).then_some(true)),
        run_as_user: Some(user),
        run_as_group: given.run_as_group.or(Some(USER)),
        fs_group: given.fs_group.or(Some(USER)),
        // Walking a data set of millions of files to change their group would take hours.
        fs_group_change_policy: given.fs_group_change_policy.clone().or_else(|| Some("OnRootMismatch".to_owned())),
        seccomp_profile: given
            .seccomp_profile
            .clone()
            .or_else(|| Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None })),
        ..given
    }
}

fn fill_security(spec: &mut PodSpec, trainer: &str) {
    let says_non_root = spec.security_context.as_ref().is_some_and(|security| security.run_as_non_root.is_some());
    spec.security_context = Some(pod_security(spec.security_context.take()));
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let mut security = container_security(container.security_context.take(), container.name == trainer);
        if security.run_as_user == Some(ROOT) && !says_non_root {
            security.run_as_non_root.get_or_insert(false);
        }
        container.security_context = Some(security);
    }
}

/// Fills what `spec` leaves open. The restart policy is the operator's: a pod that ended is replaced, with its cause on record.
/// `trainer` is the name of the container that runs a program of this project.
pub(super) fn fill_pod(spec: &mut PodSpec, service_account: String, trainer: &str) {
    spec.service_account_name.get_or_insert(service_account);
    spec.automount_service_account_token.get_or_insert(false);
    // Dozens of environment variables per Service of the namespace, which nothing here reads.
    spec.enable_service_links.get_or_insert(false);
    spec.restart_policy = Some("Never".to_owned());
    fill_security(spec, trainer);
    let tolerations = spec.tolerations.get_or_insert_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        if !tolerations.iter().any(|toleration| toleration.key.as_deref() == Some(key)) {
            tolerations.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some("NoExecute".to_owned()),
                toleration_seconds: Some(TOLERATION_SECONDS),
                value: None,
            });
        }
    }
}

/// Sets `name` in the container, in place of what a template says.
pub(super) fn set_env(container: &mut Container, name: &str, value: &str) {
    put_env(container, EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None });
}

/// Sets `name` in the container, unless a template says something about it.
pub(super) fn set_env_unless_given(container: &mut Container, name: &str, value: &str) {
    if !container.env.iter().flatten().any(|variable| variable.name == name) {
        set_env(container, name, value);
    }
}

/// Sets `name` to a field of the pod, such as `status.podIP`.
pub(super) fn set_env_from_field(container: &mut Container, name: &str, path: &str) {
    let source = EnvVarSource {
        field_ref: Some(ObjectFieldSelector { api_version: Some("v1".to_owned()), field_path: path.to_owned() }),
        ..EnvVarSource::default()
    };
    put_env(container, EnvVar { name: name.to_owned(), value: None, value_from: Some(source) });
}

fn put_env(container: &mut Container, variable: EnvVar) {
    let env = container.env.get_or_insert_default();
    env.retain(|other| other.name != variable.name);
    env.push(variable);
}
