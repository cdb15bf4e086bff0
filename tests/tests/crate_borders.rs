//! What holds for the sources as they are: which crate may know which (here), and which fields messages name (`field_names`).
//!
//! Which crate may know which. The table is the rule; `cargo metadata` is what is.
//!
//! Development and build dependencies do not count: they are in no program. What a pure crate must not know is looked for behind its
//! dependencies too.

#[path = "crate_borders/field_names.rs"]
mod field_names;

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use lcl_tests::workspace;
use serde_json::Value;

/// A crate of this workspace: which others it depends on, and what it must not know however far away.
struct Border {
    name: &'static str,
    knows: &'static [&'static str],
    never: &'static [&'static str],
}

const RUNTIMES: [&str; 5] = ["tokio", "async-std", "smol", "tonic", "hyper"];
const CLIENTS: [&str; 4] = ["kube-client", "kube-runtime", "object_store", "reqwest"];
const TORCH: [&str; 2] = ["tch", "torch-sys"];

/// For crates that decide and describe: no runtime, no client, no libtorch.
const NOT_PURE: &[&str] =
    &[RUNTIMES[0], RUNTIMES[1], RUNTIMES[2], RUNTIMES[3], RUNTIMES[4], CLIENTS[0], CLIENTS[1], CLIENTS[2], CLIENTS[3], TORCH[0], TORCH[1]];
const KUBERNETES: &[&str] = &["kube", "kube-core", "kube-client", "kube-runtime", "k8s-openapi"];
const NOT_IN_STORAGE: &[&str] = &[TORCH[0], TORCH[1], KUBERNETES[0], KUBERNETES[1], KUBERNETES[2], KUBERNETES[3], KUBERNETES[4]];
const NOT_IN_TORCH: &[&str] =
    &[RUNTIMES[0], CLIENTS[2], CLIENTS[3], KUBERNETES[0], KUBERNETES[1], KUBERNETES[2], KUBERNETES[3], KUBERNETES[4]];

const NOT_IN_WIRE: &[&str] =
    &[TORCH[0], TORCH[1], CLIENTS[2], CLIENTS[3], KUBERNETES[0], KUBERNETES[1], KUBERNETES[2], KUBERNETES[3], KUBERNETES[4]];

/// The operator asks a cluster, and knows of training only what the wire says.
const NOT_IN_OPERATOR: &[&str] = &[TORCH[0], TORCH[1], CLIENTS[2], CLIENTS[3]];

/// Every crate of the workspace. An edge that is not here is forbidden; one that is here and not in use is an error too.
const BORDERS: [Border; 18] = [
    Border { name: "lcl-crds", knows: &[], never: NOT_PURE },
    Border { name: "lcl-operator-core", knows: &["lcl-crds", "lcl-filter", "lcl-trainer-config"], never: NOT_PURE },
    Border { name: "lcl-operator", knows: &["lcl-crds", "lcl-operator-core", "lcl-proto", "lcl-security"], never: NOT_IN_OPERATOR },
    Border { name: "lcl", knows: &["lcl-crds", "lcl-operator-core", "lcl-trainer-config"], never: &TORCH },
    Border { name: "lcl-trainer-config", knows: &[], never: NOT_PURE },
    Border { name: "lcl-filter", knows: &[], never: NOT_PURE },
    Border { name: "lcl-proto", knows: &[], never: NOT_IN_WIRE },
    // Both ends of the wire: certificates and handshakes.
    Border { name: "lcl-security", knows: &[], never: NOT_IN_WIRE },
    Border { name: "lcl-protocol", knows: &[], never: NOT_PURE },
    Border { name: "lcl-coordinator", knows: &["lcl-proto", "lcl-protocol", "lcl-security", "lcl-trainer-config"], never: NOT_IN_WIRE },
    Border { name: "lcl-objects", knows: &[], never: NOT_IN_STORAGE },
    Border { name: "lcl-data", knows: &["lcl-filter", "lcl-objects", "lcl-trainer-config"], never: NOT_IN_STORAGE },
    Border { name: "lcl-checkpoint", knows: &["lcl-objects"], never: NOT_IN_STORAGE },
    Border { name: "lcl-torch", knows: &["lcl-trainer-config"], never: NOT_IN_TORCH },
    Border {
        name: "lcl-trainer",
        knows: &["lcl-checkpoint", "lcl-coordinator", "lcl-data", "lcl-protocol", "lcl-torch", "lcl-trainer-config"],
        never: KUBERNETES,
    },
    // Knows nothing of the project's own parts.
    Border { name: "lcl-cluster", knows: &[], never: &TORCH },
    // A test and nothing else: what it knows it knows for development.
    Border { name: "lcl-sim", knows: &[], never: &TORCH },
    Border { name: "lcl-tests", knows: &["lcl-data", "lcl-trainer-config"], never: &TORCH },
];

