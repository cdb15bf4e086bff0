//! Documents and pairs in the forms in which data sets of them are published.
//!
//! Comes in: outlines of documents, sentences, and pictures as PNG. Goes out: shards of MMC4 with a folder of images, files of OBELICS with tar
//! shards of images as img2dataset leaves them, and tar shards of pairs. The same input gives the same bytes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use lcl_data::{
    random::{SlotRandom, Stream},
    shard::{ImageKind, ShardWriter},
};
use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType},
    file::{
        properties::WriterProperties,
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::parser::parse_message_type,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zip::{ZipWriter, write::SimpleFileOptions};

/// Shards of MMC4, so that several threads have files of their own; the job names them.
const MMC4_SHARDS: usize = 4;
/// Rows of a row group of OBELICS's files, as published.
const OBELICS_ROWS: usize = 1000;
/// Images of a tar shard, as img2dataset has it when it is told to.
const TAR_IMAGES: usize = 1000;
/// Similarity of an image and its sentence, and to the others: the threshold of MMC4 is 0.24.
const SIMILAR: f64 = 0.3;
const OTHERS: f64 = 0.15;
/// How often an image of OBELICS stands before its sentence, as the demo's job has it for MMC4, where it is drawn in training.
const IMAGE_FIRST: f64 = 0.2;

/// A picture as it is written.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The PNG.
    pub(crate) png: Vec<u8>,
    /// Columns and rows.
    pub(crate) size: (u32, u32),
    /// Columns and rows of the file it was made of.
    pub(crate) original_size: (u32, u32),
    /// Where it is from.
    pub(crate) address: String,
    /// What stands beside it.
    pub(crate) sentence: String,
}

/// A document that is to be written: what opens it, and images with a sentence each.
#[derive(Clone, Debug)]
pub(crate) struct Document<'a> {
    /// The first sentence.
    pub(crate) opening: Option<String>,
    /// Image by image.
    pub(crate) images: Vec<&'a Image>,
}

