//! A real node: a network namespace with its own containerd, kubelet and kube-proxy.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    command::{CommandError, Server, output, system, wait_until},
    control_plane::ControlPlane,
    leftovers::control_group_hierarchies,
    programs::{Programs, on_path},
    slot::{MAX_NODES, Slot},
};

/// containerd opens its socket within a second.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(30);
/// The image that keeps a pod's namespaces open.
const PAUSE_IMAGE: &str = "lcl.dev/pause:test";
/// What a node needs from the system, and the Debian package that brings it.
const NEEDED: [(&str, &str); 9] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("sysctl", "procps"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("nft", "nftables"),
];

/// A node did not come up.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A program.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Its certificate.
    #[error("certificates")]
    Certificate(#[from] crate::certificates::CertificateError),
    /// A file or folder of it.
    #[error("writing {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// containerd is not there.
    #[error("containerd did not open its socket within {SOCKET_TIMEOUT:?}: see {}", log.display())]
    NoSocket {
        /// Its log.
        log: PathBuf,
    },
}

/// Why this machine can run no nodes; `None` when it can.
#[must_use]
pub fn why_no_nodes() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("nodes need root: containers, network namespaces and control groups are made".to_owned());
    }
    for (program, package) in NEEDED {
        if on_path(program).is_none() {
            return Some(format!("the program {program} is not installed (Debian package {package})"));
        }
    }
    if !Path::new("/usr/lib/cni/bridge").is_file() {
        return Some("the plug-ins of the container network are not installed (Debian package containernetworking-plugins)".to_owned());
    }
    system("unshare --net --mount true").err().map(|error| format!("no namespaces can be made: {error}"))
}

/// Makes the bridge that all nodes of a cluster hang on.
pub(crate) fn make_bridge(slot: &Slot) -> Result<(), CommandError> {
    let (bridge, address) = slot.bridge();
    system(&format!("ip link add {bridge} type bridge"))?;
    system(&format!("ip addr add {address}/24 dev {bridge}"))?;
    system(&format!("ip link set {bridge} up"))?;
    Ok(())
}

/// A running node.
pub(crate) struct Node {
    name: String,
    // Ended in this order: nothing starts containers any more when containerd goes.
    kube_proxy: Option<Server>,
    kubelet: Server,
    containerd: Server,
    folder: PathBuf,
    unique: String,
}

