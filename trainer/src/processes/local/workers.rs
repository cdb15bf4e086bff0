//! Which workers a job on this machine is to have. Pure: whoever starts and ends them looks here for what is wanted.

use std::{collections::BTreeSet, num::NonZeroU32};

use lcl_protocol::{InvalidWorld, World};
use lcl_trainer_config::{Normalization, TrainerConfig};

use super::{LocalOptions, gpus::Gpus};
use crate::processes::control::Size;

/// What bounds the number of workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Name of the job.
    pub(super) job: String,
    /// Members of each worker.
    pub(super) members_per_worker: NonZeroU32,
    /// With fewer workers nothing is trained; `None`: all that are wanted are needed.
    pub(super) min: Option<NonZeroU32>,
    /// Most workers; `None`: no bound of its own.
    pub(super) max: Option<NonZeroU32>,
    /// Most members: each needs a slot of the global batch, in exact mode a shard of it, and a GPU if they have GPUs.
    pub(super) most_members: u64,
    /// The result depends on the number of members, so it stays.
    pub(super) is_fixed: bool,
}

impl Bounds {
    /// Those of a job of so many workers, with the numbers of the command line.
    pub(super) fn of(config: &TrainerConfig, options: &LocalOptions, gpus: &Gpus) -> Self {
        let optimization = &config.optimization;
        let shards = optimization.exact.as_ref().map_or(u64::MAX, |exact| exact.virtual_shards.into());
        // A job without spec.elastic needs all of its workers, and goes on needing all when their number changes.
        let needs_all = options.max_workers.is_none() && options.workers.get() > 1 && options.min_workers == options.workers;
        Self {
            job: config.job.clone(),
            members_per_worker: options.members_per_worker,
            min: (!needs_all).then_some(options.min_workers),
            max: options.max_workers,
            most_members: optimization.global_batch_size.min(shards).min(gpus.most_members()),
            is_fixed: optimization.normalization == Normalization::PerRank,
        }
    }

    fn fewest(&self) -> u32 {
        self.min.map_or(1, NonZeroU32::get)
    }

    fn world(&self, workers: u32) -> Result<World, InvalidWorld> {
        let [min, desired] =
            [self.min.map_or(workers, NonZeroU32::get), workers].map(|workers| workers.saturating_mul(self.members_per_worker.get()));
        World::new(min, desired, desired)
    }

    fn check(&self, workers: u32) -> Result<World, ResizeError> {
        if self.is_fixed {
            return Err(ResizeError::Fixed);
        }
        let bound = match (self.fewest(), self.max) {
            (min, _) if workers < min => Some(format!("at least {min}")),
            (_, Some(max)) if workers > max.get() => Some(format!("at most {max}")),
            _ => None,
        };
        if let Some(bound) = bound {
            return Err(ResizeError::Bounds { workers, bound });
        }
        let members = u64::from(workers) * u64::from(self.members_per_worker.get());
        if members > self.most_members {
            return Err(ResizeError::TooMany { members, most: self.most_members });
        }
        Ok(self.world(workers)?)
    }
}

/// The number of workers cannot be as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResizeError {
    /// Fewer or more than the job allows.
    #[error("{workers} workers are asked for, but there must be {bound} (spec.elastic)")]
    Bounds {
        /// Asked for.
        workers: u32,
        /// How many there may be.
        bound: String,
    },
    /// There is not work for so many.
    #[error(
        "{members} members are more than {most}, the slots (spec.optimization.globalBatchSize) or shards (spec.optimization.exact.virtualShards) of a batch, \
         or the GPUs of this machine"
    )]
    TooMany {
        /// Members asked for.
        members: u64,
        /// Most.
        most: u64,
    },
    /// The result depends on the number of members.
    #[error("spec.optimization.normalization is PerRank, so the result depends on the number of members: it stays as it is")]
    Fixed,
    /// No worker is called that.
    #[error("no worker of this run is called {worker}: there are {known}")]
    Unknown {
        /// As asked.
        worker: String,
        /// Those that there are.
        known: String,
    },
    /// The others are too few.
    #[error(
        "without {worker} there would be fewer than {min} workers, and nothing would be trained: `lcl resize` first, or stop the run with \
         Ctrl-C, which saves"
    )]
    TooFew {
        /// Who was to leave.
        worker: String,
        /// Fewest.
        min: u32,
    },
    /// The numbers of members contradict each other.
    #[error("the numbers of members")]
    World(#[from] InvalidWorld),
}

/// The workers that are wanted, by their numbers.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    bounds: Bounds,
    wanted: BTreeSet<u32>,
    world: World,
}

/// What a change means for the processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    /// Numbers of the workers that are wanted from now on.
    pub(super) starting: Vec<u32>,
    /// Numbers of those that are not any more.
    pub(super) leaving: Vec<u32>,
}

impl Workers {
    /// The first `count` workers.
    pub(super) fn new(bounds: Bounds, count: NonZeroU32) -> Result<Self, InvalidWorld> {
        let world = bounds.world(count.get())?;
        Ok(Self { bounds, wanted: (0..count.get()).collect(), world })
    }

    /// What the coordinator is told: bounds on the number of members.
    pub(super) const fn world(&self) -> World {
        self.world
    }

    /// Whether the worker of this number is wanted.
    pub(super) fn wants(&self, number: u32) -> bool {
        self.wanted.contains(&number)
    }

