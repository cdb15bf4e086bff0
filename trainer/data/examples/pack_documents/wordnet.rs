//! The nouns of `WordNet` 3.0, read from Debian's `wordnet-base`.
//!
//! Comes in: the folder of `index.noun`, `data.noun` and `noun.exc` (their form: wndb(5WN)). Goes out: synsets with definition, example and
//! hypernym, and which of them a phrase names. It knows no picture.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use anyhow::{Context, Result, ensure};

/// How frequent a sense has to be among those of its word: a rare one is seldom what a picture shows.
const SENSES: usize = 3;
/// Longest definition in words; of longer ones a few would not leave a document room for two pictures.
const LONGEST_DEFINITION: usize = 30;
/// Longest example in words that is given with a definition.
const LONGEST_EXAMPLE: usize = 12;
/// The lexicographer file of things in nature that are no beings, noun.object.
const IN_NATURE: u8 = 17;

/// A meaning, named by its place in `data.noun`, which is `WordNet`'s own number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SynsetId(pub(crate) u32);

/// A synset: words of one meaning.
#[derive(Clone, Debug)]
pub(crate) struct Synset {
    /// Its most usual word.
    pub(crate) lemma: String,
    /// Number of the lexicographer file: 5 is animals, 6 artefacts, 13 food (lexnames(5WN)).
    pub(crate) file: u8,
    /// The first meaning above it.
    pub(crate) hypernym: Option<SynsetId>,
    definition: String,
    example: Option<String>,
}

impl Synset {
    /// `lemma: definition; "example"`, the sentence that stands beside its pictures.
    pub(crate) fn sentence(&self) -> String {
        let Self { lemma, definition, example, .. } = self;
        match example {
            Some(example) => format!("{lemma}: {definition}; \"{example}\""),
            None => format!("{lemma}: {definition}"),
        }
    }

    /// Whether its sentence is short enough for a document.
    pub(crate) fn is_short(&self) -> bool {
        words(&self.definition) <= LONGEST_DEFINITION
    }
}

/// All nouns.
#[derive(Debug, Default)]
pub(crate) struct WordNet {
    synsets: BTreeMap<SynsetId, Synset>,
    /// The meanings of a word, the most frequent first.
    senses: HashMap<String, Vec<SynsetId>>,
    /// Irregular plurals.
    exceptions: HashMap<String, String>,
}

impl WordNet {
    /// Reads the three files.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut wordnet = Self::default();
        for line in lines(folder, "data.noun")? {
            let (id, synset) = parse_synset(&line).with_context(|| format!("data.noun: `{}` is no synset", beginning(&line)))?;
            wordnet.synsets.insert(id, synset);
        }
        for line in lines(folder, "index.noun")? {
            let (word, senses) = parse_senses(&line).with_context(|| format!("index.noun: `{}` is no word", beginning(&line)))?;
            wordnet.senses.insert(word, senses);
        }
        for line in lines(folder, "noun.exc")? {
            let mut words = line.split(' ');
            if let (Some(plural), Some(singular)) = (words.next(), words.next()) {
                wordnet.exceptions.insert(spaced(plural), spaced(singular));
            }
        }
        ensure!(!wordnet.synsets.is_empty() && !wordnet.senses.is_empty(), "{} holds no nouns", folder.display());
        Ok(wordnet)
    }

    /// The synset of a number.
    pub(crate) fn get(&self, id: SynsetId) -> Option<&Synset> {
        self.synsets.get(&id)
    }

    /// The most frequent meaning of a phrase that is in one of the lexicographer files, if it is one of its frequent ones. Without these files
    /// the first meaning is often another one than the picture's: a bishop's *square* is no tool.
    pub(crate) fn find(&self, phrase: &str, files: &[u8]) -> Option<SynsetId> {
        let senses = self.singulars(phrase).into_iter().find_map(|word| self.senses.get(&word))?;
        // Capitals are proper names, among things in nature planets, else seldom what a picture shows (*Polo* is a person).
        let is_usual = |synset: &Synset| synset.file == IN_NATURE || !synset.lemma.starts_with(char::is_uppercase);
        let fits =
            |id: &&SynsetId| self.get(**id).is_some_and(|synset| files.contains(&synset.file) && synset.is_short() && is_usual(synset));
        senses.iter().take(SENSES).find(fits).copied()
    }

    /// Meanings above it, the nearest first.
    pub(crate) fn above(&self, id: SynsetId) -> impl Iterator<Item = SynsetId> {
        std::iter::successors(self.get(id).and_then(|synset| synset.hypernym), |id| self.get(*id).and_then(|synset| synset.hypernym))
    }

    /// The phrase, and what it may be the plural of (morphy(7WN)).
    fn singulars(&self, phrase: &str) -> Vec<String> {
        let mut forms = vec![phrase.to_owned()];
        forms.extend(self.exceptions.get(phrase).cloned());
        for (ending, instead) in [("s", ""), ("es", ""), ("ies", "y"), ("men", "man")] {
            forms.extend(phrase.strip_suffix(ending).filter(|stem| stem.len() > 1).map(|stem| format!("{stem}{instead}")));
        }
        forms
    }
}

