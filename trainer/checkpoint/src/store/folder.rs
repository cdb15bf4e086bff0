//! A folder of this machine as an object store: `object_store`'s own, except for creating files.
//!
//! There a file that must not be there yet is created by a hard link, which many volumes do not have: buckets and blobs mounted as folders,
//! vfat, some network file systems. Here the volume's best means is taken, and each keeps what a checkpoint needs: a name appears with its whole
//! content or not at all, and of several creators one succeeds.
//!
//! 1. `link` of the complete file to its name.
//! 2. `renameat2` with `RENAME_NOREPLACE`.
//! 3. Exclusive creation of a second name, the claim, and then a plain `rename`. Who finds the claim comes too late. It stays beside the
//!    file, so that it also holds where a volume shows a new name to another machine late. When its creator dies between the two, nobody can
//!    create that name any more; only the same generation could want to, and it is over.
//!
//! A volume that does not answer is waited for, about a minute, as the clients of cloud stores do.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    libc, unistd,
};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, RenameOptions, Result, local::LocalFileSystem, path::Path,
};

use super::blocking;
use crate::volume::{create_folder, sync, sync_folder, while_away_async};

/// After a name: a file that is not complete yet. `object_store` keeps names with a number after `#` out of its lists.
const STAGED: &str = "#";
/// After a name: whoever created this may give the name to a file.
const CLAIM: &str = "#0";

/// See the module.
#[derive(Debug)]
pub(super) struct FolderObjects {
    inner: LocalFileSystem,
    fsync: bool,
}

impl FolderObjects {
    /// Of a folder that exists.
    pub(super) fn new(path: &FilePath, fsync: bool) -> Result<Self> {
        Ok(Self { inner: LocalFileSystem::new_with_prefix(path)?.with_fsync(fsync), fsync })
    }

    async fn create(&self, location: &Path, payload: PutPayload) -> Result<PutResult> {
        let creation =
            Arc::new(Creation { path: self.inner.path_to_filesystem(location)?, fsync: self.fsync, claimed: AtomicBool::new(false) });
        let created = while_away_async(|| {
            let (creation, payload) = (Arc::clone(&creation), payload.clone());
            blocking(move || creation.run(&payload))
        });
        if let Err(source) = created.await {
            creation.give_up();
            return Err(object_error(&creation.path, source));
        }
        Ok(PutResult { e_tag: None, version: None, extensions: object_store::Extensions::default() })
    }
}

fn object_error(path: &FilePath, source: io::Error) -> object_store::Error {
    let name = path.display().to_string();
    match source.kind() {
        io::ErrorKind::AlreadyExists => object_store::Error::AlreadyExists { path: name, source: source.into() },
        io::ErrorKind::NotFound => object_store::Error::NotFound { path: name, source: source.into() },
        _ => object_store::Error::Generic { store: "file", source: source.into() },
    }
}

/// Gives the complete file `staged` the name `path`, unless there is one of that name. For a volume that shall be tried, too.
pub(super) fn publish(staged: &FilePath, path: &FilePath) -> io::Result<()> {
    let creation = Creation { path: path.to_owned(), fsync: false, claimed: AtomicBool::new(false) };
    creation.publish(staged).inspect_err(|_| creation.give_up())
}

/// A file that is to be created.
#[derive(Debug)]
struct Creation {
    path: PathBuf,
    fsync: bool,
    /// Its claim was made here, perhaps in an earlier attempt.
    claimed: AtomicBool,
}

impl Creation {
    fn run(&self, payload: &PutPayload) -> io::Result<()> {
        if payload.content_length() == 0 {
            // A name alone is complete as soon as it is there.
            let file = self.open_new(&self.path)?;
            return self.close(file, &self.path).and_then(|()| self.sync_above());
        }
        let (mut file, staged) = self.stage()?;
        let written = payload.iter().try_for_each(|piece| file.write_all(piece)).and_then(|()| self.close(file, &staged));
        let published = written.and_then(|()| self.publish(&staged));
        if published.is_err() {
            // The volume may not take that either; the folder's removal will.
            let _ = fs::remove_file(&staged);
        }
        published.and_then(|()| self.sync_above())
    }

