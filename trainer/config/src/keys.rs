//! Which files of a sample are its image and its caption, by the endings of their names, and which samples count.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most keys of a kind. More are a mistake, and an index tells them apart by one byte.
pub const KEYS_LIMIT: usize = 32;

/// The ending of a sample's sidecar: what img2dataset knows of it, as a JSON object.
pub const SIDECAR_KEY: &str = "json";

/// What is looked for in a sample. A name is split into the sample's name and the file's key (its ending) at the separator.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SampleKeys {
    /// Endings of images in lower case, in the order in which one is chosen when a sample has several.
    pub image: Vec<String>,
    /// Endings of captions, in the same way; the usual ones where `captions` says where they come from.
    pub caption: Vec<String>,
    /// Where captions come from when a sample may have several: one of those that it has is drawn. Empty: by `caption`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captions: Vec<CaptionChoice>,
    /// Which samples count, as an expression over the fields of their sidecars; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Where a name is split.
    #[serde(default)]
    pub separator: KeySeparator,
}

/// Where a caption may come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptionChoice {
    /// From where.
    pub from: CaptionFrom,
    /// How often it is drawn, beside the others that the sample has.
    pub weight: u32,
}

/// Where a caption comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CaptionFrom {
    /// The contents of the file with this ending.
    Key(String),
    /// A field of the sidecar; with dots between names a field of an object in it.
    Json(String),
}

impl CaptionFrom {
    /// The ending of the file that holds it.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Key(key) => key,
            Self::Json(_) => SIDECAR_KEY,
        }
    }
}

impl fmt::Display for CaptionFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => f.write_str(key),
            Self::Json(path) => write!(f, "{SIDECAR_KEY}:{path}"),
        }
    }
}

/// A part of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// Those of images.
    Image,
    /// Those of captions.
    Caption,
    /// Where captions come from.
    Captions,
    /// Which samples count.
    Filter,
}

