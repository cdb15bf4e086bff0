//! All samples of a data set under one numbering, and how to read any of them directly.

use std::path::PathBuf;

use lcl_trainer_config::DataConfig;

/// The shards of a data set with their indexes.
#[derive(Debug)]
pub struct Dataset {}

/// The data set cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A shard in the list does not exist.
    #[error("shard {path} does not exist")]
    MissingShard {
        /// The shard.
        path: PathBuf,
    },
}

impl Dataset {
    /// Opens the shards of `config.source`, making the indexes that are missing or stale.
    pub fn open(_config: &DataConfig) -> Result<Self, DatasetError> {
        todo!("being written")
    }

    /// Samples of one walk over the data set, unusable ones included. At least 1.
    #[must_use]
    pub fn samples_per_pass(&self) -> u64 {
        todo!("being written")
    }

    /// Identity of the data: shard names, sizes and sample counts, as a hexadecimal hash. Folders do not count.
    #[must_use]
    pub fn digest(&self) -> String {
        todo!("being written")
    }
}
