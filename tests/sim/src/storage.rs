//! Checkpoints in memory: parts by their writers, then a manifest that makes them visible, as in an object store. It checks nothing.

use std::collections::{BTreeMap, BTreeSet};

use lcl_protocol::StateLabel;

use crate::model::State;

/// The name of a checkpoint: completed steps, and the generation that wrote it.
pub(crate) type Name = StateLabel;

/// The store.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    parts: BTreeMap<Name, BTreeMap<u32, State>>,
    visible: BTreeMap<Name, State>,
}

impl Storage {
    pub(crate) fn write_part(&mut self, name: Name, rank: u32, state: State) {
        self.parts.entry(name).or_default().insert(rank, state);
    }

    /// Makes a checkpoint of so many writers visible. Whether it is complete.
    pub(crate) fn commit(&mut self, name: Name, world: u32, state: State) -> bool {
        self.visible.insert(name, state);
        let parts = self.parts.get(&name);
        let ranks: BTreeSet<u32> = parts.into_iter().flat_map(BTreeMap::keys).copied().collect();
        ranks == (0..world).collect() && parts.into_iter().flat_map(BTreeMap::values).all(|part| *part == state)
    }

    /// What a restore takes: the highest name.
    pub(crate) fn newest(&self) -> Option<(Name, State)> {
        self.visible.iter().next_back().map(|(name, state)| (*name, *state))
    }
}
