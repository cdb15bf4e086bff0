//! How long a state is on its way: pieces in the rounds of [`Moves::round`], over links that several share.

use lcl_protocol::{HALVES, Moves};

use crate::settings::Settings;

/// Until when each member's and each node's link is taken, in both directions.
struct Links<'a> {
    settings: &'a Settings,
    nodes: &'a [usize],
    members: [Vec<f64>; 2],
    shared: [Vec<f64>; 2],
}

impl Links<'_> {
    /// A piece goes from one rank to another, once both are ready and what went before on each of its links has gone. When it has come.
    fn carry(&mut self, from: usize, to: usize, ready: f64) -> f64 {
        let bytes = self.settings.piece_bytes;
        let take = |busy: &mut f64, rate: f64| {
            *busy = busy.max(ready) + bytes / rate;
            *busy
        };
        let mut done = ready;
        for (direction, rank) in [(0, from), (1, to)] {
            done = done.max(take(&mut self.members[direction][rank], self.settings.member_bandwidth));
            if self.nodes[from] != self.nodes[to] {
                done = done.max(take(&mut self.shared[direction][self.nodes[rank]], self.settings.node_bandwidth));
            }
        }
        // The receiver says that it is ready, and then the piece comes.
        done + 2.0 * self.settings.latency
    }
}

/// When each rank has all that it receives and has passed on all that it sends. `starts`: from when on it takes part; `nodes`: where it is.
pub(crate) fn travel(settings: &Settings, nodes: &[usize], moves: &[Moves], starts: &[f64]) -> Vec<f64> {
    let all = (settings.state_bytes / settings.piece_bytes).ceil() as usize;
    let pieces = [all.div_ceil(HALVES), all / HALVES];
    let node_count = nodes.iter().max().map_or(0, |node| node + 1);
    let mut links =
        Links { settings, nodes, members: [0, 1].map(|_| vec![0.0; nodes.len()]), shared: [0, 1].map(|_| vec![0.0; node_count]) };
    let mut at = starts.to_vec();
    for round in 0..moves.iter().map(|moves| moves.rounds(pieces)).max().unwrap_or(0) {
        let mut next = at.clone();
        for (from, own) in moves.iter().enumerate() {
            for (half, what) in own.round(round, pieces).iter().enumerate() {
                let Some(piece) = what.outgoing else { continue };
                for to in own.halves[half].to.iter().map(|to| *to as usize) {
                    assert_eq!(moves[to].round(round, pieces)[half].incoming, Some(piece), "who receives it is in the same round");
                    let done = links.carry(from, to, at[from].max(at[to]));
                    next[from] = next[from].max(done);
                    next[to] = next[to].max(done);
                }
            }
        }
        at = next;
    }
    at
}
