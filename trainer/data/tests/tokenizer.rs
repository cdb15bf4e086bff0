//! Token ids are those of the reference tokenizer (`open_clip.tokenizer.SimpleTokenizer`, recorded by `fixtures/record_tokenizer.py`).

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use lcl_data::tokenizer::{Tokenizer, clean};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Recorded {
    class: String,
    text: String,
    ids: Vec<u32>,
}

fn fixture(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn recorded(lines: &str) -> Result<Vec<Recorded>> {
    lines.lines().skip(1).map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Compares every recorded string; the error lists how many of each class differ and shows the first ones.
fn check(lines: &str) -> Result<usize> {
    let tokenizer = Tokenizer::clip();
    let recorded = recorded(lines)?;
    let mut differing: BTreeMap<&str, usize> = BTreeMap::new();
    let mut shown = Vec::new();
    for case in &recorded {
        let ids = tokenizer.encode(&case.text);
        if ids != case.ids {
            *differing.entry(&case.class).or_default() += 1;
            if shown.len() < 20 {
                shown.push(format!(
                    "{:?}\n  cleaned  {:?}\n  expected {:?}\n  got      {:?}",
                    case.text,
                    clean(&case.text),
                    tokenizer.decode(&case.ids),
                    tokenizer.decode(&ids)
                ));
            }
        }
    }
    ensure!(
        differing.is_empty(),
        "{} of {} differ: {differing:?}\n{}",
        differing.values().sum::<usize>(),
        recorded.len(),
        shown.join("\n")
    );
    Ok(recorded.len())
}

#[test]
fn every_recorded_string_has_the_ids_of_the_reference() -> Result<()> {
    let count = check(&fixture("tokenizer_corpus.jsonl")?)?;
    ensure!(count >= 1500, "the corpus has only {count} strings");
    Ok(())
}

/// `LCL_TOKENIZER_CORPUS=FILE` compares with another recording, such as one of another seed.
#[test]
fn another_recording_can_be_compared() -> Result<()> {
    if let Some(path) = std::env::var_os("LCL_TOKENIZER_CORPUS") {
        println!("{} strings are equal", check(&fs::read_to_string(path)?)?);
    }
    Ok(())
}

/// The four strings around a code point whose ids `record_tokenizer.py planes` digests.
fn around(char: char) -> [String; 4] {
    [format!("x{char}y"), format!("{char}Σ Σ{char}Σ"), format!("É{char}·¤ s'{char}"), format!("e{char}\u{327}\u{301} {char}")]
}

#[test]
fn every_character_has_the_class_case_and_normal_form_of_the_reference() -> Result<()> {
    let expected: BTreeMap<String, String> = serde_json::from_str(&fixture("tokenizer_planes.json")?)?;
    let tokenizer = Tokenizer::clip();
    let mut differing = Vec::new();
    for (block, expected) in &expected {
        let start = u32::from_str_radix(block, 16)?;
        let mut digest = Sha256::new();
        for char in (start..start + 256).filter_map(char::from_u32) {
            for text in around(char) {
                let ids = tokenizer.encode(&text);
                digest.update((ids.len() as u32).to_le_bytes());
                digest.update(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
            }
        }
        if format!("{:x}", digest.finalize()) != *expected {
            differing.push(block);
        }
    }
    ensure!(differing.is_empty(), "{} of {} blocks differ: {differing:?}", differing.len(), expected.len());
    Ok(())
}

/// One range of letters per script; a corpus string counts for a script when it has a letter of it.
const SCRIPTS: [(&str, std::ops::RangeInclusive<char>); 16] = [
    ("Greek", 'Α'..='ω'),
    ("Cyrillic", 'А'..='я'),
    ("Armenian", 'Ա'..='ֆ'),
    ("Hebrew", 'א'..='ת'),
    ("Arabic", 'ا'..='ي'),
    ("Devanagari", 'अ'..='ह'),
    ("Bengali", 'অ'..='হ'),
    ("Tamil", 'அ'..='ஹ'),
    ("Thai", 'ก'..='ฮ'),
    ("Georgian", 'ა'..='ჰ'),
    ("Ethiopic", 'ሀ'..='ፚ'),
    ("Cherokee", 'Ꭰ'..='Ᏼ'),
    ("Khmer", 'ក'..='អ'),
    ("Hiragana", 'ぁ'..='ゖ'),
    ("Han", '一'..='鿿'),
    ("Hangul", '가'..='힣'),
];

#[test]
fn the_corpus_covers_what_text_on_the_web_looks_like() -> Result<()> {
    let recorded = recorded(&fixture("tokenizer_corpus.jsonl")?)?;
    let count = |keep: &dyn Fn(&Recorded) -> bool| recorded.iter().filter(|case| keep(case)).count();
    ensure!(count(&|case| !case.text.is_ascii()) >= 600, "too few strings beyond ASCII");
    for (script, letters) in SCRIPTS {
        let found = count(&|case| case.text.chars().any(|char| letters.contains(&char)));
        ensure!(found >= 3, "{script} is in {found} strings");
    }
    for class in ["mojibake", "mojibake twice", "mojibake with spaces for A0", "mojibake with lost bytes", "nested entities", "over-length"]
    {
        let found = count(&|case| case.class == class);
        ensure!(found >= 9, "{found} strings of class {class:?}");
    }
    for (what, part) in
        [("ZWJ emoji", "👩\u{200D}"), ("terminal escapes", "\x1B["), ("a curly quote", "“"), ("a ligature", "ﬁ"), ("full width", "Ａ")]
    {
        ensure!(count(&|case| case.text.contains(part)) >= 1, "no {what}");
    }
    ensure!(count(&|case| case.ids.len() > 280) >= 5, "too few strings longer than a context");
    Ok(())
}
