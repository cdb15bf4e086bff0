//! Documents of any source as tar shards that hold everything they need, for `lcl data convert`.
//!
//! Comes in: a source of documents and a folder. Goes out: `00000.tar`, `00001.tar` and so on there, in the order of the source's samples, as
//! [`crate::packed`] describes them, and `conversion.json`, which says of what data they are. Images are written as they are, after a look
//! at whether they can be decoded. It draws nothing: which image of a text is taken, and on which side of it, is drawn when a document is read, as with
//! the source.

use std::{
    collections::BTreeMap,
    fs, io,
    num::NonZero,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lcl_trainer_config::DataConfig;
use serde::{Deserialize, Serialize};

use crate::{
    cause::RedrawCause,
    count_of,
    dataset::{Dataset, DatasetError, Description},
    documents::{Findings, IMAGE_MISSING, LeftOut, Source, Whole},
    image::{Format, ImageError, Scratch, decode, probe},
    index::over_all,
    packed::PackedDocument,
    retry::sleep,
    shard::{ListOrigin, ShardWriter, WriteError, new_file_for},
};

/// What says of which data a folder's shards are.
const RECORD: &str = "conversion.json";

/// Where to write, and how much into a shard.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The folder; it is made.
    pub output: PathBuf,
    /// Most documents of a shard. A shard of the source begins a new one.
    pub documents_per_shard: NonZero<u64>,
}

/// What was written, and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConvertReport {
    /// Shards that were written now.
    pub written: usize,
    /// Shards that were there from a conversion before.
    pub kept: usize,
    /// Documents that were written now.
    pub documents: u64,
    /// Images that were written now.
    pub images: u64,
    /// What was left out of those: how often for which cause, and the first.
    pub left_out: BTreeMap<String, (u64, String)>,
    /// What the source's index found no samples: how often for which cause, and the first. These are never written.
    pub no_samples: BTreeMap<String, LeftOut>,
}

