//! Whether the images of MMC4 are where they are looked for.
//!
//! Comes in: the examples that the indexes of shards name, and where images are. Goes out: nothing as soon as one of them is there, else an error with a
//! folder, an example and what to do. It opens no image.

use std::path::{Path, PathBuf};

use lcl_trainer_config::Field;

use super::{
    ImageExample,
    mmc4::{Images, absent_or_error},
    shards::Shards,
};
use crate::{
    dataset::DatasetError,
    mmc4::{ImageFolders, image_path, shard_number},
};

/// Shards whose examples are looked for until one is there: four thousand looks at most, some seconds on a file server.
const PROBED_SHARDS: usize = 256;

/// None of some images is there.
pub(super) struct Unfound<'a> {
    images: &'a Images,
    looked_for: u64,
    shard: PathBuf,
    first: ImageExample,
}

/// Looks for images of the documents of some shards, spread evenly, until there is one; gives what was looked for where there is none. Documents of which
/// no image is there are passed over in training one by one: that all of them are is most likely a folder or a layout that is wrong.
pub(super) fn find_no_image<'a>(shards: &Shards, images: &'a Images) -> Result<Option<Unfound<'a>>, DatasetError> {
    let findings = shards.findings();
    let (mut looked_for, mut first) = (0, None);
    for (shard, found) in findings.iter().step_by(findings.len().div_ceil(PROBED_SHARDS).max(1)) {
        for example in &found.examples {
            let is_there = match images {
                Images::Store(store) => store.table.find(&example.address)?.is_some(),
                Images::Folder(folder, folders) => is_in_folder(folder, *folders, shard, &example.name)?,
            };
            if is_there {
                return Ok(None);
            }
            looked_for += 1;
            first.get_or_insert_with(|| (shard.clone(), example.clone()));
        }
    }
    Ok(first.map(|(shard, first)| Unfound { images, looked_for, shard, first }))
}

fn is_in_folder(folder: &Path, folders: ImageFolders, shard: &Path, name: &str) -> Result<bool, DatasetError> {
    let Ok(path) = image_path(folder, folders, shard_number(shard).unwrap_or(0), name) else { return Ok(false) };
    match std::fs::metadata(&path) {
        Ok(_) => Ok(true),
        Err(error) => absent_or_error(folder, path, error).map(|_| false),
    }
}

