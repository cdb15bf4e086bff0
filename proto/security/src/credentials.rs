//! Certificates by path, read again when the files have changed, or as they are given.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{VerifierBuilderError, WebPkiClientVerifier},
};

/// HTTP/2, which is what gRPC speaks.
const PROTOCOL: &[u8] = b"h2";

/// Where the certificates lie, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The own certificate, with those between it and the authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The certificates of the authority.
    pub authority: PathBuf,
}

/// Files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no PEM of the right kind.
    #[error("{} holds no {what} in PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why.
        source: pem::Error,
    },
    /// A certificate of the authority is none.
    #[error("{} holds a certificate that cannot be an authority's", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authority's certificates cannot be used to verify others.
    #[error("{} cannot be used to verify others", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
    /// Certificate and key do not go together.
    #[error("the certificate in {} cannot be used with the key in {}: are they a pair?", certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// Certificates themselves, in PEM.
#[derive(Clone, Debug)]
pub struct CertificateTexts {
    /// The own certificate, with those between it and the authority.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The certificates of the authority.
    pub authority: String,
}

/// Certificates as they lie in their files now, or as they were given.
#[derive(Debug)]
pub struct Credentials {
    /// `None`: they were given.
    files: Option<CertificateFiles>,
    loaded: Mutex<Loaded>,
}

/// What certificates that were given are called in errors.
const GIVEN: &str = "(given)";

#[derive(Clone, Debug)]
struct Loaded {
    /// When the files were written that these were read from.
    written: Written,
    configs: Configs,
}

type Written = [Option<SystemTime>; 3];

/// What either end needs.
#[derive(Clone, Debug)]
pub(crate) struct Configs {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl Credentials {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn read(files: CertificateFiles) -> Result<Self, CredentialsError> {
        // Before the files: what is written in between is read again.
        let written = written(&files);
        let configs = load(&files)?;
        Ok(Self { files: Some(files), loaded: Mutex::new(Loaded { written, configs }) })
    }

    /// Takes certificates as they are. Other ones are other credentials.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub fn given(texts: &CertificateTexts) -> Result<Self, CredentialsError> {
        let path = PathBuf::from(GIVEN);
        let names = CertificateFiles { certificate: path.clone(), key: path.clone(), authority: path };
        let configs = configure(&names, [&texts.certificate, &texts.key, &texts.authority].map(String::as_bytes))?;
        Ok(Self { files: None, loaded: Mutex::new(Loaded { written: Written::default(), configs }) })
    }

    /// Where they lie.
    #[must_use]
    pub const fn files(&self) -> Option<&CertificateFiles> {
        self.files.as_ref()
    }

    /// What the own certificate, and those of the authority, are called in errors.
    pub(crate) fn names(&self) -> (String, String) {
        let name = |path: &Path| path.display().to_string();
        self.files.as_ref().map_or_else(
            || ("what this program was given".to_owned(), "what this program was given".to_owned()),
            |files| (name(&files.certificate), name(&files.authority)),
        )
    }

    /// For the next connection. Files that were changed are read again; when they cannot be used (one may not be written yet), those from
    /// before are used on, and that is logged.
    pub(crate) fn current(&self) -> Configs {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(files) = &self.files else { return loaded.configs.clone() };
        let written = written(files);
        if written != loaded.written {
            match load(files) {
                Ok(configs) => {
                    tracing::info!(certificate = %files.certificate.display(), "certificates have changed and are read again");
                    *loaded = Loaded { written, configs };
                }
                Err(error) => {
                    tracing::warn!("{}; the certificates from before are used on", crate::explain::chain(&error));
                }
            }
        }
        loaded.configs.clone()
    }
}

fn written(files: &CertificateFiles) -> Written {
    let of = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    [of(&files.certificate), of(&files.key), of(&files.authority)]
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    fs::read(path).map_err(|source| CredentialsError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let failed = |source| CredentialsError::Pem { path: path.to_owned(), what: "certificate", source };
    let found: Vec<_> = CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() { Err(failed(pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn load(files: &CertificateFiles) -> Result<Configs, CredentialsError> {
    let texts = [read(&files.certificate)?, read(&files.key)?, read(&files.authority)?];
    configure(files, texts.each_ref().map(Vec::as_slice))
}

/// From the texts of certificate, key and authority, which are called by these names in errors.
fn configure(files: &CertificateFiles, [certificate, key, authority]: [&[u8]; 3]) -> Result<Configs, CredentialsError> {
    let chain = certificates(&files.certificate, certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| CredentialsError::Pem {
        path: files.key.clone(),
        what: "private key",
        source,
    })?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.authority, authority)? {
        roots.add(certificate).map_err(|source| CredentialsError::Authority { path: files.authority.clone(), source })?;
    }
    let roots = Arc::new(roots);
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let pair = |source| CredentialsError::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|source| CredentialsError::Verifier { path: files.authority.clone(), source })?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(pair)?;
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(pair)?;
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Configs { server: Arc::new(server), client: Arc::new(client) })
}
