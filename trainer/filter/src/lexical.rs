//! What has to be found in an expression's text, since the parser would fail at it or read it wrongly.
//!
//! Comes in: the text. Goes out: whether it opens too many brackets, or holds a doubled `!` or `-`, of which the parser drops one.

/// Most brackets that an expression may open, with the `?` of its choices: beyond 96 levels the parser gives up in disorder.
pub(crate) const OPENED_LIMIT: usize = 64;

/// Whether it opens more brackets than the parser can go down. Those in texts count as well, so that no way of writing a text gets past.
pub(crate) fn opens_too_many(text: &str) -> bool {
    text.matches(['(', '[', '{', '?']).count() > OPENED_LIMIT
}

/// The doubled sign, outside of texts and comments. The `-` between two values is no sign.
pub(crate) fn doubled_sign(text: &str) -> Option<char> {
    // What stands before, without spaces; a text counts as its quote.
    let (mut before, mut signs, mut rest) = (' ', 0, text);
    while let Some(character) = rest.chars().next() {
        let after = rest.get(character.len_utf8()..).unwrap_or_default();
        rest = match character {
            '"' | '\'' => behind_text(rest, character, matches!(before, 'r' | 'R')),
            '/' if after.starts_with('/') => after.split_once('\n').map_or("", |(_, next)| next),
            _ => after,
        };
        if character.is_whitespace() || (character == '/' && !std::ptr::eq(rest, after)) {
            continue;
        }
        let ends_value = before.is_alphanumeric() || matches!(before, '_' | ')' | ']' | '}' | '"' | '\'' | '.' | '`');
        signs = match character {
            '-' if ends_value => 0,
            '!' | '-' if signs > 0 && before == character => return Some(character),
            '!' | '-' => 1,
            _ => 0,
        };
        before = character;
    }
    None
}

/// What follows a text that begins with this quote.
fn behind_text(text: &str, quote: char, is_raw: bool) -> &str {
    let triple = String::from(quote).repeat(3);
    let end = if text.starts_with(&triple) { triple } else { quote.to_string() };
    let mut rest = text.get(end.len()..).unwrap_or_default();
    while !rest.is_empty() {
        if let Some(behind) = rest.strip_prefix(end.as_str()) {
            return behind;
        }
        let mut characters = rest.chars();
        if characters.next() == Some('\\') && !is_raw {
            characters.next();
        }
        rest = characters.as_str();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubled_signs_are_found_and_those_in_texts_are_not() {
        for found in ["!!a", "! !a", "a && !!b", "--a > 1", "a - --b", "a---b > 1", "!\n!a", "!(--a > 1)", "a//x\n&& !!b", "r'\\' == !!a"] {
            assert!(doubled_sign(found).is_some(), "{found}");
        }
        for sound in [
            "!a",
            "a != b",
            "!a && !b",
            "a--b > 1",
            "a - -b > 1",
            "(a)--1 > 2",
            "[-1]--1",
            "a.contains('!!--') && b == \"\\\"!!\"",
            "'''!!'!!''' == a",
            "a // !!",
            "!(!a)",
            "-(-a) > 1",
            "r'\\' == a && '!!' == b",
        ] {
            assert_eq!(doubled_sign(sound), None, "{sound}");
        }
    }
}
