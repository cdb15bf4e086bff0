//! Copies of a state in host memory.

use std::{collections::HashSet, ops::Range, sync::Arc, thread};

use tch::{Device, Tensor};

use super::StateError;
use crate::{
    probe::{self, Phase},
    shim::{
        ShimError,
        cuda::{CopyFailure, LockedBytes, Moment},
    },
};

/// Bytes of a copied tensor. Clones share them, so that a writer can keep them while training goes on.
#[derive(Clone, Debug)]
pub struct HostBytes {
    memory: Arc<LockedBytes>,
    range: Range<usize>,
}

impl AsRef<[u8]> for HostBytes {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_slice().get(self.range.clone()).unwrap_or_default()
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

#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: String,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// Host memory for copies of a state, used again for every copy. It is one piece, which the first copy from a GPU locks.
///
/// Memory that a clone of a [`HostBytes`] still holds is never written: the next copy takes new memory, which costs a first touch of every
/// page. Drop the clones before the next copy.
#[derive(Debug)]
pub struct HostState {
    places: Vec<Place>,
    memory: Arc<LockedBytes>,
    /// Names of the tensors that are copied; `None`: all.
    part: Option<HashSet<String>>,
    /// Why the memory could not be locked.
    lock_failure: Option<ShimError>,
}

impl Default for HostState {
    fn default() -> Self {
        Self { places: Vec::new(), memory: fresh(0), part: None, lock_failure: None }
    }
}

/// What is to be copied: named tensors, and where a GPU stood when they were what is wanted.
#[derive(Debug)]
pub(crate) struct Source {
    state: Vec<(String, Tensor)>,
    moment: Option<(Device, Moment)>,
}

impl Source {
    /// The state as it is once everything that this thread has told its device is done.
    pub(crate) fn now(state: Vec<(String, Tensor)>) -> Result<Self, StateError> {
        let device = state.first().map_or(Device::Cpu, |(_, tensor)| tensor.device());
        let moment = match device {
            Device::Cuda(index) => Some((device, Moment::now(index).map_err(|source| StateError::Device { device, source })?)),
            _ => None,
        };
        Ok(Self { state, moment })
    }
}

/// Bytes that a thread copies at a time: small enough to keep threads equally busy, large enough to cost nothing beside the copy.
const CHUNK_BYTES: usize = 4 << 20;

impl HostState {
    /// Memory for copies of the tensors of these names only, not allocated yet.
    pub(crate) fn for_part(names: HashSet<String>) -> Self {
        Self { part: Some(names), ..Self::default() }
    }

    /// Whether a tensor of this name is copied.
    fn includes(&self, name: &str) -> bool {
        self.part.as_ref().is_none_or(|names| names.contains(name))
    }

    /// The copied tensors, in the order of the state. They hold the memory.
    #[must_use]
    pub fn tensors(&self) -> Vec<HostTensor> {
        let tensor = |place: &Place| HostTensor {
            name: place.name.clone(),
            shape: place.shape.clone(),
            bytes: HostBytes { memory: Arc::clone(&self.memory), range: place.range.clone() },
        };
        self.places.iter().map(tensor).collect()
    }

    /// Why the memory could not be locked for copies from a GPU, which then do not run beside training.
    #[must_use]
    pub fn lock_failure(&self) -> Option<&ShimError> {
        self.lock_failure.as_ref()
    }

    /// Allocates and touches memory for `state`, so that the first copy is as fast as the later ones.
    pub(crate) fn reserve(&mut self, state: &[(String, Tensor)]) {
        let mut end = 0;
        let places: Vec<Place> = state
            .iter()
            .filter(|(name, _)| self.includes(name))
            .map(|(name, tensor)| {
                let begin = end;
                end += bytes_of(tensor);
                Place { name: name.clone(), shape: tensor.size().iter().map(|size| *size as usize).collect(), range: begin..end }
            })
            .collect();
        if places != self.places {
            self.places = places;
            self.memory = fresh(end);
        }
    }

