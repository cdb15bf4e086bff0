//! `lcl-trainer train`: from a configuration to the last checkpoint.
//!
//! Comes in: a validated [`TrainerConfig`] and how to begin. Goes out: checkpoints, `metrics.jsonl`, event files, and an [`ExitCode`] that
//! says why it ended. The steps run on a thread of their own; signals only set a flag that is read between two steps and while data are waited for.

use std::{
    collections::BTreeMap,
    fs, io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use indicatif::MultiProgress;
use lcl_checkpoint::{RestoreError, StoreError};
use lcl_data::{Dataset, DatasetError, LoaderError, may_pass};
use lcl_protocol::{
    Refusal,
    drive::{Ending, Failure, drive_alone},
};
use lcl_torch::{DeviceError, LearnerError};
use lcl_trainer_config::{DataConfig, ExitCode, TrainerConfig};

use crate::{
    command_line::display::Output,
    evaluation::evaluate::counted,
    processes::stop::StopRequest,
    run::{
        identity::{ChangedField, NoIdentity},
        journal::JournalError,
        records::EndReason,
        run_folder::{OpenJournalError, RunFolderError},
    },
};

mod alone;
mod bad_records;
mod describe;
mod exchange;
mod leader;
mod ledger;
mod member;
pub mod micro_batch;
mod own_rows;
mod prepare;
mod saver;
mod state_watch;
mod stepper;
mod tally;
mod tensors;

pub use exchange::PartsError;
pub use member::{MemberOptions, MemberRunError, train_as_member};
pub(crate) use prepare::COMPLETED_UPDATES;
pub use prepare::metadata;
pub use saver::{Facts, FinalSaveError, Saver};
pub use tensors::TensorsError;

/// Where a run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At the newest checkpoint, or at step 0 where there never was one.
    Anyhow,
    /// At the newest checkpoint; an error when there is none.
    Resume,
    /// At step 0 in an empty folder.
    Fresh {
        /// Empty the folder first.
        delete_existing: bool,
    },
}

/// How to train, beside the configuration.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Where to begin.
    pub begin: Begin,
    /// What is shown.
    pub output: Output,
    /// Asks for an orderly stop.
    pub stop: StopRequest,
    /// Where bars are drawn.
    pub multi: MultiProgress,
}

