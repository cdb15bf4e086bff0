//! What a loader delivers: every sample once per pass, the same rows however the work is divided, and nothing for bad records.

use std::{collections::HashMap, ops::Range, path::Path, sync::Arc};

use lcl_data::{
    Batch, Dataset, Loader, LoaderOptions, SkipCause, Tolerated,
    image::{MEAN, OtherFormat, STD, to_png},
    shard::{ImageKind, ShardWriter},
    tokenizer::Tokenizer,
};
use lcl_trainer_config::{CaptionChoice, CaptionFrom, DataConfig, DataSource, ModelShape, Objective, Preset, SampleKeys};
use proptest::prelude::*;

const LCL: Objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 };

/// Side of images and model input; two by two patches.
const SIZE: u32 = 16;

fn model() -> ModelShape {
    let mut model = Preset::Tiny.shape();
    model.vision.image_size = i64::from(SIZE);
    model.vision.patch_size = 8;
    model.text.context_length = 16;
    model
}

/// The colour that stands for a sample.
fn colour(sample: u64) -> [u8; 3] {
    [sample % 256, sample * 7 % 256, sample * 31 % 256].map(|value| value as u8)
}

/// An image of one colour, so that any crop of it tells which sample it is.
fn image(sample: u64) -> Vec<u8> {
    let planes = colour(sample).into_iter().zip(MEAN).zip(STD).map(|((value, mean), std)| (f32::from(value) / 255.0 - mean) / std);
    let pixels: Vec<f32> = planes.flat_map(|value| vec![value; (SIZE * SIZE) as usize]).collect();
    to_png(&pixels, SIZE)
}

/// Words that stand for a sample; their number differs, so that rows have different lengths.
fn caption(sample: u64) -> String {
    format!("{sample}{}", " cat".repeat(sample as usize % 4))
}

/// `shards` lists the samples of each shard; the captions of the samples in `bad` are not UTF-8, which only who reads them finds.
fn write_data(folder: &Path, shards: &[u64], bad: &[u64]) {
    let mut sample = 0;
    for (number, count) in shards.iter().enumerate() {
        let mut writer = ShardWriter::create(&folder.join(format!("{number:02}.tar"))).expect("the shard is begun");
        for _ in 0..*count {
            let text = caption(sample);
            let text = if bad.contains(&sample) { b"\xff" } else { text.as_bytes() };
            let key = format!("{sample:04}");
            writer.append(&key, Some((ImageKind::Png, &image(sample))), None).expect("an image is written");
            writer.append_member(&key, "txt", text).expect("a caption is written");
            sample += 1;
        }
        writer.finish().expect("the shard is finished");
    }
}

fn config(folder: &Path, shards: usize) -> DataConfig {
    DataConfig {
        max_bad_fraction: 1.0,
        threads: 2,
        ..DataConfig::new(DataSource::webdataset(
            (0..shards).map(|number| folder.join(format!("{number:02}.tar")).display().to_string()).collect(),
        ))
    }
}

/// A data set of its own in a folder of its own.
struct Data {
    _folder: tempfile::TempDir,
    config: DataConfig,
    dataset: Arc<Dataset>,
}

fn data(shards: &[u64], bad: &[u64]) -> Data {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_data(folder.path(), shards, bad);
    let config = config(folder.path(), shards.len());
    let dataset = Arc::new(Dataset::open(&config).expect("the data set is opened"));
    Data { _folder: folder, config, dataset }
}

fn options(global_batch_size: u64, steps: Range<u64>) -> LoaderOptions {
    LoaderOptions {
        model: model(),
        objective: LCL,
        seed: 5,
        global_batch_size,
        slots: (0..global_batch_size).into(),
        first_step: steps.start,
        last_step: steps.end,
    }
}

fn batches(data: &Data, options: LoaderOptions) -> Vec<Batch> {
    let loader = Loader::start(Arc::clone(&data.dataset), &data.config, options).expect("the loader starts");
    loader.collect::<Result<_, _>>().expect("the data is sound")
}

