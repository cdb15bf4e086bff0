//! From paths in the worker's container to paths on this machine, so that one manifest serves a cluster and `lcl run --local`.
//!
//! A path below a mount of the container `worker` lies in that mount's volume. The volume's local folder is the one given for its name
//! (`--volume NAME=DIR`), else a hostPath volume's own path; a volume of another kind has none. `subPath` is honoured. Of several mounts
//! the deepest counts. A path below no mount is used as it is. `file://` URIs are mapped like paths; other URIs never.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Volume, VolumeMount};
use lcl_trainer_config::{Field, ShardEntry, ShardName, ShardPattern};
use url::Url;

use crate::job::ValidatedJob;

/// Why the paths of a job cannot be found on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A folder was given for a volume that the manifest does not have.
    #[error("no volume is named `{name}`: the manifest mounts {}", list(known))]
    UnknownVolume {
        /// The name that was given.
        name: String,
        /// Names of the volumes mounted in the container `worker`.
        known: Vec<String>,
    },
    /// A path that the job needs lies on a volume without a local folder.
    #[error("{field} is {path}, but its volume `{volume}` has no local folder: give one with --volume {volume}=DIR")]
    NoLocalFolder {
        /// Field of the manifest.
        field: String,
        /// The path in the container.
        path: String,
        /// The volume's name.
        volume: String,
    },
    /// The volume's local folder would be read as a part of the pattern.
    #[error(
        "the local folder {folder} of volume `{volume}` holds characters that {field} reads as a pattern: give the folder another name"
    )]
    FolderIsPattern {
        /// Field of the manifest.
        field: String,
        /// The volume's name.
        volume: String,
        /// Its folder.
        folder: String,
    },
    /// Braces choose between volumes.
    #[error("{field} is {pattern}, whose braces lead into other volumes ({path}): write an entry for each volume")]
    AcrossVolumes {
        /// Field of the manifest.
        field: String,
        /// The entry.
        pattern: String,
        /// A path that it stands for, in another volume than the entry as a whole.
        path: String,
    },
}

/// Most paths of an entry that are looked at one by one; braces that choose between volumes have few.
const LOOKED_AT: usize = 100_000;

fn list(names: &[String]) -> String {
    if names.is_empty() { "no volume in its container `worker`".to_owned() } else { names.join(", ") }
}

/// From paths in the worker's container to paths where the trainer runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathMapping {
    /// Deepest mount first.
    mounts: Vec<Mount>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    path: PathBuf,
    volume: String,
    /// `None`: the volume has no folder on this machine.
    local: Option<String>,
}

impl PathMapping {
    /// For a trainer that runs in the container itself: every path stays as it is.
    #[must_use]
    pub fn in_container() -> Self {
        Self::default()
    }

    /// For a trainer that runs on this machine. `folders`: absolute local folders of volumes by name.
    pub fn on_this_machine(job: &ValidatedJob, folders: &BTreeMap<String, String>) -> Result<Self, Vec<PathError>> {
        let checkpoint = file_path(&job.spec().checkpoint.uri).map(|path| ("spec.checkpoint.uri".to_owned(), path));
        Self::with_folders(job, folders, checkpoint)
    }

    /// The same for what reads a job's data alone: where the run lies need not be known.
    pub fn of_data_on_this_machine(job: &ValidatedJob, folders: &BTreeMap<String, String>) -> Result<Self, Vec<PathError>> {
        Self::with_folders(job, folders, None)
    }

