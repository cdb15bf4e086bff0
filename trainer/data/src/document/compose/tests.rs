use lcl_trainer_config::{ModelShape, SpecialTokens, TextShape, VisionShape};
use proptest::prelude::*;

use super::*;

const SOT: i64 = 49_406;
const EOT: i64 = 49_407;
const IMAGE: i64 = 49_408;
const SOI: i64 = 49_409;
const EOI: i64 = 49_410;

/// With `side`² tokens an image.
fn limits(side: i64, context_length: i64) -> SequenceLimits {
    let shape = ModelShape {
        vision: VisionShape { image_size: side, patch_size: 1, width: 8, layers: 1, heads: 1 },
        text: TextShape { width: 8, layers: 1, heads: 1, context_length, vocab_size: 49_411 },
        embed_dim: 8,
        pool_heads: 1,
        special_tokens: SpecialTokens::CLIP,
    };
    SequenceLimits::new(&shape).expect("the context holds an image")
}

/// A part in tests: a text, or the number of an image.
#[derive(Clone, Debug)]
enum Is {
    Text(String),
    Image(u32),
}

fn document(parts: &[Is]) -> Document {
    let mut document = Document::new();
    for part in parts {
        match part {
            Is::Text(text) => document.push_text(text),
            Is::Image(number) => document.push_image(*number),
        }
    }
    document
}

/// Of a text with `[3]` for image 3: no mark of ours.
fn written(text: &str) -> Vec<Is> {
    let mut parts = Vec::new();
    for word in text.split_inclusive(' ') {
        match word.trim_end().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).and_then(|number| number.parse().ok()) {
            Some(number) => parts.push(Is::Image(number)),
            None => parts.push(Is::Text(word.trim_end().to_owned())),
        }
    }
    parts
}

/// Tokens, images and where they begin.
type Outcome = Result<(Vec<i64>, Vec<u32>, Vec<usize>), RedrawCause>;

fn composed(parts: &[Is], limits: &SequenceLimits) -> Outcome {
    Composer::new(Tokenizer::clip())
        .compose(&document(parts), limits)
        .map(|sequence| (sequence.tokens.to_vec(), sequence.images.to_vec(), sequence.soi.to_vec()))
}

/// The rules once more, on the whole sequence and with the reference's full marks. Only for texts that spell no mark.
fn stated(parts: &[Is], limits: &SequenceLimits) -> Outcome {
    let mark = format!("<start_of_img>{}<end_of_img>", "<img_placehold>".repeat(limits.image_tokens()));
    let numbers: Vec<u32> = document(parts).images().collect();
    let mut joined = String::new();
    join(&document(parts), &mark, &mut joined);
    let cleaned = clean(&joined);
    let mut tokens = vec![SOT];
    for (index, text) in cleaned.split(&mark).enumerate() {
        if index > 0 {
            tokens.push(SOI);
            tokens.resize(tokens.len() + limits.image_tokens(), IMAGE);
            tokens.push(EOI);
        }
        let mut ids = Vec::new();
        Tokenizer::clip().append_cleaned(text, usize::MAX, &mut ids);
        tokens.extend(ids.into_iter().map(i64::from));
    }
    tokens.push(EOT);
    assert_eq!(tokens.iter().filter(|token| **token == SOI).count(), numbers.len());
    if tokens.len() > limits.context_length() {
        tokens.truncate(limits.context_length());
        let last = tokens.len() - 1;
        tokens[last] = EOT;
        if let Some(begin) = tokens.iter().rposition(|token| *token == SOI) {
            let placeholders = tokens[begin..].iter().filter(|token| **token == IMAGE).count();
            if placeholders < limits.image_tokens() {
                tokens.truncate(begin);
                tokens.push(EOT);
            }
        }
    }
    let soi: Vec<usize> = (0..tokens.len()).filter(|at| tokens[*at] == SOI).collect();
    if soi.is_empty() { Err(RedrawCause::NoImageFits) } else { Ok((tokens, numbers[..soi.len()].to_vec(), soi)) }
}

