use serde_json::{Value, json};

use super::*;

/// What img2dataset writes beside an image of LAION-400M, with some more fields.
fn sidecar() -> Value {
    json!({
        "NSFW": "UNLIKELY", "similarity": 0.3213, "LICENSE": "?", "caption": "A cat on a mat", "url": "http://a.b/c.jpg", "key": "000000012",
        "status": "success", "error_message": null, "width": 256, "height": 192, "original_width": 1024, "original_height": 768,
        "exif": "{}", "sha256": "00ff", "meta": { "alt": "", "score": 5 }, "tags": ["a", 2, null], "punsafe": 0.0, "flag": true, "a b": 1,
    })
}

fn judged(filter: &str, sidecar: &Value) -> Result<(), Filtered> {
    Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error}")).judge(Some(sidecar.to_string().as_bytes()))
}

/// Whether the sample passes, or the cause of its missing and what is said of it.
fn check(filter: &str, expected: Result<(), (FilterCause, &str)>) {
    let found = judged(filter, &sidecar());
    assert_eq!(found.as_ref().map_err(|filtered| (filtered.cause, filtered.detail.as_str())).copied(), expected, "{filter}");
}

const EXCLUDED: Result<(), (FilterCause, &str)> = Err((FilterCause::Excluded, ""));

#[test]
fn samples_pass_by_the_fields_of_their_sidecar() {
    check("similarity >= 0.28 && width >= 200 && NSFW != \"NSFW\"", Ok(()));
    check("similarity >= 0.33", EXCLUDED);
    check("width >= 200 && height >= 200", EXCLUDED);
    check("!(NSFW in ['NSFW', 'UNSURE'])", Ok(()));
    check("json.similarity > 0.3 && json[\"a b\"] == 1", Ok(()));
    check("width * height >= 256 * 192 && width / height == 1 && width % 100 == 56", Ok(()));
    check("double(width) / double(height) < 1.34 && double(width) / height > 1.33 && width - 1.5 < 255", Ok(()));
    check("size(caption) == 14 && caption.size() < 15 && caption.startsWith('A ') && caption.endsWith(\"mat\")", Ok(()));
    check("caption.lowerAscii().contains('cat') && caption.matches('^A (cat|dog)\\\\b')", Ok(()));
    check("['dog', 'bird'].exists(word, caption.contains(word))", EXCLUDED);
    check("['cat', 'mat'].all(word, caption.contains(word)) && ['cat', 'dog'].exists_one(word, caption.contains(word))", Ok(()));
    check("meta.score + 1 == 6 && tags[1] == 2 && meta['alt'] == '' && 'a' in tags && !('b' in tags) && size(tags) == 3", Ok(()));
    check("flag", Ok(()));
    check("has(json.meta) && has(json.meta.alt) && !has(json.meta.none)", Ok(()));
    check("width > height ? similarity > 0.3 : similarity > 0.9", Ok(()));
    check("(width > height ? similarity : null) != null", Ok(()));
    check("int('7') == 7 && string(width) == '256' && -width < 0 && NSFW + LICENSE == 'UNLIKELY?' && int(3.9) == 3", Ok(()));
}

/// Where the two kinds of numbers meet they are numbers: Python writes 0.0 for what a person writes 0.
#[test]
fn whole_and_other_numbers_are_compared_as_numbers() {
    check("punsafe == 0 && width == 256.0 && 5.0 in [5, 6] && meta.score in [5.0] && punsafe != 1 && width > 255.5 && punsafe < 1", Ok(()));
}

#[test]
fn a_field_that_is_missing_or_of_another_type_is_told_from_a_sample_that_is_excluded() {
    check("similarty >= 0.28", Err((FilterCause::MissingField, "similarty")));
    check("meta.none == 1", Err((FilterCause::MissingField, "none")));
    check("none.alt == 1", Err((FilterCause::MissingField, "none")));
    check("has(json.aesthetic) && aesthetic > 5", EXCLUDED);
    check("!has(json.aesthetic) || aesthetic > 5", Ok(()));
    check("error_message > 3", Err((FilterCause::WrongType, "error_message is null, not a number")));
    check("NSFW > 0.5", Err((FilterCause::WrongType, "NSFW is a text, not a number")));
    check("width.contains('a')", Err((FilterCause::WrongType, "width is a number, not a text")));
    check("width.alt == 1", Err((FilterCause::WrongType, "width is a number, not an object")));
    check("meta", Err((FilterCause::WrongType, "meta is an object, not true or false")));
    check("error_message == null && NSFW != null", Ok(()));
    check("width / (height - 192) > 1", Err((FilterCause::NoValue, "a division by zero")));
    check("int(NSFW) == 1", Err((FilterCause::NoValue, "\"UNLIKELY\" is no number")));
    check("tags[3] == 1", Err((FilterCause::NoValue, "a list has no item 3")));
    check("width * 9223372036854775807 > 0", Err((FilterCause::NoValue, "a whole number beyond 64 bits")));
}