/// What a slot gave: pass, sample, tokens without padding, pixels; or pass, sample and cause.
#[derive(Debug, PartialEq)]
enum Slot {
    Row(u64, u64, Vec<i64>, Vec<u8>),
    Skipped(u64, u64, SkipCause),
}

/// Slots by (step, slot), with the batch's own shape checked on the way.
fn slots(batches: &[Batch]) -> HashMap<(u64, u64), Slot> {
    let values = 3 * (SIZE * SIZE) as usize;
    let mut slots = HashMap::new();
    for batch in batches {
        assert_eq!(batch.pixels.len(), batch.images * values);
        assert!(batch.rows.is_sorted_by_key(|row| row.slot) && batch.skipped.is_sorted_by_key(|skipped| skipped.slot));
        let (mut tokens_end, mut images_end) = (0, 0);
        for row in &batch.rows {
            // Rows lie one behind the other, and nothing lies between them.
            assert_eq!((row.tokens.start, row.images.start), (tokens_end, images_end));
            (tokens_end, images_end) = (row.tokens.end, row.images.end);
            let tokens = batch.tokens_of(row).to_vec();
            let pixels = batch.pixels[row.images.start * values..row.images.end * values].to_vec();
            assert!(slots.insert((batch.step, row.slot), Slot::Row(row.pass, row.sample, tokens, pixels)).is_none());
        }
        for skipped in &batch.skipped {
            let slot = Slot::Skipped(skipped.pass, skipped.sample, skipped.cause);
            assert!(slots.insert((batch.step, skipped.slot), slot).is_none());
        }
        assert_eq!((tokens_end, images_end), (batch.tokens.len(), batch.images));
    }
    slots
}

#[test]
fn a_row_holds_the_caption_and_the_image_of_its_sample() {
    let data = data(&[7, 30], &[]);
    let tokenizer = Tokenizer::clip();
    let mut sides = [0, 0];
    for ((step, slot), found) in slots(&batches(&data, options(10, 0..8))) {
        let Slot::Row(pass, sample, tokens, pixels) = found else { panic!("every sample is sound") };
        let location = data.dataset.order(5, 10).locate(step * 10 + slot);
        assert_eq!((pass, sample), (location.pass, location.sample));
        let text: Vec<i64> = tokenizer.encode(&caption(sample)).into_iter().map(i64::from).collect();
        let picture = [vec![49_409], vec![49_408; 4], vec![49_410]].concat();
        let image_first = tokens[0] == 49_409;
        sides[usize::from(image_first)] += 1;
        let expected = if image_first { [picture, text, vec![49_407]].concat() } else { [vec![49_406], text, picture].concat() };
        assert_eq!(tokens, expected);
        assert!(pixels.chunks_exact(3).all(|pixel| pixel == colour(sample)), "sample {sample}");
    }
    assert!(sides.iter().all(|count| *count > 20), "about half of 80 on each side: {sides:?}");
}

#[test]
fn the_image_stands_where_the_configured_probability_puts_it() {
    for (probability, first) in [(0.0, 49_406), (1.0, 49_409)] {
        let mut data = data(&[9], &[]);
        data.config.image_first_probability = probability;
        for batch in batches(&data, options(9, 0..3)) {
            assert!(batch.rows.iter().all(|row| batch.tokens_of(row)[0] == first));
        }
    }
}

#[test]
fn the_clip_objective_gets_captions_alone() {
    let data = data(&[6], &[]);
    let tokenizer = Tokenizer::clip();
    let found = batches(&data, LoaderOptions { objective: Objective::Clip, ..options(6, 0..1) });
    assert_eq!((found[0].rows.len(), found[0].images), (6, 6));
    for (_, slot) in slots(&found) {
        let Slot::Row(_, sample, tokens, _) = slot else { panic!("every sample is sound") };
        let text = tokenizer.encode(&caption(sample)).into_iter().map(i64::from);
        assert_eq!(tokens, [49_406].into_iter().chain(text).chain([49_407]).collect::<Vec<_>>());
    }
}

