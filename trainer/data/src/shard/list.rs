//! From a list of shards as it was written to the paths of files that are there.
//!
//! Comes in: entries ([`ShardEntry`]): paths, patterns, names of lists. Goes out: paths, in order, each of which was there a moment ago. How an
//! entry is read is `lcl-trainer-config`'s; the folders are looked into here.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs, io,
    num::NonZero,
    path::{Path, PathBuf},
};

use lcl_trainer_config::{Field, PATHS_LIMIT, PatternError, ShardEntry, ShardName, in_mixture};

use lcl_objects::{is_object, is_of_store};

use crate::{
    blob::{self, Blob},
    documents, index,
    retry::{sleep, with_retries},
    store,
};

/// Endings of what lies beside shards and is none.
const INDEXES: [&str; 3] = [index::EXTENSION, store::EXTENSION, documents::EXTENSION];

/// Objects of one folder from which on the folder is listed instead of looking at each of them.
const LIST_AT_LEAST: usize = 8;

/// Missing shards that a message names; the others are counted.
const NAMED_LIMIT: usize = 10;

/// Who gave a list of shards, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOrigin {
    /// The job's manifest.
    Manifest,
    /// Another field of the job's manifest than that of tar shards, by its path in the trainer's configuration.
    Field(&'static str),
    /// A field of a source of a mixture: the number of the source, and the field's path without the mixture.
    Mixed(usize, &'static str),
    /// The command line.
    Arguments,
}

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    origin: ListOrigin,
    index: usize,
    text: String,
}

impl ListOrigin {
    /// The origin of a list of a source, which may be one of a mixture.
    pub(crate) const fn of(field: &'static str, mixed: Option<usize>) -> Self {
        match mixed {
            Some(source) => Self::Mixed(source, field),
            None => Self::Field(field),
        }
    }

    /// The field that has the list, without the mixture, and the number of its source in one.
    pub(crate) const fn field(self) -> (&'static str, Option<usize>) {
        match self {
            Self::Manifest | Self::Arguments => ("data.source.shards", None),
            Self::Field(field) => (field, None),
            Self::Mixed(source, field) => (field, Some(source)),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, index, text } = self;
        match origin {
            ListOrigin::Manifest => write!(f, "{} (`{text}`)", Field(&format!("data.source.shards[{index}]"))),
            ListOrigin::Mixed(source, field) => write!(f, "{} (`{text}`)", Field(&format!("{}[{index}]", in_mixture(*source, field)))),
            ListOrigin::Field(field) => write!(f, "{} (`{text}`)", Field(&format!("{field}[{index}]"))),
            ListOrigin::Arguments => write!(f, "`{text}`"),
        }
    }
}

/// Shards of one entry that are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    entry: Entry,
    /// All of them.
    all: Vec<PathBuf>,
    /// Of how many.
    total: usize,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, all, total } = self;
        let first: Vec<_> = all.iter().take(NAMED_LIMIT).map(|path| path.display().to_string()).collect();
        let (count, names) = (all.len(), first.join(", "));
        match (*total, count - first.len()) {
            (1, _) => write!(f, "{entry}: shard {names} does not exist"),
            (_, 0) => write!(f, "{entry}: {count} of its {total} shards do not exist: {names}"),
            (_, more) => write!(f, "{entry}: {count} of its {total} shards do not exist: {names} and {more} more"),
        }
    }
}

/// What to look at when files are not there.
fn advice(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> &'static str {
    if paths.into_iter().all(|path| blob::is_remote(path.as_ref())) {
        "check the names, that of the bucket too, and that the environment names the right store"
    } else {
        "check the names, and that their volume is mounted"
    }
}

