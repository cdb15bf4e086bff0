//! Reads the JSON of a line into a record's buffers.
//!
//! Comes in: a line. Goes out: the record, filled, or which field stopped it. Values go from the JSON reader straight into the record's buffers.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor},
};

use super::{ImageInfo, Record};
use crate::mmc4::line::{BadLine, Field, LineFault};

/// Fills `record` with what `line` says.
pub(super) fn parse(line: &str, record: &mut Record) -> Result<(), BadLine> {
    record.texts.clear();
    record.sentences.clear();
    record.images.clear();
    record.url = 0..0;
    record.could_have_url_duplicate = false;
    let mut reading = Reading { record, field: None, missing: None, image: None };
    let mut json = serde_json::Deserializer::from_str(line);
    let outcome = json.deserialize_map(&mut reading).and_then(|()| json.end());
    outcome.map_err(|source| {
        let fault = match (reading.missing, reading.field) {
            (Some(field), _) => LineFault::Missing(field),
            _ if source.is_eof() => LineFault::CutShort,
            (None, Some(field)) => LineFault::Bad(field),
            (None, None) => LineFault::NotAnObject,
        };
        BadLine { fault, image: reading.image, source: Some(source) }
    })
}

/// The record that is filled, and what is read at the moment.
struct Reading<'r> {
    record: &'r mut Record,
    /// The field whose value is read.
    field: Option<Field>,
    /// A field that should have been there.
    missing: Option<Field>,
    /// The image that is read.
    image: Option<u32>,
}

/// Keys of the object of a line.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum DocumentKey {
    TextList,
    ImageInfo,
    Url,
    CouldHaveUrlDuplicate,
    #[serde(other)]
    Unknown,
}

/// Keys of an image's object.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum ImageKey {
    ImageName,
    RawUrl,
    MatchedTextIndex,
    MatchedSim,
    FaceDetections,
    #[serde(other)]
    Unknown,
}

