//! Runs clusters for tests and for trying things out. See `lcl-cluster --help`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use lcl_cluster::{Ready, RunOptions, Slot, run, sweep_dead};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    runtime,
    signal::unix::{SignalKind, signal},
};

/// Taking down three nodes takes about six seconds.
const DOWN_TIMEOUT: Duration = Duration::from_mins(2);

/// A real Kubernetes on this machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run a cluster until a signal comes; says in one line of JSON when it is ready
    Run(RunArgs),
    /// Start a cluster in the background
    Up(UpArgs),
    /// Take the cluster of `up` down and check that nothing of it is left
    Down(StateArgs),
    /// Take away what killed runs left
    Sweep,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// End when standard input does: with the process that started this one
    #[arg(long)]
    ends_with_stdin: bool,
}

#[derive(Debug, Args)]
struct ClusterArgs {
    /// Nodes; 0 for a control plane alone
    #[arg(long, default_value_t = 0)]
    nodes: u8,
    /// An archive of images for every node; may be repeated
    #[arg(long = "image", value_name = "FILE.tar")]
    images: Vec<PathBuf>,
    /// All addresses are IPv6; without nodes alone
    #[arg(long)]
    ipv6: bool,
}

impl ClusterArgs {
    fn options(&self) -> RunOptions {
        RunOptions { nodes: self.nodes, images: self.images.clone(), ipv6: self.ipv6 }
    }
}

#[derive(Debug, Args)]
struct UpArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Args)]
struct StateArgs {
    /// Where is written down what runs
    #[arg(long, value_name = "DIR", default_value = ".cluster")]
    state: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    process: i32,
    ready: Ready,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Subcommands::Run(arguments) => run_here(&arguments),
        Subcommands::Up(arguments) => up(&arguments),
        Subcommands::Down(arguments) => down(&arguments.state),
        Subcommands::Sweep => sweep_all(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_here(arguments: &RunArgs) -> Result<()> {
    let mut failure = None;
    run(&arguments.cluster.options(), |ready| failure = serve(ready, arguments.ends_with_stdin).err())?;
    failure.map_or(Ok(()), Err)
}

fn serve(ready: &Ready, ends_with_stdin: bool) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut output = std::io::stdout();
        writeln!(output, "{}", serde_json::to_string(ready)?)?;
        output.flush()?;
        let stdin = async {
            if ends_with_stdin {
                let mut rest = Vec::new();
                // An error there is an end too.
                let _ = tokio::io::stdin().read_to_end(&mut rest).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stdin => {}
        }
        anyhow::Ok(())
    })?;
    // A read of standard input cannot be called off.
    runtime.shutdown_background();
    Ok(())
}

fn up(arguments: &UpArgs) -> Result<()> {
    let file = state_file(&arguments.state.state);
    if let Some(state) = read_state(&file)? {
        ensure!(!is_alive(state.process), "a cluster runs already (process {}): take it down first", state.process);
    }
    fs::create_dir_all(&arguments.state.state)?;
    let log = arguments.state.state.join("cluster.log");
    let errors = fs::File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").arg("--nodes").arg(arguments.cluster.nodes.to_string());
    for image in &arguments.cluster.images {
        command.arg("--image").arg(fs::canonicalize(image).with_context(|| format!("the image {}", image.display()))?);
    }
    if arguments.cluster.ipv6 {
        command.arg("--ipv6");
    }
    // Out of this terminal's reach: `down` ends it.
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).process_group(0).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
    if line.is_empty() {
        child.wait()?;
        bail!("the cluster did not come up: {}", fs::read_to_string(&log).unwrap_or_default().trim());
    }
    let ready: Ready = serde_json::from_str(&line)?;
    println!(
        "{} nodes after {:.1} s. To use it:\n\n  export KUBECONFIG={} PATH={}:$PATH\n  kubectl get nodes",
        ready.nodes.len(),
        ready.started_in_milliseconds as f64 / 1000.0,
        ready.kubeconfig.display(),
        ready.kubectl.parent().unwrap_or(Path::new("")).display(),
    );
    let state = State { process: i32::try_from(child.id())?, ready };
    fs::write(&file, serde_json::to_vec_pretty(&state)?)?;
    Ok(())
}

fn down(folder: &Path) -> Result<()> {
    let file = state_file(folder);
    let Some(state) = read_state(&file)? else {
        sweep_all()?;
        println!("no cluster runs");
        return Ok(());
    };
    if let Some(pid) = Pid::from_raw(state.process).filter(|_| is_alive(state.process)) {
        kill_process(pid, Signal::TERM)?;
        let end = Instant::now() + DOWN_TIMEOUT;
        while is_alive(state.process) {
            ensure!(Instant::now() < end, "process {} has not ended within {DOWN_TIMEOUT:?}", state.process);
            thread::sleep(Duration::from_millis(50));
        }
    }
    // A run that was killed left its folder and more.
    sweep_all()?;
    if state.ready.folder.exists() {
        fs::remove_dir_all(&state.ready.folder)?;
    }
    for (name, process) in &state.ready.processes {
        ensure!(!is_alive(i32::try_from(*process)?), "{name} (process {process}) still runs");
    }
    fs::remove_file(&file)?;
    println!("the cluster is down: no process, mount, namespace, interface, control group or folder of it is left");
    Ok(())
}

fn sweep_all() -> Result<()> {
    Slot::take(sweep_dead)?;
    Ok(())
}

fn state_file(folder: &Path) -> PathBuf {
    folder.join("state.json")
}

fn read_state(file: &Path) -> Result<Option<State>> {
    match fs::read(file) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| format!("reading {}", file.display()))?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
    }
}

/// Whether there is a process of this number that has not ended.
fn is_alive(process: i32) -> bool {
    let has_ended = || {
        let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    };
    Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid).is_ok()) && !has_ended()
}
