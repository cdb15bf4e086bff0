//! The body of an answer on its way to the client, with what the faults do to it.

use std::{sync::Arc, time::Duration};

use anyhow::{Error, bail};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};

use super::{Log, fault::Fault};
use crate::http_server::{Body, Connection};

/// A throttled body comes in pieces of at most this: a few in each tenth of a second at the rates that tests use.
const THROTTLED_PIECE: usize = 16 << 10;

/// A body being sent.
pub(super) struct Shaped {
    pub(super) incoming: Incoming,
    pub(super) connection: Arc<Connection>,
    pub(super) faults: Vec<Fault>,
    pub(super) log: Arc<Log>,
    /// The request's place in the log.
    pub(super) entry: usize,
    /// Bytes given to the client.
    pub(super) sent: u64,
    /// What has come and is not sent.
    pub(super) rest: Bytes,
}

impl Shaped {
    pub(super) fn into_body(self) -> Body {
        let pieces = stream::unfold(Some(self), |state| async move {
            let mut state = state?;
            match state.next().await {
                Ok(Some(piece)) => Some((Ok(Frame::data(piece)), Some(state))),
                Ok(None) => None,
                // Nothing comes after an error.
                Err(error) => Some((Err(error), None)),
            }
        });
        BodyExt::boxed_unsync(StreamBody::new(pieces))
    }

    /// The next piece; never one that goes past a place where something happens.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let mut most = self.rest.len();
            for index in 0..self.faults.len() {
                match self.faults[index].clone() {
                    Fault::Cut { after } if self.sent >= after => {
                        // What came before the cut comes to the client.
                        self.flush().await;
                        bail!("cut after {after} bytes");
                    }
                    Fault::Shorten { to } if self.sent >= to => return Ok(None),
                    Fault::HoldBody { after, gate } if self.sent == after => {
                        self.flush().await;
                        gate.pass().await;
                        // The gate is behind it.
                        self.faults[index] = Fault::HoldBody { after: u64::MAX, gate };
                    }
                    Fault::Cut { after: limit } | Fault::Shorten { to: limit } | Fault::HoldBody { after: limit, .. }
                        if limit > self.sent =>
                    {
                        most = usize::try_from(limit - self.sent).map_or(most, |limit| most.min(limit));
                    }
                    Fault::Throttle { bytes_per_second } => {
                        most = most.min(THROTTLED_PIECE);
                        tokio::time::sleep(Duration::from_secs_f64(most as f64 / bytes_per_second as f64)).await;
                    }
                    _ => {}
                }
            }
            if !self.rest.is_empty() {
                let room = self.reserve(most).await?;
                let piece = self.rest.split_to(room);
                let piece = self.flip(piece);
                self.sent += piece.len() as u64;
                return Ok(Some(piece));
            }
            let Some(frame) = self.incoming.frame().await.transpose()? else { return Ok(None) };
            self.rest = frame.into_data().unwrap_or_default();
        }
    }

    /// Until the client's kernel or ours has all that was sent.
    async fn flush(&self) {
        self.connection.flushed().await;
    }

    /// Counts up to so many bytes as sent and says how many may be. Where an action is due, it is through before.
    async fn reserve(&self, bytes: usize) -> Result<usize, Error> {
        loop {
            let (room, action) = self.log.reserve(self.entry, bytes);
            let Some(action) = action else { return Ok(room) };
            self.flush().await;
            tokio::task::spawn_blocking(action).await?;
        }
    }

    fn flip(&self, piece: Bytes) -> Bytes {
        let mut flipped = BytesMut::new();
        for fault in &self.faults {
            let Fault::Flip { at } = fault else { continue };
            let Some(at) = at.checked_sub(self.sent).filter(|at| *at < piece.len() as u64) else { continue };
            if flipped.is_empty() {
                flipped.extend_from_slice(&piece);
            }
            flipped[at as usize] ^= 1;
        }
        if flipped.is_empty() { piece } else { flipped.freeze() }
    }
}
