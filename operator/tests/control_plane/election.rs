//! Of several operators one acts: who leads, who stands by, and what becomes of a leader that is stopped, hindered or replaced.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    install, job,
    proxy::{Log, Passed, Proxy},
    support::{Installed, Operator, SYSTEM, connect, get, objects, wait_for},
    uids, wait_for_pods,
};

const ELECT: [&str; 2] = ["--leader-elect", "--pod-namespace=lcl-system"];
const LEADS: &str = "leader_election_master_status{name=\"lcl-operator\"}";

fn lease(installed: &Installed, namespace: &str, name: &str) -> Result<Value> {
    Ok(installed.look(&format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{name}"))?["spec"].take())
}

fn wait_until_ready(operator: &Operator) -> Result<()> {
    wait_for("an operator that works", || get(&operator.health, "/readyz")).map(drop)
}

fn wait_for_message(operator: &Operator, message: &str, namespace: &str) -> Result<()> {
    wait_for(&format!("{message:?} about {namespace}"), || {
        let lines = operator.log_lines()?;
        let is_it = |line: &&Value| {
            let fields = &line["fields"];
            fields["namespace"] == namespace && fields["message"].as_str().is_some_and(|text| text.contains(message))
        };
        lines.iter().find(is_it).map(drop).context("not yet")
    })
}

#[test]
fn a_standby_says_so_and_takes_over_when_the_leader_ends() -> Result<()> {
    let installed = install()?;
    let first = installed.start_operator(&ELECT)?;
    wait_until_ready(&first)?;
    ensure!(first.metric(LEADS)? > 0.0, "it does not lead");
    let second = installed.start_operator(&ELECT)?;
    installed.apply(&job("led", ""))?;
    wait_for_pods(&installed, "led", 2)?;
    ensure!(second.metric(LEADS)? < 1.0, "two lead");
    let refused = get(&second.health, "/readyz").expect_err("a standby is not ready").to_string();
    let holder = lease(&installed, SYSTEM, "lcl-operator")?["holderIdentity"].as_str().unwrap_or_default().to_owned();
    assert!(
        refused.contains("503") && refused.contains(&format!("stands by; {holder} holds the lease lcl-system/lcl-operator")),
        "{refused}"
    );
    assert_eq!(get(&second.health, "/healthz")?, "ok");
    // In order: the lease is given back, and nobody waits for its end.
    first.terminate()?;
    wait_until_ready(&second)?;
    ensure!(second.metric(LEADS)? > 0.0, "it does not lead");
    installed.kubectl(&["delete", "pod", "led-w-0", "--force", "--grace-period=0"])?;
    wait_for_pods(&installed, "led", 2)?;
    second.terminate()
}

/// Keeps back what is asked about the leader's lease once the operator is stopped: whether it writes must not depend on how soon it hears
/// of its loss.
async fn keep_leases_back(passed: Passed, mut is_stopped: watch::Receiver<bool>) {
    if passed.is(&passed.method, "lcl-operator") && *is_stopped.borrow() {
        // Nobody waits any more when the sender is gone: the test is over.
        let _ = is_stopped.wait_for(|is_stopped| !is_stopped).await;
    }
}

#[test]
fn a_leader_that_was_stopped_for_longer_than_its_lease_writes_nothing_more() -> Result<()> {
    let installed = install()?;
    let (stopped, is_stopped) = watch::channel(false);
    let proxy = Proxy::start(&installed.kubeconfig_of("lcl-operator")?, move |passed, _| keep_leases_back(passed, is_stopped.clone()))?;
    // Two containers of one name, as two processes of one number would be.
    let named = [&ELECT[..], &["--pod-name=operator-0"]].concat();
    let first = installed.start_operator_with(&proxy.kubeconfig, &named)?;
    wait_until_ready(&first)?;
    let holder = || -> Result<String> { Ok(lease(&installed, SYSTEM, "lcl-operator")?["holderIdentity"].to_string()) };
    let firsts = holder()?;
    assert!(firsts.contains("operator-0_"), "{firsts}");
    installed.apply(&job("paused", "spec.workers = {'replicas': 2}"))?;
    wait_for_pods(&installed, "paused", 3)?;
    let second = installed.start_operator(&named)?;
    first.signal(Signal::STOP)?;
    stopped.send_replace(true);
    wait_until_ready(&second)?;
    assert_ne!(holder()?, firsts, "another identity");
    let replace = || -> Result<()> {
        let pods = uids(&wait_for_pods(&installed, "paused", 3)?);
        installed.kubectl(&["delete", "pod", "paused-w-1", "--force", "--grace-period=0"])?;
        wait_for("a replacement", || {
            let now = uids(&installed.pods("paused")?);
            ensure!(now.len() == 3 && now != pods, "{now:?}");
            Ok(())
        })
    };
    replace()?;
    // The lease is the second's, which does nothing any more: whatever is done now, the first would have to do.
    second.signal(Signal::STOP)?;
    installed.kubectl(&["delete", "pod", "paused-w-0", "--force", "--grace-period=0"])?;
    let before = proxy.log.borrow().len();
    first.signal(Signal::CONT)?;
    let complaint = first.wait_for_failure()?;
    let after = proxy.log.borrow()[before..].iter().filter(|passed| passed.method != "GET").cloned().collect::<Vec<_>>();
    assert_eq!(after, [], "written after it was stopped");
    assert!(complaint.contains("leads no longer: the lease lcl-system/lcl-operator was last renewed"), "{complaint}");
    assert_eq!(installed.pods("paused")?.len(), 2, "a pod was created");
    Ok(())
}

/// Writes the lease once before the operator does, and keeps Events back until so many pods were created.
async fn hinder(passed: Passed, log: Log, administrator: PathBuf, pods: usize) {
    if passed.status.is_some() {
        return;
    }
    let renewals = log.borrow().iter().filter(|passed| passed.is_answered("PUT", "lcl-operator")).count();
    if passed.is("PUT", "lcl-operator") && renewals == 2 {
        let patch = json!({ "metadata": { "annotations": { "example.com/looked-at": "yes" } } });
        let leases = Api::<Lease>::namespaced(connect(&administrator).await.expect("a client"), SYSTEM);
        leases.patch("lcl-operator", &PatchParams::default(), &Patch::Merge(patch)).await.expect("a patch");
    }
    if passed.is("POST", "events") {
        let are_there = |log: &Vec<Passed>| log.iter().filter(|passed| passed.is_answered("POST", "pods")).count() >= pods;
        // The test is over when the sender is gone.
        let _ = log.subscribe().wait_for(are_there).await;
    }
}

#[test]
fn neither_work_nor_events_nor_a_conflict_cost_a_leader_its_lease_and_another_holder_does() -> Result<()> {
    // Two requests a second: creating the pods takes longer than a lease lasts.
    const WORKERS: usize = 40;
    const LIMITS: [&str; 2] = ["--kube-api-qps=2", "--kube-api-burst=2"];
    let installed = install()?;
    let administrator = installed.cluster.ready().kubeconfig.clone();
    let hook = move |passed, log| hinder(passed, log, administrator.clone(), WORKERS + 2);
    let proxy = Proxy::start(&installed.kubeconfig_of("lcl-operator")?, hook)?;
    let operator = installed.start_operator_with(&proxy.kubeconfig, &[&ELECT[..], &LIMITS].concat())?;
    wait_until_ready(&operator)?;
    let before = lease(&installed, SYSTEM, "lcl-operator")?;
    installed.apply(&job("slow", &format!("spec.workers = {{'replicas': {WORKERS}}}; spec.optimization.globalBatchSize = 64")))?;
    wait_for_pods(&installed, "slow", WORKERS + 1)?;
    // What was lost is told before it is replaced, and the replacement does not wait for that.
    installed.kubectl(&["delete", "pod", "slow-w-1", "--force", "--grace-period=0"])?;
    wait_for("a replacement", || {
        ensure!(proxy.count("POST", "pods") == WORKERS + 2, "not yet");
        Ok(())
    })?;
    wait_for("an Event", || {
        ensure!(!installed.event_reasons("slow")?.is_empty(), "none");
        Ok(())
    })?;
    let renewals: Vec<_> =
        proxy.log.borrow().iter().filter(|passed| passed.is_answered("PUT", "lcl-operator")).map(|passed| passed.status).collect();
    let conflict = renewals.iter().position(|status| *status == Some(409)).context("no renewal met a conflict")?;
    assert!(renewals[conflict + 1..].contains(&Some(200)), "it was not renewed again: {renewals:?}");
    let after = lease(&installed, SYSTEM, "lcl-operator")?;
    for field in ["holderIdentity", "acquireTime", "leaseTransitions"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    ensure!(operator.metric(LEADS)? > 0.0, "it leads no longer");

    let taken = json!({ "spec": { "holderIdentity": "another" } }).to_string();
    installed.kubectl(&["patch", "lease", "lcl-operator", "--namespace", SYSTEM, "--type=merge", "-p", &taken])?;
    let complaint = operator.wait_for_failure()?;
    assert_eq!(complaint, "leads no longer: another holds the lease lcl-system/lcl-operator now");
    Ok(())
}

#[test]
fn operators_whose_namespaces_overlap_never_act_on_the_same_job() -> Result<()> {
    let installed = install()?;
    for team in ["team-a", "team-b", "team-c"] {
        installed.kubectl(&["create", "namespace", team])?;
    }
    let chart = super::project().join("charts/lcl-operator").display().to_string();
    let release = |name: &str, namespaces: &str| {
        let set = format!("watchNamespaces={{{namespaces}}}");
        installed.helm(&["install", name, &chart, "--namespace", SYSTEM, "--set", &set])
    };
    // Three releases of one namespace, each with the rights that its chart gives it; the order of namespaces is of no account.
    release("pair", "team-b,team-a")?;
    release("other", "team-b,team-c")?;
    let start = |account: &str, flag: &str| -> Result<Operator> {
        let secret = format!("--ca-secret={account}-ca");
        let operator = installed.start_operator_with(&installed.kubeconfig_of(account)?, &[&ELECT[..], &[flag, &secret]].concat())?;
        wait_until_ready(&operator)?;
        Ok(operator)
    };
    let pair = start("pair-lcl-operator", "--watch-namespaces=team-a,team-b")?;
    let other = start("other-lcl-operator", "--watch-namespaces=team-c,team-b")?;
    let all = start("lcl-operator", "--watch-namespaces=")?;
    for namespace in ["team-a", "team-b", "team-c", "default"] {
        let mut job = job("shared", "");
        job["metadata"]["namespace"] = json!(namespace);
        installed.apply(&job)?;
    }
    let pods = |namespace: &str| -> Result<Vec<Value>> {
        let path = objects("pods?labelSelector=lcl.dev/job-name=shared").replace("/default/", &format!("/{namespace}/"));
        Ok(installed.look(&path)?["items"].as_array().cloned().unwrap_or_default())
    };
    let wait_for_both = |namespace: &str| {
        wait_for(&format!("pods in {namespace}"), || {
            let pods = pods(namespace)?;
            ensure!(pods.len() == 2, "{} pods", pods.len());
            Ok(uids(&pods))
        })
    };
    let runs = |namespace: &str| lease(&installed, namespace, "lcl-operator-jobs").map(|lease| lease["holderIdentity"].clone());
    // printf team-a,team-b | sha256sum; the same of team-b,team-c.
    let (of_pair, of_other) = ("lcl-system/lcl-operator-183efbe2b2", "lcl-system/lcl-operator-5d4b6b4caa");
    for (namespace, holder) in [("team-a", of_pair), ("team-b", of_pair), ("team-c", of_other), ("default", "lcl-system/lcl-operator")] {
        wait_for_both(namespace)?;
        assert_eq!(runs(namespace)?, holder, "{namespace}");
    }
    // Each of those that leave jobs alone has seen them.
    let left_alone = "another operator runs the jobs of this namespace";
    wait_for_message(&other, left_alone, "team-b")?;
    for namespace in ["team-a", "team-b", "team-c"] {
        wait_for_message(&all, left_alone, namespace)?;
    }
    let namespaces_of = |account: &str| -> Result<BTreeSet<String>> {
        let writes = installed.writes_of(account)?;
        let namespaces = writes.iter().map(|entry| entry["objectRef"]["namespace"].as_str().unwrap_or_default().to_owned());
        // In its own it has made what certificates come from.
        Ok(namespaces.filter(|namespace| namespace != SYSTEM).collect())
    };
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(namespaces_of("pair-lcl-operator")?, set(&["team-a", "team-b"]));
    assert_eq!(namespaces_of("other-lcl-operator")?, set(&["team-c"]));
    assert_eq!(namespaces_of("lcl-operator")?, set(&["default"]));

    // Who gives up, or is gone until the lease has run out, is followed by the other. Here an administrator takes the lease from it.
    pair.kill()?;
    installed.kubectl(&["delete", "lease", "lcl-operator-jobs", "--namespace", "team-b"])?;
    wait_for("another to run team-b", || {
        let holder = runs("team-b")?;
        ensure!(holder == of_other || holder == "lcl-system/lcl-operator", "{holder}");
        Ok(())
    })?;
    let before = wait_for_both("team-b")?;
    installed.kubectl(&["delete", "pod", "shared-w-0", "--namespace", "team-b", "--force", "--grace-period=0"])?;
    wait_for("a replacement", || {
        ensure!(wait_for_both("team-b")? != before, "the same pods");
        Ok(())
    })?;
    assert_eq!(namespaces_of("pair-lcl-operator")?, set(&["team-a", "team-b"]));
    let both: Vec<_> = namespaces_of("other-lcl-operator")?.intersection(&namespaces_of("lcl-operator")?).cloned().collect();
    assert_eq!(both, [""; 0], "two wrote in one namespace");
    other.terminate()?;
    all.terminate()
}
