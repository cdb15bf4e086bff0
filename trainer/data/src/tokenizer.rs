//! CLIP byte-pair encoding: text in, token ids out.
//!
//! Comes in: a caption as it was found. Goes out: the ids that the reference gives for it (`open_clip` 3.3.0,
//! `SimpleTokenizer.encode`, with ftfy 6.3.1), without the tokens that mark start, end and images: those are [`crate::sequence`]'s.
//! `tests/tokenizer.rs` proves the ids on a corpus recorded from the reference.
//! It must not read files, and its ids must not depend on the versions of the compiler or of a crate.

mod entities;
mod merge;
mod repair;
mod split;
mod unicode;
mod vocabulary;

use std::borrow::Cow;

use lcl_trainer_config::SpecialTokens;
use vocabulary::Vocabulary;

/// The CLIP tokenizer. Copying it copies a reference; every thread can use it at once.
#[derive(Clone, Copy)]
pub struct Tokenizer {
    vocabulary: &'static Vocabulary,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Entries of the vocabulary: ids below this. The three image tokens come after them.
    pub const ENTRIES: u32 = vocabulary::ENTRIES;

    /// The tokenizer with the published vocabulary. The first call takes about a millisecond, later ones nothing.
    #[must_use]
    pub fn clip() -> Self {
        Self { vocabulary: Vocabulary::clip() }
    }

    /// The ids of `text`, which is cleaned first (see [`clean`]).
    ///
    /// The literal texts `<start_of_text>` and `<end_of_text>` give those tokens' ids, as in the reference; the image tokens
    /// cannot be written in a text.
    #[must_use]
    pub fn encode(&self, text: &str) -> Vec<u32> {
        // Captions have about four bytes a token.
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.append(text, &mut String::new(), &mut ids);
        ids
    }

    /// Appends the ids of `text`; `cleaned` is a buffer. Text without characters beyond ASCII and without entities allocates nothing else.
    pub(crate) fn append(self, text: &str, cleaned: &mut String, ids: &mut Vec<u32>) {
        clean_into(text, cleaned);
        self.append_cleaned(cleaned, usize::MAX, ids);
    }

    /// Appends the ids of a text that is [`clean`] already to `ids`, until these are `enough`; the last piece may bring more than that.
    pub(crate) fn append_cleaned(self, cleaned: &str, enough: usize, ids: &mut Vec<u32>) {
        for piece in split::pieces(cleaned) {
            if ids.len() >= enough {
                return;
            }
            match piece {
                "<start_of_text>" => ids.push(vocabulary::START_OF_TEXT),
                "<end_of_text>" => ids.push(vocabulary::END_OF_TEXT),
                _ => merge::merge_word(self.vocabulary, piece.as_bytes(), ids),
            }
        }
    }

    /// The text of some ids, a space after every word (and every other piece), as the reference's `decode` gives it.
    ///
    /// Bytes that are no UTF-8 become U+FFFD; ids beyond the vocabulary are named as [`Tokenizer::describe`] names them.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for id in ids {
            match special_name(i64::from(*id)) {
                Some(name) => bytes.extend_from_slice(name.as_bytes()),
                None if *id >= Self::ENTRIES => bytes.extend_from_slice(unknown_name(i64::from(*id)).as_bytes()),
                None => {
                    if self.vocabulary.append_bytes(*id, &mut bytes) {
                        bytes.push(b' ');
                    }
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A name for every token of a sequence: a token's text, with `</w>` where it ends a word; `<start_of_img>` and the like;
    /// `<pad>` for the zeros at the end. Bytes that are no UTF-8 by themselves are written as `\xE2`.
    #[must_use]
    pub fn describe(&self, tokens: &[i64]) -> Vec<String> {
        let padded_from = tokens.iter().rposition(|token| *token != 0).map_or(0, |last| last + 1);
        tokens.iter().enumerate().map(|(index, token)| if index >= padded_from { "<pad>".to_owned() } else { self.name(*token) }).collect()
    }

    fn name(self, token: i64) -> String {
        if let Some(name) = special_name(token) {
            return name.to_owned();
        }
        let Some(id) = u32::try_from(token).ok().filter(|id| *id < Self::ENTRIES) else { return unknown_name(token) };
        let mut bytes = Vec::new();
        let ends_word = self.vocabulary.append_bytes(id, &mut bytes);
        let mut name = String::new();
        for chunk in bytes.utf8_chunks() {
            name.extend(
                chunk.valid().chars().map(|char| if char.is_control() { char.escape_default().to_string() } else { char.to_string() }),
            );
            name.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
        }
        if ends_word { name + "</w>" } else { name }
    }
}

/// Text as it is before it is cut into tokens: repaired as ftfy does, HTML-unescaped twice, white space squeezed, lower-cased.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    clean_into(text, &mut cleaned);
    cleaned
}

/// As [`clean`], into a buffer.
fn clean_into(text: &str, cleaned: &mut String) {
    let repaired = repair::fix_text(text);
    let once = entities::unescape(&repaired);
    let twice: Cow<'_, str> = entities::unescape(&once);
    cleaned.clear();
    for word in twice.split(unicode::is_space).filter(|word| !word.is_empty()) {
        if !cleaned.is_empty() {
            cleaned.push(' ');
        }
        cleaned.push_str(word);
    }
    unicode::lower(cleaned);
}

fn special_name(token: i64) -> Option<&'static str> {
    let special = SpecialTokens::CLIP;
    [
        (special.start_of_text, "<start_of_text>"),
        (special.end_of_text, "<end_of_text>"),
        (special.image_placeholder, "<img_placehold>"),
        (special.start_of_image, "<start_of_img>"),
        (special.end_of_image, "<end_of_img>"),
    ]
    .into_iter()
    .find_map(|(id, name)| (id == token).then_some(name))
}

fn unknown_name(token: i64) -> String {
    format!("<unknown {token}>")
}
