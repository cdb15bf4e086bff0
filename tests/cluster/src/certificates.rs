//! One authority for a cluster, and what its parts show each other.

use std::{fs, io, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// The authority's certificate and key cannot be made or written.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Making one.
    #[error("making the certificate of {name}")]
    Make {
        /// Whose.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// Writing one.
    #[error("writing {file}")]
    Write {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
}

/// The authority of one cluster.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its key, as PEM.
pub(crate) struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    pub(crate) fn new() -> Result<Self, CertificateError> {
        let failed = |source| CertificateError::Make { name: "the authority".to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = name("lcl-test-ca", None);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = parameters.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { issuer: Issuer::new(parameters, key), certificate })
    }

    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for `common_name`, a member of `group`, valid under `hosts`.
    pub(crate) fn issue(&self, common_name: &str, group: Option<&str>, hosts: &[&str]) -> Result<Identity, CertificateError> {
        let failed = |source| CertificateError::Make { name: common_name.to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut parameters = CertificateParams::new(hosts).map_err(failed)?;
        parameters.distinguished_name = name(common_name, group);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }

    /// A kubeconfig with everything inside.
    pub(crate) fn kubeconfig(&self, server: &str, identity: &Identity) -> String {
        let encode = |text: &str| BASE64_STANDARD.encode(text);
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lcl", "cluster": {"server": server, "certificate-authority-data": encode(&self.certificate)}}],
            "users": [{"name": "lcl", "user": {
                "client-certificate-data": encode(&identity.certificate),
                "client-key-data": encode(&identity.key),
            }}],
            "contexts": [{"name": "lcl", "context": {"cluster": "lcl", "user": "lcl"}}],
            "current-context": "lcl",
        })
        .to_string()
    }
}

impl Identity {
    /// Writes `<folder>/<name>.crt` and `.key`.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Result<(), CertificateError> {
        write(folder, &format!("{name}.crt"), &self.certificate)?;
        write(folder, &format!("{name}.key"), &self.key)
    }
}

/// The key that signs the tokens of service accounts: `<folder>/sa.key` and `sa.pub`.
pub(crate) fn write_token_key(folder: &Path) -> Result<(), CertificateError> {
    let key = KeyPair::generate().map_err(|source| CertificateError::Make { name: "the tokens' key".to_owned(), source })?;
    write(folder, "sa.key", &key.serialize_pem())?;
    write(folder, "sa.pub", &key.public_key_pem())
}

pub(crate) fn write(folder: &Path, file: &str, text: &str) -> Result<(), CertificateError> {
    fs::write(folder.join(file), text).map_err(|source| CertificateError::Write { file: file.to_owned(), source })
}

fn name(common_name: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, common_name);
    name
}