#[test]
fn threads_and_prefetch_change_nothing() {
    let mut data = data(&[40, 3, 21], &[5, 41]);
    let expected = batches(&data, options(11, 3..14));
    for (threads, prefetch) in [(1, 1), (2, 5), (7, 1), (8, 20)] {
        data.config.threads = threads;
        data.config.prefetch = prefetch;
        assert!(batches(&data, options(11, 3..14)) == expected, "{threads} threads, prefetch {prefetch}");
    }
}

#[test]
fn crops_follow_from_seed_step_and_slot() {
    // Gradients to the right and downwards, so that every crop gives other pixels.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gradient: Vec<f32> =
        (0..3 * SIZE * SIZE).map(|at| (if at < SIZE * SIZE { at % SIZE } else { at / SIZE % SIZE }) as f32 / 8.0 - 1.0).collect();
    let mut writer = ShardWriter::create(&folder.path().join("00.tar")).expect("the shard is begun");
    writer.append("0", Some((ImageKind::Png, &to_png(&gradient, SIZE))), Some("one")).expect("a sample is written");
    writer.finish().expect("the shard is finished");
    let mut config = config(folder.path(), 1);
    config.augmentation.scale = [0.2, 0.8];
    let dataset = Arc::new(Dataset::open(&config).expect("the data set is opened"));
    let data = Data { _folder: folder, config, dataset };
    let pixels = |seed| -> Vec<Vec<u8>> {
        let options = LoaderOptions { seed, ..options(2, 0..2) };
        let mut found: Vec<_> = slots(&batches(&data, options)).into_iter().collect();
        found.sort_by_key(|(key, _)| *key);
        found.into_iter().map(|(_, slot)| if let Slot::Row(.., pixels) = slot { pixels } else { panic!("the sample is sound") }).collect()
    };
    let (first, again, other) = (pixels(1), pixels(1), pixels(2));
    assert_eq!(first, again);
    let all = [first, other].concat();
    for (index, one) in all.iter().enumerate() {
        assert!(all[index + 1..].iter().all(|two| one != two), "two of (seed, step, slot) have the same crop");
    }
}

#[test]
fn every_kind_of_bad_record_leaves_its_slot_empty_and_is_counted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut writer = ShardWriter::create(&folder.path().join("00.tar")).expect("the shard is begun");
    let png = image(0);
    let huge = huge_png();
    let mut corrupt = png.clone();
    let middle = corrupt.len() / 2;
    corrupt[middle] ^= 0xff;
    writer.append("0", Some((ImageKind::Png, &png)), Some("sound")).expect("written");
    writer.append("1", Some((ImageKind::Png, &png)), None).expect("written");
    writer.append("2", None, Some("no image")).expect("written");
    writer.append("3", Some((ImageKind::Png, &png[..middle])), Some("truncated")).expect("written");
    writer.append("4", Some((ImageKind::Jpg, b"no image at all")), Some("unsupported")).expect("written");
    writer.append("5", Some((ImageKind::Png, &corrupt)), Some("corrupt")).expect("written");
    writer.append("6", Some((ImageKind::Png, &huge)), Some("too large")).expect("written");
    writer.append("7", Some((ImageKind::Png, &png)), None).expect("written");
    writer.append_member("7", "txt", b"\xff\xfe").expect("written");
    writer.append("8", Some((ImageKind::Png, &png)), Some(&"x".repeat(1 << 21))).expect("written");
    writer.append("9", Some((ImageKind::Jpg, b"")), Some("empty")).expect("written");
    writer.append("10", Some((ImageKind::Jpg, b"II*\0\x08\0\0\0")), Some("another format")).expect("written");
    writer.append("11", Some((ImageKind::Png, &png)), Some("twice")).expect("written");
    writer.append("11", Some((ImageKind::Png, &png)), Some("twice")).expect("written");
    writer.finish().expect("the shard is finished");
    let config = config(folder.path(), 1);
    let dataset = Arc::new(Dataset::open(&config).expect("the data set is opened"));
    let data = Data { _folder: folder, config, dataset };
    let found = slots(&batches(&data, options(4, 0..6)));
    let expected = [
        None,
        Some(SkipCause::NoCaption),
        Some(SkipCause::NoImage),
        Some(SkipCause::TruncatedImage),
        Some(SkipCause::UnsupportedImage),
        Some(SkipCause::CorruptImage),
        Some(SkipCause::ImageTooLarge),
        Some(SkipCause::CaptionNotUtf8),
        Some(SkipCause::CaptionTooLarge),
        Some(SkipCause::UnsupportedImage),
        Some(SkipCause::OtherFormat(OtherFormat::Tiff)),
        Some(SkipCause::DoubledMember),
    ];
    assert_eq!(found.len(), 24, "every slot is a row or is counted");
    for slot in found.into_values() {
        match slot {
            Slot::Row(_, sample, ..) => assert_eq!(sample, 0),
            Slot::Skipped(_, sample, cause) => assert_eq!(Some(cause), expected[sample as usize], "sample {sample}"),
        }
    }
    // That no document gives a sequence is tested with documents, what is wrong with captions in a json where they are drawn.
    let elsewhere = [SkipCause::NoDocument, SkipCause::CaptionNotText, SkipCause::BrokenSidecar];
    let tested =
        |cause: &SkipCause| matches!(cause, SkipCause::OtherFormat(_)) || elsewhere.contains(cause) || expected.contains(&Some(*cause));
    assert!(SkipCause::ALL.iter().all(tested), "a cause is not tested");
}

