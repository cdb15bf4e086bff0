//! The safetensors format: header and elements of one file, without a second copy of the elements; and whole files for export and
//! import.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. Reading is the safetensors crate's checked parser; the header is built
//! here because that crate orders metadata by a hash map, and equal states should give equal bytes.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use safetensors::{SafeTensorError, SafeTensors, tensor::TensorInfo};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    tensor::{InvalidTensor, TensorData, validate},
    volume::{sync, sync_folder},
};

/// Elements begin at a multiple of this, so that a page-aligned mapping of the file suits any element type and vector instruction.
const ALIGNMENT: usize = 64;

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;

/// The safetensors crate refuses larger headers when it reads.
const HEADER_BYTES_LIMIT: usize = 100_000_000;

/// A safetensors file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// The tensors cannot stand in one file.
    #[error("cannot write {}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Which tensor and why.
        #[source]
        source: InvalidTensor,
    },
    /// Names and shapes take more room than the format allows.
    #[error("cannot write {}: its header would have {bytes} bytes where the format allows {HEADER_BYTES_LIMIT}", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes it would have.
        bytes: usize,
    },
    /// The file system refused.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not a safetensors file, or not all of it.
    #[error("{} is not a complete safetensors file", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: SafeTensorError,
    },
}

/// What a safetensors file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafetensorsContent {
    /// The tensors in the order in which they lie in the file. They share the file's memory.
    pub tensors: Vec<TensorData>,
    /// The file's own facts (`__metadata__`).
    pub metadata: BTreeMap<String, String>,
}

/// The file's pieces in order: header, then each tensor's own memory. `Err` carries the header's length when it is too long.
pub(crate) fn pieces(tensors: &[TensorData], metadata: &BTreeMap<String, String>) -> Result<Vec<Bytes>, usize> {
    // Wider elements first, as the format's own writer does: every tensor then begins at a multiple of its element size.
    let mut ordered: Vec<&TensorData> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype));
    let header = Header { tensors: &ordered, metadata };
    // Strings, numbers and maps with string keys: nothing here that JSON cannot express.
    let json = serde_json::to_vec(&header).unwrap_or_default();
    let padded = (LENGTH_BYTES + json.len()).next_multiple_of(ALIGNMENT) - LENGTH_BYTES;
    if padded > HEADER_BYTES_LIMIT {
        return Err(padded);
    }
    let mut head = BytesMut::with_capacity(LENGTH_BYTES + padded);
    head.extend_from_slice(&(padded as u64).to_le_bytes());
    head.extend_from_slice(&json);
    head.resize(LENGTH_BYTES + padded, b' ');
    Ok(std::iter::once(head.freeze()).chain(ordered.into_iter().map(|tensor| tensor.data.clone())).collect())
}

struct Header<'a> {
    tensors: &'a [&'a TensorData],
    metadata: &'a BTreeMap<String, String>,
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        let mut offset = 0;
        for tensor in self.tensors {
            let end = offset + tensor.data.len();
            let info = TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (offset, end) };
            map.serialize_entry(&tensor.name, &info)?;
            offset = end;
        }
        map.end()
    }
}

/// Takes a whole file apart; the tensors share its memory.
pub(crate) fn parse(file: &Bytes) -> Result<SafetensorsContent, SafeTensorError> {
    let (header, info) = SafeTensors::read_metadata(file)?;
    let elements = file.slice(LENGTH_BYTES + header..);
    let tensors = info
        .offset_keys()
        .into_iter()
        .map(|name| {
            let TensorInfo { dtype, shape, data_offsets: (start, end) } = info.info(&name).ok_or(SafeTensorError::TensorInvalidInfo)?;
            // `read_metadata` has checked that every range lies within the file.
            Ok(TensorData { dtype: *dtype, shape: shape.clone(), data: elements.slice(*start..*end), name })
        })
        .collect::<Result<_, SafeTensorError>>()?;
    let metadata = info.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(SafetensorsContent { tensors, metadata })
}

