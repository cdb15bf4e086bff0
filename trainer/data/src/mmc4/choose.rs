//! Which images of a document are taken, and on which side of its sentence each stands.
//!
//! Comes in: a [`Record`], the [`Rules`] and random choices. Goes out: images by their number in the record's list, and a [`Document`].
//! Pure. Between [`choose`] and [`place`] the caller opens the files and leaves out those that cannot be read: nothing takes their place, neither
//! the next image nor another one of the sentence.

use std::cmp::Ordering;

use super::Record;
use crate::{
    cause::RedrawCause,
    document::Document,
    random::{SlotRandom, Stream},
};

/// How documents are made of records.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules {
    /// Least similarity of an image and its sentence. Compared in float64: the corpus holds float32 values, and float32's 0.24 is below 0.24.
    pub min_similarity: f64,
    /// Most images of a document.
    pub max_images: usize,
    /// Chance of an image to stand before its sentence rather than after it.
    pub before_probability: f64,
}

impl Default for Rules {
    /// The reference's rules.
    fn default() -> Self {
        Self { min_similarity: 0.24, max_images: 6, before_probability: 0.5 }
    }
}

/// The random choices of a document. Each has a number within the document, so that none depends on how many others there were.
pub trait Choices {
    /// Which of the `candidates`, two or more numbers of images in their order, stays on `sentence`. Gives an index into `candidates`.
    fn kept(&mut self, sentence: u32, candidates: &[u32]) -> usize;

    /// Whether an image, given by its number, stands before its sentence; the chance of that is `probability`.
    fn before(&mut self, image: u32, probability: f64) -> bool;
}

/// The choices of a slot: a pure function of the seed, the step, the slot and the attempt to fill it.
#[derive(Clone, Debug)]
pub struct SlotChoices {
    kept: SlotRandom,
    placement: SlotRandom,
}

impl SlotChoices {
    /// The choices for the document that is tried at `attempt`, from 0, to fill a slot.
    #[must_use]
    pub fn new(seed: u64, step: u64, slot: u64, attempt: u32) -> Self {
        let random = |stream| SlotRandom::of_attempt(seed, step, slot, stream, attempt);
        Self { kept: random(Stream::KeptImage), placement: random(Stream::Placement) }
    }
}

impl Choices for SlotChoices {
    fn kept(&mut self, sentence: u32, candidates: &[u32]) -> usize {
        self.kept.clone().at(u64::from(sentence)).below(candidates.len() as u64) as usize
    }

    fn before(&mut self, image: u32, probability: f64) -> bool {
        self.placement.clone().at(u64::from(image)).uniform() < probability
    }
}

/// Puts the images that the document takes into `chosen`, by their number in the record's list and in the order of their sentences.
///
/// Those that match their sentence well enough; of several on one sentence one at random; of what is left the first by sentence.
pub fn choose(record: &Record, rules: &Rules, choices: &mut impl Choices, chosen: &mut Vec<u32>) -> Result<(), RedrawCause> {
    chosen.clear();
    let images = record.images();
    let sentence = |image: u32| images.get(image as usize).map_or(0, |info| info.matched_text_index);
    let matching = (0_u32..).zip(images).filter(|(_, info)| info.matched_sim >= rules.min_similarity);
    chosen.extend(matching.map(|(image, _)| image));
    // No two are equal, so this is the stable order by sentence, without memory of its own.
    chosen.sort_unstable_by(|left, right| match sentence(*left).cmp(&sentence(*right)) {
        Ordering::Equal => left.cmp(right),
        order => order,
    });
    let (mut begin, mut count) = (0, 0);
    while count < rules.max_images
        && let Some(group) = chosen.get(begin..).and_then(|rest| rest.chunk_by(|left, right| sentence(*left) == sentence(*right)).next())
    {
        let (&first, length) = (group.first().unwrap_or(&0), group.len());
        let kept = if length > 1 { choices.kept(sentence(first), group) } else { 0 };
        let image = group.get(kept).copied().unwrap_or(first);
        // What is written here was read: no more groups than images are behind.
        if let Some(place) = chosen.get_mut(count) {
            *place = image;
        }
        begin += length;
        count += 1;
    }
    chosen.truncate(count);
    if chosen.is_empty() { Err(RedrawCause::NoImageAboveThreshold) } else { Ok(()) }
}

/// Fills `document` with the sentences of `record` and the images that can be read: `readable` holds those of [`choose`] that are left, in the
/// same order.
pub fn place(
    record: &Record,
    readable: &[u32],
    rules: &Rules,
    choices: &mut impl Choices,
    document: &mut Document,
) -> Result<(), RedrawCause> {
    document.clear();
    if readable.is_empty() {
        return Err(RedrawCause::NoImageReadable);
    }
    let mut images = readable.iter().copied().peekable();
    for (index, text) in (0_u32..).zip(record.sentences()) {
        let on_sentence = |image: &u32| record.images().get(*image as usize).is_some_and(|info| info.matched_text_index == index);
        let image = images.next_if(on_sentence);
        let before = image.is_some_and(|image| choices.before(image, rules.before_probability));
        match image {
            Some(image) if before => {
                document.push_image(image);
                document.push_text(text);
            }
            Some(image) => {
                document.push_text(text);
                document.push_image(image);
            }
            None => document.push_text(text),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
