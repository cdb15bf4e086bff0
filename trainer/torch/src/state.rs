//! A model's and optimizer's state as bytes: copied out for checkpoints, read back, compared by name.
//!
//! Names are `model.<name>`, `moment1.<name>` and `moment2.<name>`; the values are little-endian float32, as in memory.
//! It knows nothing of files.

mod beside;
mod host;

use std::{
    collections::{HashMap, HashSet},
    io,
};

use tch::{Device, Kind, TchError, Tensor};

pub(crate) use self::{beside::Readers, host::Source};
pub use self::{
    beside::StateCopy,
    host::{HostBytes, HostState, HostTensor},
};
use crate::shim::ShimError;

/// State cannot be copied out or read back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A tensor of the model is missing in what is to be loaded.
    #[error("`{name}` is missing: the state is of another model or incomplete")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor is not one of the model's.
    #[error("`{name}` is no tensor of this model")]
    Unknown {
        /// The tensor.
        name: String,
    },
    /// A tensor comes twice.
    #[error("`{name}` comes twice")]
    Twice {
        /// The tensor.
        name: String,
    },
    /// A tensor has other sizes than the model's.
    #[error("`{name}` has shape {found:?}, but the model's is {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its sizes.
        found: Vec<usize>,
        /// The model's.
        expected: Vec<i64>,
    },
    /// A tensor's bytes do not fill its shape.
    #[error("`{name}` has {found} bytes, but its shape takes {expected} as float32")]
    Bytes {
        /// The tensor.
        name: String,
        /// Its bytes.
        found: usize,
        /// Bytes of its shape.
        expected: usize,
    },
    /// libtorch could not copy.
    #[error("copying `{name}`")]
    Copy {
        /// The tensor.
        name: String,
        /// libtorch's reason.
        #[source]
        source: TchError,
    },
    /// The device did not do what it was told.
    #[error("copying from {device:?}")]
    Device {
        /// The device.
        device: Device,
        /// libtorch's reason.
        #[source]
        source: ShimError,
    },
    /// There is no thread to copy.
    #[error("starting a thread that copies the state")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A tensor to load, as little-endian float32.
#[derive(Clone, Copy, Debug)]
pub struct StateTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its sizes.
    pub shape: &'a [usize],
    /// Its values.
    pub data: &'a [u8],
}

/// Writes `tensors` into `targets`. Everything is checked before the first byte is written.
pub(crate) fn load<'a>(targets: &[(String, Tensor)], tensors: impl IntoIterator<Item = StateTensor<'a>>) -> Result<(), StateError> {
    let mut given = HashMap::new();
    for tensor in tensors {
        if given.insert(tensor.name, tensor).is_some() {
            return Err(StateError::Twice { name: tensor.name.to_owned() });
        }
    }
    for (name, target) in targets {
        let tensor = given.get(name.as_str()).ok_or_else(|| StateError::Missing { name: name.clone() })?;
        let expected = target.size();
        if !tensor.shape.iter().map(|size| *size as i64).eq(expected.iter().copied()) {
            return Err(StateError::Shape { name: name.clone(), found: tensor.shape.to_vec(), expected });
        }
        let bytes = target.numel() * size_of::<f32>();
        if tensor.data.len() != bytes {
            return Err(StateError::Bytes { name: name.clone(), found: tensor.data.len(), expected: bytes });
        }
    }
    let known: HashSet<&str> = targets.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(name) = given.keys().copied().filter(|name| !known.contains(name)).min() {
        return Err(StateError::Unknown { name: name.to_owned() });
    }
    for (name, target) in targets {
        let Some(tensor) = given.get(name.as_str()) else { continue };
        let write = || -> Result<(), TchError> {
            let values = Tensor::f_from_data_size(tensor.data, &target.size(), Kind::Float)?;
            tch::no_grad(|| target.shallow_clone().f_copy_(&values)).map(drop)
        };
        write().map_err(|source| StateError::Copy { name: name.clone(), source })?;
    }
    Ok(())
}
