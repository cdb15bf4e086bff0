//! From a manifest to the objects that a cluster needs for it.

#[path = "support/jobs.rs"]
mod support;

use std::{collections::BTreeMap, fs, path::PathBuf};

use lcl_crds::PinnedStatus;
use lcl_operator_core::{
    Allowance, PodPolicy, ValidatedJob,
    build::{BuildContext, NetworkAccess, network_policy_names, worker_selector},
    covers,
    observe::HistoryPlace,
    pins::offer,
    read_unchecked,
    resources::{AppliedResources, PinnedConfig, PreparedResources, address_of},
    validate, validate_under,
};
use lcl_trainer_config::TrainerConfig;
use serde_json::{Value, json};

use support::{assign, minimal_job};

fn network() -> NetworkAccess {
    NetworkAccess {
        operator_namespace: "lcl-system".to_owned(),
        operator_labels: BTreeMap::from([("app.kubernetes.io/name".to_owned(), "lcl-operator".to_owned())]),
        metrics_from: Vec::new(),
    }
}

fn context() -> BuildContext {
    BuildContext {
        namespace: "vision".to_owned(),
        uid: "6c1c5e0c-0000-4000-8000-000000000001".to_owned(),
        pins: PinnedStatus {
            generation: 1,
            config: "CONFIG".to_owned(),
            coordinator_image: "registry.example/lcl-coordinator:1".to_owned(),
            trainer_image: "registry.example/lcl-trainer:1".to_owned(),
            address: Some("10.96.0.17".to_owned()),
            authority: None,
            certificates_expire: None,
        },
        image_pull_policy: None,
        incident: 3,
        history: HistoryPlace { epoch: 1, entry: 7 },
        excluded_nodes: Vec::new(),
        policy: PodPolicy::default(),
        network: Some(network()),
    }
}

fn valid(assignments: &str) -> ValidatedJob {
    let mut job = minimal_job();
    assign(&mut job, assignments);
    validate(&job).unwrap_or_else(|errors| panic!("{errors}"))
}

fn prepared(job: &ValidatedJob) -> PreparedResources {
    PreparedResources::prepare(job, &context_of(job))
}

fn applied(job: &ValidatedJob) -> AppliedResources {
    let PreparedResources { service, config, .. } = prepared(job);
    AppliedResources::new(address_of(&service).unwrap().to_owned(), PinnedConfig::read(config))
}

/// The surroundings of a job that nothing is pinned of yet.
fn context_of(job: &ValidatedJob) -> BuildContext {
    let context = context();
    let address = context.pins.address.clone();
    let pins = PinnedStatus { address, ..offer(job, 1, &context.pins.coordinator_image, &context.pins.trainer_image) };
    BuildContext { pins, ..context }
}

fn worker(assignments: &str, index: u32) -> Value {
    let job = valid(assignments);
    serde_json::to_value(applied(&job).worker_pod(&job, &context_of(&job), index).unwrap()).unwrap()
}

fn coordinator(assignments: &str) -> Value {
    let job = valid(assignments);
    serde_json::to_value(applied(&job).coordinator_pod(&job, &context(), 1)).unwrap()
}

fn env(container: &Value, name: &str) -> Vec<Value> {
    container["env"].as_array().unwrap().iter().filter(|variable| variable["name"] == name).cloned().collect()
}

#[test]
fn the_example_needs_these_objects() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/emoji.yaml");
    let manifest: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let policy = PodPolicy::allowing([Allowance::HostPath]);
    let job = validate_under(&manifest, &policy).unwrap_or_else(|errors| panic!("{errors}"));
    let (context, prepared, applied) = (BuildContext { policy, ..context_of(&job) }, prepared(&job), applied(&job));
    insta::assert_json_snapshot!(json!({
        "serviceAccount": prepared.account,
        "service": prepared.service,
        "budget": prepared.budget,
        "policies": prepared.policies,
        "coordinator": applied.coordinator_pod(&job, &context, 3),
        "worker": applied.worker_pod(&job, &context, 0).unwrap(),
    }));
}

