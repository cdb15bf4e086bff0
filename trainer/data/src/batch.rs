//! One step's samples as plain buffers: what the loader hands to the training loop.
//!
//! Comes in: loaded samples. Goes out: [`Batch`]: rows of any length, one behind the other. It does no reading and no decoding.

use std::{
    fmt,
    ops::{Deref, DerefMut, Range},
    sync::{Arc, Mutex, PoisonError, Weak},
};

pub use crate::cause::{RedrawCause, SkipCause, Tolerated};

/// One member's part of the global batch of one step.
#[derive(Debug, PartialEq)]
pub struct Batch {
    /// The step that uses it.
    pub step: u64,
    /// Samples that could be read, by ascending slot.
    pub rows: Vec<Row>,
    /// Slots without a sample, by ascending slot.
    pub skipped: Vec<Skipped>,
    /// Token ids of all rows, one row behind the other, without padding.
    pub tokens: Vec<i64>,
    /// Pixels, `[images, S, S, 3]` bytes (red, green, blue), in row order and document order within a row; not normalised yet.
    pub pixels: Buffer,
    /// Images in `pixels`.
    pub images: usize,
}

impl Batch {
    /// The part of a member without slots.
    #[must_use]
    pub fn empty(step: u64) -> Self {
        Self { step, rows: Vec::new(), skipped: Vec::new(), tokens: Vec::new(), pixels: Buffer::default(), images: 0 }
    }

    /// The tokens of one of its rows.
    #[must_use]
    pub fn tokens_of(&self, row: &Row) -> &[i64] {
        self.tokens.get(row.tokens.clone()).unwrap_or_default()
    }
}

/// A sample of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Position in the global batch.
    pub slot: u64,
    /// Walk over the data set that it belongs to, from 0.
    pub pass: u64,
    /// Number of the sample in the data set that stands in the slot.
    pub sample: u64,
    /// The sample that is used: another one when that gave no sequence.
    pub used: u64,
    /// Why the slot's own sample gave none, and which of the samples that were drawn in its place is used, counted from 1.
    pub redrawn: Option<(RedrawCause, u32)>,
    /// Where its tokens lie in the batch's.
    pub tokens: Range<usize>,
    /// Numbers of its images in the batch.
    pub images: Range<usize>,
    /// Faults of its images that cost no pixel.
    pub tolerated: Vec<Tolerated>,
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

/// Where buffers wait to be used again: those of pixels are the largest thing in the data path, and fresh memory of that size costs as much
/// time in the kernel as copying it.
#[derive(Debug)]
pub(crate) struct Pool<T = u8> {
    buffers: Mutex<Vec<Vec<T>>>,
    limit: usize,
}

impl<T> Pool<T> {
    /// Keeps at most `limit` buffers; what comes back beyond that is freed.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { buffers: Mutex::default(), limit })
    }

    /// An empty buffer, with the memory of one that was used before if there is one.
    pub(crate) fn take(self: &Arc<Self>) -> Buffer<T> {
        let items = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        Buffer { items, pool: Arc::downgrade(self) }
    }

    fn give_back(&self, mut buffer: Vec<T>) {
        buffer.clear();
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < self.limit {
            buffers.push(buffer);
        }
    }
}

/// Bytes, or whatever else, whose memory goes back to the loader when they are dropped.
pub struct Buffer<T = u8> {
    items: Vec<T>,
    /// Gone when the loader is.
    pool: Weak<Pool<T>>,
}

impl<T> Default for Buffer<T> {
    fn default() -> Self {
        Self { items: Vec::new(), pool: Weak::new() }
    }
}

impl<T> Deref for Buffer<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.items
    }
}

impl<T> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.items
    }
}

impl<T: PartialEq> PartialEq for Buffer<T> {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl<T> fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} items)", self.items.len())
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give_back(std::mem::take(&mut self.items));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_dropped_buffers_is_used_again_up_to_the_limit() {
        let pool = Pool::<u8>::new(1);
        let (mut first, mut second) = (pool.take(), pool.take());
        first.reserve_exact(1000);
        second.reserve_exact(2000);
        first.push(7);
        drop(first);
        drop(second);
        let again = pool.take();
        assert_eq!((again.capacity(), again.len()), (1000, 0));
        assert_eq!(pool.take().capacity(), 0);
        drop(pool);
        drop(again);
    }
}
