//! What the servers of objects that are programs have in common: a process at a free port, and objects put by a client.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use object_store::{ObjectStore, ObjectStoreExt, path::Path as Key};

use crate::process::await_condition;

/// A running server. Killed when dropped.
#[derive(Debug)]
pub(crate) struct StoreProcess {
    process: Child,
    address: String,
}

impl Drop for StoreProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl StoreProcess {
    /// Starts what `command` makes of a host and a free port, and waits until it listens.
    pub(crate) fn start(name: &'static str, command: impl FnOnce(&str, u16) -> Command) -> Result<Self> {
        // The port is free a moment before; another process could take it, which the server then says.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut process = command("127.0.0.1", address.port())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let errors = BufReader::new(process.stderr.take().context("no standard error")?);
        thread::spawn(move || errors.lines().map_while(Result::ok).for_each(|line| eprintln!("{name}: {line}")));
        let mut server = Self { process, address: address.to_string() };
        await_condition(name, || {
            ensure!(server.process.try_wait()?.is_none(), "{name} has ended");
            // Looked at many times a second otherwise, while the server starts.
            thread::sleep(Duration::from_millis(20));
            Ok(TcpStream::connect(&server.address).ok())
        })?;
        Ok(server)
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// reqwest is built without a TLS of its own. A provider that the program has chosen before is kept.
pub(crate) fn use_ring_for_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Every file of a folder, and of folders in it, with `prefix/` and its path in the folder.
pub(crate) fn files_of(prefix: &str, folder: &Path) -> Result<Vec<(String, Bytes)>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("reading {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder)?.to_str().context("a file's name is no UTF-8")?;
                files.push((format!("{prefix}/{name}"), fs::read(&path)?.into()));
            }
        }
    }
    Ok(files)
}

/// Puts objects, one after the other.
pub(crate) fn put_all(client: &dyn ObjectStore, objects: impl IntoIterator<Item = (String, Bytes)>) -> Result<()> {
    let objects: Vec<_> = objects.into_iter().collect();
    run(async {
        for (key, bytes) in objects {
            client.put(&Key::parse(&key)?, bytes.into()).await.with_context(|| format!("putting {key}"))?;
        }
        Ok(())
    })
}

/// Runs async code to its end, on a thread of its own: one that runs async code already must not wait for other async code.
pub(crate) fn run<T: Send>(work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let on_thread = || tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work);
    thread::scope(|scope| scope.spawn(on_thread).join()).map_err(|_| anyhow!("a request panicked"))?
}

/// Sends one request and fails unless it succeeds.
pub(crate) async fn send(request: http::Request<Full<Bytes>>) -> Result<()> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let what = format!("{} {}", request.method(), request.uri());
    let answer = client.request(request).await.context(what.clone())?;
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success(), "{what}: {status}: {}", String::from_utf8_lossy(&body));
    Ok(())
}

#[cfg(test)]
mod tests;