/// Training could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The run's folder cannot be used.
    #[error("opening the run's folder")]
    Folder(#[from] RunFolderError),
    /// The store failed.
    #[error("using the checkpoint store")]
    Store(#[from] StoreError),
    /// No checkpoint could be restored.
    #[error("restoring the newest checkpoint")]
    Restore(#[from] RestoreError),
    /// A resume was asked for where nothing is.
    #[error("--resume was asked for, but {uri} holds no complete checkpoint: leave it out to start a new run")]
    NothingToResume {
        /// The folder.
        uri: String,
    },
    /// A checkpoint that was there is gone.
    #[error(
        "run.jsonl says that the checkpoint of step {step} was completed, but {uri} holds no complete checkpoint any more: \
         bring it back, or start over with --fresh --delete-existing"
    )]
    CheckpointsLost {
        /// The folder.
        uri: String,
        /// Completed steps of the newest one that was there.
        step: u64,
    },
    /// The checkpoint is of a run with other settings.
    #[error("the run cannot go on with this configuration")]
    Changed(#[from] ChangedField),
    /// The checkpoint says nothing about its settings.
    #[error("the run cannot go on")]
    NoIdentity(#[from] NoIdentity),
    /// The checkpoint lacks a number that is needed to go on.
    #[error("the checkpoint's metadata has no number `{field}`: it was not written by this program")]
    Metadata {
        /// The number.
        field: &'static str,
    },
    /// The data set cannot be opened.
    #[error("opening the data set")]
    Dataset(#[from] DatasetError),
    /// It was asked to stop before the data set was open; the callers of this module do not meet it.
    #[error("a stop was asked for before the first step")]
    StoppedBefore,
    /// A batch cannot be read.
    #[error("reading a batch")]
    Loader(#[from] LoaderError),
    /// The batches ended before the steps.
    #[error("the data ended before step {step}")]
    DataEnded {
        /// The step without a batch.
        step: u64,
    },
    /// A batch cannot be used.
    #[error("preparing a batch")]
    Tensors(#[from] TensorsError),
    /// The wanted device is not to be had.
    #[error("choosing the device")]
    Device(#[from] DeviceError),
    /// The device cannot give the same bits twice.
    #[error("asking libtorch for deterministic algorithms, which spec.optimization.exact needs")]
    Deterministic {
        /// libtorch's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The model cannot be built or trained.
    #[error("computing a step")]
    Learner(#[from] LearnerError),
    /// `metrics.jsonl` or `run.jsonl` cannot be used.
    #[error("opening the run's records")]
    Journal(#[from] JournalError),
    /// The event file cannot be created.
    #[error("creating the TensorBoard event file")]
    Events {
        /// Why.
        source: io::Error,
    },
    /// The last checkpoint is not in the store.
    #[error("the run ended without its last checkpoint")]
    FinalSave(#[from] FinalSaveError),
    /// Too many updates in a row were left out.
    #[error(
        "no update was possible in {count} steps in a row (spec.optimization.maxConsecutiveSkippedSteps): either losses or gradients were \
         not finite (lower spec.optimization.learningRate or set spec.optimization.gradientClip, and go on from an earlier checkpoint), or \
         no sample was usable (skipped_samples in metrics.jsonl says why)"
    )]
    Diverged {
        /// Steps in a row.
        count: u32,
    },
    /// Too many records could not be used.
    #[error(
        "{bad} of the last {of} records could not be used, more than spec.data.maxBadFraction allows ({causes}): the log names the first of them; \
         mend the data, or raise the limit, and the run goes on from its last checkpoint"
    )]
    BadData {
        /// How many.
        bad: u64,
        /// Of how many.
        of: u64,
        /// How many by cause.
        causes: String,
    },
    /// All steps are done, and none of them had an update: there is no trained model.
    #[error("nothing was trained in all of {steps} steps: {why}")]
    NothingTrained {
        /// Steps of the run.
        steps: u64,
        /// Why no update was possible.
        why: String,
    },
    /// Taking part in a group failed.
    #[error(transparent)]
    Member(#[from] MemberRunError),
    /// There is no memory for a state on its way, or the device does not give it out.
    #[error("copying the state between the device and what travels to other members")]
    Transfer {
        /// libtorch's reason.
        source: lcl_torch::TchError,
    },
    /// The thread cannot be started.
    #[error("starting the training thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// The thread ended in the middle.
    #[error("the training thread panicked: this is a fault of the program; its message stands above")]
    Panicked,
}

impl From<OpenJournalError> for TrainError {
    fn from(error: OpenJournalError) -> Self {
        match error {
            OpenJournalError::Folder(error) => error.into(),
            OpenJournalError::Journal(error) => error.into(),
        }
    }
}

impl TrainError {
    /// What the process returns for it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Folder(error) if error.is_permanent() => ExitCode::Permanent,
            Self::Store(error) if error.is_permanent() => ExitCode::Permanent,
            Self::Member(MemberRunError::Unsaved(_)) => ExitCode::Unsaved,
            Self::Member(MemberRunError::Refused(Refusal::Superseded { .. })) => ExitCode::Superseded,
            Self::Member(MemberRunError::Device(error)) if error.is_out_of_memory() => ExitCode::Retryable,
            Self::Member(MemberRunError::NoDevice(DeviceError::NoCuda)) => ExitCode::Permanent,
            Self::Member(
                MemberRunError::SelfTest { .. } | MemberRunError::Device(_) | MemberRunError::NoDevice(_) | MemberRunError::Differs { .. },
            ) => ExitCode::Unfit,
            // On another node its pod may fit.
            Self::Member(MemberRunError::Refused(Refusal::Machine { .. })) => ExitCode::Retryable,
            Self::Learner(LearnerError::Config(_) | LearnerError::Model(_) | LearnerError::State(_))
            | Self::Member(
                MemberRunError::Refused(_) | MemberRunError::Parts(_) | MemberRunError::Machine(_) | MemberRunError::Nccl { .. },
            ) => ExitCode::Permanent,
            // Storage that does not answer, or a disk without room for an index.
            Self::Dataset(error) if may_pass(error) => ExitCode::Retryable,
            // A shard that is gone, or may not be read, is so at the next start, too.
            Self::Loader(LoaderError::Read { source, .. }) if !may_pass(source.as_ref()) => ExitCode::Permanent,
            // Any other fault of the learner is most likely a lack of memory: another machine may do better.
            Self::Learner(_)
            | Self::Member(_)
            | Self::Folder(_)
            | Self::Store(_)
            | Self::Restore(RestoreError::Store { .. } | RestoreError::Unsteady { .. } | RestoreError::Unread { .. })
            | Self::Journal(JournalError::Read { .. } | JournalError::Write { .. })
            | Self::Loader(LoaderError::Read { .. } | LoaderError::Spawn { .. })
            | Self::Events { .. }
            | Self::FinalSave(_)
            | Self::Thread { .. }
            | Self::Transfer { .. }
            | Self::Panicked => ExitCode::Retryable,
            _ => ExitCode::Permanent,
        }
    }
}

/// The error of a run whose last step is done without any update, from the rows that were read and the samples left out, by cause.
fn nothing_trained(steps: u64, rows: u64, causes: &BTreeMap<String, u64>) -> TrainError {
    let why = match (rows, causes.is_empty()) {
        (0, true) => "no sample could be used".to_owned(),
        (0, false) => format!("no sample could be used ({}; the log names them)", counted(causes)),
        _ => "losses or gradients were not finite: lower spec.optimization.learningRate or set spec.optimization.gradientClip".to_owned(),
    };
    TrainError::NothingTrained { steps, why }
}

/// Opens the data set. Its indexes may have to be made, for which a store is asked much: a stop ends that.
fn open_data(config: &DataConfig, stop: &StopRequest) -> Result<Arc<Dataset>, TrainError> {
    match stop.heard_in(|| Dataset::open(config)) {
        Err(error) if stop.is_asked() => {
            tracing::info!(%error, "leaving before the first step");
            Err(TrainError::StoppedBefore)
        }
        opened => Ok(Arc::new(opened?)),
    }
}

/// How often whoever waits for a batch looks whether it was asked to stop: well below a second.
const STOP_POLL: Duration = Duration::from_millis(50);

/// The error of a run too many of whose last records could not be used.
fn bad_data(found: Option<bad_records::TooManyBad>) -> TrainError {
    let bad_records::TooManyBad { bad, of, causes } = found.unwrap_or_default();
    TrainError::BadData { bad, of, causes: counted(&causes) }
}

impl From<Failure> for EndReason {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Diverged => Self::Diverged,
            Failure::BadData => Self::BadData,
            Failure::NothingTrained => Self::NothingTrained,
        }
    }
}

impl From<Ending> for EndReason {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Completed => Self::Completed,
            Ending::Failed(failure) => failure.into(),
        }
    }
}

/// What a future gives that waits for nothing: whatever takes time in it blocks this thread.
fn complete<T>(work: impl Future<Output = Result<T, TrainError>>) -> Result<T, TrainError> {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => {
            tracing::error!("a step waits for something that nothing drives");
            Err(TrainError::Panicked)
        }
    }
}

