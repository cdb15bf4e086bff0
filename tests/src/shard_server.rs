//! A server of synthetic image-text shards at the size of LAION-400M: 41,000 shards of 9,934 samples, 8 TB, of which nothing is kept.
//!
//! Comes in: GET and HEAD with ranges and conditions, and `ListObjectsV2`, in S3's form (path style; signatures are not looked at) or as a
//! plain web server is asked. Goes out: bytes that follow from a seed ([`layout`]), and counts of what was asked for. Lengths, headers and
//! listings are computed; bodies are made when they are asked for. It must not be written to; a test changes and removes shards itself.

mod layout;
mod listing;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode,
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE},
};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;

pub use self::layout::{Headers, Layout, Member, Shape, Shard};
use self::{
    layout::Version,
    listing::{Listing, Object, escape},
};
use crate::http_server::{Body, Connection, Handler, HttpServer, lock, whole};

/// A body is made in pieces of this: few enough calls, and it stays in a core's cache.
const PIECE: u64 = 256 << 10;
/// Where [`Counts`] are served as JSON.
pub const COUNTS_PATH: &str = "/-/counts";

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// The shards.
    pub shape: Shape,
    /// The bucket, and the first part of every path.
    pub bucket: String,
    /// What names of objects begin with: a folder with its slash, or nothing.
    pub prefix: String,
    /// Port of the loopback address; 0 is any that is free.
    pub port: u16,
    /// Threads that serve.
    pub threads: usize,
    /// Before each answer: what a store takes to find an object.
    pub latency: Duration,
    /// The most bytes a second of one answer; 0 is no limit.
    pub bytes_per_second: u64,
    /// Whether ranges are served. Some web servers send the whole file instead.
    pub ranges: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shape: Shape::default(),
            bucket: "laion".to_owned(),
            prefix: "laion-400m/".to_owned(),
            port: 0,
            // One for the client's other connections while a body is made.
            threads: 2,
            latency: Duration::ZERO,
            bytes_per_second: 0,
            ranges: true,
        }
    }
}

/// How a test changes a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Other bytes at the same places: nothing but the `ETag` and the time tell.
    Bytes,
    /// Members of other sizes.
    Sizes,
    /// It is not there any more.
    Removed,
}

/// What was asked for and served since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pages of listings.
    pub listings: u64,
    /// HEAD of shards.
    pub heads: u64,
    /// GET of whole shards.
    pub wholes: u64,
    /// GET of ranges of shards.
    pub ranges: u64,
    /// Answers that were errors, or `not modified`.
    pub refused: u64,
    /// Bytes of shards that were made for clients; the last piece of an answer that a client stopped may not have reached it.
    pub bytes: u64,
}

/// A running server. Ends when dropped.
#[derive(Debug)]
pub struct ShardServer {
    server: HttpServer,
    shared: Arc<Shared>,
}

impl ShardServer {
    /// Starts one.
    pub fn start(options: Options) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
        let threads = options.threads;
        let layout = Layout::new(options.shape.clone())?;
        let shared = Arc::new(Shared { options, layout, changed: Mutex::default(), counters: Counters::default() });
        Ok(Self { server: HttpServer::start(shared.clone(), address, threads)?, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// `http://` and where it listens: an S3 client's endpoint.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// A shard's plain address.
    #[must_use]
    pub fn http_uri(&self, shard: u32) -> String {
        format!("{}/{}/{}", self.url(), self.shared.options.bucket, self.shared.key(shard))
    }

    /// A shard's address for an S3 client.
    #[must_use]
    pub fn s3_uri(&self, shard: u32) -> String {
        format!("s3://{}/{}", self.shared.options.bucket, self.shared.key(shard))
    }

    /// What a process needs in its environment to use the server as S3. It looks at no credentials.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, String); 5] {
        crate::s3::Server::environment_at(&self.url())
    }

    /// What a shard holds at the moment, also when it was removed.
    #[must_use]
    pub fn shard(&self, shard: u32) -> Shard<'_> {
        self.shared.shard(shard)
    }

