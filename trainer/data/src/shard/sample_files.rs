//! Which members of a shard form a sample, by the rules of webdataset's `group_by_keys` and `base_plus_ext`.
//!
//! Comes in: members in the archive's order, and the keys of images and captions. Goes out: one [`SampleFiles`] per sample. It reads no contents.

use std::collections::BTreeSet;

use lcl_trainer_config::{KeySeparator, SIDECAR_KEY, SampleKeys};

use crate::shard::{Member, MemberKind};

/// Kind of an image file that is written, by the extension of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// `.jpg`
    Jpg,
    /// `.png`
    Png,
    /// `.jpeg`
    Jpeg,
    /// `.webp`
    Webp,
}

impl ImageKind {
    /// The extension of such files, without the dot.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Jpg => "jpg",
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }
}

/// What a member is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It may be the sample's image; number of its key among the image keys.
    Image(u8),
    /// It may be the sample's caption, or hold it; its number by [`SampleKeys::caption_number`].
    Caption(u8),
}

/// What a member with this extension (lower case) is for; the one place where that is decided.
pub(crate) fn role(extension: &[u8], keys: &SampleKeys) -> Option<Role> {
    let image = keys.image.iter().position(|key| key.as_bytes() == extension).and_then(|number| u8::try_from(number).ok());
    image.map(Role::Image).or_else(|| keys.caption_number(extension).map(Role::Caption))
}

/// A member under one of the keys that are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// Number of its key among those of its kind.
    pub key: u8,
    /// The file.
    pub member: Member,
}

/// A sample: consecutive members whose names agree up to the dot that ends the sample's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleFiles {
    /// What the names have in common, folder included.
    pub key: Vec<u8>,
    /// Byte at which the first member's headers begin.
    pub start: u64,
    /// The image; that of the first key when there are several.
    pub image: Option<Keyed>,
    /// The caption, in the same way.
    pub caption: Option<Keyed>,
    /// Where captions are drawn, all files that one may come from, the one above among them.
    pub texts: Vec<Keyed>,
    /// The sidecar, where a filter asks for it.
    pub sidecar: Option<Member>,
    /// What follows the dot in the names of its members, in lower case.
    pub extensions: BTreeSet<Vec<u8>>,
    /// Two of its members have the same name: which of them belong together is not known.
    pub doubled: bool,
    /// A file of a caption has no bytes: it is none.
    pub empty_caption: bool,
    /// An image or a caption stands in it as a link or a sparse file, which cannot be read.
    pub elsewhere: bool,
}

impl SampleFiles {
    fn new(key: &[u8], start: u64) -> Self {
        Self {
            key: key.to_vec(),
            start,
            image: None,
            caption: None,
            texts: Vec::new(),
            sidecar: None,
            extensions: BTreeSet::new(),
            doubled: false,
            empty_caption: false,
            elsewhere: false,
        }
    }
}

/// Collects members into samples.
#[derive(Debug)]
pub struct SampleScanner<'a> {
    keys: &'a SampleKeys,
    current: Option<SampleFiles>,
    /// Key of the last link or sparse file that stands in for an image or a caption.
    elsewhere: Option<Vec<u8>>,
}

impl<'a> SampleScanner<'a> {
    /// One that looks for these keys.
    #[must_use]
    pub fn new(keys: &'a SampleKeys) -> Self {
        Self { keys, current: None, elsewhere: None }
    }

    /// Takes the next member; returns the sample before it when it begins a new one.
    pub fn push(&mut self, member: Member) -> Option<SampleFiles> {
        let (key, extension) = split_name(&member.name, self.keys.separator)?;
        let role = role(&extension, self.keys);
        if member.kind == MemberKind::Elsewhere {
            // It belongs to the sample around it, and neither begins nor ends one.
            if role.is_some() {
                match &mut self.current {
                    Some(files) if files.key == key => files.elsewhere = true,
                    _ => self.elsewhere = Some(key.to_vec()),
                }
            }
            return None;
        }
        let finished = match &self.current {
            Some(files) if files.key == key => None,
            _ => self.current.replace(SampleFiles::new(key, member.start)),
        };
        let files = self.current.as_mut()?;
        files.elsewhere |= self.elsewhere.as_ref() == Some(&files.key);
        if self.keys.filter.is_some() && extension == SIDECAR_KEY.as_bytes() && files.sidecar.is_none() {
            files.sidecar = Some(member.clone());
        }
        files.doubled |= !files.extensions.insert(extension);
        match role {
            Some(Role::Image(key)) => take(&mut files.image, Keyed { key, member }),
            // What img2dataset writes where there is no caption.
            Some(Role::Caption(_)) if member.length == 0 => files.empty_caption = true,
            Some(Role::Caption(key)) => {
                if self.keys.draws_captions() {
                    files.texts.push(Keyed { key, member: member.clone() });
                }
                take(&mut files.caption, Keyed { key, member });
            }
            None => {}
        }
        finished
    }