impl Reading<'_> {
    /// Reads a field's value; an error within it names the field.
    fn value<'de, M: MapAccess<'de>, S: DeserializeSeed<'de>>(&mut self, map: &mut M, field: Field, seed: S) -> Result<S::Value, M::Error> {
        let around = self.field.replace(field);
        let value = map.next_value_seed(seed)?;
        self.field = around;
        Ok(value)
    }

    /// As [`Reading::value`], for a text that is kept in the record.
    fn text<'de, M: MapAccess<'de>>(&mut self, map: &mut M, field: Field, or_null: bool) -> Result<Range<usize>, M::Error> {
        let around = self.field.replace(field);
        let range = map.next_value_seed(Text { texts: &mut self.record.texts, or_null })?;
        self.field = around;
        Ok(range)
    }

    fn required<T, E: serde::de::Error>(&mut self, value: Option<T>, field: Field) -> Result<T, E> {
        value.ok_or_else(|| {
            self.missing = Some(field);
            E::custom(format_args!("no {}", field.name()))
        })
    }

    fn image<'de, M: MapAccess<'de>>(&mut self, mut map: M) -> Result<ImageInfo, M::Error> {
        let (mut name, mut sentence, mut similarity) = (None, None, None);
        let (mut raw_url, mut faces) = (0..0, None);
        while let Some(key) = map.next_key()? {
            match key {
                ImageKey::ImageName => name = Some(self.text(&mut map, Field::ImageName, false)?),
                ImageKey::RawUrl => raw_url = self.text(&mut map, Field::RawUrl, true)?,
                ImageKey::MatchedTextIndex => sentence = Some(self.value(&mut map, Field::MatchedTextIndex, plain())?),
                ImageKey::MatchedSim => similarity = Some(self.value(&mut map, Field::MatchedSim, plain())?),
                ImageKey::FaceDetections => faces = self.value(&mut map, Field::FaceDetections, plain::<Option<Count>>())?,
                ImageKey::Unknown => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(ImageInfo {
            name: self.required(name, Field::ImageName)?,
            raw_url,
            matched_text_index: self.required(sentence, Field::MatchedTextIndex)?,
            matched_sim: self.required(similarity, Field::MatchedSim)?,
            face_detections: faces.map(|Count(count)| count),
        })
    }
}

/// The object of a line.
impl<'de> Visitor<'de> for &mut Reading<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a document's object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let (mut has_texts, mut has_images) = (None, None);
        while let Some(key) = map.next_key()? {
            match key {
                DocumentKey::TextList => {
                    self.field = Some(Field::TextList);
                    map.next_value_seed(Sentences { record: self.record })?;
                    self.field = None;
                    has_texts = Some(());
                }
                DocumentKey::ImageInfo => {
                    self.field = Some(Field::ImageInfo);
                    map.next_value_seed(Images { reading: self })?;
                    self.field = None;
                    has_images = Some(());
                }
                DocumentKey::Url => self.record.url = self.text(&mut map, Field::Url, true)?,
                DocumentKey::CouldHaveUrlDuplicate => {
                    let flag: Option<Flag> = self.value(&mut map, Field::CouldHaveUrlDuplicate, plain())?;
                    self.record.could_have_url_duplicate = flag.is_some_and(|Flag(flag)| flag);
                }
                DocumentKey::Unknown => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        self.required(has_texts, Field::TextList)?;
        self.required(has_images, Field::ImageInfo)
    }
}

/// A value that has no place in the record's buffers.
fn plain<T>() -> std::marker::PhantomData<T> {
    std::marker::PhantomData
}

/// A text, appended to the record's texts. Null is an empty one where that is allowed.
struct Text<'r> {
    texts: &'r mut String,
    or_null: bool,
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = Range<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Range<usize>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = Range<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Range<usize>, E> {
        let start = self.texts.len();
        self.texts.push_str(text);
        Ok(start..self.texts.len())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Range<usize>, E> {
        if self.or_null { Ok(0..0) } else { Err(E::invalid_type(Unexpected::Unit, &self)) }
    }
}

/// The list of sentences.
struct Sentences<'r> {
    record: &'r mut Record,
}

impl<'de> DeserializeSeed<'de> for Sentences<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Sentences<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of sentences")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<(), S::Error> {
        self.record.sentences.clear();
        while let Some(range) = list.next_element_seed(Text { texts: &mut self.record.texts, or_null: false })? {
            self.record.sentences.push(range);
        }
        Ok(())
    }
}

/// The list of images.
struct Images<'a, 'r> {
    reading: &'a mut Reading<'r>,
}

impl<'de> DeserializeSeed<'de> for Images<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Images<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of images")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<(), S::Error> {
        self.reading.record.images.clear();
        loop {
            let number = u32::try_from(self.reading.record.images.len()).map_err(S::Error::custom)?;
            self.reading.image = Some(number);
            let Some(info) = list.next_element_seed(Image { reading: self.reading })? else { break };
            self.reading.record.images.push(info);
        }
        self.reading.image = None;
        Ok(())
    }
}

/// One image.
struct Image<'a, 'r> {
    reading: &'a mut Reading<'r>,
}

impl<'de> DeserializeSeed<'de> for Image<'_, '_> {
    type Value = ImageInfo;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ImageInfo, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Image<'_, '_> {
    type Value = ImageInfo;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an image's object")
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<ImageInfo, M::Error> {
        self.reading.image(map)
    }
}

/// The length of a list.
struct Count(u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or null")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Count, S::Error> {
                let mut count = 0_u32;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count = count.saturating_add(1);
                }
                Ok(Count(count))
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

/// 0 or 1, or false or true.
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ZeroOrOne;
        impl Visitor<'_> for ZeroOrOne {
            type Value = Flag;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("0 or 1")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Flag, E> {
                Ok(Flag(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Flag, E> {
                Ok(Flag(value != 0))
            }
        }
        deserializer.deserialize_any(ZeroOrOne)
    }
}