/// As the specification has it: what decides makes up for an error on the other side.
#[test]
fn a_side_that_decides_makes_up_for_an_error_on_the_other() {
    check("none > 1 || width == 256", Ok(()));
    check("width == 256 || none > 1", Ok(()));
    check("none > 1 && width == 1", EXCLUDED);
    check("none > 1 || width == 1", Err((FilterCause::MissingField, "none")));
    check("none > 1 && width == 256", Err((FilterCause::MissingField, "none")));
    check("[1, 2].exists(n, none > n || n == 2)", Ok(()));
    check("[1, 2].exists(n, none > n)", Err((FilterCause::MissingField, "none")));
    check("[1, 2].all(n, none > n && n == 1)", EXCLUDED);
}

#[test]
fn a_sample_without_a_sidecar_or_with_a_broken_one_never_passes() {
    let filter = Filter::parse("width > 0 || !has(json.width)").unwrap();
    let cause = |sidecar: Option<&[u8]>| filter.judge(sidecar).map_err(|filtered| filtered.cause);
    assert_eq!(cause(None), Err(FilterCause::NoSidecar));
    for broken in [&b""[..], b"[]", b"{\"width\": 1", b"\x00", b"{\"width\": 1}}"] {
        assert_eq!(cause(Some(broken)), Err(FilterCause::BrokenSidecar));
    }
    assert_eq!(cause(Some(b"{}")), Ok(()));
    assert_eq!(cause(Some(b"{\"width\": NaN}")), Err(FilterCause::WrongType));
}

#[test]
fn what_cannot_be_a_filter_is_refused_with_what_is_wrong() {
    let check = |filter: &str, expected: &str| {
        let error = Filter::parse(filter).expect_err(filter).to_string();
        assert!(error.contains(expected), "{filter}\n  expected {expected}\n  got {error}");
        assert!(!error.contains('\n'), "{error}");
    };
    check("similarity >=", "at character 14");
    check("width > 1 &&\n  height >> 1", "at character 24");
    check("", "in CEL");
    check("!!flag", "must not have `!` twice");
    check("similarity = 1", "at character 12: a single `=` compares nothing: write `==`");
    check("flag & width > 1", "at character 6: a single `&` joins nothing: write `&&`");
    check("flag | width > 1", "at character 6: a single `|` joins nothing: write `||`");
    check("(width > 1", "at character 11: it ends where a value, a field or a bracket is missing");
    check("has(similarity)", "has() takes a field of json, as in has(json.similarity)");
    check("similarity + 1", "the expression must be true or false, and is a number");
    check("'a' < 1", "each side of a comparison must be a text, and is a number");
    check("similarity >= '0.28' && similarity < 1", "similarity is a text in one place and a number in another");
    check("caption.contains('a') && caption > 1", "caption is a text in one place and a number in another");
    check("size(caption) == 'a'", "a number is never equal to a text");
    check("width && height > 1 && width > 1", "width is true or false in one place and a number in another");
    check("flag ? true : 5", "the expression must be true or false, and is a number");
    check("flag ? (other ? 'a' : true) : true", "the expression must be true or false, and is a text");
    check("(flag ? 1 : 'a') > 2", "each result of `?` must be a number, and is a text");
    check("(flag ? width : 'a') > 'b' && width > 1", "width is a text in one place and a number in another");
    check("flag ? width : true && width > 1", "width is true or false in one place and a number in another");
    check("true", "must name a field");
    check("1 < 2", "must name a field");
    check("lower(NSFW) == 'a'", "there is no `lower`");
    check("timestamp(a) > timestamp(b)", "there is no `timestamp`");
    check("size(a, b) > 1", "size(caption)");
    check("contains(a, 'b')", "caption.contains");
    check("a.matches(b)", "write the regular expression out");
    check("a.matches('(')", "regular expressions");
    check("tags.exists(tag, tag == 'a')", "over a list of the sample");
    check("[1].map(n, n + a)[0] == 1", "use all, exists or exists_one");
    check("[1].exists(n, [2].exists(m, a == n + m))", "within one another");
    check("json == 1", "name a field of it");
    check("json[a] == 1", "json[\"a b\"]");
    check("{'a': b} == c", "objects that are written in it");
    check("a == b'c'", "compare texts");
    check("a == Message{}", "objects that are written in it");
    check("a.b(c) == 1", "there is no `b`");
    check(&format!("a == '{}'", "x".repeat(FILTER_BYTES_LIMIT)), "at most 1024 bytes");
    check(&format!("{}a{}", "(".repeat(65), ")".repeat(65)), "must be simpler");
    check(&format!("{}a{}", "(".repeat(63), ")".repeat(62)), "in CEL");
}

/// The longest chains that fit are read and evaluated without filling the stack.
#[test]
fn the_longest_expressions_are_evaluated() {
    check(&format!("width > 0{}", "||a".repeat(300)), Ok(()));
    check(&format!("width{} > 0", "+1".repeat(500)), Ok(()));
    check(&format!("{}flag{}", "!(".repeat(64), ")".repeat(64)), Ok(()));
    check(&format!("{}width > 0{}", "(".repeat(64), ")".repeat(64)), Ok(()));
    check(&format!("{}flag", "!flag ? flag : ".repeat(64)), Ok(()));
    check(&format!("meta{} == 1", ".a".repeat(500)), Err((FilterCause::MissingField, "a")));
}

#[test]
fn every_cause_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = FilterCause::ALL.iter().map(|cause| cause.name()).collect();
    assert_eq!(names.len(), FilterCause::ALL.len());
}
