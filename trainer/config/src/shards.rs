//! What an entry of the list of shards may be, by its text alone: a path, several by braces, those that fit a glob, or a file with a list.
//!
//! Comes in: an entry as the user wrote it. Goes out: a [`ShardEntry`], or what is wrong with the text. It looks at no file, so that the
//! operator and `lcl validate` read an entry just as the trainer does, which then looks for the files.

/// Ending of a file that lists shards, one a line.
pub const LIST_EXTENSION: &str = ".txt";

/// Most paths of one entry. The largest public data sets have some 10^5 shards; a hundred times that is a slip of the finger.
pub const PATHS_LIMIT: usize = 10_000_000;

/// Deepest nesting of braces. Nobody nests more than a few, and reading them is recursive.
const DEPTH_LIMIT: usize = 16;

/// An entry of the list of shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardEntry {
    /// A path, or a pattern that stands for several.
    Pattern(ShardPattern),
    /// The path of a text file with one shard a line.
    List(String),
}

/// A path with braces and globs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPattern {
    parts: Vec<Part>,
}

/// A piece of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `{a,b}`
    Choice(Vec<Vec<Part>>),
    /// `{000..011}`
    Numbers(Numbers),
    /// `{a..f}`
    Letters(char, char),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Numbers {
    from: i64,
    to: i64,
    step: u64,
    /// Least number of characters, filled with zeros.
    width: usize,
}

/// What a pattern stands for after its braces are expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardName {
    /// One path.
    Path(String),
    /// Every file that fits: `*`, `?`, `[abc]`, `[a-z]` and `[!a]` within a name, `**` as a whole name for folders of any depth.
    Glob(String),
}

/// An entry cannot be understood. The text goes on after "…, but ".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `{` without `}`.
    #[error("the `{{` at character {at} has no `}}`")]
    OpenBrace {
        /// Where, from 1.
        at: usize,
    },
    /// `}` without `{`.
    #[error("the `}}` at character {at} has no `{{` before it")]
    ClosingBrace {
        /// Where, from 1.
        at: usize,
    },
    /// A brace that is no list and no range.
    #[error("`{{{body}}}` is neither a list such as {{a,b}} nor a range such as {{000..011}}")]
    NotARange {
        /// What stands between the braces.
        body: String,
    },
    /// `[` without `]`.
    #[error("the `[` at character {at} has no `]` (to mean a `[` itself, write `[[]`)")]
    OpenBracket {
        /// Where, from 1.
        at: usize,
    },
    /// A glob in the name of a list.
    #[error(
        "a text file with one shard a line (an entry that ends in {LIST_EXTENSION}) must be given by its name, without braces and globs"
    )]
    ListPattern,
    /// More paths than any data set has.
    #[error("it stands for more than {PATHS_LIMIT} paths")]
    TooMany,
    /// A scheme that nothing is read by.
    #[error("the scheme `{scheme}` is not supported: use s3, gs, az, http or https, or a path")]
    Scheme {
        /// What stands before `://`.
        scheme: String,
    },
    /// A URI without a bucket.
    #[error("it names no bucket or host, and no object in it: write SCHEME://BUCKET/NAME")]
    NoBucket,
    /// A host that no request can be sent to.
    #[error("`{host}` is no host: write a name or an address and, where it is needed, a port of at most 65535")]
    Host {
        /// What stands between `://` and the next `/`.
        host: String,
    },
    /// A step to the folder above, which neither stores nor addresses have.
    #[error("it has a part `.` or `..`: an object store and a web server have no such folders")]
    Dots,
    /// A name and password in the address.
    #[error("it names a user: credentials are in the environment, where no log shows them")]
    User,
    /// A glob where nothing can be listed.
    #[error("a web server cannot be asked what it has: `*`, `?` and `[` need s3, gs or az (braces and text files work)")]
    WebGlob,
    /// A glob in the name of a bucket or folder.
    #[error("of an object store one folder is listed: `*`, `?` and `[` must stand after the last `/`")]
    FolderGlob,
    /// Braces in braces in braces.
    #[error("its braces are nested more than {DEPTH_LIMIT} deep")]
    TooDeep,
}

/// Schemes of object stores, and of web servers.
const SCHEMES: [&str; 5] = ["s3", "gs", "az", "http", "https"];

/// Whether an entry, a path or a folder is a URI of an object store or web server.
#[must_use]
pub fn is_object_uri(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
}

