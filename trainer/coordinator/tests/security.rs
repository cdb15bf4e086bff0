//! Mutual TLS between the real server and real clients: who gets in, who does not, and what either end says about it.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use lcl_coordinator::{
    CertificateFiles, ClientOptions, Commands, Credentials, MEMBER_NAME, MemberClient, Metrics, OPERATOR_NAME, SERVER_NAME, Security,
    serve_with,
};
use lcl_proto::v1alpha1::{CommandRequest, ToCoordinator, WatchRequest, command_request, coordinator_client::CoordinatorClient};
use lcl_protocol::{CoordinatorSettings, Identity, Incarnation, MemberCommand, MemberName, MemberSettings, World};
use lcl_security::Connector;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime};
use tracing_subscriber::fmt::MakeWriter;

/// The longest anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    /// The same authority with a certificate of another time, as a renewal makes it.
    fn renewed(&self) -> Self {
        let key = KeyPair::from_pem(&self.issuer.key().serialize_pem()).unwrap();
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, "of a job");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.not_before = date_time_ymd(2021, 1, 1);
        let certificate = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    /// A pair for this name in files of this folder, and the authority that its owner trusts.
    fn issue(&self, folder: &Path, name: &str, has_expired: bool, trusted: &Self) -> CertificateFiles {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if has_expired {
            parameters.not_before = date_time_ymd(2020, 1, 1);
            parameters.not_after = date_time_ymd(2021, 1, 1);
        }
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap().pem();
        fs::create_dir_all(folder).unwrap();
        let write = |file: &str, text: &str| {
            let path = folder.join(file);
            fs::write(&path, text).unwrap();
            path
        };
        CertificateFiles {
            certificate: write("tls.crt", &certificate),
            key: write("tls.key", &key.serialize_pem()),
            authority: write("ca.crt", &trusted.certificate),
        }
    }
}

fn tls(files: CertificateFiles) -> Security {
    Security::MutualTls(Arc::new(Credentials::read(files).unwrap()))
}

/// What is logged in this process, on all threads.
#[derive(Clone)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Self(Arc::default());
            tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).init();
            log
        })
        .clone()
    }

    /// Waits for a line that holds all of these.
    fn wait_for(&self, parts: &[&str]) {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap();
            if text.lines().any(|line| parts.iter().all(|part| line.contains(part))) {
                return;
            }
            assert!(Instant::now() < end, "no line with {parts:?} in:\n{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

struct Server {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    _runtime: Runtime,
}

impl Server {
    fn start(security: Security) -> Self {
        Self::start_for(security, 1)
    }

    /// For a group of so many members.
    fn start_for(security: Security, members: u32) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new());
        let settings = CoordinatorSettings {
            epoch: 1,
            world: World::new(members, members, members).unwrap(),
            formation_wait: Duration::ZERO,
            heartbeat_timeout: Duration::from_mins(10),
            report_timeout: Duration::from_mins(1),
            stall_timeout: Duration::from_mins(2),
            slow_eviction: None,
        };
        let serve = serve_with(listener, settings, security, Arc::clone(&metrics), std::future::pending());
        runtime.spawn(async { serve.await.unwrap() });
        Self { address, metrics, _runtime: runtime }
    }
}

fn member(coordinator: SocketAddr, security: Security) -> (MemberClient, Commands) {
    member_of("w-0", coordinator, security)
}

fn member_of(worker: &str, coordinator: SocketAddr, security: Security) -> (MemberClient, Commands) {
    let identity = Identity {
        name: MemberName { worker: worker.to_owned(), index: 0 },
        incarnation: Incarnation { run: 1, start: 1 },
        node: "n".to_owned(),
        address: "127.0.0.1".to_owned(),
    };
    let settings = MemberSettings {
        identity,
        config_digest: "digest".to_owned(),
        machine: None,
        heartbeat_interval: Duration::from_secs(1),
        coordinator_timeout: Duration::from_secs(30),
    };
    MemberClient::start(ClientOptions::new(coordinator.to_string(), security), settings).unwrap()
}