    /// Changes a shard, with its `ETag` and time. Answers that are under way go on with the old one.
    pub fn change(&self, shard: u32, change: Change) {
        let mut changed = lock(&self.shared.changed);
        let state = changed.entry(shard).or_default();
        state.times += 1;
        match change {
            Change::Bytes => state.version.bytes += 1,
            Change::Sizes => state.version.sizes += 1,
            Change::Removed => {}
        }
        state.removed = change == Change::Removed;
    }

    /// What was asked for since the beginning.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counters.counts()
    }

    /// Resets every connection and refuses new ones until [`Self::come_back`]. None is left when this returns.
    pub fn disappear(&self) -> Result<()> {
        self.server.disappear()
    }

    /// Listens again, at the same address.
    pub fn come_back(&self) -> Result<()> {
        self.server.come_back()
    }
}

#[derive(Debug, Default)]
struct Counters {
    listings: AtomicU64,
    heads: AtomicU64,
    wholes: AtomicU64,
    ranges: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            listings: read(&self.listings),
            heads: read(&self.heads),
            wholes: read(&self.wholes),
            ranges: read(&self.ranges),
            refused: read(&self.refused),
            bytes: read(&self.bytes),
        }
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// What a test did to a shard.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    version: Version,
    times: u32,
    removed: bool,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    layout: Layout,
    changed: Mutex<HashMap<u32, State>>,
    counters: Counters,
}

impl Handler for Shared {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, _: Arc<Connection>) -> Result<Response<Body>> {
        if !self.options.latency.is_zero() {
            tokio::time::sleep(self.options.latency).await;
        }
        let is_head = request.method() == Method::HEAD;
        if !is_head && request.method() != Method::GET {
            return self.refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "only GET and HEAD are served");
        }
        let path = request.uri().path();
        if path == COUNTS_PATH {
            let Counts { listings, heads, wholes, ranges, refused, bytes } = self.counters.counts();
            let counts =
                json!({"listings": listings, "heads": heads, "wholes": wholes, "ranges": ranges, "refused": refused, "bytes": bytes});
            return Ok(Response::builder().header(CONTENT_TYPE, "application/json").body(whole(counts.to_string()))?);
        }
        let Some(rest) = path.strip_prefix('/').and_then(|path| path.strip_prefix(self.options.bucket.as_str())) else {
            return self.refuse(StatusCode::NOT_FOUND, "NoSuchBucket", "there is no such bucket");
        };
        let key = rest.trim_start_matches('/');
        if key.is_empty() {
            return self.list(request.uri().query().unwrap_or_default());
        }
        let Some(number) = self.number(key) else {
            return self.refuse(StatusCode::NOT_FOUND, "NoSuchKey", "there is no such shard");
        };
        self.serve(number, request.headers(), is_head)
    }
}

impl Shared {
    fn key(&self, shard: u32) -> String {
        format!("{}{shard:05}.tar", self.options.prefix)
    }

    /// The shard of this name, if it is there.
    fn number(&self, key: &str) -> Option<u32> {
        let number = key.strip_prefix(&self.options.prefix)?.strip_suffix(".tar")?.parse().ok()?;
        let there = number < self.options.shape.shards && self.key(number) == key && !self.state(number).removed;
        there.then_some(number)
    }

    fn state(&self, shard: u32) -> State {
        lock(&self.changed).get(&shard).copied().unwrap_or_default()
    }

