//! What holds for the tokenizer on any text.

use std::thread;

use lcl_data::tokenizer::{Tokenizer, clean};
use proptest::prelude::*;

/// Any text, and texts of the characters that the repair looks at.
fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "\\PC{0,40}",
        "[ -~\\n]{0,80}",
        "[ÂÃÎÐâãîðåé€œŠš¢£Ÿž\u{80}-\u{A0}®©°·»–—´™“”‘’…•‹›†‡‰ˆ˜¨¯¸¬¤ ab'?\u{1A}\u{FFFD}\\n]{0,24}",
        "(&(amp;|#[0-9]{1,8};?|#x[0-9a-fA-F]{1,8};?|[a-zA-Z]{1,9};?)?|[a-z<; ]){0,12}",
        "(\u{1B}\\[[0-9;]{0,4}[a-zA-Z]?|[a-z ]){0,12}",
        "[αΑσΣς'\u{301}\u{345}\u{AD}. ]{0,12}",
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| bytes.into_iter().map(char::from).collect()),
    ]
}

/// `text` without what separates pieces: white space, and U+0345, which is in no piece.
fn without_separators(text: &str) -> String {
    text.chars().filter(|char| !char.is_whitespace() && *char != '\u{345}').collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn any_text_has_ids_of_the_vocabulary_and_always_the_same(text in any_text()) {
        let ids = Tokenizer::clip().encode(&text);
        prop_assert!(ids.iter().all(|id| *id < Tokenizer::ENTRIES));
        prop_assert_eq!(Tokenizer::clip().encode(&text), ids);
    }

    #[test]
    fn decoding_gives_the_cleaned_text_back_but_for_the_spaces_between_pieces(text in any_text()) {
        let tokenizer = Tokenizer::clip();
        let decoded = tokenizer.decode(&tokenizer.encode(&text));
        prop_assert_eq!(without_separators(&decoded), without_separators(&clean(&text)));
    }

    #[test]
    fn every_token_of_any_sequence_has_a_name(tokens in prop::collection::vec(prop_oneof![-9i64..60_000, any::<i64>(), Just(0)], 0..20)) {
        let names = Tokenizer::clip().describe(&tokens);
        prop_assert_eq!(names.len(), tokens.len());
        prop_assert!(names.iter().all(|name| !name.is_empty() && !name.chars().any(char::is_control)));
    }

    #[test]
    fn any_ids_can_be_decoded(ids in prop::collection::vec(prop_oneof![0u32..50_000, any::<u32>()], 0..20)) {
        let _ = Tokenizer::clip().decode(&ids);
    }
}

#[test]
fn words_are_decoded_with_a_space_after_each_piece() {
    let tokenizer = Tokenizer::clip();
    assert_eq!(tokenizer.decode(&tokenizer.encode("It&rsquo;s  a PHOTO, of 12 cafÃ©s")), "it 's a photo , of 1 2 cafés ");
}

/// Without the short cut for nested ampersands this takes minutes.
#[test]
fn a_reference_escaped_a_hundred_thousand_times_is_resolved_at_once() {
    let text = format!("Ã©t&{}eacute;", "amp;AMP;#38;".repeat(33_000));
    assert_eq!(clean(&text), "été");
}

#[test]
fn a_sequence_is_described_token_by_token() {
    let tokens = [49_406, 320, 1125, 0, 49_409, 49_408, 49_408, 49_410, 49_407, 60_000, -1, 127, 0, 0];
    let names = Tokenizer::clip().describe(&tokens);
    let expected = [
        "<start_of_text>",
        "a</w>",
        "photo</w>",
        "!",
        "<start_of_img>",
        "<img_placehold>",
        "<img_placehold>",
        "<end_of_img>",
        "<end_of_text>",
        "<unknown 60000>",
        "<unknown -1>",
        "\\xC3",
        "<pad>",
        "<pad>",
    ];
    assert_eq!(names, expected);
}

#[test]
fn many_threads_share_one_tokenizer() {
    let texts: Vec<String> = (0..200).map(|index| format!("photo nÂ° {index} of a cafÃ© &amp; 猫 {}", "é".repeat(index))).collect();
    let tokenizer = Tokenizer::clip();
    let expected: Vec<_> = texts.iter().map(|text| tokenizer.encode(text)).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(texts.iter().map(|text| tokenizer.encode(text)).collect::<Vec<_>>(), expected));
        }
    });
}
