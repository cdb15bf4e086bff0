//! The cases about pods: what is changed in the minimal job (`support::assign`), and what is expected. A job's definition accepts all of
//! them; what the API server then says of the pod is tested in `tests/cluster/tests/definition.rs`.

/// Who refuses a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judge {
    /// The API server.
    Api,
    /// Nobody until it runs: the node, the trainer, or nobody at all, where something else is done than was meant.
    Later,
}

use Judge::{Api, Later};

/// The container `worker` with further fields.
macro_rules! container {
    ($fields:literal) => {
        concat!("spec.workers.template.spec.containers = [{'name': 'worker', ", $fields, "}]")
    };
}

/// A pod with the container `worker` and further fields.
macro_rules! pod {
    ($fields:expr) => {
        concat!("spec.workers.template.spec = {'containers': [{'name': 'worker'}], ", $fields, "}")
    };
}

/// A second container with further fields.
macro_rules! sidecar {
    ($fields:literal) => {
        concat!("spec.workers.template.spec.containers = [{'name': 'worker'}, {'name': 'b', 'image': 'b', ", $fields, "}]")
    };
}

/// A volume of some source.
macro_rules! volume {
    ($source:expr) => {
        concat!("spec.workers.template.spec = {'containers': [{'name': 'worker'}], 'volumes': [{'name': 'v', ", $source, "}]}")
    };
}

/// The volume `v`, mounted in the container `worker` with further fields.
macro_rules! mount {
    ($fields:literal) => {
        concat!(
            "spec.workers.template.spec = {'containers': [{'name': 'worker', 'volumeMounts': [{'name': 'v', 'mountPath': '/v', ",
            $fields,
            "}]}], 'volumes': [{'name': 'v', 'emptyDir': {}}]}"
        )
    };
}

