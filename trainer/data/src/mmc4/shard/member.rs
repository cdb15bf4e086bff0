//! The one member of a zipped shard.
//!
//! Comes in: an open file. Goes out: a reader of the member's unpacked bytes, which checks their check sum at the end.

use std::{
    io::{self, BufReader},
    path::Path,
};

use zip::{ZipArchive, read::ZipFile, result::ZipError};

use super::ShardError;
use crate::blob::{Blob, BlobReader, is_of_storage};

/// What every zip archive with a member begins with.
const SIGNATURE: &[u8; 4] = b"PK\x03\x04";

/// Members that a message names; an archive may have thousands.
const NAMED: usize = 3;

/// An archive in a file.
pub(super) type Archive<'f> = ZipArchive<BufReader<BlobReader<'f>>>;

/// Whether a shard is an archive: by its name, or by how it begins. A line of JSON begins otherwise.
pub(super) fn is_zip(path: &Path, file: &Blob) -> Result<bool, ShardError> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("zip")) {
        return Ok(true);
    }
    let mut begin = [0; SIGNATURE.len()];
    match file.read_exact_at(&mut begin, 0) {
        Ok(()) => Ok(begin == *SIGNATURE),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(source) => Err(ShardError::Read { path: path.to_owned(), offset: 0, source }),
    }
}

/// Reads an archive's directory.
pub(super) fn open<'f>(path: &Path, file: &'f Blob) -> Result<Archive<'f>, ShardError> {
    ZipArchive::new(BufReader::new(file.reader())).map_err(|source| match source {
        ZipError::Io(source) if is_of_storage(&source) => ShardError::Read { path: path.to_owned(), offset: 0, source },
        source => ShardError::NotZip { path: path.to_owned(), source },
    })
}

/// The member called like the archive without `.zip`, or else the only one, and its name.
pub(super) fn find<'a, 'f>(
    path: &Path,
    archive: &'a mut Archive<'f>,
) -> Result<(ZipFile<'a, BufReader<BlobReader<'f>>>, String), ShardError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let wanted = strip_zip(&name);
    let files: Vec<(usize, String)> = archive
        .file_names_raw()
        .enumerate()
        .filter(|(_, name)| !name.ends_with(b"/"))
        .map(|(index, name)| (index, String::from_utf8_lossy(name).into_owned()))
        .collect();
    let (index, member) = match (files.iter().find(|(_, name)| name == wanted), files.as_slice()) {
        (Some((index, name)), _) | (None, [(index, name)]) => (*index, name.clone()),
        (None, []) => return Err(no_member(path, wanted, "none".to_owned())),
        (None, several) => {
            let names: Vec<&str> = several.iter().take(NAMED).map(|(_, name)| name.as_str()).collect();
            let more = if several.len() > NAMED { ", …" } else { "" };
            return Err(no_member(path, wanted, format!("{} ({}{more})", several.len(), names.join(", "))));
        }
    };
    match archive.by_index(index) {
        Ok(file) => Ok((file, member)),
        Err(source @ (ZipError::UnsupportedArchive(_) | ZipError::CompressionMethodNotSupported(_) | ZipError::InvalidPassword)) => {
            Err(ShardError::Packing { path: path.to_owned(), member, source: source.into() })
        }
        Err(source) => Err(ShardError::Damaged { path: path.to_owned(), member, offset: 0, source: source.into() }),
    }
}

fn no_member(path: &Path, wanted: &str, found: String) -> ShardError {
    ShardError::NoMember { path: path.to_owned(), wanted: wanted.to_owned(), found }
}

fn strip_zip(name: &str) -> &str {
    match name.len().checked_sub(".zip".len()).and_then(|at| name.split_at_checked(at)) {
        Some((stem, extension)) if extension.eq_ignore_ascii_case(".zip") => stem,
        _ => name,
    }
}
