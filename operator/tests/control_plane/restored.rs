//! etcd is put back to what it was some time ago, as from a backup: the cluster's own data, with its own programs.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    install, job, set_pod_status,
    support::{Installed, JOBS, name_of, wait_for},
    terminated, uids, wait_for_pods,
};

/// Who writes first is ended first, and started last.
const PARTS: [&str; 4] = ["kube-scheduler", "kube-controller-manager", "kube-apiserver", ETCD];
const ETCD: &str = "etcd";

/// The programs of a control plane, which can be ended and started again as they were. They end with this value.
struct Parts<'a> {
    installed: &'a Installed,
    folder: PathBuf,
    programs: Vec<Part>,
}

struct Part {
    name: &'static str,
    line: Vec<String>,
    process: u32,
    /// Since it was started here.
    child: Option<Child>,
}

impl<'a> Parts<'a> {
    fn of(installed: &'a Installed) -> Result<Self> {
        let ready = installed.cluster.ready();
        let part = |name: &'static str| {
            let process = ready.processes.iter().find(|(of, _)| of == name).with_context(|| format!("no {name}"))?.1;
            let line = fs::read_to_string(format!("/proc/{process}/cmdline"))?;
            let line = line.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
            anyhow::Ok(Part { name, line, process, child: None })
        };
        Ok(Self { installed, folder: ready.folder.clone(), programs: PARTS.map(part).into_iter().collect::<Result<_>>()? })
    }

    fn end(&mut self) -> Result<()> {
        self.programs.iter_mut().try_for_each(Part::end)
    }

    /// Starts all, at the addresses that they had, and waits until the API server is ready.
    fn start(&mut self) -> Result<()> {
        let folder = &self.folder;
        self.programs.iter_mut().rev().try_for_each(|part| part.start(folder))?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        wait_for("the API server", || self.installed.kubectl(&["get", "--raw", "/readyz"])).map(drop)
    }

    /// A copy of the data, taken while etcd does not run.
    fn back_up(&mut self) -> Result<()> {
        let etcd = self.programs.last_mut().context("no etcd")?;
        etcd.end()?;
        copy(&self.folder.join("etcd"), &self.folder.join("backup"))?;
        etcd.start(&self.folder)?;
        self.wait()
    }

    /// Puts the copy in the place of the data.
    fn restore(&mut self) -> Result<()> {
        self.end()?;
        fs::remove_dir_all(self.folder.join("etcd"))?;
        fs::rename(self.folder.join("backup"), self.folder.join("etcd"))?;
        self.start()
    }
}

impl Part {
    fn end(&mut self) -> Result<()> {
        let pid = Pid::from_raw(self.process.cast_signed()).context("its process")?;
        // etcd writes down what it has; an API server that is asked waits up to a minute for its watchers.
        kill_process(pid, if self.name == ETCD { Signal::TERM } else { Signal::KILL }).with_context(|| self.name)?;
        match &mut self.child {
            Some(child) => drop(child.wait()?),
            // The cluster's own process waits for it at the end of the test.
            None => wait_for(&format!("the end of {}", self.name), || {
                let state = fs::read_to_string(format!("/proc/{}/stat", self.process))?;
                ensure!(state.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")), "{state}");
                // As long as there is another thread the process keeps its files open, and its port.
                let threads = fs::read_dir(format!("/proc/{}/task", self.process))?.count();
                ensure!(threads == 1, "{threads} threads");
                Ok(())
            })?,
        }
        Ok(())
    }

    fn start(&mut self, folder: &Path) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(folder.join(format!("{}-again.log", self.name)))?;
        // It dies with this test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).args(&self.line).current_dir(folder);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().with_context(|| self.name)?;
        (self.process, self.child) = (child.id(), Some(child));
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { copy(&entry.path(), &target)? } else { fs::copy(entry.path(), target).map(|_| ())? }
    }
    Ok(())
}

/// How often the operator's process has asked for the revision alone.
fn questions(installed: &Installed) -> Result<usize> {
    let is_question = |entry: &&Value| {
        let uri = entry["requestURI"].as_str().unwrap_or_default();
        entry["verb"] == "list" && uri.contains("/lcltrainingjobs?") && uri.contains("limit=1")
    };
    Ok(installed.requests_of("lcl-operator")?.iter().filter(is_question).count())
}

