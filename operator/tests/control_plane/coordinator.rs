//! The real coordinator's program outside of the cluster, which the operator takes for the one in a job's pod.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{
    install, job, set_pod_status,
    support::{Installed, objects, program, wait_for},
    uids, wait_for_pods,
};

/// The folder to which what a job's pods mount was written.
pub(crate) fn certificates_of(installed: &Installed, job: &str) -> Result<PathBuf> {
    let secrets = installed.look(&objects(&format!("secrets?labelSelector=lcl.dev/job-name={job}")))?;
    let data = secrets["items"][0]["data"].as_object().context("no Secret")?;
    let folder = installed.cluster.ready().folder.join(format!("{job}-tls"));
    fs::create_dir_all(&folder)?;
    for (name, text) in data {
        fs::write(folder.join(name), BASE64_STANDARD.decode(text.as_str().unwrap_or_default())?)?;
    }
    Ok(folder)
}

/// A coordinator outside of the cluster, with the certificates that its pod would mount.
pub(crate) struct Coordinator(Child);

impl Coordinator {
    pub(crate) fn start(installed: &Installed, job: &str, address: &str, arguments: &[&str]) -> Result<Self> {
        let folder = certificates_of(installed, job)?;
        // `make compat` names that of an earlier version.
        let coordinator = env::var_os("LCL_COORDINATOR_BIN").map_or_else(|| program("lcl-coordinator"), |path| Ok(path.into()))?;
        let mut command = Command::new(coordinator);
        for (variable, file) in [("CERTIFICATE", "coordinator.crt"), ("KEY", "coordinator.key"), ("CA", "ca.crt")] {
            command.env(format!("LCL_TLS_{variable}"), folder.join(file));
        }
        command.args(["--listen", address, "--ends-with-stdin"]).args(arguments).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut announced = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut announced)?;
        ensure!(announced.contains("listening"), "{announced}");
        Ok(Self(child))
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The operator shows its certificate of the job to the real program, which refuses what is meant for another epoch.
#[test]
fn what_a_coordinator_refuses_keeps_no_pod_from_being_created() -> Result<()> {
    const ADDRESS: &str = "127.71.0.9";
    const LISTEN: &str = "127.71.0.9:7433";
    let installed = install()?;
    let operator = installed.start_operator(&[])?;
    installed.apply(&job("refused", "spec.workers = {'replicas': 2}; spec.elastic = {'minWorkers': 1, 'maxWorkers': 4}"))?;
    wait_for_pods(&installed, "refused", 3)?;
    let _coordinator =
        Coordinator::start(&installed, "refused", LISTEN, &["--epoch=99", "--min-members=1", "--desired-members=2", "--max-members=4"])?;
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    let status = json!({ "phase": "Running", "podIP": ADDRESS, "podIPs": [{ "ip": ADDRESS }], "conditions": ready });
    set_pod_status(&installed, "refused-coordinator", &status)?;
    installed.kubectl(&["scale", "lcltrainingjob", "refused", "--replicas=3"])?;
    wait_for_pods(&installed, "refused", 4)?;
    wait_for("the refusal", || {
        let lines = operator.log_lines()?;
        let refused =
            |line: &Value| line["fields"]["message"].as_str().is_some_and(|text| text.contains("this is the coordinator of epoch 99"));
        ensure!(lines.iter().any(refused), "nothing was refused");
        Ok(())
    })?;
    // Again and again, and pods that end are replaced all the same.
    let before = uids(&installed.pods("refused")?);
    installed.kubectl(&["delete", "pod", "refused-w-0", "--force", "--grace-period=0"])?;
    wait_for("the replacement", || {
        let pods = uids(&installed.pods("refused")?);
        ensure!(pods.len() == 4 && pods["refused-w-0"] != before["refused-w-0"], "not yet");
        Ok(())
    })?;
    operator.terminate()
}
