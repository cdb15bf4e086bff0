//! A server that speaks Azure Blob Storage: Microsoft's Azurite.
//!
//! `scripts/azurite.sh` fetches it (`make test` does); `LCL_AZURITE_BIN` names another. Give a process under test [`Server::environment`].

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
    azure::{AzureAccessKey, AzureAuthorizer, AzureConfigKey, AzureCredential, MicrosoftAzure, MicrosoftAzureBuilder},
    client::HttpRequestBody,
};

use crate::{
    store_process::{StoreProcess, files_of, put_all, run, send, use_ring_for_tls},
    workspace,
};

/// The only container.
const CONTAINER: &str = "data";
/// Azurite's account, which is part of every path, and its published key.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running server, which keeps its objects in memory. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    process: StoreProcess,
}

impl Server {
    /// Starts one with an empty container at a free port of the loopback address.
    pub fn start() -> Result<Self> {
        let program = program()?;
        let process = StoreProcess::start("azurite-blob", |host, port| {
            let mut command = Command::new(program);
            command.args(["--blobHost", host, "--blobPort", &port.to_string(), "--inMemoryPersistence", "--silent", "--disableTelemetry"]);
            // Clients may be newer than it.
            command.arg("--skipApiVersionCheck");
            command
        })?;
        run(create_container(&process.url()))?;
        Ok(Self { process })
    }

    /// Where it listens: host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        self.process.address()
    }

    /// What a process needs in its environment to use the server, or what stands in front of one, at an address such as `http://127.0.0.1:8000`.
    #[must_use]
    pub fn environment_at(endpoint: &str) -> [(&'static str, String); 4] {
        [
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY.to_owned()),
            ("AZURE_STORAGE_ENDPOINT", format!("{endpoint}/{ACCOUNT}")),
            ("AZURE_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// What a process needs in its environment to use the server.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 4] {
        Self::environment_at(&self.process.url())
    }

    /// The address of what lies under a prefix.
    #[must_use]
    pub fn uri(prefix: &str) -> String {
        format!("az://{CONTAINER}/{prefix}")
    }

    /// A client of the server, or of what stands in front of one, that tries everything once. It is told what [`Self::environment_at`] tells.
    pub fn client_at(endpoint: &str) -> Result<MicrosoftAzure> {
        use_ring_for_tls();
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let mut builder = MicrosoftAzureBuilder::new().with_container_name(CONTAINER).with_retry(retry);
        for (name, value) in Self::environment_at(endpoint) {
            builder = builder.with_config(name.to_ascii_lowercase().parse::<AzureConfigKey>()?, value);
        }
        Ok(builder.build()?)
    }

    /// Puts an object, or replaces it.
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> Result<()> {
        put_all(&Self::client_at(&self.process.url())?, [(key.to_owned(), bytes.into())])
    }

    /// Puts every file of a folder, and of folders in it, at `prefix/` and its path in the folder.
    pub fn put_folder(&self, prefix: &str, folder: &Path) -> Result<()> {
        put_all(&Self::client_at(&self.process.url())?, files_of(prefix, folder)?)
    }
}

async fn create_container(url: &str) -> Result<()> {
    let container = format!("{url}/{ACCOUNT}/{CONTAINER}?restype=container");
    let mut request = Request::put(container).header("content-length", 0).body(HttpRequestBody::empty())?;
    let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(KEY)?);
    AzureAuthorizer::new(&credential, ACCOUNT).try_authorize(&mut request)?;
    send(request.map(|_| Full::default())).await
}

/// The server's program, of the version that its pinned `package.json` names.
fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("LCL_AZURITE_BIN") {
        return Ok(path.into());
    }
    let package: serde_json::Value = serde_json::from_slice(&fs::read(workspace().join("tests/azurite/package.json"))?)?;
    let version = package["dependencies"]["azurite"].as_str().context("package.json names no azurite")?;
    let path = workspace().join(format!(".deps/azurite-{version}/node_modules/.bin/azurite-blob"));
    ensure!(path.exists(), "{} is missing: run scripts/azurite.sh, or set LCL_AZURITE_BIN", path.display());
    Ok(path)
}
