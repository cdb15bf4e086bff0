//! The run's folder before the trainer sees it: it is not given to a job that did not begin there.
//!
//! Everything else about the folder (resuming, starting over, deleting, two processes at once, changed settings) is the trainer's decision,
//! for it can look into object stores and checkpoints too. Only the name of the job that began there is compared here, by the
//! configuration that this program leaves beside the checkpoints.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lcl_trainer_config::TrainerConfig;

/// The rendered configuration of the run, written beside its checkpoints.
pub(crate) const CONFIG_FILE: &str = "trainer-config.json";

/// Beginning of the name of every checkpoint's folder.
const CHECKPOINT_PREFIX: &str = "step-";

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunFolderError {
    #[error("cannot look into the run's folder {folder}", folder = folder.display())]
    Inspect { folder: PathBuf, source: io::Error },
    #[error(
        "{folder} holds checkpoints of the job `{there}`, not of `{here}`: give this job another spec.checkpoint.uri or --volume, or start \
         over with --fresh --delete-existing",
        folder = folder.display()
    )]
    OtherJob { folder: PathBuf, there: String, here: String },
}

/// Refuses a folder that holds checkpoints of a job with another name. The folder need not exist.
pub(crate) fn check_owner(folder: &Path, job: &str) -> Result<(), RunFolderError> {
    let failed = |source| RunFolderError::Inspect { folder: folder.to_owned(), source };
    let mut has_checkpoint = false;
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                has_checkpoint |= entry.map_err(failed)?.file_name().to_string_lossy().starts_with(CHECKPOINT_PREFIX);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // A configuration that cannot be read (of another release) says nothing; the trainer's check of the settings remains.
    let earlier: Option<TrainerConfig> = fs::read(folder.join(CONFIG_FILE)).ok().and_then(|json| serde_json::from_slice(&json).ok());
    match earlier {
        Some(earlier) if has_checkpoint && earlier.job != job => {
            Err(RunFolderError::OtherJob { folder: folder.to_owned(), there: earlier.job, here: job.to_owned() })
        }
        _ => Ok(()),
    }
}
