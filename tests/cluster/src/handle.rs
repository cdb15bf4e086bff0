//! A cluster as a test holds it.

use std::{
    ffi::OsStr,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{
    command::{CommandError, output},
    run::Ready,
};

/// A cluster could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The process cannot be started.
    #[error("starting {}", path.display())]
    Start {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended before the cluster was ready.
    #[error("the cluster did not come up: its messages stand above")]
    NotReady,
    /// It said something else.
    #[error("the cluster's process wrote no line of the form that is expected: {line}")]
    Line {
        /// What it wrote.
        line: String,
        /// Why it is not understood.
        source: serde_json::Error,
    },
}

/// What a test wants.
#[derive(Clone, Debug, Default)]
pub struct ClusterOptions {
    /// Nodes; none for a control plane alone.
    pub nodes: u8,
    /// Archives of images that every node gets.
    pub images: Vec<PathBuf>,
    /// All addresses are IPv6; without nodes alone.
    pub ipv6: bool,
}

/// A running cluster. It ends with this value, and with the process that holds it, however that ends.
#[derive(Debug)]
pub struct Cluster {
    child: Child,
    ready: Ready,
}

impl Cluster {
    /// Starts one by `program`, which is `lcl-cluster`, and waits until it is ready.
    pub fn start(program: &Path, options: &ClusterOptions) -> Result<Self, HandleError> {
        let failed = |source| HandleError::Start { path: program.to_owned(), source };
        let mut command = Command::new(program);
        command.arg("run").arg("--ends-with-stdin").arg("--nodes").arg(options.nodes.to_string());
        for image in &options.images {
            command.arg("--image").arg(image);
        }
        if options.ipv6 {
            command.arg("--ipv6");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        if line.is_empty() {
            // Its end is certain; how it ended is in its messages.
            let _ = child.wait();
            return Err(HandleError::NotReady);
        }
        let ready = serde_json::from_str(&line).map_err(|source| HandleError::Line { line: line.clone(), source })?;
        Ok(Self { child, ready })
    }

    /// What there is.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The process that runs it.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Runs kubectl as the administrator and returns what it wrote.
    pub fn kubectl<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String, CommandError> {
        kubectl_output(&self.ready, arguments)
    }

    /// Ends the cluster; false when it ended with an error, which its messages name.
    #[must_use]
    pub fn end(mut self) -> bool {
        self.stop()
    }

    fn stop(&mut self) -> bool {
        // The end of its standard input asks it to end.
        drop(self.child.stdin.take());
        self.child.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs the cluster's kubectl as the administrator and returns what it wrote.
pub fn kubectl_output<S: AsRef<OsStr>>(ready: &Ready, arguments: &[S]) -> Result<String, CommandError> {
    let mut all: Vec<&OsStr> = vec![OsStr::new("--kubeconfig"), ready.kubeconfig.as_os_str()];
    all.extend(arguments.iter().map(AsRef::as_ref));
    output(&ready.kubectl, &all)
}
