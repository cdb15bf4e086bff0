//! A client whose calls block, for threads that run no asynchronous code.

use std::{
    collections::HashMap,
    future::Future,
    io,
    ops::Range,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, WriteMultipart, path::Path};
use tokio::{
    runtime::{Handle, Runtime},
    sync::mpsc,
};

use crate::{
    error::ObjectError,
    open::{Patience, open_store},
    stop::{Stop, until_asked},
};

/// Threads that drive requests and the encryption of what travels. One moves some 500 MB/s.
const WORKER_THREADS: usize = 2;

/// Longest silence of a store before an attempt is given up.
const SILENCE: Duration = Duration::from_secs(20);

/// Further attempts of one request. They are over within seconds: whoever asks waits and tries again for longer, and says so.
const RETRIES: usize = 3;

/// Pieces of a stream that wait for their reader. A piece is some 16 to 256 KiB.
const STREAM_PIECES: usize = 32;

/// Bytes that are read of a file at a time when it is written to a store.
const WRITE_PIECE: usize = 1 << 20;

/// Least bytes of a part: S3's own bound.
const LEAST_PART: usize = 5 << 20;

/// Most parts of an object: S3 takes 10,000.
const MOST_PARTS: u64 = 9_000;

/// Parts that are on their way to a store at once: what they hold is in memory.
const WRITE_PARTS: usize = 8;

/// An object as it was when it was looked at. What is read of it later is of that state, or an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its URI.
    pub uri: String,
    /// Bytes.
    pub size: u64,
    /// What the store calls this state of it.
    pub e_tag: Option<String>,
    /// Time of the last change, seconds since 1970.
    pub modified: i64,
}

impl Object {
    fn of(uri: String, meta: &ObjectMeta) -> Self {
        Self {
            uri,
            size: meta.size,
            e_tag: meta.e_tag.clone().filter(|tag| !tag.trim_matches('"').is_empty()),
            modified: meta.last_modified.timestamp(),
        }
    }

    /// What a request for this state asks for. A weak tag never matches; whether the state is the same is then told by the answer.
    fn if_match(&self) -> Option<String> {
        let tag = self.e_tag.as_ref().filter(|tag| !tag.starts_with("W/"))?;
        // Some lists have it without its quotes.
        Some(if tag.starts_with('"') { tag.clone() } else { format!("\"{tag}\"") })
    }

    /// What tells this state from others: the `ETag`, which lists and answers write with and without quotes, or else the time of change.
    #[must_use]
    pub fn state(&self) -> String {
        match &self.e_tag {
            Some(tag) => tag.trim_start_matches("W/").trim_matches('"').to_owned(),
            None => self.modified.to_string(),
        }
    }
}

/// What has been asked of stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// Bytes of bodies.
    pub bytes: u64,
}

/// The stores that this process talks to.
#[derive(Debug)]
pub struct Objects {
    runtime: Runtime,
    stores: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    requests: AtomicU64,
    bytes: Arc<AtomicU64>,
}

