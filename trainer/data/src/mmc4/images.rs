//! Where an image's file is.
//!
//! Comes in: a folder, how it is laid out, the number of the document's shard and the name that a record gives. Goes out: a path within the
//! folder. It opens nothing.

use std::path::{Path, PathBuf};

/// How the images lie in their folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFolders {
    /// All in one: `{folder}/{name}`, as the reference reads them.
    One,
    /// One for each shard: `{folder}/{number of the shard}/{name}`, as the publisher's script saves them.
    ByShard,
}

/// A name in a record that cannot be a file's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no name of an image's file: it is empty, a folder, or leads into one")]
pub struct BadImageName {
    /// The name.
    pub name: String,
}

/// The path of the image called `name` in a document of the shard of this number.
///
/// A name must be one component of a path: a data set decides which pictures are read, never which other files of the machine are.
pub fn image_path(folder: &Path, folders: ImageFolders, shard: u64, name: &str) -> Result<PathBuf, BadImageName> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\\', '\0']) {
        return Err(BadImageName { name: name.to_owned() });
    }
    Ok(match folders {
        ImageFolders::One => folder.join(name),
        ImageFolders::ByShard => folder.join(shard.to_string()).join(name),
    })
}

/// The number of a shard by its name: the digits after `shard_`, as in `docs_no_face_shard_17_v3.jsonl`.
#[must_use]
pub fn shard_number(path: &Path) -> Option<u64> {
    const BEFORE: &str = "shard_";
    let name = path.file_name()?.to_str()?;
    let digits = name.get(name.rfind(BEFORE)? + BEFORE.len()..)?;
    digits.get(..digits.bytes().take_while(u8::is_ascii_digit).count())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_lay_out_images_give_their_path() {
        let path = |folders| image_path(Path::new("/data/images"), folders, 17, "001e4d26280e.jpg");
        assert_eq!(path(ImageFolders::One), Ok(PathBuf::from("/data/images/001e4d26280e.jpg")));
        assert_eq!(path(ImageFolders::ByShard), Ok(PathBuf::from("/data/images/17/001e4d26280e.jpg")));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", ".", "..", "/etc/passwd", "../a.jpg", "a/b.jpg", "a/", "..\\a.jpg", "a\0.jpg"] {
            for folders in [ImageFolders::One, ImageFolders::ByShard] {
                let error = image_path(Path::new("images"), folders, 0, name).expect_err(name);
                assert!(error.to_string().starts_with(&format!("{name:?} is no name")), "{error}");
            }
        }
        for name in ["a..jpg", "..jpg", "a b.jpg", "ä.png", "..."] {
            assert!(image_path(Path::new("images"), ImageFolders::One, 0, name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_shard_has_the_number_in_its_name() {
        for (name, number) in [
            ("docs_shard_0_v2.jsonl.zip", Some(0)),
            ("/data/shard_5/docs_no_face_shard_23098_v3.jsonl", Some(23_098)),
            ("docs_shard_007", Some(7)),
            ("docs_shard_v2.jsonl", None),
            ("docs.jsonl", None),
            ("docs_shard_99999999999999999999.jsonl", None),
            ("..", None),
        ] {
            assert_eq!(shard_number(Path::new(name)), number, "{name}");
        }
    }
}
