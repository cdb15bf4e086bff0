//! Character classes, lower case and normal form as the reference's Python has them.
//!
//! The tables are frozen: an id must depend neither on the Unicode version of a compiler nor on that of a crate.
//! For lower case and normal form the standard library and ICU are right for every character that Python's version of
//! Unicode knew; the characters it did not know yet are left as they are, and nothing combines across them.

use std::{borrow::Cow, sync::LazyLock};

use icu_normalizer::ComposingNormalizerBorrowed;

mod tables;

use tables::{LETTERS, NUMBERS, UNKNOWN};

/// What the reference's pattern takes a character for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// Anything else that is not white space.
    Other,
    /// In no piece: white space, and the iota subscript U+0345. Matched without regard to case, the negated class excludes
    /// it because its upper case is a letter, and `\p{L}` does not include it because it is a mark.
    Dropped,
}

/// Classes of the code points below this are looked up directly: the Basic Multilingual Plane.
const DIRECT: u32 = 0x1_0000;

/// Characters whose case properties changed after Python's version, none with another lower case, and one beside each that
/// still has its former properties: U+0295 had case, U+1171E was passed over like other marks.
const CHANGED: [(char, char); 2] = [('\u{295}', '\u{250}'), ('\u{1171E}', '\u{301}')];

static CLASSES: LazyLock<Box<[Class]>> = LazyLock::new(|| (0..DIRECT).map(search_class).collect());

/// Class of a character of cleaned text.
#[inline]
pub(super) fn class(char: char) -> Class {
    if char.is_ascii_lowercase() {
        return Class::Letter;
    }
    if char.is_ascii() {
        return ascii_class(char);
    }
    CLASSES.get(char as usize).copied().unwrap_or_else(|| search_class(char as u32))
}

#[inline]
fn ascii_class(char: char) -> Class {
    match char {
        'a'..='z' | 'A'..='Z' => Class::Letter,
        '0'..='9' => Class::Number,
        '\t'..='\r' | ' ' => Class::Dropped,
        _ => Class::Other,
    }
}

fn search_class(point: u32) -> Class {
    if contains(&LETTERS, point) {
        Class::Letter
    } else if contains(&NUMBERS, point) {
        Class::Number
    } else if point == 0x345 || is_pattern_space(point) {
        Class::Dropped
    } else {
        Class::Other
    }
}

/// `\s` of the `regex` module: the `White_Space` property.
fn is_pattern_space(point: u32) -> bool {
    matches!(point, 0x09..=0x0D | 0x20 | 0x85 | 0xA0 | 0x1680 | 0x2000..=0x200A | 0x2028 | 0x2029 | 0x202F | 0x205F | 0x3000)
}

/// `str.isspace()` of Python, by which `str.split()` and `\s` of its `re` module go: also the four ASCII separators.
pub(super) fn is_space(char: char) -> bool {
    matches!(char, '\u{1C}'..='\u{1F}') || is_pattern_space(char as u32)
}

/// `\w` of Python's `re` module.
pub(super) fn is_word(char: char) -> bool {
    if char.is_ascii() {
        return char.is_ascii_alphanumeric() || char == '_';
    }
    matches!(class(char), Class::Letter | Class::Number) && !is_unknown(char)
}

/// Whether Python's version of Unicode had no character here.
pub(super) fn is_unknown(char: char) -> bool {
    // The first code point without a character is U+0378.
    char >= '\u{378}' && contains(&UNKNOWN, char as u32)
}

fn contains(ranges: &[(u32, u32)], point: u32) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= point);
    after > 0 && point <= ranges[after - 1].1
}

/// `str.lower()`: the full mapping, with the final sigma.
pub(super) fn lower(text: &mut String) {
    if text.is_ascii() {
        text.make_ascii_lowercase();
    } else {
        *text = by_known_runs(text, |run| Cow::Owned(lower_known(run))).into_owned();
    }
}

/// Lower case of characters that Python knew. Only at a sigma do the standard library's newer properties make a difference.
fn lower_known(run: &str) -> String {
    let stand_in = |char| CHANGED.iter().find(|(changed, _)| *changed == char).map(|(_, stand_in)| *stand_in);
    if !(run.contains('Σ') && run.chars().any(|char| stand_in(char).is_some())) {
        return run.to_lowercase();
    }
    let replaced: String = run.chars().map(|char| stand_in(char).unwrap_or(char)).collect();
    let lowered = replaced.to_lowercase();
    let mut lowered = lowered.chars();
    let mut out = String::with_capacity(run.len());
    for char in run.chars() {
        let forms = lowered.by_ref().take(char.to_lowercase().count());
        if stand_in(char).is_some() {
            out.extend(forms.map(|_| char));
        } else {
            out.extend(forms);
        }
    }
    out
}

/// `unicodedata.normalize("NFC", text)`.
pub(super) fn compose(text: &str) -> Cow<'_, str> {
    // Nothing below U+0300 is changed by composition.
    if text.chars().all(|char| char < '\u{300}') {
        return Cow::Borrowed(text);
    }
    by_known_runs(text, |run| ComposingNormalizerBorrowed::new_nfc().normalize(run))
}

/// Applies `change` to the stretches between characters that Python did not know, and keeps those characters.
/// They have no case, do not combine and are passed over by nothing, so each works like an end of the text.
fn by_known_runs<'text>(text: &'text str, change: impl Fn(&'text str) -> Cow<'text, str>) -> Cow<'text, str> {
    let mut unknown = text.char_indices().filter(|(_, char)| is_unknown(*char)).peekable();
    if unknown.peek().is_none() {
        return change(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (at, char) in unknown {
        out.push_str(&change(&text[from..at]));
        out.push(char);
        from = at + char.len_utf8();
    }
    out.push_str(&change(&text[from..]));
    Cow::Owned(out)
}
