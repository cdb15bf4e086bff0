//! Who a member is, and what it says of itself when it attaches. Pure values.

use std::fmt;

use crate::{Generation, StateLabel};

/// Name of a member: the worker that supervises it and its number there. The same for every incarnation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName {
    /// The worker (the pod's name).
    pub worker: String,
    /// Number of the member within its worker, from 0.
    pub index: u32,
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.worker, self.index)
    }
}

/// One process of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name.
    pub name: MemberName,
    /// Grows with every process that bears the name (its start time will do): an older process is refused once a newer one was seen.
    pub incarnation: u64,
    /// The node it runs on. Ranks are ordered by it, so that neighbours share one.
    pub node: String,
    /// The IP address (and port, where it has one) under which the others reach it for collectives.
    pub address: String,
}

/// What a member says of itself on a new stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// [`crate::PROTOCOL_VERSION`] of the member.
    pub protocol_version: u32,
    /// Who it is.
    pub identity: Identity,
    /// Digest of everything that must be the same on all members: configuration, data, and in exact mode the machine's fingerprint.
    pub config_digest: String,
    /// The highest generation it has heard of.
    pub known: Option<Generation>,
    /// The state it holds; `None` when it has just started.
    pub held: Option<StateLabel>,
    /// It was asked to end and only wants to leave in order.
    pub draining: bool,
}