/// `lcl-trainer-config` is read by both sides and stays small: these alone.
const CONFIG_MAY_NAME: [&str; 2] = ["serde", "thiserror"];
/// The only crate that names libtorch.
const TORCH_CRATE: &str = "lcl-torch";

/// Normal dependencies between packages, by name.
#[derive(Clone, Debug, Default)]
struct Graph {
    members: BTreeSet<String>,
    edges: BTreeMap<String, BTreeSet<String>>,
    /// What is behind each crate of the table when it is built alone: `edges` holds what any crate asks of a package they share.
    behind: BTreeMap<String, BTreeSet<String>>,
    /// Edges that a test has added.
    added: BTreeSet<(String, String)>,
}

impl Graph {
    /// Read once: cargo is asked for each crate of the table.
    fn of_this_workspace() -> Result<Self> {
        static GRAPH: Mutex<Option<Graph>> = Mutex::new(None);
        let mut graph = GRAPH.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(graph) = graph.as_ref() {
            return Ok(graph.clone());
        }
        Ok(graph.insert(Self::read()?).clone())
    }

    fn read() -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            // For this machine's platform, since only its packages are there without a network.
            .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host()?])
            .current_dir(workspace())
            .output()
            .context("starting cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let mut graph = Self::parse(&serde_json::from_slice(&output.stdout)?)?;
        for Border { name, .. } in &BORDERS {
            graph.behind.insert((*name).to_owned(), packages_behind(name)?);
        }
        Ok(graph)
    }

    fn parse(metadata: &Value) -> Result<Self> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned).context("not a string");
        let mut names = BTreeMap::new();
        for package in list(&metadata["packages"]) {
            names.insert(text(&package["id"])?, text(&package["name"])?);
        }
        let name = |id: &Value| names.get(id.as_str().unwrap_or_default()).cloned().context("a package without a name");
        let mut graph = Self::default();
        for member in list(&metadata["workspace_members"]) {
            graph.members.insert(name(&member)?);
        }
        for node in list(&metadata["resolve"]["nodes"]) {
            let targets = graph.edges.entry(name(&node["id"])?).or_default();
            for dependency in list(&node["deps"]) {
                if list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"].is_null()) {
                    targets.insert(name(&dependency["pkg"])?);
                }
            }
        }
        Ok(graph)
    }

    fn add(&mut self, from: &str, to: &str) {
        self.added.insert((from.to_owned(), to.to_owned()));
        self.edges.entry(from.to_owned()).or_default().insert(to.to_owned());
    }

    fn direct(&self, package: &str) -> BTreeSet<&str> {
        self.edges.get(package).into_iter().flatten().map(String::as_str).collect()
    }

    /// How `package` comes to know `target`: the chain of names.
    fn path(&self, package: &str, target: &str) -> Option<Vec<String>> {
        let mut queue = vec![vec![package.to_owned()]];
        let mut seen = BTreeSet::new();
        while let Some(path) = queue.pop() {
            let last = path.last()?;
            for next in self.direct(last) {
                let is_added = self.added.contains(&(last.clone(), next.to_owned()));
                if !is_added && self.behind.get(package).is_some_and(|behind| !behind.contains(next)) {
                    continue;
                }
                let mut path = path.clone();
                path.push(next.to_owned());
                if next == target {
                    return Some(path);
                }
                if seen.insert(next.to_owned()) {
                    queue.push(path);
                }
            }
        }
        None
    }

    /// Every way in which the graph departs from the table.
    fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let listed: BTreeSet<&str> = BORDERS.iter().map(|border| border.name).collect();
        for member in &self.members {
            if !listed.contains(member.as_str()) {
                found.push(format!("{member} is not in the table of tests/tests/crate_borders.rs"));
            }
        }
        for Border { name, knows, never } in &BORDERS {
            if !self.members.contains(*name) {
                found.push(format!("{name} is in the table, but no crate of the workspace"));
                continue;
            }
            let own: BTreeSet<&str> = self.direct(name).into_iter().filter(|other| self.members.contains(*other)).collect();
            let allowed: BTreeSet<&str> = knows.iter().copied().collect();
            found.extend(own.difference(&allowed).map(|other| format!("{name} must not depend on {other}")));
            found.extend(allowed.difference(&own).map(|other| format!("the table allows {name} → {other}, which is not in use")));
            found.extend(
                never
                    .iter()
                    .filter_map(|other| self.path(name, other).map(|path| format!("{name} must not know {other}: {}", path.join(" → ")))),
            );
            if *name != TORCH_CRATE {
                let named = self.direct(name).into_iter().filter(|other| TORCH.contains(other));
                found.extend(named.map(|other| format!("{name} must not name {other}: {TORCH_CRATE} alone does")));
            }
        }
        let config = self.direct("lcl-trainer-config").into_iter().filter(|other| !CONFIG_MAY_NAME.contains(other));
        found.extend(config.map(|other| format!("lcl-trainer-config must not depend on {other}")));
        found
    }
}

