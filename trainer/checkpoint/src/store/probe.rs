//! Whether a volume can hold a run, found out before anything is trained.
//!
//! Comes in: the folder of a store. Goes out: nothing, or the first thing of those a run needs that the volume does not do. What it can do
//! without is not asked for: hard links, locks, sockets, permissions, flushing.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
};

use nix::sys::statvfs::statvfs;

use super::{CheckpointStore, LocalFolder, StoreError, folder::publish};
use crate::volume::{Volume, VolumeFault, sync, while_away};

/// Written for a try: a page, which a full volume has no room for though it may still make an empty file.
const PAGE: [u8; 4096] = [0x5a; 4096];

impl CheckpointStore {
    /// Tries on a folder of this machine what a run does there: makes a folder, files, gives them names, replaces, appends, reads and removes.
    /// Nothing of it stays. Does nothing for cloud stores, whose first answer is to the listing of what is there. Blocks.
    pub fn probe(&self) -> Result<(), StoreError> {
        let Some(LocalFolder { path, .. }) = &self.inner.local else { return Ok(()) };
        while_away(|| probe(path)).map_err(|Refused { what, source }| StoreError::Volume {
            folder: path.clone(),
            volume: Volume::of(path),
            what,
            advice: VolumeFault::of(&source).advice(),
            source,
        })
    }

    /// Refuses when the volume says that it has no room for `bytes` more. One that does not say how large it is has room. Blocks.
    pub fn check_room(&self, bytes: u64) -> Result<(), StoreError> {
        let Some(LocalFolder { path, .. }) = &self.inner.local else { return Ok(()) };
        // What it cannot say is no reason not to train.
        let Ok(state) = statvfs(path.as_path()) else { return Ok(()) };
        let free = state.blocks_available().saturating_mul(state.fragment_size());
        if state.blocks() == 0 || free >= bytes {
            return Ok(());
        }
        Err(StoreError::NoRoom { folder: path.clone(), volume: Volume::of(path), free, bytes })
    }
}

/// What the volume did not do.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Refused {
    what: &'static str,
    source: io::Error,
}

fn probe(folder: &Path) -> Result<(), Refused> {
    let place = make_place(folder).map_err(|source| Refused { what: "make a folder", source })?;
    let tried = try_in(&place);
    let removed = fs::remove_dir_all(&place).map_err(|source| Refused { what: "remove a folder", source });
    tried.and(removed)
}

/// A folder that nobody else has: processes of one number may try the same volume at once, in containers of their own.
fn make_place(folder: &Path) -> io::Result<PathBuf> {
    let mut number = 0_u32;
    loop {
        let place = folder.join(format!(".probe-{}-{number}", process::id()));
        match fs::create_dir(&place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => number += 1,
            made => return made.map(|()| place),
        }
    }
}

fn try_in(place: &Path) -> Result<(), Refused> {
    let refused = |what| move |source| Refused { what, source };
    let path = place.join("file");
    let write = |path: &Path| -> io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(&PAGE)?;
        sync(&file, path)
    };
    for name in ["first", "second"] {
        write(&place.join(name)).map_err(refused("write a file"))?;
    }
    publish(&place.join("first"), &path).map_err(refused("rename a file"))?;
    fs::rename(place.join("second"), &path).map_err(refused("replace a file by another"))?;
    let append = || -> io::Result<()> {
        let mut file = File::options().append(true).open(&path)?;
        file.write_all(&PAGE)?;
        sync(&file, &path)
    };
    append().map_err(refused("append to a file"))?;
    let found = fs::read(&path).map_err(refused("read a file"))?;
    if found.len() != 2 * PAGE.len() || found.iter().any(|byte| *byte != PAGE[0]) {
        return Err(refused("read what was written")(io::ErrorKind::InvalidData.into()));
    }
    fs::remove_file(&path).map_err(refused("remove a file"))
}
