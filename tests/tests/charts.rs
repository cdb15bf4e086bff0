//! The charts as Helm renders them: valid for Kubernetes, strict about values, and what is committed as the default.
//!
//! Needs Helm: `scripts/helm.sh` builds it (`make test` does), or `LCL_HELM_BIN` names it.
//! After a wanted change: `INSTA_UPDATE=always cargo test -p lcl-tests --test charts`, and read the difference.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use lcl_tests::workspace;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const OPERATOR: &str = "lcl-operator";
const DEFINITIONS: &str = "lcl-crds";

fn chart(name: &str) -> PathBuf {
    workspace().join("charts").join(name)
}

/// The values that `charts/lcl-operator/ci` holds for tests.
fn example_values() -> Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(chart(OPERATOR).join("ci"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    ensure!(files.len() >= 3, "values for tests are missing: {files:?}");
    Ok(files)
}

fn helm_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("LCL_HELM_BIN") {
        return Ok(path.into());
    }
    let module = fs::read_to_string(workspace().join("tests/cluster/helm/go.mod"))?;
    let version = module
        .lines()
        .find_map(|line| line.trim().trim_start_matches("require ").strip_prefix("helm.sh/helm/v4 v"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("tests/cluster/helm/go.mod names no Helm")?;
    let path = workspace().join(format!(".deps/helm-{version}/helm"));
    ensure!(path.exists(), "{} is missing: run scripts/helm.sh, or set LCL_HELM_BIN", path.display());
    Ok(path)
}

fn helm(arguments: &[&str]) -> Result<Output> {
    // No plugin, repository or cache of the user's takes part.
    let home = tempfile::tempdir()?;
    Command::new(helm_program()?)
        .args(arguments)
        .env("HELM_CACHE_HOME", home.path())
        .env("HELM_CONFIG_HOME", home.path())
        .env("HELM_DATA_HOME", home.path())
        .env_remove("KUBECONFIG")
        .output()
        .context("starting Helm")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// What `helm template` writes for the chart with further arguments, or what it complains about.
fn render(name: &str, arguments: &[&str]) -> Result<Result<String, String>> {
    let path = chart(name);
    let output = helm(&[&["template", "lcl", text(&path)?, "--namespace", "lcl-system"], arguments].concat())?;
    Ok(if output.status.success() { Ok(String::from_utf8(output.stdout)?) } else { Err(String::from_utf8(output.stderr)?) })
}

fn objects(name: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let rendered = render(name, arguments)?.map_err(anyhow::Error::msg)?;
    if rendered.trim().is_empty() {
        return Ok(Vec::new());
    }
    let objects: Vec<Value> = serde_saphyr::from_multiple(&rendered).context("the charts render YAML that cannot be read")?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

fn kinds(objects: &[Value]) -> BTreeSet<&str> {
    objects.iter().filter_map(|object| object["kind"].as_str()).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind).with_context(|| format!("no {kind} is rendered"))
}

/// A field that Kubernetes does not know, or of another type, is lost or refused on the way through its Rust type.
fn check_type<T: Serialize + DeserializeOwned>(object: &Value) -> Result<()> {
    let typed: T = serde_json::from_value(object.clone()).with_context(|| object.to_string())?;
    let back = serde_json::to_value(typed)?;
    ensure!(&back == object, "Kubernetes would read\n{back:#}\nfrom\n{object:#}");
    Ok(())
}

fn check_object(object: &Value) -> Result<()> {
    match object["kind"].as_str().unwrap_or_default() {
        "ClusterRole" => check_type::<ClusterRole>(object),
        "ClusterRoleBinding" => check_type::<ClusterRoleBinding>(object),
        "Deployment" => check_type::<Deployment>(object),
        "NetworkPolicy" => check_type::<NetworkPolicy>(object),
        "PodDisruptionBudget" => check_type::<PodDisruptionBudget>(object),
        "Role" => check_type::<Role>(object),
        "RoleBinding" => check_type::<RoleBinding>(object),
        "Service" => check_type::<Service>(object),
        "ServiceAccount" => check_type::<ServiceAccount>(object),
        // Not a kind of Kubernetes itself; the snapshot shows it.
        "ServiceMonitor" => Ok(()),
        other => bail!("the charts render a {other}, which this test does not know"),
    }
}

#[test]
fn both_charts_pass_the_strict_linter() -> Result<()> {
    for name in [OPERATOR, DEFINITIONS] {
        let output = helm(&["lint", "--strict", text(&chart(name))?])?;
        ensure!(output.status.success(), "{name}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn the_default_is_what_was_read_and_committed() -> Result<()> {
    insta::assert_snapshot!("operator_default", render(OPERATOR, &[])?.map_err(anyhow::Error::msg)?);
    Ok(())
}

#[test]
fn every_optional_part_is_what_was_read_and_committed() -> Result<()> {
    let values = chart(OPERATOR).join("ci/everything.yaml");
    insta::assert_snapshot!("operator_everything", render(OPERATOR, &["--values", text(&values)?])?.map_err(anyhow::Error::msg)?);
    Ok(())
}

#[test]
fn kubernetes_knows_every_field_that_is_rendered() -> Result<()> {
    let mut seen = BTreeSet::new();
    let files = example_values()?;
    for file in std::iter::once(None).chain(files.iter().map(Some)) {
        let arguments = match file {
            Some(file) => vec!["--values", text(file)?],
            None => Vec::new(),
        };
        let objects = objects(OPERATOR, &arguments)?;
        for object in &objects {
            check_object(object).with_context(|| format!("{file:?}"))?;
            seen.insert(object["kind"].as_str().unwrap_or_default().to_owned());
        }
    }
    assert_eq!(seen.len(), 10, "{seen:?}");
    Ok(())
}

#[test]
fn a_list_of_namespaces_gives_rights_there_and_none_in_the_cluster() -> Result<()> {
    let values = chart(OPERATOR).join("ci/namespaced.yaml");
    let namespaced = objects(OPERATOR, &["--values", text(&values)?])?;
    let kinds = kinds(&namespaced);
    assert!(!kinds.contains("ClusterRole") && !kinds.contains("ClusterRoleBinding"), "{kinds:?}");
    let everywhere = objects(OPERATOR, &[])?;
    let cluster_wide = &find(&everywhere, "ClusterRole")?["rules"];
    for namespace in ["team-a", "team-b"] {
        let in_namespace = |kind: &str| {
            namespaced
                .iter()
                .find(|object| object["kind"] == kind && object["metadata"]["namespace"] == namespace)
                .with_context(|| format!("no {kind} in {namespace}"))
        };
        assert_eq!(&in_namespace("Role")?["rules"], cluster_wide);
        let binding = in_namespace("RoleBinding")?;
        assert_eq!(binding["subjects"], json!([{ "kind": "ServiceAccount", "name": "lcl-lcl-operator", "namespace": "lcl-system" }]));
    }
    let arguments = &find(&namespaced, "Deployment")?["spec"]["template"]["spec"]["containers"][0]["args"];
    assert!(arguments.as_array().is_some_and(|list| list.contains(&json!("--watch-namespaces=team-a,team-b"))), "{arguments}");
    Ok(())
}

/// The leases that the operator's own role names.
fn lease_of(objects: &[Value]) -> Result<Value> {
    let role = objects.iter().find(|object| object["metadata"]["name"] == "lcl-lcl-operator-leader-election").context("no role")?;
    assert_eq!(role["metadata"]["namespace"], "lcl-system");
    Ok(role["rules"][0]["resourceNames"].clone())
}

#[test]
fn rights_to_leases_are_for_those_that_the_operator_uses_and_no_others() -> Result<()> {
    assert_eq!(lease_of(&objects(OPERATOR, &[])?)?, json!(["lcl-operator"]));
    // As the operator computes it, whatever the order: operator/src/lease.rs.
    for namespaces in ["team-a,team-b", "team-b,team-a"] {
        let objects = objects(OPERATOR, &["--set", &format!("watchNamespaces={{{namespaces}}}")])?;
        assert_eq!(lease_of(&objects)?, json!(["lcl-operator-183efbe2b2"]));
    }
    let rules = |objects: &[Value]| -> Vec<Value> {
        let all = objects.iter().filter_map(|object| object["rules"].as_array()).flatten();
        all.filter(|rule| rule["resources"] == json!(["leases"])).cloned().collect()
    };
    let rights = rules(&objects(OPERATOR, &[])?);
    assert_eq!(rights.len(), 4, "two for either lease: {rights:?}");
    for rule in &rights {
        // Creating cannot be limited by name, and nothing else is without one.
        assert!(rule["resourceNames"].is_array() || rule["verbs"] == json!(["create"]), "{rule}");
    }
    let without = objects(OPERATOR, &["--set", "leaderElection.enabled=false", "--set", "replicas=1"])?;
    assert_eq!(rules(&without), Vec::<Value>::new());
    Ok(())
}

#[test]
fn a_pod_that_stands_by_is_ready_for_its_deployment_and_without_an_election_there_are_never_two() -> Result<()> {
    let elected = objects(OPERATOR, &[])?;
    let deployment = find(&elected, "Deployment")?;
    let probe = &deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"];
    assert_eq!(probe, "/readyz?exclude=leader-election");
    assert!(deployment["spec"]["strategy"].is_null(), "{deployment}");
    let single = objects(OPERATOR, &["--set", "leaderElection.enabled=false", "--set", "replicas=1"])?;
    assert_eq!(find(&single, "Deployment")?["spec"]["strategy"], json!({ "type": "Recreate" }));
    Ok(())
}

#[test]
fn values_that_make_no_sense_are_refused_by_name() -> Result<()> {
    let refused = [
        (OPERATOR, "replicas=two", "/replicas"),
        (OPERATOR, "replicas=11", "/replicas"),
        (OPERATOR, "leaderElection.enabled=false", "/replicas"),
        (OPERATOR, "leaderElection.enabled=maybe", "/leaderElection/enabled"),
        (OPERATOR, "replica=1", "'replica'"),
        (OPERATOR, "image.tags=1.0", "'tags'"),
        (OPERATOR, "image.tag=a b", "/image/tag"),
        (OPERATOR, "image.digest=sha256:abc", "/image/digest"),
        (OPERATOR, "image.pullPolicy=Sometimes", "/image/pullPolicy"),
        (OPERATOR, "jobImages.pullPolicy=never", "/jobImages/pullPolicy"),
        (OPERATOR, "jobImages.trainer.repository=", "/jobImages/trainer/repository"),
        (OPERATOR, "security.allowHostPath=maybe", "/security/allowHostPath"),
        (OPERATOR, "security.allowEverything=true", "'allowEverything'"),
        (OPERATOR, "watchNamespaces={Team}", "/watchNamespaces/0"),
        (OPERATOR, "watchNamespaces={a,a}", "/watchNamespaces"),
        (OPERATOR, "concurrency=0", "/concurrency"),
        (OPERATOR, "kubeApi.qps=0.5", "/kubeApi/qps"),
        (OPERATOR, "log.format=xml", "/log/format"),
        (OPERATOR, "resources.limits.memory=much", "/resources/limits/memory"),
        (OPERATOR, "resources.limit.memory=1Gi", "'limit'"),
        (OPERATOR, "tolerations[0].effect=NoRun", "/tolerations/0/effect"),
        (OPERATOR, "topologySpreadConstraints[0].maxSkew=1", "/topologySpreadConstraints/0"),
        (OPERATOR, "metrics.serviceMonitor.interval=often", "/metrics/serviceMonitor/interval"),
        (OPERATOR, "podDisruptionBudget.maxUnavailable=half", "/podDisruptionBudget/maxUnavailable"),
        (OPERATOR, "networkPolicy.apiServerPorts={0}", "/networkPolicy/apiServerPorts/0"),
        (OPERATOR, "nodeSelector.disk=1", "/nodeSelector/disk"),
        (DEFINITIONS, "crds.enabled=yes please", "/crds/enabled"),
        (DEFINITIONS, "crds.install=true", "'install'"),
    ];
    for (name, value, field) in refused {
        match render(name, &["--set", value])? {
            Ok(_) => bail!("{name} takes --set {value}"),
            Err(message) => assert!(message.contains(field), "--set {value} is refused without naming {field}: {message}"),
        }
    }
    Ok(())
}

#[test]
fn what_templates_may_do_is_told_to_the_operator_and_is_nothing_by_default() -> Result<()> {
    let allowed = |sets: &[&str]| -> Result<Vec<String>> {
        let objects = objects(OPERATOR, &sets.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>())?;
        let arguments = &find(&objects, "Deployment")?["spec"]["template"]["spec"]["containers"][0]["args"];
        let arguments = arguments.as_array().context("no arguments")?.iter().filter_map(Value::as_str);
        Ok(arguments.filter_map(|argument| argument.strip_prefix("--allow=")).map(str::to_owned).collect())
    };
    assert_eq!(allowed(&[])?, Vec::<String>::new());
    for what in ["HostPath", "HostNamespaces", "Privileged", "Root", "ApiTokens"] {
        assert_eq!(allowed(&[&format!("security.allow{what}=true")])?, [what]);
    }
    assert_eq!(allowed(&["security.allowRoot=true", "security.allowHostPath=true"])?, ["HostPath,Root"]);
    Ok(())
}

#[test]
fn a_cluster_that_is_too_old_is_refused() -> Result<()> {
    for name in [OPERATOR, DEFINITIONS] {
        let message = render(name, &["--kube-version", "1.32.9"])?.err().with_context(|| format!("{name} takes Kubernetes 1.32"))?;
        assert!(message.contains("kubeVersion"), "{message}");
        assert!(render(name, &["--kube-version", "1.33.0"])?.is_ok(), "{name} refuses Kubernetes 1.33");
    }
    Ok(())
}

#[test]
fn the_chart_of_definitions_holds_the_definition_and_keeps_it() -> Result<()> {
    let definition = serde_json::to_value(lcl_crds::custom_resource_definition())?;
    let rendered = objects(DEFINITIONS, &[])?;
    let [object] = &rendered[..] else { bail!("{} objects", rendered.len()) };
    assert_eq!(object["spec"], definition["spec"]);
    assert_eq!(object["metadata"]["name"], definition["metadata"]["name"]);
    assert_eq!(object["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");

    let loose = objects(DEFINITIONS, &["--set", "crds.keep=false"])?;
    assert!(loose[0]["metadata"]["annotations"].is_null(), "{}", loose[0]["metadata"]);
    assert_eq!(objects(DEFINITIONS, &["--set", "crds.enabled=false"])?, Vec::<Value>::new());
    Ok(())
}

#[test]
fn charts_and_programs_have_one_version() -> Result<()> {
    for name in [OPERATOR, DEFINITIONS] {
        let chart: Value = serde_saphyr::from_str(&fs::read_to_string(chart(name).join("Chart.yaml"))?)?;
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"), "{name}");
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"), "{name}");
    }
    Ok(())
}

/// Dotted names of all values; an empty list or map counts as one.
fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
    match value.as_object() {
        Some(fields) if !fields.is_empty() => {
            for (name, inner) in fields {
                leaves(inner, &if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

#[test]
fn every_value_is_in_the_readme() -> Result<()> {
    for name in [OPERATOR, DEFINITIONS] {
        let values: Value = serde_saphyr::from_str(&fs::read_to_string(chart(name).join("values.yaml"))?)?;
        let readme = fs::read_to_string(chart(name).join("README.md"))?;
        let mut paths = Vec::new();
        leaves(&values, "", &mut paths);
        assert!(paths.len() > 1, "{paths:?}");
        for path in paths {
            // A row may stand for all that lies below it.
            let described = path
                .match_indices('.')
                .map(|(end, _)| &path[..end])
                .chain([path.as_str()])
                .any(|prefix| readme.contains(&format!("| `{prefix}`")));
            assert!(described, "{name}/README.md does not describe {path}");
        }
    }
    Ok(())
}
