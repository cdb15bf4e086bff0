//! `manifest.json`: what a checkpoint consists of. Written last, it makes the folder a checkpoint.
//!
//! The file is an envelope `{"format": "lcl-checkpoint", "version": 1, "blake3": "…", "manifest": {…}}`; the checksum covers the exact
//! bytes of the inner object, so that a flipped bit anywhere in it is found before anything in it is believed.

use std::collections::HashSet;

use bytes::Bytes;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    id::{CheckpointId, Generation, MANIFEST_FILE, shard_file_name},
    tensor::TensorSpec,
};

/// Version of the layout. A reader treats any other as damage and names it.
pub const FORMAT_VERSION: u32 = 1;

const FORMAT: &str = "lcl-checkpoint";

/// Largest manifest that is read. One with 100,000 tensors has about 15 MB.
pub(crate) const MANIFEST_BYTES_LIMIT: u64 = 256 << 20;

/// One checkpoint's contents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Completed steps.
    pub step: u64,
    /// Generation of the writer.
    pub generation: Generation,
    /// Identity of the configuration, as the writer gave it.
    pub config_digest: String,
    /// Small facts, as the writer gave them.
    pub metadata: serde_json::Value,
    /// Every shard, in order.
    pub shards: Vec<ShardRecord>,
    /// Every tensor, in the writer's order.
    pub tensors: Vec<TensorRecord>,
}

/// A shard's file as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShardRecord {
    /// Name within the checkpoint's folder.
    pub file: String,
    /// Length of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, 64 lower-case hexadecimal digits.
    pub blake3: String,
}

/// A tensor and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TensorRecord {
    /// Name.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
    /// Index of its shard.
    pub shard: usize,
}

/// A manifest cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON of the expected form.
    #[error("not a manifest of this format")]
    Parse {
        /// What the parser found.
        #[source]
        source: serde_json::Error,
    },
    /// It names another format.
    #[error("format is `{found}` where `lcl-checkpoint` is expected")]
    Format {
        /// The name found.
        found: String,
    },
    /// It was written by another release.
    #[error("format version {found} is unknown: this program reads version {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u64,
    },
    /// Its bytes are not those that were written.
    #[error("its checksum does not match its contents")]
    Checksum,
    /// It lies in the folder of another checkpoint.
    #[error("it describes {found}")]
    Identity {
        /// The checkpoint it describes.
        found: CheckpointId,
    },
    /// Its parts contradict each other.
    #[error("{what}")]
    Inconsistent {
        /// What does not fit.
        what: String,
    },
    /// It could not be put into JSON.
    #[error("cannot express the manifest as JSON")]
    Encode {
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    format: String,
    version: u64,
    blake3: String,
    manifest: Box<RawValue>,
}

/// What every version has in common, read before the rest is looked at.
#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u64,
}

impl TensorRecord {
    /// Everything but the place.
    #[must_use]
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), shape: self.shape.clone(), dtype: self.dtype }
    }
}

impl Manifest {
    /// The checkpoint it describes.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        CheckpointId { step: self.step, generation: self.generation }
    }

    /// Bytes of all shards.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.saturating_add(shard.bytes))
    }

    /// The file's bytes.
    pub(crate) fn encode(&self) -> Result<Bytes, ManifestError> {
        self.check()?;
        let inner = serde_json::to_string_pretty(self).map_err(|source| ManifestError::Encode { source })?;
        let envelope = Envelope {
            format: FORMAT.to_owned(),
            version: u64::from(FORMAT_VERSION),
            blake3: blake3::hash(inner.as_bytes()).to_hex().to_string(),
            manifest: RawValue::from_string(inner).map_err(|source| ManifestError::Encode { source })?,
        };
        serde_json::to_vec(&envelope).map(Bytes::from).map_err(|source| ManifestError::Encode { source })
    }

    /// Reads the file's bytes, found in the folder of `id`, and believes nothing unchecked.
    pub(crate) fn decode(bytes: &[u8], id: CheckpointId) -> Result<Self, ManifestError> {
        let preamble: Preamble = serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse { source })?;
        if preamble.format != FORMAT {
            return Err(ManifestError::Format { found: preamble.format });
        }
        if preamble.version != u64::from(FORMAT_VERSION) {
            return Err(ManifestError::Version { found: preamble.version });
        }
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse { source })?;
        if blake3::hash(envelope.manifest.get().as_bytes()).to_hex().as_str() != envelope.blake3 {
            return Err(ManifestError::Checksum);
        }
        let manifest: Self = serde_json::from_str(envelope.manifest.get()).map_err(|source| ManifestError::Parse { source })?;
        manifest.check()?;
        if manifest.id() != id {
            return Err(ManifestError::Identity { found: manifest.id() });
        }
        Ok(manifest)
    }

    /// Checks that the parts fit each other.
    fn check(&self) -> Result<(), ManifestError> {
        let inconsistent = |what: String| Err(ManifestError::Inconsistent { what });
        for (index, shard) in self.shards.iter().enumerate() {
            // Also keeps a manifest from naming a file outside its folder.
            let expected = shard_file_name(index, self.shards.len());
            if shard.file != expected {
                return inconsistent(format!("shard {index} is called `{}` where `{expected}` is expected", shard.file));
            }
        }
        let mut names = HashSet::with_capacity(self.tensors.len());
        for tensor in &self.tensors {
            if tensor.shard >= self.shards.len() {
                return inconsistent(format!("tensor `{}` lies in shard {} of {}", tensor.name, tensor.shard, self.shards.len()));
            }
            if !names.insert(tensor.name.as_str()) {
                return inconsistent(format!("tensor `{}` is there twice", tensor.name));
            }
        }
        if self.tensors.is_empty() {
            return inconsistent(format!("{MANIFEST_FILE} lists no tensor"));
        }
        Ok(())
    }
}
