use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::document::Part;

/// A record of as many sentences, with an image for each (sentence, similarity).
fn record(sentences: usize, images: &[(u32, f64)]) -> Record {
    let texts: Vec<String> = (0..sentences).map(|sentence| format!("s{sentence}")).collect();
    let entries: Vec<_> = images
        .iter()
        .map(|(sentence, similarity)| json!({"image_name": "n", "matched_text_index": sentence, "matched_sim": similarity}))
        .collect();
    let mut record = Record::new();
    record.fill(json!({"text_list": texts, "image_info": entries}).to_string().as_bytes()).expect("a document");
    record
}

/// Choices that are the same for every document, and what was asked for.
#[derive(Default)]
struct Always {
    kept: usize,
    before: bool,
    asked: Vec<String>,
}

impl Choices for Always {
    fn kept(&mut self, sentence: u32, candidates: &[u32]) -> usize {
        self.asked.push(format!("{sentence}: {candidates:?}"));
        self.kept
    }

    fn before(&mut self, image: u32, _probability: f64) -> bool {
        self.asked.push(image.to_string());
        self.before
    }
}

/// The images chosen when the one at `kept` stays, and which choices were asked for.
fn chosen(record: &Record, rules: &Rules, kept: usize) -> (Result<Vec<u32>, RedrawCause>, Vec<String>) {
    let mut choices = Always { kept, ..Always::default() };
    let mut chosen = vec![99];
    let outcome = choose(record, rules, &mut choices, &mut chosen);
    (outcome.map(|()| chosen), choices.asked)
}

/// A document as `s0 [1] s1`.
fn placed(record: &Record, readable: &[u32], choices: &mut impl Choices) -> Result<String, RedrawCause> {
    let mut document = Document::new();
    document.push_text("of another record");
    place(record, readable, &Rules::default(), choices, &mut document)?;
    let parts = document.parts().iter().map(|part| match part {
        Part::Text(range) => document.text(range).to_owned(),
        Part::Image(number) => format!("[{number}]"),
    });
    Ok(parts.collect::<Vec<_>>().join(" "))
}

#[test]
fn the_reference_is_the_default() {
    assert_eq!(Rules::default(), Rules { min_similarity: 0.24, max_images: 6, before_probability: 0.5 });
}

#[test]
fn images_at_the_threshold_stay_and_the_float32_below_it_goes() {
    let record = record(4, &[(3, 0.24), (2, f64::from(0.24_f32)), (1, 0.239_999), (0, 0.25)]);
    assert_eq!(chosen(&record, &Rules::default(), 0), (Ok(vec![3, 0]), vec![]));
    let rules = Rules { min_similarity: 0.25, ..Rules::default() };
    assert_eq!(chosen(&record, &rules, 0).0, Ok(vec![3]));
    for min_similarity in [0.26, f64::NAN] {
        let rules = Rules { min_similarity, ..Rules::default() };
        assert_eq!(chosen(&record, &rules, 0).0, Err(RedrawCause::NoImageAboveThreshold));
    }
}

#[test]
fn one_image_of_a_sentence_is_kept_among_those_that_match() {
    let record = record(3, &[(2, 0.5), (0, 0.3), (2, 0.1), (2, 0.3), (0, 0.4), (1, 0.3)]);
    let asked = vec!["0: [1, 4]".to_owned(), "2: [0, 3]".to_owned()];
    assert_eq!(chosen(&record, &Rules::default(), 0), (Ok(vec![1, 5, 0]), asked.clone()));
    assert_eq!(chosen(&record, &Rules::default(), 1), (Ok(vec![4, 5, 3]), asked));
    // A choice that is none takes the first.
    assert_eq!(chosen(&record, &Rules::default(), 7).0, Ok(vec![1, 5, 0]));
}

#[test]
fn the_limit_counts_sentences_after_one_image_of_each_was_kept() {
    let record = record(4, &[(3, 0.9), (2, 0.3), (1, 0.3), (1, 0.3), (0, 0.3), (0, 0.3)]);
    let rules = |max_images| Rules { max_images, ..Rules::default() };
    assert_eq!(chosen(&record, &rules(3), 1).0, Ok(vec![5, 3, 1]));
    assert_eq!(chosen(&record, &rules(9), 1).0, Ok(vec![5, 3, 1, 0]));
    assert_eq!(chosen(&record, &rules(0), 1).0, Err(RedrawCause::NoImageAboveThreshold));
}

#[test]
fn every_image_stands_on_the_side_of_its_sentence_that_was_drawn() {
    let record = record(3, &[(2, 0.5), (0, 0.5)]);
    let mut choices = Always { before: true, ..Always::default() };
    assert_eq!(placed(&record, &[1, 0], &mut choices), Ok("[1] s0 s1 [0] s2".to_owned()));
    assert_eq!(choices.asked, ["1", "0"]);
    assert_eq!(placed(&record, &[1, 0], &mut Always::default()), Ok("s0 [1] s1 s2 [0]".to_owned()));
}

#[test]
fn only_images_that_can_be_read_are_placed_and_drawn_for() {
    let record = record(3, &[(2, 0.5), (0, 0.5)]);
    let mut choices = Always::default();
    assert_eq!(placed(&record, &[0], &mut choices), Ok("s0 s1 s2 [0]".to_owned()));
    assert_eq!(choices.asked, ["0"]);
    assert_eq!(placed(&record, &[], &mut choices), Err(RedrawCause::NoImageReadable));
}

