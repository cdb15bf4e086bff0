//! A column that is a list of texts: finding it in a file's schema, and reading it.
//!
//! Comes in: a schema, or the bytes of one column of a row group. Goes out: one list a row. Which text is an address is not known here.
//!
//! A list is told by structure: one repeated field, at most one group around it and one field in it, whatever they are called (parquet format,
//! `LogicalTypes.md`, "Lists": three levels as written today, two levels as in old files).

use std::sync::Arc;

use bytes::{Buf, Bytes};
use parquet::{
    basic::{ConvertedType, LogicalType, Repetition, Type as PhysicalType},
    column::reader::ColumnReaderImpl,
    data_type::{ByteArray, ByteArrayType},
    errors::{ParquetError, Result},
    file::{
        metadata::ColumnChunkMetaData,
        reader::{ChunkReader, Length, SerializedPageReader},
    },
    schema::{
        printer::print_schema,
        types::{ColumnDescPtr, SchemaDescriptor, Type},
    },
};

/// Levels of a list's column: how deep the entries are that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Levels {
    /// From here on the list is there, perhaps empty.
    list: i16,
    /// From here on there is an entry, perhaps null.
    entry: i16,
    /// Here the entry has a value.
    value: i16,
}

/// A list's column in a schema.
#[derive(Clone, Debug)]
pub(crate) struct ListColumn {
    /// Its number among the columns that a row group stores.
    pub(crate) leaf: usize,
    descriptor: ColumnDescPtr,
    levels: Levels,
}

/// Why a schema has no such column.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoList {
    /// There is none of the name; these are there.
    Missing(String),
    /// It is of another type.
    Other(String),
}

impl ListColumn {
    /// The column called `name`.
    pub(crate) fn find(schema: &SchemaDescriptor, name: &str) -> std::result::Result<Self, NoList> {
        let root = schema.root_schema().get_fields().iter().position(|field| field.name() == name);
        let field = root.and_then(|root| schema.root_schema().get_fields().get(root));
        let (Some(root), Some(field)) = (root, field) else {
            let names: Vec<String> = schema.root_schema().get_fields().iter().map(|field| format!("`{}`", field.name())).collect();
            return Err(NoList::Missing(if names.is_empty() { "none at all".to_owned() } else { names.join(", ") }));
        };
        let leaf = (0..schema.num_columns()).find(|leaf| schema.get_column_root_idx(*leaf) == root);
        match (levels_of_list(field), leaf) {
            (Some(levels), Some(leaf)) => Ok(Self { leaf, descriptor: schema.column(leaf), levels }),
            _ => Err(NoList::Other(in_words(field))),
        }
    }

    /// Reads the column of a row group with `rows` rows, whose bytes these are.
    pub(crate) fn reader(&self, chunk: Chunk, column: &ColumnChunkMetaData, rows: usize) -> Result<ListReader> {
        let pages = SerializedPageReader::new(Arc::new(chunk), column, rows, None)?;
        Ok(ListReader {
            reader: ColumnReaderImpl::new(Arc::clone(&self.descriptor), Box::new(pages)),
            levels: self.levels,
            definitions: Vec::new(),
            repetitions: Vec::new(),
            values: Vec::new(),
        })
    }
}

/// The levels of a list of texts; `None` for any other type.
fn levels_of_list(field: &Type) -> Option<Levels> {
    let (mut node, mut level, mut list) = (field, 0, None);
    // The field, a repeated group in it, and the entry in that: more would be lists of structures or structures of lists.
    for depth in 0..3 {
        match node.get_basic_info().repetition() {
            Repetition::REQUIRED => {}
            Repetition::OPTIONAL => level += 1,
            Repetition::REPEATED if list.is_none() && depth < 2 => {
                list = Some(level);
                level += 1;
            }
            Repetition::REPEATED => return None,
        }
        if node.is_primitive() {
            let is_text = node.get_physical_type() == PhysicalType::BYTE_ARRAY && is_text(node);
            let list = list.filter(|_| is_text)?;
            return Some(Levels { list, entry: list + 1, value: level });
        }
        // Only a repeated field may lie in the outermost group.
        let [inner] = node.get_fields() else { return None };
        if list.is_none() && inner.get_basic_info().repetition() != Repetition::REPEATED {
            return None;
        }
        node = inner;
    }
    None
}

/// Marked as text, or as nothing: some writers leave the mark out, and what is no UTF-8 is found when it is read.
fn is_text(node: &Type) -> bool {
    let info = node.get_basic_info();
    match info.logical_type_ref() {
        Some(logical) => *logical == LogicalType::String,
        None => matches!(info.converted_type(), ConvertedType::NONE | ConvertedType::UTF8),
    }
}

/// A type in the format's own notation, on one line.
fn in_words(field: &Type) -> String {
    let mut printed = Vec::new();
    print_schema(&mut printed, field);
    String::from_utf8_lossy(&printed).split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches(';').to_owned()
}

/// The bytes of one column of a row group, under the offsets that they have in the file.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) start: u64,
    pub(crate) bytes: Bytes,
}

