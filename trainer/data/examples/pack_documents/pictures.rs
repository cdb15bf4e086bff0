//! Pictures with names: emoji of two styles, and clip art.
//!
//! Comes in: the folders of the unpacked packages, and `WordNet`. Goes out: the pictures whose name is a noun that fits their folder. It
//! decodes none.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::wordnet::{SynsetId, WordNet};

/// Where the packages were unpacked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folders {
    /// `emoji-datasource-google`.
    pub(crate) google: PathBuf,
    /// `emoji-datasource-twitter`.
    pub(crate) twitter: PathBuf,
    /// `usr/share/openclipart/png` of `openclipart-png`.
    pub(crate) clipart: PathBuf,
}

/// A picture and what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    /// The file.
    pub(crate) path: PathBuf,
    /// Which package and file it is, as an address.
    pub(crate) address: String,
    /// What it shows.
    pub(crate) synset: SynsetId,
}

/// Lexicographer files of what a folder of clip art shows; folders of signs, icons and abstract shapes are left out.
const CLIPART: [(&str, &[u8]); 16] = [
    ("animals", &[5]),
    ("buildings", &[6]),
    ("containers", &[6]),
    ("education", &[6]),
    ("electronics", &[6]),
    ("food", &[13, 20]),
    ("office", &[6]),
    ("people", &[18]),
    ("people/clothing", &[6]),
    ("plants", &[20]),
    ("recreation", &[6]),
    ("science", &[6, 17]),
    ("special", &[6]),
    ("tools", &[6]),
    ("transportation", &[6]),
    ("decorations", &[6]),
];
/// Folders below those whose pictures stand for something else than they show, or that are listed by themselves.
const CLIPART_SIGNS: [&str; 8] = ["clothing", "roadsigns", "aiga-symbols", "playing_cards", "cards", "fantasy", "religion", "bodypart"];
/// First words of clip art's names that say how something looks, not what it is.
const LOOKS: [&str; 22] = [
    "a", "the", "black", "white", "red", "blue", "green", "yellow", "pink", "purple", "brown", "grey", "gray", "small", "big", "little",
    "old", "new", "simple", "contour", "cartoon", "my",
];

/// Lexicographer files of what an emoji's subcategory shows. Faces, gestures, symbols and flags are left out: what they show is no thing
/// that a definition describes.
fn files_of_emoji(subcategory: &str) -> &'static [u8] {
    match subcategory {
        "animal-amphibian" | "animal-bird" | "animal-bug" | "animal-mammal" | "animal-marine" | "animal-reptile" => &[5],
        "plant-flower" | "plant-other" => &[20, 13],
        "food-asian" | "food-fruit" | "food-prepared" | "food-sweet" | "food-vegetable" | "drink" => &[13, 20, 6],
        "dishware" | "clothing" | "musical-instrument" | "tool" | "household" | "lock" | "office" | "writing" | "phone" | "computer"
        | "light & video" | "medical" | "other-object" | "sound" | "hotel" | "place-building" | "place-religious" | "transport-air"
        | "transport-ground" | "transport-water" | "science" | "mail" | "game" | "arts & crafts" => &[6],
        "book-paper" | "music" | "award-medal" => &[6, 10],
        "money" => &[6, 21],
        "sport" | "event" => &[6, 4],
        "body-parts" => &[8],
        "person" | "person-role" | "person-fantasy" | "person-activity" | "person-sport" => &[18],
        "place-geographic" | "place-map" | "sky & weather" => &[17, 19, 6],
        "place-other" | "time" => &[6, 17],
        _ => &[],
    }
}

#[derive(Deserialize)]
struct Emoji {
    name: String,
    short_names: Vec<String>,
    subcategory: String,
    image: String,
    has_img_google: bool,
    has_img_twitter: bool,
}

/// All pictures that show a noun, in an order that is always the same.
pub(crate) fn find(folders: &Folders, wordnet: &WordNet) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    for (style, folder) in [("google", &folders.google), ("twitter", &folders.twitter)] {
        pictures.append(&mut emoji(style, folder, wordnet)?);
    }
    for (top, files) in CLIPART {
        clipart(&folders.clipart, Path::new(top), files, wordnet, &mut pictures)?;
    }
    Ok(pictures)
}

fn emoji(style: &str, folder: &Path, wordnet: &WordNet) -> Result<Vec<Picture>> {
    let list = folder.join("emoji.json");
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let emoji: Vec<Emoji> = serde_json::from_str(&text).with_context(|| format!("{} is not a list of emoji", list.display()))?;
    let found = emoji.iter().filter(|emoji| emoji.has_img_google && emoji.has_img_twitter).filter_map(|emoji| {
        let file = format!("img/{style}/64/{}", emoji.image);
        let synset = synset_of_emoji(emoji, wordnet)?;
        Some(Picture { path: folder.join(&file), address: format!("npm:emoji-datasource-{style}/{file}"), synset })
    });
    Ok(found.collect())
}

