//! Many pods at once, at the settings of the chart.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    lab::Lab,
    phases::Phase,
    support::{SYSTEM, get, tell, wait_for},
};

const JOBS: u32 = 10;
const WORKERS: u32 = 64;
/// Of the lease (decision 29), in seconds: a leader that has not renewed it for so long leads no longer.
const RENEW_DEADLINE: f64 = 10.0;
const ELECT: [&str; 2] = ["--leader-elect", "--pod-namespace=lcl-system"];

fn lease(lab: &Lab) -> Result<Value> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/lcl-operator");
    Ok(lab.installed.look(&path)?["spec"].take())
}

/// When the API server had carried out each renewal of the leader's lease.
fn renewals(lab: &Lab) -> Result<Vec<Timestamp>> {
    let text = fs::read_to_string(lab.installed.cluster.ready().folder.join("audit.log"))?;
    // The last line may be half written.
    let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_renewal = |entry: &Value| {
        let object = &entry["objectRef"];
        let is_lease = object["resource"] == "leases" && object["name"] == "lcl-operator" && object["namespace"] == SYSTEM;
        is_lease && entry["responseStatus"]["code"] == 200
    };
    entries.filter(is_renewal).map(|entry| Ok(entry["stageTimestamp"].as_str().context("no time")?.parse()?)).collect()
}

#[test]
#[ignore = "a minute or two: `make faults` runs it"]
fn a_leader_keeps_its_lease_while_it_creates_ten_jobs_of_64_workers() -> Result<()> {
    let lab = Lab::start()?;
    let leader = lab.installed.start_operator(&ELECT)?;
    wait_for("a leader", || get(&leader.health, "/readyz"))?;
    let before = lease(&lab)?;
    let standby = lab.installed.start_operator(&ELECT)?;
    let places: Vec<_> = (0..JOBS).map(|number| lab.place(&format!("crowd-{number}"))).collect::<Result<_>>()?;
    for place in &places {
        Phase::Creation.begin(place, WORKERS)?;
    }
    for place in &places {
        let expected = Phase::Creation.expected(WORKERS, &BTreeMap::new());
        expected.wait_for_rest(place, || false)?;
        expected.check_end(place)?;
    }
    let after = lease(&lab)?;
    for field in ["holderIdentity", "acquireTime", "leaseTransitions"] {
        ensure!(after[field] == before[field], "{field}: {before} and then {after}");
    }
    let renewals = renewals(&lab)?;
    let gaps = renewals.windows(2).filter_map(|pair| Some(pair[1].duration_since(*pair.first()?).as_secs_f64()));
    let longest = gaps.fold(0.0_f64, f64::max);
    tell(&format!("{} renewals, the longest time between two {longest:.1} s", renewals.len()));
    ensure!(renewals.len() > 2 && longest < RENEW_DEADLINE, "{longest} s between two renewals");
    ensure!(standby.metric("leader_election_master_status{name=\"lcl-operator\"}")? < 1.0, "two lead");
    standby.terminate()?;
    leader.terminate()
}