    /// The last sample.
    #[must_use]
    pub fn finish(self) -> Option<SampleFiles> {
        self.current
    }
}

/// Keeps the file with the key that is named first; of two with the same key the first file.
fn take(place: &mut Option<Keyed>, found: Keyed) {
    if place.as_ref().is_none_or(|present| found.key < present.key) {
        *place = Some(found);
    }
}

/// Splits a name into key and lower-case extension at a dot of the file name, or `None` for names that belong to no sample: those without
/// a dot, hidden ones, and webdataset's `__name__` entries.
pub(crate) fn split_name(name: &[u8], separator: KeySeparator) -> Option<(&[u8], Vec<u8>)> {
    let first_part = name.split(|byte| *byte == b'/').next()?;
    if first_part.len() > 4 && first_part.starts_with(b"__") && first_part.ends_with(b"__") {
        return None;
    }
    let file = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let file_name = name.get(file..)?;
    let is_dot = |byte: &u8| *byte == b'.';
    // A hidden file belongs to no sample, wherever its other dots are.
    if file_name.first().is_some_and(is_dot) {
        return None;
    }
    let dot = file
        + match separator {
            KeySeparator::FirstDot => file_name.iter().position(is_dot)?,
            KeySeparator::LastDot => file_name.iter().rposition(is_dot)?,
        };
    Some((name.get(..dot)?, name.get(dot + 1..)?.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use lcl_trainer_config::{CaptionChoice, CaptionFrom};

    use super::*;

    fn member(name: &str) -> Member {
        Member { kind: MemberKind::File, name: name.as_bytes().to_vec(), start: 0, offset: 512, length: 1 }
    }

    /// Groups as `key: image member, caption member`.
    fn check(names: &[&str], expected: &[&str]) {
        check_with(&SampleKeys::default(), names, expected);
    }

    fn check_with(keys: &SampleKeys, names: &[&str], expected: &[&str]) {
        let mut scanner = SampleScanner::new(keys);
        let mut samples: Vec<SampleFiles> = names.iter().filter_map(|name| scanner.push(member(name))).collect();
        samples.extend(scanner.finish());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found: Vec<String> = samples
            .iter()
            .map(|files| {
                let image = files.image.as_ref().map_or("-".to_owned(), |image| text(&image.member.name));
                let caption = files.caption.as_ref().map_or("-".to_owned(), |caption| text(&caption.member.name));
                format!("{}: {image}, {caption}", text(&files.key))
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn members_group_by_the_name_up_to_the_first_dot() {
        check(
            &["000.jpg", "000.txt", "000.json", "001.txt", "001.PNG", "a.b.jpg", "a.txt"],
            &["000: 000.jpg, 000.txt", "001: 001.PNG, 001.txt", "a: -, a.txt"],
        );
    }

    #[test]
    fn dots_in_folders_do_not_split_a_name() {
        check(
            &["./v1.0/000.webp", "./v1.0/000.txt", "v2.0/000.txt"],
            &["./v1.0/000: ./v1.0/000.webp, ./v1.0/000.txt", "v2.0/000: -, v2.0/000.txt"],
        );
    }

    #[test]
    fn the_same_name_in_another_folder_is_another_sample() {
        check(&["a/0.jpg", "b/0.txt"], &["a/0: a/0.jpg, -", "b/0: -, b/0.txt"]);
    }

    #[test]
    fn names_of_no_sample_are_passed_over_without_ending_one() {
        check(&["0.jpg", "._0.txt", "README", "__meta__", "__meta__/0.txt", "0.txt"], &["0: 0.jpg, 0.txt"]);
    }

    #[test]
    fn jpg_goes_before_png_before_jpeg_before_webp() {
        check(&["0.webp", "0.jpeg", "0.png", "0.jpg", "0.txt"], &["0: 0.jpg, 0.txt"]);
        check(&["0.jpeg", "0.png", "0.webp"], &["0: 0.png, -"]);
    }

    fn keys(image: &[&str], caption: &[&str], separator: KeySeparator) -> SampleKeys {
        let list = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        SampleKeys { image: list(image), caption: list(caption), separator, ..SampleKeys::default() }
    }

    #[test]
    fn other_keys_are_looked_for_in_their_own_order() {
        let keys = keys(&["seg.png", "png"], &["long.txt", "txt", "caption"], KeySeparator::FirstDot);
        check_with(
            &keys,
            &["0.png", "0.txt", "0.seg.png", "0.Long.TXT", "1.jpg", "1.png", "1.caption"],
            &["0: 0.seg.png, 0.Long.TXT", "1: 1.png, 1.caption"],
        );
    }

    #[test]
    fn a_caption_without_bytes_is_none_and_leaves_the_place_to_the_next() {
        let keys = keys(&["jpg"], &["txt", "caption"], KeySeparator::FirstDot);
        let choice = |key: &str| CaptionChoice { from: CaptionFrom::Key(key.to_owned()), weight: 1 };
        let drawn = SampleKeys { captions: vec![choice("txt"), choice("caption")], ..keys.clone() };
        for keys in [keys, drawn] {
            let mut scanner = SampleScanner::new(&keys);
            for (name, length) in [("0.jpg", 1), ("0.txt", 0), ("0.caption", 1)] {
                assert_eq!(scanner.push(Member { length, ..member(name) }), None);
            }
            let files = scanner.finish().expect("one sample");
            assert_eq!(files.caption.map(|caption| caption.member.name), Some(b"0.caption".to_vec()));
            assert!(files.empty_caption && files.texts.iter().all(|text| text.key == 1));
        }
    }

    #[test]
    fn names_split_at_the_last_dot_keep_the_dots_of_their_stem() {
        let keys = keys(&["jpg"], &["txt"], KeySeparator::LastDot);
        check_with(
            &keys,
            &["v1.0/a.b.jpg", "v1.0/a.b.txt", "a.c.jpg", ".hidden.jpg", "a.c.txt", "a.txt"],
            &["v1.0/a.b: v1.0/a.b.jpg, v1.0/a.b.txt", "a.c: a.c.jpg, a.c.txt", "a: -, a.txt"],
        );
    }

    #[test]
    fn every_file_that_a_caption_may_come_from_is_kept_and_the_sidecar_for_a_filter() {
        let choice = |from| CaptionChoice { from, weight: 1 };
        let captions = vec![choice(CaptionFrom::Json("caption".to_owned())), choice(CaptionFrom::Key("txt".to_owned()))];
        let drawn = SampleKeys { captions, ..SampleKeys::default() };
        let filtered = SampleKeys { filter: Some("width > 1".to_owned()), ..SampleKeys::default() };
        let check = |keys: &SampleKeys, texts: &[(u8, &str)], sidecar: Option<&str>| {
            let mut scanner = SampleScanner::new(keys);
            for name in ["0.jpg", "0.JSON", "0.txt", "0.caption"] {
                assert_eq!(scanner.push(member(name)), None);
            }
            let files = scanner.finish().expect("one sample");
            let found: Vec<_> =
                files.texts.iter().map(|text| (text.key, String::from_utf8_lossy(&text.member.name).into_owned())).collect();
            assert_eq!(found.iter().map(|(key, name)| (*key, name.as_str())).collect::<Vec<_>>(), texts);
            assert!(files.caption.is_some());
            assert_eq!(files.sidecar.map(|member| String::from_utf8_lossy(&member.name).into_owned()).as_deref(), sidecar);
        };
        check(&drawn, &[(0, "0.JSON"), (1, "0.txt")], None);
        check(&filtered, &[], Some("0.JSON"));
        check(&SampleKeys::default(), &[], None);
    }

    #[test]
    fn a_group_tells_the_extensions_of_all_its_members() {
        let keys = SampleKeys::default();
        let mut scanner = SampleScanner::new(&keys);
        for name in ["0.GIF", "0.json", "0.txt"] {
            assert_eq!(scanner.push(member(name)), None);
        }
        assert_eq!(
            scanner.finish().map(|files| files.extensions),
            Some(["gif", "json", "txt"].map(|name| name.as_bytes().to_vec()).into())
        );
    }

    #[test]
    fn a_key_that_returns_later_is_a_new_sample() {
        check(&["0.jpg", "1.jpg", "0.txt"], &["0: 0.jpg, -", "1: 1.jpg, -", "0: -, 0.txt"]);
    }
}