/// Newer than what the other fields are of: Kubernetes has it since 1.36.
#[test]
fn the_scheduling_group_of_the_template_is_the_workers_and_not_the_coordinators() {
    let template = "spec.workers.template = {'spec': {'schedulingGroup': {'podGroupName': 'group-a'}, 'containers': [{'name': 'worker'}]}}";
    assert_eq!(worker(template, 0)["spec"]["schedulingGroup"], json!({ "podGroupName": "group-a" }));
    assert_eq!(coordinator(template)["spec"]["schedulingGroup"], Value::Null);
}

#[test]
fn the_configuration_is_one_the_trainer_accepts() {
    let config_map = prepared(&valid("")).config;
    let json = &config_map.data.unwrap()["trainer-config.json"];
    serde_json::from_str::<TrainerConfig>(json).unwrap().validate().unwrap();
}

#[test]
fn a_worker_is_the_same_whatever_the_size_of_the_world() {
    assert_eq!(worker("spec.workers = {'replicas': 2}", 1), worker("spec.workers = {'replicas': 7}", 1));
    assert_ne!(worker("", 0), worker("", 1));
}

#[test]
fn what_the_template_says_is_kept_and_the_operators_part_cannot_be_changed_by_it() {
    let pod = worker(
        "spec.workers.template = {'metadata': {'labels': {'team': 'vision', 'lcl.dev/role': 'x'}, 'annotations': {'karpenter.sh/do-not-disrupt': 'false'}}, \
         'spec': {'containers': [{'name': 'sidecar', 'image': 'a'}, {'name': 'worker', 'image': 'mine', 'env': [ \
         {'name': 'NCCL_DEBUG', 'value': 'INFO'}], 'volumeMounts': [{'name': 'fast', 'mountPath': '/dev/shm'}]}], \
         'volumes': [{'name': 'fast', 'emptyDir': {}}], \
         'tolerations': [{'key': 'node.kubernetes.io/not-ready', 'operator': 'Exists', 'effect': 'NoExecute', 'tolerationSeconds': 300}]}}",
        0,
    );
    let spec = &pod["spec"];
    assert_eq!(pod["metadata"]["labels"]["team"], "vision");
    assert_eq!(pod["metadata"]["labels"]["lcl.dev/role"], "worker");
    assert_eq!(pod["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"], "false");
    assert_eq!(spec["containers"][0]["name"], "worker");
    assert_eq!(spec["containers"][1]["name"], "sidecar");
    let container = &spec["containers"][0];
    assert_eq!(container["image"], "mine");
    assert_eq!(env(container, "NCCL_DEBUG").len(), 1);
    let node = env(container, "LCL_NODE");
    assert_eq!((node.len(), &node[0]["valueFrom"]["fieldRef"]["fieldPath"]), (1, &json!("spec.nodeName")));
    let shared: Vec<&Value> =
        container["volumeMounts"].as_array().unwrap().iter().filter(|mount| mount["mountPath"] == "/dev/shm").collect();
    assert_eq!((shared.len(), &shared[0]["name"]), (1, &json!("fast")));
    assert_eq!(spec["restartPolicy"], "Never");
    assert_eq!(spec["tolerations"][0]["tolerationSeconds"], 300);
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
}

#[test]
fn a_worker_has_the_resources_of_the_job_and_a_member_for_each_accelerator() {
    let given = "{'requests': {'cpu': '8', 'memory': '32Gi'}, 'limits': {'memory': '32Gi', 'nvidia.com/gpu': '4'}}";
    for (more, members) in [("", "4"), ("; spec.workers.acceleratorResource = 'amd.com/gpu'", "1")] {
        let pod = worker(&format!("spec.workers.resources = {given}{more}"), 0);
        let container = &pod["spec"]["containers"][0];
        assert_eq!(container["resources"], serde_json::from_str::<Value>(&given.replace('\'', "\"")).unwrap());
        assert_eq!(env(container, "LCL_MEMBERS_PER_WORKER")[0]["value"], members, "{more}");
    }
}

