//! The coordinator as a program.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

fn coordinator() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcl-coordinator"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

#[test]
fn it_does_not_serve_without_protection_unless_that_is_said() {
    let output = coordinator().args(["--desired-members", "2", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("say --insecure"), "{output:?}");
}

#[test]
fn bounds_that_contradict_each_other_are_refused() {
    let arguments = ["--insecure", "--min-members", "3", "--desired-members", "2", "--listen", "127.0.0.1:0"];
    let output = coordinator().args(arguments).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("min is 3, desired 2, max 2"), "{output:?}");
}

#[test]
fn it_says_where_it_listens_and_ends_in_order_on_sigterm() {
    let arguments = ["--insecure", "--desired-members", "1", "--listen", "127.0.0.1:0", "--log-format", "json"];
    let mut child = coordinator().args(arguments).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.contains("coordinator is listening") && line.contains("127.0.0.1:"), "{line}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}
