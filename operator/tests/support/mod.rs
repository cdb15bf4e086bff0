//! A cluster with the charts installed, and the operator as a process with the rights that the chart gives it.

#![allow(dead_code, reason = "every test uses a part")]

pub(crate) mod node_processes;

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lcl_cluster::{Cluster, ClusterOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::runtime::Runtime;

/// The longest anything may take on a busy machine before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
/// Between two reconciles.
const POLL: Duration = Duration::from_millis(50);
/// What an operator has complained about before it failed is among so many lines of its log.
const LAST_COMPLAINTS: usize = 12;
/// Path of the jobs.
pub(crate) const JOBS: &str = "/apis/lcl.dev/v1alpha1/namespaces/default/lcltrainingjobs";
/// Where the charts install the operator.
pub(crate) const SYSTEM: &str = "lcl-system";

const OPERATOR: &str = env!("CARGO_BIN_EXE_lcl-operator");

/// What an operator is told where a test says nothing else.
const USUAL: [&str; 4] =
    ["--coordinator-image=coordinator", "--trainer-image=trainer", "--health-addr=127.0.0.1:0", "--metrics-addr=127.0.0.1:0"];

/// Operators that this test has started: each has a log.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// The project's folder.
pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// A program that cargo builds beside the operator.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let path = Path::new(OPERATOR).with_file_name(name);
    ensure!(path.is_file(), "{} is missing: `cargo build -p {name}` makes it", path.display());
    Ok(path)
}

/// Says something that is to be read though the test passes: libtest keeps what is printed to itself.
pub(crate) fn tell(what: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stderr(), "{what}");
}

/// Tries until there is a result, or until the patience is at its end: then the last reason is told.
pub(crate) fn wait_for<T>(what: &str, look: impl FnMut() -> Result<T>) -> Result<T> {
    wait_within(PATIENCE, what, look)
}

