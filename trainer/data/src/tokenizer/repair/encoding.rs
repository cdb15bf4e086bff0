//! Undoes wrong decoding: text that was UTF-8 and was read in a single-byte encoding.
//!
//! Follows `ftfy.fix_encoding`: first the whole text through each single-byte encoding, then stretches that look like UTF-8
//! on their own, then Latin-1 that was meant as Windows-1252, then single C1 controls.

use std::{borrow::Cow, sync::LazyLock};

use regex::bytes::Regex;

use super::{
    badness::is_bad,
    charmap::{self, Charmap, WINDOWS_1252_CONTROLS},
    utf8_variants,
};

/// Characters that bytes C2..DF, the first of two, read as in some single-byte encoding.
const FIRST_OF_2: &str =
    "ÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßĀĂĆČĎĐĒĖĘĚĞĢĪİĶĹĻŁŃŅŇŌŐŘŚŞŠŢŪŮŰŲŹŻŽΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩΪΫάέήίВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ";
/// The same for bytes E0..EF, the first of three.
const FIRST_OF_3: &str = "àáâãäåæçèéêëìíîïāăąćčďēėęěģīįķĺļŕźΰαβγδεζηθικλμνξοабвгдежзийклмноп";
/// The same for bytes F0 and F3, the first of four; the others start code points that are not assigned.
const FIRST_OF_4: &str = "ðóđğšπσру";
/// What bytes 80..BF read as beyond U+0080..U+00BF, and what hardly stands for itself beside mojibake.
const CONTINUATION_STRICT: &str = "ÆØæøĄąĽľŁłŒœŖŗŚśŞşŠšŤťŸŹźŻżŽžƒˆˇ˘˛˜˝΄΅ΆΈΉΊΌΎΏЁЂЃЄЅІЇЈЉЊЋЌЎЏёђѓєѕіїјљњћќўџҐґ†‡‰‹›€№™";
/// The rest of what bytes 80..BF read as, with the space that no-break spaces are turned into.
const CONTINUATION_LOOSE: &str = " –—―‘’‚“”„•…";

/// UTF-8 sequences that would be valid with A0 in the place of a space, as far as likely characters come out.
static ALTERED: LazyLock<Regex> = LazyLock::new(|| {
    fixed_pattern(concat!(
        r"(?-u)[\xC2\xC3\xC5\xCE\xD0\xD9] ",
        r"|[\xE2\xE3] [\x80-\x84\x86-\x9F\xA1-\xBF]",
        r"|[\xE0-\xE3][\x80-\x84\x86-\x9F\xA1-\xBF] ",
        r"|\xF0 [\x80-\xBF][\x80-\xBF]",
        r"|\xF0[\x80-\xBF] [\x80-\xBF]",
        r"|\xF0[\x80-\xBF][\x80-\xBF] ",
    ))
});

/// UTF-8 and CESU-8 sequences with bytes lost: 1A for a lost byte, at most one of them a question mark.
static LOSSY: LazyLock<Regex> = LazyLock::new(|| {
    fixed_pattern(concat!(
        r"(?-u)[\xC2-\xDF]\x1A",
        r"|[\xC2-\xC3]\?",
        r"|\xED[\xA0-\xAF][\x1A?]\xED[\xB0-\xBF][\x1A?\x80-\xBF]",
        r"|\xED[\xA0-\xAF][\x1A?\x80-\xBF]\xED[\xB0-\xBF][\x1A?]",
        r"|[\xE0-\xEF][\x1A?][\x1A\x80-\xBF]",
        r"|[\xE0-\xEF][\x1A\x80-\xBF][\x1A?]",
        r"|[\xF0-\xF4][\x1A?][\x1A\x80-\xBF][\x1A\x80-\xBF]",
        r"|[\xF0-\xF4][\x1A\x80-\xBF][\x1A?][\x1A\x80-\xBF]",
        r"|[\xF0-\xF4][\x1A\x80-\xBF][\x1A\x80-\xBF][\x1A?]",
        r"|\x1A",
    ))
});

static FIRST_CHARACTERS: LazyLock<[Vec<char>; 3]> = LazyLock::new(|| [FIRST_OF_2, FIRST_OF_3, FIRST_OF_4].map(sorted));
static STRICT_CHARACTERS: LazyLock<Vec<char>> = LazyLock::new(|| sorted(CONTINUATION_STRICT));

fn fixed_pattern(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("the pattern is a constant of this module: {error}"))
}

fn sorted(characters: &str) -> Vec<char> {
    let mut characters: Vec<_> = characters.chars().collect();
    characters.sort_unstable();
    characters
}

/// `ftfy.fix_encoding(text)`: one step after the other until nothing changes.
pub(super) fn fix_encoding(text: &str) -> Cow<'_, str> {
    let mut fixed = Cow::Borrowed(text);
    while let Some(next) = fix_one_step(&fixed) {
        fixed = Cow::Owned(next);
    }
    fixed
}