    fn shard(&self, shard: u32) -> Shard<'_> {
        self.layout.shard(shard, self.state(shard).version)
    }

    fn refuse(&self, status: StatusCode, code: &str, message: &str) -> Result<Response<Body>> {
        count(&self.counters.refused, 1);
        let text =
            format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{}</Message></Error>", escape(message));
        Ok(Response::builder().status(status).header(CONTENT_TYPE, "application/xml").body(whole(text))?)
    }

    fn list(&self, query: &str) -> Result<Response<Body>> {
        let listing = match Listing::parse(query) {
            Ok(listing) => listing,
            Err(error) => return self.refuse(StatusCode::BAD_REQUEST, "InvalidArgument", &format!("{error:#}")),
        };
        count(&self.counters.listings, 1);
        let object = |number: u32| {
            let state = self.state(number);
            let shard = self.layout.shard(number, state.version);
            let modified = format!("2021-08-20T{}.000Z", time_of_day(state.times));
            (!state.removed).then(|| Object { key: self.key(number), length: shard.length(), e_tag: shard.e_tag(), modified })
        };
        let text = listing.answer(&self.options.bucket, self.options.shape.shards, |number| self.key(number), object)?;
        Ok(Response::builder().header(CONTENT_TYPE, "application/xml").body(whole(text))?)
    }

    fn serve(self: Arc<Self>, number: u32, headers: &HeaderMap, is_head: bool) -> Result<Response<Body>> {
        let state = self.state(number);
        let shard = self.layout.shard(number, state.version);
        let (length, e_tag) = (shard.length(), shard.e_tag());
        let names = |header: HeaderName| {
            let value = headers.get(header)?.to_str().ok()?;
            Some(value == "*" || value.split(',').any(|name| name.trim() == e_tag))
        };
        if names(IF_MATCH) == Some(false) {
            return self.refuse(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", "the shard is another one");
        }
        let answer = Response::builder()
            .header(ETAG, &e_tag)
            .header(LAST_MODIFIED, format!("Fri, 20 Aug 2021 {} GMT", time_of_day(state.times)))
            .header(CONTENT_TYPE, "application/x-tar")
            .header(ACCEPT_RANGES, if self.options.ranges { "bytes" } else { "none" });
        if names(IF_NONE_MATCH) == Some(true) {
            count(&self.counters.refused, 1);
            return Ok(answer.status(StatusCode::NOT_MODIFIED).body(whole(Bytes::new()))?);
        }
        let wanted =
            headers.get(RANGE).and_then(|range| range.to_str().ok()).filter(|_| self.options.ranges && names(IF_RANGE) != Some(false));
        let range = match wanted.map(|range| parse_range(range, length)) {
            Some(Wanted::Outside) => {
                count(&self.counters.refused, 1);
                let answer = answer.status(StatusCode::RANGE_NOT_SATISFIABLE).header(CONTENT_RANGE, format!("bytes */{length}"));
                return Ok(answer.body(whole(Bytes::new()))?);
            }
            Some(Wanted::Range(range)) => Some(range),
            Some(Wanted::Whole) | None => None,
        };
        let counters = &self.counters;
        count(
            if is_head {
                &counters.heads
            } else if range.is_some() {
                &counters.ranges
            } else {
                &counters.wholes
            },
            1,
        );
        let answer = match &range {
            Some(range) => answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, format!("bytes {}-{}/{length}", range.start, range.end - 1)),
            None => answer,
        };
        let range = range.unwrap_or(0..length);
        let answer = answer.header(CONTENT_LENGTH, range.end - range.start);
        let body = if is_head { whole(Bytes::new()) } else { self.body(number, state.version, range) };
        answer.body(body).context("an answer")
    }

    /// The bytes of a range, made piece by piece as the client takes them.
    fn body(self: Arc<Self>, number: u32, version: Version, range: Range<u64>) -> Body {
        let rate = self.options.bytes_per_second;
        let pieces = stream::unfold((self, range), move |(shared, range)| async move {
            if range.is_empty() {
                return None;
            }
            let end = range.end.min(range.start + PIECE);
            let piece = shared.layout.shard(number, version).bytes(range.start..end);
            count(&shared.counters.bytes, piece.len() as u64);
            if rate > 0 {
                tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64)).await;
            }
            Some((Ok(Frame::data(piece)), (shared, end..range.end)))
        });
        BodyExt::boxed_unsync(StreamBody::new(pieces))
    }
}

enum Wanted {
    Whole,
    Range(Range<u64>),
    Outside,
}

/// What a header `Range` asks for of an object of this length; whole where it is none that is understood, as HTTP says.
fn parse_range(header: &str, length: u64) -> Wanted {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else { return Wanted::Whole };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..length.min(last.saturating_add(1)),
        (Ok(first), _) if last.is_empty() => first..length,
        (_, Ok(count)) if first.is_empty() => length.saturating_sub(count)..length,
        _ => return Wanted::Whole,
    };
    if range.is_empty() { Wanted::Outside } else { Wanted::Range(range) }
}

/// The time of day so many seconds after midnight: each change is a second later.
fn time_of_day(seconds: u32) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}