    /// Copies a state: from host memory by so many threads.
    pub(crate) fn copy_from(&mut self, source: &Source, threads: usize) -> Result<(), StateError> {
        probe::reach(Phase::Copy);
        self.reserve(&source.state);
        if Arc::get_mut(&mut self.memory).is_none() {
            self.memory = fresh(self.memory.as_slice().len());
        }
        let part = self.part.as_ref();
        // Made unique just now.
        let Some(memory) = Arc::get_mut(&mut self.memory) else { return Ok(()) };
        if source.moment.is_some() && self.lock_failure.is_none() {
            self.lock_failure = memory.lock().err();
        }
        let mut rest = memory.as_mut_slice();
        let mut jobs = Vec::with_capacity(source.state.len());
        for (name, tensor) in source.state.iter().filter(|(name, _)| part.is_none_or(|names| names.contains(name))) {
            let (place, behind) = rest.split_at_mut(bytes_of(tensor));
            rest = behind;
            jobs.push((name.as_str(), tensor, place));
        }
        match &source.moment {
            Some((device, moment)) => copy_from_device(*device, moment, jobs),
            None => copy_in_chunks(jobs, threads),
        }
    }
}

/// Each tensor with its place.
type Job<'a> = (&'a str, &'a Tensor, &'a mut [u8]);

fn copy_from_device(device: Device, moment: &Moment, jobs: Vec<Job<'_>>) -> Result<(), StateError> {
    let names: Vec<&str> = jobs.iter().map(|(name, ..)| *name).collect();
    let mut copies: Vec<_> = jobs.into_iter().map(|(_, tensor, place)| (tensor, place)).collect();
    moment.copy(&mut copies).map_err(|CopyFailure { index, source }| match index.and_then(|index| names.get(index)) {
        Some(name) => StateError::Copy { name: (*name).to_owned(), source: source.into() },
        None => StateError::Device { device, source },
    })
}

fn copy_in_chunks(jobs: Vec<Job<'_>>, threads: usize) -> Result<(), StateError> {
    let mut chunks = Vec::new();
    for (name, tensor, place) in jobs {
        let failed = |source| StateError::Copy { name: name.to_owned(), source };
        let flat = tensor.f_detach().and_then(|tensor| tensor.f_contiguous()?.f_view([-1])).map_err(failed)?;
        let width = tensor.kind().elt_size_in_bytes();
        let values = CHUNK_BYTES / width;
        for (index, part) in place.chunks_mut(values * width).enumerate() {
            let count = part.len() / width;
            let source = flat.f_narrow(0, (index * values) as i64, count as i64).map_err(failed)?;
            chunks.push(Chunk { name, source, place: part, count });
        }
    }
    if threads <= 1 {
        return chunks.into_iter().try_for_each(Chunk::copy);
    }
    let share = chunks.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let mut handles = Vec::new();
        while !chunks.is_empty() {
            let part = chunks.split_off(chunks.len().saturating_sub(share));
            handles.push(scope.spawn(move || part.into_iter().try_for_each(Chunk::copy)));
        }
        handles.into_iter().try_for_each(|handle| match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

struct Chunk<'a> {
    name: &'a str,
    source: Tensor,
    place: &'a mut [u8],
    count: usize,
}

impl Chunk<'_> {
    fn copy(self) -> Result<(), StateError> {
        let copied = self.source.f_copy_data_u8(self.place, self.count);
        copied.map_err(|source| StateError::Copy { name: self.name.to_owned(), source })
    }
}

fn bytes_of(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

fn fresh(bytes: usize) -> Arc<LockedBytes> {
    Arc::new(LockedBytes::new(bytes))
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn a_tensor_that_cannot_be_copied_is_named() {
        let fine = Tensor::ones([3], (Kind::Float, Device::Cpu));
        // It has no memory that could be read from end to end.
        let sparse = Tensor::eye(3, (Kind::Float, Device::Cpu)).to_sparse(None, None::<i64>, None);
        let source = Source::now(vec![("model.a".to_owned(), fine), ("moment1.b".to_owned(), sparse)]).expect("a state");
        for threads in [1, 2] {
            let error = HostState::default().copy_from(&source, threads).expect_err("it cannot be copied");
            assert!(matches!(&error, StateError::Copy { name, .. } if name == "moment1.b"), "{error}");
        }
    }
}
