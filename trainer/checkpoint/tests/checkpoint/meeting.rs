//! Where several writers meet in these tests: a board of keys that can be declared over, in memory and for other processes.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use lcl_checkpoint::{Meeting, MeetingError};
use serde::{Deserialize, Serialize};

/// Keys of one membership.
#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<String, Vec<u8>>,
    is_over: bool,
    /// Nobody answers; so many were refused meanwhile.
    is_gone: bool,
    refused: u32,
}

/// An operation, as it travels.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Set(String, Vec<u8>),
    Get(String, Duration),
    Contains(String),
    Delete(String),
}

type Answer = Result<Option<Vec<u8>>, String>;

impl Board {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The membership is over: every operation fails from here on, also those that wait.
    pub(crate) fn end(&self) {
        self.state.lock().unwrap().is_over = true;
        self.changed.notify_all();
    }

    /// What a new coordinator starts with.
    pub(crate) fn empty(&self) {
        self.state.lock().unwrap().values.clear();
    }

    /// Without a coordinator, until there is a new one.
    pub(crate) fn set_gone(&self, is_gone: bool) {
        let mut state = self.state.lock().unwrap();
        state.is_gone = is_gone;
        state.values.clear();
    }

    /// Operations that were refused since nobody answers.
    pub(crate) fn refused(&self) -> u32 {
        self.state.lock().unwrap().refused
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().unwrap().is_over
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.lock().unwrap().values.keys().cloned().collect()
    }

    fn answer(&self, request: Request) -> Answer {
        let mut state = self.state.lock().unwrap();
        if state.is_over {
            return Err("the membership is over".to_owned());
        }
        if state.is_gone {
            state.refused += 1;
            return Err("nobody answers".to_owned());
        }
        match request {
            Request::Set(key, value) => {
                state.values.insert(key, value);
                self.changed.notify_all();
                Ok(None)
            }
            Request::Get(key, patience) => {
                let deadline = Instant::now() + patience;
                while !state.values.contains_key(&key) && !state.is_over {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    state = self.changed.wait_timeout(state, left).unwrap().0;
                }
                if state.is_over { Err("the membership is over".to_owned()) } else { Ok(state.values.get(&key).cloned()) }
            }
            Request::Contains(key) => Ok(state.values.get(&key).map(|_| Vec::new())),
            Request::Delete(key) => Ok(state.values.remove(&key)),
        }
    }

    /// Answers other processes, one connection per operation, for as long as this process lives.
    pub(crate) fn serve(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let board = Arc::clone(self);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let board = Arc::clone(&board);
                thread::spawn(move || board.serve_one(&stream.unwrap()));
            }
        });
        address
    }

    fn serve_one(&self, mut stream: &TcpStream) {
        let mut line = String::new();
        // Who asks may be killed at any moment.
        if BufReader::new(stream).read_line(&mut line).is_ok()
            && let Ok(request) = serde_json::from_str(&line)
        {
            let _ = stream.write_all(&serde_json::to_vec(&self.answer(request)).unwrap());
        }
    }
}

/// A writer's end of a [`Board`] in this process.
#[derive(Debug)]
pub(crate) struct Local(pub(crate) Arc<Board>);

/// A writer's end of a [`Board`] in another one.
#[derive(Debug)]
pub(crate) struct Remote(pub(crate) SocketAddr);

trait Ask {
    fn ask(&self, request: Request) -> Result<Option<Vec<u8>>, MeetingError>;

    fn is_known_to_be_over(&self) -> bool;
}

impl Ask for Local {
    fn ask(&self, request: Request) -> Result<Option<Vec<u8>>, MeetingError> {
        self.0.answer(request).map_err(|reason| MeetingError { reason })
    }

    fn is_known_to_be_over(&self) -> bool {
        self.0.is_over()
    }
}

impl Ask for Remote {
    fn ask(&self, request: Request) -> Result<Option<Vec<u8>>, MeetingError> {
        let answer = || -> std::io::Result<Answer> {
            let mut stream = TcpStream::connect(self.0)?;
            stream.write_all(&[serde_json::to_vec(&request)?, b"\n".to_vec()].concat())?;
            Ok(serde_json::from_reader(&stream)?)
        };
        answer().unwrap_or_else(|error| Err(error.to_string())).map_err(|reason| MeetingError { reason })
    }

    /// A board that does not answer has no successor.
    fn is_known_to_be_over(&self) -> bool {
        true
    }
}

macro_rules! meeting {
    ($type:ty) => {
        impl Meeting for $type {
            fn set(&self, key: &str, value: &[u8]) -> Result<(), MeetingError> {
                self.ask(Request::Set(key.to_owned(), value.to_vec())).map(drop)
            }

            fn get(&self, key: &str, patience: Duration) -> Result<Option<Vec<u8>>, MeetingError> {
                self.ask(Request::Get(key.to_owned(), patience))
            }

            fn contains(&self, key: &str) -> Result<bool, MeetingError> {
                self.ask(Request::Contains(key.to_owned())).map(|value| value.is_some())
            }

            fn delete(&self, key: &str) -> Result<(), MeetingError> {
                self.ask(Request::Delete(key.to_owned())).map(drop)
            }

            fn is_over(&self) -> bool {
                Ask::is_known_to_be_over(self)
            }
        }
    };
}

meeting!(Local);
meeting!(Remote);
