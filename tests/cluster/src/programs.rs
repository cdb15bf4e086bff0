//! Where the programs of Kubernetes are.

use std::{env, path::PathBuf};

const KUBERNETES: [&str; 6] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];

/// A program is missing.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// The folder is nowhere.
    #[error("no folder with the programs of Kubernetes: run scripts/kube.sh once, or set LCL_KUBE_BIN to a folder that has them")]
    NoFolder,
    /// The folder lacks one.
    #[error("{} is missing: run scripts/kube.sh once, or set LCL_KUBE_BIN to a folder with {}", path.display(), KUBERNETES.join(", "))]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// One of the system's.
    #[error("the program {name} is not on the PATH: install the Debian package {package}")]
    NotInstalled {
        /// Its name.
        name: &'static str,
        /// What brings it.
        package: &'static str,
    },
}

/// A folder with the programs of one release of Kubernetes.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// The folder that `LCL_KUBE_BIN` names, else that of the pinned release below the project's `.deps`.
    pub fn find() -> Result<Self, ProgramsError> {
        let folder = match env::var_os("LCL_KUBE_BIN") {
            Some(folder) => PathBuf::from(folder),
            None => pinned().ok_or(ProgramsError::NoFolder)?,
        };
        for name in KUBERNETES {
            let path = folder.join(name);
            if !path.is_file() {
                return Err(ProgramsError::Missing { path });
            }
        }
        if on_path("etcd").is_none() {
            return Err(ProgramsError::NotInstalled { name: "etcd", package: "etcd-server" });
        }
        Ok(Self { folder })
    }

    /// Path of one of them.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Path of kubectl.
    #[must_use]
    pub fn kubectl(&self) -> PathBuf {
        self.path("kubectl")
    }
}

/// First of the PATH's folders that has `name`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The release that tests/cluster/kube/go.mod pins.
fn pinned() -> Option<PathBuf> {
    let module = include_str!("../kube/go.mod");
    let version = module.lines().find_map(|line| {
        let mut words = line.trim().trim_start_matches("require ").split_whitespace();
        (words.next() == Some("k8s.io/kubernetes")).then(|| words.next()).flatten()?.strip_prefix('v')
    })?;
    let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
    Some(workspace.join(".deps").join(format!("kube-{version}")))
}
