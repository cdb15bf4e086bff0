//! A real S3 server (versitygw) whose objects are files, so that a test reads what a run left in the store as it would on a disk.
//!
//! `scripts/s3.sh` builds it (`make test` does); `LCL_S3_BIN` names another. Every request of `object_store` takes the server's address and
//! the credentials from the environment: give [`Server::environment`] to the process under test.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{process::await_condition, workspace};

/// The only bucket.
const BUCKET: &str = "runs";

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    address: String,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Starts one with an empty bucket at a free port of the loopback address.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let [objects, attributes] = ["objects", "attributes"].map(|name| folder.path().join(name));
        fs::create_dir_all(objects.join(BUCKET))?;
        fs::create_dir_all(&attributes)?;
        // The port is free a moment before; another process could take it, which the server then says.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut process = Command::new(program()?)
            .args(["--access", "user", "--secret", "password", "--port", &address, "posix", "--sidecar"])
            .args([&attributes, &objects])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the S3 server")?;
        let errors = BufReader::new(process.stderr.take().context("no standard error")?);
        thread::spawn(move || errors.lines().map_while(Result::ok).for_each(|line| eprintln!("versitygw: {line}")));
        let mut server = Self { process, address, folder };
        await_condition("the S3 server", || {
            ensure!(server.process.try_wait()?.is_none(), "the S3 server has ended");
            // Looked at many times a second otherwise, while the server starts.
            thread::sleep(Duration::from_millis(20));
            Ok(TcpStream::connect(&server.address).ok())
        })?;
        Ok(server)
    }

    /// What a process needs in its environment to use the server.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", "user".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "password".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// The address of a run's objects.
    #[must_use]
    pub fn uri(run: &str) -> String {
        format!("s3://{BUCKET}/{run}")
    }

    /// Where the objects of a run lie as files.
    #[must_use]
    pub fn objects(&self, run: &str) -> PathBuf {
        self.folder.path().join("objects").join(BUCKET).join(run)
    }
}

/// The server's program, of the version that its pinned `go.mod` names.
fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("LCL_S3_BIN") {
        return Ok(path.into());
    }
    let module = fs::read_to_string(workspace().join("trainer/checkpoint/tests/s3/go.mod"))?;
    let version = module.split("github.com/versity/versitygw v").nth(1).and_then(|rest| rest.split_whitespace().next());
    let path = workspace().join(format!(".deps/versitygw-{}/versitygw", version.context("go.mod names no versitygw")?));
    ensure!(path.exists(), "{} is missing: run scripts/s3.sh, or set LCL_S3_BIN", path.display());
    Ok(path)
}
