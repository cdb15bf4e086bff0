//! Why a record is left out, and with what faults an image was used all the same.
//!
//! Comes in: nothing. Goes out: names that metrics and logs count by. Nothing is decided here.

use std::fmt;

use crate::image::OtherFormat;

/// Why a record cannot be used. The record's slot stays empty; training goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkipCause {
    /// The sample has no member under a caption's key.
    NoCaption,
    /// The sample has no member under an image's key.
    NoImage,
    /// The sample has two members of one name: which of them belong together is not known.
    DoubledMember,
    /// The caption is not UTF-8.
    CaptionNotUtf8,
    /// The caption is larger than any text a model could read.
    CaptionTooLarge,
    /// The field of the json that was drawn as the caption is no text.
    CaptionNotText,
    /// Captions come from the sample's json, and that is no JSON object.
    BrokenSidecar,
    /// The image's data ends early.
    TruncatedImage,
    /// The member is no image that anybody knows, or has a feature that nobody reads.
    UnsupportedImage,
    /// The member is of a known format that is not decoded.
    OtherFormat(OtherFormat),
    /// The image's data is damaged.
    CorruptImage,
    /// The image has more bytes or pixels than the limit.
    ImageTooLarge,
    /// Neither the document nor any of those that were drawn in its place gives a sequence.
    NoDocument,
}

impl SkipCause {
    /// Causes without a format.
    const PLAIN: [Self; 12] = [
        Self::NoCaption,
        Self::NoImage,
        Self::DoubledMember,
        Self::CaptionNotUtf8,
        Self::CaptionTooLarge,
        Self::CaptionNotText,
        Self::BrokenSidecar,
        Self::TruncatedImage,
        Self::UnsupportedImage,
        Self::CorruptImage,
        Self::ImageTooLarge,
        Self::NoDocument,
    ];

    /// Every cause.
    pub const ALL: [Self; Self::PLAIN.len() + OtherFormat::ALL.len()] = {
        let mut all = [Self::NoCaption; Self::PLAIN.len() + OtherFormat::ALL.len()];
        let mut at = 0;
        while at < all.len() {
            all[at] = if at < Self::PLAIN.len() { Self::PLAIN[at] } else { Self::OtherFormat(OtherFormat::ALL[at - Self::PLAIN.len()]) };
            at += 1;
        }
        all
    };

    /// Whether it is about a caption that the sample has.
    pub(crate) const fn is_of_caption(self) -> bool {
        matches!(self, Self::CaptionNotUtf8 | Self::CaptionTooLarge | Self::CaptionNotText | Self::BrokenSidecar)
    }

    /// The name in metrics and logs, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoCaption => "no_caption",
            Self::NoImage => "no_image",
            Self::DoubledMember => "doubled_member",
            Self::CaptionNotUtf8 => "caption_not_utf8",
            Self::CaptionTooLarge => "caption_too_large",
            Self::CaptionNotText => "caption_not_text",
            Self::BrokenSidecar => "broken_sidecar",
            Self::TruncatedImage => "truncated_image",
            Self::UnsupportedImage => "unsupported_image",
            Self::OtherFormat(format) => format.cause(),
            Self::CorruptImage => "corrupt_image",
            Self::ImageTooLarge => "image_too_large",
            Self::NoDocument => "no_document",
        }
    }
}

impl fmt::Display for SkipCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a document gives no sequence. Another document is drawn in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RedrawCause {
    /// No image matches its sentence well enough.
    NoImageAboveThreshold,
    /// None of the images that were chosen can be read.
    NoImageReadable,
    /// The cut at the context leaves no image.
    NoImageFits,
}

impl RedrawCause {
    /// Every cause.
    pub const ALL: [Self; 3] = [Self::NoImageAboveThreshold, Self::NoImageReadable, Self::NoImageFits];

    /// The name in metrics and logs, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoImageAboveThreshold => "no_image_above_threshold",
            Self::NoImageReadable => "no_image_readable",
            Self::NoImageFits => "no_image_fits",
        }
    }
}

impl fmt::Display for RedrawCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fault of an image file that costs no pixel: the image is used. Of several the first that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tolerated {
    /// A JPEG's scan header says nonsense where a sequential file has nothing to say; some phones write zeros.
    JpegScanHeader,
    /// A JPEG's colour profile lacks a part, or has one twice.
    JpegProfile,
    /// A JPEG has bytes between its segments that belong to nothing.
    JpegExtraBytes,
    /// A JPEG's restart marker has the wrong number.
    JpegRestartMarker,
    /// A JPEG's JFIF or Adobe header has an unknown version or way of storing colours.
    JpegHeader,
    /// A progressive JPEG's scans refine what another has not said.
    JpegProgression,
    /// A JPEG has no end mark, but other bytes behind its data.
    JpegEnd,
    /// A PNG's chunk without pixels is damaged, unknown, or there twice, or a check sum is wrong that another one makes up for.
    PngChunk,
    /// A PNG ends behind its pixels.
    PngEnd,
    /// A WebP announces parts that are not there.
    WebpChunk,
}

impl Tolerated {
    /// Every fault.
    pub const ALL: [Self; 10] = [
        Self::JpegScanHeader,
        Self::JpegProfile,
        Self::JpegExtraBytes,
        Self::JpegRestartMarker,
        Self::JpegHeader,
        Self::JpegProgression,
        Self::JpegEnd,
        Self::PngChunk,
        Self::PngEnd,
        Self::WebpChunk,
    ];

    /// The name in metrics and logs, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::JpegScanHeader => "jpeg_scan_header",
            Self::JpegProfile => "jpeg_profile",
            Self::JpegExtraBytes => "jpeg_extra_bytes",
            Self::JpegRestartMarker => "jpeg_restart_marker",
            Self::JpegHeader => "jpeg_header",
            Self::JpegProgression => "jpeg_progression",
            Self::JpegEnd => "jpeg_end",
            Self::PngChunk => "png_chunk",
            Self::PngEnd => "png_end",
            Self::WebpChunk => "webp_chunk",
        }
    }
}

impl fmt::Display for Tolerated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cause_is_listed_once_under_a_name_of_its_own() {
        let causes: BTreeSet<&str> = SkipCause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(causes.len(), SkipCause::ALL.len());
        let faults: BTreeSet<&str> = Tolerated::ALL.iter().map(|fault| fault.name()).collect();
        assert_eq!(faults.len(), Tolerated::ALL.len());
        let redraws: BTreeSet<&str> = RedrawCause::ALL.iter().map(|cause| cause.name()).collect();
        assert_eq!(redraws.len(), RedrawCause::ALL.len());
        assert!(causes.is_disjoint(&faults) && causes.is_disjoint(&redraws) && faults.is_disjoint(&redraws));
    }
}