/// One rule broken: the change, the field that is named, a part of the message, who would have found it.
pub(crate) const BROKEN: &[(&str, &str, &str, Judge)] = &[
    ("spec.serviceAccount = {'annotations': {'a b': 'c'}}", "spec.serviceAccount.annotations.a b", "the key must be", Later),
    (
        pod!("'schedulingGroup': {'podGroupName': 'Group_A'}"),
        "spec.workers.template.spec.schedulingGroup.podGroupName",
        "must be at most 253 lower-case",
        Api,
    ),
    (pod!("'schedulingGroup': {}"), "spec.workers.template.spec.schedulingGroup.podGroupName", "must be at most 253 lower-case", Api),
    // Amounts.
    ("spec.workers.resources = {'requests': {'memory': '512m'}}", "spec.workers.resources.requests.memory", "must be whole bytes", Later),
    ("spec.workers.resources = {'requests': {'memory': 32}}", "spec.workers.resources.requests.memory", "less than a mebibyte", Later),
    ("spec.workers.resources = {'requests': {'memory': '-1Gi'}}", "spec.workers.resources.requests.memory", "must not be negative", Api),
    ("spec.workers.resources = {'requests': {'cpu': '0.5m'}}", "spec.workers.resources.requests.cpu", "1m is the least", Later),
    ("spec.workers.resources = {'requests': {'cpu': '1.0001'}}", "spec.workers.resources.requests.cpu", "1m is the least", Later),
    (
        "spec.workers.resources = {'requests': {'ephemeral-storage': '1m'}}",
        "spec.workers.resources.requests.ephemeral-storage",
        "must be whole bytes",
        Later,
    ),
    (
        "spec.workers.resources = {'limits': {'example.com/fpga': '1500m'}}",
        "spec.workers.resources.limits.example.com/fpga",
        "a device is not divided",
        Api,
    ),
    ("spec.workers.resources = {'requests': {'gpu': 1}}", "spec.workers.resources.requests.gpu", "is no resource of a container", Api),
    (
        "spec.workers.resources = {'requests': {'memroy': '1Gi'}}",
        "spec.workers.resources.requests.memroy",
        "is no resource of a container",
        Api,
    ),
    (
        "spec.workers.resources = {'limits': {'requests.example.com/a': 1}}",
        "spec.workers.resources.limits.requests.example.com/a",
        "is no name of a device",
        Api,
    ),
    ("spec.workers.resources = {'limits': {'-a/b': 1}}", "spec.workers.resources.limits.-a/b", "with a letter or digit at both ends", Api),
    ("spec.workers.resources = {'limits': {'hugepages-2Mi': '4Mi'}}", "spec.workers.resources", "cpu or memory beside hugepages", Api),
    (
        "spec.workers.resources = {'limits': {'cpu': 1, 'hugepages-2Mi': '3Mi'}}",
        "spec.workers.resources.limits.hugepages-2Mi",
        "a multiple of the page's size, 2Mi",
        Api,
    ),
    (
        "spec.workers.resources = {'limits': {'cpu': 1, 'hugepages-2MB': '2M'}}",
        "spec.workers.resources.limits.hugepages-2MB",
        "`2MB`, which is none",
        Api,
    ),
    ("spec.workers.resources = {'limits': {'memory': '512m'}}", "spec.workers.resources.limits.memory", "must be whole bytes", Later),
    (
        "spec.workers.resources = {'limits': {'cpu': '999m'}, 'requests': {'cpu': 1}}",
        "spec.workers.resources.requests.cpu",
        "must not exceed its limit of 999m",
        Api,
    ),
    (
        "spec.workers.resources = {'requests': {'example.com/fpga': 1}}",
        "spec.workers.resources.requests.example.com/fpga",
        "must have an equal limit",
        Api,
    ),
    (
        "spec.workers.resources = {'requests': {'example.com/fpga': 1}, 'limits': {'example.com/fpga': 2}}",
        "spec.workers.resources.requests.example.com/fpga",
        "must be equal to its limit of 2",
        Api,
    ),
    (
        sidecar!("'resources': {'limits': {'memory': '100'}}"),
        "spec.workers.template.spec.containers[1].resources.limits.memory",
        "less than a mebibyte",
        Later,
    ),
    (
        pod!("'initContainers': [{'name': 'a', 'image': 'a', 'resources': {'limits': {'cpu': '-1'}}}]"),
        "spec.workers.template.spec.initContainers[0].resources.limits.cpu",
        "must not be negative",
        Api,
    ),
    (volume!("'emptyDir': {'sizeLimit': '-1Gi'}"), "spec.workers.template.spec.volumes[0].emptyDir.sizeLimit", "not be negative", Api),
    (volume!("'emptyDir': {'sizeLimit': '512m'}"), "spec.workers.template.spec.volumes[0].emptyDir.sizeLimit", "whole bytes", Later),
    // Containers.
    (
        "spec.workers.template.spec.containers = [{'name': 'worker'}, {'name': 'B', 'image': 'b'}]",
        "spec.workers.template.spec.containers[1].name",
        "lower-case letters",
        Api,
    ),
    (
        "spec.workers.template.spec.containers = [{'name': 'worker'}, {'name': 'b'}]",
        "spec.workers.template.spec.containers[1].image",
        "must be given",
        Api,
    ),
    (
        pod!("'initContainers': [{'name': 'worker', 'image': 'a'}]"),
        "spec.workers.template.spec.initContainers[0].name",
        "must differ from spec.workers.template.spec.containers[0]",
        Api,
    ),
    (pod!("'initContainers': [{'name': 'a'}]"), "spec.workers.template.spec.initContainers[0].image", "must be given", Api),
    (
        pod!("'initContainers': [{'name': 'a', 'image': 'a', 'readinessProbe': {'exec': {'command': ['a']}}}]"),
        "spec.workers.template.spec.initContainers[0].readinessProbe",
        "unless its restartPolicy is Always",
        Api,
    ),
    (container!("'imagePullPolicy': 'Sometimes'"), "spec.workers.template.spec.containers[0].imagePullPolicy", "Always, IfNotPresent", Api),
    (
        container!("'ports': [{'containerPort': 65536}]"),
        "spec.workers.template.spec.containers[0].ports[0].containerPort",
        "at most 65535",
        Api,
    ),
    (
        container!("'ports': [{'containerPort': 1, 'name': 'Web'}]"),
        "spec.workers.template.spec.containers[0].ports[0].name",
        "at most 15",
        Api,
    ),
    (
        container!("'ports': [{'containerPort': 1, 'protocol': 'tcp'}]"),
        "spec.workers.template.spec.containers[0].ports[0].protocol",
        "TCP, UDP, SCTP",
        Api,
    ),
    (
        container!("'readinessProbe': {'periodSeconds': 1}"),
        "spec.workers.template.spec.containers[0].readinessProbe",
        "exactly one of exec",
        Api,
    ),
    (
        container!("'livenessProbe': {'tcpSocket': {'port': 0}}"),
        "spec.workers.template.spec.containers[0].livenessProbe.tcpSocket.port",
        "at least 1",
        Api,
    ),
    (
        container!("'livenessProbe': {'tcpSocket': {'port': 1}, 'successThreshold': 2}"),
        "spec.workers.template.spec.containers[0].livenessProbe.successThreshold",
        "must be 1",
        Api,
    ),
    (
        container!("'securityContext': {'runAsUser': -1}"),
        "spec.workers.template.spec.containers[0].securityContext.runAsUser",
        "at least 0",
        Api,
    ),
    (
        container!("'securityContext': {'privileged': true, 'allowPrivilegeEscalation': false}"),
        "spec.workers.template.spec.containers[0].securityContext.allowPrivilegeEscalation",
        "must not be false",
        Api,
    ),
    // Environment.
    (container!("'env': [{'name': 'A=B'}]"), "spec.workers.template.spec.containers[0].env[0].name", "other than '='", Api),
    (container!("'env': [{'name': ''}]"), "spec.workers.template.spec.containers[0].env[0].name", "printable ASCII", Api),
    (
        container!("'env': [{'name': 'A', 'value': 'b', 'valueFrom': {'fieldRef': {'fieldPath': 'metadata.name'}}}]"),
        "spec.workers.template.spec.containers[0].env[0].valueFrom",
        "together with a value",
        Api,
    ),
    (
        container!("'env': [{'name': 'A', 'valueFrom': {}}]"),
        "spec.workers.template.spec.containers[0].env[0].valueFrom",
        "exactly one",
        Api,
    ),
    (
        container!("'env': [{'name': 'A', 'valueFrom': {'fieldRef': {'fieldPath': 'spec.hostname'}}}]"),
        "spec.workers.template.spec.containers[0].env[0].valueFrom.fieldRef.fieldPath",
        "must be one of metadata.name",
        Api,
    ),
    (
        container!("'env': [{'name': 'A', 'valueFrom': {'secretKeyRef': {'name': 'A_b', 'key': 'k'}}}]"),
        "spec.workers.template.spec.containers[0].env[0].valueFrom.secretKeyRef.name",
        "lower-case letters",
        Api,
    ),
    (container!("'envFrom': [{}]"), "spec.workers.template.spec.containers[0].envFrom[0]", "exactly one of configMapRef", Api),
    (
        container!("'env': [{'name': 'LCL_HEARTBEAT_INTERVAL', 'value': '1s'}]"),
        "spec.workers.template.spec.containers[0].env[0].value",
        "a number of seconds",
        Later,
    ),
    (
        container!("'env': [{'name': 'LCL_HEARTBEAT_INTERVAL', 'value': '6'}]"),
        "spec.workers.template.spec.containers[0].env[0].value",
        "at least two times LCL_HEARTBEAT_INTERVAL (6)",
        Later,
    ),
    (
        container!("'env': [{'name': 'LCL_THREADS', 'value': '0'}]"),
        "spec.workers.template.spec.containers[0].env[0].value",
        "whole number of threads",
        Later,
    ),
    // Volumes and mounts.
    (
        container!("'volumeMounts': [{'name': 'v', 'mountPath': '/v'}]"),
        "spec.workers.template.spec.containers[0].volumeMounts[0].name",
        "must be a volume of the pod: there is none",
        Api,
    ),
    (mount!("'subPath': '/a'"), "spec.workers.template.spec.containers[0].volumeMounts[0].subPath", "must be a relative path", Api),
    (mount!("'subPath': 'a/../b'"), "spec.workers.template.spec.containers[0].volumeMounts[0].subPath", "`..` component", Api),
    (
        mount!("'subPath': 'a', 'subPathExpr': 'b'"),
        "spec.workers.template.spec.containers[0].volumeMounts[0].subPathExpr",
        "together with subPath",
        Api,
    ),
    (
        mount!("'mountPropagation': 'Bidirectional'"),
        "spec.workers.template.spec.containers[0].volumeMounts[0].mountPropagation",
        "unless the container is privileged",
        Api,
    ),
    (
        concat!(
            "spec.workers.template.spec = {'containers': [{'name': 'worker', 'volumeMounts': [{'name': 'v', 'mountPath': '/etc/lcl/'}]}], ",
            "'volumes': [{'name': 'v', 'emptyDir': {}}]}"
        ),
        "spec.workers.template.spec.containers[0].volumeMounts[0].mountPath",
        "mounts the trainer's configuration",
        Later,
    ),
    (pod!("'volumes': [{'name': 'V', 'emptyDir': {}}]"), "spec.workers.template.spec.volumes[0].name", "lower-case letters", Api),
    (pod!("'volumes': [{'name': 'lcl-shm', 'emptyDir': {}}]"), "spec.workers.template.spec.volumes[0].name", "the operator adds", Later),
    (volume!("'emptyDir': {}, 'hostPath': {'path': '/a'}"), "spec.workers.template.spec.volumes[0]", "must be of one kind", Api),
    (volume!("'hostPath': {'path': '/a/../b'}"), "spec.workers.template.spec.volumes[0].hostPath.path", "`..` component", Api),
    (
        volume!("'hostPath': {'path': '/a', 'type': 'Folder'}"),
        "spec.workers.template.spec.volumes[0].hostPath.type",
        "DirectoryOrCreate",
        Api,
    ),
    (
        volume!("'persistentVolumeClaim': {'claimName': ''}"),
        "spec.workers.template.spec.volumes[0].persistentVolumeClaim.claimName",
        "must be given",
        Api,
    ),
    (volume!("'nfs': {'server': 'a', 'path': 'b'}"), "spec.workers.template.spec.volumes[0].nfs.path", "must be an absolute path", Api),
    (
        volume!("'configMap': {'name': 'a', 'defaultMode': 512}"),
        "spec.workers.template.spec.volumes[0].configMap.defaultMode",
        "0 to 0777 in octal",
        Api,
    ),
    (
        volume!("'secret': {'secretName': 'a', 'items': [{'key': 'k', 'path': '/p'}]}"),
        "spec.workers.template.spec.volumes[0].secret.items[0].path",
        "must be a relative path",
        Api,
    ),
    (
        volume!("'ephemeral': {'volumeClaimTemplate': {'spec': {'accessModes': ['ReadWriteOnce']}}}"),
        "spec.workers.template.spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources.requests.storage",
        "must be given",
        Api,
    ),
    // The pod.
    (
        "spec.workers.template = {'metadata': {'labels': {'a': 'b c'}}, 'spec': {'containers': [{'name': 'worker'}]}}",
        "spec.workers.template.metadata.labels.a",
        "must be empty or at most 63",
        Api,
    ),
    (
        "spec.workers.template = {'metadata': {'annotations': {'a/b/c': ''}}, 'spec': {'containers': [{'name': 'worker'}]}}",
        "spec.workers.template.metadata.annotations.a/b/c",
        "the key must be",
        Api,
    ),
    (pod!("'nodeSelector': {'a b': 'c'}"), "spec.workers.template.spec.nodeSelector.a b", "the key must be", Api),
    (pod!("'serviceAccountName': 'A'"), "spec.workers.template.spec.serviceAccountName", "lower-case letters", Api),
    (pod!("'terminationGracePeriodSeconds': -1"), "spec.workers.template.spec.terminationGracePeriodSeconds", "at least 0", Later),
    (pod!("'activeDeadlineSeconds': 60"), "spec.workers.template.spec.activeDeadlineSeconds", "must be left out: spec.active", Later),
    (pod!("'restartPolicy': 'OnFailure'"), "spec.workers.template.spec.restartPolicy", "must be left out, or Never", Later),
    (
        "spec.coordinator = {'tolerations': [{'operator': 'Equal'}]}",
        "spec.coordinator.tolerations[0].operator",
        "must be Exists when no key is given",
        Later,
    ),
    ("spec.coordinator = {'nodeSelector': {'a b': 'c'}}", "spec.coordinator.nodeSelector.a b", "the key must be", Later),
    ("spec.coordinator = {'priorityClassName': 'a_b'}", "spec.coordinator.priorityClassName", "lower-case letters", Later),
    ("spec.coordinator = {'resources': {'limits': {'memory': '512m'}}}", "spec.coordinator.resources.limits.memory", "whole bytes", Later),
    (
        "spec.coordinator = {'affinity': {'nodeAffinity': {'requiredDuringSchedulingIgnoredDuringExecution': {'nodeSelectorTerms': []}}}}",
        "spec.coordinator.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms",
        "must have at least one entry",
        Later,
    ),
    (pod!("'dnsPolicy': 'Cluster'"), "spec.workers.template.spec.dnsPolicy", "ClusterFirst, ClusterFirstWithHostNet", Api),
    (pod!("'dnsPolicy': 'None'"), "spec.workers.template.spec.dnsConfig.nameservers", "at least one server", Api),
    (pod!("'hostAliases': [{'ip': 'here'}]"), "spec.workers.template.spec.hostAliases[0].ip", "must be an IP address", Api),
    (pod!("'securityContext': {'fsGroup': -1}"), "spec.workers.template.spec.securityContext.fsGroup", "at least 0", Api),
    (pod!("'serviceAccount': 'a'"), "spec.workers.template.spec.serviceAccount", "it is called serviceAccountName", Later),
    (
        pod!("'shareProcessNamespace': true, 'hostPID': true"),
        "spec.workers.template.spec.shareProcessNamespace",
        "must not be true when hostPID is",
        Api,
    ),
    (
        container!("'resizePolicy': [{'resourceName': 'cpu', 'restartPolicy': 'RestartContainer'}]"),
        "spec.workers.template.spec.containers[0].resizePolicy[0].restartPolicy",
        "must be one of NotRequired",
        Api,
    ),
    (pod!("'tolerations': [{'operator': 'Equal'}]"), "spec.workers.template.spec.tolerations[0].operator", "must be Exists", Api),
    (pod!("'tolerations': [{'key': 'a', 'operator': 'Is'}]"), "spec.workers.template.spec.tolerations[0].operator", "Exists, Equal", Api),
    (
        pod!("'tolerations': [{'key': 'a', 'effect': 'NoSchedule', 'tolerationSeconds': 1}]"),
        "spec.workers.template.spec.tolerations[0].effect",
        "must be NoExecute",
        Api,
    ),
    (
        pod!("'topologySpreadConstraints': [{'maxSkew': 0, 'topologyKey': 'a', 'whenUnsatisfiable': 'DoNotSchedule'}]"),
        "spec.workers.template.spec.topologySpreadConstraints[0].maxSkew",
        "at least 1",
        Api,
    ),
    (
        pod!(
            "'affinity': {'podAntiAffinity': {'preferredDuringSchedulingIgnoredDuringExecution': [{'weight': 0, 'podAffinityTerm': {'topologyKey': 'a'}}]}}"
        ),
        "spec.workers.template.spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight",
        "at least 1",
        Api,
    ),
    (
        pod!(
            "'affinity': {'nodeAffinity': {'requiredDuringSchedulingIgnoredDuringExecution': {'nodeSelectorTerms': [{'matchExpressions': [{'key': 'a', 'operator': 'In'}]}]}}}"
        ),
        "spec.workers.template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values",
        "at least one entry with In",
        Api,
    ),
];

