//! Which pictures are held out, and which make a document together.
//!
//! Comes in: pictures with what they show. Goes out: numbers of pictures for training and for the test, and documents of the former. The same
//! pictures give the same documents.

use std::collections::{BTreeMap, BTreeSet};

use lcl_data::random::{SlotRandom, Stream};

use crate::{
    pictures::Picture,
    wordnet::{SynsetId, WordNet},
};

/// Every tenth synset is held out with all its pictures, as every tenth emoji is in the first demo.
const HELD_OUT_EVERY: usize = 10;
const HELD_OUT_OFFSET: usize = 3;
/// Documents that each picture is in: as often as the text beside it changes, the picture tells more of it.
const ROUNDS: u64 = 5;
/// Things that a meaning has to be above to open documents: fewer are together in every round.
const THINGS_OF_A_KIND: usize = 6;
/// Pictures of a document: as many as MMC4's limit of six, and enough for what is before an image to be more than its own sentence.
const FEWEST: usize = 3;
const MOST: usize = 6;

/// What is trained with and what is not.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Split {
    /// Numbers of pictures.
    pub(crate) training: Vec<usize>,
    /// Those of synsets of which no picture is trained with.
    pub(crate) held_out: Vec<usize>,
    /// These synsets.
    pub(crate) held_out_synsets: BTreeSet<SynsetId>,
}

/// Splits pictures by what they show: the same thing is there in several styles, so that a split by picture would be none.
pub(crate) fn split(pictures: &[Picture]) -> Split {
    let synsets: BTreeSet<SynsetId> = pictures.iter().map(|picture| picture.synset).collect();
    let held_out_synsets: BTreeSet<SynsetId> = synsets.into_iter().skip(HELD_OUT_OFFSET).step_by(HELD_OUT_EVERY).collect();
    let (held_out, training) = (0..pictures.len()).partition(|picture| held_out_synsets.contains(&pictures[*picture].synset));
    Split { training, held_out, held_out_synsets }
}

/// A document: pictures of things of one kind, with the sentence of that kind before them if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outline {
    /// What the things have in common.
    pub(crate) kind: Option<SynsetId>,
    /// Numbers of pictures, each of another synset.
    pub(crate) pictures: Vec<usize>,
}

/// Makes the documents. In every other round things are together that the same nearest meaning is above, which opens the document; in the others
/// things of the same lexicographer file. The order of documents is mixed.
pub(crate) fn outlines(pictures: &[Picture], split: &Split, wordnet: &WordNet) -> Vec<Outline> {
    let near = nearest_kinds(pictures, split, wordnet);
    let mut outlines = Vec::new();
    for round in 0..ROUNDS {
        let mut groups: BTreeMap<(Option<SynsetId>, u8), Vec<usize>> = BTreeMap::new();
        for picture in split.training.iter().copied() {
            let synset = pictures[picture].synset;
            let kind = near.get(&synset).copied().filter(|_| round % 2 == 0);
            let file = if kind.is_none() { wordnet.get(synset).map_or(0, |synset| synset.file) } else { 0 };
            groups.entry((kind, file)).or_default().push(picture);
        }
        for (number, ((kind, _), members)) in groups.into_iter().enumerate() {
            let mut random = SlotRandom::new(1, round, number as u64, Stream::Order);
            let cut = cut(&members, pictures, &mut random);
            outlines.extend(cut.into_iter().map(|pictures| Outline { kind, pictures }));
        }
    }
    shuffle(&mut outlines, &mut SlotRandom::new(1, ROUNDS, 0, Stream::Order));
    outlines
}

/// For each synset the nearest meaning above it that is above enough others to fill a document. One that is held out is passed over: its
/// sentence would be seen in training.
fn nearest_kinds(pictures: &[Picture], split: &Split, wordnet: &WordNet) -> BTreeMap<SynsetId, SynsetId> {
    let synsets: BTreeSet<SynsetId> = split.training.iter().map(|picture| pictures[*picture].synset).collect();
    let mut below: BTreeMap<SynsetId, usize> = BTreeMap::new();
    for kind in synsets.iter().flat_map(|synset| wordnet.above(*synset)) {
        *below.entry(kind).or_default() += 1;
    }
    let fits = |kind: &SynsetId| {
        let is_short = wordnet.get(*kind).is_some_and(super::wordnet::Synset::is_short);
        below.get(kind).is_some_and(|count| *count >= THINGS_OF_A_KIND) && is_short && !split.held_out_synsets.contains(kind)
    };
    synsets.iter().filter_map(|synset| Some((*synset, wordnet.above(*synset).find(fits)?))).collect()
}

