//! A trained model out of a checkpoint, for evaluation and export.
//!
//! Comes in: a run's URI or folder, or one checkpoint's folder. Goes out: its state and the configuration it was trained with.

use std::path::{Path, PathBuf};

use lcl_checkpoint::{
    CheckpointId, CheckpointStore, InvalidName, RestoreError, Restored, StoreError, StoreOptions, restore, restore_latest,
};
use lcl_torch::{DeviceError, Learner, LearnerError, StateTensor, choose_device, set_threads};
use lcl_trainer_config::{Device, TrainerConfig};
use serde_json::Value;
use url::Url;

use crate::{run::identity::DATA_CONTENT, training::COMPLETED_UPDATES};

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The newest usable checkpoint of a run: a URI or a folder.
    Run(String),
    /// One checkpoint: the folder, or its URI.
    Checkpoint(String),
}

/// No model could be read.
#[derive(Debug, thiserror::Error)]
pub enum TrainedError {
    /// The folder does not exist.
    #[error("{} is no folder: name a run's folder or a URI such as file:///runs/a", path.display())]
    NoFolder {
        /// As it was given.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder's name is not that of a checkpoint.
    #[error("{place} is no checkpoint")]
    Name {
        /// As it was given.
        place: String,
        /// Why.
        source: InvalidName,
    },
    /// The store cannot be opened.
    #[error("opening the run")]
    Store(#[from] StoreError),
    /// No checkpoint could be restored.
    #[error("reading the checkpoint")]
    Restore(#[from] RestoreError),
    /// There is none.
    #[error("{uri} holds no complete checkpoint")]
    NoCheckpoint {
        /// The run.
        uri: String,
    },
    /// There is no training in it.
    #[error("{id} holds no trained model: none of the run's steps up to it had an update (its metrics.jsonl says why)")]
    Untrained {
        /// The checkpoint.
        id: CheckpointId,
    },
    /// The checkpoint does not say what it is of.
    #[error("{id} has no configuration in its metadata: it was not written by this program or is of another version")]
    NoConfig {
        /// The checkpoint.
        id: CheckpointId,
        /// Why.
        source: serde_json::Error,
    },
    /// The wanted device is not to be had.
    #[error("choosing the device")]
    Device(#[from] DeviceError),
    /// State and configuration do not fit.
    #[error("building the model")]
    Learner(#[from] LearnerError),
}

/// A checkpoint with its configuration.
#[derive(Debug)]
pub struct Trained {
    /// The checkpoint's state and facts.
    pub restored: Restored,
    /// What it was trained with.
    pub config: TrainerConfig,
}

impl Trained {
    /// Reads a checkpoint.
    pub fn read(source: &Source) -> Result<Self, TrainedError> {
        let options = StoreOptions { create: false, ..StoreOptions::default() };
        let restored = match source {
            Source::Run(place) => {
                let uri = to_uri(place)?;
                let store = CheckpointStore::open(&uri, options)?;
                restore_latest(&store, None)?.ok_or(TrainedError::NoCheckpoint { uri })?
            }
            Source::Checkpoint(place) => {
                let uri = to_uri(place)?;
                let (run, name) = uri.trim_end_matches('/').rsplit_once('/').unwrap_or(("", &uri));
                let id: CheckpointId = name.parse().map_err(|source| TrainedError::Name { place: place.clone(), source })?;
                restore(&CheckpointStore::open(run, options)?, id, None)?
            }
        };
        if is_untrained(&restored.metadata) {
            return Err(TrainedError::Untrained { id: restored.id });
        }
        let config = serde_json::from_value(restored.metadata.get("config").cloned().unwrap_or_default());
        let config = config.map_err(|source| TrainedError::NoConfig { id: restored.id, source })?;
        Ok(Self { restored, config })
    }

    /// The model with the checkpoint's state.
    pub fn learner(&self, device: Device, threads: Option<usize>) -> Result<Learner, TrainedError> {
        set_threads(threads)?;
        let mut learner = Learner::new(&self.config, choose_device(device, 0)?)?;
        let tensors =
            self.restored.tensors.iter().map(|tensor| StateTensor { name: &tensor.name, shape: &tensor.shape, data: &tensor.data });
        learner.load_state(tensors, 0)?;
        Ok(learner)
    }
}

/// Whether a run has written this before any of its updates: its weights are the random ones it began with. Imported weights have had no
/// update either, but then no data yet.
fn is_untrained(metadata: &Value) -> bool {
    let has_data = metadata.get("identity").is_some_and(|identity| identity.get(DATA_CONTENT).is_some());
    has_data && metadata.get(COMPLETED_UPDATES).and_then(Value::as_u64) == Some(0)
}

/// A path becomes a `file://` URI; a URI stays.
pub fn to_uri(place: &str) -> Result<String, TrainedError> {
    if place.contains("://") {
        return Ok(place.to_owned());
    }
    let no_folder = |source| TrainedError::NoFolder { path: PathBuf::from(place), source };
    let path = Path::new(place).canonicalize().map_err(no_folder)?;
    Url::from_file_path(&path).map(Into::into).map_err(|()| no_folder(std::io::ErrorKind::InvalidInput.into()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_checkpoint_from_before_the_first_update_holds_no_model_unless_it_was_imported() {
        let check = |metadata: Value, expected: bool| assert_eq!(is_untrained(&metadata), expected, "{metadata}");
        check(json!({ "identity": { "data.content": "digest" }, "completedUpdates": 0 }), true);
        check(json!({ "identity": { "data.content": "digest" }, "completedUpdates": 1 }), false);
        // `import` does not know which data will follow.
        check(json!({ "identity": { "model.dropPath": 0.0 }, "completedUpdates": 0 }), false);
        check(json!({}), false);
    }
}