/// The lines of a file without its licence, whose lines begin with a space.
fn lines(folder: &Path, name: &str) -> Result<Vec<String>> {
    let path = folder.join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().filter(|line| !line.starts_with(' ') && !line.is_empty()).map(str::to_owned).collect())
}

/// `offset file n w_cnt word id … p_cnt pointer offset n 0000 … | gloss`; the count of words is hexadecimal.
fn parse_synset(line: &str) -> Option<(SynsetId, Synset)> {
    let (fields, gloss) = line.split_once(" | ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let count = usize::from_str_radix(fields.get(3)?, 16).ok()?;
    let pointers = fields.get(5 + 2 * count..)?;
    let hypernym = pointers.chunks_exact(4).find(|pointer| matches!(pointer.first(), Some(&("@" | "@i"))));
    let (definition, example) = parse_gloss(gloss.trim());
    let synset = Synset {
        lemma: spaced(fields.get(4)?),
        file: fields.get(1)?.parse().ok()?,
        hypernym: hypernym.and_then(|pointer| pointer.get(1)?.parse().ok()).map(SynsetId),
        definition,
        example,
    };
    Some((SynsetId(fields.first()?.parse().ok()?), synset))
}

/// `definition; "example"; "example"`: the definition, and the first example if it is short.
fn parse_gloss(gloss: &str) -> (String, Option<String>) {
    let Some((definition, examples)) = gloss.split_once("; \"") else { return (gloss.trim_end_matches([';', ' ']).to_owned(), None) };
    let example = examples.split('"').next().filter(|example| words(example) <= LONGEST_EXAMPLE);
    (definition.to_owned(), example.map(str::to_owned))
}

/// `word n senses p_cnt pointer… senses tagged offset…`
fn parse_senses(line: &str) -> Option<(String, Vec<SynsetId>)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let count: usize = fields.get(2)?.parse().ok()?;
    let offsets = fields.get(fields.len().checked_sub(count)?..)?;
    let senses = offsets.iter().map(|offset| offset.parse().ok().map(SynsetId)).collect::<Option<Vec<_>>>()?;
    Some((spaced(fields.first()?), senses))
}

