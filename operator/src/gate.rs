//! The one gate that all creations of a job go through.
//!
//! Comes in: whether the API server took what was to be created. Goes out: whether creations may be tried now. A refusal (a quota, a webhook,
//! a policy, an overloaded server) shuts it for a while, whatever wakes the job meanwhile: a refused job must not cost the API server
//! requests at the pace of its own events.

use std::time::{Duration, Instant};

/// Pause after the first refusal in a row; doubled with every further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: two attempts a minute, and a job that may start again does so within half of one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Part of a pause by which it may be longer, so that jobs that were refused together do not come back together.
const SPREAD: f64 = 0.2;

/// Whether creations may be tried.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    refusals: u32,
    opens: Option<Instant>,
}

impl Gate {
    /// How long it stays shut; `None`: it is open.
    pub(crate) fn shut_for(&self, now: Instant) -> Option<Duration> {
        self.opens.map(|opens| opens.saturating_duration_since(now)).filter(|rest| !rest.is_zero())
    }

    /// Whether the last attempt was refused: then one creation shows whether the next would be taken.
    pub(crate) fn is_probing(&self) -> bool {
        self.refusals > 0
    }

    /// A creation was refused. `random` lies in [0, 1).
    pub(crate) fn refuse(&mut self, now: Instant, random: f64) {
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.refusals)).min(LONGEST_PAUSE);
        self.refusals = self.refusals.saturating_add(1);
        self.opens = Some(now + pause.mul_f64(1.0 + SPREAD * random));
    }

    /// A creation was taken.
    pub(crate) fn pass(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_a_row_shut_it_for_longer_and_longer_up_to_half_a_minute() {
        let (mut gate, mut now) = (Gate::default(), Instant::now());
        let mut attempts = 0;
        let begun = now;
        while now - begun < Duration::from_mins(10) {
            assert!(gate.shut_for(now).is_none());
            attempts += 1;
            gate.refuse(now, 0.5);
            now += gate.shut_for(now).expect("it is shut");
        }
        assert!((20..30).contains(&attempts), "{attempts} in ten minutes");
        assert!(gate.is_probing());
        gate.pass();
        assert!(!gate.is_probing());
        gate.refuse(now, 0.0);
        assert_eq!(gate.shut_for(now), Some(FIRST_PAUSE), "as after the first refusal");
    }
}