/// Cuts the pictures of a group into documents of three to six with different synsets; the last is filled with pictures that are in one already.
fn cut(members: &[usize], pictures: &[Picture], random: &mut SlotRandom) -> Vec<Vec<usize>> {
    let mut waiting = members.to_owned();
    shuffle(&mut waiting, random);
    let mut documents = Vec::new();
    while !waiting.is_empty() {
        let size = FEWEST + random.below((MOST - FEWEST + 1) as u64) as usize;
        let mut document = Vec::new();
        let takes = |document: &[usize], picture: usize, size: usize| {
            document.len() < size && !document.iter().any(|other| pictures[*other].synset == pictures[picture].synset)
        };
        waiting.retain(|picture| {
            let is_taken = takes(&document, *picture, size);
            if is_taken {
                document.push(*picture);
            }
            !is_taken
        });
        let mut others = members.to_owned();
        shuffle(&mut others, random);
        for picture in others {
            if takes(&document, picture, FEWEST) {
                document.push(picture);
            }
        }
        // A group of fewer kinds of things than a document needs.
        if document.len() >= FEWEST {
            documents.push(document);
        }
    }
    documents
}

/// Fisher and Yates's shuffle.
fn shuffle<T>(items: &mut [T], random: &mut SlotRandom) {
    for end in (1..items.len()).rev() {
        items.swap(end, random.below(end as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wordnet::tests::small;

    /// Three pictures of each of eight animals.
    fn pictures() -> Vec<Picture> {
        let picture = |number: usize| Picture {
            path: format!("{number}.png").into(),
            address: format!("a:{number}"),
            synset: SynsetId([30, 50, 60, 70, 100, 110, 120, 130][number % 8]),
        };
        (0..24).map(picture).collect()
    }

    #[test]
    fn no_picture_of_a_synset_that_is_held_out_is_trained_with() {
        let split = split(&pictures());
        assert_eq!(split.held_out, [3, 11, 19]);
        assert_eq!(split.held_out_synsets, BTreeSet::from([SynsetId(70)]));
        assert_eq!(split.training.len(), 21);
    }

    #[test]
    fn every_picture_of_training_is_in_each_round_beside_pictures_of_other_things() {
        let ((_folder, wordnet), pictures) = (small(), pictures());
        let split = split(&pictures);
        let outlines = outlines(&pictures, &split, &wordnet);
        let mut uses = BTreeMap::new();
        for outline in &outlines {
            let synsets: BTreeSet<_> = outline.pictures.iter().map(|picture| pictures[*picture].synset).collect();
            assert!((FEWEST..=MOST).contains(&outline.pictures.len()) && synsets.len() == outline.pictures.len(), "{outline:?}");
            outline.pictures.iter().for_each(|picture| *uses.entry(*picture).or_insert(0) += 1);
            assert!(outline.kind.is_none_or(|kind| kind == SynsetId(20)));
        }
        assert_eq!(uses.keys().copied().collect::<Vec<_>>(), split.training);
        assert!(uses.values().all(|count| *count >= ROUNDS), "{uses:?}");
        assert!(outlines.iter().any(|outline| outline.kind.is_some()) && outlines.iter().any(|outline| outline.kind.is_none()));
    }

    #[test]
    fn a_kind_that_is_held_out_opens_no_document() {
        let ((_folder, wordnet), pictures) = (small(), pictures());
        let mut split = split(&pictures);
        assert_eq!(nearest_kinds(&pictures, &split, &wordnet).get(&SynsetId(30)), Some(&SynsetId(20)));
        split.held_out_synsets.insert(SynsetId(20));
        assert_eq!(nearest_kinds(&pictures, &split, &wordnet).get(&SynsetId(30)), Some(&SynsetId(10)));
    }
}
