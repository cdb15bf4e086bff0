//! Documents from their published form to a batch: MMC4 and OBELICS through the data set and the loader.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    num::NonZero,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use lcl_data::{
    Batch, Dataset, DatasetError, Loader, LoaderError, LoaderOptions, RedrawCause, SkipCause, Viewer,
    convert::{ConvertOptions, convert},
    document::{Composer, Document},
    image::{Scratch, decode},
    mmc4::{ImageFolders, Record, Rules, SlotChoices, choose, image_path, place, walk},
    sequence::SequenceLimits,
    shard::{ImageKind, ListOrigin, ShardWriter},
    tokenizer::Tokenizer,
};
use lcl_trainer_config::{
    DataConfig, DataSource, DocumentsConfig, MixedSource, MixtureConfig, MixtureUnit, Mmc4Config, Mmc4Images, ModelShape, ObelicsConfig,
    Objective, Preset,
};

const LCL: Objective = Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 };
const SEED: u64 = 5;
const SIZE: i64 = 32;
const START_OF_IMAGE: i64 = 49_409;
const PLACEHOLDER: i64 = 49_408;

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A copy, since indexes are written beside the shards.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder is made");
    for entry in fs::read_dir(from).expect("the fixtures are there") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a file is copied");
        }
    }
}

fn model(context_length: i64) -> ModelShape {
    let mut model = Preset::Tiny.shape();
    (model.vision.image_size, model.vision.patch_size, model.text.context_length) = (SIZE, 16, context_length);
    model
}

fn config(source: DataSource) -> DataConfig {
    DataConfig { max_bad_fraction: 1.0, threads: 2, ..DataConfig::new(source) }
}

fn mmc4(folder: &Path) -> Mmc4Config {
    Mmc4Config {
        shards: vec![folder.join("data/docs_shard_{0..3}_v2.jsonl.zip").display().to_string()],
        images: Mmc4Images::Flat { folder: folder.join("images").display().to_string() },
        min_similarity: 0.24,
        max_images: 6,
    }
}

fn obelics(folder: &Path) -> ObelicsConfig {
    let entry = |path: &str| vec![folder.join(path).display().to_string()];
    ObelicsConfig { shards: entry("data/train-*.parquet"), images: entry("images/{00000..00002}.tar"), split: true, max_images: 6 }
}

fn load(config: &DataConfig, batch: u64, steps: Range<u64>, context_length: i64) -> Vec<Batch> {
    let dataset = Arc::new(Dataset::open(config).expect("the data set opens"));
    let options = LoaderOptions {
        model: model(context_length),
        objective: LCL,
        seed: SEED,
        global_batch_size: batch,
        slots: (0..batch).into(),
        first_step: steps.start,
        last_step: steps.end,
    };
    Loader::start(dataset, config, options).expect("the loader starts").collect::<Result<_, _>>().expect("the data are sound")
}

/// What holds for every batch: rows one behind the other, as many images as marks, with all their placeholders.
fn check_batches(batches: &[Batch], slots: u64) {
    for batch in batches {
        assert_eq!(batch.rows.len() as u64 + batch.skipped.len() as u64, slots);
        assert_eq!(batch.pixels.len(), batch.images * (3 * SIZE * SIZE) as usize);
        for row in &batch.rows {
            let tokens = batch.tokens_of(row);
            let count = |wanted: i64| tokens.iter().filter(|token| **token == wanted).count();
            assert!((1..=6).contains(&row.images.len()));
            assert_eq!((count(START_OF_IMAGE), count(PLACEHOLDER)), (row.images.len(), 4 * row.images.len()));
            assert!(row.redrawn.is_some_and(|(_, attempts)| attempts > 0) || row.used == row.sample);
        }
    }
}

/// The configuration of what `source` is converted to.
fn converted(source: DataSource, to: &Path, documents_per_shard: u64) -> DataConfig {
    let documents_per_shard = NonZero::new(documents_per_shard).expect("not zero");
    let options = ConvertOptions { output: to.to_owned(), documents_per_shard };
    convert(&config(source), ListOrigin::Manifest, &options, |_, _| {}).expect("the documents are converted");
    let shards = vec![to.join("*.tar").display().to_string()];
    config(DataSource::Documents { documents: DocumentsConfig { shards, max_images: 6 } })
}