#[test]
fn who_has_a_certificate_of_the_authority_gets_in_and_everybody_else_is_refused_with_the_reason_at_both_ends() {
    let log = Log::start();
    let (own, foreign) = (Authority::new("of a job"), Authority::new("of another job"));
    let folder = TempDir::new().unwrap();
    let files = |name: &str| folder.path().join(name);
    let server = Server::start(tls(own.issue(&files("server"), SERVER_NAME, false, &own)));
    let address = server.address.to_string();

    let good = member(server.address, tls(own.issue(&files("good"), MEMBER_NAME, false, &own)));
    assert!(matches!(good.1.next(PATIENCE), Some(MemberCommand::FormGroup(_))));

    let check = |security: Security, category: &str, at_server: &str, at_client: &[&str]| {
        let peer = member(server.address, security);
        log.wait_for(&["refused a connection", &format!("category=\"{category}\""), at_server, "address=\"127.0.0.1:"]);
        log.wait_for(&[&["cannot attach", &address], at_client].concat());
        let counted = format!("lcl_coordinator_refused_peers_total{{reason=\"{category}\"}}");
        assert!(server.metrics.render().unwrap().contains(&counted));
        assert!(peer.1.try_next().is_none());
    };
    let expired = own.issue(&files("expired"), MEMBER_NAME, true, &own);
    check(tls(expired), "expired", "its certificate", &["refuses the certificate in", "expired/tls.crt", "renew it"]);
    let other = foreign.issue(&files("foreign"), MEMBER_NAME, false, &own);
    check(
        tls(other),
        "unknown_authority",
        "of another authority",
        &["refuses the certificate in", "foreign/tls.crt", "issue it from that"],
    );
    let renewed = Authority::new("of a job").issue(&files("renewed"), MEMBER_NAME, false, &own);
    check(
        tls(renewed),
        "unknown_authority",
        "of another authority",
        &["refuses the certificate in", "renewed/tls.crt", "issue it from that"],
    );
    check(Security::Insecure, "no_tls", "does not speak TLS", &[]);
    let distrusting = own.issue(&files("distrusting"), MEMBER_NAME, false, &foreign);
    check(tls(distrusting), "refused_by_peer", "of another authority", &["is of no authority in", "distrusting/ca.crt"]);
}

#[test]
fn a_client_that_shows_no_certificate_is_refused() {
    let log = Log::start();
    let own = Authority::new("of a job");
    let folder = TempDir::new().unwrap();
    let server = Server::start(tls(own.issue(folder.path(), SERVER_NAME, false, &own)));
    let mut roots = rustls::RootCertStore::empty();
    let authority = rustls::pki_types::pem::PemObject::from_pem_slice(own.certificate.as_bytes()).unwrap();
    roots.add(authority).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    let mut session = rustls::ClientConnection::new(Arc::new(config), SERVER_NAME.try_into().unwrap()).unwrap();
    // Its side of the handshake succeeds; the server's answer to it does not.
    let mut tls = rustls::Stream::new(&mut session, &mut stream);
    let _ = tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    log.wait_for(&["refused a connection", "category=\"no_certificate\"", "it shows no certificate"]);
}

#[test]
fn a_coordinator_whose_certificate_is_for_another_name_or_that_speaks_no_tls_is_not_trusted() {
    let log = Log::start();
    let own = Authority::new("of a job");
    let folder = TempDir::new().unwrap();
    let client = || tls(own.issue(&folder.path().join("client"), MEMBER_NAME, false, &own));
    let server = Server::start(tls(own.issue(&folder.path().join("server"), "somebody", false, &own)));
    let _named = member(server.address, client());
    log.wait_for(&["cannot attach", &server.address.to_string(), "is not for the name lcl-coordinator", "issue one"]);
    log.wait_for(&["refused a connection", "category=\"refused_by_peer\""]);
    let plain = Server::start(Security::Insecure);
    let _plain = member(plain.address, client());
    log.wait_for(&["cannot attach", &plain.address.to_string(), "does not speak TLS", "--insecure"]);
}

