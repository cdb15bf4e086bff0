//! A server that speaks Google Cloud Storage (fake-gcs-server). It is no Google code: it stands for the interface, not for the store's limits.
//!
//! `scripts/gcs.sh` builds it (`make test` does); `LCL_GCS_BIN` names another. It looks at no credentials: give a process under test
//! [`Server::environment`].

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use object_store::{
    RetryConfig,
    gcp::{GoogleCloudStorage, GoogleCloudStorageBuilder, GoogleConfigKey},
};
use serde_json::json;
use url::form_urlencoded;

use crate::{
    store_process::{StoreProcess, files_of, run, send, use_ring_for_tls},
    workspace,
};

/// The only bucket.
const BUCKET: &str = "data";

/// A running server, which keeps its objects in memory. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: StoreProcess,
}

impl Server {
    /// Starts one with an empty bucket at a free port of the loopback address.
    pub fn start() -> Result<Self> {
        let program = program()?;
        let process = StoreProcess::start("fake-gcs-server", |host, port| {
            let mut command = Command::new(program);
            // The public host is what a client has to name, at whatever port, for requests of the XML kind, which object_store sends.
            command.args(["-scheme", "http", "-backend", "memory", "-host", host, "-port", &port.to_string(), "-public-host", host]);
            command.args(["-log-level", "error"]);
            command
        })?;
        let bucket = Request::post(format!("{}/storage/v1/b?project=tests", process.url()))
            .header("content-type", "application/json")
            .body(json!({"name": BUCKET}).to_string().into())?;
        run(send(bucket))?;
        Ok(Self { process })
    }

    /// Where it listens: host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        self.process.address()
    }

    /// What a process needs in its environment to use the server, or what stands in front of one, at an address such as `http://127.0.0.1:8000`:
    /// the key of an account that asks nobody for a token.
    #[must_use]
    pub fn environment_at(endpoint: &str) -> [(&'static str, String); 2] {
        let key = json!({"gcs_base_url": endpoint, "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""});
        [("GOOGLE_SERVICE_ACCOUNT_KEY", key.to_string()), ("GOOGLE_ALLOW_HTTP", "true".to_owned())]
    }

    /// What a process needs in its environment to use the server.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 2] {
        Self::environment_at(&self.process.url())
    }

    /// The address of what lies under a prefix.
    #[must_use]
    pub fn uri(prefix: &str) -> String {
        format!("gs://{BUCKET}/{prefix}")
    }

    /// A client of the server, or of what stands in front of one, that tries everything once. It is told what [`Self::environment_at`] tells.
    pub fn client_at(endpoint: &str) -> Result<GoogleCloudStorage> {
        use_ring_for_tls();
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let mut builder = GoogleCloudStorageBuilder::new().with_bucket_name(BUCKET).with_retry(retry);
        for (name, value) in Self::environment_at(endpoint) {
            builder = builder.with_config(name.to_ascii_lowercase().parse::<GoogleConfigKey>()?, value);
        }
        Ok(builder.build()?)
    }

    /// Puts an object, or replaces it.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        // Of the two kinds of requests that the store knows, this server takes uploads of the other one only: JSON.
        let name: String = form_urlencoded::byte_serialize(key.as_bytes()).collect();
        let address = format!("{}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={name}", self.process.url());
        run(send(Request::post(address).body(Full::new(bytes.into()))?))
    }

    /// Puts every file of a folder, and of folders in it, at `prefix/` and its path in the folder.
    pub fn put_folder(&self, prefix: &str, folder: &Path) -> Result<()> {
        files_of(prefix, folder)?.into_iter().try_for_each(|(key, bytes)| self.put(&key, bytes))
    }
}

/// The server's program, of the version that its pinned `go.mod` names.
fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("LCL_GCS_BIN") {
        return Ok(path.into());
    }
    let module = fs::read_to_string(workspace().join("tests/gcs/go.mod"))?;
    let version = module.split("github.com/fsouza/fake-gcs-server v").nth(1).and_then(|rest| rest.split_whitespace().next());
    let path = workspace().join(format!(".deps/fake-gcs-server-{}/fake-gcs-server", version.context("go.mod names no fake-gcs-server")?));
    ensure!(path.exists(), "{} is missing: run scripts/gcs.sh, or set LCL_GCS_BIN", path.display());
    Ok(path)
}