impl Node {
    /// Starts node `index` (from 1) of `count`, with the images of the archives; it is not Ready yet.
    pub(crate) fn start(programs: &Programs, slot: &Slot, plane: &ControlPlane, index: u8, images: &[PathBuf]) -> Result<Self, NodeError> {
        let name = format!("node-{index}");
        let unique = format!("{}{index}", slot.node_prefix());
        let folder = plane.folder().join(&name);
        let short = Path::new("/run").join(&unique);
        for sub in ["kubelet", "containerd", "cni", "cni-state", "certs", "logs"] {
            make_folder(&folder.join(sub))?;
        }
        make_folder(&short)?;
        connect(slot, index, &unique)?;
        make_control_groups(&unique)?;

        let socket = short.join("containerd.sock");
        write(&folder.join("cni/10-bridge.conflist"), &network(slot, index, &folder))?;
        write(&folder.join("containerd.toml"), &containerd_config(&folder, &short))?;
        write(&folder.join("kubelet.yaml"), &kubelet_config(plane.folder(), &folder, &socket, &unique))?;
        let proxy_kubeconfig = plane.folder().join("kube-proxy.kubeconfig");
        write(&folder.join("kube-proxy.yaml"), &proxy_config(&proxy_kubeconfig))?;

        let arguments = ["-c".to_owned(), folder.join("containerd.toml").display().to_string()];
        let mut containerd = Server::start(&folder, "containerd-server", Some(&unique), Path::new("containerd"), &arguments)?;
        let mut ended = None;
        let is_there = wait_until(SOCKET_TIMEOUT, || {
            ended = containerd.check().err();
            ended.is_some() || list_images(&socket).is_ok()
        });
        if let Some(error) = ended {
            return Err(error.into());
        }
        if !is_there {
            return Err(NodeError::NoSocket { log: folder.join("containerd-server.log") });
        }
        for image in images {
            let arguments = ["-a", &socket.display().to_string(), "-n", "k8s.io", "images", "import", &image.display().to_string()];
            output("ctr", &arguments)?;
        }
        let kubeconfig = plane.write_kubelet_config(&name)?;
        let arguments = [
            format!("--config={}", folder.join("kubelet.yaml").display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--root-dir={}", folder.join("kubelet").display()),
            format!("--cert-dir={}", folder.join("certs").display()),
            format!("--hostname-override={name}"),
            format!("--node-ip={}", slot.node_address(index)),
        ];
        let kubelet = Server::start(&folder, "kubelet-server", Some(&unique), &programs.path("kubelet"), &arguments)?;
        Ok(Self { name, kube_proxy: None, kubelet, containerd, folder, unique })
    }

    /// Starts kube-proxy. The node must have registered: kube-proxy ends when its node's addresses change, and from none to one is a change.
    pub(crate) fn start_proxy(&mut self, programs: &Programs) -> Result<(), CommandError> {
        let arguments =
            [format!("--config={}", self.folder.join("kube-proxy.yaml").display()), format!("--hostname-override={}", self.name)];
        let program = programs.path("kube-proxy");
        self.kube_proxy = Some(Server::start(&self.folder, "kube-proxy-server", Some(&self.unique), &program, &arguments)?);
        Ok(())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// An error when one of its parts has ended.
    pub(crate) fn check(&mut self) -> Result<(), CommandError> {
        self.containerd.check()?;
        self.kubelet.check()?;
        self.kube_proxy.as_mut().map_or(Ok(()), Server::check)
    }

    pub(crate) fn processes(&self) -> Vec<(String, u32)> {
        let parts = [("containerd", Some(&self.containerd)), ("kubelet", Some(&self.kubelet)), ("kube-proxy", self.kube_proxy.as_ref())];
        parts.into_iter().filter_map(|(name, server)| Some((format!("{}/{name}", self.name), server?.pid()))).collect()
    }
}

fn list_images(socket: &Path) -> Result<String, CommandError> {
    output("ctr", &["-a", &socket.display().to_string(), "-n", "k8s.io", "images", "list", "-q"])
}

/// Namespace, cable and routes. `ip link set <unique> down` cuts the node off.
fn connect(slot: &Slot, index: u8, unique: &str) -> Result<(), CommandError> {
    let (bridge, gateway) = slot.bridge();
    let address = slot.node_address(index);
    for line in [
        format!("ip netns add {unique}"),
        format!("ip link add {unique} type veth peer name eth0 netns {unique}"),
        format!("ip link set {unique} master {bridge} up"),
        format!("ip -n {unique} addr add {address}/24 dev eth0"),
        format!("ip -n {unique} link set eth0 up"),
        format!("ip -n {unique} link set lo up"),
        format!("ip -n {unique} route add default via {gateway}"),
        format!("nsenter --net=/run/netns/{unique} sysctl -qw net.ipv4.ip_forward=1"),
        format!("ip route replace {} via {address}", slot.pod_network(index)),
    ] {
        system(&line)?;
    }
    for other in (1..=MAX_NODES).filter(|other| *other != index) {
        system(&format!("ip -n {unique} route replace {} via {}", slot.pod_network(other), slot.node_address(other)))?;
    }
    Ok(())
}

/// A root for the kubelet in every hierarchy; cpuset is empty until it is filled.
fn make_control_groups(unique: &str) -> Result<(), NodeError> {
    for hierarchy in control_group_hierarchies() {
        let group = hierarchy.join(unique);
        make_folder(&group)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let source = hierarchy.join(file);
            if let Ok(all) = fs::read_to_string(&source) {
                write(&group.join(file), &all)?;
            }
        }
    }
    Ok(())
}

fn network(slot: &Slot, index: u8, folder: &Path) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "lcl",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "dataDir": folder.join("cni-state"),
                "ranges": [[{"subnet": slot.pod_network(index)}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
    .to_string()
}

fn containerd_config(folder: &Path, short: &Path) -> String {
    let (folder, short) = (folder.display(), short.display());
    // Without restrict_oom_score_adj runc fails where CAP_SYS_RESOURCE is missing: "can't get final child's PID from pipe: EOF".
    format!(
        r#"version = 2
root = "{folder}/containerd"
state = "{short}/containerd"
[grpc]
  address = "{short}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"#
    )
}

fn kubelet_config(plane: &Path, folder: &Path, socket: &Path, unique: &str) -> String {
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{unique}"),
        "containerRuntimeEndpoint": format!("unix://{}", socket.display()),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": plane.join("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "localStorageCapacityIsolation": false,
        "enforceNodeAllocatable": [],
        // The disk is shared with everything else on the machine.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "2s",
        "resolvConf": "",
        "podLogsDir": folder.join("logs"),
    })
    .to_string()
}

fn proxy_config(kubeconfig: &Path) -> String {
    serde_json::json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "conntrack": {"maxPerCore": 0},
        "clusterCIDR": "10.214.0.0/16",
    })
    .to_string()
}

fn make_folder(path: &Path) -> Result<(), NodeError> {
    fs::create_dir_all(path).map_err(|source| NodeError::File { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), NodeError> {
    fs::write(path, text).map_err(|source| NodeError::File { path: path.to_owned(), source })
}