/// A boundary kept.
pub(crate) const KEPT: &[&str] = &[
    "spec.workers.resources = {'limits': {'cpu': '0.001', 'memory': '1Mi', 'ephemeral-storage': 0, 'example.com/fpga': '2000m'}}",
    "spec.workers.resources = {'limits': {'cpu': '1e1', 'memory': '1.5Gi', 'hugepages-1Gi': '2Gi'}}",
    "spec.workers.resources = {'limits': {'cpu': 1, 'memory': '1G'}, 'requests': {'cpu': '1000m', 'memory': '1000000000'}}",
    "spec.workers.resources = {'limits': {'example.com/fpga': '1'}, 'requests': {'example.com/fpga': '1000m'}}",
    container!("'env': [{'name': 'with space.and-dot', 'value': ''}, {'name': 'LCL_DRAIN_TIMEOUT', 'value': '0.5'}]"),
    container!("'env': [{'name': 'LCL_HEARTBEAT_INTERVAL', 'value': '5'}, {'name': 'LCL_THREADS', 'value': '$(N)'}]"),
    container!("'ports': [{'containerPort': 65535, 'name': 'a23456789012345', 'protocol': 'SCTP'}]"),
    container!("'livenessProbe': {'httpGet': {'path': '/', 'port': 'web', 'scheme': 'HTTPS'}, 'initialDelaySeconds': 0}"),
    container!("'volumeMounts': [{'name': 'lcl-tmp', 'mountPath': '/scratch'}]"),
    mount!("'subPath': 'a/b', 'readOnly': true, 'recursiveReadOnly': 'Enabled'"),
    volume!("'emptyDir': {'medium': 'Memory', 'sizeLimit': 0}"),
    volume!("'hostPath': {'path': '/a/..b', 'type': ''}"),
    volume!("'configMap': {'name': 'a', 'defaultMode': 511, 'items': [{'key': '.a', 'path': 'b/c', 'mode': 0}]}"),
    volume!(
        "'ephemeral': {'volumeClaimTemplate': {'spec': {'accessModes': ['ReadWriteOnce'], 'resources': {'requests': {'storage': '1Gi'}}}}}"
    ),
    pod!("'volumes': [{'name': 'v'}]"),
    pod!("'nodeSelector': {'a.b/C': ''}, 'terminationGracePeriodSeconds': 0, 'restartPolicy': 'Never', 'hostname': 'a'"),
    pod!("'tolerations': [{'operator': 'Exists'}, {'key': 'a/b', 'value': 'c', 'effect': 'NoExecute', 'tolerationSeconds': -1}]"),
    pod!("'dnsPolicy': 'None', 'dnsConfig': {'nameservers': ['1.2.3.4']}, 'hostAliases': [{'ip': '::1', 'hostnames': ['a.b']}]"),
    pod!("'initContainers': [{'name': 'a', 'image': 'a', 'restartPolicy': 'Always', 'startupProbe': {'exec': {'command': ['a']}}}]"),
    pod!(
        "'affinity': {'podAffinity': {'requiredDuringSchedulingIgnoredDuringExecution': [{'topologyKey': 'a.b/c', 'labelSelector': {'matchLabels': {'a': 'b'}}}]}}"
    ),
];
