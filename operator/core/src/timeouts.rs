//! How long a job's coordinator waits, and how slow a member may be, as far as the job says so.
//!
//! They are on the coordinator's command line, unlike the size of the world, which it is told: another value takes another coordinator.

use std::str::FromStr;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{build::COORDINATOR_CONTAINER, job::ValidatedJob};

/// Seconds; `None`: the coordinator's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timeouts {
    /// Without a word a member is lost.
    pub heartbeat: Option<i32>,
    /// A member that stands still while others wait is evicted.
    pub stall: Option<i32>,
    /// Training starts with fewer than wanted.
    pub formation: Option<i32>,
    /// When a member is evicted for being slow; `None`: never.
    pub slow: Option<Slowness>,
}

/// So slow is too slow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slowness {
    /// Times the median.
    pub factor: f64,
    /// For so many seconds.
    pub after: i32,
}

const HEARTBEAT: &str = "LCL_HEARTBEAT_TIMEOUT";
const STALL: &str = "LCL_STALL_TIMEOUT";
const FORMATION: &str = "LCL_FORMATION_WAIT";
const SLOW_FACTOR: &str = "LCL_EVICT_SLOW_FACTOR";
const SLOW_AFTER: &str = "LCL_EVICT_SLOW_AFTER";

impl Timeouts {
    /// Those of a job.
    #[must_use]
    pub fn of(job: &ValidatedJob) -> Self {
        let slow = job.spec().elastic.as_ref().and_then(|elastic| elastic.evict_slow_members.as_ref());
        let slow = slow.map(|slow| Slowness { factor: slow.factor, after: slow.after_seconds });
        job.spec().timeouts.as_ref().map_or(Self { slow, ..Self::default() }, |timeouts| Self {
            heartbeat: timeouts.heartbeat_seconds,
            stall: timeouts.stall_seconds,
            formation: timeouts.formation_wait_seconds,
            slow,
        })
    }

    /// The coordinator's environment variables for them.
    pub(crate) fn variables(self) -> impl Iterator<Item = (&'static str, String)> {
        let waits = [(HEARTBEAT, self.heartbeat), (STALL, self.stall), (FORMATION, self.formation)];
        let waits = waits.into_iter().filter_map(|(name, seconds)| Some((name, seconds?.to_string())));
        let slow = self.slow.map(|slow| [(SLOW_FACTOR, slow.factor.to_string()), (SLOW_AFTER, slow.after.to_string())]);
        waits.chain(slow.into_iter().flatten())
    }

    /// Those that a coordinator's pod was made with.
    pub(crate) fn read(pod: &Pod) -> Self {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let Some(container) = containers.iter().find(|container| container.name == COORDINATOR_CONTAINER) else {
            return Self::default();
        };
        let slow = read(container, SLOW_FACTOR).zip(read(container, SLOW_AFTER));
        Self {
            heartbeat: read(container, HEARTBEAT),
            stall: read(container, STALL),
            formation: read(container, FORMATION),
            slow: slow.map(|(factor, after)| Slowness { factor, after }),
        }
    }
}

fn read<T: FromStr>(container: &Container, name: &str) -> Option<T> {
    container.env.iter().flatten().find(|variable| variable.name == name)?.value.as_ref()?.parse().ok()
}