#[test]
fn texts_and_images_are_laid_out_in_their_order() {
    let (tokens, images, soi) = composed(&written("A cat. [8] [3] A dog."), &limits(1, 64)).expect("all fits");
    assert_eq!(tokens, [SOT, 320, 2368, 269, SOI, IMAGE, EOI, SOI, IMAGE, EOI, 320, 1929, 269, EOT]);
    assert_eq!((images, soi), (vec![8, 3], vec![4, 7]));
}

#[test]
fn a_leading_image_begins_behind_the_start_of_the_text() {
    let (tokens, _, soi) = composed(&written("[0] a cat"), &limits(2, 64)).expect("all fits");
    assert_eq!((&tokens[..3], soi), (&[SOT, SOI, IMAGE][..], vec![1]));
}

#[test]
fn an_image_alone_is_a_document() {
    for parts in [written("[5]"), vec![Is::Text(String::new()), Is::Image(5), Is::Text(" \n\t".to_owned())]] {
        assert_eq!(composed(&parts, &limits(1, 8)), Ok((vec![SOT, SOI, IMAGE, EOI, EOT], vec![5], vec![1])));
    }
}

#[test]
fn a_document_without_an_image_is_no_sequence() {
    for parts in [vec![], written("only words"), written("<start_of_img>")] {
        assert_eq!(composed(&parts, &limits(1, 8)), Err(RedrawCause::NoImageFits));
    }
}

/// At every context: `sot a soi img×4 eoi cat eot` has 9 positions.
#[test]
fn the_cut_keeps_an_image_exactly_as_long_as_its_placeholders_fit() {
    let parts = written("a [0] cat");
    let all = vec![SOT, 320, SOI, IMAGE, IMAGE, IMAGE, IMAGE, EOI, 2368, EOT];
    for context in [10, 11] {
        assert_eq!(composed(&parts, &limits(2, context)), Ok((all.clone(), vec![0], vec![2])));
    }
    let word_is_cut = [&all[..8], &[EOT]].concat();
    assert_eq!(composed(&parts, &limits(2, 9)), Ok((word_is_cut, vec![0], vec![2])));
    let end_mark_is_cut = [&all[..7], &[EOT]].concat();
    assert_eq!(composed(&parts, &limits(2, 8)), Ok((end_mark_is_cut, vec![0], vec![2])));
    assert_eq!(composed(&written("a b [0] cat"), &limits(2, 8)), Err(RedrawCause::NoImageFits));
}

#[test]
fn an_image_that_is_cut_becomes_one_end_of_text_and_those_before_it_stay() {
    for context in [11, 12, 13, 14] {
        let (tokens, images, soi) = composed(&written("[4] a [9] cat"), &limits(2, context)).expect("the first image fits");
        if context < 14 {
            assert_eq!(tokens, [SOT, SOI, IMAGE, IMAGE, IMAGE, IMAGE, EOI, 320, EOT], "{context}");
            assert_eq!((images, soi), (vec![4], vec![1]));
        } else {
            assert_eq!((tokens.len(), tokens[13], images, soi), (14, EOT, vec![4, 9], vec![1, 8]));
        }
    }
}

#[test]
fn a_text_that_fills_the_context_leaves_room_for_the_end_alone() {
    let (tokens, ..) = composed(&[Is::Image(0), Is::Text("cat ".repeat(100))], &limits(1, 16)).expect("the image is first");
    assert_eq!((tokens.len(), tokens[14], tokens[15]), (16, 2368, EOT));
}

