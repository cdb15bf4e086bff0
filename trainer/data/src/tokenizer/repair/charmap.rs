//! The single-byte encodings that UTF-8 is most often misread in, in the order in which they are tried.
//!
//! Goes out: text → the bytes it was misread from. The "sloppy" encodings also have the bytes that their standard leaves
//! unassigned (read as Latin-1), and byte 1A stands for a character that was lost (U+FFFD).

use std::sync::LazyLock;

use encoding_rs::{Encoding, ISO_8859_2, MACINTOSH, WINDOWS_1250, WINDOWS_1251, WINDOWS_1252, WINDOWS_1253, WINDOWS_1254, WINDOWS_1257};

/// Upper half of code page 437, the IBM PC's.
const CODE_PAGE_437: &str =
    "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{A0}";
/// Byte that stands for a lost character in the sloppy encodings.
pub(super) const LOST: u8 = 0x1A;
/// What Windows-1252 has at 0x80..=0x9F; its five unassigned bytes stand for themselves.
pub(in super::super) const WINDOWS_1252_CONTROLS: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}', '\u{90}', '‘', '’', '“', '”', '•', '–',
    '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
];

/// One single-byte encoding.
pub(super) struct Charmap {
    /// ISO 8859-1, after which further repairs are possible.
    pub(super) is_latin_1: bool,
    /// Mac OS Roman, in which an en dash before a space would look like a damaged sequence.
    pub(super) is_macroman: bool,
    /// Has unassigned bytes, and byte 1A for lost characters.
    pub(super) is_sloppy: bool,
    /// Bytes of the characters beyond ASCII, sorted by character.
    bytes: Vec<(char, u8)>,
}

static CHARMAPS: LazyLock<Vec<Charmap>> = LazyLock::new(|| {
    let latin_1 = Charmap { is_latin_1: true, ..Charmap::new(false, |byte| Some(char::from(byte))) };
    let sloppy = [WINDOWS_1252, WINDOWS_1251, WINDOWS_1250, WINDOWS_1253, WINDOWS_1254, WINDOWS_1257]
        .map(|encoding| Charmap::new(true, |byte| decode_byte(encoding, byte)));
    let iso_8859_2 = Charmap::new(false, |byte| decode_byte(ISO_8859_2, byte));
    let macroman = Charmap { is_macroman: true, ..Charmap::new(false, |byte| decode_byte(MACINTOSH, byte)) };
    let code_page_437 = Charmap::new(false, |byte| CODE_PAGE_437.chars().nth(usize::from(byte - 0x80)));
    [latin_1].into_iter().chain(sloppy).chain([iso_8859_2, macroman, code_page_437]).collect()
});

/// All encodings, in the order in which they are tried.
pub(super) fn charmaps() -> &'static [Charmap] {
    &CHARMAPS
}

fn decode_byte(encoding: &'static Encoding, byte: u8) -> Option<char> {
    let bytes = [byte];
    let text = encoding.decode_without_bom_handling_and_without_replacement(&bytes)?;
    text.chars().next()
}

impl Charmap {
    /// `decode` gives the character of a byte from 0x80 on; a byte without one is read as Latin-1.
    fn new(is_sloppy: bool, decode: impl Fn(u8) -> Option<char>) -> Self {
        let mut bytes: Vec<_> = (0x80..=u8::MAX).map(|byte| (decode(byte).unwrap_or(char::from(byte)), byte)).collect();
        if is_sloppy {
            bytes.push(('\u{FFFD}', LOST));
        }
        bytes.sort_unstable();
        Self { is_latin_1: false, is_macroman: false, is_sloppy, bytes }
    }

    /// The bytes that read as `text` in this encoding, or `None` when it has a character that the encoding has not.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars()
            .map(|char| match u8::try_from(char) {
                Ok(LOST) if self.is_sloppy => None,
                Ok(byte) if byte.is_ascii() => Some(byte),
                _ => self.bytes.binary_search_by_key(&char, |(char, _)| *char).ok().map(|index| self.bytes[index].1),
            })
            .collect()
    }
}
