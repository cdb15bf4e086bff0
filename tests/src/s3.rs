//! A real S3 server (versitygw) whose objects are files, so that a test reads what a run left in the store as it would on a disk.
//!
//! `scripts/s3.sh` builds it (`make test` does); `LCL_S3_BIN` names another. Every request of `object_store` takes the server's address and
//! the credentials from the environment: give [`Server::environment`] to the process under test.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use object_store::{
    RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
};
use tempfile::TempDir;

use crate::{
    store_process::{StoreProcess, files_of, put_all, use_ring_for_tls},
    workspace,
};

/// The only bucket.
const BUCKET: &str = "runs";
const USER: &str = "user";
const PASSWORD: &str = "password";
const REGION: &str = "us-east-1";

/// A running server. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: StoreProcess,
    folder: TempDir,
}

impl Server {
    /// Starts one with an empty bucket at a free port of the loopback address.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let [objects, attributes] = ["objects", "attributes"].map(|name| folder.path().join(name));
        fs::create_dir_all(objects.join(BUCKET))?;
        fs::create_dir_all(&attributes)?;
        let program = program()?;
        let process = StoreProcess::start("versitygw", |host, port| {
            let mut command = Command::new(program);
            let address = format!("{host}:{port}");
            command.args(["--access", USER, "--secret", PASSWORD, "--port", &address, "posix", "--sidecar"]).args([&attributes, &objects]);
            command
        })?;
        Ok(Self { process, folder })
    }

    /// Where it listens: host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        self.process.address()
    }

    /// What a process needs in its environment to use the server.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 5] {
        Self::environment_at(&self.process.url())
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
        use_ring_for_tls();
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
        put_all(&Self::client_at(&self.process.url())?, [(key.to_owned(), bytes.into())])
    }

    /// Puts every file of a folder, and of folders in it, at `prefix/` and its path in the folder.
    pub fn put_folder(&self, prefix: &str, folder: &Path) -> Result<()> {
        put_all(&Self::client_at(&self.process.url())?, files_of(prefix, folder)?)
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