/// One step; `None` when it changes nothing.
fn fix_one_step(text: &str) -> Option<String> {
    if !is_bad(text) {
        return None;
    }
    let mut is_latin_1 = false;
    for charmap in charmap::charmaps() {
        let Some(bytes) = charmap.encode(text) else { continue };
        is_latin_1 |= charmap.is_latin_1;
        if let Some(fixed) = decode(charmap, bytes) {
            return (fixed != text).then_some(fixed);
        }
    }
    if let Some(fixed) = decode_inconsistent_utf8(text) {
        return Some(fixed);
    }
    let as_windows_1252 = if is_latin_1 { latin_1_as_windows_1252(text) } else { None };
    as_windows_1252.or_else(|| match fix_c1_controls(text) {
        Cow::Owned(fixed) if fixed != text => Some(fixed),
        _ => None,
    })
}

/// The bytes as UTF-8, damaged sequences repaired first.
fn decode(charmap: &Charmap, mut bytes: Vec<u8>) -> Option<String> {
    if !charmap.is_macroman && ALTERED.is_match(&bytes) {
        bytes = restore_no_break_spaces(&bytes);
    }
    if charmap.is_sloppy {
        bytes = LOSSY.replace_all(&bytes, "\u{FFFD}".as_bytes()).into_owned();
    }
    // These two bytes occur in the variants of UTF-8 only, or begin Korean syllables, which both decoders read alike.
    if bytes.contains(&0xED) || bytes.contains(&0xC0) { utf8_variants::decode(&bytes) } else { String::from_utf8(bytes).ok() }
}

/// Puts A0 back where a space stands in its place. "Ã " alone is "à " with its own space, but in Portuguese contractions.
fn restore_no_break_spaces(bytes: &[u8]) -> Vec<u8> {
    const CONTRACTIONS: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    let mut spaced = Vec::with_capacity(bytes.len() + 8);
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        match after {
            [b' ', after @ ..] if *first == 0xC3 && !CONTRACTIONS.iter().any(|word| after.starts_with(word)) => {
                spaced.extend_from_slice(b"\xC3\xA0 ");
                rest = after;
            }
            _ => {
                spaced.push(*first);
                rest = after;
            }
        }
    }
    let restore =
        |found: &regex::bytes::Captures<'_>| -> Vec<u8> { found[0].iter().map(|byte| if *byte == b' ' { 0xA0 } else { *byte }).collect() };
    ALTERED.replace_all(&spaced, restore).into_owned()
}

/// Repairs stretches that look like UTF-8 read in a single-byte encoding, each by itself.
fn decode_inconsistent_utf8(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut previous = None;
    let mut at = 0;
    while let Some(char) = text[at..].chars().next() {
        let length = if previous.is_some_and(is_strict_continuation) { 0 } else { suspicious_run(&text[at..]) };
        let (kept, end) = if length == 0 { (char.len_utf8(), at + char.len_utf8()) } else { (length, at + length) };
        let part = &text[at..at + kept];
        // A stretch that is the whole text would be repaired for ever.
        if length > 0 && length < text.len() && is_bad(part) {
            out.push_str(&fix_encoding(part));
        } else {
            out.push_str(part);
        }
        previous = part.chars().next_back();
        at = end;
    }
    (out != text).then_some(out)
}

/// Bytes of the sequences that look like misread UTF-8 at the start of `text`, one directly after the other.
fn suspicious_run(text: &str) -> usize {
    let mut chars = text.chars();
    let mut length = 0;
    'sequences: while let Some(first) = chars.next() {
        for (characters, continuations) in FIRST_CHARACTERS.iter().zip(1..) {
            if characters.binary_search(&first).is_err() {
                continue;
            }
            let mut after = chars.clone();
            if (0..continuations).all(|_| after.next().is_some_and(is_continuation)) {
                length = text.len() - after.as_str().len();
                chars = after;
                continue 'sequences;
            }
        }
        break;
    }
    length
}

fn is_strict_continuation(char: char) -> bool {
    matches!(char, '\u{80}'..='\u{BF}') || !char.is_ascii() && STRICT_CHARACTERS.binary_search(&char).is_ok()
}

fn is_continuation(char: char) -> bool {
    is_strict_continuation(char) || CONTINUATION_LOOSE.contains(char)
}

/// Latin-1 with C1 controls was meant as Windows-1252, if that has all of them.
fn latin_1_as_windows_1252(text: &str) -> Option<String> {
    let unassigned = ['\u{81}', '\u{8D}', '\u{8F}', '\u{90}', '\u{9D}'];
    match fix_c1_controls(text) {
        Cow::Owned(fixed) if !text.contains(unassigned) => Some(fixed),
        _ => None,
    }
}

/// C1 controls read as Windows-1252, as web browsers do it; the five that it has not stay.
pub(super) fn fix_c1_controls(text: &str) -> Cow<'_, str> {
    let replacement = |char: char| (char as usize).checked_sub(0x80).and_then(|index| WINDOWS_1252_CONTROLS.get(index)).copied();
    if !text.chars().any(|char| replacement(char).is_some()) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|char| replacement(char).unwrap_or(char)).collect())
}