    /// A new file beside the path, under a name that nobody else writes to.
    fn stage(&self) -> io::Result<(File, PathBuf)> {
        let mut number = 1_u32;
        loop {
            let staged = with_ending(&self.path, &format!("{STAGED}{number}"));
            match self.open_new(&staged) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => number += 1,
                other => return other.map(|file| (file, staged)),
            }
        }
    }

    /// Creates a file, and its folder if that is missing.
    fn open_new(&self, path: &FilePath) -> io::Result<File> {
        let open = || File::options().write(true).create_new(true).open(path);
        match (open(), path.parent()) {
            (Err(error), Some(folder)) if error.kind() == io::ErrorKind::NotFound => {
                create_folder(folder, self.fsync)?;
                open()
            }
            (other, _) => other,
        }
    }

    /// Some volumes say only here that what was written is not stored.
    fn close(&self, file: File, path: &FilePath) -> io::Result<()> {
        if self.fsync {
            sync(&file, path)?;
        }
        Ok(unistd::close(file)?)
    }

    fn sync_above(&self) -> io::Result<()> {
        match self.path.parent() {
            Some(folder) if self.fsync => sync_folder(folder),
            _ => Ok(()),
        }
    }

    fn publish(&self, staged: &FilePath) -> io::Result<()> {
        match fs::hard_link(staged, &self.path) {
            Err(error) if is_not_offered(&error) => {}
            linked => {
                linked?;
                // What stays of it is removed with the folder.
                let _ = fs::remove_file(staged);
                return Ok(());
            }
        }
        // Not every volume takes notice of the flag.
        self.refuse_if_there()?;
        match renameat2(AT_FDCWD, staged, AT_FDCWD, &self.path, RenameFlags::RENAME_NOREPLACE).map_err(io::Error::from) {
            Err(error) if is_not_offered(&error) => {}
            renamed => return renamed,
        }
        self.claim()?;
        self.refuse_if_there()?;
        fs::rename(staged, &self.path)
    }

    fn claim(&self) -> io::Result<()> {
        if !self.claimed.load(Ordering::SeqCst) {
            unistd::close(self.open_new(&with_ending(&self.path, CLAIM))?)?;
            self.claimed.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// It failed for good: another attempt may come, by the same writer.
    fn give_up(&self) {
        if self.claimed.load(Ordering::SeqCst) {
            let _ = fs::remove_file(with_ending(&self.path, CLAIM));
        }
    }

    fn refuse_if_there(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.path) {
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EEXIST)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether the volume, the kernel or a sandbox does not have a call. `EPERM` is what `link` answers on vfat, and a sandbox for a call that it
/// does not know; `EXDEV` what some stacked file systems do.
fn is_not_offered(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL | libc::EMLINK | libc::EXDEV))
}

fn with_ending(path: &FilePath, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

impl fmt::Display for FolderObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

#[async_trait]
impl ObjectStore for FolderObjects {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if matches!(options.mode, PutMode::Create) {
            return self.create(location, payload).await;
        }
        while_away_async(|| self.inner.put_opts(location, payload.clone(), options.clone())).await
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    /// Only a look is waited for here; who reads contents reads them again as a whole.
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            return while_away_async(|| self.inner.get_opts(location, options.clone())).await;
        }
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, prefix) = (self.inner.clone(), prefix.cloned());
        // Whole, so that it can be begun again: what is listed here is the folder of one checkpoint.
        let listed = async move {
            let found: Result<Vec<ObjectMeta>> = while_away_async(|| inner.list(prefix.as_ref()).try_collect()).await;
            found.map_or_else(|error| vec![Err(error)], |found| found.into_iter().map(Ok).collect())
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        while_away_async(|| self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}
