//! UTF-8 as sloppy programs write it: CESU-8 (surrogate pairs encoded one by one) and Java's two-byte zero.
//!
//! This decodes what ftfy's `utf-8-variants` codec decodes, and fails where it fails.

/// Bytes of a surrogate pair in CESU-8.
const PAIR: usize = 6;

/// The text of `bytes`, or `None` when they are in no variant of UTF-8.
pub(super) fn decode(bytes: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(bytes.len());
    let mut rest = bytes;
    let mut plain_from = 0;
    let mut at = 0;
    while at < rest.len() {
        let Some((char, length)) = special(&rest[at..]) else {
            at += 1;
            continue;
        };
        out.push_str(str::from_utf8(&rest[plain_from..at]).ok()?);
        out.push(char);
        rest = &rest[at + length..];
        (plain_from, at) = (0, 0);
    }
    out.push_str(str::from_utf8(&rest[plain_from..]).ok()?);
    Some(out)
}

/// The character that `bytes` start with and its length, where standard UTF-8 has none there.
fn special(bytes: &[u8]) -> Option<(char, usize)> {
    match bytes {
        // ftfy's expressions also accept the end of the text in place of a byte, and their `$` matches before a last line
        // feed, which then counts as that byte. Lines end in a line feed, so the reference's ids depend on it.
        [0xC0, 0x80, ..] | [0xC0, b'\n'] => Some(('\0', 2)),
        [0xED, 0xA0..=0xAF, 0x80..=0xBF, 0xED, 0xB0..=0xBF, last, after @ ..]
            if (0x80..=0xBF).contains(last) || (*last == b'\n' && after.is_empty()) =>
        {
            let bits = |byte: u8, mask: u8| u32::from(byte & mask);
            let offset = bits(bytes[1], 0x0F) << 16 | bits(bytes[2], 0x3F) << 10 | bits(bytes[4], 0x0F) << 6 | bits(*last, 0x3F);
            char::from_u32(0x1_0000 + offset).map(|char| (char, PAIR))
        }
        _ => None,
    }
}