/// Checks what an entry that looks like a URI must hold besides being a pattern.
fn check_uri(text: &str) -> Result<(), PatternError> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(()) };
    if !SCHEMES.contains(&scheme) {
        return Err(PatternError::Scheme { scheme: scheme.to_owned() });
    }
    let Some((bucket, name)) = rest.split_once('/').filter(|(bucket, name)| !bucket.is_empty() && !name.is_empty()) else {
        return Err(PatternError::NoBucket);
    };
    if scheme != "az" && bucket.contains('@') {
        return Err(PatternError::User);
    }
    if name.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(PatternError::Dots);
    }
    let is_glob = |text: &str| text.contains(['*', '?', '[']);
    match (scheme.starts_with("http"), is_glob(rest)) {
        (true, true) => Err(PatternError::WebGlob),
        (false, true) if is_glob(bucket) || name.rsplit_once('/').is_some_and(|(folder, _)| is_glob(folder)) => {
            Err(PatternError::FolderGlob)
        }
        (true, false) if !is_host(bucket) => Err(PatternError::Host { host: bucket.to_owned() }),
        _ => Ok(()),
    }
}

/// Whether this is `NAME` or `NAME:PORT`.
fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    !name.is_empty() && !name.contains(char::is_whitespace) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl ShardEntry {
    /// Reads an entry.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        check_uri(text)?;
        let is_list = text.to_ascii_lowercase().ends_with(LIST_EXTENSION);
        match (is_list, text.contains(['{', '}', '*', '?', '['])) {
            (true, true) => Err(PatternError::ListPattern),
            (true, false) => Ok(Self::List(text.to_owned())),
            (false, _) => ShardPattern::parse(text).map(Self::Pattern),
        }
    }
}

impl ShardPattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let characters: Vec<char> = text.chars().collect();
        let mut reader = Reader { characters: &characters, at: 0 };
        let parts = reader.sequence(0)?;
        if reader.at < characters.len() {
            // Outside of braces only a `}` ends a sequence.
            return Err(PatternError::ClosingBrace { at: reader.at + 1 });
        }
        check_brackets(&characters)?;
        if count(&parts).is_none_or(|count| count > PATHS_LIMIT) {
            return Err(PatternError::TooMany);
        }
        Ok(Self { parts })
    }

    /// A pattern for the path `text` itself; `None` when it has braces, which cannot be written in another way.
    #[must_use]
    pub fn literally(text: &str) -> Option<String> {
        let one = |character: char| match character {
            '*' | '?' | '[' => format!("[{character}]"),
            other => other.to_string(),
        };
        (!text.contains(['{', '}'])).then(|| text.chars().map(one).collect())
    }

    /// How many names [`Self::expand`] gives.
    #[must_use]
    pub fn count(&self) -> usize {
        count(&self.parts).unwrap_or(usize::MAX)
    }

    /// What it stands for, in order: `{a,b}` both, `{000..011}` twelve numbers of three digits, `{0..8..4}` every fourth, `{a..c}` letters;
    /// a range whose first bound is the greater one counts down; braces nest and multiply. As bash and webdataset do.
    #[must_use]
    pub fn expand(&self) -> Vec<ShardName> {
        let is_glob = |text: &str| text.contains(['*', '?', '[']);
        let name = |text: String| if is_glob(&text) { ShardName::Glob(merge_stars(&text)) } else { ShardName::Path(text) };
        expand(&self.parts).into_iter().map(name).collect()
    }
}

/// Reads parts one after the other.
struct Reader<'a> {
    characters: &'a [char],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.characters.get(self.at).copied()
    }

    /// Parts up to the end, a `}`, or within braces a `,`.
    fn sequence(&mut self, depth: usize) -> Result<Vec<Part>, PatternError> {
        let mut parts = Vec::new();
        let mut text = String::new();
        while let Some(character) = self.peek() {
            match character {
                '{' => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(self.brace(depth + 1)?);
                    continue;
                }
                '}' => break,
                ',' if depth > 0 => break,
                other => text.push(other),
            }
            self.at += 1;
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(parts)
    }

    /// What stands between a `{` and its `}`.
    fn brace(&mut self, depth: usize) -> Result<Part, PatternError> {
        let open = self.at;
        if depth > DEPTH_LIMIT {
            return Err(PatternError::TooDeep);
        }
        let mut choices = Vec::new();
        loop {
            self.at += 1;
            choices.push(self.sequence(depth)?);
            match self.peek() {
                Some(',') => {}
                Some('}') => break,
                _ => return Err(PatternError::OpenBrace { at: open + 1 }),
            }
        }
        self.at += 1;
        if choices.len() > 1 {
            return Ok(Part::Choice(choices));
        }
        let body: String = self.characters.get(open + 1..self.at - 1).unwrap_or_default().iter().collect();
        range(&body).ok_or(PatternError::NotARange { body })
    }
}