#[test]
fn members_share_the_processors_that_were_asked_for() {
    for (workers, expected) in [
        ("{'resources': {'requests': {'cpu': '8'}}}", json!("8")),
        ("{'resources': {'limits': {'cpu': '8', 'nvidia.com/gpu': 4}}}", json!("2")),
        ("{'resources': {'requests': {'cpu': '8'}}, 'membersPerWorker': 4}", json!("2")),
        ("{'resources': {'requests': {'cpu': '3500m'}}}", json!("3")),
        ("{'resources': {'requests': {'cpu': '500m'}}, 'membersPerWorker': 2}", json!("1")),
        ("{'resources': {'requests': {'memory': '1Gi'}}}", json!(null)),
    ] {
        let pod = worker(&format!("spec.workers = {workers}"), 0);
        let found = env(&pod["spec"]["containers"][0], "LCL_THREADS");
        assert_eq!(found.first().map_or(Value::Null, |variable| variable["value"].clone()), expected, "{workers}");
    }
    let given = "spec.workers = {'resources': {'requests': {'cpu': '8'}}, 'template': {'spec': {'containers': \
                 [{'name': 'worker', 'env': [{'name': 'LCL_THREADS', 'value': '3'}]}]}}}";
    let pod = worker(given, 0);
    assert_eq!(env(&pod["spec"]["containers"][0], "LCL_THREADS")[0]["value"], "3", "the user knows better");
}

#[test]
fn the_coordinator_counts_members_and_not_workers() {
    let job = valid("spec.workers = {'replicas': 2, 'membersPerWorker': 2}; spec.elastic = {'minWorkers': 1, 'maxWorkers': 4}");
    let pod = serde_json::to_value(applied(&job).coordinator_pod(&job, &context(), 1)).unwrap();
    let container = &pod["spec"]["containers"][0];
    let values = ["LCL_MIN_MEMBERS", "LCL_DESIRED_MEMBERS", "LCL_MAX_MEMBERS"].map(|name| env(container, name)[0]["value"].clone());
    assert_eq!(values, [json!("2"), json!("4"), json!("8")]);
}

#[test]
fn the_coordinators_metrics_can_be_scraped() {
    let pod = coordinator("");
    let (container, annotations) = (&pod["spec"]["containers"][0], &pod["metadata"]["annotations"]);
    let port = container["ports"].as_array().unwrap().iter().find(|port| port["name"] == "metrics").unwrap();
    let number = port["containerPort"].to_string();
    assert_eq!(env(container, "LCL_METRICS_LISTEN")[0]["value"], format!("0.0.0.0:{number}"));
    let said = ["scrape", "port", "path"].map(|name| annotations[format!("prometheus.io/{name}")].clone());
    assert_eq!(said, [json!("true"), json!(number), json!("/metrics")]);
}

#[test]
fn the_coordinator_waits_as_long_as_the_job_says_and_by_itself_where_it_does_not() {
    // Of a fixed size, too.
    let timeouts = "spec.timeouts = {'heartbeatSeconds': 30, 'stallSeconds': 600}";
    for (assignments, expected) in [("", [None, None, None]), (timeouts, [Some("30"), Some("600"), None])] {
        let pod = coordinator(assignments);
        let found = ["LCL_HEARTBEAT_TIMEOUT", "LCL_STALL_TIMEOUT", "LCL_FORMATION_WAIT"]
            .map(|name| env(&pod["spec"]["containers"][0], name).first().map(|variable| variable["value"].as_str().unwrap().to_owned()));
        assert_eq!(found, expected.map(|value: Option<&str>| value.map(str::to_owned)), "{assignments}");
    }
}

#[test]
fn the_coordinator_is_told_when_a_slow_member_is_evicted_and_by_default_never() {
    let slow = "spec.elastic = {'minWorkers': 1, 'maxWorkers': 1, 'evictSlowMembers': {}}";
    for (assignments, expected) in [("", [None, None]), (slow, [Some("2"), Some("300")])] {
        let pod = coordinator(assignments);
        let found = ["LCL_EVICT_SLOW_FACTOR", "LCL_EVICT_SLOW_AFTER"]
            .map(|name| env(&pod["spec"]["containers"][0], name).first().map(|variable| variable["value"].as_str().unwrap().to_owned()));
        assert_eq!(found, expected.map(|value: Option<&str>| value.map(str::to_owned)), "{assignments}");
    }
}