#[test]
fn converted_documents_of_obelics_give_the_sequences_of_their_source() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("obelics"), folder.path());
    let source = DataSource::Obelics { obelics: obelics(folder.path()) };
    let converted = converted(source.clone(), &folder.path().join("converted"), 3);
    let sequences = |config: &DataConfig| {
        let samples = Dataset::open(config).expect("the data set opens").samples_per_pass();
        let batch = load(config, samples, 0..1, 128).remove(0);
        check_batches(std::slice::from_ref(&batch), samples);
        let rows = batch.rows.iter().filter(|row| row.redrawn.is_none()).map(|row| batch.tokens_of(row).to_vec());
        let mut rows: Vec<Vec<i64>> = rows.collect();
        rows.sort();
        rows
    };
    let (before, after) = (sequences(&config(source)), sequences(&converted));
    assert!(before.len() > 5, "only {} documents", before.len());
    assert_eq!(before, after);
}

#[test]
fn a_document_is_seen_as_a_batch_has_it_and_one_of_no_use_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("obelics"), folder.path());
    let config = config(DataSource::Obelics { obelics: obelics(folder.path()) });
    let dataset = Arc::new(Dataset::open(&config).expect("the data set opens"));
    let samples = dataset.samples_per_pass();
    let batch = load(&config, samples, 0..1, 12).remove(0);
    let options = LoaderOptions {
        model: model(12),
        objective: LCL,
        seed: SEED,
        global_batch_size: 1,
        slots: (0..1).into(),
        first_step: 0,
        last_step: 1,
    };
    let mut viewer = Viewer::new(&dataset, &config, options).expect("the settings can be used");
    let mut refused = 0;
    for row in &batch.rows {
        let view_of_row = viewer.view(row.sample).expect("the document is read");
        assert!(
            view_of_row.shard.extension().is_some_and(|ending| ending == "parquet") && view_of_row.key.starts_with("row "),
            "{view_of_row:?}"
        );
        match (view_of_row.content, row.redrawn) {
            (Ok(seen), None) => {
                assert_eq!((seen.tokens.as_slice(), seen.images.len()), (batch.tokens_of(row), row.images.len()));
                for png in &seen.images {
                    let mut scratch = Scratch::new();
                    let pixels = decode(png, &mut scratch).expect("a picture");
                    assert_eq!((i64::from(pixels.width), i64::from(pixels.height)), (SIZE, SIZE));
                }
            }
            (Err(cause), Some((redrawn, _))) => {
                assert_eq!(cause, redrawn.name());
                refused += 1;
            }
            (content, redrawn) => panic!("sample {}: {content:?}, {redrawn:?}", row.sample),
        }
    }
    assert!(refused > 0, "every document fits into 12 tokens");
    assert!(matches!(viewer.view(samples), Err(DatasetError::OutOfRange { .. })));
}

/// All documents of MMC4 that are samples, in the order of their numbers.
fn documents_of(config: &Mmc4Config, shards: &[PathBuf]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for shard in shards {
        let mut record = Record::new();
        walk(shard, |line| {
            if line.parse(&mut record).is_ok() && record.images().iter().any(|image| image.matched_sim >= config.min_similarity) {
                lines.push(line.bytes().expect("no line is too long").to_vec());
            }
        })
        .expect("the shard is sound");
    }
    lines
}