impl Objects {
    /// Those of this process: connections are shared by all of its threads.
    pub fn of_process() -> io::Result<&'static Self> {
        static OBJECTS: OnceLock<Objects> = OnceLock::new();
        if let Some(objects) = OBJECTS.get() {
            return Ok(objects);
        }
        let objects = Self::new()?;
        Ok(OBJECTS.get_or_init(|| objects))
    }

    fn new() -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().thread_name("objects").build()?;
        Ok(Self { runtime, stores: Mutex::default(), requests: AtomicU64::new(0), bytes: Arc::default() })
    }

    /// What has been asked so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { requests: self.requests.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }

    /// Looks at an object.
    pub fn head(&self, uri: &str) -> io::Result<Object> {
        let (store, path) = self.store(uri)?;
        self.requests.fetch_add(1, Relaxed);
        let meta = self.wait(uri, async move { store.head(&path).await })?;
        Ok(Object::of(uri.to_owned(), &meta))
    }

    /// Reads a range that lies within the object.
    pub fn get(&self, object: &Object, range: Range<u64>) -> io::Result<Bytes> {
        let (store, path) = self.store(&object.uri)?;
        let asked = range.end - range.start;
        let options = GetOptions { range: Some(GetRange::Bounded(range)), if_match: object.if_match(), ..GetOptions::default() };
        self.requests.fetch_add(1, Relaxed);
        let (meta, bytes) = self.wait(&object.uri, async move {
            let result = store.get_opts(&path, options).await?;
            let meta = result.meta.clone();
            Ok((meta, result.bytes().await?))
        })?;
        self.bytes.fetch_add(bytes.len() as u64, Relaxed);
        check_same(object, &meta)?;
        if bytes.len() as u64 != asked {
            return Err(ObjectError::CutShort { uri: object.uri.clone(), asked, got: bytes.len() as u64 }.into_io());
        }
        Ok(bytes)
    }

    /// Reads from a byte of the object on, piece by piece. What is not taken is not fetched, but for some pieces on their way.
    pub fn stream(&self, object: &Object, from: u64) -> io::Result<ByteStream> {
        let (store, path) = self.store(&object.uri)?;
        let options = GetOptions { range: Some(GetRange::Offset(from)), if_match: object.if_match(), ..GetOptions::default() };
        self.requests.fetch_add(1, Relaxed);
        let result = self.wait(&object.uri, async move { store.get_opts(&path, options).await })?;
        check_same(object, &result.meta)?;
        let (sender, receiver) = mpsc::channel(STREAM_PIECES);
        let (uri, bytes) = (object.uri.clone(), Arc::clone(&self.bytes));
        self.runtime.spawn(async move {
            let mut stream = result.into_stream();
            while let Some(piece) = stream.next().await {
                if let Ok(piece) = &piece {
                    bytes.fetch_add(piece.len() as u64, Relaxed);
                }
                // Whoever reads has gone: the rest is not wanted.
                if sender.send(piece.map_err(|source| of_store(&uri, source))).await.is_err() {
                    break;
                }
            }
        });
        Ok(ByteStream { receiver, uri: object.uri.clone(), runtime: self.runtime.handle().clone() })
    }

    /// What lies directly in a folder. Stores that list in pages are asked for all of them.
    pub fn list(&self, folder: &str) -> io::Result<Vec<Object>> {
        if folder.starts_with("http") {
            return Err(ObjectError::NoList { uri: folder.to_owned() }.into_io());
        }
        let folder = folder.trim_end_matches('/');
        let (store, path) = self.store(folder)?;
        self.requests.fetch_add(1, Relaxed);
        let listed = self.wait(folder, async move { store.list_with_delimiter(Some(&path)).await })?;
        let object = |meta: &ObjectMeta| Object::of(format!("{folder}/{}", meta.location.filename().unwrap_or_default()), meta);
        Ok(listed.objects.iter().map(object).collect())
    }

    /// Writes an object, whole or not at all.
    pub fn put(&self, uri: &str, mut reader: impl io::Read, length: u64) -> io::Result<()> {
        let (store, path) = self.store(uri)?;
        self.requests.fetch_add(1, Relaxed);
        if length <= LEAST_PART as u64 {
            // One request in place of three, and the only kind that every store has.
            let mut bytes = Vec::with_capacity(length as usize);
            reader.read_to_end(&mut bytes)?;
            return self.wait(uri, async move { store.put(&path, bytes.into()).await }).map(drop);
        }
        let upload = self.wait(uri, async move { store.put_multipart(&path).await })?;
        let part = usize::try_from(length / MOST_PARTS).unwrap_or(usize::MAX).max(LEAST_PART);
        let mut write = {
            let _context = self.runtime.enter();
            WriteMultipart::new_with_chunk_size(upload, part)
        };
        match self.write_parts(uri, &mut write, &mut reader) {
            Ok(()) => self.wait(uri, async move { write.finish().await }).map(drop),
            Err(error) => {
                // What was sent is stored, and paid for, until it is given up. The first error says more than one of this.
                drop(self.runtime.block_on(write.abort()));
                Err(error)
            }
        }
    }

    fn write_parts(&self, uri: &str, write: &mut WriteMultipart, reader: &mut impl io::Read) -> io::Result<()> {
        let mut piece = vec![0; WRITE_PIECE];
        loop {
            let read = reader.read(&mut piece)?;
            if read == 0 {
                return Ok(());
            }
            self.wait(uri, write.wait_for_capacity(WRITE_PARTS))?;
            let _context = self.runtime.enter();
            write.write(piece.get(..read).unwrap_or_default());
        }
    }

    /// Waits for what a store says of an object, until a stop is asked for that this thread hears.
    fn wait<T>(&self, uri: &str, work: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
        let done = self.runtime.block_on(until_asked(Stop::of_thread(), work));
        done.ok_or_else(|| stopped(uri))?.map_err(|source| of_store(uri, source))
    }

    /// The store of a URI, opened once for each bucket, and the path in it.
    fn store(&self, uri: &str) -> io::Result<(Arc<dyn ObjectStore>, Path)> {
        let (scheme, rest) = uri.split_once("://").unwrap_or_default();
        let bucket = format!("{scheme}://{}", rest.split('/').next().unwrap_or_default());
        let failed = |source| ObjectError::Open { uri: uri.to_owned(), source }.into_io();
        let path = path_in_store(uri).map_err(|source| of_store(uri, source.into()))?;
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = stores.get(&bucket) {
            return Ok((Arc::clone(store), path));
        }
        let (store, _) = open_store(&bucket, Patience::Reading { silence: SILENCE, retries: RETRIES }).map_err(failed)?;
        stores.insert(bucket, Arc::clone(&store));
        Ok((store, path))
    }
}

/// The path in its store of an object that is read. The name of an object is taken as it is written, whatever characters are in it, as a list of the store
/// has it; an http address is an address, in which `%41` is an `A`.
fn path_in_store(uri: &str) -> Result<Path, object_store::path::Error> {
    let (scheme, rest) = uri.split_once("://").unwrap_or_default();
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    if scheme.starts_with("http") { Path::from_url_path(path) } else { Path::parse(path) }
}