/// What a certificate's name allows: members attach, the operator commands, and either may look.
#[test]
fn a_certificate_allows_what_its_name_is_for_and_nothing_else() {
    let own = Authority::new("of a job");
    let folder = TempDir::new().unwrap();
    let pair = |name: &str| tls(own.issue(&folder.path().join(name), name, false, &own));
    let server = Server::start(pair(SERVER_NAME));
    let runtime = Runtime::new().unwrap();
    let client = |name: &str| {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let _inside = runtime.enter();
        CoordinatorClient::new(endpoint.connect_with_connector_lazy(Connector::new(pair(name))))
    };
    let command = |name: &str| {
        let checkpoint = Some(command_request::Command::Checkpoint(command_request::Checkpoint { from: None }));
        runtime.block_on(client(name).command(CommandRequest { epoch: None, command: checkpoint }))
    };
    let attach = |name: &str| runtime.block_on(client(name).attach(tokio_stream::pending::<ToCoordinator>())).map(drop);
    let watch = |name: &str| runtime.block_on(client(name).watch(WatchRequest {})).map(drop);
    for name in [MEMBER_NAME, SERVER_NAME, "somebody"] {
        let refused = command(name).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{name}");
        assert!(refused.message().contains("takes a certificate for lcl-operator") && refused.message().contains(name), "{refused}");
    }
    command(OPERATOR_NAME).unwrap();
    attach(MEMBER_NAME).unwrap();
    for name in [OPERATOR_NAME, "somebody"] {
        assert_eq!(attach(name).unwrap_err().code(), tonic::Code::PermissionDenied, "{name}");
    }
    watch(OPERATOR_NAME).unwrap();
    watch(MEMBER_NAME).unwrap();
}

/// As the operator renews them under a group that runs: keys stay, the certificates of the authority and of the pairs are others. Nodes bring
/// them into pods one after the other.
#[test]
fn renewed_certificates_touch_nobody_who_is_attached_and_go_together_with_those_of_before() {
    let log = Log::start();
    let own = Authority::new("of a job");
    let next = own.renewed();
    assert_ne!(own.certificate, next.certificate);
    let folder = TempDir::new().unwrap();
    let files = |name: &str| folder.path().join(name);
    let server = Server::start_for(tls(own.issue(&files("server"), SERVER_NAME, false, &own)), 4);
    let early = member_of("early", server.address, tls(own.issue(&files("early"), MEMBER_NAME, false, &own)));
    log.wait_for(&["joined", "early/0"]);
    // On one node they are renewed before they are on the coordinator's.
    let ahead = member_of("ahead", server.address, tls(next.issue(&files("ahead"), MEMBER_NAME, false, &next)));
    log.wait_for(&["joined", "ahead/0"]);
    let renewed = next.issue(&files("server"), SERVER_NAME, false, &next);
    // Written in another moment than those before, however coarse the file system's clock is.
    let later = std::time::SystemTime::now() + Duration::from_secs(1);
    for file in [&renewed.certificate, &renewed.key, &renewed.authority] {
        fs::File::options().append(true).open(file).unwrap().set_modified(later).unwrap();
    }
    // And on another one after that.
    let behind = member_of("behind", server.address, tls(own.issue(&files("behind"), MEMBER_NAME, false, &own)));
    log.wait_for(&["joined", "behind/0"]);
    log.wait_for(&["certificates have changed and are read again", "server/tls.crt"]);
    let new = member_of("new", server.address, tls(next.issue(&files("new"), MEMBER_NAME, false, &next)));
    // The group needs all four: whoever had lost its stream would be missing.
    for (_, commands) in [&early, &ahead, &behind, &new] {
        let command = commands.next(PATIENCE);
        assert!(matches!(command, Some(MemberCommand::FormGroup(_))), "{command:?}");
    }
}
