//! `data index`, `data check`, `data stats` and `data convert` for every source, in words.
//!
//! Comes in: the data that are meant. Goes out: lines for people or programs. The work is `lcl-data`'s.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use lcl_data::{
    DatasetError, DocumentFindings, LeftOut,
    check::{CheckReport, Finding, open_what_can_be},
    convert::ConvertReport,
    count_of,
    stats::{SourceStats, Summary},
};
use lcl_trainer_config::{DataConfig, DataSource};

use crate::{command_line::data_commands::first_lines, data::data_source::Chosen};

/// Shards of which `data index` has a line, and warnings of each kind: of thousands nobody reads more.
pub const SHARDS_LISTED: usize = 20;

/// Between two lines of the log about how far a command is, where there is no terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Widest bar of a histogram in characters.
const BAR: u64 = 40;

/// How far a command is: a bar on a terminal, else a line in the log now and then.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    last: Mutex<Instant>,
    done: AtomicU64,
}

impl Progress {
    /// Of a command that counts samples.
    #[must_use]
    pub fn new(multi: &MultiProgress) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            multi.set_draw_target(ProgressDrawTarget::stderr());
            let template = "{bar:40.cyan} {human_pos}/{human_len} samples  {per_sec}, {eta_precise} left";
            // A wrong template shows at the first run of the program; the plain default is no reason to fail then.
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            multi.add(ProgressBar::no_length()).with_style(style)
        });
        Self { bar, last: Mutex::new(Instant::now()), done: AtomicU64::new(0) }
    }

    /// So many are done.
    pub fn set(&self, done: u64, of: u64) {
        let done = self.done.fetch_max(done, Ordering::Relaxed).max(done);
        if let Some(bar) = &self.bar {
            bar.set_length(of);
            bar.set_position(done);
            return;
        }
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.elapsed() >= LOG_INTERVAL {
            *last = Instant::now();
            tracing::info!(done, of, "samples");
        }
    }

    /// Runs what prints lines.
    pub fn beside(&self, print: impl FnOnce()) {
        if let Some(bar) = &self.bar {
            bar.suspend(print);
        } else {
            // Lines of several threads, one after the other.
            let _lines = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            print();
        }
    }

    /// The command is at its end.
    pub fn finish(self) {
        self.bar.into_iter().for_each(|bar| bar.finish_and_clear());
    }
}

/// The sources of data by themselves: a mixture's, or the one that there is.
#[must_use]
pub fn sources(data: &DataConfig) -> Vec<(String, DataSource)> {
    match &data.source {
        DataSource::Mixture { mixture } => mixture.sources.iter().map(|mixed| (mixed.name.clone(), mixed.source.clone())).collect(),
        source => vec![("data".to_owned(), source.clone())],
    }
}

/// Makes the indexes of documents that are missing, and of their stores of images, and says what they found. Nothing for pairs. `bad` gets what is wrong
/// with shards that cannot be read; the others are indexed without them. So many shards have a line, and so many causes of single ones.
pub fn index_documents(chosen: &Chosen, most: usize, bad: &mut Vec<Finding>) -> Result<String, DatasetError> {
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    let mut tell = |finding: Finding| {
        // Of pairs in a mixture it is known already.
        if !bad.iter().any(|known| (&known.source, &known.shard) == (&finding.source, &finding.shard)) {
            bad.push(finding);
        }
    };
    let Some(dataset) = open_what_can_be(&chosen.data, chosen.origin, &mut tell)? else { return Ok(String::new()) };
    let mut all: BTreeMap<String, (u64, DocumentFindings)> = BTreeMap::new();
    for (source, shard, findings) in dataset.document_findings() {
        lines.push(format!("{}: {}", shard.display(), count_of(findings.samples, "sample")));
        let (shards, sum) = all.entry(source).or_default();
        *shards += 1;
        sum.add(findings);
        for (cause, left_out) in &findings.left_out {
            wrong.push(format!("left out: {}: {} {cause}, the first: {}", shard.display(), left_out.count, left_out.first));
        }
    }
    let mut text = first_lines("shards", &lines, most);
    for (source, (shards, DocumentFindings { documents, samples, images, left_out, .. })) in all {
        let causes: Vec<String> = left_out.iter().map(|(cause, left_out)| format!("{cause} {}", left_out.count)).collect();
        let causes = if causes.is_empty() { String::new() } else { format!("; left out: {}", causes.join(", ")) };
        let _ = writeln!(
            text,
            "{source}: found {} in {}: {} with up to {}{causes}",
            count_of(documents, "document"),
            count_of(shards, "shard"),
            count_of(samples, "sample"),
            count_of(images, "image"),
        );
    }
    Ok(text + &first_lines("left out", &wrong, most))
}

