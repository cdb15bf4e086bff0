//! What a step is computed on.

use std::collections::HashMap;

use tch::{Kind, TchError, Tensor};

use crate::layout::{BatchError, Layout, Rows};

/// Rows of the global batch that are computed at once.
#[derive(Debug)]
pub struct MicroBatch {
    /// Token ids, int64 `[rows, length]`, right-padded with 0; best on the host, where they are looked at. 0 rows are allowed.
    pub tokens: Tensor,
    /// Normalised images, float32 `[n, 3, S, S]`, in row order and then document order, on any device. 0 images are allowed.
    pub images: Tensor,
    /// Place of each row in the global batch of the step.
    pub slots: Vec<u64>,
    /// Row of each image, to be checked against the tokens; `None`: the tokens alone say it.
    pub image_rows: Option<Vec<u32>>,
    /// Source of each row, from 0, when losses are told apart by source ([`crate::Learner::set_sources`]); else empty.
    pub sources: Vec<u32>,
}

impl MicroBatch {
    /// The same rows; tensors share their memory.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            tokens: self.tokens.shallow_clone(),
            images: self.images.shallow_clone(),
            slots: self.slots.clone(),
            image_rows: self.image_rows.clone(),
            sources: self.sources.clone(),
        }
    }
}

/// Token ids on the host.
#[derive(Debug)]
pub(crate) struct HostTokens {
    values: Vec<i64>,
    rows: usize,
    length: usize,
}

impl HostTokens {
    /// Copies `[rows, length]` token ids to the host.
    pub(crate) fn read(tokens: &Tensor) -> Result<Self, BatchError> {
        let wrong = || BatchError::Tokens { found: describe(tokens) };
        let (rows, length) = tokens.size2().map_err(|_| wrong())?;
        if tokens.kind() != Kind::Int64 || (rows > 0 && length == 0) {
            return Err(wrong());
        }
        let mut values = vec![0i64; (rows * length) as usize];
        let count = values.len();
        tokens.f_copy_data(&mut values, count).map_err(|_| wrong())?;
        Ok(Self { values, rows: rows as usize, length: length as usize })
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows { tokens: &self.values, length: self.length }
    }

    pub(crate) fn count(&self) -> usize {
        self.rows
    }
}

/// Checks the shape of images and returns their number.
pub(crate) fn check_images(images: &Tensor, side: i64) -> Result<usize, BatchError> {
    match images.size().as_slice() {
        [count, 3, height, width] if *height == side && *width == side && images.is_floating_point() => Ok(*count as usize),
        _ => Err(BatchError::Images { found: describe(images), expected: format!("floating-point [n, 3, {side}, {side}]") }),
    }
}

fn describe(tensor: &Tensor) -> String {
    format!("{:?} {:?}", tensor.kind(), tensor.size())
}

/// Slot and place in its row of every image.
pub(crate) fn image_places(layout: &Layout, slots: &[u64]) -> Vec<(u64, u64)> {
    let mut seen: HashMap<usize, u64> = HashMap::new();
    let place = |&row: &usize| {
        let next = seen.entry(row).or_default();
        *next += 1;
        (slots.get(row).copied().unwrap_or_default(), *next - 1)
    };
    layout.image_rows.iter().map(place).collect()
}

/// `tensor` on the host as float32, for tests and tools.
#[doc(hidden)]
pub fn to_host(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let flat = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    Vec::<f32>::try_from(&flat)
}
