//! Programs of the system: run to their end, or started and ended again.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Between two looks at a condition.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// A program that has not ended this long after SIGTERM gets SIGKILL.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// What is shown of a log.
const TAIL_LINES: usize = 15;
/// Kubernetes' programs are written in Go and collect garbage all along while they start: with four times as much of it before each collection a
/// start takes a sixth of a processor's time less.
const FEWER_COLLECTIONS: (&str, &str) = ("GOGC", "400");

/// A program could not do its part.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It cannot be started.
    #[error("starting {program}")]
    Start {
        /// Its name or path.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("{line}: {status}: {output}")]
    Failed {
        /// Program and arguments.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote.
        output: String,
    },
    /// A server ended.
    #[error("{name} ended with {status}; the end of {}:\n{tail}", log.display())]
    Ended {
        /// The server.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A server's log cannot be written.
    #[error("writing {}", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Runs `program` to its end and returns what it wrote to standard output.
pub(crate) fn output<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[S]) -> Result<String, CommandError> {
    let name = program.as_ref().to_string_lossy().into_owned();
    let output = Command::new(&program)
        .args(arguments)
        .env(FEWER_COLLECTIONS.0, FEWER_COLLECTIONS.1)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| CommandError::Start { program: name.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut line = name;
    for argument in arguments {
        line.push(' ');
        line.push_str(&argument.as_ref().to_string_lossy());
    }
    let text = [output.stderr, output.stdout].concat();
    Err(CommandError::Failed { line, status: output.status, output: String::from_utf8_lossy(&text).trim().to_owned() })
}

/// Runs a line of words without quotes, such as `ip link set eth0 up`.
pub(crate) fn system(line: &str) -> Result<String, CommandError> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    output(program, &words.collect::<Vec<_>>())
}

/// A server that runs until it is ended. It dies with the thread that started it, however that ends.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Server {
    /// Starts `program` with its output in `<folder>/<name>.log`. With `namespace`, inside that network namespace: only the network is
    /// another, since a new /sys would hide the cgroups from a kubelet.
    pub(crate) fn start(
        folder: &Path,
        name: &str,
        namespace: Option<&str>,
        program: &Path,
        arguments: &[String],
    ) -> Result<Self, CommandError> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).map_err(|source| CommandError::Log { path: log.clone(), source })?;
        let copy = file.try_clone().map_err(|source| CommandError::Log { path: log.clone(), source })?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(namespace) = namespace {
            command.arg("nsenter").arg(format!("--net=/run/netns/{namespace}"));
        }
        let child = command
            .arg(program)
            .args(arguments)
            .env(FEWER_COLLECTIONS.0, FEWER_COLLECTIONS.1)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            // A Ctrl-C of the terminal must not end the parts in an order of its own.
            .process_group(0)
            .spawn()
            .map_err(|source| CommandError::Start { program: program.display().to_string(), source })?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error when it has ended.
    pub(crate) fn check(&mut self) -> Result<(), CommandError> {
        match self.child.try_wait() {
            Ok(Some(status)) => Err(CommandError::Ended {
                name: self.name.clone(),
                status,
                log: self.log.clone(),
                tail: fs::read_to_string(&self.log).map(|text| tail(&text)).unwrap_or_default(),
            }),
            _ => Ok(()),
        }
    }

    /// Asks it to end, and makes it when it does not. Returns once it is gone.
    pub(crate) fn end(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by now, here and below.
            let _ = kill_process(pid, Signal::TERM);
        }
        if !wait_until(END_TIMEOUT, || !matches!(self.child.try_wait(), Ok(None))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether `condition` came true within `patience`.
pub(crate) fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + patience;
    while !condition() {
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