/// Writes one safetensors file: to a temporary file beside it, synced, then renamed over `path`, so that `path` is either what it was
/// or complete, also after a power failure. The elements are written from where they lie.
pub fn write_safetensors(path: &Path, tensors: &[TensorData], metadata: &BTreeMap<String, String>) -> Result<(), SafetensorsError> {
    validate(tensors).map_err(|source| SafetensorsError::Tensors { path: path.into(), source })?;
    let pieces = pieces(tensors, metadata).map_err(|bytes| SafetensorsError::HeaderTooLarge { path: path.into(), bytes })?;
    let write = || -> std::io::Result<()> {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary = temporary_file(folder)?;
        for piece in &pieces {
            temporary.write_all(piece)?;
        }
        sync(temporary.as_file(), path)?;
        temporary.persist(path).map_err(|error| error.error)?;
        sync_folder(folder)
    };
    write().map_err(|source| SafetensorsError::Write { path: path.into(), source })
}

/// Reads one safetensors file and checks its header against its length: every tensor's shape, type and bytes fit, nothing is missing.
pub fn read_safetensors(path: &Path) -> Result<SafetensorsContent, SafetensorsError> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let mut bytes = Vec::with_capacity(usize::try_from(file.metadata()?.len()).unwrap_or(0));
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| SafetensorsError::Read { path: path.into(), source })?;
    parse(&bytes.into()).map_err(|source| SafetensorsError::Parse { path: path.into(), source })
}

/// A temporary file with the permissions that any new file of this user gets (a temporary file's default is 0600).
fn temporary_file(folder: &Path) -> std::io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".safetensors-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::Dtype;

    use super::*;

    /// Tensors of mixed types and shapes with arbitrary elements.
    pub(crate) fn any_tensors(most: usize) -> impl Strategy<Value = Vec<TensorData>> {
        let dtype = prop::sample::select(vec![Dtype::F32, Dtype::BF16, Dtype::I64, Dtype::BOOL, Dtype::U8, Dtype::F64]);
        let one = (dtype, prop::collection::vec(0_usize..5, 0..4), any::<u64>());
        prop::collection::vec(one, 1..most).prop_map(|tensors| {
            tensors
                .into_iter()
                .enumerate()
                .map(|(index, (dtype, shape, seed))| {
                    let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                    let mut data = vec![0; bytes];
                    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
                    TensorData { name: format!("täns\"or.{index}"), shape, dtype, data: data.into() }
                })
                .collect()
        })
    }

    fn sorted(mut tensors: Vec<TensorData>) -> Vec<TensorData> {
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
        tensors
    }

    proptest! {
        #[test]
        fn a_file_reads_back_and_its_tensors_are_aligned(tensors in any_tensors(12), note in ".*") {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("note".to_owned(), note)]);
            write_safetensors(&path, &tensors, &metadata).unwrap();
            let content = read_safetensors(&path).unwrap();
            prop_assert_eq!(&content.metadata, &metadata);
            let bytes = std::fs::read(&path).unwrap();
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            prop_assert_eq!((8 + header) % ALIGNMENT, 0);
            let mut offset = 0;
            for tensor in &content.tensors {
                prop_assert_eq!(offset % (tensor.dtype.bitsize() / 8), 0);
                offset += tensor.data.len();
            }
            prop_assert_eq!(sorted(content.tensors), sorted(tensors));
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }

        #[test]
        fn a_cut_file_is_refused(tensors in any_tensors(6), part in 0.0_f64..1.0) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..(bytes.len() as f64 * part) as usize]).unwrap();
            let error = read_safetensors(&path).unwrap_err().to_string();
            prop_assert!(error.contains("is not a complete safetensors file"), "{}", error);
        }
    }

    #[test]
    fn equal_states_give_equal_bytes_and_permissions_are_the_users() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [TensorData { name: "a".into(), shape: vec![2], dtype: Dtype::F32, data: vec![1; 8].into() }];
        let metadata: BTreeMap<_, _> = (0..20).map(|key| (format!("key{key}"), "value".to_owned())).collect();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        write_safetensors(&first, &tensors, &metadata).unwrap();
        write_safetensors(&second, &tensors, &metadata).unwrap();
        assert_eq!(std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
        std::fs::write(folder.path().join("plain"), b"").unwrap();
        let mode = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().permissions();
        assert_eq!(mode("first"), mode("plain"));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_safetensors(&folder.path().join("missing/model.safetensors"), &[], &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().ends_with("missing/model.safetensors"), "{error}");
        let tensors = [TensorData { name: "a".into(), shape: vec![], dtype: Dtype::U8, data: vec![1].into() }];
        let error = write_safetensors(&folder.path().join("missing/model.safetensors"), &tensors, &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, SafetensorsError::Write { .. }));
    }
}
