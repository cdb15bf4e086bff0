//! From the parts of a document to its sequence, as the reference's reader of MMC4 lays it out.
//!
//! Comes in: a document and what its sequence has to fit. Goes out: tokens, images and where they begin. It keeps nothing between documents but buffers.
//!
//! The parts are joined with one space, an image being the text of its mark, and the whole is cleaned at once. That is not the same as cleaning
//! part by part: wrongly decoded text is repaired by what stands around it in its line, and HTML entities are left alone by the first of three
//! unescapings on a line with `<` and on all later ones, and every mark has a `<`. Only then the text is cut at the marks and tokenized.

use std::{borrow::Cow, collections::HashSet};

use super::{Document, Part};
use crate::{
    cause::RedrawCause,
    sequence::SequenceLimits,
    tokenizer::{Tokenizer, clean},
};

/// What stands for an image while a text is cleaned. The reference writes the placeholders and `<end_of_img>` after it; cleaning does not tell the
/// difference, as it looks at characters beyond ASCII and their neighbours, entities, and whether there is a `<`.
const MARK: &str = "<start_of_img>";

/// Makes sequences of documents. One for each thread: it keeps its buffers.
#[derive(Debug)]
pub struct Composer {
    tokenizer: Tokenizer,
    joined: String,
    ids: Vec<u32>,
    tokens: Vec<i64>,
    images: Vec<u32>,
    soi: Vec<usize>,
}

/// The sequence of a document, not padded: `sot … eot`, in which images are `soi img×N eoi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interleaved<'a> {
    /// At most as many as the context holds. Id 0 is a text's, never padding.
    pub tokens: &'a [i64],
    /// Numbers of the images that are in the sequence, in its order; at least one.
    pub images: &'a [u32],
    /// Where in `tokens` the `soi` of each of `images` is; never 0.
    pub soi: &'a [usize],
}

impl Composer {
    /// A composer that tokenizes with `tokenizer`.
    #[must_use]
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, joined: String::new(), ids: Vec::new(), tokens: Vec::new(), images: Vec::new(), soi: Vec::new() }
    }

    /// The sequence of `document`.
    ///
    /// What is longer than the context is cut, and the last position becomes `eot`. An image of which a placeholder would be cut off goes
    /// altogether: from its `soi` on there is one `eot`. One of which only `eoi` is cut off stays: `… soi img×N eot`.
    /// A text that spells a mark, before or after cleaning, is a text; the number of `soi` is always that of the images, and N times that the
    /// number of placeholders.
    pub fn compose(&mut self, document: &Document, limits: &SequenceLimits) -> Result<Interleaved<'_>, RedrawCause> {
        if document.images().next().is_none() {
            return Err(RedrawCause::NoImageFits);
        }
        self.lay_out(document, limits);
        self.end(limits);
        if self.images.is_empty() {
            return Err(RedrawCause::NoImageFits);
        }
        Ok(Interleaved { tokens: &self.tokens, images: &self.images, soi: &self.soi })
    }

    /// Everything but the end: `sot`, texts and images until the context is full or the document ends.
    fn lay_out(&mut self, document: &Document, limits: &SequenceLimits) {
        let (special, context) = (limits.special_tokens(), limits.context_length());
        let (cleaned, mark) = clean_with_marks(document, &mut self.joined);
        self.tokens.clear();
        self.images.clear();
        self.soi.clear();
        self.tokens.push(special.start_of_text);
        let mut texts = cleaned.split(mark.as_ref());
        self.append_text(texts.next().unwrap_or_default(), context);
        for (number, text) in document.images().zip(texts) {
            if self.tokens.len() >= context {
                return;
            }
            self.images.push(number);
            self.soi.push(self.tokens.len());
            self.tokens.push(special.start_of_image);
            self.tokens.extend(std::iter::repeat_n(special.image_placeholder, limits.image_tokens()));
            self.tokens.push(special.end_of_image);
            self.append_text(text, context);
        }
    }

    /// Appends the tokens of a cleaned text, until there are as many as the context holds.
    fn append_text(&mut self, text: &str, context: usize) {
        self.ids.clear();
        self.tokenizer.append_cleaned(text, context.saturating_sub(self.tokens.len()), &mut self.ids);
        self.tokens.extend(self.ids.iter().map(|id| i64::from(*id)));
    }

    /// Cuts at the context and ends with `eot`.
    fn end(&mut self, limits: &SequenceLimits) {
        // Positions before the one that `eot` has in a sequence that is cut.
        let content = limits.context_length() - 1;
        if self.tokens.len() > content {
            while let Some(begin) = self.soi.pop_if(|begin| *begin + limits.image_tokens() >= content) {
                self.images.pop();
                self.tokens.truncate(begin);
            }
            self.tokens.truncate(content);
        }
        self.tokens.push(limits.special_tokens().end_of_text);
    }
}

/// The cleaned text of a document and the mark that stands in it for every image, and for nothing else.
///
/// No text can take a mark away or change it: no step of cleaning changes `<`, `>`, `_`, digits or small letters, but in entities and after an
/// escape, and both end at a space. A text can bring one more mark, in plain or through entities. Then all is cleaned again with a mark that is
/// nowhere in what came out; what the texts become is the same with any mark.
fn clean_with_marks(document: &Document, joined: &mut String) -> (String, Cow<'static, str>) {
    let images = document.images().count();
    join(document, MARK, joined);
    let cleaned = clean(joined);
    if cleaned.matches(MARK).count() == images {
        return (cleaned, Cow::Borrowed(MARK));
    }
    let mark = free_mark(&cleaned);
    join(document, &mark, joined);
    let cleaned = clean(joined);
    debug_assert_eq!(cleaned.matches(&mark).count(), images);
    (cleaned, Cow::Owned(mark))
}

/// The parts with one space between them.
fn join(document: &Document, mark: &str, joined: &mut String) {
    joined.clear();
    for (index, part) in document.parts().iter().enumerate() {
        if index > 0 {
            joined.push(' ');
        }
        joined.push_str(match part {
            Part::Text(range) => document.text(range),
            Part::Image(_) => mark,
        });
    }
}

/// `<img0>`, or with the least number that `cleaned` does not have there.
fn free_mark(cleaned: &str) -> String {
    const BEGIN: &str = "<img";
    let number = |(at, _)| {
        let rest: &str = &cleaned[at + BEGIN.len()..];
        rest[..rest.bytes().take_while(u8::is_ascii_digit).count()].parse::<usize>().ok()
    };
    let taken: HashSet<usize> = cleaned.match_indices(BEGIN).filter_map(number).collect();
    // Of one number more than are taken, one is free.
    let free = (0..=taken.len()).find(|number| !taken.contains(number)).unwrap_or_default();
    format!("{BEGIN}{free}>")
}

#[cfg(test)]
mod tests;