/// The shards of a list cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// An entry is malformed.
    #[error("{entry} cannot be used: {source}")]
    Pattern {
        /// The entry.
        entry: Entry,
        /// What is wrong with it.
        source: PatternError,
    },
    /// Files of a list, or of a range, are not there.
    #[error("{} ({})", .0.iter().map(Missing::to_string).collect::<Vec<_>>().join("; "), advice(.0.iter().flat_map(|missing| &missing.all)))]
    Missing(Vec<Missing>),
    /// No file fits a glob.
    #[error("{entry}: no file fits {pattern} ({})", advice([Path::new(pattern)]))]
    NoMatch {
        /// The entry.
        entry: Entry,
        /// The pattern, with its braces expanded.
        pattern: String,
    },
    /// A folder cannot be looked into.
    #[error("{entry}: reading the folder {}", path.display())]
    Folder {
        /// The entry.
        entry: Entry,
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It cannot be found out whether a shard is there.
    #[error("{entry}: looking for {}", path.display())]
    Look {
        /// The entry.
        entry: Entry,
        /// The shard.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A text file of shards cannot be read.
    #[error("{entry}: reading this list of shards")]
    List {
        /// The entry.
        entry: Entry,
        /// The system's error.
        source: io::Error,
    },
    /// A text file of shards names none.
    #[error("{entry}: this list names no shard (it takes one a line; what begins with # is left out)")]
    EmptyList {
        /// The entry.
        entry: Entry,
    },
    /// A shard is in the list twice.
    #[error(
        "{}: shard {} was named before, by {}: a pass takes each sample once, so name it once (a mixture takes a source more often than another)",
        entries.1, path.display(), entries.0
    )]
    Twice {
        /// The entry that names it first, and the one that names it again, which may be the same.
        entries: Box<(Entry, Entry)>,
        /// The shard.
        path: PathBuf,
    },
    /// All entries together stand for more paths than any data set has.
    #[error("{entry}, with what stands before it in the list, stands for more than {PATHS_LIMIT} shards: name fewer, larger ones")]
    TooMany {
        /// The entry with which it does.
        entry: Entry,
    },
}