impl Chunk {
    fn from(&self, start: u64) -> Result<Bytes> {
        let begin = start.checked_sub(self.start).and_then(|begin| usize::try_from(begin).ok());
        match begin.filter(|begin| *begin <= self.bytes.len()) {
            Some(begin) => Ok(self.bytes.slice(begin..)),
            None => Err(ParquetError::EOF(format!("a page begins at byte {start}, outside its column"))),
        }
    }
}

impl Length for Chunk {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Chunk {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.from(start)?;
        if length > bytes.len() {
            return Err(ParquetError::EOF(format!("the page at byte {start} reaches beyond its column")));
        }
        Ok(bytes.slice(..length))
    }
}

/// An entry of a list, null or not. It shares the memory of the page that it comes from.
pub(crate) type Entry = Option<ByteArray>;

/// A list of a row, null or not.
pub(crate) type List = Option<Vec<Entry>>;

/// Reads the lists of a column one after the other.
pub(crate) struct ListReader {
    reader: ColumnReaderImpl<ByteArrayType>,
    levels: Levels,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    values: Vec<ByteArray>,
}

impl ListReader {
    /// Appends the next `rows` lists; fewer are an error.
    pub(crate) fn read(&mut self, rows: usize, lists: &mut Vec<List>) -> Result<()> {
        let Self { reader, levels, definitions, repetitions, values } = self;
        definitions.clear();
        repetitions.clear();
        values.clear();
        let (read, ..) = reader.read_records(rows, Some(definitions), Some(repetitions), values)?;
        let before = lists.len();
        let mut values = values.drain(..);
        for (definition, repetition) in definitions.iter().zip(repetitions) {
            if *repetition == 0 {
                lists.push((*definition >= levels.list).then(Vec::new));
            }
            if *definition >= levels.entry {
                let value = if *definition == levels.value { Some(values.next().ok_or_else(too_few)?) } else { None };
                lists.last_mut().and_then(Option::as_mut).ok_or_else(too_few)?.push(value);
            }
        }
        if read == rows && lists.len() - before == rows { Ok(()) } else { Err(too_few()) }
    }
}

fn too_few() -> ParquetError {
    ParquetError::EOF("a column has fewer rows or entries than its row group says".to_owned())
}

#[cfg(test)]
mod tests {
    use parquet::schema::parser::parse_message_type;

    use super::*;

    fn find(fields: &str) -> std::result::Result<(usize, Levels), NoList> {
        let schema = parse_message_type(&format!("message schema {{ {fields} }}")).expect("a schema");
        ListColumn::find(&SchemaDescriptor::new(Arc::new(schema)), "images").map(|column| (column.leaf, column.levels))
    }

    #[test]
    fn a_list_is_told_by_structure_whatever_its_inner_fields_are_called() {
        let levels = |list, entry, value| Levels { list, entry, value };
        let usual = "optional group images (LIST) { repeated group list { optional binary item (UTF8); } }";
        assert_eq!(find(usual), Ok((0, levels(1, 2, 3))));
        for (from, to) in
            [("item", "element"), ("item", "array"), ("group list", "group bag"), ("(LIST)", ""), ("(UTF8)", ""), ("(UTF8)", "(STRING)")]
        {
            assert_eq!(find(&usual.replace(from, to)), Ok((0, levels(1, 2, 3))), "{to} for {from}");
        }
        assert_eq!(find(&usual.replace("optional group", "required group")), Ok((0, levels(0, 1, 2))));
        assert_eq!(find(&usual.replace("optional binary", "required binary")), Ok((0, levels(1, 2, 2))));
        // As old writers have them.
        assert_eq!(find("optional group images (LIST) { repeated binary array (UTF8); }"), Ok((0, levels(1, 2, 2))));
        assert_eq!(find("repeated binary images (UTF8);"), Ok((0, levels(0, 1, 1))));
        // Columns before it, of several stored ones each.
        assert_eq!(
            find(&format!("optional int32 a; optional group b {{ optional int32 c; optional int32 d; }} {usual}")),
            Ok((3, levels(1, 2, 3)))
        );
    }

    #[test]
    fn other_types_and_missing_columns_are_told_with_what_was_found() {
        let other = |found: &str| Err(NoList::Other(found.to_owned()));
        assert_eq!(find("optional binary images (UTF8);"), other("OPTIONAL BYTE_ARRAY images (UTF8)"));
        let list = |entry: &str| format!("optional group images (LIST) {{ repeated group list {{ {entry} }} }}");
        for entry in [
            "optional int64 item;",
            "optional fixed_len_byte_array(4) item;",
            "optional binary item (DECIMAL(9,2));",
            "optional group item { optional binary a (UTF8); }",
            "optional binary a (UTF8); optional binary b (UTF8);",
            "repeated binary item (UTF8);",
        ] {
            assert!(matches!(find(&list(entry)), Err(NoList::Other(found)) if found.contains("images")), "{entry}");
        }
        let in_a_structure =
            "optional group images { optional group inner (LIST) { repeated group list { optional binary item (UTF8); } } }";
        assert!(matches!(find(in_a_structure), Err(NoList::Other(_))));
        assert_eq!(find("optional int32 image; optional int32 texts;"), Err(NoList::Missing("`image`, `texts`".to_owned())));
    }
}
