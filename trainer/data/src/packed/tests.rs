use super::*;

/// Takes the last candidate, and puts even images before their texts.
struct Last;

impl Choices for Last {
    fn kept(&mut self, _text: u32, candidates: &[u32]) -> usize {
        candidates.len() - 1
    }

    fn before(&mut self, image: u32, _probability: f64) -> bool {
        image.is_multiple_of(2)
    }
}

/// Lays out with these images readable; parts as `a [3] b`.
fn check(json: &str, limit: usize, readable: &[u32], expected: &str) {
    let packed = PackedDocument::parse(json.as_bytes()).expect("a sound document");
    let mut document = Document::new();
    let fetch = |image| Ok::<_, ()>(readable.contains(&image));
    let outcome = packed.lay_out(limit, 0.5, &mut Last, fetch, &mut document).expect("nothing fails");
    let part = |part: &crate::document::Part| match part {
        crate::document::Part::Text(range) => document.text(range).to_owned(),
        crate::document::Part::Image(number) => format!("[{number}]"),
    };
    let found: Vec<String> = document.parts().iter().map(part).collect();
    assert_eq!(found.join(" "), expected);
    assert_eq!(outcome.is_err(), !expected.contains('['), "{json}");
}

const DRAWN: &str = r#"{"parts": [{"text": "a", "images": [{"image": 0}, {"image": 3}]}, {"text": "b"}, {"text": "c", "images": [{"image": 2}]},
    {"text": "d", "images": [{"image": 4, "similarity": 0.5}]}]}"#;
const PLAIN: &str = r#"{"parts": [{"image": 0}, {"text": "a"}, {"image": 1}, {"image": 2}], "more": 1}"#;

#[test]
fn an_image_that_was_drawn_for_a_text_counts_even_when_it_cannot_be_read_and_is_not_replaced() {
    check(DRAWN, 6, &[0, 2, 3, 4], "a [3] b [2] c [4] d");
    check(DRAWN, 2, &[0, 2, 3, 4], "a [3] b [2] c d");
    check(DRAWN, 2, &[0, 2, 4], "a b [2] c d");
    check(DRAWN, 1, &[0, 2, 4], "a b c d");
}

#[test]
fn an_image_that_stands_by_itself_counts_only_when_it_can_be_read() {
    check(PLAIN, 6, &[0, 1, 2], "[0] a [1] [2]");
    check(PLAIN, 2, &[1, 2], "a [1] [2]");
    check(PLAIN, 1, &[1, 2], "a [1]");
    check(PLAIN, 6, &[], "a");
}

#[test]
fn a_faulty_document_says_what_is_wrong() {
    let fault = |json: &str| {
        let fault = PackedDocument::parse(json.as_bytes()).expect_err("a faulty document");
        format!("{}: {fault}", fault.name())
    };
    assert!(fault("{").starts_with("bad_json: it is no document"), "{}", fault("{"));
    assert!(fault(r#"{"text": "a"}"#).contains("parts"), "{}", fault(r#"{"text": "a"}"#));
    for part in ["{}", r#"{"text": "a", "image": 0}"#, r#"{"image": 0, "images": [{"image": 1}]}"#] {
        assert!(fault(&format!(r#"{{"parts": [{{"text": "b"}}, {part}]}}"#)).starts_with("bad_part: part 1 "), "{part}");
    }
    let twice = r#"{"parts": [{"image": 7}, {"text": "a", "images": [{"image": 7}]}]}"#;
    assert_eq!(fault(twice), "image_named_twice: image 7 is named more than once");
    let long = format!(r#"{{"parts": [{{"text": "{}"}}, {{"image": 0}}]}}"#, "a".repeat(TEXT_BYTES_LIMIT + 1));
    assert!(fault(&long).starts_with("too_much_text"));
}
