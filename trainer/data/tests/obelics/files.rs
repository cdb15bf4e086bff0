//! Files of documents that are written here: in every form that a list can have, with faults, and damaged.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
};

use lcl_data::obelics::{DocumentFile, Documents, END_MARK, FileFindings, ObelicsError, Part, SampleAt, StretchAt, index_file};
use parquet::{
    basic::{Compression, GzipLevel, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, Int32Type},
    file::{
        metadata::{ColumnChunkMetaDataBuilder, ParquetMetaDataReader, ParquetMetaDataWriter},
        properties::{WriterProperties, WriterVersion},
        writer::SerializedFileWriter,
    },
    schema::parser::parse_message_type,
};
use proptest::prelude::*;

/// A list as it is written.
type List = Option<Vec<Option<&'static str>>>;

/// A row: `images` and `texts`.
type Row = (List, List);

/// How a file is written.
#[derive(Clone, Debug)]
struct Form {
    /// Name of a list's inner field.
    inner: &'static str,
    /// Whether `texts` comes before `images`.
    texts_first: bool,
    /// Whether there is another column before both.
    other_column: bool,
    properties: WriterProperties,
}

impl Default for Form {
    fn default() -> Self {
        Self { inner: "element", texts_first: false, other_column: false, properties: WriterProperties::builder().build() }
    }
}

fn write(path: &Path, form: &Form, groups: &[Vec<Row>]) {
    let list = |name: &str| format!("optional group {name} (LIST) {{ repeated group list {{ optional binary {} (UTF8); }} }}", form.inner);
    let (first, second) = if form.texts_first { ("texts", "images") } else { ("images", "texts") };
    let other = if form.other_column { "optional int32 other;" } else { "" };
    let schema = parse_message_type(&format!("message schema {{ {other} {} {} }}", list(first), list(second))).expect("a schema");
    let file = fs::File::create(path).expect("the file is begun");
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(form.properties.clone())).expect("the file is begun");
    for rows in groups {
        let mut group = writer.next_row_group().expect("a row group is begun");
        if form.other_column {
            let mut column = group.next_column().expect("no error").expect("a column");
            column.typed::<Int32Type>().write_batch(&vec![7; rows.len()], Some(&vec![1; rows.len()]), None).expect("numbers are written");
            column.close().expect("the column is ended");
        }
        for images in [!form.texts_first, form.texts_first] {
            let lists: Vec<&List> = rows.iter().map(|row| if images { &row.0 } else { &row.1 }).collect();
            let (values, definitions, repetitions) = levels(&lists);
            let mut column = group.next_column().expect("no error").expect("a column");
            column.typed::<ByteArrayType>().write_batch(&values, Some(&definitions), Some(&repetitions)).expect("lists are written");
            column.close().expect("the column is ended");
        }
        group.close().expect("the row group is ended");
    }
    writer.close().expect("the file is ended");
}

/// Lists as the format stores them (Dremel's levels).
fn levels(lists: &[&List]) -> (Vec<ByteArray>, Vec<i16>, Vec<i16>) {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for list in lists {
        match list.as_deref() {
            None => (definitions.push(0), repetitions.push(0)),
            Some([]) => (definitions.push(1), repetitions.push(0)),
            Some(entries) => {
                for (at, entry) in entries.iter().enumerate() {
                    definitions.push(if entry.is_some() { 3 } else { 2 });
                    repetitions.push(i16::from(at > 0));
                    values.extend(entry.map(ByteArray::from));
                }
                ((), ())
            }
        };
    }
    (values, definitions, repetitions)
}

/// A sound row: an address begins with `@`.
fn row(parts: &[&'static str]) -> Row {
    let list = |images: bool| Some(parts.iter().map(|part| (part.starts_with('@') == images).then_some(*part)).collect());
    (list(true), list(false))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Samples by row group, and findings; addresses with an `x` are not in the store.
fn indexed(path: &Path, split: bool) -> Result<(Vec<Vec<SampleAt>>, FileFindings), ObelicsError> {
    let mut groups = Vec::new();
    let file = DocumentFile::open(path)?;
    let findings = index_file(&file, split, |address| Ok(!address.contains('x')), |_, samples| groups.push(samples.to_vec()))?;
    Ok((groups, findings))
}

fn documents(path: &Path) -> Documents {
    Documents::new(vec![path.to_owned()], true, NonZero::<usize>::MIN)
}

/// All stretches of a row, a text as it is and an address with its `@`.
fn stretches(documents: &Documents, row_group: usize, row: u32) -> Vec<Vec<String>> {
    let read = |stretch| documents.read(StretchAt { file: 0, row_group, row, stretch }).ok();
    let name = |part| match part {
        Part::Text(name) | Part::Image(name) => name,
    };
    (0..).map_while(read).map(|parts| parts.into_iter().map(name).collect()).collect()
}

fn forms() -> impl Strategy<Value = Form> {
    let compression = prop::sample::select(vec![Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())]);
    let version = prop::sample::select(vec![WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0]);
    let inner = prop::sample::select(vec!["item", "element", "array"]);
    (compression, version, inner, any::<[bool; 3]>(), 1usize..40).prop_map(
        |(compression, version, inner, [texts_first, other_column, dictionary], rows)| {
            let properties =
                WriterProperties::builder().set_compression(compression).set_writer_version(version).set_dictionary_enabled(dictionary);
            // Pages of a few rows.
            let properties = properties.set_data_page_row_count_limit(rows).set_write_batch_size(rows).build();
            Form { inner, texts_first, other_column, properties }
        },
    )
}

fn entries(of: &'static [&'static str]) -> impl Strategy<Value = List> {
    prop::option::weighted(0.9, prop::collection::vec(prop::option::of(prop::sample::select(of)), 0..5))
}

