//! Writes the demo's data set: emoji images of two styles with captions made of their names, keywords and categories.
//!
//! `pack_emoji --google DIR --twitter DIR --out DIR [--hold-out twitter|both]`
//!
//! The folders are unpacked `emoji-datasource-*` packages. Every tenth base emoji is held out, with its skin tones: of the Twitter style
//! only (its Google image stays in training), or of both styles. Written are `train-000.tar` to `train-007.tar` and, with the base emoji
//! alone, `heldout-000.tar`. Same packages, same bytes.

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use lcl_data::shard::{ImageKind, ShardWriter};
use serde::Deserialize;

/// Shards of the training split: a few hundred samples each, so that several threads have files of their own.
const TRAIN_SHARDS: usize = 8;
/// Every tenth base emoji is held out, counted from the fourth: this leaves the 7,226 training pairs of the published comparison.
const HELD_OUT_EVERY: usize = 10;
const HELD_OUT_OFFSET: usize = 3;

#[derive(Deserialize)]
struct Emoji {
    name: String,
    short_names: Vec<String>,
    category: String,
    subcategory: String,
    image: String,
    has_img_google: bool,
    has_img_twitter: bool,
    #[serde(default)]
    skin_variations: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Google,
    Twitter,
}

impl Style {
    const fn name(self) -> &'static str {
        match self {
            Self::Google => "google",
            Self::Twitter => "twitter",
        }
    }
}

struct Sample {
    key: String,
    caption: String,
    image: PathBuf,
    held_out: bool,
    base: bool,
}

fn main() -> Result<()> {
    let (mut google, mut twitter, mut out, mut both) = (None, None, None, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--google" => google = Some(PathBuf::from(value)),
            "--twitter" => twitter = Some(PathBuf::from(value)),
            "--out" => out = Some(PathBuf::from(value)),
            "--hold-out" if value == "twitter" || value == "both" => both = value == "both",
            _ => bail!("unknown argument {argument} {value}: use --google DIR --twitter DIR --out DIR [--hold-out twitter|both]"),
        }
    }
    let (google, twitter, out) =
        (google.context("--google is missing")?, twitter.context("--twitter is missing")?, out.context("--out is missing")?);

    let samples = read_samples(&google, &twitter, both)?;
    fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let train: Vec<&Sample> = samples.iter().filter(|sample| !sample.held_out).collect();
    let held_out: Vec<&Sample> = samples.iter().filter(|sample| sample.held_out && sample.base).collect();
    for shard in 0..TRAIN_SHARDS {
        write_shard(&out.join(format!("train-{shard:03}.tar")), train.iter().skip(shard).step_by(TRAIN_SHARDS).copied())?;
    }
    write_shard(&out.join("heldout-000.tar"), held_out.iter().copied())?;
    println!("{} training pairs in {TRAIN_SHARDS} shards, {} held-out pairs in {}", train.len(), held_out.len(), out.display());
    Ok(())
}

fn read_samples(google: &Path, twitter: &Path, both: bool) -> Result<Vec<Sample>> {
    let list = google.join("emoji.json");
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let emoji: Vec<Emoji> = serde_json::from_str(&text).with_context(|| format!("{} is not a list of emoji", list.display()))?;
    let mut samples = Vec::new();
    for (index, emoji) in emoji.iter().filter(|emoji| emoji.has_img_google && emoji.has_img_twitter).enumerate() {
        for (style, folder) in [(Style::Google, google), (Style::Twitter, twitter)] {
            let held_out = index % HELD_OUT_EVERY == HELD_OUT_OFFSET && (both || style == Style::Twitter);
            let images = folder.join("img").join(style.name()).join("64");
            let stem = emoji.image.trim_end_matches(".png");
            // A dot would end the sample's key.
            ensure!(!stem.contains('.'), "image name {} holds a dot", emoji.image);
            samples.push(Sample {
                key: format!("{}-{stem}", style.name()),
                caption: caption(emoji, None),
                image: images.join(&emoji.image),
                held_out,
                base: true,
            });
            for (tones, variation) in &emoji.skin_variations {
                if variation[format!("has_img_{}", style.name())] != true {
                    continue;
                }
                let name = variation["image"].as_str().with_context(|| format!("a skin variation of {} has no image", emoji.name))?;
                samples.push(Sample {
                    key: format!("{}-{}", style.name(), name.trim_end_matches(".png")),
                    caption: caption(emoji, Some(tones)),
                    image: images.join(name),
                    held_out,
                    base: false,
                });
            }
        }
    }
    Ok(samples)
}

/// "waving hand sign, dark skin tone: wave, hand fingers open, people & body"
fn caption(emoji: &Emoji, tones: Option<&str>) -> String {
    let words = |text: &str| text.to_lowercase().replace(['_', '-'], " ");
    let name = emoji.name.to_lowercase();
    let tones = tones.map(|tones| tones.split('-').map(tone).collect::<Vec<_>>().join(" and "));
    let title = tones.map_or_else(|| name.clone(), |tones| format!("{name}, {tones}"));
    let mut keywords: Vec<String> = emoji.short_names.iter().map(|short| words(short)).filter(|short| *short != name).collect();
    keywords.push(words(&emoji.subcategory));
    keywords.push(words(&emoji.category));
    format!("{title}: {}", keywords.join(", "))
}

/// The name Unicode gives to a Fitzpatrick modifier.
fn tone(code: &str) -> &str {
    match code {
        "1F3FB" => "light skin tone",
        "1F3FC" => "medium light skin tone",
        "1F3FD" => "medium skin tone",
        "1F3FE" => "medium dark skin tone",
        "1F3FF" => "dark skin tone",
        other => other,
    }
}

fn write_shard<'a>(path: &Path, samples: impl Iterator<Item = &'a Sample>) -> Result<()> {
    let mut writer = ShardWriter::create(path)?;
    for sample in samples {
        let image = image::open(&sample.image).with_context(|| format!("cannot read {}", sample.image.display()))?;
        let mut png = Cursor::new(Vec::new());
        on_white(&image).write_to(&mut png, ImageFormat::Png)?;
        writer.append(&sample.key, Some((ImageKind::Png, png.get_ref())), Some(&sample.caption))?;
    }
    writer.finish()?;
    Ok(())
}

/// Emoji lie on a transparent ground whose hidden colours mean nothing; training images have no alpha.
fn on_white(image: &DynamicImage) -> RgbImage {
    let source = image.to_rgba8();
    RgbImage::from_fn(source.width(), source.height(), |x, y| {
        let [red, green, blue, alpha] = source.get_pixel(x, y).0;
        let blend = |value: u8| ((u32::from(value) * u32::from(alpha) + 255 * (255 - u32::from(alpha)) + 127) / 255) as u8;
        Rgb([blend(red), blend(green), blend(blue)])
    })
}
