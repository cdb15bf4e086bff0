//! The certificates of all jobs, from one secret of the operator's.
//!
//! Comes in: the secret, a job's uid, the time. Goes out: what the job's pods mount, and what the operator shows to its coordinator. Every
//! job has an authority of its own, so that the wire of one refuses the pods of another. All keys are derived from the secret and the job's
//! uid, and certificates change only with the period they are for: so nothing has to be read back, the same certificates are made again
//! after a restart, and what is applied twice changes nothing. The operator's own key for a job never leaves its process, and the
//! authority's neither: who reads a job's Secret can be a member or a coordinator of this job, and nobody else.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, api::PostParams};
use lcl_operator_core::build::{AUTHORITY_FILE, COORDINATOR_PAIR, PairFiles, WORKER_PAIR};
use lcl_security::{CertificateTexts, Credentials, CredentialsError, MEMBER_NAME, OPERATOR_NAME, SERVER_NAME, Security};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    SerialNumber,
};
use ring::{
    hkdf,
    rand::{SecureRandom, SystemRandom},
};
use thiserror::Error;

use crate::category::{Categorized, Category};

/// Key of the secret in its `Secret`.
const SEED: &str = "seed";
/// Bytes of the secret: as many as the keys have that are derived from it.
const SEED_BYTES: usize = 32;
/// Bytes of a fingerprint: enough for the installations of a cluster.
const FINGERPRINT_BYTES: usize = 8;
/// Certificates change so often.
const PERIOD: Duration = Duration::from_hours(24 * 30);
/// They hold for three periods: an operator that is away for two months leaves no job without.
const VALID: SignedDuration = SignedDuration::from_hours(24 * 90);
/// They hold from before their period on: clocks of nodes differ.
const SLACK: SignedDuration = SignedDuration::from_hours(24);
/// How an Ed25519 key of 32 bytes is written as PKCS #8.
const PKCS8_HEAD: [u8; 16] = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Certificates cannot be made.
#[derive(Debug, Error)]
pub(crate) enum AuthorityError {
    /// One of them.
    #[error("making the certificate of {name}: {source}")]
    Make {
        /// Whose.
        name: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// What was made cannot be used.
    #[error("using the certificate of {name}: {source}")]
    Use {
        /// Whose.
        name: &'static str,
        /// Why.
        source: Box<CredentialsError>,
    },
    /// The time is out of all bounds.
    #[error("the clock says {now}, for which no certificate can be made")]
    Time {
        /// The time.
        now: Timestamp,
    },
}

impl Categorized for AuthorityError {
    fn category(&self) -> Category {
        match self {
            Self::Make { .. } | Self::Use { .. } | Self::Time { .. } => Category::Certificates,
        }
    }
}

/// Makes the certificates of all jobs.
pub(crate) struct Authority {
    secret: hkdf::Prk,
    fingerprint: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// From the secret in a `Secret` of the operator's namespace, which is made if it is not there.
    pub(crate) async fn open(client: Client, namespace: &str, name: &str) -> Result<Self> {
        let api = Api::<Secret>::namespaced(client, namespace);
        let read = || async { api.get_opt(name).await.with_context(|| format!("reading the Secret {namespace}/{name}")) };
        if read().await?.is_none() {
            Self::make(&api, namespace, name).await?;
        }
        let stored = read().await?.with_context(|| format!("the Secret {namespace}/{name} is gone again"))?;
        let seed = stored.data.unwrap_or_default().remove(SEED).map(|ByteString(seed)| seed).unwrap_or_default();
        ensure!(
            seed.len() >= SEED_BYTES,
            "the Secret {namespace}/{name} has no key `{SEED}` of {SEED_BYTES} bytes or more: delete it to have it made, or name another"
        );
        Ok(Self::new(&seed))
    }

    /// Makes the secret, unless another replica is faster.
    async fn make(api: &Api<Secret>, namespace: &str, name: &str) -> Result<()> {
        let mut seed = vec![0; SEED_BYTES];
        SystemRandom::new().fill(&mut seed).ok().context("this machine gives no random numbers")?;
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let data = Some(BTreeMap::from([(SEED.to_owned(), ByteString(seed))]));
        let secret = Secret { metadata, data, immutable: Some(true), ..Secret::default() };
        match api.create(&PostParams::default(), &secret).await {
            Ok(_) => tracing::info!(namespace, name, "made the secret that the certificates of jobs come from"),
            Err(kube::Error::Api(answer)) if answer.code == 409 => {}
            Err(error) => return Err(error).with_context(|| format!("creating the Secret {namespace}/{name}")),
        }
        Ok(())
    }

