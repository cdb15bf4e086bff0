//! From a row to the parts of its documents.
//!
//! Comes in: the two lists of a row. Goes out: texts and addresses in their order, cut into stretches, or what is wrong with the row. It reads
//! nothing, and does not know which images there are.

use std::fmt;

use parquet::data_type::ByteArray;

use crate::obelics::column::List;

/// What the texts of the published set have where a page changes its topic.
pub const END_MARK: &str = "END_OF_DOCUMENT_TOKEN_TO_BE_REPLACED";

/// A part of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<T = String> {
    /// A text as it is in the file, but for what a mark of an end was cut from.
    Text(T),
    /// The address of an image.
    Image(T),
}

impl Part<&str> {
    pub(crate) fn to_owned(self) -> Part {
        match self {
            Self::Text(text) => Part::Text(text.to_owned()),
            Self::Image(address) => Part::Image(address.to_owned()),
        }
    }
}

/// What is wrong with a row: it gives no document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFault {
    /// A list is null.
    NoList {
        /// Which.
        column: &'static str,
    },
    /// The lists differ in length.
    Lengths {
        /// Length of `images`.
        images: usize,
        /// Length of `texts`.
        texts: usize,
    },
    /// At one place there are both an image and a text.
    Both {
        /// The place, from 0.
        at: usize,
    },
    /// At one place there is neither an image nor a text.
    Neither {
        /// The place, from 0.
        at: usize,
    },
    /// An entry is not UTF-8.
    NotUtf8 {
        /// In which list.
        column: &'static str,
        /// The place, from 0.
        at: usize,
    },
}

impl RowFault {
    /// The name in metrics and logs, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoList { .. } => "no_list",
            Self::Lengths { .. } => "lengths_differ",
            Self::Both { .. } => "image_and_text",
            Self::Neither { .. } => "neither_image_nor_text",
            Self::NotUtf8 { .. } => "not_utf8",
        }
    }
}

impl fmt::Display for RowFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoList { column } => write!(f, "`{column}` is null"),
            Self::Lengths { images, texts } => write!(f, "`images` has {images} entries, but `texts` {texts}"),
            Self::Both { at } => write!(f, "entry {at} is both an image and a text"),
            Self::Neither { at } => write!(f, "entry {at} is neither an image nor a text"),
            Self::NotUtf8 { column, at } => write!(f, "entry {at} of `{column}` is not UTF-8"),
        }
    }
}

/// A row of a file.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) images: List,
    pub(crate) texts: List,
}

impl Row {
    /// The row's parts, cut into stretches when `split` says so. A row has at least one stretch; one can be empty.
    ///
    /// Where [`END_MARK`] stands in a text, a stretch ends before it and the next begins behind it; what is left of the text on either side is a
    /// part when it is more than white space. Without `split` the mark stays in its text like any other word.
    pub(crate) fn stretches(&self, split: bool) -> Result<Vec<Vec<Part<&str>>>, RowFault> {
        let (mut stretches, mut current) = (Vec::new(), Vec::new());
        for part in self.parts()? {
            match part {
                Part::Text(text) if split && text.contains(END_MARK) => {
                    for (number, piece) in text.split(END_MARK).enumerate() {
                        if number > 0 {
                            stretches.push(std::mem::take(&mut current));
                        }
                        if !piece.trim().is_empty() {
                            current.push(Part::Text(piece));
                        }
                    }
                }
                part => current.push(part),
            }
        }
        stretches.push(current);
        Ok(stretches)
    }

    fn parts(&self) -> Result<Vec<Part<&str>>, RowFault> {
        let images = self.images.as_ref().ok_or(RowFault::NoList { column: "images" })?;
        let texts = self.texts.as_ref().ok_or(RowFault::NoList { column: "texts" })?;
        if images.len() != texts.len() {
            return Err(RowFault::Lengths { images: images.len(), texts: texts.len() });
        }
        let mut parts = Vec::with_capacity(images.len());
        for (at, pair) in images.iter().zip(texts).enumerate() {
            parts.push(match pair {
                (Some(image), None) => Part::Image(utf8(image, "images", at)?),
                (None, Some(text)) => Part::Text(utf8(text, "texts", at)?),
                (Some(_), Some(_)) => return Err(RowFault::Both { at }),
                (None, None) => return Err(RowFault::Neither { at }),
            });
        }
        Ok(parts)
    }
}

fn utf8<'a>(bytes: &'a ByteArray, column: &'static str, at: usize) -> Result<&'a str, RowFault> {
    std::str::from_utf8(bytes.data()).map_err(|_| RowFault::NotUtf8 { column, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of these parts: an image begins with `@`.
    fn row(parts: &[&str]) -> Row {
        let list = |images: bool| parts.iter().map(|part| (part.starts_with('@') == images).then(|| ByteArray::from(*part))).collect();
        Row { images: Some(list(true)), texts: Some(list(false)) }
    }

    fn check(parts: &[&str], split: bool, expected: &[&[&str]]) {
        let row = row(parts);
        let stretches = row.stretches(split).expect("a sound row");
        let names: Vec<Vec<&str>> =
            stretches.iter().map(|parts| parts.iter().map(|(Part::Text(name) | Part::Image(name))| *name).collect()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_row_is_cut_at_every_mark_of_an_end() {
        let text = |template: &str| template.replace('|', END_MARK);
        check(&["@a", "b", "@c"], true, &[&["@a", "b", "@c"]]);
        check(&["@a", &text("b\n\n|\n\nc"), "@d"], true, &[&["@a", "b\n\n"], &["\n\nc", "@d"]]);
        check(&["@a", &text("|"), "b"], true, &[&["@a"], &["b"]]);
        // Two in one text: what is between them is a stretch without an image, and not lost.
        check(&["@a", &text("b|c|d")], true, &[&["@a", "b"], &["c"], &["d"]]);
        check(&[&text(" |\n"), "@a", &text("||")], true, &[&[], &["@a"], &[], &[]]);
        check(&[], true, &[&[]]);
        // It is cut nowhere else.
        let lower = END_MARK.to_lowercase();
        check(&["@a", &lower], true, &[&["@a", &lower]]);
    }

    #[test]
    fn without_the_setting_the_mark_is_text() {
        let text = format!("a {END_MARK} b");
        check(&["@a", &text, "@b"], false, &[&["@a", &text, "@b"]]);
    }

    #[test]
    fn a_faulty_row_says_what_is_wrong() {
        let entry = |text: &str| Some(ByteArray::from(text));
        let fault = |images: List, texts: List| {
            let fault = Row { images, texts }.stretches(true).expect_err("a faulty row");
            format!("{}: {fault}", fault.name())
        };
        assert_eq!(fault(None, Some(vec![])), "no_list: `images` is null");
        assert_eq!(fault(Some(vec![]), None), "no_list: `texts` is null");
        assert_eq!(fault(Some(vec![entry("a"), None]), Some(vec![None])), "lengths_differ: `images` has 2 entries, but `texts` 1");
        assert_eq!(
            fault(Some(vec![None, entry("a")]), Some(vec![entry("b"), entry("c")])),
            "image_and_text: entry 1 is both an image and a text"
        );
        assert_eq!(fault(Some(vec![None]), Some(vec![None])), "neither_image_nor_text: entry 0 is neither an image nor a text");
        let bytes = Some(ByteArray::from(vec![0xff]));
        assert_eq!(fault(Some(vec![bytes]), Some(vec![None])), "not_utf8: entry 0 of `images` is not UTF-8");
    }
}
