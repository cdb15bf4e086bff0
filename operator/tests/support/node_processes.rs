//! The processes of a pod, as the machine that plays all nodes sees them.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

/// A process, told from a later one of the same number by when it began.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    number: u32,
    /// In clock ticks since the machine's start.
    begun: u64,
}

/// The processes of the pod with this UID: their numbers and folders. The kubelet names a pod's control group after the UID.
fn processes_of(pod_uid: &str) -> Result<Vec<(u32, PathBuf)>> {
    let names = [pod_uid.to_owned(), pod_uid.replace('-', "_")];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let Some(number) = folder.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
        // Gone by now: it is none that stays.
        let groups = fs::read_to_string(folder.join("cgroup")).unwrap_or_default();
        if names.iter().any(|name| groups.contains(name)) {
            found.push((number, folder));
        }
    }
    Ok(found)
}

/// The most memory that any process of the pod had resident, in bytes.
pub(crate) fn peak_memory_of(pod_uid: &str) -> Result<u64> {
    let peak = |folder: &PathBuf| -> Option<u64> {
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
        Some(kibibytes? * 1024)
    };
    processes_of(pod_uid)?.iter().filter_map(|(_, folder)| peak(folder)).max().with_context(|| format!("no process in pod {pod_uid}"))
}

/// The training processes of the pod with this UID.
pub(crate) fn members_of(pod_uid: &str) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for (number, folder) in processes_of(pod_uid)? {
        let read = |name| fs::read(folder.join(name)).unwrap_or_default();
        let words = read("cmdline");
        if !words.split(|byte| *byte == 0).any(|word| word == b"member") {
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
