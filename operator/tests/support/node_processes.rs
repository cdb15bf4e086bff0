//! The processes of a pod, as the machine that plays all nodes sees them.

use std::fs;

use anyhow::{Context, Result};

/// A process, told from a later one of the same number by when it began.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    number: u32,
    /// In clock ticks since the machine's start.
    begun: u64,
}

/// The training processes of the pod with this UID. The kubelet names a pod's control group after the UID.
pub(crate) fn members_of(pod_uid: &str) -> Result<Vec<Process>> {
    let names = [pod_uid.to_owned(), pod_uid.replace('-', "_")];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Some(number) = folder.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // Gone by now: it is none that stays.
        let read = |name| fs::read(folder.join(name)).unwrap_or_default();
        let words = read("cmdline");
        let is_member = words.split(|byte| *byte == 0).any(|word| word == b"member");
        let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        if !is_member || !names.iter().any(|name| groups.contains(name)) {
            continue;
        }
        let status = String::from_utf8_lossy(&read("stat")).into_owned();
        // Fields are counted behind the name, which may hold anything; the start is the 22nd of all.
        let begun = status.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
        found.push(Process { number, begun: begun.context("no start time")? });
    }
    found.sort();
    Ok(found)
}