/// Shards that cannot be read, a line for each of the first.
#[must_use]
pub fn bad_in_words(bad: &[Finding]) -> String {
    let mut lines: Vec<String> = bad.iter().take(SHARDS_LISTED).map(finding_in_words).collect();
    if let more @ 1.. = bad.len().saturating_sub(SHARDS_LISTED) {
        lines.push(format!("bad: and {} more, which `lcl data check` lists", count_of(more as u64, "shard")));
    }
    lines.join("\n")
}

/// A finding as a line.
#[must_use]
pub fn finding_in_words(finding: &Finding) -> String {
    let Finding { cause, bad, source, shard, member, byte, detail, count } = finding;
    let mut text = format!("{}: {cause}: ", if *bad { "bad" } else { "left out" });
    if source != "data" {
        let _ = write!(text, "{source}: ");
    }
    let _ = write!(text, "{}", shard.display());
    // An image with a file of its own is named by that alone.
    if !member.is_empty() && shard.file_name().is_none_or(|name| name != member.as_str()) {
        let _ = write!(text, ": {member}");
    }
    if let Some(byte) = byte {
        let _ = write!(text, " at byte {byte}");
    }
    if !detail.is_empty() {
        let _ = write!(text, ": {detail}");
    }
    if *count > 1 && member.is_empty() {
        let _ = write!(text, " ({count} of them)");
    } else if *count > 1 {
        let _ = write!(text, " (the first of {count} in this shard)");
    }
    text
}

/// What a check came to.
#[must_use]
pub fn checked_in_words(report: &CheckReport) -> String {
    let CheckReport { shards, samples, images, bad, left_out } = report;
    let causes = |causes: &BTreeMap<String, u64>| match causes.values().sum() {
        0_u64 => "none".to_owned(),
        all => format!("{all} ({})", causes.iter().map(|(cause, count)| format!("{cause} {count}")).collect::<Vec<_>>().join(", ")),
    };
    format!(
        "checked {} in {}: {} can be decoded; bad: {}; left out: {}",
        count_of(*samples, "sample"),
        count_of(*shards, "shard"),
        count_of(*images, "image"),
        causes(bad),
        causes(left_out)
    )
}

/// What was converted.
#[must_use]
pub fn converted_in_words(report: &ConvertReport, folder: &Path) -> String {
    let ConvertReport { written, kept, documents, images, left_out, no_samples } = report;
    let (documents, images) = (count_of(*documents, "document"), count_of(*images, "image"));
    let mut text = format!("wrote {documents} with {images} in {} to {}", count_of(*written as u64, "shard"), folder.display());
    match kept {
        0 => {}
        1 => text.push_str("; 1 was there"),
        kept => drop(write!(text, "; {kept} were there")),
    }
    for (cause, (count, first)) in left_out {
        let _ = write!(text, "\nleft out: {count} {cause}, the first: {first}");
    }
    for (cause, LeftOut { count, first }) in no_samples {
        let _ = write!(text, "\nno sample: {count} {cause}, the first: {first}");
    }
    text
}

/// What the sources of data hold.
#[must_use]
pub fn stats_in_words(sources: &[SourceStats]) -> String {
    let mut text = String::new();
    for stats in sources {
        source_in_words(stats, &mut text);
    }
    text
}