fn device_name(device: lcl_torch::Device) -> String {
    match device {
        lcl_torch::Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// For the names of event files only.
fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| "localhost".to_owned(), |name| name.trim().to_owned())
}

fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Trains to the last step, or until asked to stop.
pub fn train(config: TrainerConfig, options: TrainOptions) -> Result<ExitCode, TrainError> {
    // Everything that belongs to libtorch is made and dropped on this thread.
    let work = move || -> Result<ExitCode, TrainError> {
        match prepare::prepare(config, &options) {
            Err(TrainError::StoppedBefore) => Ok(ExitCode::Preempted),
            prepared => complete(drive_alone(&mut alone::Alone::new(prepared?, &options)?)),
        }
    };
    let thread = thread::Builder::new().name("training".to_owned()).spawn(work).map_err(|source| TrainError::Thread { source })?;
    thread.join().unwrap_or(Err(TrainError::Panicked))
}

#[cfg(test)]
mod tests {
    use lcl_data::shard::ShardError;

    use super::*;

    #[test]
    fn a_machine_that_computes_otherwise_than_the_others_is_unfit() {
        assert_eq!(TrainError::Member(MemberRunError::Differs { times: 3 }).exit_code(), ExitCode::Unfit);
    }

    #[test]
    fn a_shard_that_is_gone_for_good_is_a_permanent_failure_and_one_that_storage_does_not_give_is_none() {
        let reading = |error: ShardError| LoaderError::Read { step: 3, slot: 1, source: Box::new(DatasetError::Shard(error)) };
        let path = || "/data/pairs-000007.tar".into();
        let missing = TrainError::Loader(reading(ShardError::Missing { path: path() }));
        assert_eq!(missing.exit_code(), ExitCode::Permanent);
        assert!(crate::chain(&missing).contains("shard /data/pairs-000007.tar does not exist"), "{}", crate::chain(&missing));
        let open = |kind: io::ErrorKind| TrainError::Loader(reading(ShardError::Open { path: path(), source: kind.into() }));
        assert_eq!(open(io::ErrorKind::PermissionDenied).exit_code(), ExitCode::Permanent);
        assert_eq!(open(io::ErrorKind::TimedOut).exit_code(), ExitCode::Retryable);
        assert_eq!(open(io::ErrorKind::StaleNetworkFileHandle).exit_code(), ExitCode::Retryable);
    }
}
