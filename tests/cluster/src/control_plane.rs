//! etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

use std::{
    fs, io,
    net::TcpStream,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    certificates::{Authority, CertificateError, write, write_token_key},
    command::{CommandError, Server, output, wait_until},
    programs::{Programs, on_path},
    slot::Slot,
};

/// Ports of the apiserver and of etcd, for its clients and its peers; the address is the slot's own.
const PORTS: [u16; 3] = [16443, 12379, 12380];
/// Networks of the Services, and their first addresses, under which pods reach the apiserver.
const SERVICES: (&str, &str) = ("10.96.0.0/16", "10.96.0.1");
const SERVICES_IPV6: (&str, &str) = ("fd00:10:96::/108", "fd00:10:96::1");
/// From start to `/readyz` it takes about five seconds on an idle machine.
const READY_TIMEOUT: Duration = Duration::from_mins(3);
/// Who wrote what, and what the operator asked: a line per request in `audit.log`, by which a test tells one program's requests from all
/// others'.
const AUDIT_POLICY: (&str, &str) = (
    "audit.yaml",
    r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts:lcl-system"]},
                  {"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}]}"#,
);
/// The Job controller and the scheduler are not to be what limits a measurement.
const CLIENT_LIMITS: [&str; 2] = ["--kube-api-qps=2000", "--kube-api-burst=2000"];

/// The control plane did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// A certificate.
    #[error("certificates")]
    Certificate(#[from] CertificateError),
    /// A program.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The apiserver was not ready in time.
    #[error("kube-apiserver was not ready within {READY_TIMEOUT:?}: see {}", log.display())]
    NotReady {
        /// Its log.
        log: PathBuf,
    },
    /// A folder.
    #[error("making {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where a control plane listens.
pub(crate) struct Place {
    address: String,
    ports: [u16; 3],
    services: (&'static str, &'static str),
    /// Under which nodes find it; none without nodes.
    advertised: Option<String>,
}

impl Place {
    /// At the slot's bridge.
    pub(crate) fn of_nodes(slot: &Slot) -> Self {
        let address = slot.bridge().1;
        Self { advertised: Some(address.clone()), address, ports: PORTS, services: SERVICES }
    }

    /// At the slot's own loopback address.
    pub(crate) fn alone(slot: &Slot) -> Self {
        Self { address: slot.loopback(), ports: PORTS, services: SERVICES, advertised: None }
    }

    /// At the one loopback address that there is of IPv6, where each slot has ports of its own.
    pub(crate) fn ipv6(slot: &Slot) -> Self {
        let ports = PORTS.map(|port| port + 2 * u16::from(slot.number()));
        Self { address: "::1".to_owned(), ports, services: SERVICES_IPV6, advertised: None }
    }

    fn is_ipv6(&self) -> bool {
        self.address.contains(':')
    }

    /// Address and port as they stand in a URL.
    fn at(&self, port: u16) -> String {
        if self.is_ipv6() { format!("[{}]:{port}", self.address) } else { format!("{}:{port}", self.address) }
    }
}

/// A running control plane.
pub(crate) struct ControlPlane {
    folder: PathBuf,
    authority: Authority,
    server: String,
    // Ended in this order: who writes first, what is written to last.
    scheduler: Server,
    controller_manager: Server,
    apiserver: Server,
    etcd: Server,
}

impl ControlPlane {
    /// Starts one in `folder`, and waits until it is ready.
    pub(crate) fn start(programs: &Programs, place: &Place, folder: &Path) -> Result<Self, ControlPlaneError> {
        fs::create_dir_all(folder).map_err(|source| ControlPlaneError::Folder { path: folder.to_owned(), source })?;
        let server = format!("https://{}", place.at(place.ports[0]));
        let authority = Authority::new()?;
        write(folder, "ca.crt", authority.certificate())?;
        write_token_key(folder)?;
        let hosts = [place.address.as_str(), place.services.1, "kubernetes.default.svc", "localhost"];
        authority.issue("kube-apiserver", None, &hosts)?.write(folder, "apiserver")?;
        let admin = authority.issue("admin", Some("system:masters"), &["admin"])?;
        admin.write(folder, "admin")?;
        write(folder, "admin.kubeconfig", &authority.kubeconfig(&server, &admin))?;
        for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            let identity = authority.issue(&format!("system:{name}"), None, &[name])?;
            write(folder, &format!("{name}.kubeconfig"), &authority.kubeconfig(&server, &identity))?;
        }

        write(folder, AUDIT_POLICY.0, AUDIT_POLICY.1)?;

        let mut etcd = start_etcd(folder, place)?;
        let mut apiserver = start_apiserver(programs, folder, place)?;
        let kubectl = programs.kubectl();
        let admin = folder.join("admin.kubeconfig").display().to_string();
        let mut ended = None;
        let is_ready = wait_until(READY_TIMEOUT, || {
            ended = etcd.check().and_then(|()| apiserver.check()).err();
            let is_open = TcpStream::connect(place.at(place.ports[0])).is_ok();
            let is_done =
                ended.is_some() || (is_open && output(&kubectl, &["--kubeconfig", admin.as_str(), "get", "--raw", "/readyz"]).is_ok());
            if is_open && !is_done {
                // Each look starts a process, which takes a processor from what is waited for.
                thread::sleep(Duration::from_millis(200));
            }
            is_done
        });
        if let Some(error) = ended {
            return Err(error.into());
        }
        if !is_ready {
            return Err(ControlPlaneError::NotReady { log: folder.join("kube-apiserver.log") });
        }

        let common = |name: &str| {
            let mut arguments = vec![format!("--kubeconfig={name}.kubeconfig"), "--leader-elect=false".into(), "--secure-port=0".into()];
            arguments.extend(CLIENT_LIMITS.map(str::to_owned));
            arguments
        };
        let mut arguments = common("kube-controller-manager");
        arguments.extend(
            [
                "--service-account-private-key-file=sa.key",
                "--root-ca-file=ca.crt",
                "--use-service-account-credentials=true",
                "--allocate-node-cidrs=false",
            ]
            .map(str::to_owned),
        );
        let program = programs.path("kube-controller-manager");
        let controller_manager = Server::start(folder, "kube-controller-manager", None, &program, &arguments)?;
        let mut arguments = common("kube-scheduler");
        arguments.push("--feature-gates=GenericWorkload=true".to_owned());
        let scheduler = Server::start(folder, "kube-scheduler", None, &programs.path("kube-scheduler"), &arguments)?;
        Ok(Self { folder: folder.to_owned(), authority, server, scheduler, controller_manager, apiserver, etcd })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// Writes a kubeconfig for the kubelet of `node` and returns its path.
    pub(crate) fn write_kubelet_config(&self, node: &str) -> Result<PathBuf, CertificateError> {
        let identity = self.authority.issue(&format!("system:node:{node}"), Some("system:nodes"), &[node])?;
        let file = format!("kubelet-{node}.kubeconfig");
        write(&self.folder, &file, &self.authority.kubeconfig(&self.server, &identity))?;
        Ok(self.folder.join(file))
    }

    /// Names and processes, for what measures them.
    pub(crate) fn processes(&self) -> Vec<(String, u32)> {
        [
            ("kube-apiserver", &self.apiserver),
            ("kube-controller-manager", &self.controller_manager),
            ("kube-scheduler", &self.scheduler),
            ("etcd", &self.etcd),
        ]
        .map(|(name, server)| (name.to_owned(), server.pid()))
        .into()
    }
}

fn start_etcd(folder: &Path, place: &Place) -> Result<Server, CommandError> {
    let [_, client, peer] = place.ports.map(|port| format!("http://{}", place.at(port)));
    let arguments = [
        // The data die with the cluster.
        "--unsafe-no-fsync".to_owned(),
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ];
    Server::start(folder, "etcd-server", None, &on_path("etcd").unwrap_or_else(|| "etcd".into()), &arguments)
}

fn start_apiserver(programs: &Programs, folder: &Path, place: &Place) -> Result<Server, CommandError> {
    let [port, etcd, _] = place.ports;
    let mut arguments = vec![
        format!("--etcd-servers=http://{}", place.at(etcd)),
        format!("--secure-port={port}"),
        format!("--bind-address={}", place.address),
        format!("--service-cluster-ip-range={}", place.services.0),
        format!("--service-account-issuer=https://kubernetes.default.svc"),
    ];
    arguments.extend(
        [
            "--tls-cert-file=apiserver.crt",
            "--tls-private-key-file=apiserver.key",
            "--client-ca-file=ca.crt",
            "--authorization-mode=Node,RBAC",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            // The second asks whether the operator may block the deletion of what owns its objects, as some distributions do.
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
            "--allow-privileged=true",
            "--audit-policy-file=audit.yaml",
            "--audit-log-path=audit.log",
            "--kubelet-client-certificate=admin.crt",
            "--kubelet-client-key=admin.key",
            // The names of nodes are known to nobody but the cluster.
            "--kubelet-preferred-address-types=InternalIP",
            // Gang scheduling in the tree.
            "--feature-gates=GenericWorkload=true",
            "--runtime-config=scheduling.k8s.io/v1beta1=true",
        ]
        .map(str::to_owned),
    );
    if let Some(address) = &place.advertised {
        arguments.push(format!("--advertise-address={address}"));
    } else {
        // A loopback address is refused as an endpoint, and without nodes nobody asks for it. But it has to be of the Services' family.
        arguments.push("--endpoint-reconciler-type=none".to_owned());
        if place.is_ipv6() {
            arguments.push(format!("--advertise-address={}", place.services.1));
        }
    }
    Server::start(folder, "kube-apiserver", None, &programs.path("kube-apiserver"), &arguments)
}
