//! How long a job's coordinator waits, as far as the job says so.
//!
//! They are on the coordinator's command line, unlike the size of the world, which it is told: another value takes another coordinator.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{build::COORDINATOR_CONTAINER, job::ValidatedJob};

/// Seconds; `None`: the coordinator's own default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Without a word a member is lost.
    pub heartbeat: Option<i32>,
    /// A member that stands still while others wait is evicted.
    pub stall: Option<i32>,
    /// Training starts with fewer than wanted.
    pub formation: Option<i32>,
}

const HEARTBEAT: &str = "LCL_HEARTBEAT_TIMEOUT";
const STALL: &str = "LCL_STALL_TIMEOUT";
const FORMATION: &str = "LCL_FORMATION_WAIT";

impl Timeouts {
    /// Those of a job.
    #[must_use]
    pub fn of(job: &ValidatedJob) -> Self {
        job.spec().timeouts.as_ref().map_or_else(Self::default, |timeouts| Self {
            heartbeat: timeouts.heartbeat_seconds,
            stall: timeouts.stall_seconds,
            formation: timeouts.formation_wait_seconds,
        })
    }

    /// The coordinator's environment variables for them.
    pub(crate) const fn variables(self) -> [(&'static str, Option<i32>); 3] {
        [(HEARTBEAT, self.heartbeat), (STALL, self.stall), (FORMATION, self.formation)]
    }

    /// Those that a coordinator's pod was made with.
    pub(crate) fn read(pod: &Pod) -> Self {
        let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let Some(container) = containers.iter().find(|container| container.name == COORDINATOR_CONTAINER) else {
            return Self::default();
        };
        Self { heartbeat: seconds(container, HEARTBEAT), stall: seconds(container, STALL), formation: seconds(container, FORMATION) }
    }
}

fn seconds(container: &Container, name: &str) -> Option<i32> {
    container.env.iter().flatten().find(|variable| variable.name == name)?.value.as_ref()?.parse().ok()
}
