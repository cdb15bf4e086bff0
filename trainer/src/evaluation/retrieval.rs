//! Retrieval figures: among a gallery of image-text pairs, how often the right text is found for an image, and the other way round.
//!
//! Comes in: a matrix of similarities and the captions. Goes out: recalls beside what chance gives, and examples.
//! Two images with the same caption are both right for it. Of equal similarities the wrong candidates are counted first, so that a model
//! that maps everything to one point scores nothing.
//! Pure: no model, no file. [`crate::evaluation::evaluate`] brings those.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// The numbers k for which recall@k is given.
pub const RECALL_AT: [usize; 3] = [1, 5, 10];

/// One evaluation, as printed with `--output json` and read by `report`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// What was evaluated, for people.
    pub name: String,
    /// Steps of the checkpoint.
    pub completed_steps: u64,
    /// Pairs in the gallery.
    pub gallery: usize,
    /// Captions that differ from each other.
    pub distinct_captions: usize,
    /// Samples that could not be used.
    pub skipped: usize,
    /// An image given, its caption sought.
    pub image_to_text: Direction,
    /// A caption given, its image sought.
    pub text_to_image: Direction,
    /// Some images with what was found for them.
    pub examples: Vec<Example>,
}

/// Figures of one direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Direction {
    /// By ascending k.
    pub recalls: Vec<Recall>,
}

/// Recall@k.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Among how many of the best a right one has to be.
    pub k: usize,
    /// Part of the queries for which one was.
    pub recall: f64,
    /// The same for candidates in random order, equal captions considered.
    pub chance: f64,
}

/// An image and the captions found for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The image's own caption.
    pub caption: String,
    /// The image as the model saw it, for the page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_png_base64: Option<String>,
    /// Rank of the best right caption, from 1.
    pub rank: usize,
    /// The best captions, best first.
    pub retrieved: Vec<Retrieved>,
}

/// A caption that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieved {
    /// The caption.
    pub caption: String,
    /// Cosine similarity to the image.
    pub similarity: f32,
    /// Whether it is the image's own, or equal to it.
    pub correct: bool,
}

/// Similarities of every image with every caption of a gallery.
#[derive(Debug)]
pub struct Gallery<'a> {
    captions: &'a [String],
    /// `[image][caption]`
    similarities: &'a [f32],
    /// For every pair, the number of its caption among the distinct ones.
    groups: Vec<usize>,
    /// For every distinct caption, how many pairs have it.
    sizes: Vec<usize>,
}

/// The similarities are not one number for every image and caption.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{captions} captions need {} similarities, not {similarities}", captions * captions)]
pub struct WrongSize {
    /// Pairs.
    pub captions: usize,
    /// Numbers given.
    pub similarities: usize,
}

impl<'a> Gallery<'a> {
    /// `similarities` is `[images, captions]` row by row; image i belongs to caption i.
    pub fn new(captions: &'a [String], similarities: &'a [f32]) -> Result<Self, WrongSize> {
        if Some(similarities.len()) != captions.len().checked_mul(captions.len()) {
            return Err(WrongSize { captions: captions.len(), similarities: similarities.len() });
        }
        let mut numbers = HashMap::new();
        let mut sizes = Vec::new();
        let groups = captions
            .iter()
            .map(|caption| {
                let group = *numbers.entry(normalise(caption)).or_insert_with(|| {
                    sizes.push(0);
                    sizes.len() - 1
                });
                sizes[group] += 1;
                group
            })
            .collect();
        Ok(Self { captions, similarities, groups, sizes })
    }

    /// Captions that differ from each other.
    #[must_use]
    pub fn distinct_captions(&self) -> usize {
        self.sizes.len()
    }

    /// An image given, its caption sought.
    #[must_use]
    pub fn image_to_text(&self) -> Direction {
        self.direction(|image, caption| (image, caption))
    }

    /// A caption given, its image sought.
    #[must_use]
    pub fn text_to_image(&self) -> Direction {
        self.direction(|caption, image| (image, caption))
    }

    /// The `shown` best captions for an image. Equal captions are shown once.
    #[must_use]
    pub fn example(&self, image: usize, shown: usize) -> Option<Example> {
        let caption = self.captions.get(image)?.clone();
        let group = *self.groups.get(image)?;
        let mut order: Vec<usize> = (0..self.captions.len()).collect();
        order.sort_by(|a, b| self.similarity(image, *b).total_cmp(&self.similarity(image, *a)));
        let mut seen = std::collections::HashSet::new();
        let retrieved = order
            .into_iter()
            .filter(|candidate| seen.insert(self.groups[*candidate]))
            .take(shown)
            .map(|candidate| Retrieved {
                caption: self.captions[candidate].clone(),
                similarity: self.similarity(image, candidate),
                correct: self.groups[candidate] == group,
            })
            .collect();
        let rank = self.rank(image, |image, caption| (image, caption)) + 1;
        Some(Example { caption, image_png_base64: None, rank, retrieved })
    }

    fn similarity(&self, image: usize, caption: usize) -> f32 {
        self.similarities[image * self.captions.len() + caption]
    }

