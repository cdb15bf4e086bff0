//! Clusters come up, run side by side, and leave nothing behind, however they end.

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lcl_cluster::{Cluster, ClusterOptions, why_no_nodes};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lcl-cluster");

fn start(nodes: u8) -> Result<Cluster> {
    let images = if nodes > 0 { vec![pause_image()?] } else { Vec::new() };
    Ok(Cluster::start(Path::new(PROGRAM), &ClusterOptions { nodes, images, ipv6: false })?)
}

/// `make test` and `make cluster` put it there.
fn pause_image() -> Result<PathBuf> {
    let target = Path::new(PROGRAM).ancestors().nth(2).context("the target folder")?;
    let path = target.join("test-images/pause.tar");
    ensure!(path.is_file(), "{} is missing: `images/test/images.sh pause` makes it", path.display());
    Ok(path)
}

/// Whether nodes can run here; in CI they have to.
fn has_nodes() -> Result<bool> {
    let Some(why) = why_no_nodes() else { return Ok(true) };
    ensure!(env::var_os("CI").is_none(), "this machine cannot run nodes, which CI has to: {why}");
    // Past libtest, which keeps what is printed to itself when a test passes.
    let _ = writeln!(io::stderr(), "skipped: {why}");
    Ok(false)
}

fn is_running(process: u32) -> bool {
    // Whoever adopts it may not have collected it yet.
    fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

fn ensure_nothing_is_left(ready: &lcl_cluster::Ready) -> Result<()> {
    for (name, process) in &ready.processes {
        ensure!(!is_running(*process), "{name} still runs");
    }
    ensure!(!ready.folder.exists(), "{} is still there", ready.folder.display());
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure!(!mounts.contains(&ready.folder.display().to_string()), "something is still mounted: {mounts}");
    Ok(())
}

#[test]
fn two_control_planes_run_side_by_side_and_know_nothing_of_each_other() -> Result<()> {
    let (one, other) = (start(0)?, start(0)?);
    one.kubectl(&["create", "namespace", "only-here"])?;
    assert!(one.kubectl(&["get", "namespace", "only-here"]).is_ok());
    assert!(other.kubectl(&["get", "namespace", "only-here"]).is_err());
    let ready = one.ready().clone();
    ensure!(one.end(), "the first ended with an error");
    ensure_nothing_is_left(&ready)?;
    other.kubectl(&["get", "namespaces"]).context("the second after the first has ended")?;
    Ok(())
}

#[test]
fn rights_are_checked() -> Result<()> {
    let cluster = start(0)?;
    cluster.kubectl(&["create", "serviceaccount", "nobody"])?;
    let refused = cluster.kubectl(&["get", "pods", "--as", "system:serviceaccount:default:nobody"]).expect_err("it has no rights");
    assert!(format!("{refused}").contains("forbidden"), "{refused}");
    Ok(())
}

#[test]
fn three_nodes_run_pods_and_leave_nothing_behind() -> Result<()> {
    if !has_nodes()? {
        return Ok(());
    }
    let cluster = start(3)?;
    run_pods(&cluster, 6)?;
    let nodes = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
    for name in &cluster.ready().nodes {
        assert!(nodes.contains(name.as_str()), "no pod on {name}: {nodes}");
    }
    let ready = cluster.ready().clone();
    ensure!(cluster.end(), "it ended with an error");
    ensure_nothing_is_left(&ready)
}

#[test]
fn what_a_killed_run_left_is_swept() -> Result<()> {
    if !has_nodes()? {
        return Ok(());
    }
    let cluster = start(1)?;
    run_pods(&cluster, 2)?;
    let ready = cluster.ready().clone();
    let process = i32::try_from(cluster.process()).ok().and_then(Pid::from_raw).context("its process")?;
    kill_process(process, Signal::KILL)?;
    ensure!(!cluster.end(), "it was killed");
    ensure!(ready.folder.exists(), "nothing was left, so this test shows nothing");
    let swept = Command::new(PROGRAM).arg("sweep").status()?;
    ensure!(swept.success(), "the sweep found something that resisted");
    ensure_nothing_is_left(&ready)
}

/// Whatever becomes of the test, its cluster goes.
struct Taken<'a>(&'a Path);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // It may be down already, which is no error.
        let _ = Command::new(PROGRAM).args(["down", "--state"]).arg(self.0).output();
    }
}

/// As `make cluster` and `make cluster-down` do, with the line that is printed used by a shell.
#[test]
fn a_cluster_started_in_the_background_is_used_by_the_line_it_prints_and_taken_down_whole() -> Result<()> {
    let nodes = if has_nodes()? { "1" } else { "0" };
    let folder = tempfile::tempdir()?;
    let _taken = Taken(folder.path());
    let run = |arguments: &[&str]| -> Result<(bool, String)> {
        let output = Command::new(PROGRAM).args(arguments).arg("--state").arg(folder.path()).output()?;
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        Ok((output.status.success(), text))
    };
    let mut up = vec!["up", "--nodes", nodes];
    let image = if nodes == "1" { Some(pause_image()?.display().to_string()) } else { None };
    up.extend(image.iter().flat_map(|image| ["--image", image.as_str()]));
    let (is_up, printed) = run(&up)?;
    ensure!(is_up, "{printed}");
    let (is_second_up, refused) = run(&up)?;
    ensure!(!is_second_up && refused.contains("runs already"), "{refused}");
    let line = printed.lines().find(|line| line.trim_start().starts_with("export KUBECONFIG=")).context("no line to use it by")?;
    let used = Command::new("bash").args(["-c", &format!("{line}; kubectl get nodes --output name")]).output()?;
    let found = String::from_utf8(used.stdout)?;
    ensure!(used.status.success() && found.lines().count() == nodes.parse::<usize>()?, "{found}{}", String::from_utf8_lossy(&used.stderr));

    let state: serde_json::Value = serde_json::from_slice(&fs::read(folder.path().join("state.json"))?)?;
    let ready: lcl_cluster::Ready = serde_json::from_value(state["ready"].clone())?;
    let (is_down, said) = run(&["down"])?;
    ensure!(is_down && said.contains("is left"), "{said}");
    ensure_nothing_is_left(&ready)?;
    let (is_down, said) = run(&["down"])?;
    ensure!(is_down && said.contains("no cluster runs"), "{said}");
    Ok(())
}

fn run_pods(cluster: &Cluster, count: u32) -> Result<()> {
    let deployment = serde_json::json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "pause"},
        "spec": {
            "replicas": count,
            "selector": {"matchLabels": {"app": "pause"}},
            "template": {
                "metadata": {"labels": {"app": "pause"}},
                "spec": {"containers": [{"name": "pause", "image": "lcl.dev/pause:test", "imagePullPolicy": "Never"}]},
            },
        },
    });
    let file = cluster.ready().folder.join("pause.json");
    fs::write(&file, deployment.to_string())?;
    cluster.kubectl(&["apply", "-f", &file.display().to_string()])?;
    cluster.kubectl(&["rollout", "status", "deployment/pause", "--timeout=120s"])?;
    Ok(())
}
