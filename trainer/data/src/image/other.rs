//! Formats that are not decoded, by name: a data set's owner learns what to convert.
//!
//! Comes in: a file's first bytes. Goes out: the name of its format, if it is one of the usual ones. Nothing more of the file is read.

use std::fmt;

/// A format that is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the name of a format")]
pub enum OtherFormat {
    Tiff,
    Avif,
    Heic,
    Svg,
    JpegXl,
    Jpeg2000,
    JpegXr,
    Icon,
    Photoshop,
    Netpbm,
    Qoi,
    OpenExr,
    Radiance,
    DirectDraw,
    Pdf,
    PostScript,
    Html,
    Xml,
    Video,
    Gzip,
    Zip,
}

/// First bytes, by format. Those of text formats are found behind white space and in either case.
const SIGNATURES: [(&[u8], OtherFormat); 27] = [
    (b"II*\0", OtherFormat::Tiff),
    (b"MM\0*", OtherFormat::Tiff),
    (b"II+\0", OtherFormat::Tiff),
    (b"MM\0+", OtherFormat::Tiff),
    (b"\0\0\0\x0cJXL \r\n\x87\n", OtherFormat::JpegXl),
    (b"\xff\x0a", OtherFormat::JpegXl),
    (b"\0\0\0\x0cjP  \r\n\x87\n", OtherFormat::Jpeg2000),
    (b"\xff\x4f\xff\x51", OtherFormat::Jpeg2000),
    (b"II\xbc\x01", OtherFormat::JpegXr),
    (b"\0\0\x01\0", OtherFormat::Icon),
    (b"\0\0\x02\0", OtherFormat::Icon),
    (b"8BPS", OtherFormat::Photoshop),
    (b"P1\n", OtherFormat::Netpbm),
    (b"P2\n", OtherFormat::Netpbm),
    (b"P3\n", OtherFormat::Netpbm),
    (b"P4\n", OtherFormat::Netpbm),
    (b"P5\n", OtherFormat::Netpbm),
    (b"P6\n", OtherFormat::Netpbm),
    (b"qoif", OtherFormat::Qoi),
    (b"\x76\x2f\x31\x01", OtherFormat::OpenExr),
    (b"#?RADIANCE", OtherFormat::Radiance),
    (b"DDS ", OtherFormat::DirectDraw),
    (b"%PDF-", OtherFormat::Pdf),
    (b"%!PS", OtherFormat::PostScript),
    (b"\x1aE\xdf\xa3", OtherFormat::Video),
    (b"\x1f\x8b", OtherFormat::Gzip),
    (b"PK\x03\x04", OtherFormat::Zip),
];

/// Bytes in which the first element of a text is looked for: a page of comments may stand before it.
const TEXT_BYTES: usize = 4096;

impl OtherFormat {
    /// Every format.
    pub const ALL: [Self; 21] = [
        Self::Tiff,
        Self::Avif,
        Self::Heic,
        Self::Svg,
        Self::JpegXl,
        Self::Jpeg2000,
        Self::JpegXr,
        Self::Icon,
        Self::Photoshop,
        Self::Netpbm,
        Self::Qoi,
        Self::OpenExr,
        Self::Radiance,
        Self::DirectDraw,
        Self::Pdf,
        Self::PostScript,
        Self::Html,
        Self::Xml,
        Self::Video,
        Self::Gzip,
        Self::Zip,
    ];

    /// The format of a file that begins with these bytes.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let by_signature = SIGNATURES.into_iter().find(|(signature, _)| bytes.starts_with(signature));
        by_signature.map(|(_, format)| format).or_else(|| of_boxes(bytes)).or_else(|| of_text(bytes))
    }

    /// The cause under which a record with such an image is counted.
    #[must_use]
    pub const fn cause(self) -> &'static str {
        match self {
            Self::Tiff => "unsupported_image_tiff",
            Self::Avif => "unsupported_image_avif",
            Self::Heic => "unsupported_image_heic",
            Self::Svg => "unsupported_image_svg",
            Self::JpegXl => "unsupported_image_jpeg_xl",
            Self::Jpeg2000 => "unsupported_image_jpeg_2000",
            Self::JpegXr => "unsupported_image_jpeg_xr",
            Self::Icon => "unsupported_image_ico",
            Self::Photoshop => "unsupported_image_psd",
            Self::Netpbm => "unsupported_image_pnm",
            Self::Qoi => "unsupported_image_qoi",
            Self::OpenExr => "unsupported_image_exr",
            Self::Radiance => "unsupported_image_hdr",
            Self::DirectDraw => "unsupported_image_dds",
            Self::Pdf => "unsupported_image_pdf",
            Self::PostScript => "unsupported_image_postscript",
            Self::Html => "unsupported_image_html",
            Self::Xml => "unsupported_image_xml",
            Self::Video => "unsupported_image_video",
            Self::Gzip => "unsupported_image_gzip",
            Self::Zip => "unsupported_image_zip",
        }
    }
}

