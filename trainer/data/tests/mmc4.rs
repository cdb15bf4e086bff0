//! MMC4 documents are what the reference's reader makes of them (`fixtures/mmc4`): tokens, images, where they begin, and why another document is
//! drawn. The documents come out of the zipped shards, and which images can be read is found by decoding the files.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
    num::NonZero,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use lcl_data::{
    RedrawCause,
    convert::{ConvertOptions, convert},
    document::{Composer, Document},
    image::{Scratch, decode},
    mmc4::{Choices, Extent, ImageFolders, Record, Rules, choose, image_path, place, read_lines, walk},
    packed::PackedDocument,
    sequence::SequenceLimits,
    shard::{self, ListOrigin},
    tokenizer::Tokenizer,
};
use lcl_trainer_config::{DataConfig, DataSource, Mmc4Config, Mmc4Images, ModelShape, SpecialTokens, TextShape, VisionShape};
use serde::Deserialize;

/// One line of `cases.jsonl`.
#[derive(Deserialize)]
struct Case {
    document: String,
    shard: u64,
    line: usize,
    image_tokens: i64,
    context: i64,
    choices: Scripted,
    expected: Outcome,
}

/// What was drawn: per sentence the image that was kept, and per image that was loaded whether it went before its sentence.
#[derive(Deserialize)]
struct Scripted {
    kept: BTreeMap<u32, u32>,
    before: BTreeMap<u32, bool>,
    /// Images for which a side was asked for.
    #[serde(skip)]
    placed: BTreeSet<u32>,
}

impl Choices for Scripted {
    fn kept(&mut self, sentence: u32, candidates: &[u32]) -> usize {
        let kept = self.kept.get(&sentence).unwrap_or_else(|| panic!("nothing was drawn for sentence {sentence}"));
        candidates.iter().position(|image| image == kept).unwrap_or_else(|| panic!("image {kept} is none of {candidates:?}"))
    }

