//! What is saved: named tensors in host memory and the facts around them.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::id::{CheckpointId, Generation};

/// Name, shape and element type of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TensorSpec {
    /// Unique within a checkpoint.
    pub name: String,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
}

/// A tensor with its elements, little endian, row-major.
#[derive(Clone, PartialEq, Eq)]
pub struct TensorData {
    /// Unique within a checkpoint.
    pub name: String,
    /// Sizes, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
    /// The elements. Cloning shares them.
    pub data: Bytes,
}

/// Everything one checkpoint holds.
///
/// The tensors' [`Bytes`] are read in place and never copied. They are dropped before the writer reports the end of the write, so that
/// a caller who made them with [`shared_bytes`] may write into the memory again.
///
/// `T` is [`ComingTensors`] where they are still being copied.
#[derive(Clone, Debug)]
pub struct Snapshot<T = Vec<TensorData>> {
    /// Completed steps.
    pub step: u64,
    /// Generation of the writer.
    pub generation: Generation,
    /// Identity of the configuration that made this state; given back by restore, not interpreted.
    pub config_digest: String,
    /// Small facts to resume with (position in the pass, counters); given back by restore, not interpreted.
    pub metadata: serde_json::Value,
    /// The state, in any order; restore gives it back in this order.
    pub tensors: T,
}

/// Tensors that are still being copied when their checkpoint is begun: whoever copies them hands them over.
#[derive(Debug)]
pub struct ComingTensors(oneshot::Receiver<Result<Vec<TensorData>, String>>);

/// Where copied tensors are handed over. Dropped without a call it fails the checkpoint.
#[derive(Debug)]
pub struct Handover(oneshot::Sender<Result<Vec<TensorData>, String>>);

impl ComingTensors {
    /// Tensors that nobody has yet.
    #[must_use]
    pub fn new() -> (Handover, Self) {
        let (sender, receiver) = oneshot::channel();
        (Handover(sender), Self(receiver))
    }

    pub(crate) async fn wait(self) -> Result<Vec<TensorData>, String> {
        self.0.await.unwrap_or_else(|_| Err("whoever copied it is gone".to_owned()))
    }
}

impl Handover {
    /// Hands the tensors over, or says why they could not be copied.
    pub fn give(self, tensors: Result<Vec<TensorData>, String>) {
        // Nobody waits for those of a checkpoint that was not taken.
        let _ = self.0.send(tensors);
    }
}

/// A tensor cannot be saved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTensor {
    /// The state is empty.
    #[error("there is no tensor to save")]
    None,
    /// Two tensors share a name.
    #[error("tensor `{name}` is there twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// The name means something else in the file format.
    #[error("`{name}` is not allowed as the name of a tensor")]
    ReservedName {
        /// The name.
        name: String,
    },
    /// A writer's tensors are not those that the plan gives it.
    #[error("tensor `{name}` is not as it was planned for writer {writer}")]
    NotAsPlanned {
        /// The name.
        name: String,
        /// The writer.
        writer: usize,
    },
    /// Shape and bytes do not fit each other.
    #[error("tensor `{name}` has {found} bytes, but its shape {shape:?} of {dtype} needs {needed}")]
    Length {
        /// The name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        dtype: Dtype,
        /// Bytes it has.
        found: usize,
        /// Bytes it has to have, or what stands in the way of saying so.
        needed: String,
    },
}

impl TensorSpec {
    /// Bytes of the elements; `None` when the number overflows or is not whole.
    #[must_use]
    pub fn byte_len(&self) -> Option<usize> {
        let elements = self.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
        let bits = elements.checked_mul(self.dtype.bitsize())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl TensorData {
    /// Everything but the elements.
    #[must_use]
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), shape: self.shape.clone(), dtype: self.dtype }
    }
}

impl std::fmt::Debug for TensorData {
    /// The elements are left out: there may be millions.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TensorData({} {:?} {}, {} bytes)", self.name, self.shape, self.dtype, self.data.len())
    }
}

impl<T> Snapshot<T> {
    /// The checkpoint this becomes.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        CheckpointId { step: self.step, generation: self.generation }
    }
}

/// Checks that tensors can be saved together; the first that cannot is named.
pub(crate) fn validate(tensors: &[TensorData]) -> Result<(), InvalidTensor> {
    if tensors.is_empty() {
        return Err(InvalidTensor::None);
    }
    let mut names = HashSet::with_capacity(tensors.len());
    for tensor in tensors {
        let TensorData { name, shape, dtype, data } = tensor;
        if name.is_empty() || name == "__metadata__" {
            return Err(InvalidTensor::ReservedName { name: name.clone() });
        }
        if !names.insert(name.as_str()) {
            return Err(InvalidTensor::Duplicate { name: name.clone() });
        }
        let needed = tensor.spec().byte_len();
        if needed != Some(data.len()) {
            let needed = needed.map_or_else(|| "a number of bytes that cannot be represented".to_owned(), |bytes| bytes.to_string());
            return Err(InvalidTensor::Length { name: name.clone(), shape: shape.clone(), dtype: *dtype, found: data.len(), needed });
        }
    }
    Ok(())
}

/// [`Bytes`] over a part of memory that `owner` holds, without a copy; the memory stays with whoever else holds the `Arc`.
///
/// This is how a trainer keeps one host buffer for all checkpoints: it shares views of it with a [`Snapshot`], and once the writer is
/// idle `Arc::get_mut` gives it the memory back to fill again. `select` has to give the same slice every time it is called.
///
/// ```
/// let mut buffer = std::sync::Arc::new(vec![0_u8; 16]);
/// let view = lcl_checkpoint::shared_bytes(&buffer, |all| all.get(4..8).unwrap_or_default());
/// assert!(std::sync::Arc::get_mut(&mut buffer).is_none());
/// drop(view); // what the writer does when it is through
/// assert!(std::sync::Arc::get_mut(&mut buffer).is_some());
/// ```
pub fn shared_bytes<T, F>(owner: &Arc<T>, select: F) -> Bytes
where
    T: Send + Sync + 'static,
    F: Fn(&T) -> &[u8] + Send + 'static,
{
    struct View<T, F> {
        owner: Arc<T>,
        select: F,
    }
    impl<T, F: Fn(&T) -> &[u8]> AsRef<[u8]> for View<T, F> {
        fn as_ref(&self) -> &[u8] {
            (self.select)(&self.owner)
        }
    }
    Bytes::from_owner(View { owner: Arc::clone(owner), select })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], bytes: usize) -> TensorData {
        TensorData { name: name.into(), shape: shape.into(), dtype: Dtype::F32, data: vec![0; bytes].into() }
    }

    #[test]
    fn what_cannot_be_saved_is_named() {
        let check = |tensors: &[TensorData], expected: &str| {
            assert_eq!(validate(tensors).map_err(|error| error.to_string()), Err(expected.to_owned()));
        };
        check(&[], "there is no tensor to save");
        check(&[tensor("a", &[1], 4), tensor("a", &[1], 4)], "tensor `a` is there twice");
        check(&[tensor("__metadata__", &[1], 4)], "`__metadata__` is not allowed as the name of a tensor");
        check(&[tensor("a", &[2, 3], 4)], "tensor `a` has 4 bytes, but its shape [2, 3] of F32 needs 24");
        check(
            &[tensor("a", &[usize::MAX, 2], 4)],
            "tensor `a` has 4 bytes, but its shape [18446744073709551615, 2] of F32 needs a number of bytes that cannot be represented",
        );
        assert_eq!(validate(&[tensor("scalar", &[], 4), tensor("empty", &[0, 5], 0)]), Ok(()));
    }
}
