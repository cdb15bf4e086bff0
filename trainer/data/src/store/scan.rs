//! The addresses of one shard.
//!
//! Comes in: a shard. Goes out: a record for every image with its address, and why others are left out. Only headers and `json` members are
//! read.

use std::{borrow::Cow, collections::BTreeMap, fmt, path::Path};

use lcl_trainer_config::SampleKeys;
use serde::Deserialize;

use crate::{
    blob::{Blob, Stamp},
    dataset::IMAGE_BYTES_LIMIT,
    index::{Extent, for_each_sample, stamp_of},
    shard::{self, Keyed, Member, SampleFiles, ShardError},
    store::{
        StoreError,
        record::{Hash, Record, digest},
    },
};

/// Most bytes of a `json` member. img2dataset writes some 300, and an image's EXIF entries, which can be some 100 kB.
const METADATA_BYTES_LIMIT: u64 = 4 << 20;

/// Why a sample of a store gives no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeftOut {
    /// It has no image, or one that is a link.
    NoImage,
    /// It has no `json`.
    NoMetadata,
    /// Two of its members have the same name: which of them belong together is not known.
    DoubledMember,
    /// Its `json` is larger than any that img2dataset writes.
    MetadataTooLarge,
    /// Its `json` is no JSON object.
    MetadataDamaged,
    /// Its `json` has no text under `url`.
    NoAddress,
    /// Its image is larger than any that is decoded.
    ImageTooLarge,
}

impl LeftOut {
    /// The name in metrics and logs, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoImage => "no_image",
            Self::NoMetadata => "no_metadata",
            Self::DoubledMember => "doubled_member",
            Self::MetadataTooLarge => "metadata_too_large",
            Self::MetadataDamaged => "metadata_damaged",
            Self::NoAddress => "no_address",
            Self::ImageTooLarge => "image_too_large",
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a scan found beside the records.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// The shard's file.
    pub(crate) stamp: Stamp,
    /// For every cause the number of samples and the key of the first one.
    pub(crate) left_out: BTreeMap<LeftOut, (u64, String)>,
}

/// Which members are looked for, in the words that samples are grouped by: the `json` stands in the caption's place.
fn keys() -> SampleKeys {
    let list = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
    SampleKeys { image: list(&["jpg", "png", "webp", "jpeg"]), caption: list(&["json"]), ..SampleKeys::default() }
}

/// Reads a shard to its end, for what is wrong with it. `left_out` gets the cause of every sample that gives no record, what it is called in the
/// shard, and its byte there.
pub(crate) fn check_shard(path: &Path, mut left_out: impl FnMut(LeftOut, String, u64)) -> Result<(), StoreError> {
    let named = |cause: LeftOut, files: &SampleFiles| {
        let key = || (String::from_utf8_lossy(&files.key).into_owned(), files.start);
        let member = |keyed: &Option<Keyed>| {
            keyed.as_ref().map_or_else(key, |Keyed { member, .. }| (String::from_utf8_lossy(&member.name).into_owned(), member.offset))
        };
        let (name, byte) = match cause {
            LeftOut::MetadataTooLarge | LeftOut::MetadataDamaged | LeftOut::NoAddress => member(&files.caption),
            LeftOut::ImageTooLarge => member(&files.image),
            LeftOut::NoImage | LeftOut::NoMetadata | LeftOut::DoubledMember => key(),
        };
        left_out(cause, name, byte);
    };
    scan_with(path, 0, digest, drop, named).map(drop)
}

/// Calls `visit` for every image of shard `number` that has an address, in the shard's order.
pub(crate) fn scan(path: &Path, number: u32, hash: Hash, visit: impl FnMut(Record)) -> Result<Scanned, StoreError> {
    let mut left_out: BTreeMap<LeftOut, (u64, String)> = BTreeMap::new();
    let stamp = scan_with(path, number, hash, visit, |cause, files| {
        left_out.entry(cause).or_insert_with(|| (0, String::from_utf8_lossy(&files.key).into_owned())).0 += 1;
    })?;
    Ok(Scanned { stamp, left_out })
}

fn scan_with(
    path: &Path,
    number: u32,
    hash: Hash,
    mut visit: impl FnMut(Record),
    mut left_out: impl FnMut(LeftOut, &SampleFiles),
) -> Result<Stamp, StoreError> {
    let file = shard::open(path)?;
    let stamp = stamp_of(path, &file)?;
    let mut failed = None;
    for_each_sample(path, &file, &keys(), |files| {
        if failed.is_some() {
            return;
        }
        match record_of(&Shard { path, file: &file, number, hash }, &files) {
            Ok(Ok(record)) => visit(record),
            Ok(Err(cause)) => left_out(cause, &files),
            Err(error) => failed = Some(error),
        }
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None if stamp_of(path, &file)? != stamp => Err(StoreError::ShardChanged { shard: path.to_owned() }),
        None => Ok(stamp),
    }
}

struct Shard<'a> {
    path: &'a Path,
    file: &'a Blob,
    number: u32,
    hash: Hash,
}

