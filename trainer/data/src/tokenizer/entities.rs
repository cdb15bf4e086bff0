//! HTML character references, by two rules: Python's `html.unescape`, and ftfy's more careful one.
//!
//! Comes in: text. Goes out: text with references replaced. The names are those of the HTML standard.

use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

use htmlize::ENTITIES;

use super::repair::WINDOWS_1252_CONTROLS;

/// Longest name that Python looks at, in characters, the closing semicolon not counted.
const LONGEST_PYTHON_NAME: usize = 32;
/// Longest reference that ftfy looks at, in characters, without `&`, `#` and the semicolon.
const LONGEST_FTFY_NAME: usize = 24;
/// Levels of nested references to `&` that are resolved one a turn, as ftfy does it: which turn resolves what can matter where
/// mojibake is around. Real captions have a handful of levels; this many turns take next to no time.
const TAKEN_ONE_BY_ONE: usize = 64;

/// All-capitals names that ftfy adds: those of lower-case names with a semicolon for which `html.unescape` does nothing.
static CAPITALS: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    let mut capitals = HashMap::new();
    for (name, text) in &ENTITIES {
        let (Ok(name), Ok(text)) = (str::from_utf8(name), str::from_utf8(text)) else { continue };
        let reference = name.to_ascii_uppercase();
        if name.ends_with(';') && *name == name.to_ascii_lowercase() && unescape(&reference) == reference {
            capitals.insert(reference, text.to_uppercase());
        }
    }
    capitals
});

/// `html.unescape` of Python: numbers and names, with and without semicolon, the longest known name first.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    replace(text, |rest| {
        let body = &rest[1..];
        if let Some((number, length)) = number_reference(body) {
            return Some((Replacement::of_number(number), 1 + length));
        }
        let name_length = body
            .char_indices()
            .take(LONGEST_PYTHON_NAME)
            .take_while(|(_, char)| !matches!(char, '\t' | '\n' | '\x0C' | ' ' | '<' | '&' | '#' | ';'))
            .map(|(index, char)| index + char.len_utf8())
            .last()?;
        let closed = body[name_length..].starts_with(';');
        let end = 1 + name_length + usize::from(closed);
        if let Some(value) = named(&rest[..end]) {
            return Some((Replacement::Text(value), end));
        }
        // A known name followed by more: the longest one of at least two characters wins, the rest stays.
        let prefixes = rest[..end].char_indices().map(|(index, _)| index).filter(|index| *index >= 3);
        prefixes.rev().find_map(|cut| named(&rest[..cut]).map(|value| (Replacement::Text(value), cut)))
    })
}

/// `ftfy.fixes.unescape_html`: only references that end in a semicolon, and the all-capitals names.
pub(super) fn unescape_closed(text: &str) -> Cow<'_, str> {
    replace(text, |rest| {
        let digits_from = if rest[1..].starts_with('#') { 2 } else { 1 };
        let length = rest[digits_from..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        if !(1..=LONGEST_FTFY_NAME).contains(&length) || !rest[digits_from + length..].starts_with(';') {
            return None;
        }
        let end = digits_from + length + 1;
        let reference = &rest[..end];
        if digits_from == 1 {
            let value = named(reference).or_else(|| CAPITALS.get(reference).map(String::as_str))?;
            return Some((Replacement::Text(value), end + if value == "&" { nested_ampersands(&rest[end..]) } else { 0 }));
        }
        // The whole reference has to be the number; one that stands for a semicolon itself is left alone, as ftfy leaves it.
        let (number, used) = number_reference(&rest[1..])?;
        let value = Replacement::of_number(number);
        (1 + used == end && value != Replacement::Char(';')).then_some((value, end))
    })
}

/// Bytes of the references to `&` that come to light, one by one, when an `&` stands before `rest` (`amp;amp;` is two), less
/// those of the last [`TAKEN_ONE_BY_ONE`].
///
/// ftfy resolves one level a turn and turns until nothing changes, so a caption of thousands of levels would take minutes.
fn nested_ampersands(rest: &str) -> usize {
    const FORMS: [&str; 3] = ["amp;", "AMP;", "#38;"];
    let mut inner = rest;
    let mut levels = 0;
    while let Some(after) = FORMS.iter().find_map(|form| inner.strip_prefix(form)) {
        inner = after;
        levels += 1;
    }
    if levels <= TAKEN_ONE_BY_ONE { 0 } else { (levels - TAKEN_ONE_BY_ONE) * FORMS[0].len() }
}

/// What a reference stands for.
#[derive(Clone, Copy, PartialEq)]
enum Replacement {
    Text(&'static str),
    Char(char),
    Nothing,
}

impl Replacement {
    /// The character of a number, by Python's table of exceptions.
    fn of_number(number: u32) -> Self {
        match number {
            0 => Self::Char('\u{FFFD}'),
            0x80..=0x9F => Self::Char(WINDOWS_1252_CONTROLS[(number - 0x80) as usize]),
            0x01..=0x08 | 0x0B | 0x0E..=0x1F | 0x7F | 0xFDD0..=0xFDEF => Self::Nothing,
            _ if number <= 0x0010_FFFF && number & 0xFFFE == 0xFFFE => Self::Nothing,
            _ => Self::Char(char::from_u32(number).unwrap_or('\u{FFFD}')),
        }
    }
}

/// `#123;`, `#x1F;` with or without the semicolon: the number (saturating) and the bytes used.
fn number_reference(body: &str) -> Option<(u32, usize)> {
    let digits = body.strip_prefix('#')?;
    let (digits, radix, prefix) = match digits.strip_prefix(['x', 'X']) {
        Some(hexadecimal) => (hexadecimal, 16, 2),
        None => (digits, 10, 1),
    };
    let length = digits.bytes().take_while(|byte| char::from(*byte).is_digit(radix)).count();
    if length == 0 {
        return None;
    }
    let number = digits[..length]
        .chars()
        .filter_map(|char| char.to_digit(radix))
        .fold(0u32, |number, digit| number.saturating_mul(radix).saturating_add(digit));
    Some((number, prefix + length + usize::from(digits[length..].starts_with(';'))))
}

/// The text of a named reference, `&` and any semicolon included in the name.
fn named(reference: &str) -> Option<&'static str> {
    ENTITIES.get(reference.as_bytes()).and_then(|text| str::from_utf8(text).ok())
}

/// Calls `decide` at every `&`; it gives the replacement and the bytes it replaces, or `None` to keep the `&`.
fn replace(text: &str, decide: impl Fn(&str) -> Option<(Replacement, usize)>) -> Cow<'_, str> {
    let mut out = String::new();
    let mut kept_from = 0;
    let mut search_from = 0;
    while let Some(found) = text[search_from..].find('&') {
        let at = search_from + found;
        let Some((replacement, length)) = decide(&text[at..]) else {
            search_from = at + 1;
            continue;
        };
        out.push_str(&text[kept_from..at]);
        match replacement {
            Replacement::Text(value) => out.push_str(value),
            Replacement::Char(value) => out.push(value),
            Replacement::Nothing => {}
        }
        kept_from = at + length;
        search_from = kept_from;
    }
    if kept_from == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[kept_from..]);
    Cow::Owned(out)
}