impl ListError {
    /// The system's error underneath, for deciding whether another attempt can help.
    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Folder { source, .. } | Self::Look { source, .. } | Self::List { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The shards that a list stands for, in order; all of them are looked for, with `threads` threads, before any is opened.
pub fn find_shards(entries: &[String], origin: ListOrigin, threads: NonZero<usize>) -> Result<Vec<PathBuf>, ListError> {
    let (shards, missing) = look_for(entries, origin, threads)?;
    if missing.is_empty() { Ok(shards) } else { Err(ListError::Missing(missing)) }
}

/// The shards that a list stands for, in order, without a look at each: folders are looked into for globs alone.
pub(crate) fn name_shards(entries: &[String], origin: ListOrigin) -> Result<Vec<PathBuf>, ListError> {
    let mut shards = Vec::new();
    for (index, text) in entries.iter().enumerate() {
        let entry = Entry { origin, index, text: text.clone() };
        shards.extend(with_retries(index as u64, sleep, ListError::io, || resolve(&entry))?);
        check_count(&shards, entry)?;
    }
    Ok(shards)
}

/// The folders of object stores in which many of these shards lie.
pub(crate) fn listable_folders(shards: &[PathBuf]) -> Vec<&str> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for folder in shards.iter().filter_map(|path| folder_of(path)) {
        *counts.entry(folder).or_default() += 1;
    }
    counts.into_iter().filter(|(_, count)| *count >= LIST_AT_LEAST).map(|(folder, _)| folder).collect()
}

/// The shards of a list that are there, in order, and how many are not; an error when none is.
pub(crate) fn find_present_shards(
    entries: &[String],
    origin: ListOrigin,
    threads: NonZero<usize>,
) -> Result<(Vec<PathBuf>, usize), ListError> {
    let (mut shards, missing) = look_for(entries, origin, threads)?;
    let absent: HashSet<&PathBuf> = missing.iter().flat_map(|missing| &missing.all).collect();
    // By what was found then: another look might fail for a reason that passes.
    shards.retain(|path| !absent.contains(path));
    let count = absent.len();
    if shards.is_empty() && count > 0 { Err(ListError::Missing(missing)) } else { Ok((shards, count)) }
}

/// The shards that a list stands for, and those of them that are not there.
fn look_for(entries: &[String], origin: ListOrigin, threads: NonZero<usize>) -> Result<(Vec<PathBuf>, Vec<Missing>), ListError> {
    let (mut shards, mut missing) = (Vec::new(), Vec::new());
    // Where the shards of each entry end.
    let mut ends = Vec::new();
    for (index, text) in entries.iter().enumerate() {
        let entry = Entry { origin, index, text: text.clone() };
        let paths = with_retries(index as u64, sleep, ListError::io, || resolve(&entry))?;
        missing.extend(with_retries(index as u64, sleep, ListError::io, || find_missing(&entry, &paths, threads))?);
        shards.extend(paths);
        ends.push(shards.len());
        check_count(&shards, entry)?;
    }
    let mut places = HashMap::with_capacity(shards.len());
    for (place, path) in shards.iter().enumerate() {
        let Some(first) = places.insert(path, place) else { continue };
        let entry = |place: usize| {
            let index = ends.partition_point(|end| *end <= place);
            Entry { origin, index, text: entries.get(index).cloned().unwrap_or_default() }
        };
        return Err(ListError::Twice { entries: Box::new((entry(first), entry(place))), path: path.clone() });
    }
    Ok((shards, missing))
}

fn check_count(shards: &[PathBuf], entry: Entry) -> Result<(), ListError> {
    if shards.len() > PATHS_LIMIT { Err(ListError::TooMany { entry }) } else { Ok(()) }
}

/// The paths that an entry stands for, whether they are there or not.
fn resolve(entry: &Entry) -> Result<Vec<PathBuf>, ListError> {
    // A shell has expanded what was to be expanded: a file's name is that file's, whatever characters are in it.
    if entry.origin == ListOrigin::Arguments && !entry.text.to_ascii_lowercase().ends_with(lcl_trainer_config::LIST_EXTENSION) {
        let path = PathBuf::from(&entry.text);
        if path.exists() {
            return Ok(vec![path]);
        }
    }
    let parsed = ShardEntry::parse(&entry.text).map_err(|source| ListError::Pattern { entry: entry.clone(), source })?;
    let pattern = match parsed {
        ShardEntry::List(path) => return read_list(entry, Path::new(&path)),
        ShardEntry::Pattern(pattern) => pattern,
    };
    let mut paths = Vec::new();
    for name in pattern.expand() {
        match name {
            ShardName::Path(path) => paths.push(PathBuf::from(path)),
            ShardName::Glob(glob) => paths.extend(fitting(entry, &glob)?),
        }
    }
    Ok(paths)
}

/// The files that fit, by name. Indexes lie beside their shards and are none.
fn fitting(entry: &Entry, pattern: &str) -> Result<Vec<PathBuf>, ListError> {
    let no_match = || ListError::NoMatch { entry: entry.clone(), pattern: pattern.to_owned() };
    // As a shell: neither `/` nor a leading dot fits a star.
    let options = glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    if is_object(pattern) {
        return fitting_objects(entry, pattern, options);
    }
    let names: Vec<&str> = pattern.split('/').filter(|name| !name.is_empty()).collect();
    let mut paths = Vec::new();
    let root = Path::new(if pattern.starts_with('/') { "/" } else { "" });
    walk(root, &names, options, &mut paths).map_err(|error| match error {
        WalkError::Pattern => no_match(),
        WalkError::Folder(path, source) => ListError::Folder { entry: entry.clone(), path, source },
    })?;
    let is_index = |path: &Path| path.extension().is_some_and(|extension| INDEXES.iter().any(|index| extension == *index));
    paths.retain(|path| !is_index(path) && !path.is_dir());
    paths.sort();
    if paths.is_empty() { Err(no_match()) } else { Ok(paths) }
}

enum WalkError {
    /// No pattern: what `ShardPattern` lets through is one, a test holds them together.
    Pattern,
    Folder(PathBuf, io::Error),
}

/// What lies below `folder` under names that fit, folder by folder. A file whose name is no text fits no pattern.
fn walk(folder: &Path, names: &[&str], options: glob::MatchOptions, found: &mut Vec<PathBuf>) -> Result<(), WalkError> {
    let Some((name, rest)) = names.split_first() else {
        found.push(folder.to_owned());
        return Ok(());
    };
    if !name.contains(['*', '?', '[']) {
        let path = folder.join(name);
        // A link to nothing is there, too, and is said to be missing by its name.
        let is_there = if rest.is_empty() { path.symlink_metadata().is_ok() } else { path.is_dir() };
        return if is_there { walk(&path, rest, options, found) } else { Ok(()) };
    }
    let at_any_depth = *name == "**";
    if at_any_depth && !rest.is_empty() {
        walk(folder, rest, options, found)?;
    }
    let fits = glob::Pattern::new(if at_any_depth { "*" } else { name }).map_err(|_| WalkError::Pattern)?;
    let failed = |source| WalkError::Folder(folder.to_owned(), source);
    let entries = match fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }) {
        Ok(entries) => entries,
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_str().is_some_and(|name| fits.matches_with(name, options)) {
            continue;
        }
        let path = folder.join(entry.file_name());
        if at_any_depth {
            // Through a link it might never end.
            if entry.file_type().map_err(failed)?.is_dir() {
                walk(&path, names, options, found)?;
            } else if rest.is_empty() {
                found.push(path);
            }
        } else if rest.is_empty() || path.is_dir() {
            walk(&path, rest, options, found)?;
        }
    }
    Ok(())
}