    fn before(&mut self, image: u32, _probability: f64) -> bool {
        self.placed.insert(image);
        *self.before.get(&image).unwrap_or_else(|| panic!("image {image} was not loaded"))
    }
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Outcome {
    Sequence { tokens: Vec<i64>, images: Vec<u32>, soi: Vec<usize> },
    Redraw { redraw: String },
}

fn limits(image_tokens: i64, context_length: i64) -> Result<SequenceLimits> {
    let side = image_tokens.isqrt();
    let shape = ModelShape {
        vision: VisionShape { image_size: side, patch_size: 1, width: 8, layers: 1, heads: 1 },
        text: TextShape { width: 8, layers: 1, heads: 1, context_length, vocab_size: 49_411 },
        embed_dim: 8,
        pool_heads: 1,
        special_tokens: SpecialTokens::CLIP,
    };
    let limits = SequenceLimits::new(&shape)?;
    ensure!(limits.image_tokens() as i64 == image_tokens, "{image_tokens} is no square");
    Ok(limits)
}

/// A folder of recorded documents and what is kept between cases.
struct Reader {
    folder: PathBuf,
    /// Per shard, where its lines are.
    shards: BTreeMap<u64, Vec<Extent>>,
    record: Record,
    chosen: Vec<u32>,
    document: Document,
    composer: Composer,
    scratch: Scratch,
}

impl Reader {
    fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            shards: BTreeMap::new(),
            record: Record::new(),
            chosen: Vec::new(),
            document: Document::new(),
            composer: Composer::new(Tokenizer::clip()),
            scratch: Scratch::new(),
        }
    }

    fn read_record(&mut self, shard: u64, line: usize) -> Result<()> {
        let path = self.folder.join(format!("data/docs_shard_{shard}_v2.jsonl.zip"));
        let extents = match self.shards.entry(shard) {
            Entry::Occupied(walked) => walked.into_mut(),
            Entry::Vacant(unknown) => {
                let mut extents = Vec::new();
                walk(&path, |line| extents.push(line.extent))?;
                unknown.insert(extents)
            }
        };
        let extent = *extents.get(line).with_context(|| format!("shard {shard} has no line {line}"))?;
        let mut parsed = None;
        read_lines(&path, &[extent], |_, line| parsed = Some(line.parse(&mut self.record)))?;
        parsed.context("the line was not visited")??;
        Ok(())
    }

    fn is_readable(&mut self, image: u32) -> Result<bool> {
        let name = self.record.image_name(&self.record.images()[image as usize]);
        let path = image_path(&self.folder.join("images"), ImageFolders::One, 0, name)?;
        Ok(fs::read(path).is_ok_and(|bytes| decode(&bytes, &mut self.scratch).is_ok()))
    }

    fn outcome(&mut self, case: &mut Case) -> Result<Outcome> {
        let limits = limits(case.image_tokens, case.context)?;
        self.read_record(case.shard, case.line)?;
        ensure!(self.record.url().ends_with(&format!("/{}.html", case.document)), "{} is another document", self.record.url());
        let outcome = match self.place(&mut case.choices)? {
            Ok(()) => self.composer.compose(&self.document, &limits).map(|sequence| Outcome::Sequence {
                tokens: sequence.tokens.to_vec(),
                images: sequence.images.to_vec(),
                soi: sequence.soi.to_vec(),
            }),
            Err(redraw) => Err(redraw),
        };
        Ok(outcome.unwrap_or_else(redrawn))
    }

    /// Chooses, opens and places the images of the record.
    fn place(&mut self, choices: &mut Scripted) -> Result<Result<(), RedrawCause>> {
        let rules = Rules::default();
        if let Err(redraw) = choose(&self.record, &rules, choices, &mut self.chosen) {
            return Ok(Err(redraw));
        }
        let mut readable = Vec::new();
        for image in self.chosen.clone() {
            if self.is_readable(image)? {
                readable.push(image);
            }
        }
        let placed = place(&self.record, &readable, &rules, choices, &mut self.document);
        let loaded: BTreeSet<u32> = choices.before.keys().copied().collect();
        ensure!(choices.placed == loaded, "sides were drawn for {:?} instead of {loaded:?}", choices.placed);
        Ok(placed)
    }
}

fn redrawn(redraw: RedrawCause) -> Outcome {
    Outcome::Redraw { redraw: redraw.name().to_owned() }
}

/// Compares every case in a folder; the error says how many of each document differ and shows the first ones.
fn check(folder: &Path) -> Result<usize> {
    let path = folder.join("cases.jsonl");
    let cases = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let cases: Vec<Case> = cases.lines().map(|line| Ok(serde_json::from_str(line)?)).collect::<Result<_>>()?;
    let count = cases.len();
    let mut reader = Reader::new(folder);
    let mut differing: BTreeMap<String, usize> = BTreeMap::new();
    let mut shown = Vec::new();
    for (number, mut case) in (1..).zip(cases) {
        let outcome = reader.outcome(&mut case).with_context(|| format!("case {number}, {}", case.document))?;
        if outcome != case.expected {
            *differing.entry(case.document.clone()).or_default() += 1;
            if shown.len() < 5 {
                let Case { document, image_tokens, context, expected, .. } = &case;
                shown.push(format!("{document}, N {image_tokens}, context {context}\n  expected {expected:?}\n  got      {outcome:?}"));
            }
        }
    }
    if !differing.is_empty() {
        bail!("{} of {count} cases differ: {differing:?}\n{}", differing.values().sum::<usize>(), shown.join("\n"));
    }
    Ok(count)
}

#[test]
fn every_recorded_document_is_what_the_reference_makes_of_it() -> Result<()> {
    let count = check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mmc4"))?;
    ensure!(count == 401, "there are {count} cases");
    Ok(())
}

/// A converted document, and the numbers of the images beside it.
type Converted = (PackedDocument, BTreeSet<u32>);

