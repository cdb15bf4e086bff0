//! What went wrong with an object, as an error of the system: whoever reads files and objects alike decides by its kind.

use std::{error::Error, io};

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
    /// The address of the store is one of plain HTTP, which nobody has allowed.
    #[error(
        "object {uri}: the store's address begins with http://, over which credentials and data travel unencrypted: set {}=true in the \
         environment if that is meant (a store within the cluster or for tests), or give an address that begins with https://",
        Variables::of(uri).allow_http
    )]
    PlainHttp {
        /// The object.
        uri: String,
    },
    /// The store does not let in whoever asks.
    #[error("object {uri}: the store refuses access: {}", Variables::of(uri).access)]
    Denied {
        /// The object.
        uri: String,
        /// The store's error.
        source: object_store::Error,
    },
    /// The environment has no credentials, and the cloud's metadata service, which is asked then, gives none.
    #[error(
        "object {uri}: there are no credentials in the environment, and the metadata service of a cloud, which is asked for some then, gives \
         none: {}",
        Variables::of(uri).access
    )]
    NoCredentials {
        /// The object.
        uri: String,
        /// What asking the service gave.
        source: object_store::Error,
    },
    /// There is no such bucket.
    #[error("object {uri}: the store has no bucket of this name: check the URI, and that the environment names the right store ({})",
        Variables::of(uri).endpoint)]
    NoBucket {
        /// The object.
        uri: String,
        /// The store's error.
        source: object_store::Error,
    },
    /// There is no connection to it.
    #[error("object {uri}: no connection to the store: check the network, and the address that the environment gives ({})",
        Variables::of(uri).endpoint)]
    Unreachable {
        /// The object.
        uri: String,
        /// What stands against it.
        source: object_store::Error,
    },
    /// The store says that the request is wrong, or none can be made of what the environment says.
    #[error("object {uri}: asking again does not help: check what the environment says of the store ({})", Variables::of(uri).endpoint)]
    Refused {
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

/// What the environment says of a store, by the scheme of its URIs, for messages.
struct Variables {
    allow_http: &'static str,
    access: &'static str,
    endpoint: &'static str,
}

impl Variables {
    fn of(uri: &str) -> Self {
        match uri.split_once("://").map_or("", |(scheme, _)| scheme) {
            "s3" => Self {
                allow_http: "AWS_ALLOW_HTTP",
                access: "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, and that they may read and list the bucket",
                endpoint: "AWS_ENDPOINT, AWS_REGION",
            },
            "gs" => Self {
                allow_http: "GOOGLE_ALLOW_HTTP",
                access: "check GOOGLE_SERVICE_ACCOUNT in the environment, and that the account may read and list the bucket",
                endpoint: "GOOGLE_SERVICE_ACCOUNT",
            },
            "az" => Self {
                allow_http: "AZURE_ALLOW_HTTP",
                access: "check AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY in the environment, and that they may read and list \
                         the container",
                endpoint: "AZURE_STORAGE_ACCOUNT_NAME",
            },
            _ => Self {
                allow_http: "ALLOW_HTTP",
                access: "name files that can be fetched without credentials",
                endpoint: "HTTPS_PROXY, HTTP_PROXY",
            },
        }
    }
}

impl ObjectError {
    /// The error of a store about an object.
    pub(crate) fn of_store(uri: &str, source: object_store::Error) -> Self {
        use object_store::Error as E;
        let uri = uri.to_owned();
        match source {
            // The state that was asked for is not there any more.
            E::Precondition { .. } => Self::Changed { uri },
            source if METADATA_SERVICES.iter().any(|address| says(&source, address)) => Self::NoCredentials { uri, source },
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Self::Denied { uri, source },
            // Of a list there are no such variants.
            source if matches!(status_of(&source), Some(401 | 403)) => Self::Denied { uri, source },
            source if says(&source, "NoSuchBucket") || says(&source, "ContainerNotFound") => Self::NoBucket { uri, source },
            source if ignores_ranges(&source) => Self::NoRanges { uri },
            source if says(&source, "URL scheme is not allowed") && (says(&source, "http://") || says(&source, "REDACTED")) => {
                Self::PlainHttp { uri }
            }
            source if causes(&source).filter_map(|error| error.downcast_ref::<reqwest::Error>()).any(reqwest::Error::is_connect) => {
                Self::Unreachable { uri, source }
            }
            // Whatever has a variant of its own says by that what it is.
            source @ E::Generic { .. } if is_refusal(&source) => Self::Refused { uri, source },
            source => Self::Store { uri, source },
        }
    }

    /// Whether it says something about the store, so that other objects of it fare no better; otherwise about one object.
    fn is_of_store(&self) -> bool {
        match self {
            Self::Open { .. }
            | Self::NoList { .. }
            | Self::NoRanges { .. }
            | Self::PlainHttp { .. }
            | Self::NoBucket { .. }
            | Self::NoCredentials { .. }
            | Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::Stopped { .. } => true,
            // A web server has rights of single files.
            Self::Denied { uri, .. } => !uri.starts_with("http"),
            Self::Changed { .. } | Self::CutShort { .. } => false,
            // What may pass has been waited for by whoever looks at this.
            Self::Store { .. } => self.kind() == io::ErrorKind::TimedOut,
        }
    }

    fn kind(&self) -> io::ErrorKind {
        use object_store::Error as E;
        match self {
            Self::Open { .. } | Self::NoList { .. } | Self::NoRanges { .. } | Self::PlainHttp { .. } | Self::Refused { .. } => {
                io::ErrorKind::InvalidInput
            }
            Self::Denied { .. } => io::ErrorKind::PermissionDenied,
            Self::NoCredentials { source, .. } if is_refusal(source) => io::ErrorKind::PermissionDenied,
            // On a machine of a cloud the service answers the next time, and a network comes back.
            Self::NoCredentials { .. } | Self::Unreachable { .. } => io::ErrorKind::TimedOut,
            // Not `NotFound`, which would be said of one object.
            Self::NoBucket { .. } => io::ErrorKind::InvalidInput,
            Self::Changed { .. } => io::ErrorKind::InvalidData,
            Self::CutShort { .. } => io::ErrorKind::ConnectionReset,
            // Not `Interrupted`, after which readers of the standard library try again.
            Self::Stopped { .. } => io::ErrorKind::Other,
            Self::Store { source, .. } => match source {
                E::NotFound { .. } => io::ErrorKind::NotFound,
                E::InvalidPath { .. } | E::NotSupported { .. } | E::NotImplemented { .. } => io::ErrorKind::InvalidInput,
                E::AlreadyExists { .. } => io::ErrorKind::AlreadyExists,
                // Answers of 500 and above, of 429, and none at all.
                _ => io::ErrorKind::TimedOut,
            },
        }
    }

    /// As the system's error, of the kind that a file would give.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::new(self.kind(), self)
    }
}

