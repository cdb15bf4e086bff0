//! The tokens of a sample: caption and image as one sequence of ids.
//!
//! Comes in: the ids of a caption ([`crate::tokenizer::Tokenizer::encode`]) and, of the model's shape, how long a sequence may be
//! and how many tokens an image takes. Goes out: one sequence, not padded; padding to the right is the batch's matter.
//! It must not know images, batches or randomness: which side the image stands on is decided by the caller.

use lcl_trainer_config::{Field, ModelShape, SpecialTokens};

/// Tokens of a pair beside caption and image that the caption's cut leaves room for. A pair has three; the reference cuts
/// to context − N − 4, and the positions of its tokens depend on it.
const PAIR_RESERVE: usize = 4;
/// `<start_of_text>` and `<end_of_text>` around a caption on its own.
const CAPTION_RESERVE: usize = 2;

/// A shape in which no sequence can be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceLimitsError {
    /// The image alone fills the context.
    #[error(
        "{} is {context_length}, but an image takes {image_tokens} tokens and a pair {PAIR_RESERVE} more: \
         raise the context to at least {}, or make images smaller or patches larger",
        Field("model.shape.text.contextLength"),
        image_tokens + PAIR_RESERVE
    )]
    ContextTooShort {
        /// Longest sequence of the model.
        context_length: usize,
        /// Tokens of one image.
        image_tokens: usize,
    },
    /// A size is negative, or not a size at all.
    #[error("{} is {value}, but must be at least {minimum}", Field(field))]
    Size {
        /// Path of the field in the trainer's configuration.
        field: &'static str,
        /// Its value.
        value: i64,
        /// The least it may be.
        minimum: i64,
    },
}

/// What a sequence has to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceLimits {
    context_length: usize,
    image_tokens: usize,
    special: SpecialTokens,
}

impl SequenceLimits {
    /// Those of a model's sequences.
    pub fn new(shape: &ModelShape) -> Result<Self, SequenceLimitsError> {
        let image_size = size("model.shape.vision.imageSize", shape.vision.image_size, 1)?;
        let patch_size = size("model.shape.vision.patchSize", shape.vision.patch_size, 1)?;
        let context_length = size("model.shape.text.contextLength", shape.text.context_length, CAPTION_RESERVE as i64)?;
        let side = image_size / patch_size;
        let image_tokens = side.saturating_mul(side);
        if context_length < image_tokens.saturating_add(PAIR_RESERVE) {
            return Err(SequenceLimitsError::ContextTooShort { context_length, image_tokens });
        }
        Ok(Self { context_length, image_tokens, special: shape.special_tokens })
    }

    /// Longest sequence in tokens.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Placeholders of one image.
    #[must_use]
    pub fn image_tokens(&self) -> usize {
        self.image_tokens
    }

    /// Ids of the tokens that mark start, end and images.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// Most tokens of a caption beside an image.
    #[must_use]
    pub fn pair_caption_limit(&self) -> usize {
        self.context_length - self.image_tokens - PAIR_RESERVE
    }
}

fn size(field: &'static str, value: i64, minimum: i64) -> Result<usize, SequenceLimitsError> {
    let too_small = SequenceLimitsError::Size { field, value, minimum };
    if value < minimum { Err(too_small) } else { usize::try_from(value).map_err(|_| too_small) }
}

/// A caption and an image: `soi img×N eoi text eot` with the image first, else `sot text soi img×N eoi`.
///
/// The caption is cut to context − N − 4 tokens. The result has between N + 3 and context − 1 tokens.
#[must_use]
pub fn pair_sequence(caption: &[u32], image_first: bool, limits: &SequenceLimits) -> Vec<i64> {
    let mut sequence = Vec::new();
    append_pair(caption, image_first, limits, &mut sequence);
    sequence
}

/// As [`pair_sequence`], behind what is there.
pub(crate) fn append_pair(caption: &[u32], image_first: bool, limits: &SequenceLimits, sequence: &mut Vec<i64>) {
    let special = &limits.special;
    let text = cut(caption, limits.pair_caption_limit());
    let image = [special.start_of_image]
        .into_iter()
        .chain(std::iter::repeat_n(special.image_placeholder, limits.image_tokens))
        .chain([special.end_of_image]);
    sequence.reserve(limits.image_tokens + text.len() + PAIR_RESERVE);
    if image_first {
        sequence.extend(image.chain(text).chain([special.end_of_text]));
    } else {
        sequence.extend([special.start_of_text].into_iter().chain(text).chain(image));
    }
}

/// A caption on its own, `sot text eot`: the text side of the CLIP objective, and of retrieval with either objective.
///
/// The caption is cut so that `eot` still fits the context, as the reference's tokenizer cuts it.
#[must_use]
pub fn caption_sequence(caption: &[u32], limits: &SequenceLimits) -> Vec<i64> {
    let mut sequence = Vec::new();
    append_caption(caption, limits, &mut sequence);
    sequence
}

