//! Opening the store that a URI names.

use std::{sync::Arc, time::Duration};

use object_store::{
    ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder,
    http::HttpBuilder, path::Path,
};
use url::Url;

/// Time for a connection. One that takes longer is lost: a store in the same region answers within milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URI names no place in a store.
    #[error("{problem}")]
    Uri {
        /// What is wrong with it.
        problem: String,
    },
    /// What the environment says of credentials and endpoint cannot be used.
    #[error("the environment's {variables} do not fit")]
    Access {
        /// Which variables are read.
        variables: &'static str,
        /// The store's error.
        source: object_store::Error,
    },
}

/// How long a request may take, and how often it is tried.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// As the library has it: ten attempts within three minutes, and half a minute for one.
    Library,
    /// For reading much: a body may take as long as it comes, and an attempt ends when for so long nothing does.
    Reading {
        /// Longest silence.
        silence: Duration,
        /// Most further attempts.
        retries: usize,
    },
}

/// Opens the store of a URI, and gives the path in it. Nothing is contacted yet.
///
/// Credentials and endpoints come from the environment: `AWS_*`, `GOOGLE_*`, `AZURE_*` as `object_store` reads them.
pub fn open_store(uri: &str, patience: Patience) -> Result<(Arc<dyn ObjectStore>, Path), OpenError> {
    let problem = |problem: String| OpenError::Uri { problem };
    let url = Url::parse(uri).map_err(|error| problem(format!("{error}: write a URI such as s3://bucket/a")))?;
    if !super::SCHEMES.contains(&url.scheme()) {
        return Err(problem(format!("scheme `{}` is not supported: use file, s3, gs or az", url.scheme())));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(problem(format!("names no bucket: write {}://bucket/folder", url.scheme())));
    }
    let path = Path::from_url_path(url.path()).map_err(|error| problem(error.to_string()))?;
    use_ring_for_tls();
    let access = |variables| move |source| OpenError::Access { variables, source };
    let (options, retry) = patience.settings();
    let store: Arc<dyn ObjectStore> = match url.scheme() {
        "s3" => {
            let builder = AmazonS3Builder::from_env().with_url(uri).with_retry(retry);
            Arc::new(with_options(builder, options, AmazonS3Builder::with_client_options).build().map_err(access("AWS_*"))?)
        }
        "gs" => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(uri).with_retry(retry);
            Arc::new(with_options(builder, options, GoogleCloudStorageBuilder::with_client_options).build().map_err(access("GOOGLE_*"))?)
        }
        "az" => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(uri).with_retry(retry);
            Arc::new(with_options(builder, options, MicrosoftAzureBuilder::with_client_options).build().map_err(access("AZURE_*"))?)
        }
        _ => {
            let builder = HttpBuilder::new().with_url(url[..url::Position::BeforePath].to_owned()).with_retry(retry);
            let options = options.unwrap_or_default().with_allow_http(true);
            Arc::new(builder.with_client_options(options).build().map_err(access("proxies"))?)
        }
    };
    Ok((store, path))
}

/// Options replace what the environment has said of the client, so they are set only where they differ from the library's.
fn with_options<B>(builder: B, options: Option<ClientOptions>, set: impl FnOnce(B, ClientOptions) -> B) -> B {
    match options {
        // `AWS_ALLOW_HTTP` and its kin are options of the client too.
        Some(options) => set(builder, if allows_http() { options.with_allow_http(true) } else { options }),
        None => builder,
    }
}

/// Whether the environment lets credentials travel unencrypted, as object stores in tests and within a cluster have it.
fn allows_http() -> bool {
    let says_so = |name| std::env::var(name).is_ok_and(|value| matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | "yes"));
    ["AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "ALLOW_HTTP"].into_iter().any(says_so)
}

impl Patience {
    fn settings(self) -> (Option<ClientOptions>, RetryConfig) {
        match self {
            Self::Library => (None, RetryConfig::default()),
            Self::Reading { silence, retries } => {
                let options = ClientOptions::new().with_timeout_disabled().with_read_timeout(silence).with_connect_timeout(CONNECT_TIMEOUT);
                (Some(options), RetryConfig { max_retries: retries, retry_timeout: silence * 3, ..RetryConfig::default() })
            }
        }
    }
}

/// reqwest is built without a TLS of its own. A provider that the program has chosen before is kept.
fn use_ring_for_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
