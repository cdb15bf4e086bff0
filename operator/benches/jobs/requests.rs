//! What is asked of the API server meanwhile, and by whom: from its audit log, which has all requests of the operator and the writes of all
//! others, and from its own counters.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
};

use anyhow::{Context, Result};
use kube::Client;
use serde_json::Value;

use super::support::{Installed, SYSTEM};

/// Accounts of Kubernetes' own controllers.
const CONTROLLERS: &str = "system:serviceaccount:kube-system:";
/// Shares of a request for each job below this are leases, resyncs and the like, which are the same however many jobs there are.
const RARE: f64 = 0.1;

/// The state of the counters at one moment.
pub(super) struct Snapshot {
    log: PathBuf,
    /// How far the log has come.
    length: u64,
    /// Events that watches were sent, by kind.
    events: BTreeMap<String, f64>,
}

impl Snapshot {
    pub(super) async fn take(client: &Client, installed: &Installed) -> Result<Self> {
        let log = installed.cluster.ready().folder.join("audit.log");
        let length = log.metadata()?.len();
        let text = client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?;
        let mut events = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_watch_events_total{")) {
            let (labels, value) = line.rsplit_once("} ").context("a counter without a value")?;
            let of = |name: &str| labels.split("\",").find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")).map(str::to_owned);
            let kind = of("resource").or_else(|| of("kind")).unwrap_or_default().trim_matches('"').to_owned();
            *events.entry(kind).or_insert(0.0) += value.parse::<f64>()?;
        }
        Ok(Self { log, length, events })
    }
}

/// What was asked between two moments.
#[derive(Default)]
pub(super) struct Requests {
    /// Who, verb, resource: how often.
    asked: BTreeMap<(String, String, String), u32>,
    events: BTreeMap<String, f64>,
}

impl Requests {
    pub(super) fn between(before: &Snapshot, after: &Snapshot) -> Result<Self> {
        let mut file = File::open(&before.log)?;
        file.seek(SeekFrom::Start(before.length))?;
        let mut text = String::new();
        file.take(after.length - before.length).read_to_string(&mut text)?;
        let mut asked = BTreeMap::new();
        // The first and the last line may be cut.
        for entry in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let object = &entry["objectRef"];
            let resource = match object["subresource"].as_str() {
                Some(subresource) => format!("{}/{subresource}", part(&object["resource"])),
                None => part(&object["resource"]),
            };
            *asked.entry((who(&part(&entry["user"]["username"])), part(&entry["verb"]), resource)).or_insert(0) += 1;
        }
        let grown = |(kind, count): (&String, &f64)| (kind.clone(), count - before.events.get(kind).unwrap_or(&0.0));
        Ok(Self { asked, events: after.events.iter().map(grown).collect() })
    }

    /// For each job, as Markdown.
    pub(super) fn report(&self, jobs: u32) {
        println!("\nRequests for each job until all pods were there and {:?} beyond.\n", super::SETTLING);
        println!("| by | verb | resource | of a job |");
        println!("|---|---|---|---|");
        for ((who, verb, resource), count) in &self.asked {
            let each = f64::from(*count) / f64::from(jobs);
            if each >= RARE {
                println!("| {who} | {verb} | {resource} | {each:.1} |");
            }
        }
        let events: Vec<String> = self
            .events
            .iter()
            .map(|(kind, count)| (kind, count / f64::from(jobs)))
            .filter(|(_, each)| *each >= RARE)
            .map(|(kind, each)| format!("{kind} {each:.1}"))
            .collect();
        println!("\nEvents of watches that all watchers together were sent for each job: {}.", events.join(", "));
    }
}

fn who(user: &str) -> String {
    if user.starts_with(&format!("system:serviceaccount:{SYSTEM}:")) {
        return "operator".to_owned();
    }
    let name = user.strip_prefix(CONTROLLERS).or_else(|| user.strip_prefix("system:")).unwrap_or(user);
    if name == "admin" { "bench".to_owned() } else { name.to_owned() }
}