#[test]
fn numbers_of_images_that_are_not_there_are_passed_over() {
    let record = record(2, &[(0, 0.5)]);
    assert_eq!(placed(&record, &[7], &mut Always::default()), Ok("s0 s1".to_owned()));
}

/// Chances of a draw of `count` outcomes are equal: no count is five standard deviations off. The seeds are fixed, so this is no matter of luck.
fn assert_even<K: std::fmt::Debug>(counts: &BTreeMap<K, u32>, outcomes: usize) {
    assert_eq!(counts.len(), outcomes, "{counts:?}");
    let expected = f64::from(counts.values().sum::<u32>()) / outcomes as f64;
    assert!(counts.values().all(|count| (f64::from(*count) - expected).abs() < 5.0 * expected.sqrt()), "{counts:?}");
}

#[test]
fn the_kept_image_is_uniform_among_those_that_match_and_independent_of_other_sentences() {
    let record = record(3, &[(1, 0.24), (0, 0.3), (1, 0.1), (1, 0.9), (0, 0.25), (1, 0.5), (0, 0.239)]);
    let mut counts = BTreeMap::new();
    let mut images = Vec::new();
    for slot in 0..12_000 {
        let mut choices = SlotChoices::new(5, slot / 100, slot % 100, 0);
        choose(&record, &Rules::default(), &mut choices, &mut images).expect("some match");
        *counts.entry(images.clone()).or_default() += 1;
    }
    let pairs: BTreeSet<Vec<u32>> = counts.keys().cloned().collect();
    assert_eq!(pairs, [1, 4].iter().flat_map(|first| [0, 3, 5].map(|second| vec![*first, second])).collect());
    assert_even(&counts, 6);
}

#[test]
fn sides_are_even_and_independent_of_each_other_and_of_the_kept_image() {
    let record = record(3, &[(0, 0.3), (1, 0.3), (2, 0.3), (2, 0.3)]);
    let mut counts = BTreeMap::new();
    let mut images = Vec::new();
    for slot in 0..32_000 {
        let mut choices = SlotChoices::new(6, slot / 100, slot % 100, (slot % 3) as u32);
        choose(&record, &Rules::default(), &mut choices, &mut images).expect("all match");
        *counts.entry(placed(&record, &images, &mut choices).expect("all can be read")).or_default() += 1;
    }
    // Two sides for each of three images, and two images for the last sentence.
    assert_even(&counts, 16);
}

#[test]
fn the_chance_of_standing_before_is_the_rule_s() {
    for (probability, least, most) in [(0.0, 0, 0), (0.2, 1_850, 2_150), (1.0, 10_000, 10_000)] {
        let before = (0..10_000).filter(|slot| SlotChoices::new(1, 2, *slot, 0).before(3, probability)).count();
        assert!((least..=most).contains(&before), "{probability}: {before}");
    }
}

#[test]
fn attempts_draw_anew_and_the_same_attempt_draws_the_same() {
    let draws = |attempt| {
        let mut choices = SlotChoices::new(1, 2, 3, attempt);
        let kept: Vec<usize> = (0..20).map(|sentence| choices.kept(sentence, &[0, 1, 2])).collect();
        let before: Vec<bool> = (0..20).map(|image| choices.before(image, 0.5)).collect();
        (kept, before)
    };
    assert_eq!(draws(1), draws(1));
    assert_ne!(draws(0), draws(1));
}

proptest! {
    #[test]
    fn a_choice_depends_on_nothing_but_its_own_number(
        images in prop::collection::vec((0..5_u32, 0.2..0.3_f64), 1..12), lost in any::<u16>(), slot in any::<u64>(),
    ) {
        let record = record(5, &images);
        let mut choices = SlotChoices::new(1, 2, slot, 0);
        let mut all = Vec::new();
        if choose(&record, &Rules::default(), &mut choices, &mut all).is_err() {
            return Ok(());
        }
        // The rules once more: by sentence, one of each, among those that match.
        let sentences: Vec<u32> = all.iter().map(|image| images[*image as usize].0).collect();
        prop_assert!(sentences.is_sorted_by(|left, right| left < right));
        prop_assert!(all.iter().all(|image| images[*image as usize].1 >= 0.24));
        let matching: BTreeSet<u32> = images.iter().filter(|(_, similarity)| *similarity >= 0.24).map(|(sentence, _)| *sentence).collect();
        prop_assert_eq!(sentences, matching.into_iter().collect::<Vec<_>>());

        let whole = placed(&record, &all, &mut choices).expect("all can be read");
        let left: Vec<u32> = all.iter().copied().filter(|image| lost >> image & 1 == 0).collect();
        let Ok(part) = placed(&record, &left, &mut choices) else { return Ok(()) };
        let gone: Vec<String> = all.iter().filter(|image| !left.contains(image)).map(|image| format!("[{image}]")).collect();
        let without: Vec<&str> = whole.split(' ').filter(|word| !gone.iter().any(|gone| gone == word)).collect();
        prop_assert_eq!(part, without.join(" "));
    }
}