impl Unfound<'_> {
    /// The error, with the names of fields by `field`.
    pub(super) fn error(self, field: impl Fn(&str) -> String) -> DatasetError {
        let Self { images, looked_for, shard, first: ImageExample { name, address } } = self;
        let (field, place, example, advice) = match images {
            Images::Store(_) => (
                field("data.source.mmc4.images.shards"),
                "these shards".to_owned(),
                address,
                "name the shards that img2dataset has made of these addresses".to_owned(),
            ),
            Images::Folder(folder, folders) => {
                let (other, layout, option) = match folders {
                    ImageFolders::One => (ImageFolders::ByShard, "ByShard", "by-shard"),
                    ImageFolders::ByShard => (ImageFolders::One, "Flat", "flat"),
                };
                let path = |folders| image_path(folder, folders, shard_number(&shard).unwrap_or(0), &name).unwrap_or_default();
                let advice = if path(other).is_file() {
                    format!(
                        "they lie there as layout {layout} has it: set {} to it (--images-layout {option})",
                        Field(&field("data.source.mmc4.images.layout"))
                    )
                } else {
                    "name the folder that holds the images by the names that the documents give, and how they lie in it (Flat, or ByShard for a folder \
                     for each shard's number)"
                        .to_owned()
                };
                (field("data.source.mmc4.images.folder"), folder.display().to_string(), path(*folders).display().to_string(), advice)
            }
        };
        DatasetError::NoImageFound { field, place, looked_for, example, advice }
    }
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::{DataConfig, DataSource, Mmc4Config, Mmc4Images};

    use crate::{Dataset, shard::ShardWriter};

    #[test]
    fn images_that_are_all_elsewhere_are_an_error_with_folder_example_and_layout() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let line = |name: &str| {
            let image = format!(r#"{{"image_name": "{name}", "raw_url": "http://a/{name}", "matched_text_index": 0, "matched_sim": 0.5}}"#);
            format!("{{\"text_list\": [\"a\"], \"image_info\": [{image}]}}\n")
        };
        std::fs::write(path("docs_shard_7_v2.jsonl"), line("gone.png")).expect("a shard");
        std::fs::write(path("docs_shard_8_v2.jsonl"), line("gone.png") + &line("a.png")).expect("a shard");
        for (file, images) in [("flat/a.png", "flat"), ("by/8/a.png", "by"), ("none/8/b.png", "none")] {
            std::fs::create_dir_all(path(file).parent().expect("a folder")).expect("it is made");
            std::fs::write(path(file), "pixels").unwrap_or_else(|error| panic!("{images}: {error}"));
        }
        let open = |images: Mmc4Images, shards: &str| {
            let shards = vec![path(shards).display().to_string()];
            let mmc4 = Mmc4Config { shards, images, min_similarity: 0.24, max_images: 6 };
            Dataset::open(&DataConfig::new(DataSource::Mmc4 { mmc4 })).map(drop)
        };
        let place = |name: &str| path(name).display().to_string();
        let (flat, by_shard) = (|name| Mmc4Images::Flat { folder: place(name) }, |name| Mmc4Images::ByShard { folder: place(name) });
        // One image is enough: of what the web had much is gone.
        open(flat("flat"), "docs_shard_{7,8}_v2.jsonl").expect("it is there");
        open(by_shard("by"), "docs_shard_{7,8}_v2.jsonl").expect("it is there");
        let refused = |images, shards, parts: &[&str]| {
            let error = open(images, shards).expect_err("nothing is there").to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        std::fs::write(path("by/7"), "no folder").expect("a file");
        let generic = "name the folder that holds the images by the names that the documents give";
        refused(flat("none"), "docs_shard_{7,8}_v2.jsonl", &[&place("none/gone.png"), "of 3 images that were looked for", generic]);
        refused(by_shard("flat"), "docs_shard_7_v2.jsonl", &[&place("flat/7/gone.png"), "spec.data.mmc4.images.folder is", generic]);
        std::fs::rename(path("docs_shard_8_v2.jsonl"), path("docs_shard_9_v2.jsonl")).expect("another number");
        std::fs::write(path("docs_shard_9_v2.jsonl"), line("a.png")).expect("a shard");
        std::fs::rename(path("by/8"), path("by/9")).expect("another number");
        refused(flat("by"), "docs_shard_9_v2.jsonl", &["spec.data.mmc4.images.layout to it (--images-layout by-shard)", "layout ByShard"]);
        refused(by_shard("flat"), "docs_shard_9_v2.jsonl", &["set spec.data.mmc4.images.layout to it (--images-layout flat)"]);
    }

    #[test]
    fn a_store_that_has_none_of_the_addresses_is_an_error_that_names_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let image = r#"{"image_name": "a.png", "raw_url": "http://a/b", "matched_text_index": 0, "matched_sim": 0.5}"#;
        std::fs::write(path("docs_shard_0_v2.jsonl"), format!(r#"{{"text_list": ["a"], "image_info": [{image}]}}"#)).expect("a shard");
        let open = |address: &str| {
            let mut shard = ShardWriter::create(&path("0.tar")).expect("a shard");
            shard.append_member("0", "jpg", b"pixels").expect("an image");
            shard.append_member("0", "json", format!(r#"{{"url": "{address}"}}"#).as_bytes()).expect("its address");
            shard.finish().expect("the shard is complete");
            let images = Mmc4Images::Store { shards: vec![path("0.tar").display().to_string()] };
            let shards = vec![path("docs_shard_0_v2.jsonl").display().to_string()];
            let mmc4 = Mmc4Config { shards, images, min_similarity: 0.24, max_images: 6 };
            Dataset::open(&DataConfig::new(DataSource::Mmc4 { mmc4 })).map(drop)
        };
        open("http://a/b").expect("it is there");
        let error = open("http://a/other").expect_err("another address").to_string();
        for part in ["spec.data.mmc4.images.shards is", "of 1 image that", "the first: http://a/b;", "img2dataset"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
