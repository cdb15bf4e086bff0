//! Looks at a run from aside, at moments of no meaning to it: its processes, and whether a checkpoint that is visible is whole.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use lcl_tests::{
    process::{descendants, exists},
    run::Run,
};

use crate::checks;

/// Between two looks.
const POLL: Duration = Duration::from_millis(40);

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    is_over: AtomicBool,
    /// Processes whose descendants are of the run: the launcher, and further workers.
    roots: Mutex<BTreeSet<u32>>,
    seen: Mutex<BTreeSet<u32>>,
}

impl Watch {
    /// From now on this process and its descendants are of the run.
    pub(crate) fn follow(&self, root: u32) {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).insert(root);
    }

    /// Looks until the run is over.
    pub(crate) fn look(&self, run: &Run) -> Result<()> {
        let mut looks = 0_u32;
        while !self.is_over.load(Ordering::Relaxed) {
            self.note_processes()?;
            checks::expect_whole_checkpoints(run, looks.is_multiple_of(16))?;
            looks += 1;
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// The run is over.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn note_processes(&self) -> Result<()> {
        let roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for root in roots {
            let found = descendants(root)?.into_iter().map(|(process, _)| process);
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
        }
        Ok(())
    }

    /// Of all processes that were seen none is left.
    pub(crate) fn expect_nothing_left(&self) -> Result<()> {
        for process in self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            ensure!(!exists(*process), "process {process} is left behind");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use lcl_tests::process::{await_condition, kill, start_command};

    use super::*;

    #[test]
    fn a_process_that_a_further_worker_leaves_behind_is_found() -> Result<()> {
        let shell = |script: &str| {
            let mut command = Command::new("bash");
            command.args(["-c", script]);
            start_command(command)
        };
        let (launcher, worker) = (shell("exec sleep 600")?, shell("sleep 600 & wait")?);
        let watch = Watch::default();
        watch.follow(launcher.id());
        watch.follow(worker.id());
        let orphan = await_condition("the worker's process", || {
            watch.note_processes()?;
            Ok(watch.seen.lock().unwrap_or_else(PoisonError::into_inner).first().copied())
        })?;
        drop((launcher, worker));
        let error = watch.expect_nothing_left().err().map(|error| error.to_string());
        kill(orphan)?;
        assert_eq!(error, Some(format!("process {orphan} is left behind")));
        Ok(())
    }
}