fn rows() -> impl Strategy<Value = Row> {
    let part = prop::sample::select(vec!["@a", "@b", "@c", "@x", "text", "größe \n 🚀", "", END_MARK]);
    prop_oneof![4 => prop::collection::vec(part, 0..6).prop_map(|parts| row(&parts)), 1 => (entries(&["@a", "@x"]), entries(&["text", "", END_MARK]))]
}

/// The name of a row's fault, or its parts.
fn expected_parts((images, texts): &Row) -> Result<Vec<&'static str>, &'static str> {
    let (Some(images), Some(texts)) = (images, texts) else { return Err("no_list") };
    if images.len() != texts.len() {
        return Err("lengths_differ");
    }
    let part = |(image, text): (Option<&'static str>, Option<&'static str>)| match (image, text) {
        (Some(part), None) | (None, Some(part)) => Ok(part),
        (Some(_), Some(_)) => Err("image_and_text"),
        (None, None) => Err("neither_image_nor_text"),
    };
    images.iter().copied().zip(texts.iter().copied()).map(part).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn rows_come_back_from_every_form_of_file(form in forms(), groups in prop::collection::vec(prop::collection::vec(rows(), 1..300), 1..4)) {
        let folder = folder();
        let path = folder.path().join("a.parquet");
        write(&path, &form, &groups);
        let (samples, findings) = indexed(&path, true).expect("the file is indexed");
        let documents = documents(&path);
        let (mut faulty, mut total) = (0, 0);
        for (number, rows) in groups.iter().enumerate() {
            let mut expected = Vec::new();
            for (at, row) in (0_u32..).zip(rows) {
                let found = stretches(&documents, number, at);
                let parts = match expected_parts(row) {
                    Ok(parts) => parts,
                    Err(fault) => {
                        prop_assert!(findings.faults.contains_key(fault), "{} is not counted", fault);
                        prop_assert!(found.is_empty());
                        faulty += 1;
                        continue;
                    }
                };
                // Only a whole text is a mark here, so that what is around it is nothing.
                let stretches: Vec<Vec<&str>> = parts.split(|part| *part == END_MARK).map(<[&str]>::to_vec).collect();
                prop_assert_eq!(&found, &stretches);
                for (stretch, parts) in (0..).zip(stretches) {
                    let images = parts.iter().filter(|part| part.starts_with('@') && !part.contains('x')).count() as u32;
                    expected.extend((images > 0).then_some(SampleAt { row: at, stretch, images }));
                }
            }
            total += rows.len() as u64;
            prop_assert_eq!(&samples[number], &expected);
        }
        prop_assert_eq!((samples.len(), findings.rows), (groups.len(), total));
        prop_assert_eq!(findings.faults.values().map(|faulty| faulty.count).sum::<u64>(), faulty);
    }
}

#[test]
fn a_fault_is_counted_with_the_first_row_that_has_it() {
    let folder = folder();
    let path = folder.path().join("a.parquet");
    let good = row(&["@a", "b"]);
    let short = (Some(vec![Some("@a"), None]), Some(vec![None]));
    write(&path, &Form::default(), &[vec![good.clone(), (None, None)], vec![good.clone(), good, short.clone(), short]]);
    let (samples, findings) = indexed(&path, true).expect("the file is indexed");
    assert_eq!(samples.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2]);
    let faults: Vec<String> = findings.faults.iter().map(|(name, faulty)| format!("{name} {} {}", faulty.count, faulty.first)).collect();
    let expected = [
        "lengths_differ 2 row 2 of row group 1: `images` has 2 entries, but `texts` 1",
        "no_list 1 row 1 of row group 0: `images` is null",
    ];
    assert_eq!(faults, expected);
    assert_eq!((findings.rows, findings.stretches, findings.samples, findings.images, findings.stored), (6, 3, 3, 3, 3));
}

