//! A cluster from its start to its end.

use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    command::{CommandError, output, wait_until},
    control_plane::{ControlPlane, ControlPlaneError, Place},
    leftovers::{Leftovers, folder_mark, sweep},
    node::{Node, NodeError, make_bridge, why_no_nodes},
    programs::{Programs, ProgramsError},
    slot::{MAX_NODES, Slot, SlotError},
};

/// A node is Ready about eight seconds after its start on an idle machine.
const NODES_TIMEOUT: Duration = Duration::from_mins(5);

/// What is started.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Nodes; none for a control plane alone.
    pub nodes: u8,
    /// Archives of images that every node gets.
    pub images: Vec<PathBuf>,
    /// All addresses are IPv6; without nodes alone.
    pub ipv6: bool,
}

/// A cluster that can be used.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ready {
    /// For an administrator.
    pub kubeconfig: PathBuf,
    /// kubectl of the same release.
    pub kubectl: PathBuf,
    /// Certificates, logs and data; deleted at the end.
    pub folder: PathBuf,
    /// Names of its nodes.
    pub nodes: Vec<String>,
    /// Its processes, by name.
    pub processes: Vec<(String, u32)>,
    /// How long the start took.
    pub started_in_milliseconds: u64,
}

/// A cluster could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A program is missing.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// No place.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// Nodes cannot run here.
    #[error("no nodes on this machine: {why}")]
    NoNodes {
        /// Why.
        why: String,
    },
    /// Too many.
    #[error("{asked} nodes: at most {MAX_NODES} fit a cluster")]
    TooManyNodes {
        /// How many.
        asked: u8,
    },
    /// Nodes have no IPv6 addresses.
    #[error("nodes over IPv6 cannot be had: take none, or IPv4")]
    NoIpv6Nodes,
    /// The folder.
    #[error("making a folder in {}", folder.display())]
    Folder {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The control plane.
    #[error("the control plane")]
    ControlPlane(#[from] ControlPlaneError),
    /// A node.
    #[error("node {index}")]
    Node {
        /// Which.
        index: u8,
        /// Why.
        source: NodeError,
    },
    /// A program.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The nodes are not Ready.
    #[error("the nodes were not Ready within {NODES_TIMEOUT:?}: {state}")]
    NotReady {
        /// What the apiserver says of them.
        state: String,
    },
    /// Something resisted.
    #[error("left behind: {leftovers} ({leftovers:?})")]
    Left {
        /// What.
        leftovers: Box<Leftovers>,
    },
}

/// Starts a cluster, tells `use_it` when it is ready, and takes it down when that returns.
pub fn run(options: &RunOptions, use_it: impl FnOnce(&Ready)) -> Result<(), RunError> {
    if options.nodes > MAX_NODES {
        return Err(RunError::TooManyNodes { asked: options.nodes });
    }
    if options.ipv6 && options.nodes > 0 {
        return Err(RunError::NoIpv6Nodes);
    }
    if let Some(why) = (options.nodes > 0).then(why_no_nodes).flatten() {
        return Err(RunError::NoNodes { why });
    }
    let programs = Programs::find()?;
    let slot = Slot::take(sweep_dead)?;
    let base = std::env::temp_dir();
    let mark = folder_mark(&slot);
    let folder = tempfile::Builder::new()
        .prefix(mark.trim_start_matches('/'))
        .tempdir_in(&base)
        .map_err(|source| RunError::Folder { folder: base, source })?;
    let result = run_in(options, &programs, &slot, folder.path(), use_it);
    // With its mounts the folder goes too.
    sweep_dead(&slot)?;
    result
}

/// Sweeps a slot that nobody holds; an error when something resists.
pub fn sweep_dead(slot: &Slot) -> Result<(), RunError> {
    let leftovers = sweep(slot)?;
    if leftovers.is_empty() { Ok(()) } else { Err(RunError::Left { leftovers: Box::new(leftovers) }) }
}

fn run_in(options: &RunOptions, programs: &Programs, slot: &Slot, folder: &Path, use_it: impl FnOnce(&Ready)) -> Result<(), RunError> {
    let start = Instant::now();
    let has_nodes = options.nodes > 0;
    if has_nodes {
        make_bridge(slot)?;
    }
    let addresses = match (has_nodes, options.ipv6) {
        (true, _) => Place::of_nodes(slot),
        (false, true) => Place::ipv6(slot),
        (false, false) => Place::alone(slot),
    };
    let plane = ControlPlane::start(programs, &addresses, folder)?;
    let mut nodes = start_nodes(options, programs, slot, &plane)?;
    wait_for_nodes(programs, &plane, &mut nodes)?;
    for node in &mut nodes {
        node.start_proxy(programs)?;
    }
    let mut processes = plane.processes();
    processes.extend(nodes.iter().flat_map(Node::processes));
    let ready = Ready {
        kubeconfig: plane.kubeconfig(),
        kubectl: programs.kubectl(),
        folder: folder.to_owned(),
        nodes: nodes.iter().map(|node| node.name().to_owned()).collect(),
        processes,
        started_in_milliseconds: start.elapsed().as_millis() as u64,
    };
    use_it(&ready);
    drop(nodes);
    drop(plane);
    Ok(())
}

/// A part dies with the thread that started it, so that is this one for all of them.
fn start_nodes(options: &RunOptions, programs: &Programs, slot: &Slot, plane: &ControlPlane) -> Result<Vec<Node>, RunError> {
    (1..=options.nodes)
        .map(|index| Node::start(programs, slot, plane, index, &options.images).map_err(|source| RunError::Node { index, source }))
        .collect()
}

fn wait_for_nodes(programs: &Programs, plane: &ControlPlane, nodes: &mut [Node]) -> Result<(), RunError> {
    let kubeconfig = plane.kubeconfig().display().to_string();
    let wanted = nodes.len();
    let mut state = String::new();
    let mut ended = None;
    let is_ready = wait_until(NODES_TIMEOUT, || {
        if wanted == 0 {
            return true;
        }
        ended = nodes.iter_mut().find_map(|node| node.check().err());
        let path = r#"jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}"#;
        state = output(programs.kubectl(), &["--kubeconfig", &kubeconfig, "get", "nodes", "-o", path]).unwrap_or_default();
        let is_done = ended.is_some() || state.lines().filter(|line| line.ends_with("=True")).count() == wanted;
        if !is_done {
            // Each look starts a process; the nodes need the processors more.
            thread::sleep(Duration::from_millis(200));
        }
        is_done
    });
    match ended {
        Some(error) => Err(error.into()),
        None if is_ready => Ok(()),
        None => Err(RunError::NotReady { state }),
    }
}
