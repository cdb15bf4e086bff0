//! A cluster all of whose addresses are IPv6.

use std::{env, net::TcpListener};

use anyhow::{Context, Result, ensure};
use lcl_cluster::ClusterOptions;
use serde_json::{Value, json};

use super::{
    coordinator::{Coordinator, certificates_of},
    job,
    member::{Member, Process},
    set_pod_status,
    support::{Installed, condition, get, objects, tell, wait_for},
    wait_for_pods,
};

const ADDRESS: &str = "::1";

fn environment(pod: &Value, name: &str) -> Result<String> {
    let variables = pod["spec"]["containers"][0]["env"].as_array().context("no environment")?;
    let variable = variables.iter().find(|variable| variable["name"] == name).with_context(|| format!("no {name}"))?;
    Ok(variable["value"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn in_a_cluster_of_ipv6_alone_a_job_gets_its_objects_and_its_coordinator_is_reached() -> Result<()> {
    if let Err(error) = TcpListener::bind((ADDRESS, 0)) {
        ensure!(env::var_os("CI").is_none(), "this machine has no IPv6, which CI has to have: {error}");
        tell(&format!("skipped: this machine has no IPv6: {error}"));
        return Ok(());
    }
    let installed = Installed::start(&ClusterOptions { ipv6: true, ..ClusterOptions::default() }, &[])?;
    let operator = installed.start_operator(&["--network-policies", "--health-addr=[::1]:0", "--metrics-addr=[::1]:0"])?;
    assert!(operator.health.starts_with("[::1]:") && get(&operator.health, "/healthz").is_ok(), "{}", operator.health);
    installed.apply(&job("six", "spec.workers = {'replicas': 1}"))?;
    let pods = wait_for_pods(&installed, "six", 2)?;
    let service = installed.look(&objects("services/six-coordinator"))?;
    let ip = service["spec"]["clusterIP"].as_str().context("no address")?;
    assert!(ip.contains(':') && service["spec"]["ipFamilies"] == json!(["IPv6"]), "{service}");
    assert_eq!(environment(&pods[1], "LCL_COORDINATOR")?, format!("[{ip}]:7433"));
    for name in ["six-coordinator", "six-workers"] {
        let policy = installed.get(&["networkpolicy", name])?;
        assert!(policy["spec"]["ingress"].as_array().is_some_and(|rules| !rules.is_empty()), "{policy}");
    }
    assert_eq!(environment(&pods[0], "LCL_LISTEN")?, "[::]:7433");
    assert_eq!(environment(&pods[0], "LCL_METRICS_LISTEN")?, "[::]:8080");
    let probe = &pods[0]["spec"]["containers"][0]["readinessProbe"]["httpGet"];
    assert!(probe["port"] == "metrics" && probe["host"].is_null(), "the node asks at the pod's own address: {probe}");

    // The program that runs in the pod, at the addresses that it is told there; but of those of this machine at one alone.
    let own = |variable: &str| environment(&pods[0], variable).map(|at| at.replace("[::]", &format!("[{ADDRESS}]")));
    let (listen, metrics) = (own("LCL_LISTEN")?, own("LCL_METRICS_LISTEN")?);
    let arguments = ["--epoch=1", "--min-members=1", "--desired-members=1", "--max-members=1", "--metrics-listen", &metrics];
    let _coordinator = Coordinator::start(&installed, "six", &listen, &arguments)?;
    get(&metrics, "/healthz")?;
    let certificates = certificates_of(&installed, "six")?;
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    set_pod_status(
        &installed,
        "six-coordinator",
        &json!({ "phase": "Running", "podIP": ADDRESS, "podIPs": [{ "ip": ADDRESS }], "conditions": ready }),
    )?;
    let _member = Member::attach(&listen, &certificates, Process { worker: "six-w-0", run: 1 })?;
    // The operator hears of it at the pod's address, by its own certificate.
    wait_for("the group that has begun", || {
        let status = installed.status("six")?;
        ensure!(status["group"]["epoch"] == 1 && status["group"]["number"].as_i64() > Some(0), "{status}");
        Ok(())
    })?;
    let status = installed.status("six")?;
    assert_ne!(condition(&status, "Running")["status"], "Unknown", "{status}");
    operator.terminate()
}