impl fmt::Display for OtherFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tiff => "TIFF",
            Self::Avif => "AVIF",
            Self::Heic => "HEIC",
            Self::Svg => "SVG",
            Self::JpegXl => "JPEG XL",
            Self::Jpeg2000 => "JPEG 2000",
            Self::JpegXr => "JPEG XR",
            Self::Icon => "ICO",
            Self::Photoshop => "PSD",
            Self::Netpbm => "PNM",
            Self::Qoi => "QOI",
            Self::OpenExr => "OpenEXR",
            Self::Radiance => "Radiance HDR",
            Self::DirectDraw => "DDS",
            Self::Pdf => "PDF",
            Self::PostScript => "PostScript",
            Self::Html => "HTML",
            Self::Xml => "XML",
            Self::Video => "a video",
            Self::Gzip => "a gzip file",
            Self::Zip => "a zip file",
        })
    }
}

/// Files of boxes (ISO 14496-12): images and videos differ in the brands that they name.
fn of_boxes(bytes: &[u8]) -> Option<OtherFormat> {
    let length = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
    if bytes.get(4..8)? != b"ftyp" {
        return None;
    }
    let brands = bytes.get(8..length.min(bytes.len()))?;
    // The version stands behind the first brand and is none itself.
    let names = |wanted: &[&[u8]]| brands.chunks_exact(4).any(|brand| wanted.contains(&brand));
    Some(match () {
        () if names(&[b"avif", b"avis"]) => OtherFormat::Avif,
        () if names(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]) => OtherFormat::Heic,
        () => OtherFormat::Video,
    })
}

fn of_text(bytes: &[u8]) -> Option<OtherFormat> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let text = text.get(..TEXT_BYTES).unwrap_or(text).to_ascii_lowercase();
    let holds = |name: &[u8]| memchr::memmem::find(&text, name).is_some();
    if !text.starts_with(b"<") {
        return None;
    }
    if holds(b"<svg") && !holds(b"<html") {
        Some(OtherFormat::Svg)
    } else if holds(b"<!doctype html") || holds(b"<html") {
        Some(OtherFormat::Html)
    } else if text.starts_with(b"<?xml") {
        Some(OtherFormat::Xml)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_format_is_told_by_its_first_bytes() {
        let boxes = |brands: &[u8]| [&(8 + brands.len() as u32).to_be_bytes(), b"ftyp".as_slice(), brands].concat();
        let others: [(&[u8], OtherFormat); 9] = [
            (&boxes(b"avif\0\0\0\0mif1avif"), OtherFormat::Avif),
            (&boxes(b"mif1\0\0\0\0mif1avif"), OtherFormat::Avif),
            (&boxes(b"heic\0\0\0\0mif1heic"), OtherFormat::Heic),
            (&boxes(b"isom\0\0\x02\0isomiso2"), OtherFormat::Video),
            (b"\xef\xbb\xbf <?xml version='1.0'?>\n<!-- drawn -->\n<SVG width='3'>", OtherFormat::Svg),
            (b"<svg xmlns='http://www.w3.org/2000/svg'>", OtherFormat::Svg),
            (b"\n<!DOCTYPE HTML><html><body><svg></svg>404</body></html>", OtherFormat::Html),
            (b"<html>404</html>", OtherFormat::Html),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", OtherFormat::Xml),
        ];
        let mut seen = BTreeSet::new();
        for (bytes, format) in SIGNATURES.into_iter().chain(others) {
            assert_eq!(OtherFormat::of(bytes), Some(format), "{:?}", String::from_utf8_lossy(bytes));
            seen.insert(format);
        }
        assert!(OtherFormat::ALL.iter().all(|format| seen.contains(format)));
        for bytes in [b"plain text".as_slice(), b"", b"<", &[0; 40], b"\0\0\0\x14ftyp", b"P5x"] {
            let known = OtherFormat::of(bytes);
            assert!(known.is_none() || bytes.ends_with(b"ftyp"), "{bytes:?}: {known:?}");
        }
    }
}