/// Entities: what they become depends on the other parts.
#[test]
fn the_whole_document_is_cleaned_at_once() {
    let ids = |parts: &[Is]| composed(parts, &limits(1, 64)).expect("all fits").0;
    let apart = |text: &str| {
        let mut ids: Vec<u32> = Vec::new();
        Tokenizer::clip().append_cleaned(text, usize::MAX, &mut ids);
        ids.into_iter().map(i64::from).collect::<Vec<_>>()
    };
    // Alone it is unescaped as often as it takes; on a line with a mark only twice.
    assert_eq!(Tokenizer::clip().encode("&amp;amp;eacute;"), Tokenizer::clip().encode("é"));
    let thrice = ids(&[Is::Text("&amp;amp;eacute;".to_owned()), Is::Image(0)]);
    assert_eq!(&thrice[1..thrice.len() - 4], apart("&eacute;"));
    // On a line before the first mark it is as if it were alone.
    let lines = ids(&[Is::Text("&amp;amp;eacute;\n".to_owned()), Is::Image(0), Is::Text("&amp;amp;eacute;".to_owned())]);
    assert_eq!(lines[1..lines.len()].iter().position(|token| *token == SOI), Some(apart("é").len()));
}

#[test]
fn a_text_that_spells_a_mark_stays_a_text() {
    for text in [
        "<start_of_img>",
        "<START_OF_IMG> <img_placehold> <End_Of_Img>",
        "&lt;start_of_img&gt;",
        "&amp;lt;START_OF_IMG&amp;gt;",
        "<start_of_img><img_placehold><end_of_img> <img0> <img1>",
        "<start_of_img> &lt;IMG0&gt;",
    ] {
        let parts = [Is::Text(text.to_owned()), Is::Image(6), Is::Text(text.to_owned()), Is::Image(2)];
        let (tokens, images, soi) = composed(&parts, &limits(2, 256)).expect("all fits");
        assert_eq!(images, [6, 2], "{text}");
        assert_eq!(soi, (0..tokens.len()).filter(|at| tokens[*at] == SOI).collect::<Vec<_>>(), "{text}");
        assert_eq!(tokens.iter().filter(|token| **token == IMAGE).count(), 8, "{text}");
        let first: Vec<u32> = tokens[1..soi[0]].iter().map(|token| *token as u32).collect();
        let spelled = Tokenizer::clip().decode(&first).replace(' ', "");
        assert!(spelled.contains("start_of_img") && spelled.starts_with('<'), "{text}: {spelled}");
        assert_eq!(&tokens[1..soi[0]], &tokens[soi[0] + 6..soi[1]], "{text}");
    }
}

#[test]
fn the_free_mark_is_none_that_the_text_has() {
    for (cleaned, mark) in
        [("", "<img0>"), ("<img", "<img0>"), ("<img0> <img2> <img99999999999999999999999>", "<img1>"), ("<img0<img00<img1x<img", "<img2>")]
    {
        assert_eq!(free_mark(cleaned), mark);
    }
}

/// Without the bound on what is looked at behind each beginning this takes minutes.
#[test]
fn a_text_of_nothing_but_marks_costs_no_more_than_others() {
    let marks: String = (0..60_000).flat_map(|number| ["<img".to_owned(), number.to_string(), ">".to_owned()]).collect();
    let text = format!("<start_of_img>{marks}{}", "<img".repeat(100_000));
    let (_, images, soi) = composed(&[Is::Image(0), Is::Text(text)], &limits(1, 2048)).expect("the image is first");
    assert_eq!((images, soi), (vec![0], vec![1]));
}

/// What marks, entities, capitals, wrong decodings and escapes are made of.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<start_of_img>"),
        Just("<START_OF_IMG>"),
        Just("<img_placehold>"),
        Just("<end_of_img>"),
        Just("<End_of_text>"),
        Just("&lt;start_of_img&gt;"),
        Just("&amp;lt;img_placehold&gt;"),
        Just("&#60;start_of_img&#x3e;"),
        Just("＜start_of_img＞"),
        Just("<start_of_"),
        Just("img>"),
        Just("<img0>"),
        Just("&lt;IMG1>"),
        Just("\u{1B}["),
        Just("\n"),
        Just("&"),
        Just(" "),
        Just("cat"),
    ];
    prop_oneof![prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat()), plain_text()]
}

