//! What went wrong with an object, as an error of the system: whoever reads files and objects alike decides by its kind.

use std::io;

/// An object cannot be read or written; lies in an [`io::Error`], whose kind says whether another attempt can help.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The store answered with an error, or not at all.
    #[error("object {uri}")]
    Store {
        /// The object.
        uri: String,
        /// The store's error.
        source: object_store::Error,
    },
    /// The store cannot be opened.
    #[error("{uri}: {source}")]
    Open {
        /// The object.
        uri: String,
        /// Why.
        source: super::OpenError,
    },
    /// The object is another one than before.
    #[error("object {uri} changed while it was read: its ETag or size is another one")]
    Changed {
        /// The object.
        uri: String,
    },
    /// Fewer bytes came than were asked for.
    #[error("object {uri}: {got} bytes came where {asked} were asked for")]
    CutShort {
        /// The object.
        uri: String,
        /// Bytes asked for.
        asked: u64,
        /// Bytes that came.
        got: u64,
    },
    /// Whoever waited was asked to stop.
    #[error("object {uri} was not waited for any longer: a stop was asked for")]
    Stopped {
        /// The object.
        uri: String,
    },
    /// The server does not know ranges.
    #[error(
        "{uri}: the server sends the whole file when it is asked for a part of it: use one that supports HTTP range requests (nginx, Apache and \
         Caddy do, Python's http.server does not), or a copy on disk"
    )]
    NoRanges {
        /// What was to be read.
        uri: String,
    },
    /// A plain web server lists nothing.
    #[error("{uri}: a web server cannot be asked what it has: name each shard, with braces or in a text file")]
    NoList {
        /// What was to be listed.
        uri: String,
    },
}

impl ObjectError {
    /// As the system's error, of the kind that a file would give.
    pub(crate) fn into_io(self) -> io::Error {
        use object_store::Error;
        let kind = match &self {
            Self::Open { .. } | Self::NoList { .. } | Self::NoRanges { .. } => io::ErrorKind::InvalidInput,
            Self::Changed { .. } => io::ErrorKind::InvalidData,
            Self::CutShort { .. } => io::ErrorKind::ConnectionReset,
            // Not `Interrupted`, after which readers of the standard library try again.
            Self::Stopped { .. } => io::ErrorKind::Other,
            Self::Store { source, .. } => match source {
                Error::NotFound { .. } => io::ErrorKind::NotFound,
                Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
                Error::InvalidPath { .. } | Error::NotSupported { .. } | Error::NotImplemented { .. } => io::ErrorKind::InvalidInput,
                Error::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
                source if is_refusal(source) => io::ErrorKind::InvalidInput,
                // Answers of 500 and above, of 429, and none at all.
                _ => io::ErrorKind::TimedOut,
            },
        };
        io::Error::new(kind, self)
    }
}

/// Whether a server answered a request for a range with the whole object. The library gives out no type for that: what is left is its text, which
/// differs between web servers and object stores.
pub(crate) fn ignores_ranges(error: &object_store::Error) -> bool {
    let text = error.to_string();
    text.contains("not supported by ") && text.contains("Range") || text.contains("non-partial response")
}

/// Whether the store says that the request itself is wrong (400, 301 of another region), or the client that it may not be sent (`http://` without
/// `AWS_ALLOW_HTTP=true`), which no further attempt mends. The library has a type for that and does not give it out: what is left is its text.
fn is_refusal(error: &object_store::Error) -> bool {
    let text = error.to_string();
    if text.contains("URL scheme is not allowed") {
        return true;
    }
    let code = text.split("status code: ").nth(1).and_then(|rest| rest.get(..3)).and_then(|code| code.parse::<u16>().ok());
    code.is_some_and(|code| (300..500).contains(&code) && !matches!(code, 408 | 425 | 429))
}
