//! A member's part in checkpoints: all write, rank 0 makes it visible behind the fence, as `trainer/checkpoint` does with its meeting.

use std::time::Duration;

use lcl_protocol::{Generation, MemberEvent, StoreRequest, StoreResponse};
use tokio::time::sleep;

use crate::{
    judge::Fence,
    model::{Frame, State},
    scene::Bug,
    storage::Name,
    training::{Training, unless_aborted},
};

/// How long a member waits for another's part or for the outcome; shorter than the time after which it would be evicted for standing still.
const PATIENCE: Duration = Duration::from_secs(2);
/// First number of the frame in which members say which step they know to be saved.
const SAVED: u64 = 3;

impl Training {
    /// All members save the state as it is, unless any of them knows that it is saved.
    pub(crate) async fn write_checkpoint(&mut self, generation: Generation) -> Result<(), String> {
        let Some(state) = self.state else { return Err("there is nothing to save".to_owned()) };
        let own: Frame = [SAVED, self.saved.unwrap_or(u64::MAX), 0, 0, 0, 0, 0, 0];
        let known = self.swap(generation, own, 3 * PATIENCE).await.map_err(|broken| broken.reason)?;
        if known.contains(&[SAVED, state.label.step, 0, 0, 0, 0, 0, 0]) {
            return Ok(());
        }
        let Some(group) = self.group.as_mut() else { return Err("the group is gone".to_owned()) };
        group.attempts += 1;
        let (rank, world, attempt) = (group.plan.rank, group.plan.world, group.attempts);
        let aborted = self.abort_of();
        let part = async { if rank == 0 { self.commit(state, world, attempt).await } else { self.contribute(state, rank, attempt).await } };
        unless_aborted(aborted, generation, 2 * PATIENCE, part).await?;
        self.saved = Some(state.label.step);
        Ok(())
    }

    /// The others: a part, and whether it counts.
    async fn contribute(&self, state: State, rank: u32, attempt: u64) -> Result<(), String> {
        let store = self.store(self.own_generation());
        let wait = |what| {
            unless_aborted(self.abort_of(), self.own_generation(), PATIENCE, store.ask(StoreRequest::Get { key: key(attempt, what) }))
        };
        wait("open").await?;
        sleep(self.scene.storage_time()).await;
        self.scene.storage().write_part(self.name(state), rank, state);
        store.ask(StoreRequest::Set { key: key(attempt, &part_of(rank)), value: Vec::new() }).await?;
        wait("outcome").await.map(drop)
    }

    /// Rank 0: its own part, everyone's word, the fence, the manifest.
    async fn commit(&self, state: State, world: u32, attempt: u64) -> Result<(), String> {
        let generation = self.own_generation();
        let store = self.store(generation);
        store.ask(StoreRequest::Set { key: key(attempt, "open"), value: Vec::new() }).await?;
        sleep(self.scene.storage_time()).await;
        self.scene.storage().write_part(self.name(state), 0, state);
        for rank in 1..world {
            let get = store.ask(StoreRequest::Get { key: key(attempt, &part_of(rank)) });
            unless_aborted(self.abort_of(), generation, PATIENCE, get).await?;
        }
        // Whether the files are there: a list, and a look at each.
        sleep(self.scene.storage_time() + self.scene.storage_time()).await;
        let asked = store.fence().asked;
        if !self.scene.has(Bug::SkipFence) {
            let fence = StoreRequest::Check { keys: vec![key(attempt, "open")] };
            if store.ask(fence).await? != StoreResponse::Flag(true) {
                return Err("the store was emptied".to_owned());
            }
        }
        let (name, fence) = (self.name(state), Fence { asked, ..store.fence() });
        let is_complete = self.scene.storage().commit(name, world, state);
        self.scene.judge().visible(self.process, name, is_complete, fence);
        self.tell(MemberEvent::CheckpointCommitted { generation, saved: (state.label.step).into() });
        // Whether the others hear of it changes nothing for the checkpoint.
        let _ = store.ask(StoreRequest::Set { key: key(attempt, "outcome"), value: Vec::new() }).await;
        Ok(())
    }

    fn name(&self, state: State) -> Name {
        Name { step: state.label.step, generation: self.own_generation() }
    }

    fn own_generation(&self) -> Generation {
        self.group.as_ref().map_or(Generation { epoch: 0, n: 0 }, |group| group.plan.generation)
    }
}

fn key(attempt: u64, what: &str) -> String {
    format!("checkpoint-{attempt}-{what}")
}

fn part_of(rank: u32) -> String {
    format!("part-{rank}")
}
