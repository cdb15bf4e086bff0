//! Which caption a sample has.
//!
//! Comes in: the keys, what the index says of a sample, and the contents of its files. Goes out: the caption, or why there is none. Where captions
//! are drawn, the draw is among those that the sample has, by their weights; what a caption lacks to be one is found once it is drawn.

use std::borrow::Cow;

use lcl_filter::fields_of;
use lcl_trainer_config::{CaptionFrom, SIDECAR_KEY, SampleKeys};
use serde_json::Value;

use crate::{
    cause::SkipCause,
    dataset::CAPTION_BYTES_LIMIT,
    draw::Draw,
    index::{Extent, Record},
};

/// Which of several captions is used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choose {
    /// The first that the sample has.
    First,
    /// The one that is drawn for a slot.
    Drawn(Draw),
}

impl Choose {
    /// The number of one of several captions with these weights, of which one is not 0.
    fn among(self, weights: &[u64]) -> usize {
        match self {
            Self::First => weights.iter().position(|weight| *weight > 0).unwrap_or(0),
            Self::Drawn(draw) => draw.caption(weights),
        }
    }
}

/// A file that a caption may come from.
#[derive(Clone, Debug)]
pub(super) struct Text {
    /// Its number by [`SampleKeys::caption_number`].
    number: usize,
    /// Where it lies.
    pub(super) extent: Extent,
    /// What is in it; empty until it is read.
    pub(super) contents: Vec<u8>,
}

impl Text {
    /// Whether it is small enough to be read.
    pub(super) const fn fits(&self) -> bool {
        self.extent.length <= CAPTION_BYTES_LIMIT
    }
}

/// The files of a sample that a caption may come from. Keeps buffers from sample to sample.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// Those behind the first `count` are of samples before.
    all: Vec<Text>,
    count: usize,
}

impl Texts {
    /// Takes the files that a sample has.
    pub(super) fn take(&mut self, record: &Record) {
        self.count = 0;
        let extents = [record.caption].into_iter().chain(record.others.iter().copied()).enumerate();
        for (number, extent) in extents.filter_map(|(number, extent)| Some((number, extent?))) {
            // No caption. An index of an earlier version may have it.
            if extent.length == 0 {
                continue;
            }
            if let Some(text) = self.all.get_mut(self.count) {
                text.contents.clear();
                (text.number, text.extent) = (number, extent);
            } else {
                self.all.push(Text { number, extent, contents: Vec::new() });
            }
            self.count += 1;
        }
    }

    pub(super) fn get(&self) -> &[Text] {
        self.all.get(..self.count).unwrap_or_default()
    }

    pub(super) fn get_mut(&mut self) -> &mut [Text] {
        self.all.get_mut(..self.count).unwrap_or_default()
    }
}

/// What a caption would be.
enum Candidate<'text, 'field> {
    Nothing,
    File(&'text Text),
    Field(&'field Value),
}

/// Puts the caption of a sample with these files into `caption`. Allocates where captions are drawn.
pub(super) fn choose(keys: &SampleKeys, texts: &[Text], choose: Choose, caption: &mut String) -> Result<(), SkipCause> {
    caption.clear();
    let chosen = if keys.draws_captions() {
        drawn(keys, texts, choose)?
    } else {
        Cow::Borrowed(texts.first().filter(|text| !is_blank(text)).ok_or(SkipCause::NoCaption).and_then(text_in)?)
    };
    caption.push_str(&chosen);
    Ok(())
}

fn drawn<'a>(keys: &SampleKeys, texts: &'a [Text], choose: Choose) -> Result<Cow<'a, str>, SkipCause> {
    let fields = fields(keys, texts).map_err(|_| SkipCause::BrokenSidecar)?;
    let candidates: Vec<Candidate<'_, '_>> = candidates(keys, texts, &fields).collect();
    let weight = |(candidate, weight): (&Candidate, u32)| if matches!(candidate, Candidate::Nothing) { 0 } else { u64::from(weight) };
    let weights: Vec<u64> = candidates.iter().zip(keys.captions.iter().map(|choice| choice.weight)).map(weight).collect();
    if weights.iter().all(|weight| *weight == 0) {
        return Err(SkipCause::NoCaption);
    }
    match candidates.get(choose.among(&weights)) {
        None | Some(Candidate::Nothing) => Err(SkipCause::NoCaption),
        Some(Candidate::File(text)) => text_in(text).map(Cow::Borrowed),
        Some(Candidate::Field(Value::String(text))) => Ok(Cow::Owned(text.clone())),
        Some(Candidate::Field(_)) => Err(SkipCause::CaptionNotText),
    }
}