#[test]
fn a_row_of_mmc4_is_what_the_rules_make_of_its_document() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    let source = mmc4(folder.path());
    let shards = [0, 1].map(|shard| folder.path().join(format!("data/docs_shard_{shard}_v2.jsonl.zip")));
    let documents = documents_of(&source, &shards);
    let batches = load(&config(DataSource::Mmc4 { mmc4: source }), 8, 0..20, 96);
    check_batches(&batches, 8);
    let limits = SequenceLimits::new(&model(96)).expect("a limits");
    let (mut composer, mut document, mut record, mut redrawn) = (Composer::new(Tokenizer::clip()), Document::new(), Record::new(), 0);
    for batch in &batches {
        assert!(batch.skipped.is_empty());
        for row in &batch.rows {
            redrawn += usize::from(row.redrawn.is_some());
            record.fill(&documents[row.used as usize]).expect("a sound line");
            let attempt = row.redrawn.map_or(0, |(_, attempts)| attempts);
            let (rules, mut choices, mut chosen) = (Rules::default(), SlotChoices::new(SEED, batch.step, row.slot, attempt), Vec::new());
            choose(&record, &rules, &mut choices, &mut chosen).expect("the row has images");
            chosen.retain(|image| {
                let name = record.image_name(&record.images()[*image as usize]);
                let path = image_path(&folder.path().join("images"), ImageFolders::One, 0, name).expect("a sound name");
                fs::read(path).is_ok_and(|bytes| decode(&bytes, &mut Scratch::new()).is_ok())
            });
            place(&record, &chosen, &rules, &mut choices, &mut document).expect("an image is readable");
            let expected = composer.compose(&document, &limits).expect("an image fits");
            assert_eq!((batch.tokens_of(row), row.images.len()), (expected.tokens, expected.images.len()));
        }
    }
    assert!(redrawn > 3, "only {redrawn} of 160 documents were replaced, though several have no readable image");
}

#[test]
fn each_document_has_its_turn_once_a_pass_and_replacements_come_on_top() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    let config = config(DataSource::Mmc4 { mmc4: mmc4(folder.path()) });
    let samples = Dataset::open(&config).expect("the data set opens").samples_per_pass();
    let batches = load(&config, samples, 0..3, 96);
    let mut causes = BTreeMap::new();
    for batch in &batches {
        let turns: BTreeSet<u64> = batch.rows.iter().map(|row| row.sample).collect();
        assert_eq!(turns.len() as u64, samples);
        for row in &batch.rows {
            if let Some((cause, attempts)) = row.redrawn {
                *causes.entry(cause).or_insert(0) += 1;
                assert!(attempts > 0);
            } else {
                assert_eq!(row.used, row.sample);
            }
        }
    }
    assert!(causes.contains_key(&RedrawCause::NoImageReadable) && causes.contains_key(&RedrawCause::NoImageFits), "{causes:?}");
    assert!(!causes.contains_key(&RedrawCause::NoImageAboveThreshold), "the index leaves these out: {causes:?}");
    // The same whatever threads and prefetch are, and from whichever step it begins.
    let other = DataConfig { threads: 5, prefetch: 1, ..config };
    assert!(load(&other, samples, 1..3, 96) == batches[1..]);
}

#[test]
fn plain_shards_and_folders_by_shard_give_the_same_rows_as_zipped_ones_and_one_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    let zipped = mmc4(folder.path());
    for shard in [0, 1] {
        let name = |ending: &str| folder.path().join(format!("data/docs_shard_{shard}_v2.jsonl{ending}"));
        let mut lines = Vec::new();
        walk(&name(".zip"), |line| lines.push(line.bytes().expect("a line").to_vec())).expect("a sound shard");
        fs::write(name(""), lines.join(&b'\n')).expect("the plain shard is written");
        copy(&folder.path().join("images"), &folder.path().join(format!("by_shard/{shard}")));
    }
    let plain = Mmc4Config {
        shards: vec![folder.path().join("data/docs_shard_{0,1}_v2.jsonl").display().to_string()],
        images: Mmc4Images::ByShard { folder: folder.path().join("by_shard").display().to_string() },
        ..zipped.clone()
    };
    let [zipped, plain] = [zipped, plain].map(|mmc4| load(&config(DataSource::Mmc4 { mmc4 }), 8, 0..6, 96));
    assert!(zipped == plain);
}

