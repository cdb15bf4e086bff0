//! The cases about what an operator has to allow; a job's definition accepts all of them.

use lcl_operator_core::Allowance::{self, ApiTokens, HostNamespaces, HostPath, Privileged, Root};

/// An init container with further fields.
macro_rules! init {
    ($fields:literal) => {
        pod!(concat!("'initContainers': [{'name': 'b', 'image': 'b', ", $fields, "}]"))
    };
}

/// A projected token with further fields, after another source.
macro_rules! token {
    ($fields:literal) => {
        volume!(concat!("'projected': {'sources': [{'configMap': {'name': 'c'}}, {'serviceAccountToken': {", $fields, "'path': 't'}}]}"))
    };
}

/// What an operator has to allow: the change, what it needs, the field of the template that is named.
pub(crate) const NOT_ALLOWED: &[(&str, Allowance, &str)] = &[
    (volume!("'hostPath': {'path': '/'}"), HostPath, "spec.volumes[0].hostPath"),
    (volume!("'gitRepo': {'repository': 'a'}"), HostPath, "spec.volumes[0].gitRepo"),
    (pod!("'hostNetwork': true"), HostNamespaces, "spec.hostNetwork"),
    (pod!("'hostPID': true"), HostNamespaces, "spec.hostPID"),
    (pod!("'hostIPC': true"), HostNamespaces, "spec.hostIPC"),
    (pod!("'hostUsers': true"), HostNamespaces, "spec.hostUsers"),
    (container!("'ports': [{'containerPort': 1, 'hostPort': 1}]"), HostNamespaces, "spec.containers[0].ports[0].hostPort"),
    (container!("'securityContext': {'privileged': true}"), Privileged, "spec.containers[0].securityContext.privileged"),
    (
        container!("'securityContext': {'allowPrivilegeEscalation': true}"),
        Privileged,
        "spec.containers[0].securityContext.allowPrivilegeEscalation",
    ),
    (
        container!("'securityContext': {'capabilities': {'add': ['SYS_ADMIN']}}"),
        Privileged,
        "spec.containers[0].securityContext.capabilities.add[0]",
    ),
    (
        container!("'securityContext': {'capabilities': {'add': ['NET_BIND_SERVICE'], 'drop': ['ALL']}}"),
        Privileged,
        "spec.containers[0].securityContext.capabilities.add[0]",
    ),
    (container!("'securityContext': {'procMount': 'Unmasked'}"), Privileged, "spec.containers[0].securityContext.procMount"),
    (
        container!("'securityContext': {'windowsOptions': {'hostProcess': true}}"),
        Privileged,
        "spec.containers[0].securityContext.windowsOptions.hostProcess",
    ),
    (sidecar!("'securityContext': {'privileged': true}"), Privileged, "spec.containers[1].securityContext.privileged"),
    (
        sidecar!("'securityContext': {'allowPrivilegeEscalation': true}"),
        Privileged,
        "spec.containers[1].securityContext.allowPrivilegeEscalation",
    ),
    (
        sidecar!("'securityContext': {'capabilities': {'add': ['SYS_ADMIN']}}"),
        Privileged,
        "spec.containers[1].securityContext.capabilities.add[0]",
    ),
    (
        sidecar!("'securityContext': {'capabilities': {'add': ['NET_BIND_SERVICE'], 'drop': ['ALL']}}"),
        Privileged,
        "spec.containers[1].securityContext.capabilities.add[0]",
    ),
    (sidecar!("'securityContext': {'procMount': 'Unmasked'}"), Privileged, "spec.containers[1].securityContext.procMount"),
    (
        sidecar!("'securityContext': {'windowsOptions': {'hostProcess': true}}"),
        Privileged,
        "spec.containers[1].securityContext.windowsOptions.hostProcess",
    ),
    (init!("'securityContext': {'privileged': true}"), Privileged, "spec.initContainers[0].securityContext.privileged"),
    (
        init!("'securityContext': {'allowPrivilegeEscalation': true}"),
        Privileged,
        "spec.initContainers[0].securityContext.allowPrivilegeEscalation",
    ),
    (
        init!("'securityContext': {'capabilities': {'add': ['SYS_ADMIN']}}"),
        Privileged,
        "spec.initContainers[0].securityContext.capabilities.add[0]",
    ),
    (
        init!("'securityContext': {'capabilities': {'add': ['NET_BIND_SERVICE'], 'drop': ['ALL']}}"),
        Privileged,
        "spec.initContainers[0].securityContext.capabilities.add[0]",
    ),
    (init!("'securityContext': {'procMount': 'Unmasked'}"), Privileged, "spec.initContainers[0].securityContext.procMount"),
    (
        init!("'securityContext': {'windowsOptions': {'hostProcess': true}}"),
        Privileged,
        "spec.initContainers[0].securityContext.windowsOptions.hostProcess",
    ),
    (
        container!("'securityContext': {'seccompProfile': {'type': 'Unconfined'}}"),
        Privileged,
        "spec.containers[0].securityContext.seccompProfile.type",
    ),
    (
        container!("'securityContext': {'appArmorProfile': {'type': 'Unconfined'}}"),
        Privileged,
        "spec.containers[0].securityContext.appArmorProfile.type",
    ),
    (
        container!("'securityContext': {'seLinuxOptions': {'type': 'spc_t'}}"),
        Privileged,
        "spec.containers[0].securityContext.seLinuxOptions.type",
    ),
    (
        container!("'securityContext': {'seLinuxOptions': {'user': 'a'}}"),
        Privileged,
        "spec.containers[0].securityContext.seLinuxOptions.user",
    ),
    (
        container!("'securityContext': {'seLinuxOptions': {'role': 'a'}}"),
        Privileged,
        "spec.containers[0].securityContext.seLinuxOptions.role",
    ),
    (container!("'securityContext': {'runAsUser': 0}"), Root, "spec.containers[0].securityContext.runAsUser"),
    (container!("'securityContext': {'runAsNonRoot': false}"), Root, "spec.containers[0].securityContext.runAsNonRoot"),
    (
        sidecar!("'securityContext': {'seccompProfile': {'type': 'Unconfined'}}"),
        Privileged,
        "spec.containers[1].securityContext.seccompProfile.type",
    ),
    (
        sidecar!("'securityContext': {'appArmorProfile': {'type': 'Unconfined'}}"),
        Privileged,
        "spec.containers[1].securityContext.appArmorProfile.type",
    ),
    (
        sidecar!("'securityContext': {'seLinuxOptions': {'type': 'spc_t'}}"),
        Privileged,
        "spec.containers[1].securityContext.seLinuxOptions.type",
    ),
    (
        sidecar!("'securityContext': {'seLinuxOptions': {'user': 'a'}}"),
        Privileged,
        "spec.containers[1].securityContext.seLinuxOptions.user",
    ),
    (
        sidecar!("'securityContext': {'seLinuxOptions': {'role': 'a'}}"),
        Privileged,
        "spec.containers[1].securityContext.seLinuxOptions.role",
    ),
    (sidecar!("'securityContext': {'runAsUser': 0}"), Root, "spec.containers[1].securityContext.runAsUser"),
    (sidecar!("'securityContext': {'runAsNonRoot': false}"), Root, "spec.containers[1].securityContext.runAsNonRoot"),
    (
        init!("'securityContext': {'seccompProfile': {'type': 'Unconfined'}}"),
        Privileged,
        "spec.initContainers[0].securityContext.seccompProfile.type",
    ),
    (
        init!("'securityContext': {'appArmorProfile': {'type': 'Unconfined'}}"),
        Privileged,
        "spec.initContainers[0].securityContext.appArmorProfile.type",
    ),
    (
        init!("'securityContext': {'seLinuxOptions': {'type': 'spc_t'}}"),
        Privileged,
        "spec.initContainers[0].securityContext.seLinuxOptions.type",
    ),
    (
        init!("'securityContext': {'seLinuxOptions': {'user': 'a'}}"),
        Privileged,
        "spec.initContainers[0].securityContext.seLinuxOptions.user",
    ),
    (
        init!("'securityContext': {'seLinuxOptions': {'role': 'a'}}"),
        Privileged,
        "spec.initContainers[0].securityContext.seLinuxOptions.role",
    ),
    (init!("'securityContext': {'runAsUser': 0}"), Root, "spec.initContainers[0].securityContext.runAsUser"),
    (init!("'securityContext': {'runAsNonRoot': false}"), Root, "spec.initContainers[0].securityContext.runAsNonRoot"),
    (pod!("'securityContext': {'seccompProfile': {'type': 'Unconfined'}}"), Privileged, "spec.securityContext.seccompProfile.type"),
    (pod!("'securityContext': {'appArmorProfile': {'type': 'Unconfined'}}"), Privileged, "spec.securityContext.appArmorProfile.type"),
    (pod!("'securityContext': {'seLinuxOptions': {'type': 'spc_t'}}"), Privileged, "spec.securityContext.seLinuxOptions.type"),
    (pod!("'securityContext': {'seLinuxOptions': {'user': 'a'}}"), Privileged, "spec.securityContext.seLinuxOptions.user"),
    (pod!("'securityContext': {'seLinuxOptions': {'role': 'a'}}"), Privileged, "spec.securityContext.seLinuxOptions.role"),
    (pod!("'securityContext': {'runAsUser': 0}"), Root, "spec.securityContext.runAsUser"),
    (pod!("'securityContext': {'runAsNonRoot': false}"), Root, "spec.securityContext.runAsNonRoot"),
    (pod!("'securityContext': {'windowsOptions': {'hostProcess': true}}"), Privileged, "spec.securityContext.windowsOptions.hostProcess"),
    (pod!("'automountServiceAccountToken': true"), ApiTokens, "spec.automountServiceAccountToken"),
    (pod!("'serviceAccountName': 'other', 'automountServiceAccountToken': true"), ApiTokens, "spec.automountServiceAccountToken"),
    (token!(""), ApiTokens, "spec.volumes[0].projected.sources[1].serviceAccountToken.audience"),
    (token!("'audience': '', "), ApiTokens, "spec.volumes[0].projected.sources[1].serviceAccountToken.audience"),
    (
        token!("'audience': 'https://kubernetes.default.svc', "),
        ApiTokens,
        "spec.volumes[0].projected.sources[1].serviceAccountToken.audience",
    ),
    (
        token!("'audience': 'https://kubernetes.default.svc.cluster.local', "),
        ApiTokens,
        "spec.volumes[0].projected.sources[1].serviceAccountToken.audience",
    ),
    (
        "spec.workers.template = {'metadata': {'annotations': {'container.apparmor.security.beta.kubernetes.io/worker': 'unconfined'}}}",
        Privileged,
        "metadata.annotations.container.apparmor.security.beta.kubernetes.io/worker",
    ),
];

/// What nobody has to allow.
pub(crate) const ALLOWED: &[&str] = &[
    pod!("'hostNetwork': false, 'hostPID': false, 'hostIPC': false, 'hostUsers': false"),
    pod!("'serviceAccountName': 'other', 'automountServiceAccountToken': false"),
    pod!("'securityContext': {'runAsUser': 1000, 'runAsNonRoot': true, 'seLinuxOptions': {'type': 'container_t', 'level': 's0'}}"),
    container!("'securityContext': {'privileged': false, 'capabilities': {'drop': ['NET_RAW']}, 'procMount': 'Default'}"),
    container!("'securityContext': {'seccompProfile': {'type': 'Localhost', 'localhostProfile': 'a'}, 'readOnlyRootFilesystem': false}"),
    container!("'ports': [{'containerPort': 1}]"),
    token!("'audience': 'sts.amazonaws.com', "),
    volume!("'persistentVolumeClaim': {'claimName': 'data'}"),
    volume!("'secret': {'secretName': 'credentials'}"),
];
