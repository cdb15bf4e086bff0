use lcl_trainer_config::{DataSource, DocumentsConfig, Mmc4Config, Mmc4Images, ObelicsConfig};

use super::*;
use crate::{document::Document, documents::Asked, mmc4::SlotChoices};

fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The recorded documents, with their indexes in `index`.
fn config(source: DataSource, index: &Path) -> DataConfig {
    DataConfig { index_path: Some(index.display().to_string()), threads: 2, ..DataConfig::new(source) }
}

fn mmc4() -> DataSource {
    let folder = fixtures("mmc4");
    DataSource::Mmc4 {
        mmc4: Mmc4Config {
            shards: vec![folder.join("data/docs_shard_{0..1}_v2.jsonl.zip").display().to_string()],
            images: Mmc4Images::Flat { folder: folder.join("images").display().to_string() },
            min_similarity: 0.24,
            max_images: 6,
        },
    }
}

fn obelics() -> DataSource {
    let folder = fixtures("obelics");
    let entry = |path: &str| vec![folder.join(path).display().to_string()];
    DataSource::Obelics {
        obelics: ObelicsConfig { shards: entry("data/*.parquet"), images: entry("images/*.tar"), split: true, max_images: 6 },
    }
}

fn options(output: &Path, documents: u64) -> ConvertOptions {
    ConvertOptions { output: output.to_owned(), documents_per_shard: NonZero::new(documents).expect("not zero") }
}

fn packed(folder: &Path, index: &Path) -> DataConfig {
    let shards = vec![folder.join("*.tar").display().to_string()];
    config(DataSource::Documents { documents: DocumentsConfig { shards, max_images: 6 } }, index)
}

/// What a source makes of a sample with the draws of a slot: the parts, and the images that could be decoded, by number and file.
type Drawn = (Document, Vec<(u32, Vec<u8>)>, Result<(), RedrawCause>);

fn draw(dataset: &Dataset, sample: u64, slot: u64) -> Drawn {
    let (mut document, mut images, mut scratch) = (Document::new(), Vec::new(), Scratch::new());
    let mut take = |number: u32, bytes: &[u8]| {
        let is_readable = decode(bytes, &mut scratch).is_ok();
        images.extend(is_readable.then(|| (number, bytes.to_vec())));
        is_readable
    };
    let mut asked = Asked {
        choices: SlotChoices::new(3, 5, slot, 0),
        before_probability: 0.5,
        decode: &mut take,
        wait: &mut |_| true,
        document: &mut document,
    };
    let (source, own) = dataset.document(sample).expect("a document");
    let outcome = source.read(own, &mut asked).expect("the document is read");
    (document, images, outcome)
}

/// Whether any image of a sample can be decoded.
fn has_an_image(dataset: &Dataset, sample: u64) -> bool {
    let (source, own) = dataset.document(sample).expect("a document");
    let whole = source.whole(own, &mut |_| true).expect("the document is read");
    let mut files = whole.images.into_values().filter_map(|image| image.bytes);
    files.any(|bytes| decode(&bytes, &mut Scratch::new()).is_ok())
}

/// For the same draws a converted document has the texts and images of its source, the latter under the same numbers, by which crops are drawn.
fn check(source: DataSource) {
    let (index, output) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let before = config(source, index.path());
    let report = convert(&before, ListOrigin::Manifest, &options(output.path(), 4), |_, _| {}).expect("the documents are converted");
    let (before, after) =
        [before, packed(output.path(), index.path())].map(|config| Dataset::open(&config).expect("the data set opens")).into();
    assert_eq!(report.documents, after.samples_per_pass());
    let (mut other, mut differing) = (0, 0);
    for sample in 0..before.samples_per_pass() {
        if !has_an_image(&before, sample) {
            continue;
        }
        for slot in 0..25 {
            let (expected, found) = (draw(&before, sample, slot), draw(&after, other, slot));
            assert_eq!(found, expected, "sample {sample}, slot {slot}");
            differing += usize::from(expected.0 != draw(&before, sample, 0).0);
        }
        other += 1;
    }
    assert_eq!(other, after.samples_per_pass());
    assert_eq!(differing > 0, before.key(0).is_ok_and(|(shard, _)| shard.extension().is_some_and(|extension| extension == "zip")));
    assert!(!report.left_out.is_empty(), "{report:?}");
    // What the index left out is said, too: nobody has to look for it.
    assert!(!report.no_samples.is_empty(), "{report:?}");
}

