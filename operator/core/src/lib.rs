//! Pure decisions of the operator, shared with `lcl run --local`: is this job valid, and what does it need?
//!
//! Comes in: what was observed (a manifest, a stored object), as plain values. Goes out: a [`ValidatedJob`] or every rule it breaks, and
//! from a valid job the trainer's configuration and the objects that a cluster needs for it. Nothing here reads a file, asks a cluster,
//! looks at a clock or the number of cores: whatever differs between two machines is passed in.

pub mod build;
pub mod cause;
mod covers;
pub mod decide;
mod folder;
mod job;
pub mod observe;
mod paths;
pub mod pins;
mod pod_policy;
mod quantity;
mod render;
pub mod resources;
mod timeouts;
mod validate;

pub use covers::covers;
pub use decide::decide;
pub use folder::run_folder;
pub use job::{ValidatedJob, World};
pub use paths::{PathError, PathMapping};
pub use pod_policy::{Allowance, DEFAULT_API_AUDIENCES, PodPolicy, UnknownAllowance};
pub use render::{Surroundings, render_trainer_config};
pub use timeouts::{Slowness, Timeouts};
pub use validate::{FieldError, FieldErrors, read_unchecked, validate, validate_change, validate_under};
