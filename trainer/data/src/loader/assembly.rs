//! Putting prepared slots together to a batch.
//!
//! Comes in: what every slot of a step gave, and their pixels at the places of their slots. Goes out: the [`Batch`]. A pure function.

use std::sync::{Arc, Weak};

use crate::batch::{Batch, Images, Pool, Row, Skipped};

/// What one slot gives.
#[derive(Debug)]
pub(super) enum Prepared {
    /// A row with one image.
    Row(Row, Vec<i64>),
    /// Nothing.
    Skipped(Skipped),
}

/// Builds the batch of `step`. `slots` are in slot order; `pixels` holds `image_values` values for every slot, those of skipped ones unused.
pub(super) fn build_batch(step: u64, slots: Vec<Prepared>, mut pixels: Vec<f32>, image_values: usize, pool: &Arc<Pool>) -> Batch {
    let mut batch = Batch {
        step,
        rows: Vec::new(),
        skipped: Vec::new(),
        length: 0,
        tokens: Vec::new(),
        images: Images::new(Vec::new(), Weak::new()),
        image_count: 0,
    };
    let mut sequences = Vec::with_capacity(slots.len());
    for (place, slot) in slots.into_iter().enumerate() {
        match slot {
            Prepared::Row(row, tokens) => {
                // Close the gaps that skipped slots leave.
                if batch.image_count < place {
                    pixels.copy_within(place * image_values..(place + 1) * image_values, batch.image_count * image_values);
                }
                batch.image_count += 1;
                batch.rows.push(row);
                sequences.push(tokens);
            }
            Prepared::Skipped(skipped) => batch.skipped.push(skipped),
        }
    }
    pixels.truncate(batch.image_count * image_values);
    batch.images = Images::new(pixels, Arc::downgrade(pool));
    batch.length = sequences.iter().map(Vec::len).max().unwrap_or(0);
    batch.tokens.reserve_exact(sequences.len() * batch.length);
    for tokens in sequences {
        let padding = batch.length - tokens.len();
        batch.tokens.extend(tokens);
        batch.tokens.extend(std::iter::repeat_n(PADDING, padding));
    }
    batch
}

/// Id of padding; labels of this id are not trained on (`lcl.md` sections 2 and 3 of the design).
const PADDING: i64 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::SkipCause;

    #[test]
    fn skipped_slots_leave_no_gap_and_short_rows_are_padded() {
        let row = |slot| Row { slot, pass: 0, sample: slot + 10, images: 1, tolerated: None };
        let skipped = |slot| Skipped { slot, pass: 0, sample: slot + 10, cause: SkipCause::NoImage };
        let slots = vec![
            Prepared::Skipped(skipped(4)),
            Prepared::Row(row(5), vec![1, 2]),
            Prepared::Skipped(skipped(6)),
            Prepared::Row(row(7), vec![3, 4, 5]),
        ];
        let pixels = vec![0.0, 0.0, 5.0, 5.5, 0.0, 0.0, 7.0, 7.5];
        let batch = build_batch(9, slots, pixels, 2, &Arc::new(Pool::new(1)));
        assert_eq!((batch.step, batch.image_count, batch.length), (9, 2, 3));
        assert_eq!(batch.rows, [row(5), row(7)]);
        assert_eq!(batch.skipped, [skipped(4), skipped(6)]);
        assert_eq!(batch.tokens, [1, 2, 0, 3, 4, 5]);
        assert_eq!(*batch.images, [5.0, 5.5, 7.0, 7.5]);
    }

    #[test]
    fn a_step_without_any_sample_is_an_empty_batch() {
        let skipped = Skipped { slot: 0, pass: 1, sample: 2, cause: SkipCause::NoCaption };
        let batch = build_batch(0, vec![Prepared::Skipped(skipped)], vec![1.0], 1, &Arc::new(Pool::new(1)));
        assert_eq!((batch.rows.len(), batch.length, batch.tokens.len(), batch.images.len(), batch.image_count), (0, 0, 0, 0, 0));
    }

    #[test]
    fn memory_of_dropped_images_is_used_again_up_to_the_limit() {
        let pool = Arc::new(Pool::new(1));
        let batch = |values: Vec<f32>| build_batch(0, Vec::new(), values, 1, &pool);
        let (first, second) = (batch(Vec::with_capacity(1000)), batch(Vec::with_capacity(2000)));
        drop(first);
        drop(second);
        assert_eq!(pool.take(3).capacity(), 1000);
        assert_eq!(pool.take(3), [0.0; 3]);
    }
}
