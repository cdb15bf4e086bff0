//! Checkpoints: the layout on storage, the background writer, retention and restore, over any object store.
//!
//! Comes in: a [`Snapshot`], named tensors in host memory with a step and a generation, or from each of several writers a [`Part`].
//! Goes out: a folder `<uri>/step-00001200-g000001-000003/` with `shard-00003-of-00016.safetensors` files and, written last,
//! `manifest.json`; and back again, verified, by [`restore_latest`].
//! It knows nothing of tensors as libtorch has them, and does not decide when a checkpoint is due.
//!
//! What holds, whatever happens to the process or the machine:
//!
//! * A folder without a manifest is no checkpoint. The manifest is created (never overwritten) after every shard is on stable
//!   storage and its size was read back, and carries a checksum of itself and of every shard.
//! * A folder's name carries step and generation, so writers of different generations never write to the same place.
//! * Of several writers one commits, after it has the records of all and their [`Meeting`] has answered once more. No writer of a
//!   membership that is over can commit.
//! * Restore takes the highest step (then generation) whose every byte is as it was written. It skips a damaged one with a warning
//!   that names file and reason, and never answers "nothing there" when there was something.
//! * Removing a checkpoint removes its manifest first.
//!
//! On a file system all this needs neither hard links nor locks; what it does need is tried at the start ([`CheckpointStore::probe`]).
//! A volume that does not answer is waited for about a minute.
//!
//! Cloud stores (`s3://`, `gs://`, `az://`) are compiled in and take their credentials from the environment; the tests of this crate
//! run against the file system, `object_store`'s in-memory store and a real S3 server (versitygw).

mod id;
mod manifest;
mod plan;
mod restore;
mod retention;
mod safetensors_file;
mod side_file;
mod store;
mod tensor;
mod volume;
mod write;
mod writer;

pub use id::{CheckpointId, Generation, InvalidName};
pub use manifest::{FORMAT_VERSION, Manifest, ManifestError, ShardRecord, TensorRecord};
pub use plan::{PlannedShard, WritePlan, default_shard_count, plan_shards};
pub use restore::{Rejected, RestoreError, Restored, restore, restore_latest};
pub use retention::{Retention, decide_removals};
pub use safetensors::Dtype;
pub use safetensors_file::{SafetensorsContent, SafetensorsError, read_safetensors, write_safetensors};
pub use store::{CheckpointEntry, CheckpointStore, StoreError, StoreOptions};
pub use tensor::{ComingTensors, Handover, InvalidTensor, Snapshot, TensorData, TensorSpec, shared_bytes};
pub use volume::{Volume, VolumeFault, sync, while_away};
pub use write::{Meeting, MeetingError, Moment, Part, WriteError};
pub use writer::{CheckpointWriter, Committed, SubmitError, WriterOptions};
