//! The coordinator as a program.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
};

use lcl_trainer_config::ExitCode;
use rustix::process::{Pid, Signal, kill_process};

fn coordinator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcl-coordinator"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).env_remove("RUST_LOG");
    command
}

#[test]
fn it_does_not_serve_without_protection_unless_that_is_said() {
    let output = coordinator().args(["--desired-members", "2", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(ExitCode::Permanent.code().into()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--tls-ca, or --insecure"), "{output:?}");
    let half = ["--desired-members", "2", "--listen", "127.0.0.1:0", "--tls-certificate", "a.crt", "--tls-key", "a.key"];
    let output = coordinator().args(half).output().unwrap();
    assert_eq!(output.status.code(), Some(ExitCode::Permanent.code().into()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--tls-ca is missing"), "{output:?}");
    let output = coordinator().args(half).args(["--tls-ca", "no/such/ca.crt"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read a.crt"), "{output:?}");
}

#[test]
fn bounds_that_contradict_each_other_are_refused() {
    let arguments = ["--insecure", "--min-members", "3", "--desired-members", "2", "--listen", "127.0.0.1:0"];
    let output = coordinator().args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(ExitCode::Permanent.code().into()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("min is 3, desired 2, max 2"), "{output:?}");
}

#[test]
fn a_factor_by_which_all_are_slow_now_and_then_is_refused() {
    let arguments = ["--insecure", "--desired-members", "2", "--listen", "127.0.0.1:0", "--evict-slow-factor", "1.1"];
    let output = coordinator().args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(ExitCode::Permanent.code().into()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a factor of 1.1: it must be at least 1.2"), "{output:?}");
}

/// What it announces: its address and its epoch.
fn announced(child: &mut Child) -> (SocketAddr, u64) {
    let line = BufReader::new(child.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(said["event"], "listening", "{line}");
    (said["address"].as_str().unwrap().parse().unwrap(), said["epoch"].as_u64().unwrap())
}

#[test]
fn it_says_where_it_listens_and_ends_in_order_on_sigterm() {
    let arguments = ["--insecure", "--desired-members", "1", "--listen", "127.0.0.1:0", "--log-format", "json"];
    let mut child = coordinator().args(arguments).spawn().unwrap();
    let (address, _) = announced(&mut child);
    TcpStream::connect(address).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_environment_says_what_flags_say_and_a_port_that_is_taken_may_be_free_next_time() {
    let environment = [("LCL_INSECURE", "true"), ("LCL_EPOCH", "7"), ("LCL_DESIRED_MEMBERS", "2"), ("LCL_LISTEN", "127.0.0.1:0")];
    let mut child = coordinator().envs(environment).spawn().unwrap();
    let (address, epoch) = announced(&mut child);
    assert_eq!(epoch, 7);
    let second = coordinator().envs(environment).args(["--listen", &address.to_string()]).output().unwrap();
    assert_eq!(second.status.code(), Some(ExitCode::Retryable.code().into()));
    child.kill().unwrap();
    child.wait().unwrap();
    let refused = coordinator().envs(environment).env("LCL_INSECURE", "false").output().unwrap();
    assert_eq!(refused.status.code(), Some(ExitCode::Permanent.code().into()));
    for (name, wrong) in [("LCL_MIN_MEMBERS", "x"), ("LCL_MAX_MEMBERS", "x"), ("LCL_FORMATION_WAIT", "x"), ("LCL_HEARTBEAT_TIMEOUT", "x")]
        .into_iter()
        .chain([("LCL_REPORT_TIMEOUT", "x"), ("LCL_LOG_FORMAT", "x"), ("LCL_EVICT_SLOW_FACTOR", "x"), ("LCL_EVICT_SLOW_AFTER", "x")])
    {
        let output = coordinator().envs(environment).env(name, wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(ExitCode::Usage.code().into()), "{name}: {output:?}");
    }
}

#[test]
fn it_ends_with_the_process_that_started_it() {
    let arguments = ["--insecure", "--desired-members", "1", "--listen", "127.0.0.1:0", "--ends-with-stdin"];
    let mut child = coordinator().args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    announced(&mut child);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
