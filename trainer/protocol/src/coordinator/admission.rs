//! Who is let in: processes that attach, those whose place they take, and those that do not fit.

use super::{
    ConnectionId, Coordinator, CoordinatorCommand, Generation, HistoryEvent, Identity, LossCause, MemberName, Peer, Ticket, ToMember, Turn,
    turns::Standing,
};
use crate::{Attach, PROTOCOL_VERSION, Refusal};

impl Coordinator {
    pub(super) fn attach(&mut self, connection: ConnectionId, attach: Attach) {
        let (attach, ticket) = match self.accept(attach) {
            Ok((attach, Some(ticket))) => (attach, ticket),
            Ok((_, None)) => {
                let ticket = self.turns.give();
                return self.send(connection, ToMember::Ticket { generation: self.generation, ticket });
            }
            Err(reason) => {
                self.send(connection, ToMember::Refused { generation: self.generation, reason });
                return self.close(connection);
            }
        };
        let Attach { identity, config_digest, machine, known, held, draining, group, saved, .. } = attach;
        let name = identity.name.clone();
        if (held.is_some() || group.is_some()) && !self.has_state() {
            self.refuse_other_machines(machine.as_deref());
        }
        self.turns.admit(&identity, ticket);
        self.replace(&identity, Turn { ticket, start: identity.incarnation.start });
        // A member may know a generation of this epoch that this process never formed: then another coordinator had the same epoch.
        // Going on above it keeps numbers from being used twice.
        self.generation = self.generation.max(known.unwrap_or(self.generation));
        self.config_digest.get_or_insert(config_digest);
        if let Some(link) = self.links.get_mut(&connection) {
            link.member = Some(name.clone());
        }
        self.record(HistoryEvent::Joined { member: name.clone() });
        let draining = draining || self.stopping;
        if let Some(saved) = saved {
            self.told.checkpoint_committed(saved);
        }
        let holds = group.map(|group| group.generation);
        let is_aside = self.is_set_aside(&identity);
        self.peers.insert(Peer { connection, identity, ticket, machine, held, heard: self.now, holds, told: None, draining, is_aside });
        self.send(connection, ToMember::Attached { generation: self.generation, ticket });
        if let Some(group) = group {
            self.attached_with(&name, group);
        }
    }

    /// Whether this process was evicted for being slow; a newer one of its name was not.
    fn is_set_aside(&mut self, identity: &Identity) -> bool {
        let is_the_one = self.set_aside.get(&identity.name) == Some(&identity.incarnation);
        if !is_the_one {
            self.set_aside.remove(&identity.name);
        }
        is_the_one
    }

    /// The attached process of this name, if there is one, makes room. A process whose stream broke unnoticed has come back itself; one
    /// that is older than the newcomer gets to know that it has no place any more.
    fn replace(&mut self, identity: &Identity, newest: Turn) {
        let Some(old) = self.peers.get(&identity.name) else { return };
        let (connection, is_same) = (old.connection, old.identity.incarnation == identity.incarnation);
        let own = Turn { ticket: old.ticket, start: old.identity.incarnation.start };
        if !is_same {
            let reason = Refusal::Superseded { member: identity.name.to_string(), own, newest };
            self.send(connection, ToMember::Refused { generation: self.generation, reason });
        }
        self.links.remove(&connection);
        let seen = if is_same { "it attached anew" } else { "a newer process of it attached" };
        self.lose(&identity.name, LossCause::Replaced, seen);
        self.out.push(CoordinatorCommand::Close { connection });
    }

    /// Whether a member can be attached; with its ticket, unless it has to be given one first.
    fn accept(&self, attach: Attach) -> Result<(Attach, Option<Ticket>), Refusal> {
        let member = attach.identity.name.to_string();
        if attach.protocol_version != PROTOCOL_VERSION {
            return Err(Refusal::ProtocolVersion { member, version: attach.protocol_version, coordinator: PROTOCOL_VERSION });
        }
        // Who has a ticket knows whoever gave it.
        let given_by = attach.ticket.map(|ticket| Generation { epoch: ticket.epoch, n: 0 });
        if let Some(known) = attach.known.max(given_by).filter(|known| known.epoch > self.settings.epoch) {
            return Err(Refusal::StaleCoordinator { member, epoch: self.settings.epoch, known });
        }
        let ticket = match self.turns.judge(&attach.identity, attach.ticket) {
            Standing::Newest(ticket) => Some(ticket),
            Standing::Unknown => None,
            Standing::Superseded { own, newest } => return Err(Refusal::Superseded { member, own, newest }),
        };
        match &self.config_digest {
            Some(expected) if *expected != attach.config_digest => {
                return Err(Refusal::Configuration { member, digest: attach.config_digest, expected: expected.clone() });
            }
            _ => {}
        }
        if let Some(machine) = &attach.machine
            && let Some(expected) = self.machine_for(&attach)
            && machine != expected
        {
            return Err(Refusal::Machine { member, machine: machine.clone(), expected: expected.to_owned() });
        }
        Ok((attach, ticket))
    }

    /// Whether any attached member has the job's state.
    const fn has_state(&self) -> bool {
        self.peers.holders() > 0 || self.peers.busy() > 0
    }

    /// What a member has to compute on: what those with the job's state do, else (unless it has that state itself) what anyone does.
    fn machine_for(&self, attach: &Attach) -> Option<&str> {
        let peer = if self.has_state() {
            self.peers.values().find(|peer| peer.has_state())
        } else if attach.held.is_some() || attach.group.is_some() {
            None
        } else {
            self.peers.values().next()
        };
        peer?.machine.as_deref()
    }

    /// The first member with the job's state has come. Those who came before it have to fit it.
    fn refuse_other_machines(&mut self, expected: Option<&str>) {
        let Some(expected) = expected else { return };
        let differs = |peer: &&Peer| peer.machine.as_deref().is_some_and(|machine| machine != expected);
        let others: Vec<MemberName> = self.peers.values().filter(differs).map(|peer| peer.identity.name.clone()).collect();
        for name in others {
            let Some(Peer { connection, machine: Some(machine), .. }) = self.peers.get(&name) else { continue };
            let (connection, machine, expected) = (*connection, machine.clone(), expected.to_owned());
            let reason = Refusal::Machine { member: name.to_string(), machine, expected };
            self.send(connection, ToMember::Refused { generation: self.generation, reason });
            self.close(connection);
            self.lose(&name, LossCause::OtherMachine, "members with the job's state compute on another kind of machine");
        }
    }
}
