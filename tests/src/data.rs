//! Small shards of drawn images with captions that describe them.

use std::{fs, io::Cursor, path::Path};

use anyhow::{Context, Result};
use lcl_data::shard::{ImageKind, ShardWriter};
use lcl_trainer_config::{DataSource, MixedSource, MixtureConfig, MixtureUnit, Mmc4Config, Mmc4Images, ObelicsConfig};

const COLOURS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 40, 40]),
    ("green", [40, 180, 60]),
    ("blue", [40, 70, 220]),
    ("yellow", [230, 210, 50]),
    ("white", [240, 240, 240]),
    ("black", [15, 15, 15]),
];
const SHAPES: [&str; 3] = ["square", "disc", "bar"];

/// Side of a drawn image in pixels.
const SIDE: u32 = 40;

/// A fault to put into a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Half of the image's bytes.
    TruncatedImage,
    /// No caption.
    NoCaption,
    /// Image and caption twice under the same names.
    DoubledMembers,
    /// The image's file ends behind its last pixel, without its end mark.
    NoEndMark,
}

/// Bytes of a PNG's end mark.
const PNG_END: usize = 12;

/// Writes a shard of `count` samples; those in `faults` are bad.
pub fn write_shard(path: &Path, count: usize, faults: &[(usize, Fault)]) -> Result<()> {
    let mut shard = ShardWriter::create(path)?;
    for index in 0..count {
        let (mut image, caption) = sample(index)?;
        let mut caption = Some(caption);
        match faults.iter().find(|(sample, _)| *sample == index) {
            Some((_, Fault::TruncatedImage)) => image.truncate(image.len() / 2),
            Some((_, Fault::NoCaption)) => caption = None,
            Some((_, Fault::NoEndMark)) => image.truncate(image.len() - PNG_END),
            Some((_, Fault::DoubledMembers)) => append(&mut shard, index, &image, caption.as_deref())?,
            None => {}
        }
        append(&mut shard, index, &image, caption.as_deref())?;
    }
    shard.finish().context("finishing the shard")
}

/// Two shards of pairs as img2dataset leaves those of LAION-400M: the members of a sample are called by its place.
pub fn laion(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    for number in 0..2 {
        let mut shard = ShardWriter::create(&folder.join(format!("{number:05}.tar")))?;
        for place in 0..8 {
            let (key, (image, caption)) = (format!("{number:05}{place:04}"), sample(number * 8 + place)?);
            let json = serde_json::json!({
                "NSFW": "UNLIKELY", "similarity": 0.31, "LICENSE": "?", "caption": caption, "url": format!("http://img.example.com/{key}"),
                "key": key, "status": "success", "error_message": null, "width": SIDE, "height": SIDE, "exif": "{}",
            });
            shard.append_member(&key, "jpg", &image)?;
            shard.append_member(&key, "json", json.to_string().as_bytes())?;
            shard.append_member(&key, "txt", caption.as_bytes())?;
        }
        shard.finish()?;
    }
    Ok(())
}

/// A few documents of MMC4 in their published form, copied to `folder`.
pub fn mmc4(folder: &Path) -> Result<DataSource> {
    copy_fixtures("mmc4", folder)?;
    Ok(DataSource::Mmc4 {
        mmc4: Mmc4Config {
            shards: vec![folder.join("data/docs_shard_{0..2}_v2.jsonl.zip").display().to_string()],
            images: Mmc4Images::Flat { folder: folder.join("images").display().to_string() },
            min_similarity: 0.24,
            max_images: 6,
        },
    })
}

/// A few documents of OBELICS in their published form with a store of their images, copied to `folder`.
pub fn obelics(folder: &Path) -> Result<DataSource> {
    copy_fixtures("obelics", folder)?;
    let entry = |path: &str| vec![folder.join(path).display().to_string()];
    let obelics = ObelicsConfig { shards: entry("data/*.parquet"), images: entry("images/*.tar"), split: true, max_images: 6 };
    Ok(DataSource::Obelics { obelics })
}