/// What each of the captions to draw from would be, in the order of the list. `fields` are those of the json.
fn candidates<'text, 'field>(
    keys: &SampleKeys,
    texts: &'text [Text],
    fields: &'field [Option<Value>],
) -> impl Iterator<Item = Candidate<'text, 'field>> {
    let mut fields = fields.iter();
    keys.captions.iter().map(move |choice| match &choice.from {
        CaptionFrom::Key(key) => file_in(keys, texts, key).filter(|text| !is_blank(text)).map_or(Candidate::Nothing, Candidate::File),
        CaptionFrom::Json(path) => match fields.next().and_then(|field| below(field.as_ref()?, path)) {
            None | Some(Value::Null) => Candidate::Nothing,
            Some(Value::String(text)) if text.trim().is_empty() => Candidate::Nothing,
            Some(value) => Candidate::Field(value),
        },
    })
}

fn is_blank(text: &Text) -> bool {
    text.fits() && text.contents.trim_ascii().is_empty()
}

fn file_in<'a>(keys: &SampleKeys, texts: &'a [Text], key: &str) -> Option<&'a Text> {
    let number = keys.caption_number(key.as_bytes())?;
    texts.iter().find(|text| text.number == usize::from(number))
}

fn text_in(text: &Text) -> Result<&str, SkipCause> {
    if !text.fits() {
        return Err(SkipCause::CaptionTooLarge);
    }
    str::from_utf8(&text.contents).map_err(|_| SkipCause::CaptionNotUtf8)
}

/// For every choice that is a field of the json, the field of the json's object that it begins at. The json is parsed once for all of them. What is
/// wrong with one that cannot be parsed is said in words.
fn fields(keys: &SampleKeys, texts: &[Text]) -> Result<Vec<Option<Value>>, String> {
    let mut names: Vec<&str> = field_paths(keys).map(|path| path.split('.').next().unwrap_or(path)).collect();
    let Some(sidecar) = file_in(keys, texts, SIDECAR_KEY).filter(|_| !names.is_empty()) else { return Ok(vec![None; names.len()]) };
    if !sidecar.fits() {
        return Err(too_large(sidecar));
    }
    let wanted = names.clone();
    names.sort_unstable();
    names.dedup();
    let values = fields_of(&sidecar.contents, &names).map_err(|error| error.to_string())?;
    let value = |name: &&str| names.binary_search(name).ok().and_then(|at| values.get(at)).cloned().flatten();
    Ok(wanted.iter().map(value).collect())
}

/// What lies at a path in the value of its first name.
fn below<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').skip(1).try_fold(value, |value, name| value.get(name))
}

/// What keeps a caption from being one.
pub(super) struct Fault {
    pub(super) cause: SkipCause,
    /// The file to blame.
    pub(super) extent: Extent,
    /// What of it is wrong.
    pub(super) detail: String,
}

/// What is wrong with each caption that a sample has, in the order of the list. That it has none is no fault of a caption.
pub(super) fn faults(keys: &SampleKeys, texts: &[Text]) -> Vec<Fault> {
    if !keys.draws_captions() {
        return texts.first().and_then(fault_in).into_iter().collect();
    }
    let in_json = |cause, detail| json_in(keys, texts).map(|json| Fault { cause, extent: json.extent, detail });
    let fields = match fields(keys, texts) {
        Ok(fields) => fields,
        Err(detail) => return in_json(SkipCause::BrokenSidecar, detail).into_iter().collect(),
    };
    let mut faults: Vec<Fault> = Vec::new();
    for (choice, candidate) in keys.captions.iter().zip(candidates(keys, texts, &fields)) {
        let fault = match (&choice.from, candidate) {
            (_, Candidate::File(text)) => fault_in(text),
            (CaptionFrom::Json(path), Candidate::Field(value)) if !value.is_string() => {
                in_json(SkipCause::CaptionNotText, format!("its field `{path}` is {}, and no text", kind_of(value)))
            }
            _ => None,
        };
        // A choice may be in the list twice.
        faults.extend(fault.filter(|fault| faults.iter().all(|other| (other.extent, &other.detail) != (fault.extent, &fault.detail))));
    }
    faults
}

