//! From plain buffers to tensors on the device, cut into micro-batches.

use std::ops::Range;

use lcl_data::Batch;
use lcl_torch::{Device, MicroBatch, TchError, Tensor, shim::cuda::pin_memory};

use crate::micro_batch::split;

/// A batch cannot become tensors.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// Rows, tokens and images of the batch do not fit each other.
    #[error("the batch of step {step} is inconsistent: {rows} rows of {length} tokens, {images} images")]
    Inconsistent {
        /// The step.
        step: u64,
        /// Its rows.
        rows: usize,
        /// Tokens a row.
        length: usize,
        /// Its images.
        images: usize,
    },
    /// libtorch could not take the memory.
    #[error("moving the batch of step {step} to {device:?}")]
    Copy {
        /// The step.
        step: u64,
        /// Where to.
        device: Device,
        /// libtorch's reason.
        source: TchError,
    },
}

/// The micro-batches of the batch's rows in `slots`, in row order; each is as long as its longest row, so that it does not depend on the
/// rows around it. `image_size` is the side of an image in pixels.
pub(super) fn micro_batches(
    batch: &Batch,
    slots: Range<u64>,
    image_size: i64,
    cap: Option<u64>,
    device: Device,
) -> Result<Vec<MicroBatch>, TensorsError> {
    let place = |slot: u64| batch.rows.partition_point(|row| row.slot < slot);
    let (first, end) = (place(slots.start), place(slots.end));
    let images = |rows: Range<usize>| batch.rows.get(rows).unwrap_or_default().iter().map(|row| row.images as usize).sum::<usize>();
    let mut image = images(0..first);
    let mut parts = Vec::new();
    for rows in split(end - first, cap) {
        let rows = first + rows.start..first + rows.end;
        let next = image + images(rows.clone());
        parts.push(Part { rows, images: image..next, image_size }.tensors(batch, device)?);
        image = next;
    }
    Ok(parts)
}

struct Part {
    rows: Range<usize>,
    images: Range<usize>,
    image_size: i64,
}

impl Part {
    fn tensors(&self, batch: &Batch, device: Device) -> Result<MicroBatch, TensorsError> {
        let inconsistent =
            || TensorsError::Inconsistent { step: batch.step, rows: batch.rows.len(), length: batch.length, images: batch.image_count };
        let copy = |source| TensorsError::Copy { step: batch.step, device, source };
        let pixels = 3 * (self.image_size * self.image_size) as usize;
        let rows = batch.rows.get(self.rows.clone()).ok_or_else(inconsistent)?;
        let tokens = batch.tokens.get(self.rows.start * batch.length..self.rows.end * batch.length).ok_or_else(inconsistent)?;
        let images = batch.images.get(self.images.start * pixels..self.images.end * pixels).ok_or_else(inconsistent)?;
        let length = tokens.chunks(batch.length.max(1)).map(used).max().unwrap_or(0);
        let tokens = Tensor::f_from_slice(tokens)
            .and_then(|tokens| tokens.f_view([rows.len() as i64, batch.length as i64]))
            .and_then(|tokens| tokens.f_narrow(1, 0, length as i64))
            .and_then(|tokens| tokens.f_contiguous());
        let images = Tensor::f_from_slice(images)
            .and_then(|images| images.f_view([self.images.len() as i64, 3, self.image_size, self.image_size]))
            .and_then(|images| to_device(images, device));
        Ok(MicroBatch {
            // Token ids are read on the host, where the layout of the sequences is worked out.
            tokens: tokens.map_err(copy)?,
            images: images.map_err(copy)?,
            slots: rows.iter().map(|row| row.slot).collect(),
            image_rows: Some((0..).zip(rows).flat_map(|(index, row)| (0..row.images).map(move |_| index)).collect()),
        })
    }
}

/// Tokens of a row before its padding.
fn used(row: &[i64]) -> usize {
    row.iter().rposition(|token| *token != 0).map_or(0, |last| last + 1)
}

/// To a GPU through pinned memory, so that the copy runs beside what the GPU is doing.
fn to_device(tensor: Tensor, device: Device) -> Result<Tensor, TchError> {
    if device == Device::Cpu {
        return Ok(tensor);
    }
    let kind = tensor.kind();
    let pinned = pin_memory(&tensor).map_err(|error| TchError::Torch(error.to_string()))?;
    pinned.f_to_device_(device, kind, true, false)
}