#[test]
fn the_coordinator_runs_where_the_workers_may_unless_the_job_says_otherwise() {
    let workers = "spec.workers.template.spec = {'containers': [{'name': 'worker'}], 'nodeSelector': {'pool': 'gpu'}, \
         'tolerations': [{'key': 'gpu', 'operator': 'Exists'}], 'priorityClassName': 'high', 'runtimeClassName': 'gvisor', \
         'imagePullSecrets': [{'name': 'pull'}], 'affinity': {'podAntiAffinity': {}}}";
    let own = "spec.coordinator = {'nodeSelector': {'pool': 'cpu'}, 'tolerations': [], 'priorityClassName': 'low', 'schedulerName': 'own', \
         'resources': {'limits': {'memory': '1Gi'}}}";
    let spec = |assignments: &str| coordinator(assignments)["spec"].take();
    let keys = |spec: &Value| spec["tolerations"].as_array().unwrap().iter().map(|one| one["key"].clone()).collect::<Vec<_>>();
    let away = [json!("node.kubernetes.io/not-ready"), json!("node.kubernetes.io/unreachable")];

    let found = spec(workers);
    assert_eq!((&found["nodeSelector"], &found["priorityClassName"]), (&json!({ "pool": "gpu" }), &json!("high")));
    assert_eq!((&found["runtimeClassName"], &found["imagePullSecrets"]), (&json!("gvisor"), &json!([{ "name": "pull" }])));
    assert_eq!(keys(&found), [&[json!("gpu")][..], &away].concat());
    assert_eq!((&found["affinity"], &found["schedulerName"]), (&Value::Null, &Value::Null), "those are about the workers");

    let found = spec(&format!("{workers}; {own}"));
    assert_eq!((&found["nodeSelector"], &found["priorityClassName"]), (&json!({ "pool": "cpu" }), &json!("low")));
    assert_eq!((&found["runtimeClassName"], &found["schedulerName"]), (&json!("gvisor"), &json!("own")));
    assert_eq!(keys(&found), away);
    assert_eq!(found["containers"][0]["resources"], json!({ "limits": { "memory": "1Gi" } }));
}

#[test]
fn the_selector_finds_this_jobs_workers_alone() {
    let pod = worker("", 0);
    for requirement in worker_selector(&valid(""), &context()).split(',') {
        let (key, value) = requirement.split_once('=').unwrap();
        assert_eq!(pod["metadata"]["labels"][key], value, "{key}");
    }
}

/// A pod sees its own pair and the authority's certificate, and nothing else of the Secret.
#[test]
fn each_pod_mounts_its_own_certificates_and_no_others() {
    let coordinator = coordinator("");
    assert_eq!(coordinator["spec"]["containers"][0]["readinessProbe"]["httpGet"], json!({ "path": "/healthz", "port": "metrics" }));
    for (pod, own) in [(coordinator, "coordinator"), (worker("", 0), "worker")] {
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let secrets: Vec<&Value> = volumes.iter().filter(|volume| volume["name"] == "lcl-tls").map(|volume| &volume["secret"]).collect();
        let keys: Vec<&str> = secrets[0]["items"].as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap()).collect();
        assert_eq!((secrets.len(), keys), (1, vec![&*format!("{own}.crt"), &*format!("{own}.key"), "ca.crt"]));
        assert_eq!(secrets[0]["secretName"], "job-tls-6c1c5e0c");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(env(container, "LCL_TLS_CERTIFICATE")[0]["value"], format!("/etc/lcl-tls/{own}.crt"));
        assert_eq!(env(container, "LCL_INSECURE").len(), 0);
    }
}

/// The security of a worker's pod, of its container `worker` and of the init container `first`, with these fields in the template.
fn security(pod: &str, container: &str) -> [Value; 3] {
    let template = format!(
        "spec.workers.template.spec = {{'securityContext': {{{pod}}}, 'containers': [{{'name': 'worker', 'securityContext': \
         {{{container}}}}}], 'initContainers': [{{'name': 'first', 'image': 'a'}}]}}"
    );
    let pod = worker(&template, 0);
    let spec = &pod["spec"];
    [&spec["securityContext"], &spec["containers"][0]["securityContext"], &spec["initContainers"][0]["securityContext"]].map(Clone::clone)
}

