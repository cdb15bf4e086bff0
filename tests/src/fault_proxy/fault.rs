//! What can go wrong with an answer, and which requests it happens to.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use glob::Pattern;
use http::Method;
use tokio::sync::watch;

use crate::http_server::lock;

/// Something the test does.
pub type Action = Arc<dyn Fn() + Send + Sync>;

/// What happens to one request. Of several, those before the answer happen in their order, those in its body all.
#[derive(Clone)]
pub enum Fault {
    /// Does this before the request goes on to the server.
    Call(Action),
    /// Waits before the request goes on to the server.
    DelayHead(Duration),
    /// Waits at this gate before the request goes on to the server.
    HoldHead(Gate),
    /// Ends the connection with a reset and without an answer; the server never sees the request.
    Reset,
    /// Answers with this status and an empty body; the server never sees the request.
    Status(u16),
    /// Answers as S3 does when it gets too many requests: 503 with an XML body; the server never sees the request.
    SlowDown,
    /// The body comes at this rate.
    Throttle {
        /// Above 0.
        bytes_per_second: u64,
    },
    /// The body waits at this gate after so many bytes.
    HoldBody {
        /// Bytes of the body.
        after: u64,
        /// What it waits for.
        gate: Gate,
    },
    /// The connection closes after exactly so many bytes of the body; the head promises all of them.
    Cut {
        /// Bytes of the body.
        after: u64,
    },
    /// The body ends after so many bytes and `Content-Length` says so: nothing but the number of bytes tells.
    Shorten {
        /// Bytes of the body.
        to: u64,
    },
    /// The lowest bit of one byte of the body is the other one.
    Flip {
        /// Which byte of the body, from 0.
        at: u64,
    },
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(_) => write!(f, "Call"),
            Self::DelayHead(time) => write!(f, "DelayHead({time:?})"),
            Self::HoldHead(_) => write!(f, "HoldHead"),
            Self::Reset => write!(f, "Reset"),
            Self::Status(status) => write!(f, "Status({status})"),
            Self::SlowDown => write!(f, "SlowDown"),
            Self::Throttle { bytes_per_second } => write!(f, "Throttle({bytes_per_second} B/s)"),
            Self::HoldBody { after, .. } => write!(f, "HoldBody({after})"),
            Self::Cut { after } => write!(f, "Cut({after})"),
            Self::Shorten { to } => write!(f, "Shorten({to})"),
            Self::Flip { at } => write!(f, "Flip({at})"),
        }
    }
}

/// What a rule sees of a request.
#[derive(Clone, Debug)]
pub struct Head {
    /// GET, HEAD, PUT …
    pub method: Method,
    /// The path as it was sent, percent signs included.
    pub path: String,
    /// What follows the question mark; empty without one.
    pub query: String,
    /// The header `Range`.
    pub range: Option<String>,
    /// How many requests of this method and path came before it.
    pub earlier: u64,
}

/// A fault and the requests that it happens to: all, unless narrowed.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    method: Option<Method>,
    path: Pattern,
    query: String,
    occurrences: Range<u64>,
}

impl Rule {
    /// `path` is a pattern in which `*` stands for any characters, slashes too: `*/00001.tar`.
    pub fn new(path: &str, fault: Fault) -> Result<Self> {
        let path = Pattern::new(path).with_context(|| format!("the pattern {path:?}"))?;
        Ok(Self { fault, method: None, path, query: String::new(), occurrences: 0..u64::MAX })
    }

    /// Only requests of this method.
    #[must_use]
    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method), ..self }
    }

    /// Only requests whose query has this in it, such as `list-type=2`.
    #[must_use]
    pub fn query(self, part: &str) -> Self {
        Self { query: part.to_owned(), ..self }
    }

    /// Of the requests that match otherwise only these, counted from 0: `0..3` are the first three.
    #[must_use]
    pub fn occurrences(self, occurrences: Range<u64>) -> Self {
        Self { occurrences, ..self }
    }

    fn matches(&self, head: &Head) -> bool {
        self.method.as_ref().is_none_or(|method| *method == head.method)
            && self.path.matches(&head.path)
            && head.query.contains(&self.query)
    }
}

type Decide = Box<dyn Fn(&Head) -> Option<Fault> + Send + Sync>;

/// Rules in the order they were given, each with the number of requests it has matched; and what decides besides them.
#[derive(Default)]
pub(super) struct Script {
    rules: Vec<(Rule, u64)>,
    decide: Option<Decide>,
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Script {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push((rule, 0));
    }

    pub(super) fn decide(&mut self, decide: Decide) {
        self.decide = Some(decide);
    }

    /// What happens to this request.
    pub(super) fn faults(&mut self, head: &Head) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (rule, matched) in &mut self.rules {
            if rule.matches(head) {
                if rule.occurrences.contains(matched) {
                    faults.push(rule.fault.clone());
                }
                *matched += 1;
            }
        }
        faults.extend(self.decide.as_ref().and_then(|decide| decide(head)));
        faults
    }
}

/// Holds what comes to it until the test opens it; the test can wait until something has come.
#[derive(Clone, Debug)]
pub struct Gate {
    inner: Arc<(watch::Sender<bool>, Mutex<u64>, Condvar)>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { inner: Arc::new((watch::Sender::new(false), Mutex::default(), Condvar::new())) }
    }
}

impl Gate {
    /// Lets pass what waits here, and whatever comes later.
    pub fn open(&self) {
        self.inner.0.send_replace(true);
    }

    /// Blocks the calling thread until so many answers have come here since the beginning.
    pub fn await_arrivals(&self, count: u64) {
        let (_, arrivals, changed) = &*self.inner;
        drop(changed.wait_while(lock(arrivals), |arrivals| *arrivals < count).unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) async fn pass(&self) {
        let (open, arrivals, changed) = &*self.inner;
        *lock(arrivals) += 1;
        changed.notify_all();
        // The sender is in `self`.
        let _ = open.subscribe().wait_for(|open| *open).await;
    }
}