    /// Those that are wanted.
    pub(super) fn wanted(&self) -> impl Iterator<Item = u32> {
        self.wanted.iter().copied()
    }

    /// How many are wanted.
    pub(super) fn count(&self) -> u32 {
        self.wanted.len().try_into().unwrap_or(u32::MAX)
    }

    /// How many are wanted, and may be.
    pub(super) fn size(&self) -> Size {
        let fixed = self.bounds.is_fixed.then(|| self.count());
        Size {
            wanted: self.count(),
            min: fixed.unwrap_or_else(|| self.bounds.fewest()),
            max: fixed.or_else(|| self.bounds.max.map(NonZeroU32::get)),
        }
    }

    /// The name of a worker, as the operator gives it to its pod.
    pub(super) fn name(&self, number: u32) -> String {
        format!("{}-w-{number}", self.bounds.job)
    }

    /// To have this many workers: the lowest numbers that are free are added, the highest ones removed, as in a cluster.
    pub(super) fn resize(&mut self, count: NonZeroU32) -> Result<Change, ResizeError> {
        let count = count.get();
        if count == self.count() {
            return Ok(Change::default());
        }
        self.world = self.bounds.check(count)?;
        let mut change = Change::default();
        while self.count() > count
            && let Some(last) = self.wanted.pop_last()
        {
            change.leaving.push(last);
        }
        let missing = count.saturating_sub(self.count()) as usize;
        change.starting = (0..).filter(|number| !self.wanted.contains(number)).take(missing).collect();
        self.wanted.extend(&change.starting);
        Ok(change)
    }

    /// To do without a worker, until a resize asks for more again.
    pub(super) fn drain(&mut self, worker: &str) -> Result<Change, ResizeError> {
        let Some(number) = self.wanted.iter().copied().find(|number| self.name(*number) == worker) else {
            let known: Vec<String> = self.wanted.iter().map(|number| self.name(*number)).collect();
            return Err(ResizeError::Unknown { worker: worker.to_owned(), known: known.join(", ") });
        };
        if self.count() <= self.bounds.fewest() {
            return Err(ResizeError::TooFew { worker: worker.to_owned(), min: self.bounds.fewest() });
        }
        self.world = self.bounds.check(self.count() - 1)?;
        self.wanted.remove(&number);
        Ok(Change { leaving: vec![number], ..Change::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(min: Option<u32>, max: Option<u32>, count: u32) -> Workers {
        let number = |number| NonZeroU32::new(number).unwrap();
        let bounds = Bounds {
            job: "job".to_owned(),
            members_per_worker: number(2),
            min: min.map(number),
            max: max.map(number),
            most_members: 8,
            is_fixed: false,
        };
        Workers::new(bounds, number(count)).unwrap()
    }

    fn resize(workers: &mut Workers, count: u32) -> Result<Change, ResizeError> {
        workers.resize(NonZeroU32::new(count).unwrap())
    }

    fn world(min: u32, desired: u32) -> World {
        World::new(min, desired, desired).unwrap()
    }

    #[test]
    fn the_highest_numbers_go_and_the_lowest_free_ones_come() {
        let mut workers = workers(Some(1), None, 3);
        assert_eq!(workers.world(), world(2, 6));
        assert_eq!(resize(&mut workers, 1).unwrap(), Change { starting: vec![], leaving: vec![2, 1] });
        assert_eq!(workers.world(), world(2, 2));
        assert_eq!(resize(&mut workers, 1).unwrap(), Change::default());
        assert_eq!(resize(&mut workers, 3).unwrap(), Change { starting: vec![1, 2], leaving: vec![] });
        assert_eq!(workers.drain("job-w-0").unwrap(), Change { starting: vec![], leaving: vec![0] });
        assert!(!workers.wants(0) && workers.wants(2));
        assert_eq!(workers.world(), world(2, 4));
        assert_eq!(resize(&mut workers, 4).unwrap(), Change { starting: vec![0, 3], leaving: vec![] });
    }

    #[test]
    fn what_the_job_does_not_allow_changes_nothing_and_is_said() {
        let mut workers = workers(Some(2), Some(3), 2);
        let before = workers.world();
        for (count, bound) in [(1, "at least 2"), (4, "at most 3")] {
            assert_eq!(resize(&mut workers, count), Err(ResizeError::Bounds { workers: count, bound: bound.to_owned() }));
        }
        assert_eq!(workers.drain("job-w-1"), Err(ResizeError::TooFew { worker: "job-w-1".to_owned(), min: 2 }));
        assert!(workers.drain("w-1").unwrap_err().to_string().contains("there are job-w-0, job-w-1"));
        workers.bounds.max = None;
        assert_eq!(resize(&mut workers, 5), Err(ResizeError::TooMany { members: 10, most: 8 }));
        workers.bounds.is_fixed = true;
        assert_eq!(resize(&mut workers, 3), Err(ResizeError::Fixed));
        assert_eq!((workers.world(), workers.count()), (before, 2));
    }

    #[test]
    fn a_job_that_needs_all_of_its_workers_needs_all_of_the_new_number() {
        let mut workers = workers(None, None, 2);
        assert_eq!(workers.world(), world(4, 4));
        resize(&mut workers, 3).unwrap();
        assert_eq!(workers.world(), world(6, 6));
        resize(&mut workers, 1).unwrap();
        assert_eq!(workers.world(), world(2, 2));
    }
}
