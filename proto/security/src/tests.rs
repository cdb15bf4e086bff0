use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::*;

struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap().pem();
        Self(Issuer::new(parameters, key), certificate)
    }

    /// Writes a pair and the authority, all with this time of writing.
    fn write(&self, folder: &Path, written: SystemTime) -> CertificateFiles {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            fs::File::options().append(true).open(&path).unwrap().set_modified(written).unwrap();
            path
        };
        CertificateFiles {
            certificate: write("tls.crt", &certificate.pem()),
            key: write("tls.key", &key.serialize_pem()),
            authority: write("ca.crt", &self.1),
        }
    }
}

#[test]
fn protection_has_to_be_said_and_said_once() {
    let folder = TempDir::new().unwrap();
    let CertificateFiles { certificate, key, authority } = Authority::new().write(folder.path(), SystemTime::now());
    let check = |insecure, given: [bool; 3], expected: Option<&str>| {
        let [certificate, key, authority] =
            [(&certificate, given[0]), (&key, given[1]), (&authority, given[2])].map(|(path, given)| given.then(|| path.clone()));
        let chosen = Security::choose(insecure, certificate, key, authority);
        match (chosen, expected) {
            (Ok(security), None) => assert_eq!(security.files().is_some(), !insecure),
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            other => panic!("{given:?}: {other:?}"),
        }
    };
    check(true, [false; 3], None);
    check(false, [true; 3], None);
    check(false, [false; 3], Some("say how the wire is protected"));
    check(true, [true, false, false], Some("contradict"));
    check(false, [false, true, true], Some("--tls-certificate is missing"));
    check(false, [true, false, true], Some("--tls-key is missing"));
    check(false, [true, true, false], Some("--tls-ca is missing"));
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let folder = TempDir::new().unwrap();
    let files = Authority::new().write(folder.path(), SystemTime::now());
    let check = |files: CertificateFiles, expected: &str| {
        let error = Credentials::read(files).unwrap_err();
        let text = explain::chain(&error);
        assert!(text.contains(expected), "{text}");
    };
    check(CertificateFiles { certificate: folder.path().join("none.crt"), ..files.clone() }, "none.crt");
    check(CertificateFiles { key: files.certificate.clone(), ..files.clone() }, "tls.crt holds no private key in PEM");
    check(CertificateFiles { authority: files.key.clone(), ..files.clone() }, "tls.key holds no certificate in PEM");
    let other = TempDir::new().unwrap();
    let foreign = Authority::new().write(other.path(), SystemTime::now());
    check(CertificateFiles { key: foreign.key, ..files }, "are they a pair?");
}

#[test]
fn changed_files_are_read_for_the_next_connection_and_half_written_ones_are_not_used() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let files = authority.write(folder.path(), begin);
    let credentials = Credentials::read(files.clone()).unwrap();
    let first = credentials.current();
    assert!(Arc::ptr_eq(&first.client, &credentials.current().client), "nothing has changed");
    fs::write(&files.key, "half").unwrap();
    assert!(Arc::ptr_eq(&first.client, &credentials.current().client));
    authority.write(folder.path(), begin + Duration::from_secs(1));
    let second = credentials.current();
    assert!(!Arc::ptr_eq(&first.client, &second.client) && !Arc::ptr_eq(&first.server, &second.server));
}