    fn new(seed: &[u8]) -> Self {
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"lcl.dev/jobs").extract(seed);
        let mut bytes = [0; SEED_BYTES];
        // The length is that of the algorithm: it cannot be too long.
        let _ = secret.expand(&[b"fingerprint"], hkdf::HKDF_SHA256).and_then(|expanded| expanded.fill(&mut bytes));
        let fingerprint = bytes.iter().take(FINGERPRINT_BYTES).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        Self { secret, fingerprint }
    }

    /// By which one installation's authority is told from another's. Says nothing of the secret.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// When the certificates of now are no longer valid. Another end means other certificates.
    pub(crate) fn expiry(now: Timestamp) -> Timestamp {
        begin_of_period(now).and_then(|begin| begin.checked_add(VALID).ok()).unwrap_or(Timestamp::MAX)
    }

    /// What a job's pods mount, by file name.
    pub(crate) fn files(&self, uid: &str, now: Timestamp) -> Result<BTreeMap<String, ByteString>, AuthorityError> {
        let job = self.of_job(uid, now)?;
        let mut files = BTreeMap::from([(AUTHORITY_FILE.to_owned(), ByteString(job.certificate.clone().into_bytes()))]);
        for (PairFiles { certificate, key }, name) in [(COORDINATOR_PAIR, SERVER_NAME), (WORKER_PAIR, MEMBER_NAME)] {
            let texts = job.issue(name)?;
            files.insert(certificate.to_owned(), ByteString(texts.certificate.into_bytes()));
            files.insert(key.to_owned(), ByteString(texts.key.into_bytes()));
        }
        Ok(files)
    }

    /// What the operator shows to a job's coordinator.
    pub(crate) fn operator(&self, uid: &str, now: Timestamp) -> Result<Security, AuthorityError> {
        let texts = self.of_job(uid, now)?.issue(OPERATOR_NAME)?;
        let credentials =
            Credentials::given(&texts).map_err(|source| AuthorityError::Use { name: OPERATOR_NAME, source: source.into() })?;
        Ok(Security::MutualTls(credentials.into()))
    }

    fn of_job(&self, uid: &str, now: Timestamp) -> Result<JobAuthority<'_>, AuthorityError> {
        let name = "the authority";
        let begin = begin_of_period(now).ok_or(AuthorityError::Time { now })?;
        let key = self.key(uid, name)?;
        let mut parameters = parameters(name, begin).map_err(|source| AuthorityError::Make { name, source })?;
        parameters.distinguished_name.push(DnType::OrganizationalUnitName, uid);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = parameters.self_signed(&key).map_err(|source| AuthorityError::Make { name, source })?.pem();
        Ok(JobAuthority { authority: self, uid: uid.to_owned(), begin, certificate, issuer: Issuer::new(parameters, key) })
    }

    /// A key that nobody can tell who does not know the secret.
    fn key(&self, uid: &str, name: &'static str) -> Result<KeyPair, AuthorityError> {
        let info = [uid.as_bytes(), b"/", name.as_bytes()];
        let mut pkcs8 = PKCS8_HEAD.to_vec();
        let mut key = [0; SEED_BYTES];
        // The length is that of the algorithm: it cannot be too long.
        let _ = self.secret.expand(&info, hkdf::HKDF_SHA256).and_then(|expanded| expanded.fill(&mut key));
        pkcs8.extend(key);
        KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.as_slice().into(), &PKCS_ED25519)
            .map_err(|source| AuthorityError::Make { name, source })
    }
}

/// The authority of one job.
struct JobAuthority<'a> {
    authority: &'a Authority,
    uid: String,
    begin: Timestamp,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl JobAuthority<'_> {
    fn issue(&self, name: &'static str) -> Result<CertificateTexts, AuthorityError> {
        let failed = |source| AuthorityError::Make { name, source };
        let key = self.authority.key(&self.uid, name)?;
        let mut parameters = parameters(name, self.begin).map_err(failed)?;
        parameters.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into().map_err(failed)?)];
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(CertificateTexts { certificate, key: key.serialize_pem(), authority: self.certificate.clone() })
    }
}

fn parameters(name: &str, begin: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.serial_number = Some(SerialNumber::from(begin.as_second().unsigned_abs()));
    parameters.not_before = offset(begin.checked_sub(SLACK).unwrap_or(begin));
    parameters.not_after = offset(begin.checked_add(VALID).unwrap_or(begin));
    Ok(parameters)
}