#[test]
fn converted_documents_of_mmc4_are_those_of_the_source_for_the_same_draws() {
    check(mmc4());
}

#[test]
fn converted_documents_of_obelics_are_those_of_the_source_for_the_same_draws() {
    check(obelics());
}

#[test]
fn a_conversion_goes_on_where_it_was_and_never_mixes_with_another() {
    let (index, output) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let run = |source: DataSource, documents: u64| {
        convert(&config(source, index.path()), ListOrigin::Manifest, &options(output.path(), documents), |_, _| {})
    };
    let whole = run(mmc4(), 5).expect("the documents are converted");
    assert_eq!((whole.kept, whole.written > 3), (0, true), "{whole:?}");
    let names = || {
        let mut names: Vec<_> = fs::read_dir(output.path()).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names
    };
    let (before, second) = (names(), output.path().join("00001.tar"));
    let bytes = fs::read(&second).expect("the second shard");
    fs::remove_file(&second).expect("it is removed");
    let again = run(mmc4(), 5).expect("what is missing is converted");
    assert_eq!((again.kept, again.written), (whole.written - 1, 1));
    assert_eq!((fs::read(&second).expect("it is there again"), names()), (bytes.clone(), before.clone()));
    // One that was cut short meanwhile, at whatever byte, is no more than one that is not there.
    for length in [0, 700, 1024, bytes.len() as u64 - 512] {
        fs::File::options().write(true).open(&second).and_then(|file| file.set_len(length)).expect("it is cut short");
        let again = run(mmc4(), 5).expect("what is cut short is converted");
        assert_eq!((again.kept, again.written), (whole.written - 1, 1), "{length}");
        assert_eq!((fs::read(&second).expect("it is whole again"), names()), (bytes.clone(), before.clone()), "{length}");
    }
    let DataSource::Mmc4 { mmc4: mut stricter } = mmc4() else { panic!("another source") };
    stricter.min_similarity = 0.25;
    let size = "a shard has up to 6 documents, and had 5 (--documents-per-shard)";
    let settings = "it is of other data or settings: samples are made by `mmc4 1: similarity 2.5e-1, images 6`, and were by `mmc4 1: similarity 2.4e-1";
    for (other, what) in
        [(run(mmc4(), 6), size), (run(obelics(), 5), "shard 1 is train-0"), (run(DataSource::Mmc4 { mmc4: stricter }, 5), settings)]
    {
        let message = other.expect_err("another conversion").to_string();
        assert!(message.contains("conversion.json was not written by this conversion: ") && message.contains(what), "{message}");
    }
    fs::remove_file(output.path().join(RECORD)).expect("the record is removed");
    let message = run(mmc4(), 5).expect_err("shards of nobody knows what").to_string();
    assert!(message.contains(".tar was not written by this conversion"), "{message}");
}

#[test]
fn a_file_in_the_folders_place_is_named() {
    let (index, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("out");
    fs::write(&file, "").expect("a file");
    let error = convert(&config(mmc4(), index.path()), ListOrigin::Manifest, &options(&file, 5), |_, _| {}).expect_err("a file");
    assert_eq!(error.to_string(), format!("{} is no folder: name one that is empty, or that is not there yet (--output)", file.display()));
}

#[test]
fn pairs_are_not_converted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.tar");
    let mut shard = ShardWriter::create(&path).expect("a shard");
    shard.append("a", Some((crate::shard::ImageKind::Jpg, b"image")), Some("caption")).expect("a sample");
    shard.finish().expect("the shard is complete");
    let source = DataSource::webdataset(vec![path.display().to_string()]);
    let output = folder.path().join("out");
    let error = convert(&config(source, folder.path()), ListOrigin::Manifest, &options(&output, 5), |_, _| {}).expect_err("pairs");
    assert!(matches!(error, ConvertError::NotDocuments), "{error}");
    assert!(!output.exists());
}
