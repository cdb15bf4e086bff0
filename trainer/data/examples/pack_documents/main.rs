//! Writes the data of the demo with documents: real pictures, and beside each what `WordNet` says of what it shows.
//!
//! `pack_documents --wordnet DIR --google DIR --twitter DIR --clipart DIR --out DIR`
//!
//! The folders are those of unpacked packages (`scripts/debian-documents.sh`, `scripts/npm-emoji.sh`). A picture is used when its name is a
//! noun that fits its folder; every tenth synset is held out with all its pictures. Written are, of the others, documents as MMC4 (`mmc4/`) and
//! as OBELICS (`obelics/`), half of them each, and the same pictures once as pairs (`pairs/train-000.tar` to `train-007.tar`); of
//! those that are held out pairs (`pairs/heldout-000.tar`). Same packages, same bytes.

mod pictures;
mod recipe;
mod wordnet;
mod write;

use std::{collections::BTreeMap, fs, io::Cursor, path::PathBuf, process};

use anyhow::{Context, Result, bail};
use image::{ImageFormat, Rgb, RgbImage, imageops};

use crate::{
    pictures::{Folders, Picture},
    recipe::{Outline, Split},
    wordnet::WordNet,
    write::{Document, Image},
};

/// Shards of the pairs, as in the first demo.
const PAIR_SHARDS: usize = 8;
/// Shortest side of a picture in pixels that is used, the model's image size; smaller ones would be blown up.
const SMALLEST: u32 = 64;
/// Longest side in pixels that is written: twice the model's, so that a crop of a quarter is still sharp.
const LONGEST: u32 = 128;
/// Most pixels of a picture that is read. Some of the clip art have hundreds of millions, which no trainer takes; this keeps packing short.
const MOST_PIXELS: u64 = 20_000_000;

fn main() -> Result<()> {
    let (folders, wordnet, out) = arguments()?;
    let wordnet = WordNet::read(&wordnet)?;
    let (pictures, images) = read_all(pictures::find(&folders, &wordnet)?, &wordnet)?;
    let split = recipe::split(&pictures);
    let outlines = recipe::outlines(&pictures, &split, &wordnet);
    // Complete under its name or not there: a demo that was interrupted begins anew.
    let part = out.with_extension(format!("part{}", process::id()));
    let half = outlines.len() / 2;
    let documents = |outlines: &[Outline]| outlines.iter().map(|outline| document(outline, &images, &wordnet)).collect::<Vec<_>>();
    write::mmc4(&part.join("mmc4"), &documents(&outlines[..half]))?;
    write::obelics(&part.join("obelics"), &documents(&outlines[half..]))?;
    let chosen = |numbers: &[usize]| numbers.iter().map(|number| &images[*number]).collect::<Vec<_>>();
    write::pairs(&part.join("pairs"), "train", &chosen(&split.training), PAIR_SHARDS)?;
    write::pairs(&part.join("pairs"), "heldout", &chosen(&split.held_out), 1)?;
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    fs::rename(&part, &out).with_context(|| format!("cannot rename {} to {}", part.display(), out.display()))?;
    report(&pictures, &split, &outlines);
    Ok(())
}

fn arguments() -> Result<(Folders, PathBuf, PathBuf)> {
    let mut given = BTreeMap::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
        given.insert(argument, PathBuf::from(value));
    }
    let mut take = |name: &str| given.remove(name).with_context(|| format!("{name} is missing"));
    let folders = Folders { google: take("--google")?, twitter: take("--twitter")?, clipart: take("--clipart")? };
    let (wordnet, out) = (take("--wordnet")?, take("--out")?);
    if let Some(argument) = given.keys().next() {
        bail!("unknown argument {argument}: use --wordnet DIR --google DIR --twitter DIR --clipart DIR --out DIR");
    }
    Ok((folders, wordnet, out))
}

/// The pictures that can be used, with what is written of them.
fn read_all(found: Vec<Picture>, wordnet: &WordNet) -> Result<(Vec<Picture>, Vec<Image>)> {
    let (mut pictures, mut images) = (Vec::new(), Vec::new());
    for picture in found {
        let (width, height) = image::image_dimensions(&picture.path).with_context(|| format!("cannot read {}", picture.path.display()))?;
        if width.min(height) < SMALLEST || u64::from(width) * u64::from(height) > MOST_PIXELS {
            continue;
        }
        let sentence = wordnet.get(picture.synset).context("a picture shows no noun")?.sentence();
        let (png, size) = small_png(&picture)?;
        images.push(Image { png, size, original_size: (width, height), address: picture.address.clone(), sentence });
        pictures.push(picture);
    }
    Ok((pictures, images))
}

/// A picture as it is written, with its columns and rows.
fn small_png(picture: &Picture) -> Result<(Vec<u8>, (u32, u32))> {
    let image = image::open(&picture.path).with_context(|| format!("cannot read {}", picture.path.display()))?;
    let mut image = on_white(&image.to_rgba8());
    let (width, height) = image.dimensions();
    if width.max(height) > LONGEST {
        let scaled = |side: u32| (side * LONGEST / width.max(height)).max(1);
        image = imageops::thumbnail(&image, scaled(width), scaled(height));
    }
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png)?;
    Ok((png.into_inner(), image.dimensions()))
}

/// The hidden colours of a transparent ground mean nothing; training images have no alpha.
fn on_white(source: &image::RgbaImage) -> RgbImage {
    RgbImage::from_fn(source.width(), source.height(), |x, y| {
        let [red, green, blue, alpha] = source.get_pixel(x, y).0;
        let blend = |value: u8| ((u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8;
        Rgb([blend(red), blend(green), blend(blue)])
    })
}

fn document<'a>(outline: &Outline, images: &'a [Image], wordnet: &WordNet) -> Document<'a> {
    let opening = outline.kind.and_then(|kind| wordnet.get(kind)).map(wordnet::Synset::sentence);
    Document { opening, images: outline.pictures.iter().map(|picture| &images[*picture]).collect() }
}

fn report(pictures: &[Picture], split: &Split, outlines: &[Outline]) {
    let mut packages = BTreeMap::new();
    for picture in pictures {
        let package = picture.address.split('/').next().unwrap_or_default();
        *packages.entry(package).or_insert(0) += 1;
    }
    let packages: Vec<String> = packages.into_iter().map(|(package, count)| format!("{count} of {package}")).collect();
    let synsets: std::collections::BTreeSet<_> = pictures.iter().map(|picture| picture.synset).collect();
    println!("{} pictures ({}) of {} synsets", pictures.len(), packages.join(", "), synsets.len());
    println!("held out: {} pictures of {} synsets", split.held_out.len(), split.held_out_synsets.len());
    let uses: usize = outlines.iter().map(|outline| outline.pictures.len()).sum();
    println!(
        "{} documents with {:.1} images on average, of {} pictures",
        outlines.len(),
        uses as f64 / outlines.len() as f64,
        split.training.len()
    );
}
