//! Which samples of a data set count, as a CEL expression over the fields of their sidecars.
//!
//! Comes in: an expression such as `similarity >= 0.28 && NSFW != "NSFW"`, and the bytes of a sample's json. Goes out: whether the sample
//! passes, or why it does not ([`Filtered`]). The operator checks with it what the trainer reads with it.
//! It must not know where sidecars come from, nor what becomes of a sample.

mod check;
mod evaluate;
mod lexical;
mod node;
mod sidecar;

use std::fmt;

use check::Checker;
use evaluate::{Failure, evaluate};
use node::Node;
pub use sidecar::{BrokenSidecar, SIDECAR_BYTES_LIMIT, fields_of};

/// Most bytes of an expression: some times what a person writes in one. With it the time that a sample takes is bounded, since nothing in an
/// expression repeats but over lists that are written in it, one at a time.
pub const FILTER_BYTES_LIMIT: usize = 1024;

/// Stack of the thread that parses: the parser takes up to 80 kB for a level when it is not optimised.
const PARSER_STACK: usize = 16 << 20;

/// An expression that cannot be a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It has more bytes than any filter needs.
    #[error("must be at most {FILTER_BYTES_LIMIT} bytes long")]
    TooLong,
    /// It has more levels than the parser can go down.
    #[error("must be simpler: it opens more than {} brackets", lexical::OPENED_LIMIT)]
    TooDeep,
    /// A sign stands twice, of which the parser would drop one.
    #[error("must not have `{sign}` twice in a row: leave both out, or put parentheses between them")]
    DoubledSign {
        /// The sign.
        sign: char,
    },
    /// The system starts no thread to parse it.
    #[error("cannot be read now: no thread can be started ({0})")]
    Thread(String),
    /// It is no CEL.
    #[error("must be an expression in CEL: at character {column}: {message}")]
    Syntax {
        /// Where, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// It calls a function that there is not.
    #[error("must call no function but {}: there is no `{name}`", Self::FUNCTIONS)]
    UnknownFunction {
        /// Its name.
        name: String,
    },
    /// A function is called with another number of arguments than it has.
    #[error("must call {name} with its arguments: {usage}")]
    Arguments {
        /// The function.
        name: String,
        /// How it is called.
        usage: &'static str,
    },
    /// It uses a part of the language that filters do not have.
    #[error("must do without {what}: {instead}")]
    NotAvailable {
        /// What.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// Its types do not fit.
    #[error("must be sound in its types: {0}")]
    Type(String),
    /// It is about no sample.
    #[error("must name a field of the sample's json, such as similarity")]
    NoField,
    /// A regular expression is malformed.
    #[error("must have regular expressions in RE2's syntax: {0}")]
    Pattern(String),
}

impl FilterError {
    const FUNCTIONS: &'static str = "has, size, contains, startsWith, endsWith, matches, lowerAscii, int, double, string, all, exists and \
                                     exists_one";
}

/// An expression that says which samples pass.
#[derive(Debug)]
pub struct Filter {
    root: Node,
    fields: Vec<String>,
}

/// Why a sample does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FilterCause {
    /// The expression says so.
    Excluded,
    /// The sample has no json.
    NoSidecar,
    /// The json is no object, or larger than [`SIDECAR_BYTES_LIMIT`].
    BrokenSidecar,
    /// The expression needs a field that is not there.
    MissingField,
    /// A field is of another type than the expression needs.
    WrongType,
    /// The expression has no value for these fields, such as a division by zero.
    NoValue,
}

impl FilterCause {
    /// Every cause.
    pub const ALL: [Self; 6] = [Self::Excluded, Self::NoSidecar, Self::BrokenSidecar, Self::MissingField, Self::WrongType, Self::NoValue];

    /// The name in counts, in snake case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Excluded => "excluded",
            Self::NoSidecar => "no_sidecar",
            Self::BrokenSidecar => "broken_sidecar",
            Self::MissingField => "missing_field",
            Self::WrongType => "wrong_type",
            Self::NoValue => "no_value",
        }
    }
}

