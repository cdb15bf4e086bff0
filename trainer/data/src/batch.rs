//! One step's samples as plain buffers: what the loader hands to the training loop.
//!
//! Comes in: prepared samples. Goes out: [`Batch`]. It does no reading and no decoding.

use std::{
    fmt,
    ops::Deref,
    sync::{Mutex, PoisonError, Weak},
};

pub use crate::cause::{SkipCause, Tolerated};

/// One member's part of the global batch of one step.
#[derive(Debug, PartialEq)]
pub struct Batch {
    /// The step that uses it.
    pub step: u64,
    /// Samples that could be read, by ascending slot.
    pub rows: Vec<Row>,
    /// Slots without a sample, by ascending slot.
    pub skipped: Vec<Skipped>,
    /// Columns of `tokens`: the longest row of this batch; 0 when there is no row.
    pub length: usize,
    /// Token ids, `[rows, length]` row by row, padded on the right with 0.
    pub tokens: Vec<i64>,
    /// Pixels, `[image_count, 3, S, S]`, normalised, in row order and document order within a row.
    pub images: Images,
    /// Images in `images`.
    pub image_count: usize,
}

impl Batch {
    /// The part of a member without slots.
    #[must_use]
    pub fn empty(step: u64) -> Self {
        let images = Images::new(Vec::new(), Weak::new());
        Self { step, rows: Vec::new(), skipped: Vec::new(), length: 0, tokens: Vec::new(), images, image_count: 0 }
    }
}

/// A sample of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Position in the global batch.
    pub slot: u64,
    /// Walk over the data set that it belongs to, from 0.
    pub pass: u64,
    /// Number of the sample in the data set.
    pub sample: u64,
    /// Images of this row in the batch's `images`.
    pub images: u32,
    /// A fault of its image that cost no pixel.
    pub tolerated: Option<Tolerated>,
}

/// A slot without a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Position in the global batch.
    pub slot: u64,
    /// Walk over the data set that it belongs to, from 0.
    pub pass: u64,
    /// Number of the sample in the data set.
    pub sample: u64,
    /// Why it could not be used.
    pub cause: SkipCause,
}

/// Where image buffers wait to be used again: a batch's images are the largest thing in the data path, and fresh memory of that size costs as
/// much time in the kernel as copying it.
#[derive(Debug)]
pub(crate) struct Pool {
    buffers: Mutex<Vec<Vec<f32>>>,
    limit: usize,
}

impl Pool {
    /// Keeps at most `limit` buffers; what comes back beyond that is freed.
    pub(crate) fn new(limit: usize) -> Self {
        Self { buffers: Mutex::default(), limit }
    }

    /// A buffer of `length` values, of any content.
    pub(crate) fn take(&self, length: usize) -> Vec<f32> {
        let used = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match used {
            Some(mut buffer) => {
                buffer.resize(length, 0.0);
                buffer
            }
            None => vec![0.0; length],
        }
    }

    fn give_back(&self, buffer: Vec<f32>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < self.limit {
            buffers.push(buffer);
        }
    }
}

/// Pixels of a batch. Derefs to `[f32]`; its memory goes back to the loader when it is dropped.
pub struct Images {
    values: Vec<f32>,
    pool: Weak<Pool>,
}

impl Images {
    /// Wraps `values`; on drop they go back to `pool` if that still exists.
    pub(crate) fn new(values: Vec<f32>, pool: Weak<Pool>) -> Self {
        Self { values, pool }
    }
}

impl Deref for Images {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl PartialEq for Images {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Images({} values)", self.values.len())
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give_back(std::mem::take(&mut self.values));
        }
    }
}
