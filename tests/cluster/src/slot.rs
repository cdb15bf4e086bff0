//! Places on this machine for clusters: each has names and addresses of its own, and at most one cluster.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// Clusters at a time. A cluster with nodes takes eight /24 networks for its pods, so that 32 of them fill 10.214.0.0/16.
pub(crate) const SLOTS: u8 = 32;
/// Nodes of one cluster.
pub(crate) const MAX_NODES: u8 = 8;

/// No place was to be had.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The folder of the locks cannot be used.
    #[error("locking {}", path.display())]
    Lock {
        /// The lock.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All are taken.
    #[error("{SLOTS} clusters run on this machine already (their locks lie in {}): end one", folder.display())]
    AllTaken {
        /// Where the locks lie.
        folder: PathBuf,
    },
}

/// A place that is ours for as long as this lives: the lock ends with the process, however it ends.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: File,
}

impl Slot {
    /// Takes every free one, gives each to `sweep`, since whatever bears one of their names belongs to a run that is dead, and keeps the
    /// first. Others who want one wait meanwhile, so that they do not find all taken.
    pub fn take<E: From<SlotError>>(mut sweep: impl FnMut(&Self) -> Result<(), E>) -> Result<Self, E> {
        let folder = lock_folder();
        fs::create_dir_all(&folder).map_err(|source| SlotError::Lock { path: folder.clone(), source })?;
        let _taking = wait_for_lock(&folder.join("taking.lock"))?;
        let mut first = None;
        for number in 0..SLOTS {
            if let Some(slot) = Self::try_take(&folder, number)? {
                sweep(&slot)?;
                first.get_or_insert(slot);
            }
        }
        first.ok_or_else(|| SlotError::AllTaken { folder }.into())
    }

    fn try_take(folder: &Path, number: u8) -> Result<Option<Self>, SlotError> {
        let path = folder.join(format!("{number}.lock"));
        let failed = |source| SlotError::Lock { path: path.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { number, _lock: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Where the control plane listens when there are no nodes: a loopback address of its own, so that ports need no choosing.
    pub(crate) fn loopback(&self) -> String {
        format!("127.77.{}.1", self.number)
    }

    /// The bridge that nodes hang on, and its address.
    pub(crate) fn bridge(&self) -> (String, String) {
        (format!("lcl{}br", self.number), format!("10.213.{}.1", self.number))
    }

    /// What the names of all of its nodes begin with: namespaces, interfaces, control groups, folders under /run.
    pub(crate) fn node_prefix(&self) -> String {
        format!("lcl{}n", self.number)
    }

    /// Address of node `index`, counted from 1.
    pub(crate) fn node_address(&self, index: u8) -> String {
        format!("10.213.{}.{}", self.number, 10 + index)
    }

    /// Network of the pods of node `index`, counted from 1.
    pub(crate) fn pod_network(&self, index: u8) -> String {
        format!("10.214.{}.0/24", self.number * MAX_NODES + (index - 1))
    }
}

fn wait_for_lock(path: &Path) -> Result<File, SlotError> {
    let failed = |source| SlotError::Lock { path: path.to_owned(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    Ok(file)
}

fn lock_folder() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        PathBuf::from("/run/lcl-cluster")
    } else {
        std::env::temp_dir().join(format!("lcl-cluster-{}", rustix::process::geteuid().as_raw()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_taken_is_not_given_twice_and_names_of_one_are_no_prefix_of_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let one = Slot::try_take(folder.path(), 1).expect("a lock").expect("free");
        assert!(Slot::try_take(folder.path(), 1).expect("a lock").is_none());
        let eleven = Slot::try_take(folder.path(), 11).expect("a lock").expect("free");
        assert!(!format!("{}1", eleven.node_prefix()).starts_with(&one.node_prefix()));
        drop(one);
        assert!(Slot::try_take(folder.path(), 1).expect("a lock").is_some());
    }

    #[test]
    fn the_last_slot_has_addresses_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let last = Slot::try_take(folder.path(), SLOTS - 1).expect("a lock").expect("free");
        assert_eq!(last.pod_network(MAX_NODES), "10.214.255.0/24");
    }
}