fn spaced(word: &str) -> String {
    word.replace('_', " ")
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

fn beginning(line: &str) -> String {
    line.chars().take(60).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A few nouns in the form of the files; numbers and texts are ours.
    pub(crate) fn small() -> (tempfile::TempDir, WordNet) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = [
            "00000010 03 n 01 thing 0 000 | what there is  ",
            "00000020 05 n 02 creature 0 beast 0 001 @ 00000010 n 0000 | a living thing that moves  ",
            "00000030 05 n 01 mouse 0 002 @ 00000020 n 0000 ~ 00000010 n 0000 | a small gnawing creature; \"the mouse ran up the clock\"; \"b\"  ",
            "00000040 06 n 02 mouse 0 computer_mouse 0 001 @ 00000010 n 0000 | a device that moves a pointer  ",
            "00000050 05 n 01 goose 0 001 @ 00000020 n 0000 | a large water bird  ",
            "00000060 05 n 01 fire_fly 0 001 @ 00000020 n 0000 | a beetle that shines; \"one two three four five six seven eight nine ten eleven twelve thirteen\"  ",
            "00000070 05 n 01 cat 0 001 @ 00000020 n 0000 | a creature that purrs  ",
            "00000100 05 n 01 wren 0 001 @ 00000020 n 0000 | a bird that sings  ",
            "00000110 05 n 01 toad 0 001 @ 00000020 n 0000 | a creature that hops  ",
            "00000120 05 n 01 pike 0 001 @ 00000020 n 0000 | a fish with teeth  ",
            "00000130 05 n 01 wasp 0 001 @ 00000020 n 0000 | an insect that stings  ",
            "00000080 05 n 02 Cato 0 polo 0 000 | a mouse in a story  ",
        ];
        let index = [
            "mouse n 2 1 @ 2 1 00000040 00000030  ",
            "computer_mouse n 1 1 @ 1 0 00000040  ",
            "goose n 1 1 @ 1 1 00000050  ",
            "fire_fly n 1 1 @ 1 0 00000060  ",
            "cat n 1 0 1 1 00000070  ",
            "polo n 1 0 1 1 00000080  ",
        ];
        for (name, lines, exceptions) in
            [("data.noun", &data[..], ""), ("index.noun", &index[..], ""), ("noun.exc", &[][..], "geese goose\nmice mouse\n")]
        {
            let text = format!("  1 This is the licence.\n{}\n{exceptions}", lines.join("\n"));
            fs::write(folder.path().join(name), text).expect("a file is written");
        }
        let wordnet = WordNet::read(folder.path()).expect("sound files");
        (folder, wordnet)
    }

    #[test]
    fn a_phrase_is_the_first_meaning_in_the_files_of_its_folder() {
        let (_folder, wordnet) = small();
        let check =
            |phrase, files: &[u8], expected: Option<u32>| assert_eq!(wordnet.find(phrase, files), expected.map(SynsetId), "{phrase}");
        check("mouse", &[5], Some(30));
        check("mouse", &[6], Some(40));
        check("mouse", &[5, 6], Some(40));
        check("mouse", &[13], None);
        check("mice", &[5], Some(30));
        check("geese", &[5], Some(50));
        check("cats", &[5], Some(70));
        check("fire fly", &[5], Some(60));
        check("fire", &[5], None);
        check("polo", &[5], None);
    }

    #[test]
    fn a_sentence_has_the_definition_and_a_short_example() {
        let (_folder, wordnet) = small();
        let sentence = |id| wordnet.get(SynsetId(id)).expect("it is there").sentence();
        assert_eq!(sentence(30), "mouse: a small gnawing creature; \"the mouse ran up the clock\"");
        assert_eq!(sentence(60), "fire fly: a beetle that shines");
        assert_eq!(wordnet.above(SynsetId(30)).collect::<Vec<_>>(), [SynsetId(20), SynsetId(10)]);
    }

    #[test]
    fn a_line_that_is_no_synset_is_named() {
        let (folder, _) = small();
        fs::write(folder.path().join("data.noun"), "00000010 03 n zz thing | nothing\n").expect("a file is written");
        let error = WordNet::read(folder.path()).expect_err("the count is no number");
        assert!(format!("{error:#}").contains("`00000010 03 n zz thing | nothing` is no synset"), "{error:#}");
    }
}
