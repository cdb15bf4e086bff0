//! A model's and optimizer's state as bytes: copied out for checkpoints, read back, compared by name.
//!
//! Names are `model.<name>`, `moment1.<name>` and `moment2.<name>`; the values are little-endian float32, as in memory.
//! It knows nothing of files.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    thread,
};

use tch::{Kind, TchError, Tensor};

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

/// Bytes of a copied tensor. Clones share them, so that a writer can keep them while training goes on.
#[derive(Clone, Debug)]
pub struct HostBytes(Arc<Vec<u8>>);

impl AsRef<[u8]> for HostBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A copied tensor.
#[derive(Clone, Debug)]
pub struct HostTensor {
    /// Its name.
    pub name: String,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its values, little-endian float32.
    pub bytes: HostBytes,
}

/// Host memory for copies of a state, used again for every copy.
///
/// A buffer that a clone of its [`HostBytes`] still holds is never written: the next copy takes new memory for it, which costs a first
/// touch of every page. Drop the clones before the next copy.
#[derive(Debug, Default)]
pub struct HostState {
    tensors: Vec<HostTensor>,
    /// Names of the tensors that are copied; `None`: all.
    part: Option<HashSet<String>>,
}

/// Bytes that a thread copies at a time: small enough to keep threads equally busy, large enough to cost nothing beside the copy.
const CHUNK_BYTES: usize = 4 << 20;

impl HostState {
    /// Memory for copies of the tensors of these names only, not allocated yet.
    pub(crate) fn for_part(names: HashSet<String>) -> Self {
        Self { tensors: Vec::new(), part: Some(names) }
    }

    /// Whether a tensor of this name is copied.
    fn includes(&self, name: &str) -> bool {
        self.part.as_ref().is_none_or(|names| names.contains(name))
    }

    /// The copied tensors, in the order of the state.
    #[must_use]
    pub fn tensors(&self) -> &[HostTensor] {
        &self.tensors
    }

    /// Allocates and touches memory for `state`, so that the first copy is as fast as the later ones.
    pub(crate) fn reserve(&mut self, state: &[(String, Tensor)]) {
        let state: Vec<_> = state.iter().filter(|(name, _)| self.includes(name)).collect();
        let fits = self.tensors.len() == state.len()
            && self.tensors.iter().zip(&state).all(|(held, (name, tensor))| held.name == *name && held.bytes.0.len() == bytes_of(tensor));
        if !fits {
            self.tensors = state
                .iter()
                .map(|(name, tensor)| HostTensor {
                    name: name.clone(),
                    shape: tensor.size().iter().map(|size| *size as usize).collect(),
                    bytes: fresh(bytes_of(tensor)),
                })
                .collect();
        }
    }

    /// Copies `state` by one thread per core.
    pub(crate) fn copy_from(&mut self, state: &[(String, Tensor)]) -> Result<(), StateError> {
        self.reserve(state);
        let mut jobs = Vec::new();
        let part = self.part.as_ref();
        let state = state.iter().filter(|(name, _)| part.is_none_or(|names| names.contains(name)));
        for (held, (name, tensor)) in self.tensors.iter_mut().zip(state) {
            let failed = |source| StateError::Copy { name: name.clone(), source };
            let flat = tensor.f_detach().and_then(|tensor| tensor.f_contiguous()?.f_view([-1])).map_err(failed)?;
            if Arc::get_mut(&mut held.bytes.0).is_none() {
                held.bytes = fresh(held.bytes.0.len());
            }
            let width = tensor.kind().elt_size_in_bytes();
            let values = CHUNK_BYTES / width;
            // Just made unique above; an empty slice would only leave out the copy.
            let buffer = Arc::get_mut(&mut held.bytes.0).map(Vec::as_mut_slice).unwrap_or_default();
            for (index, part) in buffer.chunks_mut(values * width).enumerate() {
                let count = part.len() / width;
                let source = flat.f_narrow(0, (index * values) as i64, count as i64).map_err(failed)?;
                jobs.push((name.as_str(), source, part, count));
            }
        }
        run_copies(jobs)
    }
}

fn run_copies(mut jobs: Vec<(&str, Tensor, &mut [u8], usize)>) -> Result<(), StateError> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len()).max(1);
    let share = jobs.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let mut handles = Vec::new();
        while !jobs.is_empty() {
            let part = jobs.split_off(jobs.len().saturating_sub(share));
            handles.push(scope.spawn(move || {
                part.into_iter().try_for_each(|(name, source, target, count)| {
                    source.f_copy_data_u8(target, count).map_err(|source| StateError::Copy { name: name.to_owned(), source })
                })
            }));
        }
        handles.into_iter().try_for_each(|handle| match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
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

fn bytes_of(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Memory whose pages are touched: a zero would be left to the first write.
fn fresh(bytes: usize) -> HostBytes {
    HostBytes(Arc::new(vec![1; bytes]))
}
