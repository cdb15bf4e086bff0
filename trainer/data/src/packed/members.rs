//! Where the documents of a tar shard lie, and taking one apart.
//!
//! Comes in: a shard ([`for_each_document`]), or the bytes of one document as they lie in it ([`take_apart`]). Goes out: for every document the
//! run of bytes that holds it and where its members lie. It does not read what the members hold.

use std::{collections::BTreeMap, io::Cursor, ops::Range, path::Path};

use lcl_trainer_config::KeySeparator;

use crate::blob::Blob;
use crate::shard::{self, BLOCK, Member, MemberKind, ShardError, split_name};

/// The members of a document: consecutive ones whose names agree up to their first dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Members {
    /// What the names have in common, folder included.
    pub(crate) key: String,
    /// Byte at which the headers of the first one begin, and that behind the last one.
    pub(crate) bytes: Range<u64>,
    /// The contents of `KEY.json`.
    pub(crate) json: Option<Range<u64>>,
    /// The contents of the images by their numbers.
    pub(crate) images: BTreeMap<u32, Range<u64>>,
    /// Two of them are the same part, so that neither is surely the document's.
    pub(crate) doubled: bool,
    /// An image without a number or a caption stands among them, as in pairs.
    pub(crate) has_pair: bool,
}

/// What a member of a document is by what follows its name's first dot.
enum Role {
    Json,
    Image(u32),
    /// What a pair has by its usual keys.
    OfPair,
}

/// Whether a member with this extension is a numbered image, as those of documents are.
pub(crate) fn is_numbered_image(extension: &[u8]) -> bool {
    matches!(role(extension), Some(Role::Image(_)))
}

/// `json`, or `NUMBER.ANYTHING`: what kind of image it is, is seen in its contents.
fn role(extension: &[u8]) -> Option<Role> {
    if extension == b"json" {
        return Some(Role::Json);
    }
    if matches!(extension, b"jpg" | b"png" | b"jpeg" | b"webp" | b"txt") {
        return Some(Role::OfPair);
    }
    let (number, kind) = std::str::from_utf8(extension).ok()?.split_once('.')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && !kind.is_empty()).then(|| number.parse().ok()).flatten().map(Role::Image)
}

/// Collects members into documents.
#[derive(Default)]
struct Collector {
    current: Option<Members>,
}

impl Collector {
    /// Takes the next member; returns the document before it when it begins a new one.
    fn push(&mut self, member: &Member) -> Option<Members> {
        let (key, extension) = split_name(&member.name, KeySeparator::FirstDot)?;
        // Contents that lie elsewhere cannot be read: as if the member were not there.
        let role = role(&extension).filter(|_| member.kind == MemberKind::File);
        let key = String::from_utf8_lossy(key).into_owned();
        let contents = member.offset..member.offset + member.length;
        let end = contents.end.next_multiple_of(BLOCK);
        let finished = match &mut self.current {
            Some(members) if members.key == key => {
                members.bytes.end = end;
                None
            }
            _ => self.current.replace(Members {
                key,
                bytes: member.start..end,
                json: None,
                images: BTreeMap::new(),
                doubled: false,
                has_pair: false,
            }),
        };
        let members = self.current.as_mut()?;
        members.has_pair |= matches!(role, Some(Role::OfPair));
        members.doubled |= match role {
            Some(Role::Json) => members.json.replace(contents).is_some(),
            Some(Role::Image(number)) => members.images.insert(number, contents).is_some(),
            Some(Role::OfPair) | None => false,
        };
        finished
    }
}

/// Calls `visit` for every document of a shard in its order.
pub(crate) fn for_each_document(path: &Path, file: &Blob, mut visit: impl FnMut(Members)) -> Result<(), ShardError> {
    let mut collector = Collector::default();
    shard::walk(path, file, |member| collector.push(&member).into_iter().for_each(&mut visit))?;
    collector.current.into_iter().for_each(visit);
    Ok(())
}

/// The members of the document whose bytes these are; places count from the first of them. `None` when they are no such document.
pub(crate) fn take_apart(bytes: &[u8]) -> Option<Members> {
    let mut collector = Collector::default();
    let mut archive = tar::Archive::new(Cursor::new(bytes));
    // As when it was indexed: archives may lie one after the other.
    archive.set_ignore_zeros(true);
    for entry in archive.entries_with_seek().ok()? {
        let entry = entry.ok()?;
        let kind = entry.header().entry_type();
        let kind = match kind {
            kind if kind.is_file() && !kind.is_gnu_sparse() => MemberKind::File,
            kind if kind.is_gnu_sparse() || kind.is_hard_link() || kind.is_symlink() => MemberKind::Elsewhere,
            _ => continue,
        };
        let (offset, length) = (entry.raw_file_position(), entry.size());
        let member = Member { kind, name: entry.path_bytes().into_owned(), start: 0, offset, length };
        if collector.push(&member).is_some() {
            return None;
        }
    }
    collector.current
}

/// The bytes of a member of a document that was taken apart.
pub(crate) fn contents<'a>(bytes: &'a [u8], place: &Range<u64>) -> Option<&'a [u8]> {
    bytes.get(usize::try_from(place.start).ok()?..usize::try_from(place.end).ok()?)
}
