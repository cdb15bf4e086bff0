//! Writing a shard whose bytes depend on its contents alone.
//!
//! Comes in: keys, images and captions. Goes out: a tar archive, the same bytes every time. No clock, user or umask gets into it.

use std::{
    fmt,
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use lcl_trainer_config::KeySeparator;
use tempfile::NamedTempFile;

use crate::shard::{ImageKind, sample_files::split_name};

/// A shard cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The key would not come back as this sample's.
    #[error("`{key}` cannot be a sample's key: no dot in its last part, no empty part or `..`, no first part like `__this__`")]
    Key {
        /// The key.
        key: String,
    },
    /// The system refuses.
    #[error("writing shard {path}")]
    Write {
        /// The shard.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Writes a shard. It appears under its name when [`ShardWriter::finish`] succeeds; dropped before that, it leaves nothing.
pub struct ShardWriter {
    path: PathBuf,
    archive: tar::Builder<BufWriter<NamedTempFile>>,
}

impl fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ShardWriter {
    /// Begins a shard that will be called `path`; its folder has to exist. A file of that name is replaced at the end.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        let file = new_file_for(path).map_err(|source| WriteError::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), archive: tar::Builder::new(BufWriter::new(file)) })
    }

    /// Adds one sample; either part may be missing. Two neighbours must not have the same key: they would be read as one sample.
    pub fn append(&mut self, key: &str, image: Option<(ImageKind, &[u8])>, caption: Option<&str>) -> Result<(), WriteError> {
        if let Some((kind, bytes)) = image {
            self.append_member(key, kind.extension(), bytes)?;
        }
        if let Some(text) = caption {
            self.append_member(key, "txt", text.as_bytes())?;
        }
        Ok(())
    }

    /// Adds one file of a sample under any extension.
    pub fn append_member(&mut self, key: &str, extension: &str, contents: &[u8]) -> Result<(), WriteError> {
        let name = format!("{key}.{extension}");
        let comes_back = split_name(name.as_bytes(), KeySeparator::FirstDot).is_some_and(|(found, _)| found == key.as_bytes());
        if !comes_back || key.split('/').any(|part| part.is_empty() || part == "..") || key.contains('\0') {
            return Err(WriteError::Key { key: key.to_owned() });
        }
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(contents.len() as u64);
        // Everything else a header can say is fixed: owner and time 0, readable by all.
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let appended = self.archive.append_data(&mut header, &name, contents);
        appended.map_err(|source| WriteError::Write { path: self.path.clone(), source })
    }

    /// Ends the archive and gives it its name.
    pub fn finish(self) -> Result<(), WriteError> {
        let Self { path, archive } = self;
        let named = |source| WriteError::Write { path: path.clone(), source };
        let file = archive.into_inner().map_err(named)?.into_inner().map_err(|error| named(error.into_error()))?;
        file.as_file().sync_all().map_err(named)?;
        file.persist(&path).map_err(|error| named(error.error))?;
        Ok(())
    }
}

/// An unnamed neighbour of `path` with the permissions of an ordinary new file, to be renamed to it when it is complete.
pub(crate) fn new_file_for(path: &Path) -> io::Result<NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // tempfile's own default of 0600 would keep other users' processes from reading it; the umask still applies.
    tempfile::Builder::new().prefix(".lcl-").suffix(".part").permissions(std::fs::Permissions::from_mode(0o644)).tempfile_in(folder)
}