/// Names of all packages in the program of one crate, with the features that it asks for and no other crate's.
fn packages_behind(name: &str) -> Result<BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--package", name, "--edges", "normal", "--prefix", "none", "--format", "{p}", "--locked", "--offline"])
        .current_dir(workspace())
        .output()
        .context("starting cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// The platform's name, as `rustc` gives it.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("starting rustc")?;
    let text = String::from_utf8(output.stdout)?;
    text.lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)).context("rustc names no host")
}

#[test]
fn every_crate_knows_exactly_what_the_table_allows() -> Result<()> {
    let violations = Graph::of_this_workspace()?.violations();
    ensure!(violations.is_empty(), "{}", violations.join("\n"));
    Ok(())
}

#[test]
fn a_forbidden_edge_and_a_stale_one_and_a_distant_one_are_found() -> Result<()> {
    let check = |change: fn(&mut Graph), expected: &str| -> Result<()> {
        let mut graph = Graph::of_this_workspace()?;
        change(&mut graph);
        let violations = graph.violations();
        ensure!(violations.iter().any(|violation| violation == expected), "{expected:?} is not in {violations:?}");
        Ok(())
    };
    check(|graph| graph.add("lcl", "lcl-trainer"), "lcl must not depend on lcl-trainer")?;
    check(
        |graph| {
            graph.edges.entry("lcl-data".to_owned()).or_default().remove("lcl-trainer-config");
        },
        "the table allows lcl-data → lcl-trainer-config, which is not in use",
    )?;
    check(|graph| graph.add("thiserror", "tokio"), "lcl-trainer-config must not know tokio: lcl-trainer-config → thiserror → tokio")?;
    check(|graph| graph.add("lcl-trainer", "tch"), "lcl-trainer must not name tch: lcl-torch alone does")?;
    check(
        |graph| {
            graph.members.insert("lcl-new".to_owned());
        },
        "lcl-new is not in the table of tests/tests/crate_borders.rs",
    )
}

#[test]
fn development_dependencies_do_not_count_and_normal_ones_do() -> Result<()> {
    let kind = |kind: Value| serde_json::json!([{ "kind": kind, "target": null }]);
    let graph = Graph::parse(&serde_json::json!({
        "packages": [{ "id": "1", "name": "a" }, { "id": "2", "name": "b" }, { "id": "3", "name": "c" }],
        "workspace_members": ["1"],
        "resolve": { "nodes": [
            { "id": "1", "deps": [
                { "pkg": "2", "dep_kinds": kind(Value::Null) },
                { "pkg": "3", "dep_kinds": kind("dev".into()) },
            ] },
        ] },
    }))?;
    ensure!(graph.direct("a") == BTreeSet::from(["b"]), "{graph:?}");
    Ok(())
}
