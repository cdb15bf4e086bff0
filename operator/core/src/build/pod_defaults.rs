//! What every pod of a job has unless the user says otherwise: no root, no capabilities, nothing writable but what is mounted.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, EnvVarSource, ObjectFieldSelector, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext,
    Toleration,
};

/// User and group of the images.
const USER: i64 = 65_532;
/// Seconds a pod stays on a node that is not ready or cannot be reached; the coordinator has evicted its members long before.
const TOLERATION_SECONDS: i64 = 10;

pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        // Walking a data set of millions of files to change their group would take hours.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// Fills what `spec` leaves open. The restart policy is the operator's: a pod that ended is replaced, with its cause on record.
pub(super) fn fill_pod(spec: &mut PodSpec, service_account: String) {
    spec.service_account_name.get_or_insert(service_account);
    spec.automount_service_account_token.get_or_insert(false);
    // Dozens of environment variables per Service of the namespace, which nothing here reads.
    spec.enable_service_links.get_or_insert(false);
    spec.restart_policy = Some("Never".to_owned());
    spec.security_context.get_or_insert_with(pod_security);
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