/// Documents cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The data cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// They are no documents, or of several sources.
    #[error(
        "only documents of one source can be converted: name its shards with --source mmc4 or --source obelics, or a manifest with spec.data.mmc4 or spec.data.obelics"
    )]
    NotDocuments,
    /// The folder holds shards of something else.
    #[error("{} was not written by this conversion: {difference}; name an empty folder", path.display())]
    OtherConversion {
        /// What is there.
        path: PathBuf,
        /// What is different, as far as it is known.
        difference: String,
    },
    /// What is to be the folder is something else.
    #[error("{} is no folder: name one that is empty, or that is not there yet (--output)", path.display())]
    NotAFolder {
        /// What is there.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("writing {}", path.display())]
    Write {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A shard cannot be written.
    #[error(transparent)]
    Shard(#[from] WriteError),
}

/// What `conversion.json` holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conversion {
    version: u32,
    /// Identity of the source's data and settings.
    data: String,
    documents_per_shard: u64,
    /// What the source consists of, for messages. What an earlier version wrote had none.
    #[serde(default)]
    description: Option<Description>,
}

impl Conversion {
    /// What tells this conversion from one before; `None` where it is the same.
    fn changed_from(&self, before: &Self) -> Option<String> {
        if self.version != before.version {
            return Some(format!("its layout is {}, and is {} now", before.version, self.version));
        }
        if self.documents_per_shard != before.documents_per_shard {
            let (now, before) = (count_of(self.documents_per_shard, "document"), before.documents_per_shard);
            return Some(format!("a shard has up to {now}, and had {before} (--documents-per-shard)"));
        }
        if self.data == before.data {
            return None;
        }
        let described = self.description.as_ref().zip(before.description.as_ref());
        let difference = described.and_then(|(now, before)| now.changed_from(before));
        Some(format!("it is of other data or settings{}", difference.map_or_else(String::new, |difference| format!(": {difference}"))))
    }
}

/// A shard that is to be written: which samples of the source it holds.
struct Unit {
    number: usize,
    samples: Range<u64>,
}

/// Converts the documents of `config.source` with `config.threads` threads. Shards that an earlier call wrote, which did not come to its end, are kept.
/// `progress` hears how many documents of how many are done.
pub fn convert(
    config: &DataConfig,
    origin: ListOrigin,
    options: &ConvertOptions,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<ConvertReport, ConvertError> {
    let dataset = Dataset::open_from(config, origin)?;
    let (source, _) = dataset.document(0).map_err(|_| ConvertError::NotDocuments)?;
    if dataset.sources() > 1 {
        return Err(ConvertError::NotDocuments);
    }
    let ends = source.ends();
    let documents_per_shard = options.documents_per_shard.get();
    let wanted = Conversion { version: 1, data: dataset.digest(), documents_per_shard, description: Some(dataset.description()) };
    claim(&options.output, &wanted)?;
    let units = divide(&ends, options.documents_per_shard);
    let (done, all) = (AtomicU64::new(0), dataset.samples_per_pass());
    let threads = NonZero::new(config.threads).unwrap_or(NonZero::<usize>::MIN);
    let reports = over_all(threads, &units, |unit| {
        let path = options.output.join(format!("{:05}.tar", unit.number));
        let count = |samples: u64| progress(done.fetch_add(samples, Ordering::Relaxed) + samples, all);
        if is_whole(&path).map_err(|source| ConvertError::Write { path: path.clone(), source })? {
            count(unit.samples.end - unit.samples.start);
            return Ok(ConvertReport { kept: 1, ..ConvertReport::default() });
        }
        write_shard(source, unit, &path, count)
    });
    let mut all = reports?.into_iter().fold(ConvertReport::default(), ConvertReport::and);
    let mut found = Findings::default();
    source.findings().into_iter().for_each(|(_, findings)| found.add(findings));
    all.no_samples = found.left_out;
    Ok(all)
}

impl ConvertReport {
    fn and(mut self, other: Self) -> Self {
        self.written += other.written;
        self.kept += other.kept;
        self.documents += other.documents;
        self.images += other.images;
        for (cause, (count, first)) in other.left_out {
            self.left_out.entry(cause).or_insert((0, first)).0 += count;
        }
        self
    }

    fn leave_out(&mut self, cause: &str, first: impl FnOnce() -> String) {
        match self.left_out.get_mut(cause) {
            Some((count, _)) => *count += 1,
            None => drop(self.left_out.insert(cause.to_owned(), (1, first()))),
        }
    }
}

/// Makes the folder this conversion's, or finds that it is.
fn claim(folder: &Path, wanted: &Conversion) -> Result<(), ConvertError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ConvertError::Write { path, source }
    };
    if folder.symlink_metadata().is_ok() && !folder.is_dir() {
        return Err(ConvertError::NotAFolder { path: folder.to_owned() });
    }
    fs::create_dir_all(folder).map_err(failed(folder))?;
    let path = folder.join(RECORD);
    match fs::read(&path) {
        Ok(bytes) => {
            let found = serde_json::from_slice::<Conversion>(&bytes);
            let difference =
                found.map_or_else(|error| Some(format!("it is no record of one ({error})")), |found| wanted.changed_from(&found));
            return difference.map_or(Ok(()), |difference| Err(ConvertError::OtherConversion { path, difference }));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(ConvertError::Write { path, source }),
    }
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let found = entry.map_err(failed(folder))?.path();
        if found.extension().is_some_and(|extension| extension == "tar") {
            return Err(ConvertError::OtherConversion { path: found, difference: format!("there is no {RECORD} beside it") });
        }
    }
    let mut file = new_file_for(&path).map_err(failed(&path))?;
    // Plain data: turning it into JSON cannot fail.
    let json = serde_json::to_vec_pretty(wanted).unwrap_or_default();
    io::Write::write_all(&mut file, &json).map_err(failed(&path))?;
    file.persist(&path).map_err(|error| ConvertError::Write { path: path.clone(), source: error.error })?;
    Ok(())
}