/// Of a sample with a txt and two fields in its json each is drawn as often as its weight says, whoever loads the slot; what a sample lacks is
/// left out of the draw.
#[test]
fn each_caption_of_a_sample_is_drawn_as_often_as_its_weight_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut writer = ShardWriter::create(&folder.path().join("00.tar")).expect("the shard is begun");
    let sidecars: [&[u8]; 4] =
        [b"{\"caption\": \"cat\", \"meta\": {\"alt\": \"dog\"}}", b"{\"caption\": \"cat\"}", b"{\"caption\": 5, \"meta\": null}", b"{"];
    for (sample, sidecar) in sidecars.into_iter().enumerate() {
        writer.append(&sample.to_string(), Some((ImageKind::Png, &image(sample as u64))), None).expect("written");
        writer.append_member(&sample.to_string(), "json", sidecar).expect("written");
        writer.append_member(&sample.to_string(), "txt", b"tree").expect("written");
    }
    writer.finish().expect("the shard is finished");
    let mut config = config(folder.path(), 1);
    let choice = |from, weight| CaptionChoice { from, weight };
    let json = |path: &str| CaptionFrom::Json(path.to_owned());
    let captions = vec![choice(CaptionFrom::Key("txt".to_owned()), 1), choice(json("caption"), 2), choice(json("meta.alt"), 3)];
    let DataSource::Webdataset { keys, .. } = &mut config.source else { panic!("pairs") };
    *keys = SampleKeys { captions, ..SampleKeys::default() };
    let dataset = Arc::new(Dataset::open(&config).expect("the data set is opened"));
    let mut data = Data { _folder: folder, config, dataset };
    let (passes, tokenizer) = (600_u32, Tokenizer::clip());
    let found = batches(&data, options(8, 0..u64::from(passes / 2)));
    for threads in [1, 5] {
        data.config.threads = threads;
        // A part of the slots, as another member would load it.
        let part = batches(&data, LoaderOptions { slots: (3..8).into(), ..options(8, 100..130) });
        let (part, whole) = (slots(&part), slots(&found));
        assert!(part.len() == 150 && part.iter().all(|(key, slot)| whole.get(key) == Some(slot)), "{threads} threads");
    }
    let mut counts: HashMap<(u64, &str), u32> = HashMap::new();
    for slot in slots(&found).into_values() {
        let (sample, what) = match slot {
            Slot::Skipped(_, sample, cause) => (sample, cause.name()),
            Slot::Row(_, sample, tokens, _) => {
                let is_there = |word: &&str| tokens.contains(&i64::from(tokenizer.encode(word)[0]));
                (sample, ["tree", "cat", "dog"].into_iter().find(is_there).expect("one of the words"))
            }
        };
        *counts.entry((sample, what)).or_default() += 1;
    }
    let expected = [
        ((0, "tree"), 1.0 / 6.0),
        ((0, "cat"), 2.0 / 6.0),
        ((0, "dog"), 3.0 / 6.0),
        ((1, "tree"), 1.0 / 3.0),
        ((1, "cat"), 2.0 / 3.0),
        ((2, "tree"), 1.0 / 3.0),
        ((2, "caption_not_text"), 2.0 / 3.0),
        ((3, "broken_sidecar"), 1.0),
    ];
    assert_eq!(counts.len(), expected.len(), "{counts:?}");
    for (key, part) in expected {
        let (count, deviation) = (f64::from(counts[&key]), (f64::from(passes) * part * (1.0 - part)).sqrt());
        // Five standard deviations of a binomial; the seed is fixed, so this is no matter of luck.
        assert!((count - f64::from(passes) * part).abs() <= 5.0 * deviation, "{key:?}: {counts:?}");
    }
}