#[test]
fn without_splitting_a_page_is_one_stretch_with_the_mark_in_its_text() {
    let folder = folder();
    let path = folder.path().join("a.parquet");
    write(&path, &Form::default(), &[vec![row(&["@x", END_MARK, "@a", "@b"])]]);
    let sample = |stretch| vec![vec![SampleAt { row: 0, stretch, images: 2 }]];
    assert_eq!(indexed(&path, true).expect("the file is indexed").0, sample(1));
    assert_eq!(indexed(&path, false).expect("the file is indexed").0, sample(0));
    let whole = Documents::new(vec![path], false, NonZero::<usize>::MIN);
    assert_eq!(stretches(&whole, 0, 0), [["@x", END_MARK, "@a", "@b"]]);
}

/// Writes the file's end again with one column described otherwise.
fn with_changed_column(path: &Path, column: usize, change: impl Fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder) {
    let mut bytes = fs::read(path).expect("the file is read");
    let end = bytes.len() - 8;
    let length = u32::from_le_bytes(*bytes[end..].first_chunk().expect("four bytes")) as usize;
    let metadata = ParquetMetaDataReader::decode_metadata(&bytes[end - length..end]).expect("sound metadata");
    let mut builder = metadata.into_builder();
    for group in builder.take_row_groups() {
        let mut columns = group.columns().to_vec();
        columns[column] = change(columns[column].clone().into_builder()).build().expect("a column");
        builder = builder.add_row_group(group.into_builder().set_column_metadata(columns).build().expect("a row group"));
    }
    bytes.truncate(end - length);
    ParquetMetaDataWriter::new(&mut bytes, &builder.build()).finish().expect("metadata is written");
    fs::write(path, bytes).expect("the file is written");
}

#[test]
fn files_that_cannot_be_used_are_told_by_name_column_and_what_was_found() {
    let folder = folder();
    let path = folder.path().join("a.parquet");
    let message = || {
        let error = DocumentFile::open(&path).expect_err("the file is of no use").to_string();
        assert!(error.contains("a.parquet"), "{error}");
        error
    };
    assert!(message().contains("does not exist"));
    fs::write(&path, "PAR1 no").expect("the file is written");
    assert!(message().contains("no parquet file"));
    fs::write(&path, "").expect("the file is emptied");
    assert!(message().contains("is empty"));

    let other = |schema: &str| {
        let schema = parse_message_type(schema).expect("a schema");
        let file = fs::File::create(&path).expect("the file is begun");
        SerializedFileWriter::new(file, Arc::new(schema), Arc::default()).and_then(SerializedFileWriter::close).expect("an empty file");
        message()
    };
    let list = "optional group images (LIST) { repeated group list { optional binary item (UTF8); } }";
    assert!(other(&format!("message schema {{ {list} optional binary url (UTF8); }}")).contains("no column `texts`, but `images`, `url`"));
    let error = other(&format!("message schema {{ {list} optional binary texts (UTF8); }}"));
    assert!(
        error.contains("column `texts`") && error.contains("is `OPTIONAL BYTE_ARRAY texts (UTF8)`, but has to be a list of texts"),
        "{error}"
    );

    let sound = || write(&path, &Form::default(), &[vec![row(&["@a", "b"])]]);
    sound();
    with_changed_column(&path, 1, |column| column.set_compression(Compression::GZIP(GzipLevel::default())));
    assert!(message().contains("column `texts`") && message().contains("compressed with GZIP"), "{}", message());
    sound();
    with_changed_column(&path, 0, |column| column.set_total_uncompressed_size(3 << 30));
    assert!(message().contains("row group 0") && message().contains("row groups of 1,000 rows"), "{}", message());
    sound();
    with_changed_column(&path, 0, |column| column.set_total_compressed_size(-1));
    assert!(message().contains("damaged"), "{}", message());
    sound();
    with_changed_column(&path, 0, |column| column.set_total_compressed_size(1 << 20));
    let error = indexed(&path, true).expect_err("the column reaches beyond the file").to_string();
    assert!(error.contains("a.parquet is damaged") && error.contains("copy or download it again"), "{error}");
}