    /// Wrong candidates that are at least as similar to the query as the best right one. A similarity that is not a number is the worst.
    fn rank(&self, query: usize, cell: impl Fn(usize, usize) -> (usize, usize)) -> usize {
        let similarity = |candidate| {
            let (image, caption) = cell(query, candidate);
            let value = self.similarity(image, caption);
            if value.is_nan() { f32::NEG_INFINITY } else { value }
        };
        let right = |candidate: &usize| self.groups[*candidate] == self.groups[query];
        let best = (0..self.captions.len()).filter(right).map(similarity).fold(f32::NEG_INFINITY, f32::max);
        (0..self.captions.len()).filter(|candidate| !right(candidate) && similarity(*candidate) >= best).count()
    }

    fn direction(&self, cell: impl Fn(usize, usize) -> (usize, usize) + Copy) -> Direction {
        let count = self.captions.len();
        let ranks: Vec<usize> = (0..count).map(|query| self.rank(query, cell)).collect();
        let mean = |sum: f64| if count == 0 { 0.0 } else { sum / count as f64 };
        let recalls = RECALL_AT
            .into_iter()
            .map(|k| Recall {
                k,
                recall: mean(ranks.iter().filter(|rank| **rank < k).count() as f64),
                chance: mean(self.groups.iter().map(|group| chance(count, self.sizes[*group], k)).sum()),
            })
            .collect();
        Direction { recalls }
    }
}

/// Captions are equal when they differ at most in case and white space: the tokenizer makes the same tokens of them.
fn normalise(caption: &str) -> String {
    caption.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Probability that one of `right` candidates is among the first `k` of `count` in random order.
fn chance(count: usize, right: usize, k: usize) -> f64 {
    let none = (0..k.min(count)).fold(1.0, |none, drawn| {
        let wrong = (count - right).saturating_sub(drawn);
        none * wrong as f64 / (count - drawn) as f64
    });
    1.0 - none
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captions(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn recalls(direction: &Direction) -> Vec<f64> {
        direction.recalls.iter().map(|recall| recall.recall).collect()
    }

    fn check(names: &[&str], similarities: &[f32], image_to_text: [f64; 3], text_to_image: [f64; 3]) {
        let captions = captions(names);
        let gallery = Gallery::new(&captions, similarities).unwrap();
        assert_eq!(recalls(&gallery.image_to_text()), image_to_text, "{names:?} {similarities:?}");
        assert_eq!(recalls(&gallery.text_to_image()), text_to_image, "{names:?} {similarities:?}");
    }

    #[test]
    fn the_two_directions_read_rows_and_columns() {
        // Image 1 prefers caption 0; every caption prefers its own image.
        check(&["a", "b"], &[0.9, 0.1, 0.8, 0.5], [0.5, 1.0, 1.0], [1.0, 1.0, 1.0]);
    }

    #[test]
    fn an_equal_caption_is_a_hit() {
        // Image 0 prefers caption 1, which reads the same; image 2 prefers caption 0.
        check(&["A  cat", "a cat", "dog"], &[0.1, 0.9, 0.2, 0.1, 0.9, 0.2, 0.9, 0.1, 0.3], [2.0 / 3.0, 1.0, 1.0], [2.0 / 3.0, 1.0, 1.0]);
    }

    #[test]
    fn a_model_that_finds_everything_equal_scores_nothing() {
        let names: Vec<String> = (0..20).map(|index| format!("caption {index}")).collect();
        for value in [0.5, f32::NAN] {
            let similarities = vec![value; 400];
            let gallery = Gallery::new(&names, &similarities).unwrap();
            assert_eq!(recalls(&gallery.image_to_text()), [0.0, 0.0, 0.0]);
            assert_eq!(recalls(&gallery.text_to_image()), [0.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn chance_agrees_with_counting_every_order() {
        // 4 candidates, 2 right: none of the two first is right in 2·1 of 4·3 ordered pairs.
        assert!((chance(4, 2, 2) - (1.0 - 2.0 / 12.0)).abs() < 1e-12);
        assert!((chance(191, 1, 1) - 1.0 / 191.0).abs() < 1e-12);
        assert!((chance(191, 1, 10) - 10.0 / 191.0).abs() < 1e-12);
        assert!((chance(3, 1, 10) - 1.0).abs() < 1e-12);
        assert!((chance(3, 3, 1) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn an_example_names_the_best_captions_once() {
        let captions = captions(&["x", "x", "y"]);
        let similarities = [0.2, 0.3, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let example = Gallery::new(&captions, &similarities).unwrap().example(0, 5).unwrap();
        let found: Vec<(&str, bool)> = example.retrieved.iter().map(|found| (found.caption.as_str(), found.correct)).collect();
        assert_eq!(found, [("y", false), ("x", true)]);
        assert_eq!(example.rank, 2);
    }

    #[test]
    fn similarities_of_another_size_are_refused() {
        assert_eq!(Gallery::new(&captions(&["a"]), &[0.0; 2]).unwrap_err(), WrongSize { captions: 1, similarities: 2 });
    }
}