/// Whether a shard is there with its end mark, which is written last: one that was cut short since is written anew.
fn is_whole(path: &Path) -> io::Result<bool> {
    const END: usize = 1024;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let Some(place) = file.metadata()?.len().checked_sub(END as u64).filter(|place| place % 512 == 0) else { return Ok(false) };
    let mut end = [1; END];
    file.read_exact_at(&mut end, place)?;
    Ok(end == [0; END])
}

/// The shards that are to be written. None holds documents of two shards of the source.
fn divide(ends: &Arc<[u64]>, documents_per_shard: NonZero<u64>) -> Vec<Unit> {
    let (mut units, mut begin) = (Vec::new(), 0);
    for end in ends.iter().copied() {
        while begin < end {
            let samples = begin..end.min(begin.saturating_add(documents_per_shard.get()));
            begin = samples.end;
            units.push(Unit { number: units.len(), samples });
        }
    }
    units
}

fn write_shard(source: &dyn Source, unit: &Unit, path: &Path, count: impl Fn(u64)) -> Result<ConvertReport, ConvertError> {
    let (mut report, mut scratch) = (ConvertReport { written: 1, ..ConvertReport::default() }, Scratch::new());
    let mut shard = ShardWriter::create(path)?;
    for (position, sample) in unit.samples.clone().enumerate() {
        count(1);
        let whole = source.whole(sample, &mut |delay| sleep(delay))?;
        let (document, images) = with_sound_images(whole, &mut report, &mut scratch);
        if images.is_empty() {
            report.leave_out(RedrawCause::NoImageReadable.name(), || {
                source.name(sample).map_or_else(|_| format!("sample {sample}"), |(shard, key)| format!("{key} of {}", shard.display()))
            });
            continue;
        }
        // As img2dataset names its samples: the shard's number, and the place in it.
        let key = format!("{:05}{position:06}", unit.number);
        shard.append_member(&key, "json", &serde_json::to_vec(&document).unwrap_or_default())?;
        for (number, (extension, bytes)) in &images {
            shard.append_member(&key, &format!("{number}.{extension}"), bytes)?;
        }
        report.documents += 1;
        report.images += images.len() as u64;
    }
    shard.finish()?;
    Ok(report)
}

/// The images of a document that are written, by their numbers, each with its extension.
type Images = BTreeMap<u32, (&'static str, Vec<u8>)>;

/// The document with the images that can be decoded. Those of a text stay named, since one that is drawn and cannot be read is not replaced; of those
/// that stand by themselves the others are gone, and what is left is numbered anew, as if the others had never been there.
fn with_sound_images(whole: Whole, report: &mut ConvertReport, scratch: &mut Scratch) -> (PackedDocument, Images) {
    let Whole { mut document, images } = whole;
    let mut sound = Images::new();
    for (number, image) in images {
        let place = || image.place_in_words();
        let Some(bytes) = &image.bytes else {
            report.leave_out(IMAGE_MISSING, place);
            continue;
        };
        match extension_of(bytes, scratch) {
            Ok(extension) => drop(sound.insert(number, (extension, bytes.clone()))),
            Err(error) => report.leave_out(error.cause().name(), || format!("{}: {error}", place())),
        }
    }
    document.parts.retain(|part| part.image.is_none_or(|image| sound.contains_key(&image)));
    if document.parts.iter().any(|part| !part.images.is_empty()) {
        return (document, sound);
    }
    let mut renumbered = Images::new();
    for part in &mut document.parts {
        if let Some(image) = &mut part.image
            && let Some(found) = sound.remove(image)
        {
            *image = renumbered.len() as u32;
            renumbered.insert(*image, found);
        }
    }
    (document, renumbered)
}

/// The usual extension of an image that can be decoded.
fn extension_of(bytes: &[u8], scratch: &mut Scratch) -> Result<&'static str, ImageError> {
    let format = probe(bytes)?.format;
    decode(bytes, scratch)?;
    Ok(match format {
        Format::Jpeg => "jpg",
        Format::Png => "png",
        Format::WebP => "webp",
        Format::Gif => "gif",
        Format::Bmp => "bmp",
    })
}

#[cfg(test)]
mod tests;
