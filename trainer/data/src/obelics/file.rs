//! A parquet file of documents.
//!
//! Comes in: a path. Goes out: its row groups, and the rows of any of them. Of a row group the two columns are read and nothing else; a file
//! is never in memory as a whole. What its bytes say is believed nowhere: a damaged file gives an error, also where the decoder panics.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use parquet::{
    basic::Compression,
    errors::ParquetError,
    file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData},
};

use crate::{
    blob::Blob,
    obelics::{
        ObelicsError, ROW_GROUP_BYTES_LIMIT,
        column::{Chunk, ListColumn, ListReader, NoList},
        row::Row,
    },
};

/// Last bytes of every parquet file.
const MAGIC: [u8; 4] = *b"PAR1";

/// The magic and, before it, the length of the file's metadata.
const TAIL_BYTES: u64 = 8;

/// A file of documents, open.
#[derive(Debug)]
pub struct DocumentFile {
    path: PathBuf,
    file: Blob,
    images: ListColumn,
    texts: ListColumn,
    groups: Vec<RowGroup>,
}

/// Where a row group lies.
#[derive(Debug)]
struct RowGroup {
    rows: u32,
    images: ColumnChunkMetaData,
    texts: ColumnChunkMetaData,
}

impl DocumentFile {
    /// Opens a file and reads what it says of itself.
    pub fn open(path: &Path) -> Result<Self, ObelicsError> {
        let read_failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => ObelicsError::Missing { file: path.to_owned() },
            _ => ObelicsError::Read { file: path.to_owned(), offset: 0, source },
        };
        let file = Blob::open(path).map_err(read_failed)?;
        let metadata = read_metadata(path, &file)?;
        let schema = metadata.file_metadata().schema_descr();
        let find = |column| ListColumn::find(schema, column).map_err(|reason| no_list(path, column, reason));
        let (images, texts) = (find("images")?, find("texts")?);
        let group = |(number, group)| RowGroup::new(path, number, group, images.leaf, texts.leaf);
        let groups = metadata.row_groups().iter().enumerate().map(group).collect::<Result<_, _>>()?;
        Ok(Self { path: path.to_owned(), file, images, texts, groups })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of row groups.
    #[must_use]
    pub fn row_groups(&self) -> usize {
        self.groups.len()
    }

    /// Rows of a row group; 0 when it does not exist.
    #[must_use]
    pub fn rows(&self, row_group: usize) -> u32 {
        self.groups.get(row_group).map_or(0, |group| group.rows)
    }

    /// Calls `visit` for the rows of a row group, at most `batch` at a time, in their order.
    pub(crate) fn for_each_batch(
        &self,
        row_group: usize,
        batch: usize,
        mut visit: impl FnMut(Vec<Row>) -> Result<(), ObelicsError>,
    ) -> Result<(), ObelicsError> {
        let Some(group) = self.groups.get(row_group) else { return Ok(()) };
        let mut images = self.column(&self.images, &group.images, group.rows)?;
        let mut texts = self.column(&self.texts, &group.texts, group.rows)?;
        let mut left = group.rows as usize;
        while left > 0 {
            let count = batch.clamp(1, left);
            let rows = decoded(&self.path, || {
                let (mut image_lists, mut text_lists) = (Vec::new(), Vec::new());
                images.read(count, &mut image_lists)?;
                texts.read(count, &mut text_lists)?;
                Ok(image_lists.into_iter().zip(text_lists).map(|(images, texts)| Row { images, texts }).collect())
            })?;
            visit(rows)?;
            left -= count;
        }
        Ok(())
    }

    fn column(&self, column: &ListColumn, place: &ColumnChunkMetaData, rows: u32) -> Result<ListReader, ObelicsError> {
        let (start, length) = place.byte_range();
        let bytes = read(&self.path, &self.file, start, length)?.into();
        decoded(&self.path, || column.reader(Chunk { start, bytes }, place, rows as usize))
    }
}