#[test]
fn a_field_of_the_security_that_a_template_gives_takes_no_other_away() {
    let pod = json!({
        "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532, "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    let container = json!({ "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } });
    let other = json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
    assert_eq!(security("", ""), [pod.clone(), container.clone(), other.clone()]);
    for (given, field, value) in [
        ("'runAsUser': 1000", "runAsUser", json!(1000)),
        ("'runAsGroup': 1000", "runAsGroup", json!(1000)),
        ("'fsGroup': 1000", "fsGroup", json!(1000)),
        ("'fsGroupChangePolicy': 'Always'", "fsGroupChangePolicy", json!("Always")),
        ("'supplementalGroups': [7]", "supplementalGroups", json!([7])),
        ("'runAsNonRoot': true", "runAsNonRoot", json!(true)),
    ] {
        let mut expected = pod.clone();
        expected[field] = value;
        assert_eq!(security(given, "")[..2], [expected, container.clone()], "{given}");
    }
    for (given, field, value) in [
        ("'runAsUser': 1000", "runAsUser", json!(1000)),
        ("'readOnlyRootFilesystem': false", "readOnlyRootFilesystem", json!(false)),
        ("'allowPrivilegeEscalation': false", "allowPrivilegeEscalation", json!(false)),
        ("'capabilities': {'drop': ['NET_RAW']}", "capabilities", json!({ "drop": ["NET_RAW", "ALL"] })),
        ("'capabilities': {'drop': []}", "capabilities", json!({ "drop": ["ALL"] })),
        (
            "'seccompProfile': {'type': 'Localhost', 'localhostProfile': 'a'}",
            "seccompProfile",
            json!({ "type": "Localhost", "localhostProfile": "a" }),
        ),
    ] {
        let mut expected = container.clone();
        expected[field] = value;
        assert_eq!(security("", given), [pod.clone(), expected, other.clone()], "{given}");
    }
}

#[test]
fn a_worker_is_placed_elsewhere_than_on_a_silent_node_and_keeps_what_the_template_prefers() {
    let job = valid(
        "spec.workers.template = {'spec': {'containers': [{'name': 'worker'}], 'affinity': {'nodeAffinity': {'preferredDuringSchedulingIgnoredDuringExecution': [ \
         {'weight': 1, 'preference': {'matchExpressions': [{'key': 'zone', 'operator': 'Exists'}]}}]}}}}",
    );
    let pod = serde_json::to_value(applied(&job).worker_pod_elsewhere(&job, &context_of(&job), 0, "node-7").unwrap()).unwrap();
    let preferred = &pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(preferred[0]["preference"]["matchExpressions"][0]["key"], "zone");
    let elsewhere = json!([{ "key": "metadata.name", "operator": "NotIn", "values": ["node-7"] }]);
    assert_eq!((&preferred[1]["preference"]["matchFields"], &preferred[1]["weight"]), (&elsewhere, &json!(100)));
}

/// Of several terms one has to hold: a node that is excluded has to be so in each.
#[test]
fn a_worker_is_placed_on_no_excluded_node_whatever_the_template_demands() {
    let excluded = |template: &str| {
        let job = valid(template);
        let context = BuildContext { excluded_nodes: vec!["node-1".to_owned(), "node-2".to_owned()], ..context_of(&job) };
        let pod = serde_json::to_value(applied(&job).worker_pod(&job, &context, 0).unwrap()).unwrap();
        pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"].clone()
    };
    // The API server takes one value for a field.
    let others = json!(["node-1", "node-2"].map(|node| json!({ "key": "metadata.name", "operator": "NotIn", "values": [node] })));
    assert_eq!(excluded(""), json!([{ "matchFields": others }]));
    let zones = excluded(
        "spec.workers.template = {'spec': {'containers': [{'name': 'worker'}], 'affinity': {'nodeAffinity': \
         {'requiredDuringSchedulingIgnoredDuringExecution': {'nodeSelectorTerms': [ \
         {'matchExpressions': [{'key': 'zone', 'operator': 'In', 'values': ['a']}]}, \
         {'matchExpressions': [{'key': 'zone', 'operator': 'In', 'values': ['b']}]}]}}}}}",
    );
    let term = |zone: &str| json!({ "matchExpressions": [{ "key": "zone", "operator": "In", "values": [zone] }], "matchFields": others });
    assert_eq!(zones, json!([term("a"), term("b")]));
}

#[test]
fn no_pod_is_built_that_does_what_is_not_allowed_however_its_job_was_read() {
    let mut job = minimal_job();
    assign(
        &mut job,
        "spec.workers.template.spec = {'hostPID': true, 'containers': [{'name': 'worker', 'securityContext': {'privileged': true}}], \
         'volumes': [{'name': 'node', 'hostPath': {'path': '/'}}]}",
    );
    assert!(validate(&job).is_err());
    let job = read_unchecked(&job).unwrap();
    let build = |policy: PodPolicy| applied(&job).worker_pod(&job, &BuildContext { policy, ..context_of(&job) }, 0);
    let refused = |policy: PodPolicy| build(policy).unwrap_err().as_slice().iter().map(|error| error.field.clone()).collect::<Vec<_>>();
    let privileged = "pod.spec.containers[0].securityContext.privileged";
    assert_eq!(refused(PodPolicy::default()), ["pod.spec.hostPID", "pod.spec.volumes[0].hostPath", privileged]);
    assert_eq!(refused(PodPolicy::allowing([Allowance::HostPath, Allowance::HostNamespaces])), [privileged]);
    assert!(build(PodPolicy::everything()).is_ok());
}

#[test]
fn a_container_that_may_be_root_or_privileged_is_what_it_asks_for() {
    let build = |template: &str| {
        let mut job = minimal_job();
        assign(&mut job, template);
        let policy = PodPolicy::everything();
        let job = validate_under(&job, &policy).unwrap_or_else(|errors| panic!("{errors}"));
        let pod = applied(&job).worker_pod(&job, &BuildContext { policy, ..context_of(&job) }, 0).unwrap();
        serde_json::to_value(pod).unwrap()["spec"].take()
    };
    // The kubelet starts no root that must not be one, and the API server takes no `false` beside these.
    let spec = build("spec.workers.template.spec = {'securityContext': {'runAsUser': 0}, 'containers': [{'name': 'worker'}]}");
    assert_eq!(spec["securityContext"]["runAsNonRoot"], Value::Null);
    let spec = build(
        "spec.workers.template.spec.containers = [{'name': 'worker', 'securityContext': {'runAsUser': 0, 'privileged': true}}, \
         {'name': 'b', 'image': 'b', 'securityContext': {'capabilities': {'add': ['CAP_SYS_ADMIN']}}}]",
    );
    let [worker, other] = [0, 1].map(|index| spec["containers"][index]["securityContext"].clone());
    assert_eq!((&worker["runAsNonRoot"], &spec["securityContext"]["runAsNonRoot"]), (&json!(false), &json!(true)));
    assert_eq!((&worker["allowPrivilegeEscalation"], &other["allowPrivilegeEscalation"]), (&Value::Null, &Value::Null));
    assert_eq!(other["capabilities"], json!({ "add": ["CAP_SYS_ADMIN"], "drop": ["ALL"] }));
}

#[test]
fn the_account_has_the_annotations_of_the_job_and_one_that_is_taken_back_makes_a_difference() {
    let account = |assignments: &str| serde_json::to_value(prepared(&valid(assignments)).account).unwrap();
    let given = account("spec.serviceAccount = {'annotations': {'cloud.example.com/role': 'a', 'b.example.com/c': 'd'}}");
    let annotations = &given["metadata"]["annotations"];
    assert_eq!((&annotations["cloud.example.com/role"], &annotations["b.example.com/c"]), (&json!("a"), &json!("d")));
    assert_eq!(given["automountServiceAccountToken"], false);
    for fewer in ["", "spec.serviceAccount = {}", "spec.serviceAccount = {'annotations': {'b.example.com/c': 'd'}}"] {
        assert!(!covers(&given, &account(fewer)), "what was there would be left as it is: {fewer}");
    }
}

#[test]
fn a_drain_takes_workers_that_can_be_spared_and_is_never_held_up_for_ever() {
    for (assignments, kept) in [
        ("spec.workers.replicas = 4; spec.elastic = {'minWorkers': 2, 'maxWorkers': 8}", 2),
        ("spec.workers.replicas = 2; spec.elastic = {'minWorkers': 1, 'maxWorkers': 2}", 1),
        ("spec.workers.replicas = 2; spec.elastic = {'minWorkers': 2, 'maxWorkers': 8}", 1),
        ("spec.workers.replicas = 4", 3),
        ("", 0),
    ] {
        let job = valid(assignments);
        let budget = serde_json::to_value(prepared(&job).budget).unwrap();
        let spec = &budget["spec"];
        assert_eq!((&spec["minAvailable"], &spec["maxUnavailable"]), (&json!(kept), &Value::Null), "{assignments}");
        assert_eq!(spec["unhealthyPodEvictionPolicy"], "AlwaysAllow");
        assert!(kept < job.world().desired, "of all workers one can always be taken: {assignments}");
        let selected = |pod: &Value| selects(&spec["selector"], &pod["metadata"]["labels"]);
        assert!(selected(&worker(assignments, 0)) && !selected(&coordinator(assignments)), "{assignments}");
    }
}

/// Whether a selector selects what has these labels, as Kubernetes says; an empty one selects everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    assert!(selector["matchExpressions"].is_null(), "these are not read here: {selector}");
    selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels[key] == *value)
}

/// A pod on the network.
struct Peer {
    name: &'static str,
    namespace: &'static str,
    labels: Value,
}

/// Whether policies let `from` reach `to` on a port, as `networking.k8s.io/v1` says.
fn admits(policies: &[Value], from: &Peer, to: &Peer, port: u16) -> bool {
    let here = |policy: &&Value| policy["metadata"]["namespace"] == to.namespace;
    let selecting = policies.iter().filter(here).filter(|policy| selects(&policy["spec"]["podSelector"], &to.labels));
    let ingress: Vec<_> =
        selecting.filter(|policy| policy["spec"]["policyTypes"].as_array().unwrap().contains(&json!("Ingress"))).collect();
    let is_peer = |peer: &Value| {
        assert!(peer["ipBlock"].is_null(), "not read here: {peer}");
        let in_namespace = match &peer["namespaceSelector"] {
            Value::Null => from.namespace == to.namespace,
            selector => selects(selector, &json!({ "kubernetes.io/metadata.name": from.namespace })),
        };
        in_namespace && (peer["podSelector"].is_null() || selects(&peer["podSelector"], &from.labels))
    };
    let any = |list: &Value, is_one: &dyn Fn(&Value) -> bool| list.as_array().is_none_or(|list| list.is_empty() || list.iter().any(is_one));
    ingress.is_empty()
        || ingress
            .iter()
            .flat_map(|policy| policy["spec"]["ingress"].as_array().into_iter().flatten())
            .any(|rule| any(&rule["from"], &is_peer) && any(&rule["ports"], &|one| one["port"] == port && one["protocol"] == "TCP"))
}

#[test]
fn a_jobs_pods_are_reached_by_its_own_and_by_the_operator_and_by_nobody_else() {
    const EPHEMERAL: u16 = 43_210;
    let other = BuildContext { uid: "6c1c5e0c-0000-4000-8000-000000000002".to_owned(), ..context() };
    let labels = |pod: &Value| pod["metadata"]["labels"].clone();
    let others_pods = |assignments: &str| {
        let job = valid(assignments);
        let resources = applied(&job);
        let worker = serde_json::to_value(resources.worker_pod(&job, &other, 0).unwrap()).unwrap();
        let coordinator = serde_json::to_value(resources.coordinator_pod(&job, &other, 1)).unwrap();
        (labels(&coordinator), labels(&worker))
    };
    // Another job, and an earlier one of the same name, whose worker tries to pass for another by its template.
    let (other_coordinator, other_worker) = others_pods("metadata.name = 'other'");
    let (_, earlier_worker) = others_pods(
        "spec.workers.template = {'metadata': {'labels': {'lcl.dev/job-uid': '6c1c5e0c-0000-4000-8000-000000000001', \
         'app.kubernetes.io/name': 'lcl-operator'}}}",
    );
    let peer = |name, namespace, labels| Peer { name, namespace, labels };
    let operator = json!({ "app.kubernetes.io/name": "lcl-operator", "app.kubernetes.io/instance": "lcl" });
    let peers = [
        peer("own coordinator", "vision", labels(&coordinator(""))),
        peer("own worker", "vision", labels(&worker("", 0))),
        peer("another own worker", "vision", labels(&worker("", 1))),
        peer("another job's coordinator", "vision", other_coordinator),
        peer("another job's worker", "vision", other_worker),
        peer("an earlier job's worker", "vision", earlier_worker),
        peer("operator", "lcl-system", operator.clone()),
        peer("stranger beside the operator", "lcl-system", json!({ "app": "x" })),
        peer("stranger that calls itself operator", "vision", operator),
        peer("stranger in the namespace", "vision", json!({ "app": "x" })),
        peer("stranger elsewhere that calls itself worker", "elsewhere", labels(&worker("", 0))),
        peer("stranger elsewhere", "elsewhere", json!({})),
    ];
    let policies: Vec<Value> = prepared(&valid("")).policies.iter().map(|policy| serde_json::to_value(policy).unwrap()).collect();
    assert_eq!(policies.iter().map(|policy| policy["metadata"]["name"].clone()).collect::<Vec<_>>(), network_policy_names(&valid("")));
    for policy in &policies {
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]), "what goes out is open");
    }
    for from in &peers {
        let is_own = from.name.contains("own ");
        for (to, port, expected) in [
            (0, 7433, is_own || from.name == "operator"),
            (0, 8080, true),
            (0, EPHEMERAL, false),
            (1, 7433, is_own && from.name.ends_with("worker")),
            (1, EPHEMERAL, is_own && from.name.ends_with("worker")),
            // Not this job's to say.
            (3, 7433, true),
            (9, 80, true),
            (6, 8081, true),
        ] {
            assert_eq!(admits(&policies, from, &peers[to], port), expected, "{} to {} on {port}", from.name, peers[to].name);
        }
    }
}

