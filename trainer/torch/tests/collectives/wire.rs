//! How a parent and its member processes talk: lines of JSON over the socket that is the member's standard input.
//!
//! It carries the members' store, kept by the parent, as the coordinator's stream will; and the parent's commands and members' reports.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use lcl_torch::collectives::{MemorySession, MemoryStore, Store, StoreError};
use serde_json::{Value, json};

/// Answers of the parent may be this much later than the time-out they carry.
const SLACK: Duration = Duration::from_secs(5);

fn write_line(stream: &Mutex<UnixStream>, value: &Value) -> std::io::Result<()> {
    stream.lock().unwrap_or_else(PoisonError::into_inner).write_all(format!("{value}\n").as_bytes())
}

/// Every line of a stream until it ends.
fn lines(stream: UnixStream) -> impl Iterator<Item = Value> {
    BufReader::new(stream).lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok())
}

/// A member's process: this test program started again with a role. Killed when it is dropped.
pub(crate) struct Member {
    process: Child,
    wire: UnixStream,
    reports: Receiver<Value>,
}

impl Member {
    /// `body`: the test that is the body of such a process; `variables`: more for its environment.
    pub(crate) fn start(
        store: &MemoryStore,
        body: &str,
        role: &str,
        (rank, world_size): (usize, usize),
        variables: &[(&str, String)],
    ) -> Self {
        let (own, other) = UnixStream::pair().expect("a socket pair");
        let process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", body, "--nocapture"])
            .env("LCL_ROLE", role)
            .env("LCL_RANK", rank.to_string())
            .env("LCL_WORLD_SIZE", world_size.to_string())
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            .spawn()
            .expect("a process");
        let (sender, reports) = channel();
        serve(own.try_clone().expect("a copy of the socket"), store.clone(), sender);
        Self { process, wire: own, reports }
    }

    /// Its next report, which comes within twice the time-out of an operation.
    pub(crate) fn report(&self) -> Value {
        let report = self.reports.recv_timeout(2 * crate::TIMEOUT).expect("a report");
        assert!(report["failed"].is_null(), "{report}");
        report
    }