#[test]
fn images_in_tar_shards_are_found_by_their_address_and_give_the_rows_of_those_in_a_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    let in_folder = mmc4(folder.path());
    let mut names = BTreeSet::new();
    for shard in [0, 1] {
        let name = |ending: &str| folder.path().join(format!("data/docs_shard_{shard}_v2.jsonl{ending}"));
        let mut lines = Vec::new();
        walk(&name(".zip"), |line| {
            let mut line: serde_json::Value = match serde_json::from_slice(line.bytes().expect("a line")) {
                Ok(line) => line,
                Err(_) => return lines.push(line.bytes().expect("a line").to_vec()),
            };
            for info in line["image_info"].as_array_mut().into_iter().flatten() {
                // Addresses of the recorded documents repeat; names do not.
                let name = info["image_name"].as_str().unwrap_or_default().to_owned();
                info["raw_url"] = format!("http://a.example/{name}?x=1").into();
                names.insert(name);
            }
            lines.push(line.to_string().into_bytes());
        })
        .expect("a sound shard");
        fs::write(name(""), lines.join(&b'\n')).expect("the plain shard is written");
    }
    let mut store = ShardWriter::create(&folder.path().join("00000.tar")).expect("the store is begun");
    for (number, name) in names.iter().enumerate() {
        let Ok(image) = fs::read(folder.path().join("images").join(name)) else { continue };
        let key = format!("{number:09}");
        store.append_member(&key, "jpg", &image).expect("an image is written");
        let address = serde_json::json!({"url": format!("http://a.example/{name}?x=1")});
        store.append_member(&key, "json", address.to_string().as_bytes()).expect("its address is written");
    }
    store.finish().expect("the store is finished");
    let in_store = Mmc4Config {
        shards: vec![folder.path().join("data/docs_shard_{0,1}_v2.jsonl").display().to_string()],
        images: Mmc4Images::Store { shards: vec![folder.path().join("*.tar").display().to_string()] },
        ..in_folder.clone()
    };
    let digest = || Dataset::open(&config(DataSource::Mmc4 { mmc4: in_store.clone() })).expect("the data set opens").digest();
    let [from_folder, from_store] = [in_folder, in_store.clone()].map(|mmc4| load(&config(DataSource::Mmc4 { mmc4 }), 8, 0..6, 96));
    assert!(from_folder == from_store);
    // Other images are other data.
    let before = digest();
    let mut store = ShardWriter::create(&folder.path().join("00001.tar")).expect("another shard is begun");
    store.append_member("1", "jpg", b"no image").expect("it is written");
    store.append_member("1", "json", br#"{"url": "http://a.example/other"}"#).expect("its address is written");
    store.finish().expect("the shard is finished");
    assert_ne!(digest(), before);
}

#[test]
fn obelics_gives_every_stretch_with_a_stored_image_once_a_pass() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("obelics"), folder.path());
    let config = config(DataSource::Obelics { obelics: obelics(folder.path()) });
    let samples = Dataset::open(&config).expect("the data set opens").samples_per_pass();
    let batches = load(&config, samples, 0..2, 128);
    check_batches(&batches, samples);
    for batch in &batches {
        assert_eq!(batch.rows.iter().map(|row| row.sample).collect::<BTreeSet<_>>().len() as u64, samples);
        // Nothing about these documents is random.
        for row in batch.rows.iter().filter(|row| row.redrawn.is_none()) {
            let again = batches[0].rows.iter().find(|other| other.used == row.used).expect("a row of it");
            assert_eq!(batches[0].tokens_of(again), batch.tokens_of(row));
        }
    }
    let made = |ending: &str| {
        fs::read_dir(folder.path().join("images"))
            .expect("a folder")
            .filter(|entry| entry.as_ref().expect("an entry").file_name().to_string_lossy().ends_with(ending))
            .count()
    };
    assert_eq!(made("lcladdresses"), 1, "the table of addresses is made once, beside the first shard");
}