fn record_of(shard: &Shard, files: &SampleFiles) -> Result<Result<Record, LeftOut>, ShardError> {
    if files.doubled {
        return Ok(Err(LeftOut::DoubledMember));
    }
    let Some(image) = &files.image else { return Ok(Err(LeftOut::NoImage)) };
    let Some(metadata) = &files.caption else { return Ok(Err(LeftOut::NoMetadata)) };
    let Some(length) = u32::try_from(image.member.length).ok().filter(|length| *length <= IMAGE_BYTES_LIMIT) else {
        return Ok(Err(LeftOut::ImageTooLarge));
    };
    if metadata.member.length > METADATA_BYTES_LIMIT {
        return Ok(Err(LeftOut::MetadataTooLarge));
    }
    let contents = read(shard, &metadata.member)?;
    let address = match address_in(&contents) {
        Ok(address) => address,
        Err(cause) => return Ok(Err(cause)),
    };
    let extent = Extent { offset: image.member.offset, length };
    let record = Record::new((shard.hash)(&address), shard.number, extent);
    record.map(Ok).ok_or_else(|| ShardError::TooLarge { path: shard.path.to_owned() })
}

fn read(shard: &Shard, member: &Member) -> Result<Vec<u8>, ShardError> {
    let mut contents = vec![0; member.length as usize];
    let read = shard.file.read_exact_at(&mut contents, member.offset);
    read.map_err(|source| ShardError::Read { path: shard.path.to_owned(), offset: member.offset, source })?;
    Ok(contents)
}

/// The part of a sample's metadata that is read.
#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(default, borrow)]
    url: Option<Cow<'a, str>>,
}

/// The address in a sample's metadata.
fn address_in(contents: &[u8]) -> Result<String, LeftOut> {
    if !contents.trim_ascii_start().starts_with(b"{") {
        return Err(LeftOut::MetadataDamaged);
    }
    let parse = |contents: &[u8]| serde_json::from_slice::<Metadata>(contents).map(|metadata| metadata.url.map(Cow::into_owned));
    // Another attempt costs only those few that need it.
    let parsed = parse(contents).or_else(|error| if error.is_syntax() { parse(&without_bare_words(contents)) } else { Err(error) });
    match parsed {
        Ok(address) => address.ok_or(LeftOut::NoAddress),
        Err(error) if error.is_data() => Err(LeftOut::NoAddress),
        Err(_) => Err(LeftOut::MetadataDamaged),
    }
}

/// JSON as Python writes it for numbers that are none (`NaN`, `Infinity`, `-Infinity`), which additional columns of a download can
/// hold, with `0` in their place.
fn without_bare_words(contents: &[u8]) -> Vec<u8> {
    let mut mended = Vec::with_capacity(contents.len());
    let (mut in_text, mut escaped) = (false, false);
    let mut rest = contents;
    while let [first, after @ ..] = rest {
        let word = [&b"NaN"[..], b"-Infinity", b"Infinity"].into_iter().find(|word| !in_text && rest.starts_with(word));
        if let Some(word) = word {
            mended.push(b'0');
            rest = rest.get(word.len()..).unwrap_or_default();
            continue;
        }
        in_text ^= *first == b'"' && !escaped;
        escaped = in_text && *first == b'\\' && !escaped;
        mended.push(*first);
        rest = after;
    }
    mended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(contents: &str, expected: Result<&str, LeftOut>) {
        assert_eq!(address_in(contents.as_bytes()), expected.map(str::to_owned), "{contents}");
    }

    #[test]
    fn the_address_is_the_text_under_url_byte_for_byte() {
        check(
            r#"{"similarity": 0.25, "url": "HTTP://A.example/%7Ea b?x=1&amp;y#z", "key": "0"}"#,
            Ok("HTTP://A.example/%7Ea b?x=1&amp;y#z"),
        );
        check(r#"{"url": "http://a/gr\u00f6\u00dfe\u0301\/"}"#, Ok("http://a/größe\u{301}/"));
        check(r#"{"url": ""}"#, Ok(""));
    }

    #[test]
    fn numbers_as_python_writes_them_do_not_hide_the_address() {
        check(
            "{\n  \"caption\": \"a \\\"NaN\\\\\", \"x\": NaN, \"y\": [-Infinity, Infinity], \"url\": \"http://a/NaN\"\n}",
            Ok("http://a/NaN"),
        );
    }

    #[test]
    fn metadata_without_an_address_says_why() {
        check(r#"{"key": "0"}"#, Err(LeftOut::NoAddress));
        check(r#"{"url": null}"#, Err(LeftOut::NoAddress));
        check(r#"{"url": 7}"#, Err(LeftOut::NoAddress));
        check(r#"["http://a/"]"#, Err(LeftOut::MetadataDamaged));
        check(r#"{"url": "http://a/"#, Err(LeftOut::MetadataDamaged));
        check("", Err(LeftOut::MetadataDamaged));
    }
}