#[test]
fn metrics_are_read_by_whom_the_chart_says_and_workers_on_the_nodes_network_are_not_locked_out() {
    let from = json!([{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "monitoring" } } }]);
    let access = NetworkAccess { metrics_from: serde_json::from_value(from).unwrap(), ..network() };
    let build = |assignments: &str, network: Option<NetworkAccess>| -> Vec<Value> {
        let mut job = minimal_job();
        assign(&mut job, assignments);
        let job = validate_under(&job, &PodPolicy::everything()).unwrap_or_else(|errors| panic!("{errors}"));
        let prepared = PreparedResources::prepare(&job, &BuildContext { network, ..context_of(&job) });
        prepared.policies.iter().map(|policy| serde_json::to_value(policy).unwrap()).collect()
    };
    let stranger = |namespace| Peer { name: "", namespace, labels: json!({}) };
    let to = Peer { name: "", namespace: "vision", labels: coordinator("")["metadata"]["labels"].clone() };
    let policies = build("", Some(access.clone()));
    assert!(admits(&policies, &stranger("monitoring"), &to, 8080) && !admits(&policies, &stranger("vision"), &to, 8080));
    assert!(!admits(&policies, &stranger("monitoring"), &to, 7433));
    // A worker there comes from the node's address.
    let policies = build("spec.workers.template.spec = {'hostNetwork': true, 'containers': [{'name': 'worker'}]}", Some(access));
    assert!(admits(&policies, &stranger("nowhere"), &to, 7433) && !admits(&policies, &stranger("vision"), &to, 8080));
    assert_eq!(build("", None), Vec::<Value>::new());
}