/// `from..to` or `from..to..step`.
fn range(body: &str) -> Option<Part> {
    let bounds: Vec<&str> = body.split("..").collect();
    let number = |text: &str| text.parse::<i64>().ok().filter(|_| !text.starts_with('+'));
    let (from_text, to_text, step) = match bounds.as_slice() {
        [from, to] => (*from, *to, 1),
        [from, to, step] => (*from, *to, number(step)?.unsigned_abs().max(1)),
        _ => return None,
    };
    if let ([from], [to], 1) = (from_text.as_bytes(), to_text.as_bytes(), step)
        && from.is_ascii_alphabetic()
        && from.is_ascii_lowercase() == to.is_ascii_lowercase()
        && to.is_ascii_alphabetic()
    {
        return Some(Part::Letters((*from).into(), (*to).into()));
    }
    let (from, to) = (number(from_text)?, number(to_text)?);
    // As bash: a leading zero on either bound pads all to the longer one.
    let is_padded = |text: &str| text.trim_start_matches('-').len() > 1 && text.trim_start_matches('-').starts_with('0');
    let width = if is_padded(from_text) || is_padded(to_text) { from_text.len().max(to_text.len()) } else { 0 };
    Some(Part::Numbers(Numbers { from, to, step, width }))
}

impl Numbers {
    fn count(&self) -> Option<usize> {
        usize::try_from(self.from.abs_diff(self.to) / self.step).ok()?.checked_add(1)
    }

    fn texts(&self) -> Vec<String> {
        let Self { from, to, step, width } = *self;
        let last = from.abs_diff(to) / step;
        let value = |index: u64| if from <= to { from.checked_add_unsigned(index * step) } else { from.checked_sub_unsigned(index * step) };
        (0..=last).filter_map(value).map(|value| format!("{value:0width$}")).collect()
    }
}

/// How many texts the parts stand for; `None` when that is beyond any count.
fn count(parts: &[Part]) -> Option<usize> {
    let of_part = |part: &Part| match part {
        Part::Text(_) => Some(1),
        Part::Choice(choices) => choices.iter().try_fold(0_usize, |sum, choice| sum.checked_add(count(choice)?)),
        Part::Numbers(numbers) => numbers.count(),
        Part::Letters(from, to) => Some(u32::from(*from).abs_diff(u32::from(*to)) as usize + 1),
    };
    parts.iter().try_fold(1_usize, |product, part| product.checked_mul(of_part(part)?))
}

fn expand(parts: &[Part]) -> Vec<String> {
    let texts = |part: &Part| match part {
        Part::Text(text) => vec![text.clone()],
        Part::Choice(choices) => choices.iter().flat_map(|choice| expand(choice)).collect(),
        Part::Numbers(numbers) => numbers.texts(),
        Part::Letters(from, to) if from <= to => (*from..=*to).map(String::from).collect(),
        Part::Letters(from, to) => (*to..=*from).rev().map(String::from).collect(),
    };
    parts.iter().fold(vec![String::new()], |heads, part| {
        let texts = texts(part);
        heads.iter().flat_map(|head| texts.iter().map(move |text| format!("{head}{text}"))).collect()
    })
}