impl fmt::Display for FilterCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A sample that does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filtered {
    /// Why.
    pub cause: FilterCause,
    /// What of it, such as the name of the field; empty where there is nothing more to say.
    pub detail: String,
}

impl Filter {
    /// Reads an expression and checks it as far as that is possible without a sample.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > FILTER_BYTES_LIMIT {
            return Err(FilterError::TooLong);
        }
        if lexical::opens_too_many(text) {
            return Err(FilterError::TooDeep);
        }
        if let Some(sign) = lexical::doubled_sign(text) {
            return Err(FilterError::DoubledSign { sign });
        }
        // On a stack of its own, whatever the caller's is.
        std::thread::scope(|scope| {
            let parser = std::thread::Builder::new().stack_size(PARSER_STACK).spawn_scoped(scope, || Self::parse_here(text));
            let parser = parser.map_err(|error| FilterError::Thread(error.to_string()))?;
            parser.join().unwrap_or(Err(FilterError::TooDeep))
        })
    }

    fn parse_here(text: &str) -> Result<Self, FilterError> {
        let parsed = cel::parser::Parser::new().parse(text).map_err(|errors| syntax_error(&errors, text))?;
        let mut checker = Checker::default();
        let root = checker.root(&parsed)?;
        if checker.fields().is_empty() {
            return Err(FilterError::NoField);
        }
        Ok(Self { root, fields: checker.into_fields() })
    }

    /// The fields of the sidecar that it looks at.
    #[must_use]
    pub fn fields(&self) -> &[String] {
        &self.fields
    }

    /// Whether the sample with this sidecar passes; `None` for one without.
    pub fn judge(&self, sidecar: Option<&[u8]>) -> Result<(), Filtered> {
        let filtered = |cause, detail: String| Err(Filtered { cause, detail });
        let Some(sidecar) = sidecar else { return filtered(FilterCause::NoSidecar, String::new()) };
        let values = match fields_of(sidecar, &self.fields) {
            Ok(values) => values,
            Err(error) => return filtered(FilterCause::BrokenSidecar, error.to_string()),
        };
        match evaluate(&self.root, &self.fields, &values) {
            Ok(true) => Ok(()),
            Ok(false) => filtered(FilterCause::Excluded, String::new()),
            Err(Failure::Missing(field)) => filtered(FilterCause::MissingField, field),
            Err(Failure::WrongType(what)) => filtered(FilterCause::WrongType, what),
            Err(Failure::NoValue(what)) => filtered(FilterCause::NoValue, what),
        }
    }
}

/// The first of the parser's errors, in one line.
fn syntax_error(errors: &cel::ParseErrors, text: &str) -> FilterError {
    let first = errors.errors.first();
    let message = first.map_or("it cannot be parsed", |error| error.msg.as_str());
    let message = message.strip_prefix("Syntax error: ").unwrap_or(message);
    // What could stand there is everything an expression can begin with.
    let mut message = message.split(" expecting ").next().unwrap_or(message).to_owned();
    // In words of the expression, where the parser has some of its grammar.
    let told = [
        ("has() macro", "has() takes a field of json, as in has(json.similarity)"),
        ("token recognition error at: '=", "a single `=` compares nothing: write `==`"),
        ("token recognition error at: '&", "a single `&` joins nothing: write `&&`"),
        ("token recognition error at: '|", "a single `|` joins nothing: write `||`"),
        ("'<EOF>'", "it ends where a value, a field or a bracket is missing"),
    ];
    if let Some((_, words)) = told.into_iter().find(|(found, _)| message.contains(found)) {
        words.clone_into(&mut message);
    }
    // Lines and columns from 1; what is shown counts through the whole text.
    let (line, column) = first.map_or((1, 1), |error| error.pos);
    let before: usize = text.split_inclusive('\n').take(usize::try_from(line - 1).unwrap_or(0)).map(|line| line.chars().count()).sum();
    FilterError::Syntax { column: before + usize::try_from(column).unwrap_or(0), message }
}

#[cfg(test)]
mod tests;
