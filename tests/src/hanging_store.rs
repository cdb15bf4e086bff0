//! A web server with a shard that answers as it should for a while, and then takes requests and says nothing.
//!
//! Comes in: a shard, and when it begins to hang. Goes out: settings of data that read it. It ends with the process.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;
use lcl_trainer_config::{DataConfig, DataSource};

/// When a store says nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangs {
    /// From the first request on.
    AtOnce,
    /// When it is asked for a part: after the index was made, which reads a shard as a whole.
    AtParts,
}

/// A web server with one file.
#[derive(Debug)]
pub struct HangingStore {
    uri: String,
    hangs: Arc<AtomicBool>,
}

impl HangingStore {
    /// Serves this shard.
    pub fn start(shard: &Path, when: Hangs) -> Result<Self> {
        let (listener, body) = (TcpListener::bind("127.0.0.1:0")?, fs::read(shard)?);
        let (uri, hangs) = (format!("http://{}/a.tar", listener.local_addr()?), Arc::new(AtomicBool::new(false)));
        let hanging = Arc::clone(&hangs);
        thread::spawn(move || {
            let mut open = Vec::new();
            for connection in listener.incoming() {
                let Ok(mut connection) = connection else { return };
                let Ok(reading) = connection.try_clone() else { return };
                let head: Vec<String> = BufReader::new(reading).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let range = head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
                let is_part = range.as_ref().is_some_and(|range| !range.ends_with('-'));
                if when == Hangs::AtOnce || is_part {
                    hanging.store(true, Ordering::SeqCst);
                    open.push(connection);
                    continue;
                }
                let from = range.and_then(|range| range.trim_end_matches('-').parse::<usize>().ok());
                let sent = body.get(from.unwrap_or(0)..).unwrap_or_default();
                let status = match from {
                    Some(from) => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{}", body.len() - 1, body.len()),
                    None => "200 OK".to_owned(),
                };
                let length = sent.len();
                let head_only = head.first().is_some_and(|line| line.starts_with("HEAD"));
                let text = format!(
                    "HTTP/1.1 {status}\r\nConnection: close\r\nETag: \"1\"\r\nLast-Modified: Sun, 01 Jun 2025 00:00:00 GMT\r\nContent-Length: {length}\r\n\r\n"
                );
                // Whoever asked may have had enough.
                drop(connection.write_all(text.as_bytes()).and_then(|()| connection.write_all(if head_only { &[] } else { sent })));
            }
        });
        Ok(Self { uri, hangs })
    }

    /// Whether a request came that it does not answer.
    #[must_use]
    pub fn hangs(&self) -> bool {
        self.hangs.load(Ordering::SeqCst)
    }

    /// The settings with this shard for data; what is kept of it lies in `folder`.
    #[must_use]
    pub fn data(&self, settings: &DataConfig, folder: &Path) -> DataConfig {
        let mut data = DataConfig { source: DataSource::webdataset(vec![self.uri.clone()]), ..settings.clone() };
        data.cache.path = Some(folder.join("cache").display().to_string());
        data.index_path = Some(folder.join("index").display().to_string());
        data
    }
}
