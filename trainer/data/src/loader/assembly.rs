//! Putting loaded slots together to a batch.
//!
//! Comes in: what every slot of a step gave. Goes out: the [`Batch`]. A pure function.

use crate::batch::{Batch, Buffer, RedrawCause, Row, Skipped, Tolerated};

/// What one slot gives.
#[derive(Debug)]
pub(super) enum Loaded {
    /// A row.
    Row(Content),
    /// Nothing.
    Skipped(Skipped),
}

/// A row by itself.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) slot: u64,
    pub(super) pass: u64,
    pub(super) sample: u64,
    pub(super) used: u64,
    pub(super) redrawn: Option<(RedrawCause, u32)>,
    pub(super) tokens: Buffer<i64>,
    /// `[images, S, S, 3]` bytes.
    pub(super) pixels: Buffer,
    pub(super) images: usize,
    pub(super) tolerated: Vec<Tolerated>,
}

/// Builds the batch of `step`. `slots` are in slot order, all of them there; `pixels` is the empty buffer that the batch gets.
pub(super) fn build_batch(step: u64, slots: Vec<Option<Loaded>>, pixels: Buffer) -> Batch {
    let mut batch = Batch { pixels, ..Batch::empty(step) };
    let (mut tokens, mut bytes) = (0, 0);
    for slot in slots.iter().flatten() {
        if let Loaded::Row(content) = slot {
            (tokens, bytes) = (tokens + content.tokens.len(), bytes + content.pixels.len());
        }
    }
    batch.rows.reserve_exact(slots.len());
    batch.tokens.reserve_exact(tokens);
    batch.pixels.reserve_exact(bytes);
    for slot in slots.into_iter().flatten() {
        match slot {
            Loaded::Row(content) => {
                let (first_token, first_image) = (batch.tokens.len(), batch.images);
                batch.tokens.extend_from_slice(&content.tokens);
                batch.pixels.extend_from_slice(&content.pixels);
                batch.images += content.images;
                batch.rows.push(Row {
                    slot: content.slot,
                    pass: content.pass,
                    sample: content.sample,
                    used: content.used,
                    redrawn: content.redrawn,
                    tokens: first_token..batch.tokens.len(),
                    images: first_image..batch.images,
                    tolerated: content.tolerated,
                });
            }
            Loaded::Skipped(skipped) => batch.skipped.push(skipped),
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Pool, SkipCause};

    #[test]
    fn rows_lie_one_behind_the_other_with_as_much_as_each_has() {
        let pool = Pool::new(4);
        let row = |slot, tokens: &[i64], bytes: &[u8], images| {
            let mut pixels = pool.take();
            pixels.extend_from_slice(bytes);
            let mut row_tokens = Buffer::default();
            row_tokens.extend_from_slice(tokens);
            Loaded::Row(Content {
                slot,
                pass: 0,
                sample: slot + 10,
                used: slot + 10,
                redrawn: None,
                tokens: row_tokens,
                pixels,
                images,
                tolerated: Vec::new(),
            })
        };
        let skipped = |slot| Skipped { slot, pass: 0, sample: slot + 10, cause: SkipCause::NoImage };
        let slots = vec![
            Loaded::Skipped(skipped(4)),
            row(5, &[1, 2], &[50, 51], 1),
            Loaded::Skipped(skipped(6)),
            row(7, &[3, 4, 5], &[70, 71, 72, 73], 2),
        ];
        let batch = build_batch(9, slots.into_iter().map(Some).collect(), pool.take());
        assert_eq!((batch.step, batch.images, batch.rows.len()), (9, 3, 2));
        assert_eq!((batch.rows[0].slot, batch.tokens_of(&batch.rows[0]), &batch.rows[0].images), (5, &[1, 2][..], &(0..1)));
        assert_eq!((batch.rows[1].slot, batch.tokens_of(&batch.rows[1]), &batch.rows[1].images), (7, &[3, 4, 5][..], &(1..3)));
        assert_eq!(batch.skipped, [skipped(4), skipped(6)]);
        assert_eq!(*batch.pixels, [50, 51, 70, 71, 72, 73]);
    }

    #[test]
    fn a_step_without_any_sample_is_an_empty_batch() {
        let skipped = Skipped { slot: 0, pass: 1, sample: 2, cause: SkipCause::NoCaption };
        let batch = build_batch(0, vec![Some(Loaded::Skipped(skipped))], Buffer::default());
        assert_eq!(batch, Batch { skipped: vec![skipped], ..Batch::empty(0) });
    }
}