#[test]
fn other_settings_are_other_data() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    copy(&fixtures("obelics"), folder.path());
    let digest = |source| Dataset::open(&config(source)).expect("the data set opens").digest();
    let (mmc4, obelics) = (mmc4(folder.path()), obelics(folder.path()));
    let of_mmc4 = |change: fn(&mut Mmc4Config)| {
        let mut mmc4 = mmc4.clone();
        change(&mut mmc4);
        digest(DataSource::Mmc4 { mmc4 })
    };
    let of_obelics = |change: fn(&mut ObelicsConfig)| {
        let mut obelics = obelics.clone();
        change(&mut obelics);
        digest(DataSource::Obelics { obelics })
    };
    let all = [
        of_mmc4(|_| {}),
        of_mmc4(|mmc4| mmc4.min_similarity = 0.25),
        of_mmc4(|mmc4| mmc4.max_images = 5),
        of_obelics(|_| {}),
        of_obelics(|obelics| obelics.split = false),
        of_obelics(|obelics| obelics.max_images = 7),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    assert_eq!(all[0], of_mmc4(|_| {}));
}

#[test]
fn what_cannot_be_trained_on_is_said_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    let open = |change: fn(&mut Mmc4Config)| {
        let mut mmc4 = mmc4(folder.path());
        change(&mut mmc4);
        Dataset::open(&config(DataSource::Mmc4 { mmc4 })).expect_err("nothing to train on").to_string()
    };
    let message = open(|mmc4| mmc4.min_similarity = 1.01);
    assert!(message.contains("no_image_above_threshold") && message.starts_with("spec.data.mmc4.shards: "), "{message}");
    let message = open(|mmc4| mmc4.shards = vec!["/nowhere/docs_shard_{0..2}_v2.jsonl".to_owned()]);
    assert!(message.contains("spec.data.mmc4.shards[0]"), "{message}");
    let message = open(|mmc4| mmc4.images = Mmc4Images::Flat { folder: "/nowhere/images".to_owned() });
    assert!(message.contains("spec.data.mmc4.images.folder is /nowhere/images"), "{message}");
    // Documents without captions cannot be trained by the baseline's objective.
    let config = config(DataSource::Mmc4 { mmc4: mmc4(folder.path()) });
    let dataset = Arc::new(Dataset::open(&config).expect("the data set opens"));
    let options = LoaderOptions {
        model: model(96),
        objective: Objective::Clip,
        seed: 0,
        global_batch_size: 1,
        slots: (0..1).into(),
        first_step: 0,
        last_step: 1,
    };
    let error = Loader::start(dataset, &config, options).expect_err("no caption");
    assert!(matches!(error, LoaderError::Setting { field: "model.objective.kind", .. }), "{error}");
}

#[test]
fn a_slot_for_which_no_document_is_of_use_stays_empty() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    // Were none there, the data set would not open.
    for image in fs::read_dir(folder.path().join("images")).expect("the images") {
        fs::write(image.expect("an image").path(), "no image").expect("it is damaged");
    }
    let config = config(DataSource::Mmc4 { mmc4: mmc4(folder.path()) });
    for batch in load(&config, 3, 0..2, 96) {
        assert!(batch.rows.is_empty() && batch.skipped.iter().all(|skipped| skipped.cause == SkipCause::NoDocument), "{batch:?}");
        assert_eq!(batch.skipped.len(), 3);
    }
}

#[test]
fn a_shard_that_changes_after_it_was_indexed_is_named_and_gives_no_row() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    let path = folder.path().join("data/docs_shard_0_v2.jsonl");
    let mut lines = Vec::new();
    walk(&folder.path().join("data/docs_shard_0_v2.jsonl.zip"), |line| lines.push(line.bytes().expect("a line").to_vec())).expect("sound");
    fs::write(&path, lines.join(&b'\n')).expect("the shard is written");
    let source = Mmc4Config { shards: vec![path.display().to_string()], ..mmc4(folder.path()) };
    let config = config(DataSource::Mmc4 { mmc4: source });
    let dataset = Arc::new(Dataset::open(&config).expect("the data set opens"));
    lines.reverse();
    lines.truncate(3);
    fs::write(&path, lines.join(&b'\n')).expect("another shard is written");
    let options = LoaderOptions {
        model: model(96),
        objective: LCL,
        seed: 0,
        global_batch_size: dataset.samples_per_pass(),
        slots: (0..dataset.samples_per_pass()).into(),
        first_step: 0,
        last_step: 1,
    };
    let outcome = Loader::start(dataset, &config, options).expect("the loader starts").next().expect("an outcome");
    let error = outcome.expect_err("the shard is another one");
    let LoaderError::Read { source, .. } = error else { panic!("{error:?}") };
    let DatasetError::Documents(source) = *source else { panic!("{source:?}") };
    assert!(source.to_string().contains("docs_shard_0_v2.jsonl changed"), "{source}");
}

