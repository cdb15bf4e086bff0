//! A folder that fails as volumes do: without hard links or locks, read-only, full, away and back.
//!
//! Comes in: a folder and what of it shall fail. Goes out: a command whose processes see it fail, at the system calls that they make through
//! the C library (`native/volume.c`). The folder is a real one all the while, and this process sees it as it is.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use rustix::io::Errno;
use tempfile::NamedTempFile;

/// A kind of system call, in the order of `enum call` in `native/volume.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// All of them, counted together.
    Any,
    /// Opening or creating a file to write.
    OpenToWrite,
    /// Opening a file or folder to read.
    OpenToRead,
    /// Writing.
    Write,
    /// Reading.
    Read,
    /// Flushing to stable storage.
    Sync,
    /// Making a hard link.
    Link,
    /// Renaming over whatever is there.
    Rename,
    /// Renaming to a name that must not be there.
    RenameNew,
    /// Making a folder.
    MakeFolder,
    /// Removing a file or folder.
    Remove,
    /// Changing a file's length.
    Cut,
    /// Locking.
    Lock,
    /// Looking at a file or folder.
    Look,
    /// Opening a folder to list it.
    List,
    /// Binding a socket.
    Bind,
    /// Asking for the volume's room: it has none then.
    Room,
}

/// Kinds of calls.
const CALLS: usize = 17;
/// Bytes of `struct fault`: error, calls that still fail, calls that failed.
const FAULT: usize = 12;

/// What changes a volume: on one that is read-only they fail.
pub const CHANGES: [Call; 8] =
    [Call::OpenToWrite, Call::Write, Call::Link, Call::Rename, Call::RenameNew, Call::MakeFolder, Call::Remove, Call::Cut];
/// What needs room.
pub const GROWS: [Call; 2] = [Call::Write, Call::MakeFolder];

/// A folder with faults.
#[derive(Debug)]
pub struct Volume {
    folder: PathBuf,
    control: NamedTempFile,
}

impl Volume {
    /// A volume without faults yet; the folder is made if it is not there.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let control = NamedTempFile::new()?;
        control.as_file().set_len((CALLS * FAULT) as u64)?;
        Ok(Self { folder: folder.canonicalize()?, control })
    }

    /// Has the processes of this command see the volume's faults, those of now and of later.
    pub fn mount(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", env!("LCL_VOLUME_LIBRARY"))
            .env("LCL_VOLUME", &self.folder)
            .env("LCL_VOLUME_CONTROL", self.control.path());
    }

    /// From now on these calls fail; `times`: only so many of each kind.
    pub fn fail(&self, calls: &[Call], error: Errno, times: Option<u32>) -> Result<()> {
        for call in calls {
            let left = times.map_or(Ok(-1), i32::try_from)?;
            self.set(*call, 4, left)?;
            self.set(*call, 0, error.raw_os_error())?;
        }
        Ok(())
    }

    /// From now on nothing fails.
    pub fn heal(&self) -> Result<()> {
        (0..CALLS).try_for_each(|call| self.write(call, 0, 0))
    }

    /// How many calls of this kind have failed.
    pub fn met(&self, call: Call) -> Result<u32> {
        let mut bytes = [0; 4];
        self.file().read_exact_at(&mut bytes, (call as usize * FAULT + 8) as u64)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn set(&self, call: Call, field: usize, value: i32) -> Result<()> {
        self.write(call as usize, field, value)
    }

    fn write(&self, call: usize, field: usize, value: i32) -> Result<()> {
        self.file().write_all_at(&value.to_ne_bytes(), (call * FAULT + field) as u64).context("the volume's faults cannot be set")
    }

    fn file(&self) -> &File {
        self.control.as_file()
    }
}
