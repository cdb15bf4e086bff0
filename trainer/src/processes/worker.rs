//! The supervisor in a pod: starts the members of one worker, keeps them alive, passes signals on, and says how it ended.
//!
//! Comes in: a configuration and the coordinator's address. Goes out: the members' output, marked with their names, the exit code of the
//! whole, and its cause in one line for the pod's termination message. It takes no part in training and holds no state of it.

use std::{
    env,
    ffi::OsString,
    fs::OpenOptions,
    io::{self, Write},
    net::IpAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use lcl_coordinator::{CertificateFiles, Security, draw_number};

use crate::{
    command_line::cli::LogFormat,
    evaluation::forward::{LastWords, Readers, mark},
    processes::{
        stop::StopRequest,
        supervisor::{Crew, Outcome, Role, Rules, SupervisorError, supervise},
    },
};

/// What to start.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The configuration's file, for the members.
    pub config_file: PathBuf,
    /// `host:port` of the coordinator.
    pub coordinator: String,
    /// How the wire to it is protected.
    pub security: Security,
    /// Between two heartbeats of a member.
    pub heartbeat_interval: Duration,
    /// After how long without a word a member takes the coordinator for lost.
    pub coordinator_timeout: Duration,
    /// This worker's name.
    pub name: String,
    /// Its members.
    pub members: NonZeroU32,
    /// The node it runs on.
    pub node: String,
    /// Address of this host under which other members reach these.
    pub host: IpAddr,
    /// Threads of each member.
    pub threads: Option<usize>,
    /// Further arguments of every member.
    pub passed_on: Vec<OsString>,
    /// How lines are marked.
    pub log_format: LogFormat,
    /// How long members may take to leave.
    pub drain_timeout: Duration,
    /// Asks for an orderly stop.
    pub stop: StopRequest,
}

/// The members cannot be kept alive.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Starting or waiting failed.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError<MembersError>),
}

/// A member cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    /// This program's own path is not known.
    #[error("finding this program")]
    Program {
        /// Why.
        source: io::Error,
    },
    /// What a member prints cannot be read.
    #[error("reading what {name} prints")]
    Output {
        /// The member.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// Runs the members to their end.
pub fn run(options: &WorkerOptions) -> Result<Outcome, WorkerError> {
    let processes =
        (0..options.members.get()).map(|index| Role { name: member_name(options, index as usize), works: true, returns: false });
    let mut crew = Members { options, run: draw_number(), starts: vec![0; options.members.get() as usize], output: Vec::new() };
    let rules = Rules { patience: Some(options.drain_timeout), ..Rules::new(options.stop.clone()) };
    let outcome = supervise(&mut crew, processes.collect(), rules)?;
    tracing::info!(worker = options.name, exit_code = outcome.code.code(), cause = outcome.cause, "all members have ended");
    Ok(outcome)
}

fn member_name(options: &WorkerOptions, index: usize) -> String {
    format!("{}/{index}", options.name)
}

/// Writes why the worker ended, in one line, for the pod's termination message. Kubernetes mounts the file; without it nothing is written.
pub fn write_cause(file: &Path, cause: &str) {
    let written = match OpenOptions::new().write(true).truncate(true).open(file) {
        Ok(mut file) => writeln!(file, "{}", cause.replace('\n', " ")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        tracing::warn!(%error, file = %file.display(), "the cause of the end is not written");
    }
}

struct Members<'a> {
    options: &'a WorkerOptions,
    /// By this the coordinator tells what this process starts from what another worker of its name does.
    run: u64,
    /// How often each member was started.
    starts: Vec<u64>,
    /// Per member, of its newest process.
    output: Vec<(usize, LastWords, Readers)>,
}

impl Crew for Members<'_> {
    type Error = MembersError;

    fn command(&mut self, index: usize) -> Result<Command, MembersError> {
        let options = self.options;
        let start = self.starts.get_mut(index).map_or(1, |starts| {
            *starts += 1;
            *starts
        });
        let mut command = Command::new(env::current_exe().map_err(|source| MembersError::Program { source })?);
        command
            .args(["--log-format", options.log_format.name(), "member", "--ends-with-stdin", "--config"])
            .arg(&options.config_file)
            .args(["--coordinator", &options.coordinator, "--worker", &options.name, "--index", &index.to_string()])
            .args(["--run", &self.run.to_string(), "--start", &start.to_string()])
            .args(["--heartbeat-interval", &options.heartbeat_interval.as_secs_f64().to_string()])
            .args(["--coordinator-timeout", &options.coordinator_timeout.as_secs_f64().to_string()])
            .args(["--node", &options.node, "--host", &options.host.to_string()])
            .args(options.threads.iter().flat_map(|threads| ["--threads".to_owned(), threads.to_string()]))
            .args(&options.passed_on)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        match options.security.files() {
            None => command.arg("--insecure"),
            Some(CertificateFiles { certificate, key, authority }) => {
                command.arg("--tls-certificate").arg(certificate).arg("--tls-key").arg(key).arg("--tls-ca").arg(authority)
            }
        };
        Ok(command)
    }

    fn started(&mut self, index: usize, child: &mut Child) -> Result<(), MembersError> {
        let (name, format) = (member_name(self.options, index), self.options.log_format);
        let (words, mut readers) = (LastWords::default(), Readers::default());
        let failed = |source| MembersError::Output { name: name.clone(), source };
        // A reader of these that went away is no reason to stop.
        if let Some(stdout) = child.stdout.take() {
            let name = name.clone();
            readers.read(stdout, move |line| drop(writeln!(io::stdout(), "{}", mark(line, &name, format)))).map_err(failed)?;
        }
        if let Some(stderr) = child.stderr.take() {
            let (name, words) = (name.clone(), words.clone());
            let say = move |line: &str| {
                words.hear(line);
                drop(writeln!(io::stderr(), "{}", mark(line, &name, format)));
            };
            readers.read(stderr, say).map_err(failed)?;
        }
        self.output.push((index, words, readers));
        Ok(())
    }

    fn last_words(&mut self, index: usize) -> Option<String> {
        let place = self.output.iter().position(|(other, ..)| *other == index)?;
        let (_, words, readers) = self.output.swap_remove(place);
        // Its last lines may be on their way.
        drop(readers);
        words.get()
    }
}
