//! How the wire between coordinator, members and operator is protected: mutual TLS with certificates of one authority of the job, or, when
//! that is said, not at all.
//!
//! Comes in: paths of files, connections. Goes out: connections whose other end is known to have a certificate of the authority, and
//! errors that name the peer, the file and what to do. Files that change are read again for the next connection.
//! It knows nothing of gRPC or of what travels on the wire.

mod credentials;
mod explain;
mod handshake;
mod listen;

use std::{path::PathBuf, sync::Arc};

pub use credentials::{CertificateFiles, CertificateTexts, Credentials, CredentialsError};
pub use handshake::{Connection, Connector, Refused, Tcp, Transport, accept};
pub use listen::listen;

/// The name that a coordinator's certificate must hold, whatever its address: pods are reached by IP.
pub const SERVER_NAME: &str = "lcl-coordinator";

/// The name in a member's certificate: it may attach.
pub const MEMBER_NAME: &str = "lcl-member";
/// The name in the operator's certificate: it may command.
pub const OPERATOR_NAME: &str = "lcl-operator";

/// Who is at the other end of a server's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody was asked: the wire is not protected.
    Anybody,
    /// Somebody whose certificate bears these names.
    Named(Vec<String>),
}

impl Caller {
    /// Whether it may do what is for the bearer of a name.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        match self {
            Self::Anybody => true,
            Self::Named(names) => names.iter().any(|own| own == name),
        }
    }
}

/// How connections are protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// Not at all: whoever reaches the port can take part. Has to be asked for by name.
    Insecure,
    /// Both ends show a certificate of the same authority.
    MutualTls(Arc<Credentials>),
}

/// Settings that say nothing clear about protection.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// Neither certificates nor their absence.
    #[error("say how the wire is protected: --tls-certificate, --tls-key and --tls-ca, or --insecure")]
    Unsaid,
    /// Both.
    #[error("--insecure and certificates contradict each other: give one of them")]
    Contradiction,
    /// Some of the three files.
    #[error("--tls-certificate, --tls-key and --tls-ca belong together: {missing} is missing")]
    Incomplete {
        /// The first that is not given.
        missing: &'static str,
    },
    /// The files cannot be used.
    #[error("using the certificates")]
    Credentials(#[from] CredentialsError),
}

impl Security {
    /// From the command line.
    ///
    /// # Errors
    /// See [`SecurityError`].
    pub fn choose(
        insecure: bool,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        authority: Option<PathBuf>,
    ) -> Result<Self, SecurityError> {
        match (insecure, certificate, key, authority) {
            (true, None, None, None) => Ok(Self::Insecure),
            (true, ..) => Err(SecurityError::Contradiction),
            (false, None, None, None) => Err(SecurityError::Unsaid),
            (false, Some(certificate), Some(key), Some(authority)) => {
                let credentials = Credentials::read(CertificateFiles { certificate, key, authority })?;
                Ok(Self::MutualTls(Arc::new(credentials)))
            }
            (false, None, ..) => Err(SecurityError::Incomplete { missing: "--tls-certificate" }),
            (false, _, None, _) => Err(SecurityError::Incomplete { missing: "--tls-key" }),
            (false, .., None) => Err(SecurityError::Incomplete { missing: "--tls-ca" }),
        }
    }

    /// The files, if there are any: for processes that start others.
    #[must_use]
    pub fn files(&self) -> Option<&CertificateFiles> {
        match self {
            Self::Insecure => None,
            Self::MutualTls(credentials) => credentials.files(),
        }
    }
}

#[cfg(test)]
mod tests;