fn fault_in(text: &Text) -> Option<Fault> {
    let cause = text_in(text).err()?;
    let no_utf8 = |error: std::str::Utf8Error| format!("its byte {} is no UTF-8", error.valid_up_to());
    let detail = str::from_utf8(&text.contents).err().filter(|_| text.fits()).map_or_else(|| too_large(text), no_utf8);
    Some(Fault { cause, extent: text.extent, detail })
}

fn too_large(text: &Text) -> String {
    format!("it has {} bytes, more than {CAPTION_BYTES_LIMIT}", text.extent.length)
}

fn json_in<'a>(keys: &SampleKeys, texts: &'a [Text]) -> Option<&'a Text> {
    file_in(keys, texts, SIDECAR_KEY).filter(|_| keys.draws_captions())
}

/// The file that is to blame where a sample has no caption, and what of it is wrong; `None` where there is no such file.
pub(super) fn blamed_for_none(keys: &SampleKeys, texts: &[Text]) -> Option<(Extent, String)> {
    let blank = texts.iter().find(|text| is_blank(text)).map(|text| (text.extent, "it holds nothing but white space".to_owned()));
    blank.or_else(|| {
        let paths: Vec<String> = field_paths(keys).map(|path| format!("`{path}`")).collect();
        let detail = format!("no text in its {} {}", if paths.len() == 1 { "field" } else { "fields" }, paths.join(", "));
        Some((json_in(keys, texts)?.extent, detail))
    })
}

/// Paths of the fields that captions come from.
fn field_paths(keys: &SampleKeys) -> impl Iterator<Item = &str> {
    keys.captions.iter().filter_map(|choice| match &choice.from {
        CaptionFrom::Json(path) => Some(path.as_str()),
        CaptionFrom::Key(_) => None,
    })
}

