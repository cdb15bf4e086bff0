//! Cuts cleaned text into the pieces that are merged separately.
//!
//! Comes in: lower-cased text. Goes out: pieces, in order. Its rules are the reference's pattern
//! `<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+`, matched without regard to case:
//! alternatives are tried in this order at each place, and what none matches is dropped.

use super::unicode::{Class, class};

/// Literals that are pieces wherever a piece may start, in the order in which they are tried.
const LITERALS: [&str; 9] = ["<start_of_text>", "<end_of_text>", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/// The pieces of `text`, from left to right.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let first = rest.chars().next()?;
            let length = match class(first) {
                Class::Dropped => {
                    rest = &rest[first.len_utf8()..];
                    continue;
                }
                Class::Letter => run(rest, Class::Letter),
                Class::Number => first.len_utf8(),
                Class::Other => literal(rest).unwrap_or_else(|| run(rest, Class::Other)),
            };
            let (piece, after) = rest.split_at(length);
            rest = after;
            return Some(piece);
        }
    })
}

/// Bytes of the longest prefix of `text` in which every character is of this class.
fn run(text: &str, wanted: Class) -> usize {
    text.char_indices().find(|(_, char)| class(*char) != wanted).map_or(text.len(), |(index, _)| index)
}

/// Bytes of the literal that `text` starts with.
fn literal(text: &str) -> Option<usize> {
    if !matches!(text.as_bytes().first(), Some(b'\'' | b'<')) {
        return None;
    }
    LITERALS.iter().find_map(|literal| {
        let mut rest = text.chars();
        // In lower-cased text only one other character matches without regard to case: the long s.
        let matches = literal.chars().all(|wanted| rest.next().is_some_and(|char| char == wanted || wanted == 's' && char == 'ſ'));
        matches.then(|| text.len() - rest.as_str().len())
    })
}