/// A mixture by images: two parts of the pairs in `shard`, one of MMC4 and one of OBELICS, copied to `folder`.
pub fn mixture(shard: &Path, folder: &Path) -> Result<DataSource> {
    let pairs = DataSource::webdataset(vec![shard.display().to_string()]);
    let mixed = [("pairs", 2, pairs), ("mmc4", 1, mmc4(&folder.join("mmc4"))?), ("obelics", 1, obelics(&folder.join("obelics"))?)];
    let sources = mixed.into_iter().map(|(name, weight, source)| MixedSource { name: name.to_owned(), weight, source }).collect();
    Ok(DataSource::Mixture { mixture: MixtureConfig { by: MixtureUnit::Images, sources } })
}

/// Indexes are written beside the shards, so nobody reads those of the project itself.
fn copy_fixtures(name: &str, to: &Path) -> Result<()> {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/data/tests/fixtures").join(name);
    for part in ["data", "images"] {
        fs::create_dir_all(to.join(part))?;
        for entry in fs::read_dir(from.join(part))? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(part).join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn append(shard: &mut ShardWriter, index: usize, image: &[u8], caption: Option<&str>) -> Result<()> {
    Ok(shard.append(&format!("sample{index:05}"), Some((ImageKind::Png, image)), caption)?)
}

/// Writes a shard of `count` samples whose image and caption have these keys.
pub fn write_shard_with(path: &Path, count: usize, [image_key, caption_key]: [&str; 2]) -> Result<()> {
    let mut shard = ShardWriter::create(path)?;
    for index in 0..count {
        let (image, caption) = sample(index)?;
        shard.append_member(&format!("sample{index:05}"), image_key, &image)?;
        shard.append_member(&format!("sample{index:05}"), caption_key, caption.as_bytes())?;
    }
    shard.finish().context("finishing the shard")
}

/// Writes a shard as img2dataset leaves it, a sample for each of these sidecars: its image, the sidecar and an empty caption.
pub fn write_shard_with_sidecars(path: &Path, sidecars: &[Option<serde_json::Value>]) -> Result<()> {
    let mut shard = ShardWriter::create(path)?;
    for (index, sidecar) in sidecars.iter().enumerate() {
        let (image, _) = sample(index)?;
        let key = format!("{index:09}");
        shard.append_member(&key, "jpg", &image)?;
        if let Some(sidecar) = sidecar {
            shard.append_member(&key, "json", serde_json::to_string_pretty(sidecar)?.as_bytes())?;
        }
        shard.append_member(&key, "txt", b"")?;
    }
    shard.finish().context("finishing the shard")
}

/// The image of a sample, as PNG, and its caption.
fn sample(index: usize) -> Result<(Vec<u8>, String)> {
    let (name, colour) = COLOURS[index % COLOURS.len()];
    let shape = SHAPES[index / COLOURS.len() % SHAPES.len()];
    Ok((draw(shape, colour, index as u32)?, format!("a {name} {shape} number {index}")))
}

/// A shape on a ground that differs from image to image, as PNG.
fn draw(shape: &str, colour: [u8; 3], index: u32) -> Result<Vec<u8>> {
    let ground = [(index * 37 % 200) as u8, (index * 91 % 200) as u8, (index * 53 % 200) as u8];
    let mut pixels = Vec::with_capacity((SIDE * SIDE * 3) as usize);
    for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
        let (dy, dx) = (y.abs_diff(SIDE / 2), x.abs_diff(SIDE / 2));
        let inside = match shape {
            "square" => dx.max(dy) < SIDE / 4,
            "disc" => dx * dx + dy * dy < SIDE * SIDE / 12,
            _ => dy < SIDE / 10,
        };
        pixels.extend(if inside { colour } else { ground });
    }
    let mut file = Cursor::new(Vec::new());
    let mut encoder = png::Encoder::new(&mut file, SIDE, SIDE);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file.into_inner())
}