fn source_in_words(stats: &SourceStats, text: &mut String) {
    let SourceStats { source, shards, shard_bytes, samples, images_of_a_pass, looked_at, cut, .. } = stats;
    let [samples, images, shards, bytes] = [(samples, "sample"), (images_of_a_pass, "image"), (shards, "shard"), (shard_bytes, "byte")]
        .map(|(count, noun)| count_of(*count, noun));
    let _ = writeln!(text, "{source}: {samples} with {images} in {shards} of {bytes}");
    let _ = writeln!(text, "looked at {looked_at} of them, spread evenly:");
    let list = |counts: &BTreeMap<String, u64>| counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ");
    if !stats.unusable.is_empty() {
        let _ = writeln!(text, "  of no use: {}", list(&stats.unusable));
    }
    let _ = writeln!(text, "  formats: {}", list(&stats.formats));
    let _ = writeln!(text, "  {:<28}{:>12}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "mean", "least", "median", "95 %", "99 %", "most");
    for (name, summary) in [
        ("images of a sample", stats.images),
        ("bytes of an image", stats.image_bytes),
        ("shorter side in pixels", stats.image_sides),
        ("text tokens of a sample", stats.text_tokens),
        ("tokens of a whole sequence", stats.sequence_tokens),
    ] {
        let Summary { mean, least, median, p95, p99, most, .. } = summary;
        let _ = writeln!(text, "  {name:<28}{mean:>12.1}{least:>10}{median:>10}{p95:>10}{p99:>10}{most:>10}");
    }
    let _ = writeln!(text, "  sequences by tokens (without a cut):");
    let greatest = stats.histogram.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let mut begin = 0;
    for (end, count) in &stats.histogram {
        let name = end.map_or_else(|| format!("{begin} ..."), |end| format!("{begin} .. {}", end - 1));
        let bar = "#".repeat((count * BAR).div_ceil(greatest) as usize);
        let _ = writeln!(text, "  {name:>16} {count:>10} {bar}");
        begin = end.unwrap_or(begin);
    }
    let percent = |(part, all): (u64, u64)| 100.0 * part as f64 / all.max(1) as f64;
    let sequences = (cut.sequences, stats.sequence_tokens.count);
    let _ = writeln!(
        text,
        "  a context of {} with {} tokens an image cuts {} of {} sequences ({:.1} %): {:.1} % of all tokens and {:.1} % of all images",
        cut.context,
        cut.image_tokens,
        sequences.0,
        sequences.1,
        percent(sequences),
        percent(cut.tokens),
        percent(cut.images)
    );
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_finding_names_shard_member_byte_and_cause() {
        let mut finding = Finding {
            cause: "truncated_image".to_owned(),
            bad: true,
            source: "data".to_owned(),
            shard: PathBuf::from("/data/a.tar"),
            member: "7.png".to_owned(),
            byte: Some(3584),
            detail: "the PNG image is truncated".to_owned(),
            count: 1,
        };
        assert_eq!(finding_in_words(&finding), "bad: truncated_image: /data/a.tar: 7.png at byte 3584: the PNG image is truncated");
        (finding.source, finding.bad, finding.count, finding.byte) = ("laion".to_owned(), false, 3, None);
        let expected = "left out: truncated_image: laion: /data/a.tar: 7.png: the PNG image is truncated (the first of 3 in this shard)";
        assert_eq!(finding_in_words(&finding), expected);
        (finding.shard, finding.count) = (PathBuf::from("/data/images/7.png"), 1);
        assert_eq!(finding_in_words(&finding), "left out: truncated_image: laion: /data/images/7.png: the PNG image is truncated");
        (finding.member, finding.detail, finding.count) = (String::new(), "further ones, which are not named".to_owned(), 7);
        let expected = "left out: truncated_image: laion: /data/images/7.png: further ones, which are not named (7 of them)";
        assert_eq!(finding_in_words(&finding), expected);
    }
}
