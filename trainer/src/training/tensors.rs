//! From plain buffers to tensors on the device, cut into micro-batches.

use std::ops::Range;

use lcl_data::{
    Batch, Orders, Row,
    image::{MEAN, STD},
};
use lcl_torch::{
    Device, Kind, MicroBatch, TchError, Tensor,
    shim::{cuda::pin_memory, values::tensor_of},
};

use super::describe::sources_of;
use crate::training::micro_batch::split;

/// A batch cannot become tensors.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// Rows, tokens and images of the batch do not fit each other.
    #[error("the batch of step {step} is inconsistent: {rows} rows, {tokens} tokens, {images} images")]
    Inconsistent {
        /// The step.
        step: u64,
        /// Its rows.
        rows: usize,
        /// Its tokens.
        tokens: usize,
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

/// What micro-batches are made for.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// Side of an image in pixels.
    pub(super) image_size: i64,
    /// Most rows of one.
    pub(super) cap: Option<u64>,
    pub(super) device: Device,
    /// Knows the source of each row.
    pub(super) order: &'a Orders,
}

/// The micro-batches of the batch's rows in `slots`, in row order; each is as long as its longest row, so that it does not depend on the
/// rows around it.
pub(super) fn micro_batches(batch: &Batch, slots: Range<u64>, target: Target<'_>) -> Result<Vec<MicroBatch>, TensorsError> {
    let place = |slot: u64| batch.rows.partition_point(|row| row.slot < slot);
    let (first, end) = (place(slots.start), place(slots.end));
    let parts = split(end - first, target.cap).into_iter().map(|rows| {
        let rows = batch.rows.get(first + rows.start..first + rows.end).unwrap_or_default();
        tensors(batch, rows, target)
    });
    parts.collect()
}

/// The tensors of some rows of the batch.
fn tensors(batch: &Batch, rows: &[Row], target: Target<'_>) -> Result<MicroBatch, TensorsError> {
    let Target { image_size, device, order, .. } = target;
    let inconsistent =
        || TensorsError::Inconsistent { step: batch.step, rows: batch.rows.len(), tokens: batch.tokens.len(), images: batch.images };
    let copy = |source| TensorsError::Copy { step: batch.step, device, source };
    let length = rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
    let mut tokens = vec![PADDING; rows.len() * length];
    for (row, place) in rows.iter().zip(tokens.chunks_mut(length.max(1))) {
        let tokens = batch.tokens.get(row.tokens.clone()).ok_or_else(inconsistent)?;
        place.get_mut(..tokens.len()).ok_or_else(inconsistent)?.copy_from_slice(tokens);
    }
    let tokens = tensor_of(tokens, &[rows.len() as i64, length as i64]).map_err(TchError::from);
    let images = rows.first().map_or(0, |row| row.images.start)..rows.last().map_or(0, |row| row.images.end);
    let bytes = 3 * (image_size * image_size) as usize;
    let pixels = batch.pixels.get(images.start * bytes..images.end * bytes).ok_or_else(inconsistent)?;
    let images = match device {
        Device::Cpu => normalised_here(pixels, images.len(), image_size),
        device => tensor_of(pixels.to_vec(), &[images.len() as i64, image_size, image_size, 3])
            .map_err(TchError::from)
            .and_then(|pixels| to_device(&pixels, device))
            .and_then(|pixels| normalise(&pixels)),
    };
    Ok(MicroBatch {
        // Token ids are read on the host, where the layout of the sequences is worked out.
        tokens: tokens.map_err(copy)?,
        images: images.map_err(copy)?,
        slots: rows.iter().map(|row| row.slot).collect(),
        image_rows: Some((0..).zip(rows).flat_map(|(index, row)| row.images.clone().map(move |_| index)).collect()),
        sources: sources_of(rows, order),
    })
}

/// Id of padding.
const PADDING: i64 = 0;

/// `[n, S, S, 3]` bytes to `[n, 3, S, S]` float32 of `(value / 255 - mean) / std`, rounded as the transform of single images rounds.
fn normalise(pixels: &Tensor) -> Result<Tensor, TchError> {
    let channels = |values: &[f32]| Tensor::f_from_slice(values)?.f_view([1, 3, 1, 1])?.f_to_device(pixels.device());
    let mut values = pixels.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?.f_contiguous()?;
    // By tensors, not by a number: a GPU would multiply by its reciprocal, which rounds otherwise.
    let most = Tensor::f_from_slice(&[255.0_f32])?.f_to_device(pixels.device())?;
    values.f_div_(&most)?.f_sub_(&channels(&MEAN)?)?.f_div_(&channels(&STD)?)
}

