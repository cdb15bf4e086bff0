//! The older lines of `metrics.jsonl`: files that nobody writes any more.
//!
//! The newest lines stand in `metrics.jsonl`. Once there are [`LINES`] of them the file gets a name that says which steps it holds, and another
//! one is begun. So whoever comes to lead reads and writes a bounded number of lines, and an object store gets each line a bounded number of
//! times, however long a run is.

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

/// Lines of a file after which the next one is begun: some 3 MB.
pub const LINES: usize = 4096;

/// What their names begin with.
pub const BEGINNING: &str = "metrics-";
const END: &str = ".jsonl";
/// So that their order is that of their names.
const DIGITS: usize = 12;

/// A file of older lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its name in the run's folder.
    pub name: String,
    /// The steps that it has lines of.
    pub steps: Range<u64>,
}

impl Segment {
    /// The one of these steps.
    #[must_use]
    pub fn new(steps: Range<u64>) -> Self {
        Self { name: format!("{BEGINNING}{:0DIGITS$}-{:0DIGITS$}{END}", steps.start, steps.end), steps }
    }

    /// What a name says; `None` for files of another kind.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let (start, end) = name.strip_prefix(BEGINNING)?.strip_suffix(END)?.split_once('-')?;
        let number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        let steps = number(start)?..number(end)?;
        (steps.start < steps.end).then(|| Self { name: name.to_owned(), steps })
    }
}

/// Those that are among these names, by their steps.
pub fn among(names: impl IntoIterator<Item = String>) -> Vec<Segment> {
    let mut segments: Vec<Segment> = names.into_iter().filter_map(|name| Segment::of_name(&name)).collect();
    segments.sort_by_key(|segment| (segment.steps.start, segment.steps.end));
    segments
}

/// Those of a folder, by their steps; none where there is no folder.
pub fn list(folder: &Path) -> io::Result<Vec<Segment>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().into_string().unwrap_or_default()));
    Ok(among(names.collect::<io::Result<Vec<_>>>()?))
}

/// Of these, those whose lines are all of steps before `completed_steps`, and the others, some of whose lines are taken out when a run goes on
/// there.
pub(super) fn cut(segments: Vec<Segment>, completed_steps: u64) -> (Vec<Segment>, Vec<Segment>) {
    segments.into_iter().partition(|segment| segment.steps.end <= completed_steps)
}

/// Where they lie.
pub(super) fn paths<'a>(folder: &'a Path, segments: &'a [Segment]) -> impl Iterator<Item = PathBuf> + 'a {
    segments.iter().map(|segment| folder.join(&segment.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_steps_a_segment_has_and_are_in_their_order() {
        let segments = [Segment::new(0..4096), Segment::new(4096..10_000_000_000), Segment::new(10_000_000_000..10_000_000_001)];
        assert_eq!(segments[0].name, "metrics-000000000000-000000004096.jsonl");
        let mut names: Vec<String> = segments.iter().map(|segment| segment.name.clone()).collect();
        assert!(names.is_sorted());
        names.reverse();
        names.extend(["metrics.jsonl", "metrics-1-x.jsonl", "metrics-5-5.jsonl", "metrics-+1-5.jsonl", "run.jsonl"].map(str::to_owned));
        assert_eq!(among(names), segments);
    }

    #[test]
    fn a_segment_some_of_whose_steps_are_done_again_is_not_kept_as_it_is() {
        let segments = || vec![Segment::new(0..10), Segment::new(10..20), Segment::new(20..30)];
        let check = |completed, kept: usize| assert_eq!(cut(segments(), completed).0.len(), kept, "{completed}");
        check(0, 0);
        check(9, 0);
        check(10, 1);
        check(29, 2);
        check(30, 3);
        check(99, 3);
    }
}
