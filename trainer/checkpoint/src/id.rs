//! Names: which folder a checkpoint lies in and what its files are called.
//!
//! Pure. The names sort as text in the order in which restore prefers them as long as the numbers fit their digits, and are parsed
//! as numbers everywhere, so nothing depends on that.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Name of the file that makes a folder a checkpoint.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// Number of a membership. Never decreases; `epoch` grows with every coordinator, `n` with every membership it forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Generation {
    /// Grows with every coordinator (in local mode: with every run), durable.
    pub epoch: u64,
    /// Grows with every membership within an epoch.
    pub n: u64,
}

/// Which checkpoint. Ordered by step, then generation: the order in which restore prefers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointId {
    /// Completed steps.
    pub step: u64,
    /// Generation of the writer.
    pub generation: Generation,
}

/// A folder's name is not that of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not the name of a checkpoint: expected step-<step>-g<epoch>-<n>, such as step-00001200-g000001-000003")]
pub struct InvalidName {
    /// The name.
    pub name: String,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{:06}-{:06}", self.epoch, self.n)
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step-{:08}-{}", self.step, self.generation)
    }
}

impl FromStr for CheckpointId {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (step, generation) = name.strip_prefix("step-")?.split_once("-g")?;
            let (epoch, n) = generation.split_once('-')?;
            let id = Self { step: step.parse().ok()?, generation: Generation { epoch: epoch.parse().ok()?, n: n.parse().ok()? } };
            // One name per checkpoint: `step-7-g1-1` or `step-+0000007-…` would be a second one.
            (id.to_string() == name).then_some(id)
        };
        parse().ok_or_else(|| InvalidName { name: name.to_owned() })
    }
}

/// Name of a shard's file; `index` counts from 0.
pub(crate) fn shard_file_name(index: usize, count: usize) -> String {
    format!("shard-{index:05}-of-{count:05}.safetensors")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_as_documented() {
        let id = CheckpointId { step: 1200, generation: Generation { epoch: 1, n: 3 } };
        assert_eq!(id.to_string(), "step-00001200-g000001-000003");
        assert_eq!(shard_file_name(3, 16), "shard-00003-of-00016.safetensors");
    }

    #[test]
    fn a_name_that_is_not_canonical_is_refused() {
        for name in [
            "",
            "step-",
            "step-7-g1-1",
            "step-00000007-g000001-00001",
            "step-+0000007-g000001-000001",
            "step-00000007-g000001-000001/",
            "xstep-00000007-g000001-000001",
        ] {
            assert!(name.parse::<CheckpointId>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_name_parses_back(step: u64, epoch: u64, n: u64) {
            let id = CheckpointId { step, generation: Generation { epoch, n } };
            prop_assert_eq!(id.to_string().parse::<CheckpointId>(), Ok(id));
        }
    }
}
