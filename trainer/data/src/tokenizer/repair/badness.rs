//! ftfy's heuristic for mojibake: pairs and triples of characters that hardly occur in text that was read rightly.
//!
//! The categories and the rules are those of `ftfy.badness` 6.3.1; each rule keeps ftfy's reason for it.

use std::sync::LazyLock;

use regex::Regex;

use crate::tokenizer::unicode;

/// In many contexts, so not suspicious in themselves.
const COMMON: &str = "\u{A0}\u{AD}·´–—―…’";
/// C1 controls: used for nothing any more.
const C1: &str = "\u{80}-\u{9F}";
/// Hardly ever used on purpose.
const BAD: &str = "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊\u{FFFD}ªº";
const LAW: &str = "¶§";
const CURRENCY: &str = "¢£¥₧€";
const START_PUNCTUATION: &str = "¡«¿©΄΅‘‚“„•‹\u{F8FF}";
const END_PUNCTUATION: &str = "®»˝”›™";
const NUMERIC: &str = "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№";
/// Letters that people draw faces with, so they stand in odd places on purpose.
const KAOMOJI: &str = "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°";
const UPPER_ACCENTED: &str = "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ";
const LOWER_ACCENTED: &str = "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ";
const UPPER_COMMON: &str = "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я";
const LOWER_COMMON: &str = "α-ωάέήίΰа-џ";
/// Box drawing, without the single horizontal line, which faces use.
const BOX: &str = "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓";
/// `\s` of Python's `re`.
const SPACE: &str = "\t-\r\u{1C}-\u{20}\u{85}\u{A0}\u{1680}\u{2000}-\u{200A}\u{2028}\u{2029}\u{202F}\u{205F}\u{3000}";

static BADNESS: LazyLock<Regex> = LazyLock::new(|| {
    // The pattern is a constant of this module, put together from the constants above; a test compiles it.
    Regex::new(&pattern()).unwrap_or_else(|error| unreachable!("the badness pattern is fixed: {error}"))
});

/// An accented letter and punctuation; bad when a word character follows, which is looked up in Python's own table.
static ACCENT_AND_PUNCTUATION: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = format!("[{LOWER_ACCENTED}{UPPER_ACCENTED}][{START_PUNCTUATION}{END_PUNCTUATION}]");
    Regex::new(&pattern).unwrap_or_else(|error| unreachable!("the pattern is fixed: {error}"))
});

/// Whether some part of `text` looks like mojibake.
pub(super) fn is_bad(text: &str) -> bool {
    if text.is_ascii() {
        // Every rule has a character beyond ASCII.
        return false;
    }
    BADNESS.is_match(text)
        || ACCENT_AND_PUNCTUATION.find_iter(text).any(|found| text[found.end()..].chars().next().is_some_and(unicode::is_word))
}

fn pattern() -> String {
    let signs = format!("{BOX}{START_PUNCTUATION}{END_PUNCTUATION}{CURRENCY}{NUMERIC}{LAW}");
    let arabic = format!("[ØÙ][{COMMON}{CURRENCY}{BAD}{NUMERIC}{START_PUNCTUATION}ŸŠ®°µ»]");
    let around = format!("{C1}{BAD}{START_PUNCTUATION}{END_PUNCTUATION}{CURRENCY}°");
    let rules = [
        format!("[{C1}]"),
        format!("[{BAD}{LOWER_ACCENTED}{UPPER_ACCENTED}{signs}][{BAD}]"),
        format!("[a-zA-Z][{LOWER_COMMON}{UPPER_COMMON}][{BAD}]"),
        format!("[{BAD}][{LOWER_ACCENTED}{UPPER_ACCENTED}{signs}]"),
        format!("[{LOWER_ACCENTED}{LOWER_COMMON}{BOX}{END_PUNCTUATION}{CURRENCY}{NUMERIC}][{UPPER_ACCENTED}]"),
        format!("[{BOX}{END_PUNCTUATION}{CURRENCY}{NUMERIC}][{LOWER_ACCENTED}]"),
        format!("[{LOWER_ACCENTED}{BOX}{END_PUNCTUATION}][{CURRENCY}]"),
        format!("[{SPACE}][{UPPER_ACCENTED}][{CURRENCY}]"),
        format!("[{UPPER_ACCENTED}{BOX}][{NUMERIC}{LAW}]"),
        format!("[{LOWER_ACCENTED}{UPPER_ACCENTED}{BOX}{CURRENCY}{END_PUNCTUATION}][{START_PUNCTUATION}][{NUMERIC}]"),
        format!("[{LOWER_ACCENTED}{UPPER_ACCENTED}{CURRENCY}{NUMERIC}{BOX}{LAW}][{END_PUNCTUATION}][{START_PUNCTUATION}]"),
        format!("[{CURRENCY}{NUMERIC}{BOX}][{START_PUNCTUATION}]"),
        format!("[a-z][{UPPER_ACCENTED}][{START_PUNCTUATION}{CURRENCY}]"),
        format!("[{BOX}][{KAOMOJI}]"),
        format!("[{LOWER_ACCENTED}{UPPER_ACCENTED}{CURRENCY}{NUMERIC}{START_PUNCTUATION}{END_PUNCTUATION}{LAW}][{BOX}]"),
        format!("[{BOX}][{END_PUNCTUATION}]"),
        // The ligature œ when no plain Latin letter follows.
        "[Œœ][^A-Za-z]".to_owned(),
        // Degree signs after capitals.
        format!("[{UPPER_ACCENTED}]°"),
        // Two-character mojibake of Windows-1252 that the rules above leave.
        format!("[ÂÃÎÐ][€œŠš¢£Ÿž\u{A0}\u{AD}®©°·»{START_PUNCTUATION}{END_PUNCTUATION}–—´]"),
        "×[²³]".to_owned(),
        // Arabic in Windows-1252 needs the common characters too; so four characters are asked for.
        format!("{arabic}{arabic}"),
        // Starts of three-character sequences of South Asian scripts in Windows-1252.
        "à[²µ¹¼½¾]".to_owned(),
        // Mac Roman.
        "√[±∂†≠®™´≤≥¥µø]".to_owned(),
        "≈[°¢]".to_owned(),
        "‚Ä[ìîïòôúùû†°¢π]".to_owned(),
        "‚[âó][àä°ê]".to_owned(),
        // Windows-1251 readings of U+2000 and on; of Latin-1 or Cyrillic; and of both on top of each other.
        "вЂ".to_owned(),
        format!("[ВГРС][{around}µ][ВГРС]"),
        "ГўВЂВ.[A-Za-z ]".to_owned(),
        // Windows-1252 readings of à, á and the no-break space.
        "Ã[\u{A0}¡]".to_owned(),
        format!("[a-z][{SPACE}]?[ÃÂ] "),
        "^[ÃÂ] ".to_owned(),
        // Â before a character that its UTF-8 form ends in.
        format!("[a-z.,?!{END_PUNCTUATION}]Â[ {START_PUNCTUATION}{END_PUNCTUATION}]"),
        // Windows-1253 readings of U+2000 and on; of Latin-1 or Greek.
        "β€[™\u{A0}Ά\u{AD}®°]".to_owned(),
        format!("[ΒΓΞΟ][{around}][ΒΓΞΟ]"),
        // Windows-1257 readings of U+2000 and on.
        "ā€".to_owned(),
    ];
    rules.join("|")
}