/// `docs_shard_{i}_v2.jsonl.zip` with the documents, and `images/` with their images.
pub(crate) fn mmc4(folder: &Path, documents: &[Document<'_>]) -> Result<()> {
    let images = folder.join("images");
    fs::create_dir_all(&images).with_context(|| format!("cannot create {}", images.display()))?;
    for image in distinct(documents) {
        let path = images.join(mmc4_name(image));
        fs::write(&path, &image.png).with_context(|| format!("cannot write {}", path.display()))?;
    }
    for (number, documents) in documents.chunks(documents.len().div_ceil(MMC4_SHARDS).max(1)).enumerate() {
        let member = format!("docs_shard_{number}_v2.jsonl");
        let path = folder.join(format!("{member}.zip"));
        let mut archive = ZipWriter::new(File::create(&path).with_context(|| format!("cannot create {}", path.display()))?);
        archive.start_file(&member, SimpleFileOptions::default())?;
        let lines: Vec<String> = documents.iter().map(|document| mmc4_line(document).to_string()).collect();
        archive.write_all(lines.join("\n").as_bytes())?;
        archive.finish()?;
    }
    Ok(())
}

fn mmc4_line(document: &Document<'_>) -> Value {
    let Document { opening, images } = document;
    let sentences: Vec<&String> = opening.iter().chain(images.iter().map(|image| &image.sentence)).collect();
    let first = usize::from(opening.is_some());
    let row =
        |image: usize| (0..sentences.len()).map(|sentence| if sentence == image + first { SIMILAR } else { OTHERS }).collect::<Vec<_>>();
    let info = |(number, image): (usize, &&Image)| {
        json!({
            "image_name": mmc4_name(image), "raw_url": image.address, "matched_text_index": number + first, "matched_sim": SIMILAR,
            "face_detections": null,
        })
    };
    json!({
        "text_list": sentences, "url": images.first().map(|image| &image.address), "could_have_url_duplicate": 0,
        "similarity_matrix": (0..images.len()).map(row).collect::<Vec<_>>(),
        "image_info": images.iter().enumerate().map(info).collect::<Vec<_>>(),
    })
}

/// Twelve hexadecimal digits, as published.
fn mmc4_name(image: &Image) -> String {
    format!("{}.png", &sha256(image.address.as_bytes())[..12])
}

/// `train-00000-of-00001-….parquet` with the documents, and `images/00000.tar` and so on with their images.
pub(crate) fn obelics(folder: &Path, documents: &[Document<'_>]) -> Result<()> {
    let images = folder.join("images");
    fs::create_dir_all(&images).with_context(|| format!("cannot create {}", images.display()))?;
    let all: Vec<&Image> = distinct(documents).collect();
    for (shard, part) in all.chunks(TAR_IMAGES).enumerate() {
        let mut writer = ShardWriter::create(&images.join(format!("{shard:05}.tar")))?;
        for (number, image) in part.iter().enumerate() {
            let key = format!("{shard:05}{number:03}");
            let json = json!({
                "url": image.address, "key": key, "status": "success", "error_message": null, "width": image.size.0, "height": image.size.1,
                "original_width": image.original_size.0, "original_height": image.original_size.1, "exif": "{}", "sha256": sha256(&image.png),
            });
            writer.append_member(&key, "json", json.to_string().as_bytes())?;
            writer.append_member(&key, "png", &image.png)?;
        }
        writer.finish()?;
    }
    let rows: Vec<Row> = documents.iter().enumerate().map(|(number, document)| Row::of(number as u64, document)).collect();
    // The published names end on sixteen digits of a digest.
    let name = format!("train-00000-of-00001-{}.parquet", &sha256(rows.len().to_string().as_bytes())[..16]);
    let path = folder.join(name);
    write_parquet(&path, &rows).with_context(|| format!("cannot write {}", path.display()))
}

/// Two lists of the same length, of which exactly one has an entry at each place, and what is known of the images.
struct Row {
    images: Vec<Option<String>>,
    texts: Vec<Option<String>>,
    metadata: String,
    general_metadata: String,
}

impl Row {
    fn of(number: u64, document: &Document<'_>) -> Self {
        let mut row = Self { images: Vec::new(), texts: Vec::new(), metadata: String::new(), general_metadata: String::new() };
        let address = document.images.first().map(|image| &image.address);
        let mut metadata = Vec::new();
        document.opening.iter().for_each(|text| row.push_text(text, &mut metadata));
        for (place, image) in document.images.iter().enumerate() {
            let is_first = SlotRandom::new(1, number, place as u64, Stream::ImageFirst).uniform() < IMAGE_FIRST;
            if !is_first {
                row.push_text(&image.sentence, &mut metadata);
            }
            row.images.push(Some(image.address.clone()));
            row.texts.push(None);
            let (width, height) = image.original_size;
            let source = &image.address;
            metadata.push(json!({
                "document_url": address, "unformatted_src": source, "src": source, "original_width": width, "original_height": height, "format": "png",
            }));
            if is_first {
                row.push_text(&image.sentence, &mut metadata);
            }
        }
        row.metadata = Value::from(metadata).to_string();
        row.general_metadata = json!({ "url": address, "warc_filename": "", "warc_record_offset": 0, "warc_record_length": 0 }).to_string();
        row
    }

    /// Paragraphs that follow each other are one text, with two line breaks between them.
    fn push_text(&mut self, text: &str, metadata: &mut Vec<Value>) {
        if let Some(Some(last)) = self.texts.last_mut() {
            last.push_str("\n\n");
            last.push_str(text);
        } else {
            self.texts.push(Some(text.to_owned()));
            self.images.push(None);
            metadata.push(Value::Null);
        }
    }
}

fn write_parquet(path: &Path, rows: &[Row]) -> Result<()> {
    let list = |name: &str| format!("optional group {name} (LIST) {{ repeated group list {{ optional binary element (UTF8); }} }}");
    let text = |name: &str| format!("optional binary {name} (UTF8);");
    let columns = [list("images"), text("metadata"), text("general_metadata"), list("texts")].join(" ");
    let schema = parse_message_type(&format!("message schema {{ {columns} }}"))?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(File::create(path)?, Arc::new(schema), Arc::new(properties))?;
    for rows in rows.chunks(OBELICS_ROWS) {
        let mut group = writer.next_row_group()?;
        write_lists(&mut group, rows.iter().map(|row| &row.images))?;
        write_texts(&mut group, rows.iter().map(|row| &row.metadata))?;
        write_texts(&mut group, rows.iter().map(|row| &row.general_metadata))?;
        write_lists(&mut group, rows.iter().map(|row| &row.texts))?;
        group.close()?;
    }
    writer.close()?;
    Ok(())
}

/// A column of lists without empty ones: an entry has definition level 3, an absent one 2, and all but a list's first repeat it.
fn write_lists<'a>(group: &mut SerializedRowGroupWriter<'_, File>, lists: impl Iterator<Item = &'a Vec<Option<String>>>) -> Result<()> {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for (place, entry) in lists.flat_map(|list| list.iter().enumerate()) {
        definitions.push(if entry.is_some() { 3 } else { 2 });
        repetitions.push(i16::from(place > 0));
        values.extend(entry.as_deref().map(ByteArray::from));
    }
    write_column(group, &values, &definitions, Some(&repetitions))
}

