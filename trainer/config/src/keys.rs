//! Which files of a sample are its image and its caption, by the endings of their names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most keys of a kind. More are a mistake, and an index tells them apart by one byte.
pub const KEYS_LIMIT: usize = 32;

/// What is looked for in a sample. A name is split into the sample's name and the file's key (its ending) at the separator.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SampleKeys {
    /// Endings of images in lower case, in the order in which one is chosen when a sample has several.
    pub image: Vec<String>,
    /// Endings of captions, in the same way.
    pub caption: Vec<String>,
    /// Where a name is split.
    #[serde(default)]
    pub separator: KeySeparator,
}

/// What a key is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// An image.
    Image,
    /// A caption.
    Caption,
}

/// Where a file's name is split into the sample's name and the file's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeySeparator {
    /// At the first dot, as webdataset does: `a.b.jpg` is `b.jpg` of the sample `a`.
    #[default]
    FirstDot,
    /// At the last dot: `a.b.jpg` is `jpg` of the sample `a.b`.
    LastDot,
}

impl KeySeparator {
    /// Its name in the configuration and in the manifest.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FirstDot => "firstDot",
            Self::LastDot => "lastDot",
        }
    }
}

impl Default for SampleKeys {
    /// Those of the reference's loader (`jpg;png;jpeg;webp` and `txt`).
    fn default() -> Self {
        Self {
            image: ["jpg", "png", "jpeg", "webp"].map(str::to_owned).into(),
            caption: vec!["txt".to_owned()],
            separator: KeySeparator::default(),
        }
    }
}

impl SampleKeys {
    /// Whether these are the defaults.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with the keys, if anything: of which kind, and what they have to be.
    #[must_use]
    pub fn find_fault(&self) -> Option<(KeyKind, &'static str)> {
        for (kind, keys) in [(KeyKind::Image, &self.image), (KeyKind::Caption, &self.caption)] {
            if keys.is_empty() || keys.len() > KEYS_LIMIT {
                return Some((kind, "must name between 1 and 32 keys"));
            }
            if !keys.iter().all(|key| is_key(key)) {
                return Some((kind, "must be endings of file names without their first dot, in lower case, such as jpg or seg.png"));
            }
            if self.separator == KeySeparator::LastDot && keys.iter().any(|key| key.contains('.')) {
                return Some((kind, "must hold no dot when names are split at their last dot"));
            }
        }
        self.caption.iter().any(|key| self.image.contains(key)).then_some((KeyKind::Caption, "must not share a key with the images"))
    }
}

/// Letters, digits, `-` and `_`, in parts between dots.
fn is_key(key: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_'))
    };
    key.split('.').all(is_part)
}

impl fmt::Display for SampleKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = match self.separator {
            KeySeparator::FirstDot => "first",
            KeySeparator::LastDot => "last",
        };
        write!(f, "images {} and captions {}, with names split at their {dot} dot", self.image.join(", "), self.caption.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_cannot_be_met_are_named() {
        use KeySeparator::{FirstDot, LastDot};
        let list = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        let check = |image: &[&str], caption: &[&str], separator, expected: Option<KeyKind>| {
            let keys = SampleKeys { image: list(image), caption: list(caption), separator };
            assert_eq!(keys.find_fault().map(|(kind, _)| kind), expected, "{keys}");
        };
        check(&["jpg", "seg.png"], &["txt", "en_long-1.txt"], FirstDot, None);
        check(&["jpg"], &["txt"], LastDot, None);
        check(&[], &["txt"], FirstDot, Some(KeyKind::Image));
        check(&["jpg"], &[], FirstDot, Some(KeyKind::Caption));
        for wrong in ["", ".jpg", "JPG", "a..b", "a/b", "jpg;png", "jpg ", "ü"] {
            check(&["png", wrong], &["txt"], FirstDot, Some(KeyKind::Image));
            check(&["png"], &[wrong], FirstDot, Some(KeyKind::Caption));
        }
        check(&["seg.png"], &["txt"], LastDot, Some(KeyKind::Image));
        check(&["png"], &["en.txt"], LastDot, Some(KeyKind::Caption));
        check(&["png", "txt"], &["txt"], FirstDot, Some(KeyKind::Caption));
        check(&["png"; 33], &["txt"], FirstDot, Some(KeyKind::Image));
        assert!(SampleKeys::default().is_default() && SampleKeys::default().find_fault().is_none());
    }
}
