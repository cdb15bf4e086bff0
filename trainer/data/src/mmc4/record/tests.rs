use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::mmc4::{Field, LineFault};

fn document() -> Value {
    json!({
        "image_info": [
            {"face_detections": null, "image_name": "a.jpg", "matched_sim": 0.31, "matched_text_index": 1, "raw_url": "http://a"},
            {"face_detections": [[1, 2, 3, 4], {"x": 1}], "image_name": "b.png", "matched_sim": 1, "matched_text_index": 0, "raw_url": null},
        ],
        "similarity_matrix": [[0.1, 0.31], [1, 0.0]],
        "text_list": ["First \u{e9}.", "Second \"one\"."],
        "url": "http://page",
        "could_have_url_duplicate": 1,
    })
}

fn filled(line: &str) -> Result<Record, BadLine> {
    let mut record = Record::new();
    record.fill(line.as_bytes()).map(|()| record)
}

#[test]
fn a_line_is_taken_over_field_by_field() {
    let record = filled(&document().to_string()).expect("a document");
    assert_eq!(record.sentences().collect::<Vec<_>>(), ["First é.", "Second \"one\"."]);
    assert_eq!((record.url(), record.could_have_url_duplicate()), ("http://page", true));
    let images: Vec<_> = record
        .images()
        .iter()
        .map(|image| {
            let (name, url) = (record.image_name(image), record.raw_url(image));
            (name, url, image.matched_text_index, image.matched_sim, image.face_detections)
        })
        .collect();
    assert_eq!(images, [("a.jpg", "http://a", 1, 0.31, None), ("b.png", "", 0, 1.0, Some(2))]);
}

#[test]
fn similarities_are_as_precise_as_they_are_written() {
    for (written, value) in [("0.24", 0.24), ("0.23999999463558197", f64::from(0.24_f32)), ("2.4e-1", 0.24), ("-0", -0.0), ("1", 1.0)] {
        let line = document().to_string().replace("0.31,\"matched_text_index\"", &format!("{written},\"matched_text_index\""));
        let record = filled(&line).expect("a document");
        assert_eq!(record.images()[0].matched_sim.to_bits(), value.to_bits(), "{written}");
    }
    assert!(f64::from(0.24_f32) < 0.24);
}

#[test]
fn fields_that_are_not_needed_may_be_absent_and_unknown_ones_are_passed_over() {
    let line =
        r#"{"x":{"text_list":[1]},"text_list":["a"],"image_info":[{"y":[],"image_name":"n","matched_sim":0.5,"matched_text_index":0}]}"#;
    let record = filled(line).expect("a document");
    assert_eq!((record.url(), record.could_have_url_duplicate(), record.images().len()), ("", false, 1));
    assert_eq!(record.raw_url(&record.images()[0]), "");
}

