//! gRPC around the machines of `lcl-protocol`: the coordinator's server, and the client with which a member's training thread takes part.
//!
//! Comes in: streams of members, requests of the operator, time. Goes out: messages, and a status that can be watched.
//! It decides nothing: every decision is the machines'. It knows nothing of tensors or Kubernetes.
//!
//! Until there are certificates the wire is plain text and unauthenticated, and server and client run only when they are told that this
//! is meant ([`Security::Insecure`]).

mod client;
mod convert;
mod driver;
mod server;

pub use client::{ClientOptions, Commands, GroupStore, MemberClient, StartError, StoreError};
pub use convert::{WireError, status_from_proto};
pub use server::{ServeError, serve};

/// Largest message in bytes that either side accepts: a store value with room to spare. Larger ones end the stream.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// How streams are protected. The only kind so far has to be asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not at all: whoever reaches the port can take part.
    Insecure,
}