fn write_texts<'a>(group: &mut SerializedRowGroupWriter<'_, File>, texts: impl Iterator<Item = &'a String>) -> Result<()> {
    let values: Vec<ByteArray> = texts.map(|text| ByteArray::from(text.as_str())).collect();
    write_column(group, &values, &vec![1; values.len()], None)
}

fn write_column(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: &[ByteArray],
    definitions: &[i16],
    repetitions: Option<&[i16]>,
) -> Result<()> {
    let mut column = group.next_column()?.context("the schema has fewer columns")?;
    column.typed::<ByteArrayType>().write_batch(values, Some(definitions), repetitions)?;
    column.close()?;
    Ok(())
}

/// `NAME-000.tar` and so on with the images and their sentences, in `shards` shards.
pub(crate) fn pairs(folder: &Path, name: &str, images: &[&Image], shards: usize) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for shard in 0..shards {
        let mut writer = ShardWriter::create(&folder.join(format!("{name}-{shard:03}.tar")))?;
        for (number, image) in images.iter().enumerate().skip(shard).step_by(shards) {
            writer.append(&format!("{number:06}"), Some((ImageKind::Png, &image.png)), Some(&image.sentence))?;
        }
        writer.finish()?;
    }
    Ok(())
}

/// The images of documents, each once, in the order of their first places.
fn distinct<'a>(documents: &[Document<'a>]) -> impl Iterator<Item = &'a Image> {
    let mut seen = BTreeSet::new();
    let images: Vec<&Image> = documents.iter().flat_map(|document| document.images.iter().copied()).collect();
    images.into_iter().filter(move |image| seen.insert(image.address.clone()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use lcl_data::{
        Dataset,
        mmc4::{Record, walk},
        obelics::{DocumentFile, index_file},
    };
    use lcl_trainer_config::{DataConfig, DataSource, Mmc4Config, Mmc4Images, ObelicsConfig};

    use super::*;

    fn image(number: u8) -> Image {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::from_pixel(70, 64, image::Rgb([number; 3])).write_to(&mut png, image::ImageFormat::Png).expect("a PNG");
        let (address, sentence) = (format!("deb:a/{number}.png"), format!("thing {number}: a thing"));
        Image { png: png.into_inner(), size: (70, 64), original_size: (140, 128), address, sentence }
    }

    #[test]
    fn both_readers_give_the_documents_that_were_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let images: Vec<Image> = (0..4).map(image).collect();
        let documents = [
            Document { opening: Some("things: what there is".to_owned()), images: images[..3].iter().collect() },
            Document { opening: None, images: images[1..].iter().collect() },
        ];
        let (mmc4_folder, obelics_folder) = (folder.path().join("mmc4"), folder.path().join("obelics"));
        mmc4(&mmc4_folder, &documents).expect("MMC4 is written");
        obelics(&obelics_folder, &documents).expect("OBELICS is written");

        let (mut record, mut sentences) = (Record::new(), Vec::new());
        for shard in ["docs_shard_0_v2.jsonl.zip", "docs_shard_1_v2.jsonl.zip"] {
            walk(&mmc4_folder.join(shard), |line| {
                line.parse(&mut record).expect("a sound line");
                sentences.push(record.images().len());
            })
            .expect("a sound shard");
        }
        assert_eq!(sentences, [3, 3]);
        let path = fs::read_dir(&obelics_folder).expect("the folder").flatten().map(|entry| entry.path()).find(|path| path.is_file());
        let file = DocumentFile::open(&path.expect("a file")).expect("a sound file");
        let findings = index_file(&file, true, |_| Ok(true), |_, samples| assert_eq!(samples.len(), 2)).expect("sound rows");
        assert_eq!((findings.rows, findings.samples, findings.images), (2, 2, 6));

        let source = |folder: &Path, name: &str| vec![folder.join(name).display().to_string()];
        let sources = [
            DataSource::Mmc4 {
                mmc4: Mmc4Config {
                    shards: source(&mmc4_folder, "docs_shard_{0..3}_v2.jsonl.zip"),
                    images: Mmc4Images::Flat { folder: mmc4_folder.join("images").display().to_string() },
                    min_similarity: 0.24,
                    max_images: 6,
                },
            },
            DataSource::Obelics {
                obelics: ObelicsConfig {
                    shards: source(&obelics_folder, "train-*.parquet"),
                    images: source(&obelics_folder, "images/*.tar"),
                    split: true,
                    max_images: 6,
                },
            },
        ];
        for source in sources {
            let dataset = Dataset::open(&DataConfig::new(source)).expect("the data set opens");
            assert_eq!(dataset.samples_per_pass(), 2);
        }
    }
}
