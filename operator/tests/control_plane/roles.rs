//! The roles that the chart gives allow what the operator asks for, and nothing else.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    MANAGED_BY, child_path, install, job,
    obstacles::{bind, warn},
    set_pod_status,
    support::{Installed, SYSTEM, name_of, wait_for},
    terminated, uids, wait_for_pods,
};

/// API group, resource with its subresource, verb.
type Right = (String, String, String);

/// Rights that no request shows: by the first an owner reference may hold up its owner's deletion, where a cluster checks that; and whoever
/// applies an object that is not there needs the right to create it, too.
fn is_unseen((group, resource, verb): &Right, used: &BTreeSet<Right>) -> bool {
    let applies = used.contains(&(group.clone(), resource.clone(), "patch".to_owned()));
    resource == "lcltrainingjobs/finalizers" || (verb == "create" && applies)
}

/// What the roles allow that the chart binds to the operator's account.
fn allowed(installed: &Installed) -> Result<BTreeSet<Right>> {
    let mut rights = BTreeSet::new();
    let mut add = |role: &Value| {
        for rule in role["rules"].as_array().into_iter().flatten() {
            let words = |key: &str| -> Vec<String> {
                rule[key].as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
            };
            for group in words("apiGroups") {
                for resource in words("resources") {
                    rights.extend(words("verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
                }
            }
        }
    };
    add(&installed.get(&["clusterrole", "lcl-operator"])?);
    let roles = installed.get(&["roles", "--namespace", SYSTEM])?;
    let roles = roles["items"].as_array().context("no roles")?;
    ensure!(roles.iter().filter(|role| name_of(role).starts_with("lcl-operator")).count() == 2, "{roles:?}");
    roles.iter().filter(|role| name_of(role).starts_with("lcl-operator")).for_each(add);
    Ok(rights)
}

/// What the operator asked for so far; nothing of it was refused.
fn used(installed: &Installed) -> Result<BTreeSet<Right>> {
    let mut used = BTreeSet::new();
    for entry in installed.requests_of("lcl-operator")? {
        let object = &entry["objectRef"];
        // Discovery, which everybody may ask for.
        let Some(resource) = object["resource"].as_str() else { continue };
        ensure!(entry["responseStatus"]["code"] != 403, "refused: {entry}");
        let subresource = object["subresource"].as_str().map_or_else(String::new, |part| format!("/{part}"));
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        used.insert((word(&object["apiGroup"]), format!("{resource}{subresource}"), word(&entry["verb"])));
    }
    Ok(used)
}

fn wait_for_use(installed: &Installed, wanted: &str, wanted_verb: &str) -> Result<()> {
    wait_for(&format!("{wanted_verb} of {wanted}"), || {
        let used = used(installed)?;
        ensure!(used.iter().any(|(_, resource, verb)| resource == wanted && verb == wanted_verb), "{used:?}");
        Ok(())
    })
}

/// From an installation to a job's deletion, with all that happens to jobs in between.
#[test]
fn the_roles_allow_what_the_operator_does_and_nothing_else() -> Result<()> {
    let installed = install()?;
    let elected = ["--leader-elect", "--network-policies"];
    let operator = installed.start_operator(&elected)?;
    installed.apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node" } }))?;
    installed.apply(&job("short", "spec.ttlSecondsAfterFinished = 0"))?;
    installed
        .apply(&job("mounts", "spec.workers.template.spec = {'terminationGracePeriodSeconds': 1, 'containers': [{'name': 'worker'}]}"))?;
    // A name that somebody else has.
    let taken = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "taken-w-0" }, "spec": { "containers": [{ "name": "a", "image": "a" }] } });
    installed.apply(&taken)?;
    installed.apply(&job("taken", ""))?;
    // What does not start is looked into.
    let pods = uids(&wait_for_pods(&installed, "mounts", 2)?);
    bind(&installed, "mounts-w-0", "node")?;
    warn(&installed, "mounts-w-0", &pods["mounts-w-0"], "FailedMount", "no such volume", 1)?;
    // Two replacements have one Event, which is written again.
    for _ in 0..2 {
        let before = uids(&wait_for_pods(&installed, "short", 2)?);
        installed.kubectl(&["delete", "pod", "short-w-0", "--force", "--grace-period=0"])?;
        wait_for("a replacement", || {
            let now = uids(&installed.pods("short")?);
            ensure!(now.get("short-w-0").is_some_and(|uid| *uid != before["short-w-0"]), "{now:?}");
            Ok(())
        })?;
    }
    // A change has a configuration of its own, and the one before goes.
    installed.kubectl(&["patch", "lcltrainingjob", "short", "--type=merge", "-p", r#"{"spec":{"optimization":{"steps":7}}}"#])?;
    wait_for("another configuration", || {
        ensure!(installed.get(&["configmap", "short-config-1"]).is_err(), "it is there still");
        installed.get(&["configmap", "short-config-2"]).map(drop)
    })?;
    wait_for_pods(&installed, "short", 2)?;
    set_pod_status(&installed, "short-w-0", &terminated("worker", 0, ""))?;
    wait_for("the end of the job", || {
        ensure!(installed.get(&["lcltrainingjob", "short"]).is_err(), "it is there still");
        Ok(())
    })?;
    wait_for_use(&installed, "events", "list")?;
    // What somebody edits is as it was; a ConfigMap that cannot be changed can be hidden.
    for (kind, name, patch) in [
        ("services", "mounts-coordinator", json!({ "spec": { "selector": { "lcl.dev/role": "nobody" } } })),
        ("serviceaccounts", "mounts", json!({ "automountServiceAccountToken": true })),
        ("poddisruptionbudgets", "mounts-workers", json!({ "spec": { "minAvailable": 7 } })),
        ("networkpolicies", "mounts-workers", json!({ "spec": { "ingress": [{}] } })),
        ("configmaps", "mounts-config-1", json!({ "metadata": { "labels": { MANAGED_BY: null } } })),
    ] {
        installed.send("PATCH", &child_path(kind, name), &patch)?;
        wait_for_use(&installed, kind, "patch")?;
    }
    operator.terminate()?;
    // Without them, policies that are there go.
    let operator = installed.start_operator(&elected[..1])?;
    wait_for("policies that are gone", || {
        ensure!(installed.get(&["networkpolicy", "mounts-workers"]).is_err(), "they are there still");
        Ok(())
    })?;
    // Nobody is on the node to confirm that the pod has ended.
    installed.kubectl(&["delete", "lcltrainingjob", "mounts", "--cascade=background"])?;
    installed.kubectl(&["delete", "pod", "mounts-w-0", "--wait=false"])?;
    // Before it is removed its job is looked for.
    wait_for_use(&installed, "lcltrainingjobs", "get")?;
    operator.terminate()?;

    let (allowed, used) = (allowed(&installed)?, used(&installed)?);
    let unused: Vec<_> = allowed.difference(&used).filter(|right| !is_unseen(right, &used)).collect();
    assert!(unused.is_empty(), "the chart allows what the operator does not do: {unused:?}");
    let beyond: Vec<_> = used.difference(&allowed).collect();
    assert!(beyond.is_empty(), "another role allowed it: {beyond:?}");
    Ok(())
}