/// The same with another patience.
pub(crate) fn wait_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        match look() {
            Ok(result) => return Ok(result),
            Err(error) if Instant::now() >= end => return Err(error.context(format!("{what} did not come within {patience:?}"))),
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// A cluster with both charts.
pub(crate) struct Installed {
    pub(crate) cluster: Cluster,
    /// For looks that are repeated: a kubectl for each would take a processor from what is waited for.
    client: kube::Client,
    runtime: Runtime,
}

impl Installed {
    /// Starts a cluster and installs the charts; `values` are further arguments of `helm install` for the operator's.
    pub(crate) fn start(options: &ClusterOptions, values: &[&str]) -> Result<Self> {
        let cluster = Cluster::start(&program("lcl-cluster")?, options)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(connect(&cluster.ready().kubeconfig))?;
        let installed = Self { cluster, client, runtime };
        let charts = project().join("charts");
        installed.helm(&[
            "install",
            "lcl-crds",
            &charts.join("lcl-crds").to_string_lossy(),
            "--namespace",
            SYSTEM,
            "--create-namespace",
        ])?;
        let operator = charts.join("lcl-operator").to_string_lossy().into_owned();
        installed.helm(&[&["install", "lcl-operator", &operator, "--namespace", SYSTEM], values].concat())?;
        wait_for("the definition", || installed.look(JOBS))?;
        Ok(installed)
    }

    /// Runs Helm.
    pub(crate) fn helm(&self, arguments: &[&str]) -> Result<String> {
        let helm = match env::var_os("LCL_HELM_BIN") {
            Some(path) => path.into(),
            None => newest(&project().join(".deps"), "helm-")?.join("helm"),
        };
        let home = self.cluster.ready().folder.join("helm");
        let mut command = Command::new(&helm);
        command.args(arguments).env("KUBECONFIG", &self.cluster.ready().kubeconfig);
        command.env("HELM_CACHE_HOME", &home).env("HELM_CONFIG_HOME", &home).env("HELM_DATA_HOME", &home);
        let output = command.output().with_context(|| format!("{} (scripts/helm.sh builds it)", helm.display()))?;
        ensure!(output.status.success(), "helm {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs kubectl as the administrator.
    pub(crate) fn kubectl<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        Ok(self.cluster.kubectl(arguments)?)
    }

    /// Applies an object.
    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        let file = self.cluster.ready().folder.join("object.json");
        fs::write(&file, object.to_string())?;
        self.kubectl(&["apply", "-f", &file.to_string_lossy()])?;
        Ok(())
    }

    /// `kubectl get -o json`.
    pub(crate) fn get(&self, what: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&[&["get", "-o", "json"], what].concat())?)?)
    }

    /// What the API server answers for a path.
    pub(crate) fn look(&self, path: &str) -> Result<Value> {
        let request = http::Request::get(path).body(Vec::new())?;
        Ok(self.runtime.block_on(self.client.request(request))?)
    }

    /// Writes something as the administrator; a PATCH is a merge.
    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(body.to_string().into_bytes())?;
        self.runtime.block_on(self.client.request(request)).with_context(|| format!("{method} {path}"))
    }

    /// What the container of a pod has written so far.
    pub(crate) fn log(&self, pod: &str) -> Result<String> {
        let request = http::Request::get(objects(&format!("pods/{pod}/log"))).body(Vec::new())?;
        Ok(self.runtime.block_on(self.client.request_text(request))?)
    }

    /// A job's status.
    pub(crate) fn status(&self, job: &str) -> Result<Value> {
        Ok(self.look(&format!("{JOBS}/{job}"))?["status"].take())
    }

    /// The job's pods that are not being deleted, by name.
    pub(crate) fn pods(&self, job: &str) -> Result<Vec<Value>> {
        let Value::Array(mut pods) = self.look(&objects(&format!("pods?labelSelector=lcl.dev/job-name={job}")))?["items"].take() else {
            bail!("no list of pods");
        };
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods.sort_by_key(name_of);
        Ok(pods)
    }

    /// Reasons of a job's Events so far.
    pub(crate) fn event_reasons(&self, job: &str) -> Result<Vec<String>> {
        let events = self.look("/apis/events.k8s.io/v1/namespaces/default/events")?;
        let items = events["items"].as_array().into_iter().flatten();
        let ours = items.filter(|event| event["regarding"]["kind"] == "LCLTrainingJob" && event["regarding"]["name"] == job);
        Ok(ours.filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect())
    }

    /// What the operator has written so far, from the API server's audit log: `verb resource name`. Without its lease.
    pub(crate) fn operators_writes(&self) -> Result<Vec<String>> {
        let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let told = self.writes_of("lcl-operator")?.into_iter().map(|entry| {
            format!("{} {} {}", part(&entry["verb"]), part(&entry["objectRef"]["resource"]), part(&entry["objectRef"]["name"]))
        });
        Ok(told.collect())
    }

    /// Lines of the audit log about writes of the operators of this account, without leases.
    pub(crate) fn writes_of(&self, account: &str) -> Result<Vec<Value>> {
        let is_write = |entry: &Value| {
            !["get", "list", "watch"].contains(&entry["verb"].as_str().unwrap_or_default()) && entry["objectRef"]["resource"] != "leases"
        };
        Ok(self.requests_of(account)?.into_iter().filter(is_write).collect())
    }

    /// Lines of the audit log about all requests of the operators of this account.
    pub(crate) fn requests_of(&self, account: &str) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.cluster.ready().folder.join("audit.log"))?;
        // The last line may be half written.
        let entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let user = format!("system:serviceaccount:{SYSTEM}:{account}");
        Ok(entries.filter(|entry| entry["user"]["username"] == user).collect())
    }

    /// A kubeconfig with the rights of a chart's service account and no other.
    pub(crate) fn kubeconfig_of(&self, account: &str) -> Result<PathBuf> {
        let ready = self.cluster.ready();
        let token = self.kubectl(&["create", "token", account, "--namespace", SYSTEM])?;
        let server = self.kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
        let path = ready.folder.join(format!("{account}.kubeconfig"));
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "operator",
            "clusters": [{ "name": "test", "cluster": { "server": server, "certificate-authority": ready.folder.join("ca.crt") } }],
            "users": [{ "name": "operator", "user": { "token": token.trim() } }],
            "contexts": [{ "name": "operator", "context": { "cluster": "test", "user": "operator" } }],
        });
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// Starts the operator as a process.
    pub(crate) fn start_operator(&self, arguments: &[&str]) -> Result<Operator> {
        self.start_operator_with(&self.kubeconfig_of("lcl-operator")?, arguments)
    }

    /// The same with another kubeconfig.
    pub(crate) fn start_operator_with(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<Operator> {
        self.start_operator_in(&[], kubeconfig, arguments)
    }

    /// The same with further variables in its environment.
    pub(crate) fn start_operator_in(&self, environment: &[(&str, &str)], kubeconfig: &Path, arguments: &[&str]) -> Result<Operator> {
        Operator::start(Path::new(OPERATOR), &self.cluster.ready().folder, kubeconfig, arguments, environment)
    }

    /// The same with another build of it.
    pub(crate) fn start_program(&self, program: &Path, arguments: &[&str]) -> Result<Operator> {
        Operator::start(program, &self.cluster.ready().folder, &self.kubeconfig_of("lcl-operator")?, arguments, &[])
    }
}

