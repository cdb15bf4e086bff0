//! The trainer as a process: started with arguments, watched, killed.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

/// The longest anything here may take on a busy machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_mins(6);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(2);

/// Path of `lcl-trainer`. Cargo builds it before the integration tests of its package, which is where these tests are.
pub fn trainer() -> Result<PathBuf> {
    if let Some(path) = env::var_os("CARGO_BIN_EXE_lcl-trainer") {
        return Ok(path.into());
    }
    // The test runs as <target>/<profile>/deps/<name>.
    let own = env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("the test lies in no target folder")?;
    let path = folder.join("lcl-trainer");
    ensure!(path.is_file(), "{} is missing: run these tests with `cargo test -p lcl-trainer`", path.display());
    Ok(path)
}

/// Path of `lcl-coordinator`, beside the trainer.
pub fn coordinator() -> Result<PathBuf> {
    let path = trainer()?.with_file_name("lcl-coordinator");
    ensure!(path.is_file(), "{} is missing: `cargo build -p lcl-coordinator` makes it", path.display());
    Ok(path)
}

/// What a process left when it ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Its exit code; an error when a signal ended it.
    pub fn code(&self) -> Result<i32> {
        self.status.code().with_context(|| format!("ended by signal {:?}: {}", self.status.signal(), self.stderr))
    }

    /// Fails unless it ended with this code.
    pub fn expect_code(self, code: u8) -> Result<Self> {
        ensure!(self.code()? == i32::from(code), "exit code {} instead of {code}: {}", self.code()?, self.stderr);
        Ok(self)
    }
}

/// A running trainer. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    _folder: tempfile::TempDir,
}

/// Starts `lcl-trainer` without touching its surroundings; its output goes to files, so that it never waits for a reader.
pub fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Running> {
    let mut command = Command::new(trainer()?);
    command.args(arguments);
    start_command(command)
}

/// As [`start`], unable to write any file beyond `bytes`: what a full disk looks like to it. Can be lifted by [`Running::allow_file_size`].
pub fn start_with_file_limit<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>, bytes: u64) -> Result<Running> {
    let mut command = Command::new("bash");
    // Without the trap the kernel kills the process at the limit; with it the write fails. A shell's unit is 1,024 bytes.
    command.args(["-c", &format!("trap '' XFSZ; ulimit -S -f {}; exec \"$0\" \"$@\"", bytes / 1024)]).arg(trainer()?).args(arguments);
    start_command(command)
}

/// Starts any program as [`start`] does the trainer.
pub fn start_command(mut command: Command) -> Result<Running> {
    let folder = tempfile::tempdir()?;
    let (stdout, stderr) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let child = command
        .stdin(Stdio::null())
        .stdout(File::create(&stdout)?)
        .stderr(File::create(&stderr)?)
        .env_remove("RUST_LOG")
        .env_remove("LD_LIBRARY_PATH")
        .spawn()
        .context("starting the trainer")?;
    Ok(Running { child, stdout, stderr, _folder: folder })
}

/// Runs `lcl-trainer` to its end.
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Finished> {
    start(arguments)?.wait()
}

impl Running {
    /// Waits for its end.
    pub fn wait(mut self) -> Result<Finished> {
        let status = await_condition("the end of the process", || Ok(self.child.try_wait()?))
            .with_context(|| fs::read_to_string(&self.stderr).unwrap_or_default())?;
        Ok(Finished { status, stdout: read(&self.stdout)?, stderr: read(&self.stderr)? })
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// How it has ended, if it has.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    /// Kills it at once, as `kill -9` does, and waits until it is gone.
    pub fn kill(mut self) -> Result<Finished> {
        self.child.kill()?;
        self.wait()
    }

    /// Lifts the limit of [`start_with_file_limit`].
    pub fn allow_file_size(&self) -> Result<()> {
        prlimit(Some(self.pid()?), Resource::Fsize, Rlimit { current: None, maximum: None })?;
        Ok(())
    }

    /// What it has printed to its standard output so far.
    pub fn stdout(&self) -> Result<String> {
        read(&self.stdout)
    }

    /// What it has printed to its standard error so far.
    pub fn stderr(&self) -> Result<String> {
        read(&self.stderr)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Result<Pid> {
        Pid::from_raw(i32::try_from(self.child.id())?).context("the process has no id")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processes that `parent` has started, itself and through others, with their command lines; in the order of their ids.
pub fn descendants(parent: u32) -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    let mut parents = vec![parent];
    while let Some(parent) = parents.pop() {
        // Gone by now: so are its threads.
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads {
            let Ok(children) = fs::read_to_string(thread?.path().join("children")) else { continue };
            for child in children.split_whitespace() {
                let child = child.parse()?;
                let words = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                found.push((child, String::from_utf8_lossy(&words).replace('\0', " ")));
                parents.push(child);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Kills a process at once.
pub fn kill(process: u32) -> Result<()> {
    Ok(kill_process(Pid::from_raw(i32::try_from(process)?).context("no process")?, Signal::KILL)?)
}

/// Whether a process exists, be it only as one whose end nobody has waited for.
#[must_use]
pub fn exists(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

/// Looks at `condition` until it gives something; an error after [`PATIENCE`].
pub fn await_condition<T>(what: &str, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        ensure!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        thread::sleep(POLL);
    }
}

fn read(path: &Path) -> Result<String> {
    let mut text = Vec::new();
    File::open(path)?.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