/// The objects of a folder whose names fit.
fn fitting_objects(entry: &Entry, pattern: &str, options: glob::MatchOptions) -> Result<Vec<PathBuf>, ListError> {
    let no_match = || ListError::NoMatch { entry: entry.clone(), pattern: pattern.to_owned() };
    let (folder, name) = pattern.rsplit_once('/').ok_or_else(no_match)?;
    let fits = glob::Pattern::new(name).map_err(|_| no_match())?;
    let found = blob::list(folder).map_err(|source| ListError::Folder { entry: entry.clone(), path: folder.into(), source })?;
    let is_shard = |uri: &str| {
        let name = uri.rsplit('/').next().unwrap_or_default();
        let is_index = INDEXES.iter().any(|index| name.strip_suffix(index).is_some_and(|stem| stem.ends_with('.')));
        !is_index && fits.matches_with(name, options)
    };
    let mut paths: Vec<PathBuf> = found.iter().filter(|object| is_shard(&object.uri)).map(|object| PathBuf::from(&object.uri)).collect();
    paths.sort();
    if paths.is_empty() { Err(no_match()) } else { Ok(paths) }
}

/// A text file's lines, as they are; relative ones start at its folder.
fn read_list(entry: &Entry, path: &Path) -> Result<Vec<PathBuf>, ListError> {
    let read = |path: &Path| -> io::Result<String> {
        let blob = Blob::open(path)?;
        let mut bytes = vec![0; blob.length()? as usize];
        blob.read_exact_at(&mut bytes, 0)?;
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    let text = if blob::is_remote(path) { read(path) } else { fs::read_to_string(path) };
    let text = text.map_err(|source| ListError::List { entry: entry.clone(), source })?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let shards: Vec<PathBuf> = lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| if is_object(line) { PathBuf::from(line) } else { folder.join(line) })
        .collect();
    if shards.is_empty() { Err(ListError::EmptyList { entry: entry.clone() }) } else { Ok(shards) }
}

fn find_missing(entry: &Entry, paths: &[PathBuf], threads: NonZero<usize>) -> Result<Option<Missing>, ListError> {
    let listed = list_folders(entry, paths)?;
    let is_missing = |path: &PathBuf| {
        if let Some(names) = folder_of(path).and_then(|folder| listed.get(folder)) {
            return Ok(!names.contains(path.to_str().unwrap_or_default()));
        }
        let looked = if blob::is_remote(path) { Blob::open(path).map(drop) } else { fs::metadata(path).map(drop) };
        match looked {
            Err(source) if is_of_store(&source) => Err(ListError::Look { entry: entry.clone(), path: path.clone(), source }),
            // Any other error may pass, and opening the shard tries again.
            looked => Ok(looked.is_err_and(|error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))),
        }
    };
    let missing = index::over_all(threads, paths, is_missing)?;
    let all: Vec<PathBuf> = paths.iter().zip(missing).filter(|(_, missing)| *missing).map(|(path, _)| path.clone()).collect();
    Ok((!all.is_empty()).then(|| Missing { entry: entry.clone(), all, total: paths.len() }))
}

/// The folder of an object, when its store can list it.
fn folder_of(path: &Path) -> Option<&str> {
    let uri = path.to_str().filter(|uri| is_object(uri) && !uri.starts_with("http"))?;
    uri.rsplit_once('/').map(|(folder, _)| folder)
}