/// A PNG whose header declares 60,000 by 60,000 pixels.
fn huge_png() -> Vec<u8> {
    let chunk = |kind: &[u8; 4], data: &[u8]| {
        let body = [kind.as_slice(), data].concat();
        [&(data.len() as u32).to_be_bytes(), body.as_slice(), &crc32fast::hash(&body).to_be_bytes()].concat()
    };
    let side = 60_000_u32.to_be_bytes();
    let header = [&side[..], &side[..], &[8, 2, 0, 0, 0]].concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), chunk(b"IDAT", &[]), chunk(b"IEND", &[])].concat()
}

#[test]
fn a_step_of_bad_records_alone_is_an_empty_batch() {
    let data = data(&[3], &[0, 1, 2]);
    let found = batches(&data, options(2, 0..3));
    assert_eq!(found.len(), 3);
    assert!(
        found.iter().all(|batch| batch.rows.is_empty() && batch.skipped.len() == 2 && batch.tokens.is_empty() && batch.pixels.is_empty())
    );
}

#[test]
fn a_bad_record_is_named_once_in_the_log() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    // The loader's threads are not this one, so they need a subscriber of their own: read on this thread instead.
    let data = data(&[2], &[1]);
    tracing::subscriber::set_global_default(subscriber).expect("no other test sets one");
    drop(batches(&data, options(4, 0..25)));
    let text = log.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("bad record") && line.contains("caption_not_utf8")).collect();
    let shard = data.config.index_path.is_none().then(|| data.dataset.key(1).expect("the key is read")).expect("no index folder");
    let own: Vec<_> = lines.iter().filter(|line| line.contains(shard.0.to_str().expect("UTF-8"))).collect();
    assert_eq!(own.len(), 1, "50 draws of the bad record: {text}");
    assert!(own[0].contains("key=\"0001\""), "{}", own[0]);
    faults_are_counted_and_named_once(&log);
}