/// As [`normalise`], `images` of so many pixels a side, in one pass over the bytes and by this thread alone: none of libtorch's threads, which
/// compute meanwhile, has to be woken.
fn normalised_here(pixels: &[u8], images: usize, side: i64) -> Result<Tensor, TchError> {
    let tables: [[f32; 256]; 3] =
        std::array::from_fn(|channel| std::array::from_fn(|value| (value as f32 / 255.0 - MEAN[channel]) / STD[channel]));
    let mut values = Vec::with_capacity(pixels.len());
    for image in pixels.chunks_exact((3 * side * side).max(1) as usize) {
        for (channel, table) in tables.iter().enumerate() {
            values.extend(image.as_chunks::<3>().0.iter().map(|pixel| table[usize::from(pixel[channel])]));
        }
    }
    Ok(tensor_of(values, &[images as i64, 3, side, side])?)
}

/// To a GPU through pinned memory, so that the copy runs beside what the GPU is doing.
fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor, TchError> {
    let kind = tensor.kind();
    let pinned = pin_memory(tensor).map_err(|error| TchError::Torch(error.to_string()))?;
    pinned.f_to_device_(device, kind, true, false)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lcl_data::{Order, Pace, mixture::Mixture};

    use super::*;

    #[test]
    fn pixels_are_normalised_with_the_rounding_of_the_transform_of_single_images() {
        // Every value in every channel, and two images whose planes must not mix.
        let bytes: Vec<u8> = (0..2 * 16 * 16 * 3_u32).map(|at| (at / 3 * 7 + at % 3 * 85 + at / 768) as u8).collect();
        let pixels = Tensor::f_from_slice(&bytes).unwrap().view([2, 16, 16, 3]);
        let here = normalised_here(&bytes, 2, 16).unwrap();
        assert_eq!(here.size(), [2, 3, 16, 16]);
        for values in [normalise(&pixels).unwrap(), here] {
            let values = Vec::<f32>::try_from(values.view([-1])).unwrap();
            for (at, byte) in bytes.iter().enumerate() {
                let (image, pixel, channel) = (at / 768, at % 768 / 3, at % 3);
                let expected = (f32::from(*byte) / 255.0 - MEAN[channel]) / STD[channel];
                assert_eq!(values[(image * 3 + channel) * 256 + pixel].to_bits(), expected.to_bits(), "{byte} in channel {channel}");
            }
        }
    }

    #[test]
    fn rows_of_different_lengths_become_a_rectangle_as_long_as_the_longest_of_them() {
        let row =
            |slot, tokens, images| Row { slot, pass: 0, sample: slot, used: slot, redrawn: None, tokens, images, tolerated: Vec::new() };
        let mut batch = Batch { tokens: vec![1, 2, 3, 4, 5, 6], images: 3, ..Batch::empty(0) };
        batch.rows = vec![row(2, 0..1, 0..0), row(4, 1..4, 0..2), row(5, 4..6, 2..3)];
        batch.pixels.extend((0..3).flat_map(|image| [image; 3]));
        // Samples 3 and on are of the second source.
        let order = |first| (first, Order::new(0, 0, Arc::from([4]), Pace::whole(8), 1, 4));
        let order = Orders::new(Mixture::by_samples(&[1, 1]), vec!["a".to_owned(), "b".to_owned()], vec![order(0), order(3)]);
        let target = Target { image_size: 1, cap: Some(2), device: Device::Cpu, order: &order };
        let found = micro_batches(&batch, 0..8, target).unwrap();
        assert_eq!(found.iter().map(|part| part.sources.as_slice()).collect::<Vec<_>>(), [&[0][..], &[1, 1]]);
        let tokens = |part: &MicroBatch| (part.tokens.size(), Vec::<i64>::try_from(part.tokens.view([-1])).unwrap());
        // Three rows at most two at a time: one, then two.
        assert_eq!(tokens(&found[0]), (vec![1, 1], vec![1]));
        assert_eq!(tokens(&found[1]), (vec![2, 3], vec![2, 3, 4, 5, 6, 0]));
        assert_eq!((found[0].images.size(), found[1].images.size()), (vec![0, 3, 1, 1], vec![3, 3, 1, 1]));
        assert_eq!((found[1].slots.as_slice(), found[1].image_rows.as_deref()), (&[4, 5][..], Some(&[0, 0, 1][..])));
    }
}
