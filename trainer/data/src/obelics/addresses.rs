//! The addresses of the images of OBELICS as lists that img2dataset takes, for `lcl data addresses`.
//!
//! Comes in: files of documents. Goes out: for each of them a parquet file of the same name with one column, `url`: every address once, in the order
//! in which the documents name them. Rows that are at fault give none.

use std::{
    collections::HashSet,
    fs::File,
    io,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
};

use parquet::{
    basic::Compression,
    data_type::{ByteArray, ByteArrayType},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use crate::{
    index::over_all,
    obelics::{DocumentFile, ObelicsError, Part},
    shard::new_file_for,
};

/// Rows that are decoded at once: the row groups as they are published.
const BATCH_ROWS: usize = 1_000;

/// Addresses cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AddressesError {
    /// A file of documents cannot be read.
    #[error(transparent)]
    Obelics(#[from] ObelicsError),
    /// Two files of one name would have the same list.
    #[error("two of the files are called {}: write the lists of their folders one by one", name.display())]
    SameName {
        /// The name.
        name: PathBuf,
    },
    /// The folder cannot be made, or the file not be written.
    #[error("writing {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The list cannot be encoded.
    #[error("writing {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        source: ParquetError,
    },
}

/// Writes the addresses of each file into `folder` with so many threads; gives how many there are.
pub fn write_addresses(files: &[PathBuf], folder: &Path, threads: NonZero<usize>) -> Result<u64, AddressesError> {
    let mut names = HashSet::new();
    for file in files {
        let name = file.file_name().unwrap_or_default();
        if !names.insert(name) {
            return Err(AddressesError::SameName { name: name.into() });
        }
    }
    std::fs::create_dir_all(folder).map_err(|source| AddressesError::Write { path: folder.to_owned(), source })?;
    let counts = over_all(threads, files, |file| {
        let addresses = addresses_of(file)?;
        let path = folder.join(file.file_name().unwrap_or_default());
        write(&path, &addresses)?;
        Ok::<_, AddressesError>(addresses.len() as u64)
    });
    Ok(counts?.into_iter().sum())
}

fn addresses_of(path: &Path) -> Result<Vec<ByteArray>, ObelicsError> {
    let file = DocumentFile::open(path)?;
    let (mut found, mut addresses) = (HashSet::new(), Vec::new());
    for row_group in 0..file.row_groups() {
        file.for_each_batch(row_group, BATCH_ROWS, |rows| {
            for row in &rows {
                let Ok(stretches) = row.stretches(false) else { continue };
                for part in stretches.iter().flatten() {
                    if let Part::Image(address) = part
                        && found.insert((*address).to_owned())
                    {
                        addresses.push(ByteArray::from(*address));
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(addresses)
}

/// Writes under a temporary name first: a list is whole or not there.
fn write(path: &Path, addresses: &[ByteArray]) -> Result<(), AddressesError> {
    let failed = |source| AddressesError::Write { path: path.to_owned(), source };
    let file = new_file_for(path).map_err(failed)?;
    encode(file.as_file(), addresses).map_err(|source| AddressesError::Encode { path: path.to_owned(), source })?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn encode(file: &File, addresses: &[ByteArray]) -> Result<(), ParquetError> {
    let schema = Arc::new(parse_message_type("message schema { required binary url (STRING); }")?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
    let mut group = writer.next_row_group()?;
    if let Some(mut column) = group.next_column()? {
        column.typed::<ByteArrayType>().write_batch(addresses, None, None)?;
        column.close()?;
    }
    group.close()?;
    writer.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use parquet::{
        column::reader::get_typed_column_reader,
        file::reader::{FileReader, SerializedFileReader},
    };
    use serde_json::Value;

    use super::*;

    fn fixtures(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/obelics").join(name)
    }

    fn files() -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(fixtures("data")).expect("the fixtures").map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files
    }

    fn read(path: &Path) -> Vec<String> {
        let reader = SerializedFileReader::new(File::open(path).expect("the list")).expect("a parquet file");
        assert_eq!(reader.metadata().file_metadata().schema_descr().column(0).name(), "url");
        let column = reader.get_row_group(0).expect("a row group").get_column_reader(0).expect("a column");
        let mut values: Vec<ByteArray> = Vec::new();
        get_typed_column_reader::<ByteArrayType>(column).read_records(usize::MAX, None, None, &mut values).expect("texts");
        values.iter().map(|value| value.as_utf8().expect("UTF-8").to_owned()).collect()
    }

    #[test]
    fn every_address_of_a_file_is_listed_once_in_its_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let (files, output) = (files(), folder.path().join("lists"));
        let count = write_addresses(&files, &output, NonZero::new(2).expect("two")).expect("the lists are written");
        let mut expected: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for line in std::fs::read_to_string(fixtures("expected.jsonl")).expect("the fixtures").lines() {
            let document: Value = serde_json::from_str(line).expect("a line of JSON");
            let list = expected.entry(document["file"].as_u64().expect("a number")).or_default();
            for part in document["parts"].as_array().expect("a list") {
                let address = part.get("image").or(part.get("missing")).and_then(Value::as_str).map(str::to_owned);
                list.extend(address.filter(|address| !list.contains(address)));
            }
        }
        let found: Vec<Vec<String>> = files.iter().map(|file| read(&output.join(file.file_name().expect("a name")))).collect();
        assert_eq!(found, expected.into_values().collect::<Vec<_>>());
        assert_eq!(count, found.iter().map(Vec::len).sum::<usize>() as u64);
    }

    #[test]
    fn two_files_of_one_name_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let twice = [PathBuf::from("/a/x.parquet"), PathBuf::from("/b/x.parquet")];
        let error = write_addresses(&twice, folder.path(), NonZero::<usize>::MIN).expect_err("one list would replace the other");
        assert!(error.to_string().contains("x.parquet"), "{error}");
    }
}