/// The bytes of an object, piece by piece.
#[derive(Debug)]
pub struct ByteStream {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    uri: String,
    runtime: Handle,
}

impl Iterator for ByteStream {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { receiver, uri, runtime } = self;
        runtime.block_on(until_asked(Stop::of_thread(), receiver.recv())).unwrap_or_else(|| Some(Err(stopped(uri))))
    }
}

fn stopped(uri: &str) -> io::Error {
    ObjectError::Stopped { uri: uri.to_owned() }.into_io()
}

fn of_store(uri: &str, source: object_store::Error) -> io::Error {
    ObjectError::of_store(uri, source).into_io()
}

/// Not every server honours `If-Match`.
fn check_same(object: &Object, meta: &ObjectMeta) -> io::Result<()> {
    let now = Object::of(object.uri.clone(), meta);
    if now.size == object.size && now.state() == object.state() {
        return Ok(());
    }
    Err(ObjectError::Changed { uri: object.uri.clone() }.into_io())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// A web server that sends all of a file whatever part of it is asked for; gives its address.
    fn serve_whole(body: &'static str) -> io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else { return };
                let Ok(reading) = connection.try_clone() else { return };
                let mut lines = BufReader::new(reading).lines().map_while(Result::ok);
                let Some(asked) = lines.next() else { continue };
                lines.find(String::is_empty);
                let sent = if asked.starts_with("HEAD") { "" } else { body };
                let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nLast-Modified: Sun, 01 Jun 2025 00:00:00 GMT\r\nContent-Length:";
                // Whoever asked may have had enough.
                drop(write!(connection, "{head} {}\r\n\r\n{sent}", body.len()));
            }
        });
        Ok(format!("http://{address}"))
    }

    /// A web server that takes requests, answers as `head` says, and then says nothing more.
    fn serve_silence(head: &'static str) -> io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        thread::spawn(move || {
            let mut open = Vec::new();
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else { return };
                let Ok(reading) = connection.try_clone() else { return };
                BufReader::new(reading).lines().map_while(Result::ok).find(String::is_empty);
                drop(write!(connection, "{head}"));
                open.push(connection);
            }
        });
        Ok(format!("http://{address}"))
    }

    /// Without being heard, each of these would wait for 80 seconds; the runner of the tests ends them before.
    #[test]
    fn a_stop_ends_every_wait_for_a_store_that_says_nothing() -> io::Result<()> {
        let objects = Objects::of_process()?;
        let begun_body = "HTTP/1.1 206 Partial Content\r\nLast-Modified: Sun, 01 Jun 2025 00:00:00 GMT\r\nContent-Range: bytes 0-9/10\r\n\
                          Content-Length: 10\r\n\r\n012";
        for head in ["", begun_body] {
            let uri = format!("{}/a.tar", serve_silence(head)?);
            let object = Object { uri: uri.clone(), size: 10, e_tag: None, modified: 1_748_736_000 };
            let calls: [&dyn Fn() -> io::Result<()>; 3] =
                [&|| objects.get(&object, 0..10).map(drop), &|| objects.stream(&object, 0)?.try_for_each(|piece| piece.map(drop)), &|| {
                    if head.is_empty() { objects.head(&uri).map(drop) } else { Err(stopped(&uri)) }
                }];
            for call in calls {
                // Asked for while it waits: the second look is after one wait.
                let looks = AtomicU64::new(0);
                let error = Stop::new(move || looks.fetch_add(1, Relaxed) > 1).heard_in(call).expect_err("nothing comes");
                assert!(error.to_string().contains("a stop was asked for"), "{error}");
                assert_eq!(error.kind(), io::ErrorKind::Other);
            }
        }
        assert!(Stop::of_thread().is_none());
        Ok(())
    }

    #[test]
    fn a_server_without_ranges_is_an_error_that_says_what_to_do_and_is_not_tried_again() -> io::Result<()> {
        let uri = format!("{}/a.tar", serve_whole("0123456789")?);
        let objects = Objects::of_process()?;
        let object = objects.head(&uri)?;
        assert_eq!(object.size, 10);
        // From its beginning as well: an index that can be built of what cannot be trained on helps nobody.
        for error in [objects.get(&object, 2..5).err(), objects.stream(&object, 0).err()] {
            let error = error.expect("the whole is no part");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains("supports HTTP range requests"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn names_of_objects_are_taken_as_they_are_written_and_addresses_are_read() {
        let path = |uri: &str| path_in_store(uri).expect("a path").to_string();
        for scheme in ["s3", "gs", "az"] {
            for name in ["a%41.tar", "a%2541.tar", "a b.tar", "a+b.tar", "ä.tar", "a?b#c.tar", "100%.tar"] {
                assert_eq!(path(&format!("{scheme}://bucket/n/{name}")), format!("n/{name}"));
            }
            assert_eq!(path(&format!("{scheme}://bucket/n/")), "n");
            assert_eq!(path(&format!("{scheme}://bucket")), "");
            assert!(path_in_store(&format!("{scheme}://bucket/a/../b")).is_err());
        }
        assert_eq!(path("https://host/n/a%41.tar"), "n/aA.tar");
    }
}