/// As [`caption_sequence`], behind what is there.
pub(crate) fn append_caption(caption: &[u32], limits: &SequenceLimits, sequence: &mut Vec<i64>) {
    let text = cut(caption, limits.context_length - CAPTION_RESERVE);
    let special = &limits.special;
    sequence.extend([special.start_of_text].into_iter().chain(text).chain([special.end_of_text]));
}

fn cut(caption: &[u32], limit: usize) -> impl ExactSizeIterator<Item = i64> + '_ {
    caption[..caption.len().min(limit)].iter().map(|id| i64::from(*id))
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::{TextShape, VisionShape};
    use proptest::prelude::*;

    use super::*;

    const SOT: i64 = 49_406;
    const EOT: i64 = 49_407;
    const IMAGE: i64 = 49_408;
    const SOI: i64 = 49_409;
    const EOI: i64 = 49_410;

    fn shape(image_size: i64, patch_size: i64, context_length: i64) -> ModelShape {
        ModelShape {
            vision: VisionShape { image_size, patch_size, width: 8, layers: 1, heads: 1 },
            text: TextShape { width: 8, layers: 1, heads: 1, context_length, vocab_size: 49_411 },
            embed_dim: 8,
            pool_heads: 1,
            special_tokens: SpecialTokens::CLIP,
        }
    }

    fn limits(context_length: i64) -> SequenceLimits {
        SequenceLimits::new(&shape(4, 2, context_length)).expect("four image tokens and the reserve fit")
    }

    #[test]
    fn a_short_pair_is_laid_out_in_either_order() {
        let limits = limits(16);
        assert_eq!(pair_sequence(&[1, 2], true, &limits), [SOI, IMAGE, IMAGE, IMAGE, IMAGE, EOI, 1, 2, EOT]);
        assert_eq!(pair_sequence(&[1, 2], false, &limits), [SOT, 1, 2, SOI, IMAGE, IMAGE, IMAGE, IMAGE, EOI]);
        assert_eq!(caption_sequence(&[1, 2], &limits), [SOT, 1, 2, EOT]);
    }

    #[test]
    fn a_long_caption_is_cut_to_the_context_less_the_image_and_four() {
        let caption: Vec<u32> = (1..100).collect();
        let limits = limits(16);
        assert_eq!(limits.pair_caption_limit(), 8);
        let first = pair_sequence(&caption, true, &limits);
        assert_eq!((first.len(), &first[6..14], first[14]), (15, &[1, 2, 3, 4, 5, 6, 7, 8][..], EOT));
        let last = pair_sequence(&caption, false, &limits);
        assert_eq!((last.len(), &last[1..9], last[9], last[14]), (15, &[1, 2, 3, 4, 5, 6, 7, 8][..], SOI, EOI));
        let alone = caption_sequence(&caption, &limits);
        assert_eq!((alone.len(), alone[0], alone[14], alone[15]), (16, SOT, 14, EOT));
    }

    #[test]
    fn a_context_without_room_for_image_and_marks_is_refused_by_name() {
        let error = SequenceLimits::new(&shape(4, 2, 7)).expect_err("seven positions hold four image tokens and three more");
        assert_eq!(error, SequenceLimitsError::ContextTooShort { context_length: 7, image_tokens: 4 });
        assert!(error.to_string().contains("model.shape.text.contextLength is 7") && error.to_string().contains("at least 8"), "{error}");
        let error = SequenceLimits::new(&shape(4, 0, 64)).expect_err("a patch has a size");
        assert_eq!(error.to_string(), "spec.model.shape.vision.patchSize is 0, but must be at least 1");
        assert_eq!(limits(8).pair_caption_limit(), 0);
    }

    proptest! {
        #[test]
        fn every_sequence_fits_its_context_and_keeps_the_captions_beginning(
            side in 1i64..5, extra in 0i64..40, image_first: bool, caption in prop::collection::vec(1u32..49_406, 0..80),
        ) {
            let limits = SequenceLimits::new(&shape(side * 3, 3, side * side + 4 + extra)).expect("the reserve fits");
            let sequence = pair_sequence(&caption, image_first, &limits);
            let count = |wanted: i64| sequence.iter().filter(|token| **token == wanted).count();
            prop_assert!(sequence.len() < limits.context_length());
            prop_assert_eq!((count(SOI), count(EOI), count(IMAGE)), (1, 1, limits.image_tokens()));
            prop_assert_eq!((count(SOT), count(EOT)), if image_first { (0, 1) } else { (1, 0) });
            let start = sequence.iter().position(|token| *token == SOI).expect("counted above");
            prop_assert!(sequence[start + 1..=start + limits.image_tokens()].iter().all(|token| *token == IMAGE));
            prop_assert_eq!(sequence[start + limits.image_tokens() + 1], EOI);
            prop_assert_eq!(start == 0, image_first);
            let kept: Vec<u32> = sequence.iter().filter(|token| **token < SOT).map(|token| *token as u32).collect();
            prop_assert_eq!(&kept[..], &caption[..caption.len().min(extra as usize)]);

            let alone = caption_sequence(&caption, &limits);
            prop_assert_eq!(alone.len(), (caption.len() + 2).min(limits.context_length()));
            prop_assert_eq!((alone.first(), alone.last()), (Some(&SOT), Some(&EOT)));
        }
    }
}
