//! `evaluate generation`: how well a model predicts held-out captions, each after its own image and after another one.
//!
//! Comes in: a trained model and pairs it was not trained on. Goes out: a [`Generation`]: mean losses per token. The difference of the two is what
//! the model reads in images; what they have in common it knows of texts.
//!
//! A caption stands behind its image as it does in training: `soi img×N eoi text eot`, with `sot` before it when documents were among
//! the training data, all of which begin with it.

use std::{collections::BTreeMap, fmt::Write};

use lcl_data::{
    dataset::Reading,
    image::{ImageTransform, Scratch},
    sequence::pair_sequence,
    tokenizer::Tokenizer,
};
use lcl_torch::{Learner, MicroBatch, Tensor};
use lcl_trainer_config::Objective;
use serde::{Deserialize, Serialize};

use crate::evaluation::evaluate::{BATCH, EvaluateError, EvaluateOptions, Opened, open};

/// The losses, as printed with `--output json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// What was measured, for people.
    pub name: String,
    /// Steps of the checkpoint.
    pub completed_steps: u64,
    /// Captions that were predicted.
    pub captions: u64,
    /// Their tokens, with the end of each.
    pub tokens: u64,
    /// Mean cross-entropy of a token after the caption's own image, in nats.
    pub own_image: f64,
    /// The same after an image of another caption; absent when all captions are the same.
    pub other_image: Option<f64>,
    /// Samples that could not be used.
    pub skipped: u64,
}

/// Pairs that are predicted at once.
#[derive(Default)]
struct Pairs {
    captions: Vec<String>,
    sequences: Vec<Vec<i64>>,
    /// One image behind the other.
    pixels: Vec<f32>,
}

/// A sum of losses and of how many tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    loss: f64,
    tokens: u64,
}

impl Sum {
    fn add(&mut self, (loss, tokens): (f64, u64)) {
        self.loss += loss;
        self.tokens += tokens;
    }

    fn mean(self) -> Option<f64> {
        (self.tokens > 0).then(|| self.loss / self.tokens as f64)
    }
}

/// Measures the generation loss of all usable pairs of the shards.
pub fn generation(options: &EvaluateOptions) -> Result<Generation, EvaluateError> {
    let Opened { trained, learner, dataset, transform, limits } = open(options)?;
    if trained.config.model.objective == Objective::Clip {
        return Err(EvaluateError::NoGeneration);
    }
    let begin = trained.config.data.source.has_documents().then_some(limits.special_tokens().start_of_text);
    let (tokenizer, mut scratch, mut causes) = (Tokenizer::clip(), Scratch::new(), BTreeMap::<String, u64>::new());
    let (mut pairs, mut own, mut other, mut captions) = (Pairs::default(), Sum::default(), Sum::default(), 0);
    let total = dataset.samples_per_pass();
    for sample in 0..total {
        let skipped = match dataset.read(sample)? {
            Reading::Sample(pair) => {
                let before = pairs.pixels.len();
                pairs.pixels.resize(before + transform.output_len(), 0.0);
                match transform.evaluate(pair.image(), &mut scratch, pairs.pixels.get_mut(before..).unwrap_or_default()) {
                    Ok(_) => {
                        let pair_tokens = pair_sequence(&tokenizer.encode(&pair.caption), true, &limits);
                        pairs.sequences.push(begin.into_iter().chain(pair_tokens).collect());
                        pairs.captions.push(pair.caption);
                        None
                    }
                    Err(error) => {
                        pairs.pixels.truncate(before);
                        Some(error.cause())
                    }
                }
            }
            Reading::Skipped(cause) => Some(cause),
        };
        if let Some(cause) = skipped {
            *causes.entry(cause.to_string()).or_default() += 1;
        }
        if pairs.captions.len() == BATCH || (sample + 1 == total && !pairs.captions.is_empty()) {
            captions += pairs.captions.len() as u64;
            own.add(pairs.loss(&learner, &transform, Some)?);
            other.add(pairs.loss(&learner, &transform, |row| pairs.other(row))?);
            pairs = Pairs::default();
        }
    }
    let Some(own_image) = own.mean() else { return Err(EvaluateError::NoSample { samples: total, causes }) };
    Ok(Generation {
        name: options.name.clone(),
        completed_steps: trained.restored.id.step,
        captions,
        tokens: own.tokens,
        own_image,
        other_image: other.mean(),
        skipped: causes.values().sum(),
    })
}

impl Pairs {
    /// Sum and number of the captions' losses, each after the image of the pair that `image_of` names; those for which it names none are left out.
    fn loss(
        &self,
        learner: &Learner,
        transform: &ImageTransform,
        image_of: impl Fn(usize) -> Option<usize>,
    ) -> Result<(f64, u64), EvaluateError> {
        let length = self.sequences.iter().map(Vec::len).max().unwrap_or(0);
        let (mut ids, mut pixels, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let values = transform.output_len();
        for (pair, sequence) in self.sequences.iter().enumerate() {
            let Some(image) = image_of(pair).and_then(|image| self.pixels.get(image * values..(image + 1) * values)) else { continue };
            ids.extend(sequence.iter().copied().chain(std::iter::repeat_n(0, length - sequence.len())));
            pixels.extend_from_slice(image);
            slots.push(slots.len() as u64);
        }
        if slots.is_empty() {
            return Ok((0.0, 0));
        }
        let (count, side) = (slots.len() as i64, i64::from(transform.size));
        let tokens = Tensor::f_from_slice(&ids)?.f_view([count, length as i64])?;
        let images = Tensor::f_from_slice(&pixels)?.f_view([count, 3, side, side])?.f_to_device(learner.model().device())?;
        Ok(learner.generation_loss(&MicroBatch { tokens, images, slots, image_rows: None, sources: Vec::new() })?)
    }

    /// The next pair of another caption, the first behind the last.
    fn other(&self, row: usize) -> Option<usize> {
        let count = self.captions.len();
        (1..count).map(|step| (row + step) % count).find(|other| self.captions.get(*other) != self.captions.get(row))
    }
}

/// The losses for people.
#[must_use]
pub fn to_text(found: &Generation) -> String {
    let Generation { name, completed_steps, captions, tokens, own_image, other_image, skipped } = found;
    let mut text = format!("{name} after {completed_steps} steps: {captions} captions of {tokens} tokens");
    if *skipped > 0 {
        let _ = write!(text, ", {skipped} unusable samples left out");
    }
    let _ = write!(text, "\n  loss per token: {own_image:.3} after its own image");
    if let Some(other) = other_image {
        let _ = write!(text, ", {other:.3} after another one");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_image_is_one_of_another_caption() {
        let pairs =
            |captions: &[&str]| Pairs { captions: captions.iter().map(|caption| (*caption).to_owned()).collect(), ..Pairs::default() };
        let found = |captions: &[&str]| (0..captions.len()).map(|row| pairs(captions).other(row)).collect::<Vec<_>>();
        assert_eq!(found(&["a", "a", "b", "c"]), [Some(2), Some(2), Some(3), Some(0)]);
        assert_eq!(found(&["a", "a"]), [None, None]);
    }
}