impl RowGroup {
    /// Checks what the file says of a row group, so that nothing of any size is reserved on its word.
    fn new(path: &Path, number: usize, group: &RowGroupMetaData, images: usize, texts: usize) -> Result<Self, ObelicsError> {
        let damaged = |reason: &str| ObelicsError::Damaged { file: path.to_owned(), reason: format!("row group {number} {reason}") };
        let column = |leaf: usize, name| {
            let column = group.columns().get(leaf).ok_or_else(|| damaged("lacks a column"))?;
            match column.compression() {
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => Ok(column.clone()),
                other => Err(ObelicsError::Compression { file: path.to_owned(), column: name, found: other.to_string() }),
            }
        };
        let (images, texts) = (column(images, "images")?, column(texts, "texts")?);
        let size = |column: &ColumnChunkMetaData| {
            let begin = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
            u64::try_from(begin).ok()?;
            Some(u64::try_from(column.compressed_size()).ok()?.max(u64::try_from(column.uncompressed_size()).ok()?))
        };
        let sizes = size(&images).zip(size(&texts)).ok_or_else(|| damaged("has a column that begins or ends before the file"))?;
        let bytes = sizes.0.saturating_add(sizes.1);
        if bytes > ROW_GROUP_BYTES_LIMIT {
            return Err(ObelicsError::RowGroupTooLarge { file: path.to_owned(), row_group: number, bytes });
        }
        // Nothing is reserved by this number: a row can take less than a bit, so that no size tells whether it is true.
        let rows = u32::try_from(group.num_rows()).map_err(|_| damaged("has a number of rows that is none"))?;
        Ok(Self { rows, images, texts })
    }
}

/// What the end of the file says of it.
fn read_metadata(path: &Path, file: &Blob) -> Result<ParquetMetaData, ObelicsError> {
    let not_parquet = || ObelicsError::NotParquet { file: path.to_owned() };
    let length = file.length().map_err(|source| ObelicsError::Read { file: path.to_owned(), offset: 0, source })?;
    if length == 0 {
        return Err(ObelicsError::Empty { file: path.to_owned() });
    }
    let tail_at = length.checked_sub(TAIL_BYTES).ok_or_else(not_parquet)?;
    let tail = read(path, file, tail_at, TAIL_BYTES)?;
    let (bytes, magic) = tail.split_first_chunk().ok_or_else(not_parquet)?;
    if magic != MAGIC {
        return Err(not_parquet());
    }
    let bytes = u64::from(u32::from_le_bytes(*bytes));
    let begin = tail_at.checked_sub(bytes).ok_or_else(not_parquet)?;
    let metadata = read(path, file, begin, bytes)?;
    decoded(path, || ParquetMetaDataReader::decode_metadata(&metadata))
}

/// Reads `length` bytes from byte `offset` on, which are in the file or the file is cut short.
fn read(path: &Path, file: &Blob, offset: u64, length: u64) -> Result<Vec<u8>, ObelicsError> {
    let read_failed = |source| ObelicsError::Read { file: path.to_owned(), offset, source };
    let size = file.length().map_err(read_failed)?;
    if offset.checked_add(length).is_none_or(|end| end > size) {
        let reason = format!("it has {size} bytes, but says that {length} begin at byte {offset}");
        return Err(ObelicsError::Damaged { file: path.to_owned(), reason });
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, offset).map_err(read_failed)?;
    Ok(bytes)
}

/// The result of decoding bytes that are in memory. Whatever goes wrong there is the bytes' fault. So is a panic: the decoder has some for
/// damaged pages (a dictionary that is missing, a width that is none; `tests/obelics` meets them). The state it leaves is never used again.
fn decoded<T>(path: &Path, decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ObelicsError> {
    let reason = match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the decoder gave up".to_owned(),
    };
    Err(ObelicsError::Damaged { file: path.to_owned(), reason })
}

fn no_list(path: &Path, column: &'static str, reason: NoList) -> ObelicsError {
    let file = path.to_owned();
    match reason {
        NoList::Missing(found) => ObelicsError::NoColumn { file, column, found },
        NoList::Other(found) => ObelicsError::WrongType { file, column, found },
    }
}