/// Killed by the kubelet it could not say that it left in order.
#[test]
fn members_have_the_grace_period_of_their_pod_to_leave_but_for_the_last_seconds() {
    let drain = |template: &str| {
        let mut job = minimal_job();
        assign(&mut job, template);
        let job = read_unchecked(&job).unwrap();
        let pod = serde_json::to_value(applied(&job).worker_pod(&job, &context_of(&job), 0).unwrap()).unwrap();
        env(&pod["spec"]["containers"][0], "LCL_DRAIN_TIMEOUT").iter().map(|variable| variable["value"].clone()).collect::<Vec<_>>()
    };
    let grace = |seconds: i64, variables: &str| {
        drain(&format!(
            "spec.workers.template.spec = {{'terminationGracePeriodSeconds': {seconds}, 'containers': [{{'name': 'worker', 'env': [{variables}]}}]}}"
        ))
    };
    assert_eq!(drain(""), ["110"]);
    assert_eq!([grace(600, ""), grace(30, ""), grace(12, ""), grace(0, "")].concat(), ["590", "20", "6", "0"]);
    assert_eq!(
        [grace(i64::MAX, ""), grace(-1, ""), grace(i64::MIN, "")].concat(),
        [&(i64::MAX - 10).to_string(), "0", "0"],
        "of old rules"
    );
    assert_eq!(grace(600, "{'name': 'LCL_DRAIN_TIMEOUT', 'value': '300'}"), ["300"], "who says so has it so");
}
