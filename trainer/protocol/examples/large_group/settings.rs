//! What a large group is made of, as flags with a default each.

/// All quantities of the model. Times in seconds, rates in bytes a second.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Members that share a node.
    pub(crate) members_per_node: f64,
    /// Weights and moments: ViT-L/14 with its language model.
    pub(crate) state_bytes: f64,
    /// What a member sends, and receives, at most: of one process's connections in host memory.
    pub(crate) member_bandwidth: f64,
    /// What a node sends, and receives, at most: 100 Gb/s.
    pub(crate) node_bandwidth: f64,
    /// Of the coordinator's pod: 10 Gb/s.
    pub(crate) coordinator_bandwidth: f64,
    /// One way between two pods.
    pub(crate) latency: f64,
    /// Of a piece; `PIECE` of the trainer.
    pub(crate) piece_bytes: f64,
    /// What the store gives one reader.
    pub(crate) reader_rate: f64,
    /// What the store gives all readers together.
    pub(crate) store_rate: f64,
    /// What a member hashes of its state.
    pub(crate) hash_rate: f64,
    /// A step of all members.
    pub(crate) step: f64,
    /// The part of a step in which a member is in no collective operation, and sees no abort: from its exchange to its first bucket.
    pub(crate) unseen: f64,
    /// What the coordinator needs for a message that it reads or writes.
    pub(crate) message: f64,
    /// What one member tells all others while the group forms.
    pub(crate) entry_bytes: f64,
    /// Connections between members, and NCCL's communicator, once all have met.
    pub(crate) connect: f64,
    /// Until an aborted group is dropped.
    pub(crate) drop: f64,
    /// From when the loss of a process can be seen until its replacement attaches.
    pub(crate) restart: f64,
    /// Heartbeats are this far apart.
    pub(crate) heartbeat: f64,
    /// Who is not heard of for this long is lost.
    pub(crate) heartbeat_timeout: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            members_per_node: 8.0,
            state_bytes: 5.6e9,
            member_bandwidth: 1.5e9,
            node_bandwidth: 12.5e9,
            coordinator_bandwidth: 1.25e9,
            latency: 50e-6,
            piece_bytes: 4.0 * 1024.0 * 1024.0,
            reader_rate: 1e9,
            store_rate: 10e9,
            hash_rate: 5e9,
            step: 1.0,
            unseen: 1.0 / 3.0,
            message: 40e-6,
            entry_bytes: 300.0,
            connect: 0.2,
            drop: 0.01,
            restart: 10.0,
            heartbeat: 1.0,
            heartbeat_timeout: 10.0,
        }
    }
}

impl Settings {
    /// The quantities by the names of their flags.
    pub(crate) fn named(&mut self) -> [(&'static str, &mut f64); 19] {
        [
            ("members-per-node", &mut self.members_per_node),
            ("state-bytes", &mut self.state_bytes),
            ("member-bandwidth", &mut self.member_bandwidth),
            ("node-bandwidth", &mut self.node_bandwidth),
            ("coordinator-bandwidth", &mut self.coordinator_bandwidth),
            ("latency", &mut self.latency),
            ("piece-bytes", &mut self.piece_bytes),
            ("reader-rate", &mut self.reader_rate),
            ("store-rate", &mut self.store_rate),
            ("hash-rate", &mut self.hash_rate),
            ("step", &mut self.step),
            ("unseen", &mut self.unseen),
            ("message", &mut self.message),
            ("entry-bytes", &mut self.entry_bytes),
            ("connect", &mut self.connect),
            ("drop", &mut self.drop),
            ("restart", &mut self.restart),
            ("heartbeat", &mut self.heartbeat),
            ("heartbeat-timeout", &mut self.heartbeat_timeout),
        ]
    }

    /// An exchange of some numbers between all: libtorch's Gloo passes them around a ring.
    pub(crate) fn exchange(&self, members: usize) -> f64 {
        members.saturating_sub(1) as f64 * self.latency
    }

    /// Until one member has read the checkpoint.
    pub(crate) fn read(&self) -> f64 {
        self.state_bytes / self.reader_rate.min(self.store_rate)
    }

    /// Until a member has hashed its state.
    pub(crate) fn hash(&self) -> f64 {
        self.state_bytes / self.hash_rate
    }

    pub(crate) fn node_of(&self, member: usize) -> usize {
        member / (self.members_per_node as usize).max(1)
    }
}
