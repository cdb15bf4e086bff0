//! A real S3 server (versitygw) whose objects are files, so that a test reads what a run left in the store as it would on a disk.
//!
//! `scripts/s3.sh` builds it (`make test` does); `LCL_S3_BIN` names another. Every request of `object_store` takes the server's address and
//! the credentials from the environment: give [`Server::environment`] to the process under test.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use object_store::{
    ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
};
use tempfile::TempDir;

use crate::{process::await_condition, workspace};

/// The only bucket.
const BUCKET: &str = "runs";
const USER: &str = "user";
const PASSWORD: &str = "password";
const REGION: &str = "us-east-1";

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
            .args(["--access", USER, "--secret", PASSWORD, "--port", &address, "posix", "--sidecar"])
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

    /// Where it listens: host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What a process needs in its environment to use the server.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 5] {
        Self::environment_at(&format!("http://{}", self.address))
    }

    /// The same through what stands in front of a server, at an address such as `http://127.0.0.1:8000`.
    #[must_use]
    pub fn environment_at(endpoint: &str) -> [(&'static str, String); 5] {
        [
            ("AWS_ACCESS_KEY_ID", USER.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", PASSWORD.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ENDPOINT", endpoint.to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// A client of the server, or of what stands in front of one, that tries everything once.
    pub fn client_at(endpoint: &str) -> Result<AmazonS3> {
        // A provider that the program has chosen before is kept.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(AmazonS3Builder::new()
            .with_access_key_id(USER)
            .with_secret_access_key(PASSWORD)
            .with_region(REGION)
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()?)
    }

    /// Puts an object, or replaces it, as a client does: it gets an `ETag`, which a file laid into [`Self::objects`] has not.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        self.put_all([(key.to_owned(), bytes.into())])
    }

    /// Puts every file of a folder, and of folders in it, at `prefix/` and its path in the folder.
    pub fn put_folder(&self, prefix: &str, folder: &Path) -> Result<()> {
        let mut objects = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).with_context(|| format!("reading {}", next.display()))? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let name = path.strip_prefix(folder)?.to_str().context("a file's name is no UTF-8")?;
                    objects.push((format!("{prefix}/{name}"), fs::read(&path)?.into()));
                }
            }
        }
        self.put_all(objects)
    }

    fn put_all(&self, objects: impl IntoIterator<Item = (String, Bytes)> + Send) -> Result<()> {
        let client = Self::client_at(&format!("http://{}", self.address))?;
        let work = || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            objects.into_iter().try_for_each(|(key, bytes)| {
                runtime.block_on(client.put(&key.as_str().into(), bytes.into())).with_context(|| format!("putting {key}"))?;
                Ok(())
            })
        };
        // A thread that runs async code must not wait for other async code.
        thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("putting objects panicked"))?
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