/// What the recorded documents become, by the end of their address.
fn convert_all(folder: &Path) -> Result<BTreeMap<String, Converted>> {
    let (place, output) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let shards = vec![folder.join("data/docs_shard_{0..1}_v2.jsonl.zip").display().to_string()];
    let images = Mmc4Images::Flat { folder: folder.join("images").display().to_string() };
    let mmc4 = Mmc4Config { shards, images, min_similarity: 0.24, max_images: 6 };
    let index_path = Some(place.path().display().to_string());
    let config = DataConfig { index_path, threads: 2, ..DataConfig::new(DataSource::Mmc4 { mmc4 }) };
    let options = ConvertOptions { output: output.path().to_owned(), documents_per_shard: NonZero::new(7).context("seven")? };
    convert(&config, ListOrigin::Manifest, &options, |_, _| {})?;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(output.path())? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "tar") {
            continue;
        }
        let (file, mut documents) = (shard::open(&path)?, BTreeMap::<String, Converted>::new());
        let mut texts = Vec::new();
        shard::walk(&path, &file, |member| {
            let name = String::from_utf8_lossy(&member.name).into_owned();
            let (key, part) = name.split_once('.').unwrap_or((&name, ""));
            match part.split_once('.') {
                Some((number, _)) => drop(documents.entry(key.to_owned()).or_default().1.insert(number.parse().unwrap_or(u32::MAX))),
                None => texts.push((key.to_owned(), member)),
            }
        })?;
        for (key, member) in texts {
            let mut json = vec![0; member.length as usize];
            file.read_exact_at(&mut json, member.offset)?;
            documents.entry(key).or_default().0 = PackedDocument::parse(&json)?;
        }
        let named = documents.into_values().map(|document| (document.0.url.clone().unwrap_or_default(), document));
        found.extend(named.map(|(url, document)| (url.rsplit('/').next().unwrap_or_default().to_owned(), document)));
    }
    Ok(found)
}

#[test]
fn every_recorded_document_gives_the_recorded_sequence_after_it_was_converted() -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mmc4");
    let documents = convert_all(&folder)?;
    let (mut composer, mut document, mut sequences, mut gone) = (Composer::new(Tokenizer::clip()), Document::new(), 0, 0);
    for line in fs::read_to_string(folder.join("cases.jsonl"))?.lines() {
        let mut case: Case = serde_json::from_str(line)?;
        let Some((packed, images)) = documents.get(&format!("{}.html", case.document)) else {
            let Outcome::Redraw { redraw } = &case.expected else { bail!("{} is gone", case.document) };
            ensure!(["no_image_above_threshold", "no_image_readable"].contains(&redraw.as_str()), "{} is gone: {redraw}", case.document);
            gone += 1;
            continue;
        };
        let limits = limits(case.image_tokens, case.context)?;
        let fetch = |image: u32| Ok::<_, anyhow::Error>(images.contains(&image));
        let outcome = match packed.lay_out(6, 0.5, &mut case.choices, fetch, &mut document)? {
            Ok(()) => composer.compose(&document, &limits).map(|sequence| Outcome::Sequence {
                tokens: sequence.tokens.to_vec(),
                images: sequence.images.to_vec(),
                soi: sequence.soi.to_vec(),
            }),
            Err(redraw) => Err(redraw),
        };
        let outcome = outcome.unwrap_or_else(redrawn);
        ensure!(outcome == case.expected, "{}: expected {:?}, got {outcome:?}", case.document, case.expected);
        sequences += 1;
    }
    ensure!(sequences > 300 && gone > 0 && sequences + gone == 401, "{sequences} sequences, {gone} are gone");
    Ok(())
}

/// `LCL_MMC4_GOLDEN=DIR` compares with another recording of the same form.
#[test]
fn another_recording_can_be_compared() -> Result<()> {
    if let Some(folder) = std::env::var_os("LCL_MMC4_GOLDEN") {
        println!("{} cases are equal", check(Path::new(&folder))?);
    }
    Ok(())
}