#[test]
fn indexes_beside_the_shards_fit_no_glob_and_a_shard_that_is_not_there_is_left_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("mmc4"), folder.path());
    let open = |shards: &str| {
        let source = Mmc4Config { shards: vec![folder.path().join(shards).display().to_string()], ..mmc4(folder.path()) };
        Dataset::open(&config(DataSource::Mmc4 { mmc4: source })).expect("the data set opens").digest()
    };
    let first = open("data/docs_shard_*");
    assert_eq!(open("data/docs_shard_*"), first, "an index was taken for a shard");
    assert_eq!(open("data/docs_shard_{0..7}_v2.jsonl.zip"), first);
}

#[test]
fn stores_that_begin_with_the_same_shard_have_tables_of_their_own_and_other_images_are_other_data() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    copy(&fixtures("obelics"), folder.path());
    let open = |images: &str| {
        let source = ObelicsConfig { images: vec![folder.path().join(images).display().to_string()], ..obelics(folder.path()) };
        Dataset::open(&config(DataSource::Obelics { obelics: source })).expect("the data set opens").digest()
    };
    let (whole, part) = (open("images/{00000..00002}.tar"), open("images/{00000..00001}.tar"));
    assert_ne!(whole, part);
    let entries = fs::read_dir(folder.path().join("images")).expect("a folder");
    let tables = entries.filter(|entry| entry.as_ref().expect("an entry").file_name().to_string_lossy().ends_with("lcladdresses"));
    assert_eq!(tables.count(), 2);
    assert_eq!(open("images/{00000..00002}.tar"), whole);
    // The same addresses, and more bytes: an archive ends with zeros.
    let path = folder.path().join("images/00002.tar");
    let mut bytes = fs::read(&path).expect("a shard");
    bytes.extend([0; 1024]);
    fs::write(&path, bytes).expect("the shard is written");
    assert_ne!(open("images/{00000..00002}.tar"), whole);
}

#[test]
fn indexes_lie_in_their_folder_when_there_is_one() {
    let (folder, indexes) = (tempfile::tempdir().expect("a temporary folder"), tempfile::tempdir().expect("another"));
    copy(&fixtures("obelics"), folder.path());
    let before = count_files(folder.path());
    let config = DataConfig {
        index_path: Some(indexes.path().display().to_string()),
        threads: NonZero::<usize>::MIN.get(),
        ..config(DataSource::Obelics { obelics: obelics(folder.path()) })
    };
    let digest = Dataset::open(&config).expect("the data set opens").digest();
    assert_eq!(count_files(folder.path()), before, "something was written beside the shards");
    // Two files and the table.
    assert_eq!(count_files(indexes.path()), 3);
    assert_eq!(Dataset::open(&config).expect("it opens again").digest(), digest);
}

fn count_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
}

/// Pairs, documents of MMC4 and of OBELICS, mixed.
fn mixture(folder: &Path, by: MixtureUnit, weights: [u64; 3]) -> DataSource {
    copy(&fixtures("mmc4"), &folder.join("mmc4"));
    copy(&fixtures("obelics"), &folder.join("obelics"));
    let shard = folder.join("pairs.tar");
    let image = fs::read_dir(fixtures("mmc4/images")).expect("the fixtures are there").map(|entry| entry.expect("an entry").path());
    let image = image.filter(|path| path.extension().is_some_and(|ending| ending == "png")).min().expect("a picture");
    let image = fs::read(image).expect("the picture is read");
    let mut writer = ShardWriter::create(&shard).expect("the shard is begun");
    for number in 0..31 {
        writer.append(&format!("{number:03}"), Some((ImageKind::Png, &image)), Some("a picture")).expect("a pair is written");
    }
    writer.finish().expect("the shard is finished");
    let sources = [
        ("pairs", DataSource::webdataset(vec![shard.display().to_string()])),
        ("mmc4", DataSource::Mmc4 { mmc4: mmc4(&folder.join("mmc4")) }),
        ("obelics", DataSource::Obelics { obelics: obelics(&folder.join("obelics")) }),
    ];
    let sources = sources.into_iter().zip(weights).map(|((name, source), weight)| MixedSource { name: name.to_owned(), weight, source });
    DataSource::Mixture { mixture: MixtureConfig { by, sources: sources.collect() } }
}

