//! What holds for every pod that is made, said once more and in another way than the operator says it: over the pod as JSON.

use serde_json::{Value, json};

/// Fields that no part of a pod has, wherever they stand.
const NEVER: [&str; 4] = ["hostPath", "gitRepo", "ephemeralContainers", "procMount"];
/// Fields that are nowhere true.
const NEVER_TRUE: [&str; 8] = [
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "hostUsers",
    "privileged",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "hostProcess",
];
/// The operator's variables; a worker believes them.
const OWN_VARIABLES: [&str; 9] = [
    "LCL_JOB",
    "LCL_JOB_UID",
    "LCL_CONFIG",
    "LCL_WORKER",
    "LCL_WORKER_INDEX",
    "LCL_MEMBERS_PER_WORKER",
    "LCL_NODE",
    "LCL_POD_IP",
    "LCL_COORDINATOR",
];

pub(crate) fn check_worker(pod: &Value) {
    check(pod, "worker");
    let container = &pod["spec"]["containers"][0];
    for name in OWN_VARIABLES {
        let count = container["env"].as_array().unwrap().iter().filter(|variable| variable["name"] == name).count();
        assert_eq!(count, 1, "{name} in {container}");
    }
    assert_eq!(pod["metadata"]["labels"]["lcl.dev/worker-index"], "0");
}

pub(crate) fn check_coordinator(pod: &Value) {
    check(pod, "coordinator");
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 1);
    let volumes: Vec<&Value> = pod["spec"]["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
    assert_eq!(volumes, ["lcl-tls"], "nothing of the user's is mounted");
}

fn check(pod: &Value, role: &str) {
    let spec = &pod["spec"];
    walk(spec, "spec");
    let (metadata, security) = (&pod["metadata"], &spec["securityContext"]);
    assert_eq!((&metadata["labels"]["lcl.dev/role"], &metadata["namespace"]), (&json!(role), &json!("vision")));
    assert_eq!(metadata["labels"]["lcl.dev/job-uid"], metadata["ownerReferences"][0]["uid"]);
    assert_eq!((&spec["automountServiceAccountToken"], &security["runAsNonRoot"]), (&json!(false), &json!(true)));
    assert!(security["seccompProfile"]["type"].is_string(), "{security}");
    let containers = spec["containers"].as_array().unwrap().iter();
    assert_eq!(spec["containers"][0]["name"], role);
    for container in containers.chain(spec["initContainers"].as_array().into_iter().flatten()) {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false, "{container}");
        assert!(security["capabilities"]["drop"].as_array().unwrap().contains(&json!("ALL")), "{container}");
        assert!(security["capabilities"]["add"].as_array().is_none_or(Vec::is_empty), "{container}");
    }
}

fn walk(value: &Value, path: &str) {
    for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
        walk(inner, &format!("{path}[{index}]"));
    }
    for (name, inner) in value.as_object().into_iter().flatten() {
        let here = format!("{path}.{name}");
        // Keys of a user's own, such as labels and amounts, are no fields.
        if ["nodeSelector", "matchLabels", "limits", "requests", "overhead", "annotations", "labels", "driverOptions", "volumeAttributes"]
            .contains(&name.as_str())
        {
            continue;
        }
        assert!(!NEVER.contains(&name.as_str()) || inner.is_null() || inner == "Default" || inner == "", "{here} is {inner}");
        assert!(!NEVER_TRUE.contains(&name.as_str()) || inner != true, "{here} is {inner}");
        let is_forbidden = match name.as_str() {
            "runAsUser" => inner == 0,
            "runAsNonRoot" => inner == false,
            "hostPort" => inner != 0,
            "seccompProfile" | "appArmorProfile" => inner["type"] == "Unconfined",
            "serviceAccountToken" => {
                let audience = inner["audience"].as_str().unwrap_or_default();
                audience.is_empty() || audience.starts_with("https://kubernetes.default.svc")
            }
            _ => false,
        };
        assert!(!is_forbidden, "{here} is {inner}");
        walk(inner, &here);
    }
}