/// What lies in those folders of object stores from which many objects are wanted: a page of a list names a thousand.
fn list_folders<'a>(entry: &Entry, paths: &'a [PathBuf]) -> Result<HashMap<&'a str, HashSet<String>>, ListError> {
    let list = |folder: &'a str| {
        let found = blob::list(folder).map_err(|source| ListError::Folder { entry: entry.clone(), path: folder.into(), source })?;
        Ok((folder, found.into_iter().map(|object| object.uri).collect()))
    };
    listable_folders(paths).into_iter().map(list).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A folder with empty files of these names, and the search for entries below it.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new(files: &[&str]) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            for file in files {
                let path = folder.path().join(file);
                fs::create_dir_all(path.parent().expect("it lies in the folder")).expect("the folder is made");
                fs::write(path, "").expect("the file is made");
            }
            Self(folder)
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        fn find(&self, entries: &[&str], origin: ListOrigin) -> Result<Vec<String>, String> {
            let entries: Vec<String> = entries.iter().map(|entry| self.path(entry)).collect();
            let found = find_shards(&entries, origin, NonZero::<usize>::MIN).map_err(|error| error.to_string())?;
            let below = |path: &PathBuf| path.strip_prefix(self.0.path()).map(|path| path.display().to_string());
            Ok(found.iter().map(|path| below(path).expect("it lies in the folder")).collect())
        }

        fn check(&self, entries: &[&str], expected: &[&str]) {
            assert_eq!(self.find(entries, ListOrigin::Manifest), Ok(expected.iter().map(ToString::to_string).collect()), "{entries:?}");
        }

        fn refused(&self, entries: &[&str]) -> String {
            self.find(entries, ListOrigin::Manifest).expect_err("it cannot be found").replace(&self.path(""), "D/")
        }
    }

    #[test]
    fn globs_stand_for_files_in_the_order_of_their_names() {
        let place = Place::new(&["b-2.tar", "a-1.tar", "b-1.tar", "b-10.tar", ".b-3.tar", "b-1.tar.lclindex", "x/b-7.tar", "x/y/b-8.tar"]);
        fs::create_dir(place.path("b-dir.tar")).expect("a folder is made");
        place.check(&["b-*.tar"], &["b-1.tar", "b-10.tar", "b-2.tar"]);
        place.check(&["x/**"], &["x/b-7.tar", "x/y/b-8.tar"]);
        place.check(&["x/../b-?.tar"], &["x/../b-1.tar", "x/../b-2.tar"]);
        // Neither the index, nor the hidden file, nor a folder.
        place.check(&["b*"], &["b-1.tar", "b-10.tar", "b-2.tar"]);
        place.check(&["{b,a}-?.tar"], &["b-1.tar", "b-2.tar", "a-1.tar"]);
        place.check(&["*/b-[0-9].tar", "[!b]-1.tar"], &["x/b-7.tar", "a-1.tar"]);
        place.check(&["**/b-[78].tar"], &["x/b-7.tar", "x/y/b-8.tar"]);
    }

    #[test]
    fn a_file_whose_name_is_no_text_fits_no_glob_and_spoils_none() {
        let place = Place::new(&["a.tar", "x/b.tar"]);
        let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"note\xe4.tar");
        fs::write(place.0.path().join(odd), "").expect("the file is made");
        fs::create_dir(place.0.path().join("x").join(odd)).expect("the folder is made");
        place.check(&["*.tar"], &["a.tar"]);
        place.check(&["**/*.tar"], &["a.tar", "x/b.tar"]);
        place.check(&["*/b.tar"], &["x/b.tar"]);
    }

    #[test]
    fn a_shard_that_is_named_twice_is_refused_by_both_of_its_places() {
        let place = Place::new(&["a.tar", "b.tar"]);
        assert_eq!(
            place.refused(&["b.tar", "*.tar"]),
            "spec.data.webdataset.shards[1] (`D/*.tar`): shard D/b.tar was named before, by spec.data.webdataset.shards[0] (`D/b.tar`): a pass \
             takes each sample once, so name it once (a mixture takes a source more often than another)"
        );
        assert!(place.refused(&["{a,b,a}.tar"]).contains("shard D/a.tar was named before, by spec.data.webdataset.shards[0]"));
    }

    #[test]
    fn a_glob_that_nothing_fits_is_an_error_that_names_its_field() {
        let place = Place::new(&["a.tar"]);
        assert_eq!(
            place.refused(&["a.tar", "{b,c}*.tar"]),
            "spec.data.webdataset.shards[1] (`D/{b,c}*.tar`): no file fits D/b*.tar (check the names, and that their volume is mounted)"
        );
    }

    #[test]
    fn missing_files_of_a_range_are_all_named_before_any_is_opened() {
        let place = Place::new(&["000.tar", "002.tar", "004.tar"]);
        place.check(&["{000..002..2}.tar"], &["000.tar", "002.tar"]);
        assert_eq!(
            place.refused(&["{000..003}.tar", "004.tar", "x/{00..40}.tar", "9.tar"]),
            "spec.data.webdataset.shards[0] (`D/{000..003}.tar`): 2 of its 4 shards do not exist: D/001.tar, D/003.tar; \
             spec.data.webdataset.shards[2] (`D/x/{00..40}.tar`): 41 of its 41 shards do not exist: D/x/00.tar, D/x/01.tar, D/x/02.tar, \
             D/x/03.tar, D/x/04.tar, D/x/05.tar, D/x/06.tar, D/x/07.tar, D/x/08.tar, D/x/09.tar and 31 more; \
             spec.data.webdataset.shards[3] (`D/9.tar`): shard D/9.tar does not exist (check the names, and that their volume is mounted)"
        );
    }

    #[test]
    fn a_text_file_lists_shards_as_they_are_from_its_own_folder() {
        let place = Place::new(&["lists/a.tar", "b.tar", "lists/c{1}[2]*.tar"]);
        let absolute = place.path("b.tar");
        let text = format!("\u{feff}# training\r\na.tar\r\n\r\n  c{{1}}[2]*.tar \n../b.tar\n{absolute}");
        fs::write(place.path("lists/train.txt"), text).expect("the list is written");
        place.check(&["lists/train.txt"], &["lists/a.tar", "lists/c{1}[2]*.tar", "lists/../b.tar", "b.tar"]);
        fs::write(place.path("lists/train.txt"), "a.tar\ngone.tar").expect("the list is written");
        let refused = place.refused(&["lists/train.txt"]);
        assert!(refused.contains("shards[0] (`D/lists/train.txt`): 1 of its 2 shards do not exist: D/lists/gone.tar"), "{refused}");
        fs::write(place.path("lists/train.txt"), "# nothing\n\n").expect("the list is written");
        assert!(place.refused(&["lists/train.txt"]).contains("this list names no shard"));
        assert!(place.refused(&["lists/other.txt"]).contains("shards[0] (`D/lists/other.txt`): reading this list of shards"));
    }

    #[test]
    fn what_a_command_is_given_is_a_file_s_name_first_and_a_pattern_then() {
        let place = Place::new(&["a[1].tar", "a1.tar"]);
        let find = |entry: &str| place.find(&[entry], ListOrigin::Arguments);
        assert_eq!(find("a[1].tar"), Ok(vec!["a[1].tar".to_owned()]));
        assert_eq!(find("a?.tar"), Ok(vec!["a1.tar".to_owned()]));
        place.check(&["a[1].tar"], &["a1.tar"]);
        place.check(&["a[[]1].tar"], &["a[1].tar"]);
        let refused = find("{a.tar").expect_err("the brace is open");
        assert!(refused.starts_with('`') && refused.contains("cannot be used: the `{`"), "{refused}");
    }

    proptest! {
        #[test]
        fn every_glob_that_the_operator_lets_through_can_be_looked_for(pattern in "/?[ab*?!\\[\\]{},./-]{0,12}") {
            let Ok(ShardEntry::Pattern(pattern)) = ShardEntry::parse(&pattern) else { return Ok(()) };
            for name in pattern.expand() {
                if let ShardName::Glob(glob) = name {
                    for name in glob.split('/') {
                        prop_assert!(glob::Pattern::new(name).is_ok(), "{name} of {glob}");
                    }
                }
            }
        }
    }
}