#[test]
fn of_a_field_that_is_there_twice_the_last_counts() {
    let entry = |name| format!(r#"[{{"image_name":"{name}","matched_sim":0.5,"matched_text_index":0}}]"#);
    let line = format!(r#"{{"text_list":["a","b"],"image_info":{},"text_list":["c"],"image_info":{}}}"#, entry("x"), entry("y"));
    let record = filled(&line).expect("a document");
    assert_eq!(record.sentences().collect::<Vec<_>>(), ["c"]);
    assert_eq!(record.images().iter().map(|image| record.image_name(image)).collect::<Vec<_>>(), ["y"]);
}

/// The fault of a line and the image it is in.
fn check(line: &str, fault: LineFault, image: Option<u32>) {
    let error = filled(line).expect_err(line);
    assert_eq!((error.fault, error.image), (fault, image), "{line}");
    assert!(error.to_string().starts_with(fault.name()));
}

#[test]
fn a_line_that_is_no_object_is_said_to_be_none() {
    for line in ["[]", "3", "null", "\"text_list\"", "{\"a\" 1}", "{a:1}", "}", "{} {}"] {
        let fault = if line == "{} {}" { LineFault::Missing(Field::TextList) } else { LineFault::NotAnObject };
        check(line, fault, None);
    }
    check(&(document().to_string() + "x"), LineFault::NotAnObject, None);
    check("", LineFault::CutShort, None);
    let error = Record::new().fill(b"{\"text_list\":[\"\xff\"]}").expect_err("no UTF-8");
    assert_eq!(error.fault, LineFault::NotUtf8);
}

#[test]
fn a_line_that_is_cut_anywhere_is_never_a_document() {
    let line = document().to_string();
    for end in 0..line.len() {
        let Some(cut) = line.get(..end) else { continue };
        let error = filled(cut).expect_err(cut);
        // Where a number is cut behind its point, the reader complains of the number.
        assert!(error.fault == LineFault::CutShort || cut.ends_with('.'), "{cut}: {error}");
    }
}

#[test]
fn a_field_that_is_missing_is_named() {
    for field in ["text_list", "image_info"] {
        let mut document = document();
        document.as_object_mut().expect("an object").remove(field);
        let named = Field::REQUIRED.into_iter().find(|known| known.name() == field).expect("a field");
        check(&document.to_string(), LineFault::Missing(named), None);
    }
    for field in ["image_name", "matched_text_index", "matched_sim"] {
        let mut document = document();
        document["image_info"][1].as_object_mut().expect("an object").remove(field);
        let named = Field::REQUIRED.into_iter().find(|known| known.name() == field).expect("a field");
        check(&document.to_string(), LineFault::Missing(named), Some(1));
    }
}

#[test]
fn a_value_that_is_not_what_it_should_be_is_named_with_its_field() {
    let (object, list) = (json!({}), json!([]));
    for (field, values) in [
        (Field::TextList, [json!(null), json!("a"), json!([null]), json!([1]), json!([["a"]])]),
        (Field::ImageInfo, [json!(null), json!(1), object.clone(), json!([null]), json!([[1]])]),
        (Field::Url, [json!(1), object.clone(), list.clone(), json!(true), json!(0.5)]),
        (Field::CouldHaveUrlDuplicate, [json!("1"), object.clone(), list.clone(), json!(0.5), json!(-1)]),
    ] {
        for value in values {
            let mut document = document();
            document[field.name()] = value;
            let image = filled(&document.to_string()).expect_err("a wrong value").image;
            check(&document.to_string(), LineFault::Bad(field), image);
        }
    }
    for (field, values) in [
        (Field::ImageName, [json!(null), json!(1), object.clone(), list.clone(), json!(true)]),
        (Field::RawUrl, [json!(1), object.clone(), list.clone(), json!(true), json!(0.5)]),
        (Field::MatchedTextIndex, [json!(null), json!(-1), json!(0.5), json!("0"), json!(1_u64 << 32)]),
        (Field::MatchedSim, [json!(null), json!("0.3"), object.clone(), list.clone(), json!(true)]),
        (Field::FaceDetections, [json!(1), json!("a"), object.clone(), json!(false), json!(0.5)]),
    ] {
        for value in values {
            let mut document = document();
            document["image_info"][1][field.name()] = value;
            check(&document.to_string(), LineFault::Bad(field), Some(1));
        }
    }
}

/// Python writes NaN and infinities as words that JSON does not know.
#[test]
fn a_similarity_that_is_no_number_is_named() {
    for word in ["NaN", "Infinity", "-Infinity", "1e999", "nan"] {
        let line = document().to_string().replace("0.31,\"matched_text_index\"", &format!("{word},\"matched_text_index\""));
        check(&line, LineFault::Bad(Field::MatchedSim), Some(0));
    }
}

#[test]
fn a_sentence_that_is_not_there_is_named_by_its_image() {
    let mut document = document();
    document["image_info"][1]["matched_text_index"] = json!(2);
    check(&document.to_string(), LineFault::NoSuchSentence, Some(1));
    document["text_list"] = json!([]);
    check(&document.to_string(), LineFault::NoSuchSentence, Some(0));
}

#[test]
fn more_text_than_any_model_reads_is_a_fault() {
    let mut document = document();
    document["text_list"] = json!(["a".repeat(TEXT_BYTES_LIMIT - 1), "a"]);
    assert!(filled(&document.to_string()).is_ok());
    document["text_list"] = json!(["a".repeat(TEXT_BYTES_LIMIT), "a"]);
    check(&document.to_string(), LineFault::TooMuchText, None);
}

/// Numbers that Python writes, and damage within the matrix, which nobody reads.
#[test]
fn the_matrix_is_stepped_over_whatever_is_in_it() {
    for matrix in ["[]", "[[]]", "[[NaN, 1],\t[-Infinity, 1e5]]", "[[0.1 0.2]]", "[[\"]\", 1]]", "null", "{\"a\": [1]}", "\"[\""] {
        for key in ["\"similarity_matrix\":", "\"similarity_matrix\" : "] {
            let line = document().to_string().replace("\"similarity_matrix\":[[0.1,0.31],[1,0.0]]", &format!("{key}{matrix}"));
            assert!(line.contains(matrix));
            assert_eq!(filled(&line).expect(matrix).sentences().len(), 2);
        }
    }
}

#[test]
fn texts_that_look_like_the_matrix_are_texts() {
    for text in ["similarity_matrix", "\"similarity_matrix\": [[1", "\\\"similarity_matrix\\\": [", "]]", "\"similarity_matrix"] {
        let mut document = document();
        document["text_list"] = json!([text, "similarity_matrix", "b"]);
        document["url"] = json!(text);
        let record = filled(&document.to_string()).expect("a document");
        assert_eq!(record.sentences().collect::<Vec<_>>(), [text, "similarity_matrix", "b"]);
        assert_eq!(record.url(), text);
    }
}

#[test]
fn a_record_that_is_filled_again_keeps_nothing_but_its_buffers() {
    let mut record = Record::new();
    let line = document().to_string();
    record.fill(line.as_bytes()).expect("a document");
    let buffers = (record.texts.as_ptr(), record.sentences.as_ptr(), record.images.as_ptr(), record.short.as_ptr());
    assert!(record.fill(b"{\"text_list\": [1]}").is_err());
    record.fill(br#"{"text_list": ["x"], "image_info": []}"#).expect("a document");
    assert_eq!((record.sentences().collect::<Vec<_>>(), record.images(), record.url()), (vec!["x"], &[][..], ""));
    assert!(!record.could_have_url_duplicate());
    record.fill(line.as_bytes()).expect("a document");
    assert_eq!((record.texts.as_ptr(), record.sentences.as_ptr(), record.images.as_ptr(), record.short.as_ptr()), buffers);
}

proptest! {
    #[test]
    fn any_document_comes_back_as_it_was_written(
        texts in prop::collection::vec(any::<String>(), 1..6),
        images in prop::collection::vec((any::<String>(), 0.0..1.0_f64, any::<prop::sample::Index>()), 0..5),
        url in any::<String>(),
    ) {
        let entries: Vec<Value> = images
            .iter()
            .map(|(name, similarity, sentence)| {
                json!({"image_name": name, "matched_sim": similarity, "matched_text_index": sentence.index(texts.len())})
            })
            .collect();
        let matrix = vec![vec![0.25; texts.len()]; images.len()];
        let line = json!({"image_info": entries, "similarity_matrix": matrix, "text_list": texts, "url": url}).to_string();
        let record = filled(&line).expect("a document");
        prop_assert_eq!(record.sentences().collect::<Vec<_>>(), texts.iter().map(String::as_str).collect::<Vec<_>>());
        prop_assert_eq!(record.url(), url);
        prop_assert_eq!(record.images().len(), images.len());
        for (info, (name, similarity, sentence)) in record.images().iter().zip(&images) {
            prop_assert_eq!((record.image_name(info), info.matched_sim), (name.as_str(), *similarity));
            prop_assert_eq!(info.matched_text_index as usize, sentence.index(texts.len()));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), at in any::<prop::sample::Index>()) {
        let mut line = document().to_string().into_bytes();
        let at = at.index(line.len());
        let end = line.len().min(at + bytes.len());
        line.splice(at..end, bytes.iter().copied());
        let mut record = Record::new();
        let _ = record.fill(&line);
        let _ = record.fill(&bytes);
        prop_assert!(record.images().iter().all(|image| !image.matched_sim.is_nan()));
    }
}
