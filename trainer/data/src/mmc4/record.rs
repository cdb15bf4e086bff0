//! What one line of a shard says.
//!
//! Comes in: the bytes of a line. Goes out: its sentences and images, in buffers that are kept from line to line. The similarity matrix, which is
//! most of a line, is stepped over without being read. It must not judge: which images are good enough is [`super::choose`]'s matter.

mod parse;

use std::ops::Range;

use memchr::{memchr3_iter, memmem};

use super::line::{BadLine, LineFault};

/// Most bytes of a document's sentences: far beyond any context (2,048 tokens are some 10 kB), and cleaned in a fraction of a second.
pub const TEXT_BYTES_LIMIT: usize = 4 << 20;

/// A document as it is published. Made to be filled again and again ([`Record::fill`]).
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Sentences, names and addresses, one behind the other.
    texts: String,
    sentences: Vec<Range<usize>>,
    images: Vec<ImageInfo>,
    url: Range<usize>,
    could_have_url_duplicate: bool,
    /// The line without its matrix.
    short: Vec<u8>,
}

/// An entry of `image_info`.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageInfo {
    name: Range<usize>,
    raw_url: Range<usize>,
    /// The sentence it belongs to; there is one of this number.
    pub matched_text_index: u32,
    /// How well it matches that sentence: a cosine similarity, as precise as it was written. Never NaN.
    pub matched_sim: f64,
    /// Faces that were found in it; `None` when that was not looked for, or none was found.
    pub face_detections: Option<u32>,
}

impl Record {
    /// A record that says nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over what `line` says, without its line break. After an error the record holds nothing that could be used.
    ///
    /// Of a field that is there twice the last one counts, as in the reference's Python.
    pub fn fill(&mut self, line: &[u8]) -> Result<(), BadLine> {
        let mut short = std::mem::take(&mut self.short);
        let line = if without_matrix(line, &mut short) { &short } else { line };
        let filled = match str::from_utf8(line) {
            Ok(line) => parse::parse(line, self),
            Err(_) => Err(BadLine::new(LineFault::NotUtf8)),
        };
        self.short = short;
        filled.and_then(|()| self.check())
    }

    /// What can be said only once the whole line is known: the images may come before the sentences.
    fn check(&self) -> Result<(), BadLine> {
        let lost = (0_u32..).zip(&self.images).find(|(_, info)| info.matched_text_index as usize >= self.sentences.len());
        if let Some((image, _)) = lost {
            return Err(BadLine { image: Some(image), ..BadLine::new(LineFault::NoSuchSentence) });
        }
        if self.sentences.iter().map(ExactSizeIterator::len).sum::<usize>() > TEXT_BYTES_LIMIT {
            return Err(BadLine::new(LineFault::TooMuchText));
        }
        Ok(())
    }

    /// The sentences in their order, as they were found; some may be empty.
    #[must_use]
    pub fn sentences(&self) -> impl ExactSizeIterator<Item = &str> {
        self.sentences.iter().map(|range| self.text(range))
    }

    /// The images in the order in which they are listed, which need not be that of their sentences.
    #[must_use]
    pub fn images(&self) -> &[ImageInfo] {
        &self.images
    }

    /// The file's name of one of [`Record::images`].
    #[must_use]
    pub fn image_name(&self, image: &ImageInfo) -> &str {
        self.text(&image.name)
    }

    /// Where one of [`Record::images`] was found; empty when that is not said.
    #[must_use]
    pub fn raw_url(&self, image: &ImageInfo) -> &str {
        self.text(&image.raw_url)
    }

    /// The page's address; empty when that is not said.
    #[must_use]
    pub fn url(&self) -> &str {
        self.text(&self.url)
    }

    /// Whether the page may be in the corpus more than once, as the publisher says.
    #[must_use]
    pub fn could_have_url_duplicate(&self) -> bool {
        self.could_have_url_duplicate
    }

    fn text(&self, range: &Range<usize>) -> &str {
        self.texts.get(range.clone()).unwrap_or_default()
    }
}

/// Puts the line with `null` for its similarity matrix into `short`; false when it has none, or one that does not look like numbers, so that the
/// whole line has to be read.
///
/// In JSON a quote within a string has a backslash before it, so what is found here is always a key, and never part of a text.
fn without_matrix(line: &[u8], short: &mut Vec<u8>) -> bool {
    const KEY: &[u8] = br#""similarity_matrix""#;
    short.clear();
    let matrix = memmem::find_iter(line, KEY).find_map(|key| {
        let value = after_space(line, key + KEY.len()).filter(|at| line.get(*at) == Some(&b':'))?;
        after_space(line, value + 1).filter(|at| line.get(*at) == Some(&b'['))
    });
    let Some(begin) = matrix else { return false };
    let Some(end) = end_of_array(line, begin) else { return false };
    let (Some(before), Some(after)) = (line.get(..begin), line.get(end..)) else { return false };
    short.extend_from_slice(before);
    short.extend_from_slice(b"null");
    short.extend_from_slice(after);
    true
}

/// The first place from `at` on that is no white space.
fn after_space(line: &[u8], at: usize) -> Option<usize> {
    line.get(at..)?.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\r')).map(|found| at + found)
}

/// The place after the array that begins at `begin`; `None` when it does not end or holds a string.
fn end_of_array(line: &[u8], begin: usize) -> Option<usize> {
    let rest = line.get(begin..)?;
    let mut depth = 0_usize;
    for at in memchr3_iter(b'[', b']', b'"', rest) {
        match rest.get(at) {
            Some(b'[') => depth += 1,
            Some(b']') => depth -= 1,
            _ => return None,
        }
        if depth == 0 {
            return Some(begin + at + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests;