#[test]
fn a_mixture_takes_each_source_by_its_weight_and_each_of_its_samples_once_in_its_own_passes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = config(mixture(folder.path(), MixtureUnit::Samples, [3, 2, 1]));
    let dataset = Dataset::open(&config).expect("the data set opens");
    let order = dataset.order(SEED, 12);
    assert_eq!(order.names(), ["pairs", "mmc4", "obelics"]);
    let batches = load(&config, 12, 0..40, 96);
    let mut turns: BTreeMap<(usize, u64), Vec<u64>> = BTreeMap::new();
    for batch in &batches {
        assert_eq!(batch.rows.len() + batch.skipped.len(), 12);
        let mut of_source = [0; 3];
        for row in &batch.rows {
            let location = order.locate(batch.step * 12 + row.slot);
            assert_eq!((location.pass, location.sample), (row.pass, row.sample));
            assert_eq!(order.source_of(row.sample), location.source);
            // What takes a document's place is one of the same source.
            assert_eq!(order.source_of(row.used), location.source);
            of_source[location.source] += 1;
            turns.entry((location.source, location.pass)).or_default().push(row.sample);
        }
        // 3 : 2 : 1, to within one in every prefix.
        assert!(of_source.into_iter().zip([6_i64, 4, 2]).all(|(found, wanted)| (found - wanted).abs() <= 1), "{of_source:?}");
    }
    for ((source, pass), mut samples) in turns {
        let count = samples.len();
        samples.sort_unstable();
        samples.dedup();
        assert_eq!(samples.len(), count, "a sample of source {source} comes twice in pass {pass}");
    }
    // The positions that the ledger names lie one behind the other.
    let mut ends = [0; 3];
    for step in 0..40 {
        for (end, positions) in ends.iter_mut().zip(order.positions(step * 12..(step + 1) * 12)) {
            assert_eq!(positions.start, *end);
            *end = positions.end;
        }
    }
    assert_eq!(ends.iter().sum::<u64>(), 480);
}

#[test]
fn weights_in_images_make_equal_numbers_of_images() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = config(mixture(folder.path(), MixtureUnit::Images, [1, 1, 1]));
    let order = Dataset::open(&config).expect("the data set opens").order(SEED, 12);
    let mut images = [0; 3];
    for batch in load(&config, 12, 0..60, 2000) {
        batch.rows.iter().for_each(|row| images[order.source_of(row.sample)] += row.images.len());
    }
    // Some images of MMC4 cannot be read, which no index knows.
    assert!(images.iter().all(|count| count.abs_diff(images[0]) < images[0] / 4), "{images:?}");
}

#[test]
fn a_source_of_a_mixture_that_is_not_there_is_named_by_its_place() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut source = mixture(folder.path(), MixtureUnit::Samples, [1, 1, 1]);
    let DataSource::Mixture { mixture } = &mut source else { panic!("a mixture") };
    for (mixed, list) in mixture.sources.iter_mut().zip(["/nowhere/a.tar", "/nowhere/docs_shard_0_v2.jsonl", "/nowhere/a.parquet"]) {
        let before = mixed.source.clone();
        mixed.source = mixed.source.clone().map(&|_| list.to_owned(), &str::to_owned);
        assert_ne!(mixed.source, before);
    }
    let config = config(source);
    let message = Dataset::open(&config).expect_err("nothing is there").to_string();
    assert!(message.contains("spec.data.mixture.sources[0].webdataset.shards[0]"), "{message}");
    assert_eq!(Dataset::look_for_shards(&config).expect_err("nothing is there").to_string(), message);
}
