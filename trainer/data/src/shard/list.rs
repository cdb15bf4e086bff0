//! Shell-like lists of shard paths: `{000..011}` and `{a,b}`.
//!
//! Comes in: patterns. Goes out: paths, in order. It looks at no file.

/// A pattern cannot be expanded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// `{` without `}`.
    #[error("data.source.shards: `{pattern}` has a `{{` without its `}}`")]
    Unbalanced {
        /// The whole pattern.
        pattern: String,
    },
    /// More paths than any data set has.
    #[error("data.source.shards: `{pattern}` stands for more than {limit} paths")]
    TooMany {
        /// The whole pattern.
        pattern: String,
        /// The limit.
        limit: usize,
    },
}

/// Most paths of one pattern. The largest public data sets have some 10^5 shards; a hundred times that is a slip of the finger.
const LIMIT: usize = 10_000_000;

/// Expands a pattern as bash does: `{a,b}` gives both, `{000..011}` twelve numbers of three digits, `{0..8..4}` every fourth, descending ranges
/// count down; braces nest and multiply. A brace that holds neither a comma nor a range is part of the name.
pub fn expand(pattern: &str) -> Result<Vec<String>, ListError> {
    let too_many = || ListError::TooMany { pattern: pattern.to_owned(), limit: LIMIT };
    let mut finished = Vec::new();
    // Texts whose first `clean` bytes need no further expansion; the last one is expanded first, which keeps the order.
    let mut open = vec![(pattern.to_owned(), 0_usize)];
    while let Some((text, clean)) = open.pop() {
        let Some(brace) = text.get(clean..).and_then(|rest| rest.find('{')).map(|at| at + clean) else {
            finished.push(text);
            if finished.len() > LIMIT {
                return Err(too_many());
            }
            continue;
        };
        let close = matching(&text, brace).ok_or_else(|| ListError::Unbalanced { pattern: pattern.to_owned() })?;
        let (head, body, tail) = (&text[..brace], &text[brace + 1..close], &text[close + 1..]);
        match alternatives(body).ok_or_else(too_many)? {
            Some(choices) => {
                if open.len() + choices.len() > LIMIT {
                    return Err(too_many());
                }
                open.extend(choices.into_iter().rev().map(|choice| (format!("{head}{choice}{tail}"), brace)));
            }
            None => open.push((text.clone(), brace + 1)),
        }
    }
    Ok(finished)
}

/// Byte of the `}` that closes the `{` at byte `brace`.
fn matching(text: &str, brace: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate().skip(brace) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What a brace stands for: `Some(None)` when it is literal, `None` when it is more than [`LIMIT`] things.
#[allow(clippy::option_option, reason = "the outer one is the overflow, turned into an error at the only call")]
fn alternatives(body: &str) -> Option<Option<Vec<String>>> {
    let mut parts = Vec::new();
    let (mut depth, mut begin) = (0_usize, 0);
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(body[begin..at].to_owned());
                begin = at + 1;
            }
            _ => {}
        }
    }
    if !parts.is_empty() {
        parts.push(body[begin..].to_owned());
        return Some(Some(parts));
    }
    range(body)
}

/// `from..to` or `from..to..step` in whole numbers; results as in [`alternatives`].
#[allow(clippy::option_option, reason = "as in `alternatives`")]
fn range(body: &str) -> Option<Option<Vec<String>>> {
    let bounds: Vec<&str> = body.split("..").collect();
    let number = |text: &str| text.parse::<i64>().ok().filter(|_| !text.starts_with('+'));
    let (from_text, to_text, step) = match bounds.as_slice() {
        [from, to] => (*from, *to, Some(1)),
        [from, to, step] => (*from, *to, number(step)),
        _ => return Some(None),
    };
    let (Some(from), Some(to), Some(step)) = (number(from_text), number(to_text), step) else { return Some(None) };
    // As bash: a leading zero on either bound pads all to the longer one.
    let padded =
        [from_text, to_text].iter().any(|text| text.trim_start_matches('-').len() > 1 && text.trim_start_matches('-').starts_with('0'));
    let width = if padded { from_text.len().max(to_text.len()) } else { 0 };
    let step = usize::try_from(step.unsigned_abs().max(1)).ok()?;
    if from.abs_diff(to) / step as u64 >= LIMIT as u64 {
        return None;
    }
    let format = |value: i64| format!("{value:0width$}");
    Some(Some(if from <= to {
        (from..=to).step_by(step).map(format).collect()
    } else {
        (to..=from).rev().step_by(step).map(format).collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, expected: &[&str]) {
        assert_eq!(expand(pattern).as_deref(), Ok(expected.iter().map(ToString::to_string).collect::<Vec<_>>().as_slice()), "{pattern}");
    }

    #[test]
    fn braces_expand_as_in_bash() {
        check("a.tar", &["a.tar"]);
        check("/d/{008..011}.tar", &["/d/008.tar", "/d/009.tar", "/d/010.tar", "/d/011.tar"]);
        check("{8..11}", &["8", "9", "10", "11"]);
        check("{3..1}", &["3", "2", "1"]);
        check("{0..9..4}", &["0", "4", "8"]);
        check("{9..0..4}", &["9", "5", "1"]);
        check("{-01..1}", &["-01", "000", "001"]);
        check("{train,test}-{0..1}.tar", &["train-0.tar", "train-1.tar", "test-0.tar", "test-1.tar"]);
        check("{a,b{1..2}}.tar", &["a.tar", "b1.tar", "b2.tar"]);
        check("{,x}.tar", &[".tar", "x.tar"]);
        check("bild-ä{1,2}.tar", &["bild-ä1.tar", "bild-ä2.tar"]);
    }

    #[test]
    fn braces_without_comma_or_range_stay() {
        check("{a}.tar", &["{a}.tar"]);
        check("{}", &["{}"]);
        check("{a..b}.tar", &["{a..b}.tar"]);
        check("x}y{1,2}", &["x}y1", "x}y2"]);
        check("{{1..2}}", &["{1}", "{2}"]);
    }

    #[test]
    fn slips_are_errors_that_show_the_pattern() {
        let message = expand("/d/{000..011.tar").expect_err("the brace is open").to_string();
        assert_eq!(message, "data.source.shards: `/d/{000..011.tar` has a `{` without its `}`");
        for pattern in ["{0..99999999}", "{0..9999}{0..9999}", "{-9223372036854775808..9223372036854775807}"] {
            assert_eq!(expand(pattern), Err(ListError::TooMany { pattern: pattern.to_owned(), limit: LIMIT }));
        }
    }
}
