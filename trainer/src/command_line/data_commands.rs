//! `data index`, `data tokenize`, `data show`: looking at what the model is going to see.
//!
//! Comes in: shards or texts. Goes out: index files, ids, pictures, and lines for people. The work is `lcl-data`'s.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, BufRead, Write},
    num::NonZero,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use lcl_checkpoint::{Dtype, SafetensorsError, TensorData, write_safetensors};
use lcl_data::{
    DatasetError, LoaderError, NoPair,
    check::Finding,
    convert::ConvertError,
    count_of,
    index::{Findings, IndexError, IndexReport, index_shards},
    obelics::AddressesError,
    shard::{ListError, ListOrigin, find_shards},
    show::{ShowError, ShowOptions, Shown, show},
    stats::StatsError,
    tokenizer::Tokenizer,
};
use lcl_torch::BatchError;
use lcl_trainer_config::{CaptionFrom, SampleKeys};

/// A data command failed.
#[derive(Debug, thiserror::Error)]
pub enum DataCommandError {
    /// The shards cannot be found.
    #[error(transparent)]
    List(#[from] ListError),
    /// A shard cannot be indexed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The data cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Statistics cannot be made.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// Addresses cannot be written.
    #[error(transparent)]
    Addresses(#[from] AddressesError),
    /// Documents cannot be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// Samples cannot be prepared for a page.
    #[error(transparent)]
    View(#[from] LoaderError),
    /// A sequence of a page does not fit the model.
    #[error(transparent)]
    Page(#[from] BatchError),
    /// A sample cannot be shown.
    #[error("{} cannot be shown", shard.display())]
    Show {
        /// The shard.
        shard: PathBuf,
        /// Why.
        source: ShowError,
    },
    /// A line is no JSON string.
    #[error("line {line} is no JSON string: write one text a line in double quotes, such as \"a cat\"")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// Why.
        source: serde_json::Error,
    },
    /// The texts cannot be read.
    #[error("reading line {line}")]
    Read {
        /// Its number, from 1.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// The ids cannot be written.
    #[error("writing the ids of line {line}")]
    WriteIds {
        /// Its number, from 1.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// A picture cannot be written.
    #[error("cannot write {}", path.display())]
    WriteFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A tensor cannot be written.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
}

impl DataCommandError {
    /// The reader of the output went away, which is no failure (`lcl data tokenize | head`).
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::WriteIds { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What came of indexing shards of pairs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexed {
    /// Those that were indexed.
    pub reports: Vec<IndexReport>,
    /// What is wrong with the others.
    pub bad: Vec<Finding>,
}

/// Indexes the shards of a source that the patterns name. Those that cannot be read keep no other one from being indexed.
pub fn index(
    source: &str,
    patterns: &[String],
    folder: Option<&Path>,
    keys: &SampleKeys,
    threads: NonZero<usize>,
) -> Result<Indexed, DataCommandError> {
    let shards = find_shards(patterns, ListOrigin::Arguments, threads)?;
    let outcomes = index_shards(&shards, folder, keys, threads)?;
    let mut indexed = Indexed::default();
    for (shard, outcome) in shards.into_iter().zip(outcomes) {
        match outcome {
            Ok(report) => indexed.reports.push(report),
            Err(error) => indexed.bad.push(Finding::of_shard(source, shard, &error.into())),
        }
    }
    Ok(indexed)
}

/// What was found in indexed shards, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Counts of all shards, then what is wrong with some.
    pub text: String,
    /// Samples with two members of one name.
    pub doubled: u64,
}

/// The index files of shards, a line for each of so many of them, and how many there are of the others.
#[must_use]
pub fn indexes_in_words(reports: &[IndexReport], most: usize) -> String {
    let line = |IndexReport { index, findings, written, .. }: &IndexReport| {
        let state = if *written { "written" } else { "up to date" };
        format!("{}: {}, {state}", index.display(), count_of(findings.samples, "sample"))
    };
    let mut text = reports.iter().take(most).fold(String::new(), |text, report| text + &line(report) + "\n");
    if let rest @ [_, ..] = reports.get(most..).unwrap_or_default() {
        let written = rest.iter().filter(|report| report.written).count();
        let _ = writeln!(text, "and {}: {written} written, {} up to date", count_of(rest.len() as u64, "index file"), rest.len() - written);
    }
    text
}

/// The first lines, and how many there are of the others.
#[must_use]
pub fn first_lines(kind: &str, lines: &[String], most: usize) -> String {
    let mut text = lines.iter().take(most).fold(String::new(), |text, line| text + line + "\n");
    if let more @ 1.. = lines.len().saturating_sub(most) {
        let _ = writeln!(text, "{kind}: and {more} more, which --all lists");
    }
    text
}

/// Adds up what was found under these keys, and says by name which shards have no usable sample, why samples are half, and whose members are
/// there twice: so many lines of each.
#[must_use]
pub fn summarize(reports: &[IndexReport], keys: &SampleKeys, most: usize) -> Summary {
    let mut all = Findings::none(keys);
    for report in reports {
        all.add(&report.findings);
    }
    let (mut warnings, mut twice, mut notes) = (warnings_of_empty(reports, &all), Vec::new(), Vec::new());
    for IndexReport { shard, findings, .. } in reports {
        let shard = shard.display();
        warnings.extend(findings.reasons().iter().filter(|_| findings.usable > 0).map(|reason| format!("warning: {shard}: {reason}")));
        twice.extend(findings.doubled_keys.iter().map(|key| format!("doubled: {shard}: {key}")));
        let unlisted = findings.doubled - findings.doubled_keys.len() as u64;
        if unlisted > 0 {
            twice.push(format!("doubled: {shard}: and {unlisted} more"));
        }
        if findings.archives > 1 {
            notes.push(format!("note: {shard} is {} archives one after the other: all are read", findings.archives));
        }
    }
    let of_kinds = [("warning", &warnings), ("doubled", &twice), ("note", &notes)];
    let mut wrong: String = of_kinds.map(|(kind, lines)| first_lines(kind, lines, most)).concat();
    let filtered = match all.filtered_count() {
        0 => String::new(),
        count => format!("filtered {count} of {}: {}\n", all.samples + count, all.filtered_listed()),
    };
    let Findings { samples, with_image, with_caption, usable, doubled, .. } = all;
    // A field's content is looked at when a sample is used.
    let fields = keys.captions.iter().any(|choice| matches!(choice.from, CaptionFrom::Json(_)));
    let (caption, at_most) = if fields { ("a caption, or a json that may hold one", "at most ") } else { ("caption", "") };
    if fields {
        wrong.push_str("note: whether a json has the field, and a text in it, is found when it is read: `lcl data check` counts those without as no_caption\n");
    }
    let text = format!(
        "found {} in {}: {with_image} with image, {with_caption} with {caption}, {at_most}{usable} usable; extensions: {}\n{filtered}{wrong}",
        count_of(samples, "sample"),
        count_of(reports.len() as u64, "shard"),
        all.extensions_listed(),
    );
    Summary { text, doubled }
}

/// Which shards have no usable sample: what all of them have in common is said once. A filter may well leave out all of a shard, of which there are
/// thousands.
fn warnings_of_empty(reports: &[IndexReport], all: &Findings) -> Vec<String> {
    let found = |report: &IndexReport| NoPair::of([(report.shard.as_path(), &report.findings)], ListOrigin::Arguments);
    if all.usable == 0 && !reports.is_empty() {
        let shards = reports.iter().map(|report| (report.shard.as_path(), &report.findings));
        return vec![format!("warning: {}", NoPair::of(shards, ListOrigin::Arguments))];
    }
    let empty = reports.iter().filter(|report| report.findings.usable == 0);
    let (filtered, others): (Vec<_>, Vec<_>) =
        empty.partition(|report| report.findings.samples == 0 && report.findings.filtered_count() > 0);
    let mut warnings: Vec<String> = others.into_iter().map(|report| format!("warning: {}", found(report))).collect();
    if let [first, rest @ ..] = filtered.as_slice() {
        warnings.push(match rest.len() {
            0 => format!("warning: {}", found(first)),
            _ => format!("warning: the filter leaves no sample of {} shards; of the first, {}", filtered.len(), found(first)),
        });
    }
    warnings
}

/// Reads a JSON string a line and writes its ids, without special tokens, as a JSON list a line.
pub fn tokenize(input: impl BufRead, output: impl Write) -> Result<(), DataCommandError> {
    let tokenizer = Tokenizer::clip();
    let mut output = io::BufWriter::new(output);
    let mut line = 0;
    for text in input.split(b'\n') {
        line += 1;
        let text = text.map_err(|source| DataCommandError::Read { line, source })?;
        let text: String = serde_json::from_slice(&text).map_err(|source| DataCommandError::Line { line, source })?;
        let write = |output: &mut io::BufWriter<_>| -> io::Result<()> {
            serde_json::to_writer(&mut *output, &tokenizer.encode(&text))?;
            writeln!(output)
        };
        write(&mut output).map_err(|source| DataCommandError::WriteIds { line, source })?;
    }
    output.flush().map_err(|source| DataCommandError::WriteIds { line, source })
}

/// Where a shown image is written.
#[derive(Clone, Debug, Default)]
pub struct ShowFiles {
    /// As PNG.
    pub png: Option<PathBuf>,
    /// As `image`, float32 `[3, H, W]`, normalised.
    pub safetensors: Option<PathBuf>,
}

/// Writes the image of a sample as asked and gives the text for people.
pub fn show_sample(shard: &Path, options: &ShowOptions, files: &ShowFiles) -> Result<String, DataCommandError> {
    let shown = show(shard, options).map_err(|source| DataCommandError::Show { shard: shard.to_owned(), source })?;
    if let Some(path) = &files.png {
        fs::write(path, &shown.png).map_err(|source| DataCommandError::WriteFile { path: path.clone(), source })?;
    }
    if let Some(path) = &files.safetensors {
        let side = options.size as usize;
        let data: Bytes = shown.pixels.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = TensorData { name: "image".to_owned(), shape: vec![3, side, side], dtype: Dtype::F32, data };
        write_safetensors(path, &[tensor], &BTreeMap::new())?;
    }
    let mut text = describe(&shown, options);
    for path in [&files.png, &files.safetensors].into_iter().flatten() {
        let _ = writeln!(text, "written: {}", path.display());
    }
    Ok(text)
}

fn describe(shown: &Shown, options: &ShowOptions) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "sample {} of {}: {}", options.sample, shown.samples, shown.key);
    let _ = writeln!(text, "caption: {}", shown.caption);
    let crop = shown.crop.map_or_else(|| "shortest side, then centre".to_owned(), |crop| crop.to_string());
    let _ = writeln!(text, "image: {} x {} pixels, crop {crop}, to {} x {}", shown.width, shown.height, options.size, options.size);
    let _ = writeln!(text, "{} tokens:", shown.tokens.len());
    for (first, count, token, name) in runs(&shown.tokens, &shown.names) {
        let _ = match count {
            1 => writeln!(text, "  {first:>5}          {token:>6}  {name}"),
            _ => writeln!(text, "  {first:>5} .. {:<5} {token:>6}  {name} x {count}", first + count - 1),
        };
    }
    text
}

/// Equal neighbours as one: first position, count, id, name.
fn runs<'a>(tokens: &[i64], names: &'a [String]) -> Vec<(usize, usize, i64, &'a str)> {
    let mut runs: Vec<(usize, usize, i64, &str)> = Vec::new();
    for (position, (token, name)) in tokens.iter().zip(names).enumerate() {
        match runs.last_mut() {
            Some(last) if last.2 == *token => last.1 += 1,
            _ => runs.push((position, 1, *token, name)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use lcl_data::shard::ShardWriter;

    use super::*;

    #[test]
    fn texts_become_ids_line_by_line_without_special_tokens() {
        let mut output = Vec::new();
        tokenize("\"a cat\"\n\"\"\n\"caf\\u00e9\"\n".as_bytes(), &mut output).unwrap();
        assert_eq!(String::from_utf8(output).unwrap(), "[320,2368]\n[]\n[15304]\n");
    }

    #[test]
    fn a_line_that_is_no_json_string_is_named() {
        for (input, expected) in [("\"a\"\nplain\n", 2), ("7\n", 1), ("\"a\"\n\n", 2)] {
            let error = tokenize(input.as_bytes(), Vec::new()).unwrap_err();
            assert!(matches!(error, DataCommandError::Line { line, .. } if line == expected), "{input:?}: {error}");
        }
    }

    /// Shards of one sample each with this similarity, indexed with a filter.
    fn filtered(similarities: &[f64], filter: &str) -> Summary {
        let folder = tempfile::tempdir().unwrap();
        let keys = SampleKeys { filter: Some(filter.to_owned()), ..SampleKeys::default() };
        let shards: Vec<PathBuf> = (0..similarities.len()).map(|number| folder.path().join(format!("{number}.tar"))).collect();
        for (shard, similarity) in shards.iter().zip(similarities) {
            let mut writer = ShardWriter::create(shard).unwrap();
            let json = format!("{{\"similarity\": {similarity}}}");
            for (ending, contents) in [("jpg", "x"), ("json", &json), ("txt", "a")] {
                writer.append_member("0", ending, contents.as_bytes()).unwrap();
            }
            writer.finish().unwrap();
        }
        let outcomes = index_shards(&shards, None, &keys, NonZero::<usize>::MIN).unwrap();
        summarize(&outcomes.into_iter().collect::<Result<Vec<_>, _>>().unwrap(), &keys, 2)
    }

    #[test]
    fn a_filter_that_leaves_nothing_is_said_once_and_not_of_every_shard() {
        let check = |similarities: &[f64], warnings: &[&str]| {
            let text = filtered(similarities, "similarity > 0.5").text;
            let found: Vec<&str> = text.lines().filter(|line| line.starts_with("warning")).collect();
            assert_eq!(found.len(), warnings.len(), "{text}");
            for (line, part) in found.iter().zip(warnings) {
                assert!(line.contains(part), "{text}");
            }
        };
        check(&[0.1, 0.2, 0.3], &["none of the 3 samples in"]);
        check(&[0.1, 0.2, 0.9], &["no sample of 2 shards"]);
        check(&[0.9, 0.1], &["the only sample in"]);
        check(&[0.9, 0.6], &[]);
    }

    #[test]
    fn of_many_shards_the_first_are_named_and_the_others_counted() {
        let report = |number: u64| {
            let mut findings = Findings::none(&SampleKeys::default());
            (findings.samples, findings.with_image, findings.with_caption, findings.usable) = (2, 2, 1, 1);
            (findings.doubled, findings.archives) = (1, 2);
            findings.doubled_keys.push("k".to_owned());
            let [shard, index] = ["tar", "tar.lclindex"].map(|ending| PathBuf::from(format!("/data/{number}.{ending}")));
            IndexReport { shard, index, findings, written: number > 3 }
        };
        let reports: Vec<IndexReport> = (0..41_000).map(report).collect();
        let (lines, summary) = (indexes_in_words(&reports, 2), summarize(&reports, &SampleKeys::default(), 2));
        let expected = "/data/0.tar.lclindex: 2 samples, up to date\n/data/1.tar.lclindex: 2 samples, up to date\n\
                        and 40998 index files: 40996 written, 2 up to date\n";
        assert_eq!((lines.as_str(), summary.doubled), (expected, 41_000));
        assert_eq!(summary.text.lines().count(), 1 + 3 * 3, "{}", summary.text);
        for kind in ["warning", "doubled", "note"] {
            assert!(summary.text.contains(&format!("{kind}: and 40998 more, which --all lists\n")), "{}", summary.text);
        }
        assert_eq!(indexes_in_words(&reports, usize::MAX).lines().count(), 41_000);
        assert!(!indexes_in_words(&reports[..2], 2).contains("and"), "none is left");
    }

    #[test]
    fn equal_neighbours_are_shown_as_one() {
        let names: Vec<String> = ["a", "i", "i", "i", "b"].map(str::to_owned).into();
        assert_eq!(runs(&[1, 9, 9, 9, 2], &names), [(0, 1, 1, "a"), (1, 3, 9, "i"), (4, 1, 2, "b")]);
    }
}