fn settled(installed: &Installed, job: &str, workers: usize) -> Result<Value> {
    wait_for_pods(installed, job, workers + 1)?;
    wait_for(&format!("{job} to settle"), || {
        let status = installed.status(job)?;
        ensure!(status["workers"]["created"] == workers && status["replacing"].is_null(), "{status}");
        Ok(status)
    })
}

/// A restored etcd counts revisions from its backup on: what the operator has seen is still to come, and its watches would wait for it.
#[test]
fn an_operator_ends_when_etcd_is_restored_and_the_next_brings_every_job_to_what_the_backup_says() -> Result<()> {
    let installed = install()?;
    let mut parts = Parts::of(&installed)?;
    let operator = installed.start_operator(&[])?;
    installed.apply(&job("before", "spec.workers = {'replicas': 2}; spec.elastic = {'minWorkers': 1, 'maxWorkers': 4}"))?;
    settled(&installed, "before", 2)?;
    set_pod_status(&installed, "before-w-1", &terminated("worker", 75, "the data could not be read"))?;
    let backed_up = wait_for("a failure on record", || {
        let status = settled(&installed, "before", 2)?;
        ensure!(status["restarts"]["total"] == 1, "{status}");
        Ok(status)
    })?;
    let pods = uids(&installed.pods("before")?);
    parts.back_up()?;

    // Since then a worker and the coordinator are replaced, one worker is added, and there is another job.
    for pod in ["before-w-0", "before-coordinator"] {
        installed.kubectl(&["delete", "pod", pod, "--force", "--grace-period=0"])?;
    }
    installed.kubectl(&["scale", "lcltrainingjob", "before", "--replicas=3"])?;
    installed.apply(&job("after", "spec.workers = {'replicas': 20}; spec.optimization.globalBatchSize = 64"))?;
    settled(&installed, "after", 20)?;
    let later = wait_for("two more replacements", || {
        let status = settled(&installed, "before", 3)?;
        ensure!(
            status["restarts"]["total"] == 3 && status["coordinatorEpoch"].as_i64() > backed_up["coordinatorEpoch"].as_i64(),
            "{status}"
        );
        Ok(status)
    })?;
    let lost = uids(&installed.pods("before")?);
    assert_ne!(lost["before-w-0"], pods["before-w-0"], "{later}");
    let asked = questions(&installed)?;
    wait_for("an operator that knows of all this", || {
        ensure!(questions(&installed)? > asked, "not yet");
        Ok(())
    })?;

    parts.restore()?;
    let error = operator.wait_for_failure()?;
    assert!(error.contains("the cluster's data went back from revision"), "{error}");
    let operator = installed.start_operator(&[])?;
    operator.wait_for_reconciles_beyond(0.0)?;
    let names = installed.look(JOBS)?["items"].as_array().into_iter().flatten().map(name_of).collect::<Vec<_>>();
    assert_eq!(names, ["before"]);
    let status = settled(&installed, "before", 2)?;
    assert_eq!(uids(&installed.pods("before")?), pods, "the pods of the backup, each once");
    assert_eq!((&status["restarts"], &status["coordinatorEpoch"]), (&backed_up["restarts"], &backed_up["coordinatorEpoch"]));
    wait_for_pods(&installed, "after", 0)?;

    // It goes on from there.
    set_pod_status(&installed, "before-w-1", &terminated("worker", 75, "the data could not be read"))?;
    installed.kubectl(&["scale", "lcltrainingjob", "before", "--replicas=3"])?;
    let status = wait_for("one more replacement", || {
        let status = settled(&installed, "before", 3)?;
        ensure!(status["restarts"]["total"] == 2, "{status}");
        Ok(status)
    })?;
    let now = uids(&installed.pods("before")?);
    assert_eq!((&now["before-w-0"], &now["before-coordinator"]), (&pods["before-w-0"], &pods["before-coordinator"]), "{status}");
    assert!(now["before-w-1"] != pods["before-w-1"] && now.len() == 4, "{now:?}");
    installed.apply(&job("after", ""))?;
    settled(&installed, "after", 1)?;
    operator.terminate()
}
