//! Documents in tar shards: `KEY.json` with the parts of one in their order, and `KEY.0.jpg`, `KEY.1.png` and so on with its images.
//!
//! Comes in: the JSON, and random choices. Goes out: a [`Document`] ([`PackedDocument::lay_out`]). Where the bytes lie is
//! [`members`]'s matter.
//!
//! The JSON is `{"parts": […]}`, and each part is one of
//!
//! - `{"text": "…"}`: a text;
//! - `{"image": 0}`: the image `KEY.0.…`;
//! - `{"text": "…", "images": [{"image": 0}, {"image": 3}]}`: a text with images of which one is drawn, and stands before or behind it.
//!
//! The last is how MMC4 has it, so that what is converted gives, for the same draws, the sequences of its source. Images may have a `similarity` and
//! a `url`, and a document a `url`: nothing here reads them. Other fields are passed over.

pub(crate) mod members;

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{
    cause::RedrawCause,
    document::Document,
    mmc4::{Choices, TEXT_BYTES_LIMIT},
};

/// A document as `KEY.json` has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PackedDocument {
    /// The parts in their order.
    pub parts: Vec<PackedPart>,
    /// The page that it is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A part of a document: a text, perhaps with images of which one is drawn, or an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PackedPart {
    /// The text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Images of which one is drawn, and stands on either side of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<PackedImage>,
    /// The number of an image that stands by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<u32>,
    /// Where that image was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// An image that may be drawn for a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackedImage {
    /// Its number: its file is `KEY.NUMBER.…`.
    pub image: u32,
    /// How well it matches the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub similarity: Option<f64>,
    /// Where it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// What is wrong with the JSON of a document.
#[derive(Debug, thiserror::Error)]
pub enum PackedFault {
    /// It is no JSON, or has other fields.
    #[error("it is no document: {0}")]
    Json(#[from] serde_json::Error),
    /// A part is neither a text nor an image, or both.
    #[error("part {part} has to have either `text` or `image`, and `images` only beside `text`")]
    Part {
        /// Its number, from 0.
        part: usize,
    },
    /// An image is named in two places.
    #[error("image {image} is named more than once")]
    Twice {
        /// Its number.
        image: u32,
    },
    /// The texts have more bytes together than any text a model could read.
    #[error("its texts have {bytes} bytes, more than {TEXT_BYTES_LIMIT}")]
    TooMuchText {
        /// How many.
        bytes: usize,
    },
}

impl PackedFault {
    /// The name in metrics and logs, in snake case.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Json(_) => "bad_json",
            Self::Part { .. } => "bad_part",
            Self::Twice { .. } => "image_named_twice",
            Self::TooMuchText { .. } => "too_much_text",
        }
    }
}

impl PackedPart {
    /// A text.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        Self { text: Some(text.to_owned()), ..Self::default() }
    }
}

impl PackedDocument {
    /// Reads the JSON of a document.
    pub fn parse(json: &[u8]) -> Result<Self, PackedFault> {
        let document: Self = serde_json::from_slice(json)?;
        let mut named = HashSet::new();
        for (part, PackedPart { text, images, image, .. }) in document.parts.iter().enumerate() {
            if text.is_some() == image.is_some() || (text.is_none() && !images.is_empty()) {
                return Err(PackedFault::Part { part });
            }
            if let Some(image) = image.iter().chain(images.iter().map(|image| &image.image)).find(|image| !named.insert(**image)) {
                return Err(PackedFault::Twice { image: *image });
            }
        }
        let bytes = document.parts.iter().filter_map(|part| part.text.as_ref()).map(String::len).sum();
        if bytes > TEXT_BYTES_LIMIT { Err(PackedFault::TooMuchText { bytes }) } else { Ok(document) }
    }

    /// Numbers of all images that it names, in the order of their places.
    pub fn images(&self) -> impl Iterator<Item = u32> {
        self.parts.iter().flat_map(|part| part.image.into_iter().chain(part.images.iter().map(|image| image.image)))
    }

    /// How many of the images that are there, as `is_there` knows, a sequence takes at most. One that is drawn for a text counts whether or not
    /// it is there, as in [`PackedDocument::lay_out`].
    pub(crate) fn most_images(&self, limit: usize, is_there: impl Fn(u32) -> bool) -> usize {
        let takes = |part: &&PackedPart| part.image.is_some_and(&is_there) || !part.images.is_empty();
        self.parts.iter().filter(takes).take(limit).count()
    }

    /// Fills `document` with the parts. `fetch` is asked for one image after the other and says whether it can be read.
    ///
    /// Of the images of a text one is drawn; up to `limit` images are taken. One that was drawn counts even when it cannot be read, and
    /// nothing takes its place, as MMC4 has it; one that stands by itself and cannot be read does not count, as OBELICS has it.
    pub fn lay_out<E>(
        &self,
        limit: usize,
        before_probability: f64,
        choices: &mut impl Choices,
        mut fetch: impl FnMut(u32) -> Result<bool, E>,
        document: &mut Document,
    ) -> Result<Result<(), RedrawCause>, E> {
        document.clear();
        let mut taken = 0;
        for (number, part) in (0_u32..).zip(&self.parts) {
            if let Some(image) = part.image.filter(|_| taken < limit)
                && fetch(image)?
            {
                document.push_image(image);
                taken += 1;
            }
            let Some(text) = &part.text else { continue };
            let drawn = if taken < limit { self::drawn(number, &part.images, choices) } else { None };
            taken += usize::from(drawn.is_some());
            let image = match drawn {
                Some(image) if fetch(image)? => Some(image),
                _ => None,
            };
            let before = image.is_some_and(|image| choices.before(image, before_probability));
            image.filter(|_| before).into_iter().for_each(|image| document.push_image(image));
            document.push_text(text);
            image.filter(|_| !before).into_iter().for_each(|image| document.push_image(image));
        }
        Ok(if document.images().next().is_none() { Err(RedrawCause::NoImageReadable) } else { Ok(()) })
    }
}

/// The image that is drawn for a text, if it has any.
fn drawn(text: u32, images: &[PackedImage], choices: &mut impl Choices) -> Option<u32> {
    let candidates: Vec<u32> = images.iter().map(|image| image.image).collect();
    let first = candidates.first().copied()?;
    let kept = if candidates.len() > 1 { choices.kept(text, &candidates) } else { 0 };
    Some(candidates.get(kept).copied().unwrap_or(first))
}

#[cfg(test)]
mod tests;