/// Whether every `[` has its `]`, both in the same text between braces: braces are expanded first.
fn check_brackets(characters: &[char]) -> Result<(), PatternError> {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(character) = characters.get(at) {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '[' => {
                // A `]` right after `[` or `[!` is one of the characters that are meant.
                let first = if characters.get(at + 1) == Some(&'!') { at + 2 } else { at + 1 };
                let ends = |other: char| matches!(other, '/' | '{' | '}') || (other == ',' && depth > 0);
                let inside = characters.get(first..).unwrap_or_default().iter().take_while(|other| !ends(**other));
                let length = inside.skip(1).position(|other| *other == ']').ok_or(PatternError::OpenBracket { at: at + 1 })?;
                at = first + 1 + length;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

/// Several `*` in a row mean one, but for a name of just two.
fn merge_stars(text: &str) -> String {
    let merged = text.split('/').map(|name| {
        let mut merged = String::with_capacity(name.len());
        for character in name.chars() {
            if name == "**" || character != '*' || !merged.ends_with('*') {
                merged.push(character);
            }
        }
        merged
    });
    merged.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(pattern: &str) -> Vec<ShardName> {
        match ShardEntry::parse(pattern) {
            Ok(ShardEntry::Pattern(pattern)) => pattern.expand(),
            other => panic!("{pattern}: {other:?}"),
        }
    }

    fn check(pattern: &str, expected: &[&str]) {
        assert_eq!(names(pattern), expected.iter().map(|path| ShardName::Path((*path).to_owned())).collect::<Vec<_>>(), "{pattern}");
    }

    #[test]
    fn braces_expand_as_in_bash() {
        check("a.tar", &["a.tar"]);
        check("/d/{008..011}.tar", &["/d/008.tar", "/d/009.tar", "/d/010.tar", "/d/011.tar"]);
        check("{8..11}", &["8", "9", "10", "11"]);
        check("{3..1}", &["3", "2", "1"]);
        check("{0002..0001}", &["0002", "0001"]);
        check("{0..9..4}", &["0", "4", "8"]);
        check("{9..0..4}", &["9", "5", "1"]);
        check("{9..0..-4}", &["9", "5", "1"]);
        check("{-01..1}", &["-01", "000", "001"]);
        check("{a..c}{C..B}", &["aC", "aB", "bC", "bB", "cC", "cB"]);
        check("{train,test}-{0..1}.tar", &["train-0.tar", "train-1.tar", "test-0.tar", "test-1.tar"]);
        check("{a,b{1..2}}.tar", &["a.tar", "b1.tar", "b2.tar"]);
        check("{,x}.tar", &[".tar", "x.tar"]);
        check("a,b{1,2}", &["a,b1", "a,b2"]);
        check("bild-ä{1,2}.tar", &["bild-ä1.tar", "bild-ä2.tar"]);
    }

    #[test]
    fn what_is_left_to_fit_names_is_a_glob() {
        let glob = |text: &str| ShardName::Glob(text.to_owned());
        assert_eq!(names("/d/{a,b}-*.tar"), [glob("/d/a-*.tar"), glob("/d/b-*.tar")]);
        assert_eq!(names("/d/{a,[bc]}.tar"), [ShardName::Path("/d/a.tar".to_owned()), glob("/d/[bc].tar")]);
        for text in ["/d/00?.tar", "/d/[a,b].tar", "/d/[!]x].tar", "/d/[]].tar", "/d/[[].tar", "/d/**/x.tar"] {
            assert_eq!(names(text), [glob(text)]);
        }
        assert_eq!(names("/***/a**b*{*,c}.tar"), [glob("/*/a*b*.tar"), glob("/*/a*b*c.tar")]);
    }

    #[test]
    fn a_path_with_the_characters_of_globs_can_be_written_as_a_pattern() {
        assert_eq!(ShardPattern::literally("/a*b/[c]?").as_deref(), Some("/a[*]b/[[]c][?]"));
        assert_eq!(ShardPattern::literally("/ä b").as_deref(), Some("/ä b"));
        assert_eq!(ShardPattern::literally("/{a}"), None);
    }

    #[test]
    fn a_name_that_ends_in_txt_is_a_list() {
        for text in ["/d/train.txt", "shards.TXT"] {
            assert_eq!(ShardEntry::parse(text), Ok(ShardEntry::List(text.to_owned())));
        }
        for text in ["/d/{a,b}.txt", "/d/*.txt"] {
            assert_eq!(ShardEntry::parse(text), Err(PatternError::ListPattern));
        }
    }

    #[test]
    fn slips_are_errors_that_show_where() {
        let check = |pattern: &str, expected: &str| {
            let error = ShardEntry::parse(pattern).expect_err(pattern).to_string();
            assert!(error.contains(expected), "{pattern}: {error}");
        };
        check("/d/{000..011.tar", "the `{` at character 4 has no `}`");
        check("/d/{a,{b,c}.tar", "the `{` at character 4 has no `}`");
        check("/ä/000..011}.tar", "the `}` at character 12 has no `{`");
        for body in ["000.011", "000-011", "000..", "..011", "0..1..x", "a..Z", "a..9", "+1..2", "", "{0..1}"] {
            check(&format!("/d/{{{body}}}.tar"), &format!("`{{{body}}}` is neither a list such as {{a,b}} nor a range"));
        }
        check("/d/[ab.tar", "the `[` at character 4 has no `]`");
        check("/d/[].tar", "the `[` at character 4 has no `]`");
        check("/d/[a/b].tar", "the `[` at character 4 has no `]`");
        check("/d/{[a,b]}.tar", "the `[` at character 5 has no `]`");
        for pattern in ["{0..99999999}", "{0..9999}{0..9999}", "{-9223372036854775808..9223372036854775807}", "{0..9999999}{a,b}"] {
            check(pattern, "more than 10000000 paths");
        }
        check(&"{a,".repeat(1000), "more than 16 deep");
        for host in ["host:99999", "host:0", "host:", "host:80:80", ":80", "a b"] {
            check(&format!("https://{host}/a.tar"), &format!("`{host}` is no host"));
        }
        for path in ["s3://bucket/a/../b.tar", "gs://bucket/./b.tar", "http://host/..", "https://host/{a,b}/../c.tar"] {
            check(path, "has a part `.` or `..`");
        }
        for path in ["https://host:8080/a.tar", "http://10.0.0.1/{000..011}.tar", "s3://bucket/a..b/{0..1}.tar", "/d/../a.tar"] {
            assert!(ShardEntry::parse(path).is_ok(), "{path}");
        }
    }
}