/// Path of what Kubernetes itself has in the jobs' namespace.
pub(crate) fn objects(what: &str) -> String {
    format!("/api/v1/namespaces/default/{what}")
}

/// A client with the rights of a kubeconfig, which lives in the present runtime.
pub(crate) async fn connect(kubeconfig: &Path) -> Result<kube::Client> {
    let config = kube::config::Kubeconfig::read_from(kubeconfig)?;
    Ok(kube::Client::try_from(kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await?)?)
}

/// Name of an object.
pub(crate) fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// Value of a condition: True, False, Unknown, or nothing.
pub(crate) fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().find(|condition| condition["type"] == type_).unwrap_or(&Value::Null)
}

fn newest(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    found.sort();
    found.pop().with_context(|| format!("{}/{prefix}* is missing: `make test` builds it", folder.display()))
}

/// The operator as a process. Killed when dropped.
pub(crate) struct Operator {
    child: Child,
    log: PathBuf,
    /// Where `/healthz` and `/readyz` are.
    pub(crate) health: String,
    /// Where `/metrics` is.
    pub(crate) metrics: String,
}

impl Operator {
    fn start(program: &Path, folder: &Path, kubeconfig: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let log = folder.join(format!("operator-{}.log", STARTED.fetch_add(1, Ordering::Relaxed)));
        let child = Command::new(program)
            .env("KUBECONFIG", kubeconfig)
            .args(USUAL.iter().filter(|usual| {
                let name = usual.split_once('=').map_or("", |(name, _)| name);
                !arguments.iter().any(|given| given.starts_with(name))
            }))
            .arg("--log-format=json")
            .env("POD_NAMESPACE", SYSTEM)
            .envs(environment.iter().copied())
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let mut operator = Self { child, log, health: String::new(), metrics: String::new() };
        for what in ["health", "metrics"] {
            let address = wait_for("an address", || {
                let lines = operator.log_lines()?;
                let line = lines.iter().find(|line| line["fields"]["message"] == format!("serves {what}"));
                line.and_then(|line| line["fields"]["address"].as_str()).map(str::to_owned).context("not yet")
            })?;
            if what == "health" { operator.health = address } else { operator.metrics = address }
        }
        // One that stands by has started, too.
        wait_for("an operator that works or stands by", || get(&operator.health, "/readyz?exclude=leader-election"))?;
        Ok(operator)
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub(crate) fn log_lines(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(&self.log)?;
        // The last line may be half written.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// The last things that it has complained about.
    pub(crate) fn complaints(&self) -> Result<String> {
        let lines = self.log_lines()?;
        let bad: Vec<_> = lines.iter().filter(|line| line["level"] != "INFO").map(Value::to_string).collect();
        Ok(bad[bad.len().saturating_sub(LAST_COMPLAINTS)..].join("\n"))
    }

    /// Ends it without warning.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits until it has ended by itself; what it complained about last, if it complained.
    pub(crate) fn wait_for_failure(mut self) -> Result<String> {
        let status = wait_for("the end of the operator", || self.child.try_wait()?.context("it runs"))?;
        ensure!(!status.success(), "the operator ended with success");
        let lines = self.log_lines()?;
        let error = lines.iter().rfind(|line| line["level"] == "ERROR").context("it says nothing")?;
        Ok(error["fields"]["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Asks it to end, and expects that it does so with success.
    pub(crate) fn terminate(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the operator ended with {status}: {}", fs::read_to_string(&self.log)?);
        Ok(())
    }

    /// Reconciles that have ended well so far.
    pub(crate) fn reconciles(&self) -> f64 {
        // Absent before the first.
        self.metric("controller_runtime_reconcile_total{controller=\"lcltrainingjob\",result=\"success\"}").unwrap_or(0.0)
    }

    /// Waits until there are more than these.
    pub(crate) fn wait_for_reconciles_beyond(&self, before: f64) -> Result<()> {
        wait_for("a reconcile", || {
            ensure!(self.reconciles() > before, "no reconcile yet");
            Ok(())
        })
    }

    /// The value of a metric, labels included in the name.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = get(&self.metrics, "/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name} in:\n{text}"))?.parse()?)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Body of a page that is served with 200.
pub(crate) fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{path}: {head}: {body}");
    Ok(body.to_owned())
}
