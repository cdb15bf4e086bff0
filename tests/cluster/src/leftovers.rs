//! What a cluster puts into the machine besides its folder, found by its slot's names and taken away again.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    command::{CommandError, system, wait_until},
    slot::Slot,
};

/// Killed processes are gone and their groups empty within this time.
const END_TIMEOUT: Duration = Duration::from_secs(20);

/// What bears a name of one slot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Containers' processes and what watches them.
    pub processes: Vec<u32>,
    /// Mount points, the innermost first.
    pub mounts: Vec<PathBuf>,
    /// Network namespaces.
    pub namespaces: Vec<String>,
    /// Network interfaces of the host.
    pub interfaces: Vec<String>,
    /// Control groups, the innermost first.
    pub control_groups: Vec<PathBuf>,
    /// Folders below /run and among the temporary ones.
    pub folders: Vec<PathBuf>,
}

impl Leftovers {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} processes, {} mounts, {} network namespaces, {} interfaces, {} control groups, {} folders",
            self.processes.len(),
            self.mounts.len(),
            self.namespaces.len(),
            self.interfaces.len(),
            self.control_groups.len(),
            self.folders.len()
        )
    }
}

/// Looks for what bears a name of `slot`.
pub(crate) fn find_leftovers(slot: &Slot) -> Leftovers {
    let prefix = slot.node_prefix();
    let control_groups = find_control_groups(&prefix);
    let mut processes: Vec<u32> = control_groups.iter().flat_map(|group| processes_in(group)).collect();
    processes.extend(processes_naming(&format!("/run/{prefix}")));
    processes.sort_unstable();
    processes.dedup();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut mounts: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        // A container's mounts lie below the node's folder in /run; what the kubelet mounts lies in the cluster's folder, whose name has
        // the slot's number too.
        .filter(|point| point.starts_with(&format!("/run/{prefix}")) || point.contains(&folder_mark(slot)))
        .map(PathBuf::from)
        .collect();
    mounts.sort_unstable_by(|a, b| b.cmp(a));
    let bridge = slot.bridge().0;
    Leftovers {
        processes,
        mounts,
        namespaces: names_in("/run/netns", |name| name.starts_with(&prefix)),
        interfaces: names_in("/sys/class/net", |name| name.starts_with(&prefix) || name == bridge),
        control_groups,
        folders: find_folders(slot),
    }
}

/// Takes away what [`find_leftovers`] finds and returns what resisted.
pub(crate) fn sweep(slot: &Slot) -> Result<Leftovers, CommandError> {
    let found = find_leftovers(slot);
    if found.is_empty() {
        return Ok(found);
    }
    // A container's watcher may start a last helper while it dies.
    wait_until(END_TIMEOUT, || {
        let processes = find_leftovers(slot).processes;
        for process in &processes {
            if let Some(pid) = i32::try_from(*process).ok().and_then(Pid::from_raw) {
                // It may have ended by now.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        processes.is_empty()
    });
    for mount in find_leftovers(slot).mounts {
        crate::command::output("umount", &[Path::new("--lazy"), &mount])?;
    }
    for group in find_leftovers(slot).control_groups {
        // The kernel empties a group a moment after its last process.
        wait_until(END_TIMEOUT, || fs::remove_dir(&group).is_ok() || !group.exists());
    }
    for namespace in &found.namespaces {
        system(&format!("ip netns delete {namespace}"))?;
    }
    // Cables end with their namespace, routes with the bridge.
    wait_until(END_TIMEOUT, || {
        for interface in find_leftovers(slot).interfaces {
            let _ = system(&format!("ip link delete {interface}"));
        }
        find_leftovers(slot).interfaces.is_empty()
    });
    for folder in find_leftovers(slot).folders {
        // What resists is reported below.
        let _ = fs::remove_dir_all(folder);
    }
    Ok(find_leftovers(slot))
}

/// Part of the name of a cluster's folder, by which its mounts are known.
pub(crate) fn folder_mark(slot: &Slot) -> String {
    format!("/lcl-cluster-{}.", slot.number())
}

/// Roots of the control groups' hierarchies: one in version 2, one for each controller in version 1.
pub(crate) fn control_group_hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    names_in(root, |name| name != "unified")
        .into_iter()
        .map(|name| root.join(name))
        // Two names of one hierarchy: one is a link.
        .filter(|path| path.symlink_metadata().is_ok_and(|data| data.is_dir()))
        .collect()
}

fn find_folders(slot: &Slot) -> Vec<PathBuf> {
    let (run, temporary) = (PathBuf::from("/run"), std::env::temp_dir());
    let (prefix, mark) = (slot.node_prefix(), folder_mark(slot));
    let mark = mark.trim_start_matches('/');
    let mut folders: Vec<PathBuf> = names_in(&run, |name| name.starts_with(&prefix)).into_iter().map(|name| run.join(name)).collect();
    folders.extend(names_in(&temporary, |name| name.starts_with(mark)).into_iter().map(|name| temporary.join(name)));
    folders
}

fn find_control_groups(prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // Containers' watchers may make groups in the hierarchy of version 2 that stands beside those of version 1.
    let beside = Path::new("/sys/fs/cgroup/unified").to_owned();
    for hierarchy in control_group_hierarchies().into_iter().chain([beside]) {
        for name in names_in(&hierarchy, |name| name.starts_with(prefix)) {
            collect_innermost_first(&hierarchy.join(name), &mut found);
        }
    }
    found
}

fn collect_innermost_first(group: &Path, found: &mut Vec<PathBuf>) {
    for name in names_in(group, |_| true) {
        let path = group.join(name);
        if path.is_dir() {
            collect_innermost_first(&path, found);
        }
    }
    found.push(group.to_owned());
}

fn processes_in(group: &Path) -> Vec<u32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// What watches containers, and what it calls: these outlive a containerd that was killed.
const WATCHERS: [&str; 4] = ["containerd-shim", "containerd", "runc", "kubelet"];

/// Watchers whose command line names a path that begins with `path`.
fn processes_naming(path: &str) -> Vec<u32> {
    let is_watcher_of_ours = |process: &str| {
        let line = fs::read(Path::new("/proc").join(process).join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let mut words = line.split('\0');
        let program = words.next().and_then(|program| program.rsplit('/').next()).unwrap_or_default();
        WATCHERS.iter().any(|watcher| program.starts_with(watcher)) && words.any(|word| word.contains(path))
    };
    names_in("/proc", |name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .iter()
        .filter(|process| is_watcher_of_ours(process))
        .filter_map(|process| process.parse().ok())
        .collect()
}

fn names_in(folder: impl AsRef<Path>, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| is_wanted(name)).collect();
    names.sort_unstable();
    names
}