fn offset(time: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(time.as_second()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn begin_of_period(now: Timestamp) -> Option<Timestamp> {
    let period = i64::try_from(PERIOD.as_secs()).ok()?;
    Timestamp::from_second(now.as_second().div_euclid(period) * period).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn authority() -> Authority {
        Authority::new(&[7; SEED_BYTES])
    }

    fn after(hours: i64) -> Timestamp {
        NOW.checked_add(SignedDuration::from_hours(hours)).expect("a time")
    }

    #[test]
    fn the_same_certificates_are_made_again_until_the_period_is_over_and_their_keys_stay() {
        let first = authority().files("uid", NOW).expect("certificates");
        assert_eq!(first.keys().collect::<Vec<_>>(), ["ca.crt", "coordinator.crt", "coordinator.key", "worker.crt", "worker.key"]);
        assert_eq!(authority().files("uid", NOW).expect("the same"), first);
        let later = authority().files("uid", after(24 * 30)).expect("others");
        for (name, text) in &first {
            assert_eq!(later[name] == *text, [COORDINATOR_PAIR.key, WORKER_PAIR.key].contains(&name.as_str()), "{name}");
        }
        let left = Authority::expiry(NOW).duration_since(NOW);
        assert!(left > SignedDuration::from_hours(24 * 59) && left <= VALID, "{left:?}");
        assert!(Authority::expiry(after(24 * 30)) > Authority::expiry(NOW));
    }

    #[test]
    fn jobs_and_installations_share_no_key_and_nobody_gets_the_operators() {
        let [own, other_job, other_seed] = [(authority(), "a"), (authority(), "b"), (Authority::new(&[8; SEED_BYTES]), "a")]
            .map(|(authority, uid)| authority.files(uid, NOW).expect("certificates"));
        assert_eq!(authority().fingerprint(), authority().fingerprint());
        assert_ne!(authority().fingerprint(), Authority::new(&[8; SEED_BYTES]).fingerprint());
        for (name, text) in &own {
            assert!(other_job[name] != *text && other_seed[name] != *text, "{name}");
        }
        let operator = authority().of_job("a", NOW).and_then(|job| job.issue(OPERATOR_NAME)).expect("a certificate");
        assert!(own.values().all(|ByteString(text)| *text != operator.key.as_bytes() && *text != operator.certificate.as_bytes()));
        let own_key = authority().key("a", "the authority").expect("a key").serialize_pem();
        assert!(own.values().all(|ByteString(text)| *text != own_key.as_bytes()), "the authority's key is nobody's");
    }

    /// The real handshake, between what pods mount and what the operator shows.
    #[tokio::test]
    async fn the_wire_of_a_job_takes_its_own_members_and_the_operator_and_refuses_those_of_another() {
        let text = |files: &BTreeMap<String, ByteString>, name: &str| String::from_utf8(files[name].0.clone()).expect("a text");
        let now = Timestamp::now();
        let mounted = |uid: &str, pair| {
            let files = authority().files(uid, now).expect("certificates");
            let texts = CertificateTexts {
                certificate: text(&files, pair),
                key: text(&files, &pair.replace(".crt", ".key")),
                authority: text(&files, AUTHORITY_FILE),
            };
            Security::MutualTls(Credentials::given(&texts).expect("credentials").into())
        };
        let shake = async |client: Security| {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let server = mounted("a", COORDINATOR_PAIR.certificate);
            let accepting = tokio::spawn(async move {
                let (io, _) = listener.accept().await.expect("a connection");
                lcl_security::accept(io, &server).await.map(|connection| connection.caller())
            });
            let mut connector = lcl_security::Connector::new(client);
            let uri = format!("http://{address}").parse().expect("a URI");
            let connected = tower::Service::call(&mut connector, uri).await;
            let caller = accepting.await.expect("no panic");
            drop(connected);
            caller
        };
        let member = shake(mounted("a", WORKER_PAIR.certificate)).await.expect("its own");
        assert!(member.is(MEMBER_NAME) && !member.is(OPERATOR_NAME), "{member:?}");
        let operator = shake(authority().operator("a", now).expect("credentials")).await.expect("the operator");
        assert!(operator.is(OPERATOR_NAME) && !operator.is(MEMBER_NAME), "{operator:?}");
        for stranger in [mounted("b", WORKER_PAIR.certificate), authority().operator("b", now).expect("credentials")] {
            let refused = shake(stranger).await.expect_err("another job's");
            // Whoever looks first.
            assert!(["unknown_authority", "refused_by_peer"].contains(&refused.category), "{refused:?}");
        }
    }
}