    fn with_folders(
        job: &ValidatedJob,
        folders: &BTreeMap<String, String>,
        checkpoint: Option<(String, String)>,
    ) -> Result<Self, Vec<PathError>> {
        let volumes = job.pod().and_then(|pod| pod.volumes.as_deref()).unwrap_or_default();
        let mounts = job.worker_container().and_then(|container| container.volume_mounts.as_deref()).unwrap_or_default();
        let mut mounts: Vec<Mount> = mounts.iter().map(|mount| resolve(mount, volumes, folders)).collect();
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.path.components().count()));
        let mapping = Self { mounts };
        let errors = mapping.find_errors(job, folders, checkpoint);
        if errors.is_empty() { Ok(mapping) } else { Err(errors) }
    }

    /// A path in the container as a path where the trainer runs.
    #[must_use]
    pub fn map(&self, path: &str) -> String {
        let Some((local, below)) = self.find(path).and_then(|(mount, below)| Some((mount.local.as_deref()?, below))) else {
            return path.to_owned();
        };
        match below.to_str() {
            Some("") | None => local.to_owned(),
            Some(below) => format!("{}/{below}", local.trim_end_matches('/')),
        }
    }

    /// As [`Self::map`], for an entry of the list of shards: what is added to it is no pattern.
    #[must_use]
    pub fn map_shard(&self, entry: &str) -> String {
        let Some((local, below)) = self.find(entry).and_then(|(mount, below)| Some((mount.local.as_deref()?, below))) else {
            return entry.to_owned();
        };
        let local = ShardPattern::literally(local).unwrap_or_else(|| local.to_owned());
        format!("{}/{}", local.trim_end_matches('/'), below.display())
    }

    /// A URI in the container as a URI where the trainer runs: the path of a `file://` URI is mapped.
    #[must_use]
    pub fn map_uri(&self, uri: &str) -> String {
        let mapped = file_path(uri).filter(|path| self.find(path).is_some()).and_then(|path| Url::from_file_path(self.map(&path)).ok());
        mapped.map_or_else(|| uri.to_owned(), String::from)
    }

    /// The mount that `path` lies below, and the path from there.
    fn find<'a>(&'a self, path: &'a str) -> Option<(&'a Mount, &'a Path)> {
        self.mounts.iter().find_map(|mount| Some((mount, Path::new(path).strip_prefix(&mount.path).ok()?)))
    }

    fn find_errors(&self, job: &ValidatedJob, folders: &BTreeMap<String, String>, checkpoint: Option<(String, String)>) -> Vec<PathError> {
        let mut known: Vec<String> = self.mounts.iter().map(|mount| mount.volume.clone()).collect();
        known.sort();
        known.dedup();
        let unknown = folders.keys().filter(|name| !known.contains(name));
        let mut errors: Vec<_> = unknown.map(|name| PathError::UnknownVolume { name: name.clone(), known: known.clone() }).collect();
        let lists = job.source().lists();
        let shards = lists.into_iter().flat_map(|(field, list)| {
            let field = Field(&field).to_string();
            list.iter().enumerate().map(move |(index, entry)| (format!("{field}[{index}]"), entry.clone()))
        });
        let shards: Vec<(String, String)> = shards.collect();
        let folders_of_images = job.source().folders().into_iter().map(|(field, folder)| (Field(&field).to_string(), folder.to_owned()));
        let index = job.spec().data.index_path.iter().map(|path| ("spec.data.indexPath".to_owned(), path.clone()));
        for (field, entry) in shards.clone() {
            errors.extend(self.find_patterned_folder(field, &entry));
        }
        for (field, pattern) in shards.clone() {
            errors.extend(self.find_other_volume(&pattern).map(|path| PathError::AcrossVolumes { field, pattern, path }));
        }
        for (field, path) in shards.into_iter().chain(folders_of_images).chain(index).chain(checkpoint) {
            if let Some((mount, _)) = self.find(&path).filter(|(mount, _)| mount.local.is_none()) {
                errors.push(PathError::NoLocalFolder { field, volume: mount.volume.clone(), path: path.clone() });
            }
        }
        errors
    }

    /// The local folder of an entry when it cannot be written before the entry: one with braces, or before a list with any such character.
    fn find_patterned_folder(&self, field: String, entry: &str) -> Option<PathError> {
        let mount = self.find(entry)?.0;
        let folder = mount.local.as_deref()?;
        let is_list = matches!(ShardEntry::parse(entry), Ok(ShardEntry::List(_)));
        let literal = ShardPattern::literally(folder);
        let is_fine = if is_list { literal.as_deref() == Some(folder) } else { literal.is_some() };
        (!is_fine).then(|| PathError::FolderIsPattern { field, volume: mount.volume.clone(), folder: folder.to_owned() })
    }

    /// A path that a pattern stands for and that lies in another volume than the pattern as it is written, by which it is mapped.
    fn find_other_volume(&self, pattern: &str) -> Option<String> {
        let whole = self.find(pattern).map(|(mount, _)| mount);
        let Ok(ShardEntry::Pattern(parsed)) = ShardEntry::parse(pattern) else { return None };
        let is_few = parsed.count() <= LOOKED_AT;
        let names = is_few.then(|| parsed.expand()).into_iter().flatten();
        let paths = names.map(|(ShardName::Path(path) | ShardName::Glob(path))| path);
        paths.into_iter().find(|path| self.find(path).map(|(mount, _)| mount) != whole)
    }
}

fn resolve(mount: &VolumeMount, volumes: &[Volume], folders: &BTreeMap<String, String>) -> Mount {
    let host_path = || {
        let volume = volumes.iter().find(|volume| volume.name == mount.name)?;
        Some(volume.host_path.as_ref()?.path.clone())
    };
    // `subPathExpr` needs the pod's environment, which does not exist here.
    let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
    let folder = if expression.is_empty() { folders.get(&mount.name).cloned().or_else(host_path) } else { None };
    let local = folder.map(|folder| match mount.sub_path.as_deref().unwrap_or_default() {
        "" => folder,
        below => format!("{}/{below}", folder.trim_end_matches('/')),
    });
    Mount { path: PathBuf::from(&mount.mount_path), volume: mount.name.clone(), local }
}

/// The path of a `file://` URI; `None` for another scheme.
fn file_path(uri: &str) -> Option<String> {
    let url = Url::parse(uri).ok().filter(|url| url.scheme() == "file")?;
    url.to_file_path().ok()?.into_os_string().into_string().ok()
}