/// Texts that spell no mark, however they are cleaned.
fn plain_text() -> impl Strategy<Value = String> {
    let text = prop_oneof![
        any::<String>(),
        "[ -~\\n]{0,60}",
        "[ÂÃÎÐâãîðåé€œŠš¢£Ÿž\u{80}-\u{A0}®©°·»–—´™“”‘’…•‹›†‡‰ˆ˜¨¯¸¬¤ ab'?<&\u{1A}\u{FFFD}\\n]{0,24}",
        "(&(amp;|#[0-9]{1,4};?|lt;|[a-zA-Z]{1,9};?)?|[a-z<; \\n]){0,12}",
        "(\u{1B}\\[[0-9;]{0,4}[a-zA-Z]?|[a-z ]){0,12}",
        "[αΑσΣς'\u{301}\u{338}\u{345}\u{AD}. <>]{0,12}",
        Just("a cat".to_owned()),
    ];
    text.prop_filter("spells a mark", |text| !clean(text).contains("img"))
}

fn parts(text: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<Is>> {
    prop::collection::vec(prop_oneof![text.prop_map(Is::Text), (0..9_u32).prop_map(Is::Image)], 0..9)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn images_and_their_tokens_agree_whatever_the_texts_say(parts in parts(any_text()), side in 1i64..4, slack in 0i64..60) {
        let limits = limits(side, side * side + 4 + slack);
        let all: Vec<u32> = document(&parts).images().collect();
        let Ok((tokens, images, soi)) = composed(&parts, &limits) else { return Ok(()) };
        let count = |wanted: i64| tokens.iter().filter(|token| **token == wanted).count();
        prop_assert!(!images.is_empty() && all.starts_with(&images));
        prop_assert_eq!((count(SOI), count(IMAGE)), (images.len(), images.len() * limits.image_tokens()));
        prop_assert!(tokens.len() <= limits.context_length());
        prop_assert_eq!((tokens[0], tokens[tokens.len() - 1]), (SOT, EOT));
        prop_assert_eq!(&soi, &(0..tokens.len()).filter(|at| tokens[*at] == SOI).collect::<Vec<_>>());
        for begin in soi {
            let end = begin + 1 + limits.image_tokens();
            prop_assert!(begin > 0 && tokens[begin + 1..end].iter().all(|token| *token == IMAGE));
            prop_assert!(tokens[end] == EOI || tokens[end] == EOT && end + 1 == tokens.len());
        }
    }

    #[test]
    fn the_sequence_is_that_of_the_rules_stated_on_the_whole(parts in parts(plain_text()), side in 1i64..4, slack in 0i64..60) {
        let limits = limits(side, side * side + 4 + slack);
        if document(&parts).images().next().is_some() {
            prop_assert_eq!(composed(&parts, &limits), stated(&parts, &limits));
        }
    }

    #[test]
    fn no_text_touches_a_mark_and_texts_become_the_same_with_any_mark(parts in parts(any_text())) {
        let document = document(&parts);
        let mut joined = String::new();
        let mut cleaned = |mark: &str| {
            join(&document, mark, &mut joined);
            clean(&joined).split(mark).map(str::to_owned).collect::<Vec<_>>()
        };
        let first = cleaned("<img4711>");
        prop_assert_eq!(first.len(), document.images().count() + 1);
        prop_assert_eq!(&cleaned("<img4712><img_placehold><img_placehold><end_of_img>"), &first);
        prop_assert_eq!(&cleaned("<qqq_start_of_img>"), &first);
    }

    #[test]
    fn a_used_composer_composes_like_a_new_one(first in parts(any_text()), second in parts(any_text())) {
        let limits = limits(2, 24);
        let mut composer = Composer::new(Tokenizer::clip());
        let _ = composer.compose(&document(&first), &limits);
        let again = composer.compose(&document(&second), &limits);
        let again = again.map(|sequence| (sequence.tokens.to_vec(), sequence.images.to_vec(), sequence.soi.to_vec()));
        prop_assert_eq!(again, composed(&second, &limits));
    }
}