/// A whole name first, then names without their first words: *delivery truck*, else *truck*.
fn synset_of_emoji(emoji: &Emoji, wordnet: &WordNet) -> Option<SynsetId> {
    let files = files_of_emoji(&emoji.subcategory);
    let names: Vec<Vec<String>> = std::iter::once(&emoji.name).chain(&emoji.short_names).map(|name| words(name)).collect();
    let whole = names.iter().map(|words| words.join(" "));
    let ends = names.iter().flat_map(|words| (1..words.len()).map(|begin| words[begin..].join(" ")));
    whole.chain(ends).find_map(|phrase| wordnet.find(&phrase, files))
}

fn clipart(root: &Path, below: &Path, files: &[u8], wordnet: &WordNet, pictures: &mut Vec<Picture>) -> Result<()> {
    let folder = root.join(below);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut entries = entries.collect::<std::io::Result<Vec<_>>>().with_context(|| format!("cannot read {}", folder.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        // Links lead to files elsewhere in the tree, which are met there.
        let kind = entry.file_type()?;
        if kind.is_dir() && !CLIPART_SIGNS.contains(&name.as_str()) {
            clipart(root, &below.join(&name), files, wordnet, pictures)?;
        }
        let Some(stem) = name.strip_suffix(".png").filter(|_| kind.is_file()) else { continue };
        let Some(synset) = synset_of_clipart(stem, files, wordnet) else { continue };
        let address = format!("deb:openclipart-png/{}/{name}", below.display());
        pictures.push(Picture { path: entry.path(), address, synset });
    }
    Ok(())
}

/// Names are the title's first words and the author's: `magnifying_glass_tom_kra_`. The most words from the first on that are a noun, at
/// most three; what is behind them is not looked at.
fn synset_of_clipart(stem: &str, files: &[u8], wordnet: &WordNet) -> Option<SynsetId> {
    let words: Vec<String> = words(stem).into_iter().skip_while(|word| LOOKS.contains(&word.as_str())).collect();
    (1..=words.len().min(3)).rev().find_map(|count| wordnet.find(&words[..count].join(" "), files))
}

/// Words in small letters, without numbers, up to the first that leads over to something beside the thing itself.
fn words(name: &str) -> Vec<String> {
    let name = name.to_lowercase();
    let words = name.split(|letter: char| !letter.is_alphabetic()).filter(|word| !word.is_empty());
    let own = words.take_while(|word| !["with", "in", "on", "of", "for", "under", "and", "without"].contains(word));
    own.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wordnet::tests::small;

    #[test]
    fn clip_art_is_called_by_its_first_words_within_the_files_of_its_folder() {
        let (_folder, wordnet) = small();
        let check = |stem, files: &[u8], expected: Option<u32>| {
            assert_eq!(synset_of_clipart(stem, files, &wordnet), expected.map(SynsetId), "{stem}");
        };
        check("computer_mouse_tom_kra_01", &[6], Some(40));
        check("mouse_computer_01", &[6], Some(40));
        check("mouse2_bw", &[5], Some(30));
        check("contour_mouse", &[5], Some(30));
        check("fire_fly_jon__01", &[5], Some(60));
        check("tom_kra_mouse", &[5], None);
        check("mouse", &[20], None);
    }

    #[test]
    fn an_emoji_is_called_by_its_whole_name_or_by_the_end_of_one() {
        let (_folder, wordnet) = small();
        let emoji = |name: &str, short: &str, subcategory: &str| Emoji {
            name: name.to_owned(),
            short_names: vec![short.to_owned()],
            subcategory: subcategory.to_owned(),
            image: String::new(),
            has_img_google: true,
            has_img_twitter: true,
        };
        let check =
            |emoji: &Emoji, expected: Option<u32>| assert_eq!(synset_of_emoji(emoji, &wordnet), expected.map(SynsetId), "{}", emoji.name);
        check(&emoji("THREE BUTTON MOUSE", "three_button_mouse", "computer"), Some(40));
        check(&emoji("MOUSE FACE", "mouse", "animal-mammal"), Some(30));
        check(&emoji("CAT WITH WRY SMILE", "smirk_cat", "animal-mammal"), Some(70));
        check(&emoji("CAT FACE", "cat", "cat-face"), None);
    }

    #[test]
    fn links_and_folders_of_signs_are_passed_over() {
        let (_wordnet_folder, wordnet) = small();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let birds = folder.path().join("animals/birds");
        fs::create_dir_all(folder.path().join("animals/roadsigns")).expect("a folder is made");
        fs::create_dir_all(&birds).expect("a folder is made");
        for file in ["animals/cat_01.png", "animals/birds/goose.png", "animals/roadsigns/cat.png", "animals/unknown.png", "animals/cat.txt"]
        {
            fs::write(folder.path().join(file), "").expect("a file is written");
        }
        std::os::unix::fs::symlink(birds.join("goose.png"), birds.join("geese.png")).expect("a link is made");
        let mut pictures = Vec::new();
        clipart(folder.path(), Path::new("animals"), &[5], &wordnet, &mut pictures).expect("the folder is read");
        let found: Vec<_> = pictures.iter().map(|picture| (picture.address.as_str(), picture.synset.0)).collect();
        assert_eq!(found, [("deb:openclipart-png/animals/birds/goose.png", 50), ("deb:openclipart-png/animals/cat_01.png", 70)]);
    }
}
