//! gRPC around the machines of `lcl-protocol`: the coordinator's server, and the client with which a member's training thread takes part.
//!
//! Comes in: streams of members, requests of the operator, time. Goes out: messages, and a status that can be watched.
//! It decides nothing: every decision is the machines'. It knows nothing of tensors or Kubernetes.
//!
//! Both ends show certificates of one authority, or are told that the wire is not protected ([`Security`]).

mod accept;
mod client;
mod command;
mod convert;
mod driver;
mod metrics;
mod metrics_page;
mod overseer;
mod pulse;
mod server;

pub use client::{ClientOptions, Commands, GroupStore, MemberClient, PendingAnswer, StartError, StoreError, draw_number};
pub use convert::{WireError, status_from_proto};
pub use lcl_security::{
    CertificateFiles, Credentials, CredentialsError, MEMBER_NAME, OPERATOR_NAME, SERVER_NAME, Security, SecurityError, Transport,
};
pub use metrics::Metrics;
pub use metrics_page::serve_metrics;
pub use overseer::{Overseer, Sight};
pub use pulse::Unhealthy;
pub use server::{Incoming, ServeError, serve, serve_on, serve_with};

/// Largest message in bytes that either side accepts: a store value with room to spare. Larger ones end the stream.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
