//! Which GPUs the workers of a run on this machine get. In a cluster each pod has its own; here all would see the same ones.

use std::{env, ops::Range};

use lcl_torch::shim::{ShimError, cuda};
use lcl_trainer_config::Device;

/// What every CUDA program reads: the GPUs that it sees, by number or name.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Where the members of a run compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Gpus {
    /// There are none, or none is wanted: members find that out themselves.
    None,
    /// There are fewer than members, and none has to be used: members see none of them.
    Hidden,
    /// Each member has one of its own.
    OneEach(Vec<String>),
}

/// There are fewer GPUs than members, and the members are to compute on GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{members} members need a GPU each, but there are {gpus}: want fewer workers (spec.workers.replicas), or leave out --device cuda to compute on the processor"
)]
pub struct TooFewGpus {
    /// Members of the run.
    members: u64,
    /// GPUs that this process may use.
    gpus: usize,
}

impl Gpus {
    /// Those for so many members, of all `visible` ones.
    pub(super) fn for_members(members: u64, wanted: Device, visible: Vec<String>) -> Result<Self, TooFewGpus> {
        let gpus = visible.len();
        if wanted == Device::Cpu || gpus == 0 {
            return Ok(Self::None);
        }
        if members <= gpus as u64 {
            return Ok(Self::OneEach(visible));
        }
        if wanted == Device::Cuda {
            return Err(TooFewGpus { members, gpus });
        }
        tracing::warn!(members, gpus, "each member needs a GPU of its own, and there are fewer: all compute on the processor");
        Ok(Self::Hidden)
    }

    /// Most members that can compute in the same way as the first ones.
    pub(super) fn most_members(&self) -> u64 {
        match self {
            Self::None | Self::Hidden => u64::MAX,
            Self::OneEach(gpus) => gpus.len() as u64,
        }
    }

    /// The environment variable for the worker whose members are these of the whole run; `None`: as it is.
    pub(super) fn variable(&self, members: Range<usize>) -> Option<(&'static str, String)> {
        match self {
            Self::None => None,
            Self::Hidden => Some((VISIBLE, String::new())),
            Self::OneEach(gpus) => Some((VISIBLE, gpus.get(members).unwrap_or_default().join(","))),
        }
    }
}

/// How many GPUs a process sees, if it is to use any.
pub(crate) fn count(wanted: Device) -> Result<usize, ShimError> {
    if wanted != Device::Cpu && cuda::load()? { cuda::device_count() } else { Ok(0) }
}

/// The GPUs that this process may use, as its environment calls them.
pub(super) fn visible(wanted: Device) -> Result<Vec<String>, ShimError> {
    Ok(names(env::var(VISIBLE).ok().as_deref(), count(wanted)?))
}

/// CUDA takes those that are named up to the first that is not there, and of parts of a GPU (MIG) one for each process.
fn names(named: Option<&str>, count: usize) -> Vec<String> {
    match named {
        Some(named) if count > 0 && named.starts_with("MIG-") => named.split(',').map(|name| name.trim().to_owned()).collect(),
        Some(named) => named.split(',').take(count).map(|name| name.trim().to_owned()).collect(),
        None => (0..count).map(|number| number.to_string()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Vec<String> {
        names(None, 2)
    }

    #[test]
    fn each_member_has_a_gpu_of_its_own_and_no_more_members_than_gpus_can_come() {
        let gpus = Gpus::for_members(2, Device::Auto, two()).unwrap();
        assert_eq!(gpus.most_members(), 2);
        assert_eq!(gpus.variable(0..1), Some((VISIBLE, "0".to_owned())));
        assert_eq!(gpus.variable(1..2), Some((VISIBLE, "1".to_owned())));
        assert_eq!(gpus.variable(0..2), Some((VISIBLE, "0,1".to_owned())));
        // Nobody may have one that is another's.
        assert_eq!(gpus.variable(2..3), Some((VISIBLE, String::new())));
    }

    #[test]
    fn too_few_gpus_are_left_alone_unless_they_must_be_used() {
        let gpus = Gpus::for_members(3, Device::Auto, two()).unwrap();
        assert_eq!((gpus.most_members(), gpus.variable(0..1)), (u64::MAX, Some((VISIBLE, String::new()))));
        let refused = Gpus::for_members(3, Device::Cuda, two()).unwrap_err();
        assert!(refused.to_string().contains("3 members need a GPU each, but there are 2"), "{refused}");
    }

    #[test]
    fn without_gpus_nothing_is_changed() {
        for (wanted, visible) in [(Device::Auto, vec![]), (Device::Cuda, vec![]), (Device::Cpu, two())] {
            let gpus = Gpus::for_members(3, wanted, visible).unwrap();
            assert_eq!((gpus.most_members(), gpus.variable(0..1)), (u64::MAX, None));
        }
    }

    #[test]
    fn gpus_keep_the_names_that_the_user_gave_them() {
        assert_eq!(names(None, 2), ["0", "1"]);
        assert_eq!(names(Some("3, GPU-5a"), 2), ["3", "GPU-5a"]);
        assert_eq!(names(Some("3,9,1"), 1), ["3"]);
        assert_eq!(names(Some(""), 0), Vec::<String>::new());
        assert_eq!(names(Some("MIG-a,MIG-b"), 1), ["MIG-a", "MIG-b"]);
        assert_eq!(names(Some("MIG-a"), 0), Vec::<String>::new());
    }
}
