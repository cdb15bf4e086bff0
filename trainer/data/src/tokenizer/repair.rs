//! Repairs text as `ftfy.fix_text` 6.3.1 does with its default settings.
//!
//! Comes in: a caption as it was found. Goes out: the same text with mojibake decoded, entities and terminal escapes resolved,
//! ligatures, widths, quotes and line breaks made plain, control characters removed, in normal form C.
//! It must not do more or other than ftfy: the token ids of the reference depend on it, odd corners included.
//! Rust's strings hold no surrogates, so ftfy's step for them has nothing to do here.

mod badness;
mod charmap;
mod encoding;
mod utf8_variants;

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};

pub(super) use charmap::WINDOWS_1252_CONTROLS;

use super::{entities, unicode};

/// Longest segment that is repaired at once, in characters (ftfy's `max_decode_length`).
const LONGEST_SEGMENT: usize = 1_000_000;
/// U+3000, which is a full-width space though it is not in the full-width block.
const IDEOGRAPHIC_SPACE: char = '\u{3000}';

/// As in ftfy, digits of every script count.
static TERMINAL_ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\x1B\[[\d;]*[a-zA-Z]").unwrap_or_else(|error| unreachable!("the pattern is fixed: {error}")));

/// `ftfy.fix_text(text)`.
pub(super) fn fix_text(text: &str) -> Cow<'_, str> {
    if needs_nothing(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut unescapes = true;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let cut = rest.char_indices().nth(LONGEST_SEGMENT).map_or(rest.len(), |(index, _)| index);
            let (segment, after) = rest.split_at(cut);
            // A literal `<` says that this is HTML, whose entities are meant; that holds for the rest of the text too.
            unescapes &= !segment.contains('<');
            out.push_str(&fix_segment(segment, unescapes));
            rest = after;
        }
    }
    Cow::Owned(out)
}

/// Whether no step of ftfy can change `text`: plain ASCII without control characters, and without entities, which end in a
/// semicolon for ftfy.
fn needs_nothing(text: &str) -> bool {
    let plain = |byte| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | 0x0C);
    text.bytes().all(plain) && !(text.contains('&') && text.contains(';'))
}

fn fix_segment(segment: &str, unescapes: bool) -> String {
    let mut text = segment.to_owned();
    loop {
        let mut fixed = if unescapes { entities::unescape_closed(&text) } else { Cow::Borrowed(text.as_str()) };
        then(&mut fixed, encoding::fix_encoding);
        then(&mut fixed, encoding::fix_c1_controls);
        then(&mut fixed, fix_characters);
        then(&mut fixed, fix_line_breaks);
        then(&mut fixed, remove_terminal_escapes);
        then(&mut fixed, remove_control_characters);
        then(&mut fixed, unicode::compose);
        if fixed == text {
            return text;
        }
        text = fixed.into_owned();
    }
}

/// Applies one more step, without a copy where it changes nothing.
fn then(text: &mut Cow<'_, str>, step: impl Fn(&str) -> Cow<'_, str>) {
    if let Cow::Owned(changed) = step(text) {
        *text = Cow::Owned(changed);
    }
}

/// Replaces characters one by one; `None` keeps a character.
fn translate(text: &str, replacement: impl Fn(char) -> Option<&'static str>) -> Cow<'_, str> {
    let mut out = String::new();
    let mut kept_from = 0;
    for (at, char) in text.char_indices() {
        if let Some(replacement) = replacement(char) {
            out.push_str(&text[kept_from..at]);
            out.push_str(replacement);
            kept_from = at + char.len_utf8();
        }
    }
    if kept_from == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[kept_from..]);
    Cow::Owned(out)
}

/// Latin ligatures, then character widths, then quotes: three steps in ftfy, one character at a time in each.
fn fix_characters(text: &str) -> Cow<'_, str> {
    let mut text = translate(text, ligature);
    then(&mut text, fix_width);
    then(&mut text, |text| {
        translate(text, |char| match char {
            'ʼ' | '\u{2018}'..='\u{201B}' => Some("'"),
            '\u{201C}'..='\u{201F}' => Some("\""),
            _ => None,
        })
    });
    text
}

/// Ligatures and digraphs of Latin letters that are there for typography or for old encodings.
fn ligature(char: char) -> Option<&'static str> {
    Some(match char {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Full-width and half-width forms become the forms of usual width, one character at a time.
fn fix_width(text: &str) -> Cow<'_, str> {
    let has_width = |char: char| char == IDEOGRAPHIC_SPACE || ('\u{FF01}'..='\u{FFEF}').contains(&char);
    if !text.chars().any(has_width) {
        return Cow::Borrowed(text);
    }
    let normalizer = icu_normalizer::ComposingNormalizerBorrowed::new_nfkc();
    let mut out = String::with_capacity(text.len());
    let mut buffer = [0; 4];
    for char in text.chars() {
        match char {
            IDEOGRAPHIC_SPACE => out.push(' '),
            _ if has_width(char) => out.push_str(&normalizer.normalize(char.encode_utf8(&mut buffer))),
            _ => out.push(char),
        }
    }
    Cow::Owned(out)
}

fn fix_line_breaks(text: &str) -> Cow<'_, str> {
    let is_break = |char| matches!(char, '\r' | '\u{2028}' | '\u{2029}' | '\u{85}');
    if !text.contains(is_break) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").replace(is_break, "\n"))
}

/// Removes `ESC [ digits and semicolons letter`.
fn remove_terminal_escapes(text: &str) -> Cow<'_, str> {
    if !text.contains('\x1B') {
        return Cow::Borrowed(text);
    }
    TERMINAL_ESCAPE.replace_all(text, |found: &Captures<'_>| {
        let escape = &found[0];
        // Digits that Python did not know are no digits.
        if escape.chars().any(unicode::is_unknown) { escape.to_owned() } else { String::new() }
    })
}

/// Removes characters without a displayed effect; C1 controls stay, as clues to what happened to the text.
fn remove_control_characters(text: &str) -> Cow<'_, str> {
    translate(text, |char| {
        let removed = matches!(char,
            '\0'..='\x08' | '\x0B' | '\x0E'..='\x1F' | '\x7F' | '\u{206A}'..='\u{206F}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFC}');
        removed.then_some("")
    })
}