const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::CaptionChoice;

    use super::*;

    fn keys(captions: &[(&str, u32)]) -> SampleKeys {
        let choice = |(from, weight): &(&str, u32)| {
            let from =
                from.strip_prefix("json:").map_or_else(|| CaptionFrom::Key((*from).to_owned()), |path| CaptionFrom::Json(path.to_owned()));
            CaptionChoice { from, weight: *weight }
        };
        SampleKeys { captions: captions.iter().map(choice).collect(), ..SampleKeys::default() }
    }

    fn chosen(keys: &SampleKeys, texts: &[Text], how: Choose) -> Result<String, SkipCause> {
        let mut caption = "the one before".to_owned();
        choose(keys, texts, how, &mut caption).map(|()| caption)
    }

    /// The captions of a sample with these files that are drawn in 200 slots, each once, in order.
    fn drawn(keys: &SampleKeys, files: &[(&str, &[u8])]) -> Vec<Result<String, &'static str>> {
        let record = |key: &str| {
            let contents = files.iter().find(|(name, _)| *name == key)?.1;
            Some(Extent { offset: 512, length: contents.len() as u32 })
        };
        let mut extents = keys.caption_files().map(record);
        let record = Record { start: 0, image: None, caption: extents.next().flatten(), others: extents.collect(), doubled: false };
        let mut texts = Texts::default();
        texts.take(&record);
        for text in texts.get_mut().iter_mut().filter(|text| text.fits()) {
            let key = keys.caption_files().nth(text.number).expect("a file of the keys");
            text.contents = files.iter().find(|(name, _)| *name == key).expect("a file of the sample").1.to_vec();
        }
        let of = |slot| chosen(keys, texts.get(), Choose::Drawn(Draw { seed: 1, step: 2, slot })).map_err(SkipCause::name);
        let mut found: Vec<_> = (0..200).map(of).collect();
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn a_caption_is_drawn_among_those_that_the_sample_has() {
        let keys = keys(&[("txt", 1), ("json:caption", 2), ("json:meta.alt", 1)]);
        let check = |files: &[(&str, &[u8])], expected: &[Result<&str, &'static str>]| {
            let found = drawn(&keys, files);
            assert_eq!(found.iter().map(|drawn| drawn.as_deref().map_err(|cause| *cause)).collect::<Vec<_>>(), expected, "{files:?}");
        };
        let json: &[u8] = br#"{"caption": "c", "meta": {"alt": "a"}}"#;
        check(&[("txt", b"t"), ("json", json)], &[Ok("a"), Ok("c"), Ok("t")]);
        check(&[("json", json)], &[Ok("a"), Ok("c")]);
        check(&[("txt", b"t")], &[Ok("t")]);
        // Empty ones are left out: img2dataset writes them where there was none.
        check(&[("txt", b""), ("json", br#"{"caption": null, "meta": {"alt": " "}}"#)], &[Err("no_caption")]);
        check(&[("txt", b"\n"), ("json", br#"{"caption": "c", "meta": "no object"}"#)], &[Ok("c")]);
        check(&[("json", br#"{"url": "u"}"#)], &[Err("no_caption")]);
        // What is there is drawn, and then is no caption.
        check(&[("txt", b"t"), ("json", br#"{"caption": 7}"#)], &[Ok("t"), Err("caption_not_text")]);
        check(&[("txt", b"\xff"), ("json", br#"{"caption": "c"}"#)], &[Ok("c"), Err("caption_not_utf8")]);
        let large = vec![b'a'; CAPTION_BYTES_LIMIT as usize + 1];
        check(&[("txt", &large), ("json", br#"{"caption": "c"}"#)], &[Ok("c"), Err("caption_too_large")]);
        // Nobody knows what a broken json says.
        check(&[("txt", b"t"), ("json", b"{\"caption\": ")], &[Err("broken_sidecar")]);
        check(&[("txt", b"t"), ("json", b"")], &[Ok("t")]);
        check(&[("txt", b"t"), ("json", &large)], &[Err("broken_sidecar")]);
    }

    #[test]
    fn a_whole_json_may_be_a_caption_and_nobody_parses_it() {
        assert_eq!(drawn(&keys(&[("json", 1), ("txt", 1)]), &[("json", b"{no json")]), [Ok("{no json".to_owned())]);
    }

    #[test]
    fn an_empty_or_blank_caption_is_none_whether_captions_are_drawn_or_not() {
        for keys in [SampleKeys::default(), keys(&[("txt", 1)])] {
            let caption = |contents: &[u8]| {
                let caption = Some(Extent { offset: 512, length: contents.len() as u32 });
                let mut texts = Texts::default();
                texts.take(&Record { start: 0, image: None, caption, others: Vec::new(), doubled: false });
                texts.get_mut().iter_mut().for_each(|text| text.contents = contents.to_vec());
                chosen(&keys, texts.get(), Choose::First).map_err(SkipCause::name)
            };
            for blank in ["", " ", "\n", " \r\n\t"] {
                assert_eq!(caption(blank.as_bytes()), Err("no_caption"), "{blank:?}");
            }
            assert_eq!(caption(b" a\n"), Ok(" a\n".to_owned()));
        }
    }

    #[test]
    fn the_first_caption_is_the_first_of_the_list_that_the_sample_has() {
        let keys = keys(&[("json:caption", 1), ("txt", 1000)]);
        let text = |number, contents: &[u8]| Text {
            number,
            extent: Extent { offset: 512, length: contents.len() as u32 },
            contents: contents.to_vec(),
        };
        let texts = [text(0, br#"{"caption": "c"}"#), text(1, b"t")];
        assert_eq!(chosen(&keys, &texts, Choose::First), Ok("c".to_owned()));
        assert_eq!(chosen(&keys, &texts[1..], Choose::First), Ok("t".to_owned()));
        assert_eq!(chosen(&keys, &[], Choose::First), Err(SkipCause::NoCaption));
    }
}
