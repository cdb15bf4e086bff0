//! Interleaved documents as a data set: which samples a source has, and how one becomes a [`Document`].
//!
//! Comes in: shards of a source and its settings. Goes out: samples under one numbering, and for any of them its parts, with the images given
//! to whoever decodes them. A new source is one file that implements [`Source`], and one line where a data set is opened.
//! It must not tokenize, and knows of images only whether they can be read.

mod images;
mod index;
mod mmc4;
mod obelics;
mod packed;
mod shards;
mod unfound;
mod unpacked;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{cause::RedrawCause, dataset::DatasetError, document::Document, mmc4::SlotChoices, packed::PackedDocument};

pub(crate) use index::{DocumentIndexError, EXTENSION, Findings, NAMED_LIMIT};
pub use index::{Findings as DocumentFindings, ImageExample, LeftOut};
pub(crate) use mmc4::Mmc4;
pub(crate) use obelics::Obelics;
pub(crate) use packed::Packed;
pub(crate) use shards::Shards;

/// Takes an encoded image, given its number in the document; false when it cannot be read.
pub(crate) type Decode<'a> = dyn FnMut(u32, &[u8]) -> bool + 'a;

/// Waits before another attempt to read; true to give up.
pub(crate) type Wait<'a> = dyn FnMut(Duration) -> bool + 'a;

/// What reading a sample needs besides its number.
pub(crate) struct Asked<'a> {
    /// Makes the random choices of the document.
    pub(crate) choices: SlotChoices,
    /// Chance of an image to stand before its text, where the source leaves that open.
    pub(crate) before_probability: f64,
    /// Gets every image that the document takes, in order.
    pub(crate) decode: &'a mut Decode<'a>,
    /// For errors that may pass. Each read is tried again by itself: what a document has got so far stays.
    pub(crate) wait: &'a mut Wait<'a>,
    /// Is filled with the parts. Its images have the numbers under which `decode` got them.
    pub(crate) document: &'a mut Document,
}

/// A sample with all that could be drawn of it, before anything is drawn.
#[derive(Debug)]
pub(crate) struct Whole {
    /// Its parts.
    pub(crate) document: PackedDocument,
    /// The images that these name, by their numbers.
    pub(crate) images: BTreeMap<u32, WholeImage>,
}

/// An image of a sample as it lies on disk.
#[derive(Debug)]
pub(crate) struct WholeImage {
    /// Where it is looked for: the file or the shard, its name there, and its first byte in a shard.
    pub(crate) place: (PathBuf, String, Option<u64>),
    /// Its file; `None` when it is not there.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// What the index of OBELICS counts a document as none of whose images is in the store.
pub(crate) const NO_IMAGE_STORED: &str = "no_image_stored";

/// What tools count an image as that is not there; training leaves it out.
pub(crate) const IMAGE_MISSING: &str = "image_missing";

impl WholeImage {
    /// Where it is looked for, in words.
    pub(crate) fn place_in_words(&self) -> String {
        let (shard, name, byte) = &self.place;
        match byte {
            Some(byte) => format!("{name} in {} at byte {byte}", shard.display()),
            None if shard.as_os_str().is_empty() => name.clone(),
            None => shard.display().to_string(),
        }
    }
}

/// A data set of documents. All threads read at once.
pub(crate) trait Source: fmt::Debug + Send + Sync {
    /// Its shards with their indexes.
    fn shards(&self) -> &Shards;

    /// For every shard, the number of the sample after its last one.
    fn ends(&self) -> Arc<[u64]> {
        self.shards().ends()
    }

    /// Images that a pass uses, as far as the index can know it.
    fn images(&self) -> u64 {
        self.shards().images()
    }

    /// Name without folders, size and number of samples of every shard, and how samples were made of them.
    fn describe(&self) -> (Vec<(PathBuf, u64, u64)>, String);

    /// Reads a sample.
    fn read(&self, sample: u64, asked: &mut Asked<'_>) -> Result<Result<(), RedrawCause>, DatasetError>;

    /// Has the bytes of a sample at hand, where they come from an object store.
    fn fetch(&self, sample: u64) -> Result<(), DatasetError>;

    /// Reads a sample with all that could be drawn of it.
    fn whole(&self, sample: u64, wait: &mut Wait<'_>) -> Result<Whole, DatasetError>;

    /// Most images of a document.
    fn most_images(&self) -> usize;

    /// What the index of each shard found.
    fn findings(&self) -> Vec<(PathBuf, &Findings)> {
        self.shards().findings()
    }

    /// Looks through a shard once more, for findings that name what gives no sample.
    fn look_through(&self, shard: &Path) -> Result<Findings, DatasetError>;

    /// The shard of a sample, and what it is called there.
    fn name(&self, sample: u64) -> Result<(PathBuf, String), DatasetError>;
}