/// Whether an error is one of a whole store (nobody is let in, the address is wrong, it does not answer), so that whoever reads many objects of it need
/// not ask for the others.
#[must_use]
pub fn is_of_store(error: &io::Error) -> bool {
    let mut cause = error.get_ref().map(|cause| cause as &(dyn Error + 'static));
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<ObjectError>() {
            return error.is_of_store();
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return is_of_store(error);
        }
        cause = error.source();
    }
    false
}

/// Where the clouds' metadata services are: link-local addresses and names that the library asks.
const METADATA_SERVICES: [&str; 4] = ["://169.254.169.254", "://169.254.170.2", "://[fd00:ec2::254]", "://metadata.google.internal"];

/// An error with all that is behind it.
fn causes(error: &object_store::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(Some(error as &(dyn Error + 'static)), |&error| error.source())
}

/// Whether an error or one behind it has these words. The library has types for much of what it says, and does not give them out: what is left is
/// their text.
fn says(error: &object_store::Error, words: &str) -> bool {
    causes(error).any(|error| error.to_string().contains(words))
}

/// Whether a server answered a request for a range with the whole object; the text differs between web servers and object stores.
fn ignores_ranges(error: &object_store::Error) -> bool {
    let text = error.to_string();
    text.contains("not supported by ") && text.contains("Range") || text.contains("non-partial response")
}

/// Whether no further attempt mends it: the store says that the request itself is wrong (400, 301 of another region), or there is none, since nothing
/// can be sent to such an address, or with such credentials.
fn is_refusal(error: &object_store::Error) -> bool {
    if causes(error).filter_map(|error| error.downcast_ref::<reqwest::Error>()).any(reqwest::Error::is_builder) {
        return true;
    }
    let is_wrong = |code: u16| (300..500).contains(&code) && !matches!(code, 408 | 425 | 429);
    says(error, "redirect without LOCATION") || status_of(error).is_some_and(is_wrong)
}

/// The status of a store's answer, where there is one.
fn status_of(error: &object_store::Error) -> Option<u16> {
    causes(error).find_map(|error| error.to_string().split("status code: ").nth(1)?.get(..3)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        thread,
    };

    use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig, aws::AmazonS3Builder, path::Path};

    use super::*;
    use crate::open::{Patience, open_store};

    const URI: &str = "s3://bucket/a.tar";

    /// What an S3 store at this address gives for a list and for an object, as errors of the system.
    fn ask(endpoint: &str, allow_http: bool) -> io::Result<[io::Error; 2]> {
        // Chooses how TLS is done.
        open_store("http://localhost", Patience::Library).map_err(io::Error::other)?;
        let store = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_bucket_name("bucket")
            .with_region("r")
            .with_access_key_id("a")
            .with_secret_access_key("b")
            .with_client_options(ClientOptions::new().with_allow_http(allow_http))
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listed = runtime.block_on(store.list_with_delimiter(None)).expect_err("nothing is listed");
        let looked = runtime.block_on(store.head(&Path::from("a.tar"))).expect_err("nothing is there");
        Ok([listed, looked].map(|error| ObjectError::of_store(URI, error).into_io()))
    }

    /// A server that answers every request with this; gives its address.
    fn serve(status: &'static str, body: &'static str) -> io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for mut connection in listener.incoming().map_while(Result::ok) {
                let Ok(reading) = connection.try_clone() else { return };
                let mut lines = BufReader::new(reading).lines().map_while(Result::ok);
                let Some(asked) = lines.next() else { continue };
                lines.find(String::is_empty);
                let sent = if asked.starts_with("HEAD") { "" } else { body };
                drop(write!(connection, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{sent}", body.len()));
            }
        });
        Ok(format!("http://{address}"))
    }

    #[test]
    fn what_no_further_attempt_mends_is_of_the_whole_store_and_says_what_to_do() -> io::Result<()> {
        use io::ErrorKind::{InvalidInput, PermissionDenied};
        let check = |errors: [io::Error; 2], kind, part: &str| {
            for error in errors {
                assert_eq!(error.kind(), kind, "{error:?}");
                assert!(error.to_string().contains(part) && error.to_string().contains(URI), "{error}");
                assert!(is_of_store(&error), "{error:?}");
                // Whoever reads archives wraps them.
                assert!(is_of_store(&io::Error::new(kind, error)));
            }
        };
        check(ask("http://127.0.0.1:1", false)?, InvalidInput, "set AWS_ALLOW_HTTP=true in the environment");
        check(ask("ftp://127.0.0.1:1", true)?, InvalidInput, "AWS_ENDPOINT, AWS_REGION");
        check(ask(&serve("403 Forbidden", "")?, true)?, PermissionDenied, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
        check(ask(&serve("401 Unauthorized", "")?, true)?, PermissionDenied, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
        check(ask(&serve("400 Bad Request", "")?, true)?, InvalidInput, "AWS_ENDPOINT, AWS_REGION");
        check(ask(&serve("301 Moved Permanently", "")?, true)?, InvalidInput, "AWS_ENDPOINT, AWS_REGION");
        let [listed, looked] = ask(&serve("404 Not Found", "<Error><Code>NoSuchBucket</Code></Error>")?, true)?;
        assert!(is_of_store(&listed) && listed.to_string().contains("has no bucket of this name"), "{listed}");
        // An answer without a body does not say whether the bucket is there.
        assert_eq!((looked.kind(), is_of_store(&looked)), (io::ErrorKind::NotFound, false));
        Ok(())
    }

    #[test]
    fn a_metadata_service_without_an_answer_means_that_there_are_no_credentials() {
        let asked = |status: &str| object_store::Error::Generic {
            store: "S3",
            source: format!("Error performing PUT http://169.254.169.254/latest/api/token in 2ms - {status}").into(),
        };
        for (status, kind) in [
            ("Server returned non-2xx status code: 403 Forbidden: ", io::ErrorKind::PermissionDenied),
            ("HTTP error: error sending request", io::ErrorKind::TimedOut),
        ] {
            let error = ObjectError::of_store(URI, asked(status)).into_io();
            assert!(error.kind() == kind && is_of_store(&error), "{error:?}");
            let words = error.to_string();
            assert!(words.contains("no credentials in the environment") && words.contains("AWS_ACCESS_KEY_ID"), "{words}");
        }
    }

    #[test]
    fn what_may_pass_is_of_the_kind_that_is_tried_again() -> io::Result<()> {
        // Nobody listens, the store is overloaded, or it fails.
        let addresses = ["http://127.0.0.1:1".to_owned(), serve("503 Slow Down", "")?, serve("500 Oops", "")?, serve("429 Too Many", "")?];
        for address in addresses {
            for error in ask(&address, true)? {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error:?}");
            }
        }
        for error in ask("http://127.0.0.1:1", true)? {
            assert!(
                is_of_store(&error)
                    && error.to_string().contains("no connection to the store")
                    && error.to_string().contains("AWS_ENDPOINT")
            );
        }
        assert!(!is_of_store(&io::ErrorKind::TimedOut.into()), "a disk is no store");
        Ok(())
    }
}