#[test]
fn a_damaged_file_gives_an_error_or_other_rows_but_no_panic() {
    let folder = folder();
    let path = folder.path().join("a.parquet");
    let rows: Vec<Row> = (0..40).map(|at| row(if at % 2 == 0 { &["@a", "text", "@b"] } else { &["größe", "@x"] })).collect();
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        let properties = WriterProperties::builder().set_compression(compression).build();
        write(&path, &Form { properties, ..Form::default() }, &[rows.clone(), rows.clone()]);
        let sound = fs::read(&path).expect("the file is read");
        let read_all = |bytes: &[u8]| {
            fs::write(&path, bytes).expect("the file is written");
            let result = indexed(&path, true);
            let documents = documents(&path);
            for (row_group, row) in [(0, 0), (1, 39), (1, 40), (2, 0)] {
                let _ = documents.read(StretchAt { file: 0, row_group, row, stretch: 0 });
            }
            result
        };
        let places = (0..sound.len()).step_by(2);
        let count = places.len();
        let damage = |place: usize| {
            let mut damaged = sound.clone();
            damaged[place] ^= [0x01, 0x80, 0xff][place % 3];
            damaged
        };
        let errors = places.filter(|place| read_all(&damage(*place)).is_err()).count();
        assert!(errors > count / 3, "{errors} errors of {count} damaged bytes");
        for length in (0..sound.len()).step_by(7) {
            let error = read_all(&sound[..length]).expect_err("the file is cut short");
            let is_told = matches!(error, ObelicsError::NotParquet { .. } | ObelicsError::Damaged { .. });
            assert!(if length == 0 { matches!(error, ObelicsError::Empty { .. }) } else { is_told }, "{length} bytes: {error}");
        }
    }
}

/// The fixture is written by pyarrow 26.0.1 with `write_page_checksum=True`, uncompressed and without a dictionary; the writer used here makes no sums.
#[test]
fn a_changed_bit_is_noticed_where_pages_have_check_sums() {
    let folder = folder();
    let path = folder.path().join("a.parquet");
    let sound = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/obelics/checksums.parquet")).expect("the fixture");
    fs::write(&path, &sound).expect("the file is written");
    let read = || documents(&path).read(StretchAt { file: 0, row_group: 0, row: 0, stretch: 0 });
    assert!(read().is_ok_and(|parts| parts.contains(&Part::Text("a text whose bytes are all here".to_owned()))));
    for text in ["whose bytes", "a.example"] {
        let at = sound.windows(text.len()).position(|bytes| bytes == text.as_bytes()).expect("it is not compressed");
        let mut changed = sound.clone();
        changed[at] ^= 1;
        fs::write(&path, changed).expect("the file is written");
        let error = read().expect_err("a bit of a page has changed").to_string();
        assert!(error.contains("a.parquet is damaged") && error.contains("CRC"), "{error}");
    }
}

#[test]
fn a_row_group_is_decoded_once_and_an_error_is_not_remembered() {
    let folder = folder();
    let path: PathBuf = folder.path().join("a.parquet");
    write(&path, &Form::default(), &[vec![row(&["@a", "b"]), row(&["c"])], vec![row(&["@d"])]]);
    let sound = fs::read(&path).expect("the file is read");
    let documents = documents(&path);
    assert_eq!(stretches(&documents, 0, 0), [["@a", "b"]]);
    // What is not in memory is gone.
    fs::write(&path, "").expect("the file is emptied");
    assert_eq!(stretches(&documents, 0, 1), [["c"]]);
    let at = StretchAt { file: 0, row_group: 1, row: 0, stretch: 0 };
    assert!(matches!(documents.read(at), Err(ObelicsError::Damaged { .. } | ObelicsError::Empty { .. })));
    fs::write(&path, sound).expect("the file is back");
    assert_eq!(stretches(&documents, 1, 0), [["@d"]]);

    let error = documents.read(StretchAt { row: 1, ..at }).expect_err("there is one row").to_string();
    assert!(error.contains("row group 1 has no stretch 0 of row 1"), "{error}");
    assert!(matches!(documents.read(StretchAt { file: 1, ..at }), Err(ObelicsError::OutOfRange { file: 1, files: 1 })));
}

#[test]
fn threads_that_read_at_once_get_the_same() {
    let folder = folder();
    let path = folder.path().join("a.parquet");
    let groups: Vec<Vec<Row>> =
        (0..4).map(|_| (0..100).map(|at| row(if at % 2 == 0 { &["@a", "b"] } else { &["c", "@d"] })).collect()).collect();
    write(&path, &Form::default(), &groups);
    // One place for decoded row groups, so that the threads take it from each other.
    let documents = documents(&path);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let documents = &documents;
            scope.spawn(move || {
                for at in 0..200 {
                    let (row_group, row) = (((at + thread) % 4) as usize, at % 100);
                    let expected = if row % 2 == 0 { ["@a", "b"] } else { ["c", "@d"] };
                    assert_eq!(stretches(documents, row_group, row), [expected]);
                }
            });
        }
    });
}
