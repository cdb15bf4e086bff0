use std::path::Path;

use lcl_trainer_config::{DataSource, Mmc4Config, Mmc4Images, Preset};

use super::*;
use crate::{
    image::to_png,
    shard::{ImageKind, ListOrigin, ShardWriter},
};

const LCL: Objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 };

/// Images of 32 pixels in patches of 16: four tokens each.
fn options(context_length: i64, most: Option<u64>) -> StatsOptions {
    let mut model = Preset::Tiny.shape();
    (model.vision.image_size, model.vision.patch_size, model.text.context_length) = (32, 16, context_length);
    StatsOptions { model, objective: LCL, seed: 0, most: most.and_then(NonZero::new) }
}

fn run(config: &DataConfig, options: &StatsOptions) -> SourceStats {
    let dataset = Dataset::open_from(config, ListOrigin::Arguments).expect("the data set opens");
    stats(&dataset, config, options, |done, of| assert!(done <= of)).expect("the statistics are made").remove(0)
}

#[test]
fn captions_of_pairs_are_counted_as_they_are_and_as_the_context_leaves_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    let mut shard = ShardWriter::create(&path).expect("a shard");
    let image = to_png(&[0.5; 3 * 8 * 8], 8);
    for (key, words) in [("a", 2), ("b", 10), ("c", 20)] {
        shard.append(key, Some((ImageKind::Png, &image)), Some("cat ".repeat(words).trim_end())).expect("a sample");
    }
    shard.append("d", Some((ImageKind::Png, &image)), None).expect("a sample");
    shard.append("e", Some((ImageKind::Png, b"no image")), Some("cat")).expect("a sample");
    shard.finish().expect("the shard is complete");
    let config = DataConfig { threads: 2, ..DataConfig::new(DataSource::webdataset(vec![path.display().to_string()])) };
    // Four image tokens and four marks: room for eight of a caption.
    let found = run(&config, &options(16, None));
    assert_eq!((found.shards, found.samples, found.looked_at, found.images_of_a_pass), (1, 5, 5, 5));
    assert_eq!(found.shard_bytes, std::fs::metadata(&path).expect("the shard").len());
    let unusable: Vec<(&str, u64)> = found.unusable.iter().map(|(cause, count)| (cause.as_str(), *count)).collect();
    assert_eq!(unusable, [("no_caption", 1), ("unsupported_image", 1)]);
    assert_eq!((found.text_tokens.least, found.text_tokens.median, found.text_tokens.most), (2, 10, 20));
    assert_eq!((found.sequence_tokens.least, found.sequence_tokens.most), (2 + 7, 20 + 7));
    assert_eq!((found.image_sides.median, found.image_bytes.most), (8, image.len() as u64));
    assert_eq!(found.formats, BTreeMap::from([("PNG".to_owned(), 3)]));
    let cut = Cut { context: 16, image_tokens: 4, sequences: 2, tokens: (2 + 12, 32 + 21), images: (0, 3) };
    assert_eq!(found.cut, cut);
    assert_eq!(found.histogram.iter().map(|(_, count)| count).sum::<u64>(), 3);
}

#[test]
fn documents_lose_images_to_a_short_context_and_none_to_a_long_one() {
    let index = tempfile::tempdir().expect("a folder");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mmc4");
    let mmc4 = Mmc4Config {
        shards: vec![folder.join("data/docs_shard_{0..1}_v2.jsonl.zip").display().to_string()],
        images: Mmc4Images::Flat { folder: folder.join("images").display().to_string() },
        min_similarity: 0.24,
        max_images: 6,
    };
    let index_path = Some(index.path().display().to_string());
    let config = DataConfig { index_path, threads: 2, ..DataConfig::new(DataSource::Mmc4 { mmc4 }) };
    let [long, short] = [100_000, 40].map(|context| run(&config, &options(context, None)));
    assert_eq!((long.cut.sequences, long.cut.tokens.0, long.cut.images.0), (0, 0, 0), "{long:#?}");
    assert_eq!(short.sequence_tokens, long.sequence_tokens, "lengths without a cut do not depend on the context");
    assert_eq!((short.cut.tokens.1, short.cut.images.1), (long.cut.tokens.1, long.cut.images.1));
    assert!(short.cut.sequences > 0 && short.cut.tokens.0 > 0 && short.cut.images.0 > 0, "{short:#?}");
    assert!(short.unusable.contains_key("no_image_fits") && short.unusable.contains_key("no_image_readable"), "{short:#?}");
    let few = run(&config, &options(40, Some(5)));
    assert_eq!((few.looked_at, few.samples), (5, long.samples));
}
