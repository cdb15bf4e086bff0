//! What can be wrong with a line of a shard.
//!
//! Comes in: nothing. Goes out: names that metrics and logs count by. Nothing is decided here.

use std::fmt;

/// A field of a record that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `text_list`: the sentences.
    TextList,
    /// `image_info`: the images.
    ImageInfo,
    /// `url`: the page. May be absent.
    Url,
    /// `could_have_url_duplicate`: 0 or 1. May be absent.
    CouldHaveUrlDuplicate,
    /// `image_name` of an image: its file.
    ImageName,
    /// `raw_url` of an image: where it was found. May be absent.
    RawUrl,
    /// `matched_text_index` of an image: its sentence, from 0.
    MatchedTextIndex,
    /// `matched_sim` of an image: how well it matches the sentence.
    MatchedSim,
    /// `face_detections` of an image: a list, or null. May be absent.
    FaceDetections,
}

impl Field {
    /// Every field.
    pub const ALL: [Self; 9] = [
        Self::TextList,
        Self::ImageInfo,
        Self::Url,
        Self::CouldHaveUrlDuplicate,
        Self::ImageName,
        Self::RawUrl,
        Self::MatchedTextIndex,
        Self::MatchedSim,
        Self::FaceDetections,
    ];

    /// Fields that every record, and every image of one, has to have.
    pub const REQUIRED: [Self; 5] = [Self::TextList, Self::ImageInfo, Self::ImageName, Self::MatchedTextIndex, Self::MatchedSim];

    /// Its name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.names().0
    }

    /// The name in the file, the name of the fault that it is missing, and that of the fault that it is not what it should be.
    const fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::TextList => ("text_list", "missing_text_list", "bad_text_list"),
            Self::ImageInfo => ("image_info", "missing_image_info", "bad_image_info"),
            Self::Url => ("url", "missing_url", "bad_url"),
            Self::CouldHaveUrlDuplicate => ("could_have_url_duplicate", "missing_could_have_url_duplicate", "bad_could_have_url_duplicate"),
            Self::ImageName => ("image_name", "missing_image_name", "bad_image_name"),
            Self::RawUrl => ("raw_url", "missing_raw_url", "bad_raw_url"),
            Self::MatchedTextIndex => ("matched_text_index", "missing_matched_text_index", "bad_matched_text_index"),
            Self::MatchedSim => ("matched_sim", "missing_matched_sim", "bad_matched_sim"),
            Self::FaceDetections => ("face_detections", "missing_face_detections", "bad_face_detections"),
        }
    }
}

/// Why a line is no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LineFault {
    /// The line has more bytes than any document.
    TooLong,
    /// The line is not UTF-8.
    NotUtf8,
    /// The line ends before its object does.
    CutShort,
    /// The line is no JSON object, or more than one.
    NotAnObject,
    /// A field that is needed is not there.
    Missing(Field),
    /// A field holds something else than it should, NaN for instance.
    Bad(Field),
    /// An image's sentence is not there.
    NoSuchSentence,
    /// The sentences have more bytes together than any text a model could read.
    TooMuchText,
}

impl LineFault {
    /// Every fault.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let plain = [Self::TooLong, Self::NotUtf8, Self::CutShort, Self::NotAnObject, Self::NoSuchSentence, Self::TooMuchText];
        plain.into_iter().chain(Field::REQUIRED.map(Self::Missing)).chain(Field::ALL.map(Self::Bad)).collect()
    }

    /// The name in metrics and logs, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLong => "line_too_long",
            Self::NotUtf8 => "line_not_utf8",
            Self::CutShort => "line_cut_short",
            Self::NotAnObject => "line_not_an_object",
            Self::Missing(field) => field.names().1,
            Self::Bad(field) => field.names().2,
            Self::NoSuchSentence => "no_such_sentence",
            Self::TooMuchText => "too_much_text",
        }
    }
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A line is no document, and why.
#[derive(Debug, thiserror::Error)]
#[error("{fault}{}", .image.map_or(String::new(), |image| format!(" (image {image})")))]
pub struct BadLine {
    /// What it is counted as.
    pub fault: LineFault,
    /// The image whose entry is at fault, from 0.
    pub image: Option<u32>,
    /// What the JSON reader says.
    pub(super) source: Option<serde_json::Error>,
}

impl BadLine {
    pub(super) fn new(fault: LineFault) -> Self {
        Self { fault, image: None, source: None }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_fault_has_a_name_of_its_own_that_names_its_field() {
        let faults = LineFault::all();
        let names: BTreeSet<&str> = faults.iter().map(|fault| fault.name()).collect();
        assert_eq!(names.len(), faults.len());
        assert!(Field::ALL.iter().all(|field| LineFault::Bad(*field).name().ends_with(field.name())));
        assert!(Field::REQUIRED.iter().all(|field| LineFault::Missing(*field).name() == format!("missing_{}", field.name())));
    }
}