    pub(crate) fn command(&mut self, command: &Value) {
        self.wire.write_all(format!("{}\n", json!({"command": command})).as_bytes()).expect("a member");
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("its end");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Serves a member's store until it ends, and passes its reports on.
fn serve(stream: UnixStream, store: MemoryStore, reports: Sender<Value>) {
    let writer = Arc::new(Mutex::new(stream.try_clone().expect("a copy of the socket")));
    thread::spawn(move || {
        let mut sessions: HashMap<u64, Arc<MemorySession>> = HashMap::new();
        for line in lines(stream) {
            if !line["report"].is_null() {
                let _ = reports.send(line["report"].clone());
                continue;
            }
            let number = line["session"].as_u64().unwrap_or_default();
            let session = Arc::clone(sessions.entry(number).or_insert_with(|| Arc::new(store.session())));
            if line["call"] == "cancel" {
                session.cancel();
                continue;
            }
            let writer = Arc::clone(&writer);
            thread::spawn(move || {
                let answer = match answer(session.as_ref(), &line) {
                    Ok(value) => json!({"id": line["id"], "value": value}),
                    Err(error) => json!({"id": line["id"], "error": error.to_string()}),
                };
                // The member may be gone.
                let _ = write_line(&writer, &answer);
            });
        }
    });
}

fn answer(session: &MemorySession, line: &Value) -> Result<Value, StoreError> {
    let text = |name: &str| line[name].as_str().unwrap_or_default();
    let bytes = |name: &str| serde_json::from_value::<Vec<u8>>(line[name].clone()).unwrap_or_default();
    let keys: Vec<&str> = line["keys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let timeout = Duration::from_millis(line["timeout"].as_u64().unwrap_or_default());
    Ok(match text("call") {
        "set" => json!(session.set(text("key"), &bytes("value"), timeout)?),
        "get" => json!(session.get(text("key"), timeout)?),
        "compare_set" => json!(session.compare_set(text("key"), &bytes("expected"), &bytes("value"), timeout)?),
        "add" => json!(session.add(text("key"), line["amount"].as_i64().unwrap_or_default(), timeout)?),
        "append" => json!(session.append(text("key"), &bytes("value"), timeout)?),
        "delete" => json!(session.delete(text("key"), timeout)?),
        "contains" => json!(session.contains(&keys, timeout)?),
        "count" => json!(session.count(timeout)?),
        _ => json!(session.wait(&keys, timeout)?),
    })
}

/// A member's end of the wire.
pub(crate) struct Link {
    writer: Mutex<UnixStream>,
    waiting: Mutex<HashMap<u64, (u64, Sender<Value>)>>,
    next: AtomicU64,
    commands: Mutex<Receiver<Value>>,
}

impl Link {
    /// Takes standard input, which the parent made a socket.
    pub(crate) fn open() -> Arc<Self> {
        let owned = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
        let stream = UnixStream::from(owned);
        let (sender, commands) = channel();
        let link = Arc::new(Self {
            writer: Mutex::new(stream.try_clone().expect("a copy of the socket")),
            waiting: Mutex::default(),
            next: AtomicU64::new(0),
            commands: Mutex::new(commands),
        });
        let reader = Arc::clone(&link);
        thread::spawn(move || {
            for line in lines(stream) {
                if line["command"].is_null() {
                    let id = line["id"].as_u64().unwrap_or_default();
                    let waiting = reader.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                    if let Some((_, sender)) = waiting {
                        let _ = sender.send(line);
                    }
                } else {
                    let _ = sender.send(line["command"].clone());
                }
            }
            // Without a parent there is nothing to do, and nobody to tell.
            std::process::exit(3);
        });
        link
    }

    pub(crate) fn report(&self, value: &Value) {
        write_line(&self.writer, &json!({"report": value})).expect("a parent");
    }

    /// The parent's next command.
    pub(crate) fn command(&self) -> Value {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).recv().expect("a parent")
    }

    /// A session with the parent's store.
    pub(crate) fn session(self: &Arc<Self>) -> LinkStore {
        let session = self.next.fetch_add(1, Ordering::Relaxed);
        LinkStore { link: Arc::clone(self), session, cancelled: AtomicBool::new(false) }
    }
}

/// The parent's store as a member sees it.
pub(crate) struct LinkStore {
    link: Arc<Link>,
    session: u64,
    cancelled: AtomicBool,
}

impl LinkStore {
    fn call(&self, mut request: Value, timeout: Duration) -> Result<Value, StoreError> {
        let lost = |reason: String| StoreError::Unreachable { reason };
        let id = self.link.next.fetch_add(1, Ordering::Relaxed);
        request["id"] = json!(id);
        request["session"] = json!(self.session);
        request["timeout"] = json!(timeout.as_millis() as u64);
        let (sender, receiver) = channel();
        {
            let mut waiting = self.link.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if self.cancelled.load(Ordering::Acquire) {
                return Err(StoreError::Cancelled);
            }
            waiting.insert(id, (self.session, sender));
        }
        write_line(&self.link.writer, &request).map_err(|error| lost(error.to_string()))?;
        let answer = receiver.recv_timeout(timeout + SLACK);
        if self.cancelled.load(Ordering::Acquire) {
            return Err(StoreError::Cancelled);
        }
        let answer = answer.map_err(|error| lost(error.to_string()))?;
        answer["error"].as_str().map_or_else(|| Ok(answer["value"].clone()), |error| Err(lost(error.to_owned())))
    }
}

fn bytes(value: Value) -> Vec<u8> {
    serde_json::from_value(value).unwrap_or_default()
}

impl Store for LinkStore {
    fn set(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        self.call(json!({"call": "set", "key": key, "value": value}), timeout).map(drop)
    }
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.call(json!({"call": "get", "key": key}), timeout).map(bytes)
    }
    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8], timeout: Duration) -> Result<Vec<u8>, StoreError> {
        self.call(json!({"call": "compare_set", "key": key, "expected": expected, "value": desired}), timeout).map(bytes)
    }
    fn add(&self, key: &str, amount: i64, timeout: Duration) -> Result<i64, StoreError> {
        self.call(json!({"call": "add", "key": key, "amount": amount}), timeout).map(|sum| sum.as_i64().unwrap_or_default())
    }
    fn append(&self, key: &str, value: &[u8], timeout: Duration) -> Result<(), StoreError> {
        self.call(json!({"call": "append", "key": key, "value": value}), timeout).map(drop)
    }
    fn delete(&self, key: &str, timeout: Duration) -> Result<bool, StoreError> {
        self.call(json!({"call": "delete", "key": key}), timeout).map(|found| found == true)
    }
    fn contains(&self, keys: &[&str], timeout: Duration) -> Result<bool, StoreError> {
        self.call(json!({"call": "contains", "keys": keys}), timeout).map(|found| found == true)
    }
    fn count(&self, timeout: Duration) -> Result<u64, StoreError> {
        self.call(json!({"call": "count"}), timeout).map(|count| count.as_u64().unwrap_or_default())
    }
    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), StoreError> {
        self.call(json!({"call": "wait", "keys": keys}), timeout).map(drop)
    }
    fn cancel(&self) {
        let mut waiting = self.link.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.cancelled.store(true, Ordering::Release);
        waiting.retain(|_, (session, _)| *session != self.session);
        drop(waiting);
        // The parent's threads that wait for this session end, too.
        let _ = write_line(&self.link.writer, &json!({"call": "cancel", "session": self.session}));
    }
}
