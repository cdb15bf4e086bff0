//! Interleaved documents: texts and images in their order, and the one sequence that the model sees of them.
//!
//! Comes in: the parts of a document ([`Document`]) and, of the model's shape, how long a sequence may be and how many tokens an image takes
//! ([`crate::sequence::SequenceLimits`]). Goes out: a sequence, not padded, with the images that are in it ([`Composer`]).
//! It must not know how documents lie on disk or how images are read, and draws no random number: which images a document has and where they
//! stand is decided by the caller.

mod compose;

use std::ops::Range;

pub use compose::{Composer, Interleaved};

/// A part of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A text: these bytes of the document's texts ([`Document::text`]).
    Text(Range<usize>),
    /// An image: its number in whatever list of images the caller has.
    Image(u32),
}

/// The parts of a document in their order. Made to be cleared and filled again: the texts lie in one buffer that is kept, so that once it is
/// large enough no part allocates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    texts: String,
    parts: Vec<Part>,
}

impl Document {
    /// A document without parts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes all parts away and keeps the buffers.
    pub fn clear(&mut self) {
        self.texts.clear();
        self.parts.clear();
    }

    /// Appends a text as it was found.
    pub fn push_text(&mut self, text: &str) {
        let start = self.texts.len();
        self.texts.push_str(text);
        self.parts.push(Part::Text(start..self.texts.len()));
    }

    /// Appends an image by its number.
    pub fn push_image(&mut self, number: u32) {
        self.parts.push(Part::Image(number));
    }

    /// The parts in their order.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The text of a [`Part::Text`] of this document; empty for a range of another one.
    #[must_use]
    pub fn text(&self, range: &Range<usize>) -> &str {
        self.texts.get(range.clone()).unwrap_or_default()
    }

    /// Numbers of the images in their order.
    pub fn images(&self) -> impl Iterator<Item = u32> {
        self.parts.iter().filter_map(|part| match part {
            Part::Image(number) => Some(*number),
            Part::Text(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_in_their_order_and_a_cleared_document_is_filled_without_allocating() {
        let mut document = Document::new();
        let mut buffers = None;
        for _ in 0..3 {
            document.clear();
            for (text, image) in [("", 7), ("second", 0), ("déjà vu", 7)] {
                document.push_text(text);
                document.push_image(image);
            }
            let texts: Vec<&str> = document.parts().iter().map(|part| part_text(&document, part)).collect();
            assert_eq!(texts, ["", "[7]", "second", "[0]", "déjà vu", "[7]"]);
            assert_eq!(document.images().collect::<Vec<_>>(), [7, 0, 7]);
            let now = (document.texts.as_ptr(), document.parts.as_ptr());
            assert_eq!(*buffers.get_or_insert(now), now);
        }
        document.clear();
        assert_eq!(document, Document::new());
    }

    fn part_text<'a>(document: &'a Document, part: &Part) -> &'a str {
        match part {
            Part::Text(range) => document.text(range),
            Part::Image(7) => "[7]",
            Part::Image(_) => "[0]",
        }
    }

    #[test]
    fn a_range_of_another_document_is_an_empty_text() {
        let mut document = Document::new();
        document.push_text("é");
        assert_eq!((document.text(&(0..9)), document.text(&(1..2))), ("", ""));
    }
}