impl KeyKind {
    /// Its name among the fields of [`SampleKeys`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Caption => "caption",
            Self::Captions => "captions",
            Self::Filter => "filter",
        }
    }
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
            captions: Vec::new(),
            filter: None,
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
        if self.filter.as_ref().is_some_and(|filter| filter.trim().is_empty()) {
            return Some((KeyKind::Filter, "must be an expression, or be left out"));
        }
        if !self.captions.is_empty() {
            return self.find_fault_of_captions().map(|rule| (KeyKind::Captions, rule));
        }
        self.caption.iter().any(|key| self.image.contains(key)).then_some((KeyKind::Caption, "must not share a key with the images"))
    }

    fn find_fault_of_captions(&self) -> Option<&'static str> {
        let keys = || self.captions.iter().map(|choice| choice.from.key());
        let is_path = |path: &str| !path.is_empty() && path.split('.').all(|name| !name.is_empty());
        let rules = [
            (self.captions.len() > KEYS_LIMIT, "must be at most 32"),
            (self.caption != Self::default().caption, "must be the only place that says where captions come from"),
            (!keys().all(is_key), "must be endings of file names without their first dot, in lower case, or fields of json"),
            (
                self.captions.iter().any(|choice| matches!(&choice.from, CaptionFrom::Json(path) if !is_path(path))),
                "must name fields of json with one dot between names",
            ),
            (
                self.separator == KeySeparator::LastDot && keys().any(|key| key.contains('.')),
                "must hold no dot when names are split at their last dot",
            ),
            (keys().any(|key| self.image.iter().any(|image| image == key)), "must not share a key with the images"),
            (self.captions.iter().any(|choice| choice.weight == 0), "must have weights of at least 1"),
        ];
        rules.into_iter().find_map(|(is_broken, rule)| is_broken.then_some(rule))
    }

    /// Whether captions are drawn among several.
    #[must_use]
    pub fn draws_captions(&self) -> bool {
        !self.captions.is_empty()
    }

    /// These keys without what no index depends on: of the captions only their files count.
    #[must_use]
    pub fn of_index(&self) -> Self {
        let choice = |file: &str| CaptionChoice { from: CaptionFrom::Key(file.to_owned()), weight: 1 };
        Self { captions: self.caption_files().map(choice).collect(), ..self.clone() }
    }

    /// Endings of the files that captions lie in, each once, where they are drawn.
    pub fn caption_files(&self) -> impl Iterator<Item = &str> {
        let keys = || self.captions.iter().map(|choice| choice.from.key());
        keys().enumerate().filter(move |(number, key)| !keys().take(*number).any(|before| before == *key)).map(|(_, key)| key)
    }

    /// The number of a caption's ending: among the keys, or among the files that captions lie in where they are drawn.
    #[must_use]
    pub fn caption_number(&self, key: &[u8]) -> Option<u8> {
        let number = if self.draws_captions() {
            self.caption_files().position(|file| file.as_bytes() == key)
        } else {
            self.caption.iter().position(|caption| caption.as_bytes() == key)
        };
        number.and_then(|number| u8::try_from(number).ok())
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
        let captions = if self.draws_captions() {
            let each: Vec<String> = self.captions.iter().map(|choice| choice.from.to_string()).collect();
            each.join(", ")
        } else {
            self.caption.join(", ")
        };
        write!(f, "images {} and captions {captions}, with names split at their {dot} dot", self.image.join(", "))
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
            let keys = SampleKeys { image: list(image), caption: list(caption), separator, ..SampleKeys::default() };
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

    #[test]
    fn captions_of_several_places_are_checked_and_their_files_are_named_once() {
        let key = |key: &str, weight| CaptionChoice { from: CaptionFrom::Key(key.to_owned()), weight };
        let json = |path: &str| CaptionChoice { from: CaptionFrom::Json(path.to_owned()), weight: 1 };
        let keys = |captions: Vec<CaptionChoice>| SampleKeys { captions, ..SampleKeys::default() };
        let sound = keys(vec![json("caption"), key("txt", 3), json("meta.alt_text")]);
        assert_eq!(sound.find_fault(), None);
        assert_eq!(sound.caption_files().collect::<Vec<_>>(), ["json", "txt"]);
        assert_eq!([&b"txt"[..], b"json", b"jpg"].map(|key| sound.caption_number(key)), [Some(1), Some(0), None]);
        assert_eq!(SampleKeys::default().caption_number(b"txt"), Some(0));
        assert_eq!(sound.of_index(), keys(vec![key("json", 1), key("txt", 1)]));
        assert_eq!(SampleKeys::default().of_index(), SampleKeys::default());
        assert!(sound.to_string().contains("captions json:caption, txt, json:meta.alt_text,"), "{sound}");

        let wrong =
            [vec![key("jpg", 1)], vec![key("TXT", 1)], vec![json("")], vec![json("a..b")], vec![key("txt", 0)], vec![json("a"); 33]];
        for captions in wrong {
            assert_eq!(keys(captions.clone()).find_fault().map(|(kind, _)| kind), Some(KeyKind::Captions), "{captions:?}");
        }
        let both = SampleKeys { caption: vec!["caption".to_owned()], ..sound.clone() };
        assert_eq!(both.find_fault().map(|(kind, _)| kind), Some(KeyKind::Captions));
        let last = SampleKeys { separator: KeySeparator::LastDot, ..keys(vec![key("en.txt", 1)]) };
        assert_eq!(last.find_fault().map(|(kind, _)| kind), Some(KeyKind::Captions));
        let empty = SampleKeys { filter: Some(" ".to_owned()), ..SampleKeys::default() };
        assert_eq!(empty.find_fault().map(|(kind, _)| kind.name()), Some("filter"));
    }

    #[test]
    fn keys_without_choices_and_a_filter_are_written_as_before_there_were_any() {
        assert_eq!(
            serde_json::to_string(&SampleKeys::default()).unwrap(),
            r#"{"image":["jpg","png","jpeg","webp"],"caption":["txt"],"separator":"firstDot"}"#
        );
        let text = r#"{"image":["jpg"],"caption":["txt"],"captions":[{"from":{"json":"a.b"},"weight":2}],"filter":"a > 1","separator":"firstDot"}"#;
        let keys: SampleKeys = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&keys).unwrap(), text);
        assert_eq!((keys.filter.as_deref(), keys.captions[0].weight), (Some("a > 1"), 2));
    }
}
