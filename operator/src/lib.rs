//! The operator: turns every `LCLTrainingJob` of a cluster into a coordinator, workers and a status that is true.
//!
//! Comes in: jobs and their objects as the API server tells of them, and what each job's coordinator says. Goes out: objects, by server-side
//! apply; pods, created once and deleted by uid; the status; Events. What to do is decided in `lcl-operator-core`, from what was seen and
//! nothing else: an operator that starts anew goes on where the one before stopped.

mod allocator;
mod authority;
mod cache;
mod category;
mod children;
mod claims;
mod client;
mod clock;
mod controller;
mod events;
mod fence;
mod gate;
mod http;
mod kept;
mod leader;
mod lease;
mod leftovers;
mod link;
mod memory;
mod metrics;
mod pod_actions;
mod readiness;
mod reconcile;
mod revision;
mod run;
mod settings;
mod status;
mod wake;

pub use allocator::share_arena;
pub use category::category_of;
pub use run::run;
pub use settings::{LogFormat, Settings};

/// Name under which the operator owns fields of objects.
pub const FIELD_MANAGER: &str = "lcl-operator";