/// Part of the test above, because a program has one log.
fn faults_are_counted_and_named_once(log: &Log) {
    let file = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        std::fs::read(path).expect("the fixture is read")
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut writer = ShardWriter::create(&folder.path().join("00.tar")).expect("the shard is begun");
    let faults = [Some(Tolerated::JpegScanHeader), Some(Tolerated::JpegScanHeader), Some(Tolerated::PngEnd), None];
    let names = ["jpeg_scan_header_zero.jpeg", "jpeg_scan_header_odd.jpeg", "png_end_missing.png", "gif_plain.gif"];
    for (key, name) in names.into_iter().enumerate() {
        // Under any ending.
        let image = file(&format!("image_found/{name}"));
        writer.append(&key.to_string(), Some((ImageKind::Webp, &image)), Some("faulty")).expect("a sample is written");
    }
    writer.finish().expect("the shard is finished");
    let config = config(folder.path(), 1);
    let dataset = Arc::new(Dataset::open(&config).expect("the data set is opened"));
    let data = Data { _folder: folder, config, dataset };
    let found = batches(&data, options(4, 0..10));
    for batch in &found {
        assert!(batch.skipped.is_empty());
        assert!(
            batch.rows.iter().all(|row| row.tolerated == faults[row.sample as usize].into_iter().collect::<Vec<_>>()),
            "{:?}",
            batch.rows
        );
    }
    let text = log.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("costs no pixel")).collect();
    let of = |cause: &str| lines.iter().filter(|line| line.contains(cause)).count();
    assert_eq!((lines.len(), of("cause=jpeg_scan_header"), of("cause=png_end")), (2, 1, 1), "{text}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn a_loader_that_nobody_asks_is_dropped_at_once() {
    let data = data(&[20], &[]);
    for _ in 0..20 {
        let mut loader = Loader::start(Arc::clone(&data.dataset), &data.config, options(4, 0..1_000_000)).expect("the loader starts");
        loader.next().expect("a batch").expect("the data is sound");
        drop(loader);
    }
}

#[test]
fn no_steps_give_no_batches() {
    let data = data(&[2], &[]);
    assert!(batches(&data, options(4, 9..9)).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_sample_comes_once_per_pass_however_the_batches_fall(
        shards in proptest::collection::vec(0_u64..9, 1..5),
        batch in 1_u64..14,
        passes in 1_u64..4,
        seed in any::<u64>(),
    ) {
        let samples: u64 = shards.iter().sum();
        prop_assume!(samples > 0);
        let data = data(&shards, &[]);
        let steps = (passes * samples).div_ceil(batch);
        let found = slots(&batches(&data, LoaderOptions { seed, ..options(batch, 0..steps) }));
        prop_assert_eq!(found.len() as u64, steps * batch);
        let mut counts = HashMap::new();
        for ((step, slot), found) in found {
            let Slot::Row(pass, sample, ..) = found else { panic!("every sample is sound") };
            prop_assert_eq!(pass, (step * batch + slot) / samples);
            *counts.entry((pass, sample)).or_insert(0) += 1;
        }
        for pass in 0..passes {
            for sample in 0..samples {
                prop_assert_eq!(counts.get(&(pass, sample)), Some(&1), "pass {}, sample {}", pass, sample);
            }
        }
    }

    #[test]
    fn any_split_of_the_slots_gives_the_same_rows(
        shards in proptest::collection::vec(1_u64..9, 1..4),
        bad in proptest::collection::vec(0_u64..9, 0..3),
        mut cuts in proptest::collection::vec(0_u64..12, 0..4),
        steps in 1_u64..6,
    ) {
        let data = data(&shards, &bad);
        let whole = slots(&batches(&data, options(12, 0..steps)));
        cuts.extend([0, 12]);
        cuts.sort_unstable();
        cuts.dedup();
        let runs: Vec<Range<u64>> = cuts.windows(2).map(|bounds| bounds[0]..bounds[1]).collect();
        let mut parts = HashMap::new();
        // Every other run is one member's, the others another's.
        for first in 0..runs.len().min(2) {
            let of_member: Vec<Range<u64>> = runs.iter().skip(first).step_by(2).cloned().collect();
            let part = batches(&data, LoaderOptions { slots: of_member.into(), ..options(12, 0..steps) });
            prop_assert_eq!(part.len() as u64, steps);
            prop_assert!(part.iter().all(|batch| batch.rows.is_sorted_by_key(|row| row.slot)));
            parts.extend(slots(&part));
        }
        prop_assert!(parts == whole);
    }

    #[test]
    fn a_loader_that_starts_later_gives_the_tail(
        shards in proptest::collection::vec(1_u64..9, 1..4),
        bad in proptest::collection::vec(0_u64..9, 0..3),
        batch in 1_u64..9,
        start in 0_u64..12,
    ) {
        let data = data(&shards, &bad);
        let whole = batches(&data, options(batch, 0..12));
        let tail = batches(&data, options(batch, start..12));
        prop_assert!(tail == whole[start as usize..]);
    }
}
