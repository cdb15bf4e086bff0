//! The LCL model, its losses and its optimizer on libtorch: the only crate that names tch and holds C++.
//!
//! Comes in: a [`lcl_trainer_config::TrainerConfig`], then micro-batches of tokens and images. Goes out: trained parameters, reports of
//! steps, state as bytes, encoded images and texts. It knows no file, no data format and no protocol between processes.
//!
//! Start at [`Learner`]; [`collectives`] joins several of them. The crates above name [`Tensor`], [`Device`] and [`Kind`] from here and never tch itself.

pub mod allocator;
mod batch;
mod checksum;
pub mod collectives;
mod device;
mod device_test;
mod hash;
mod layout;
mod learner;
mod loss;
mod machine;
mod model;
pub mod optimizer;
mod placement;
pub mod probe;
mod random;
pub mod shim;
mod state;

pub use tch::{Device, Kind, TchError, Tensor, no_grad};

pub use batch::MicroBatch;
#[doc(hidden)]
pub use batch::to_host;
pub use device::{DeviceError, choose_device, set_threads};
pub use device_test::{DeviceTestError, test_device};
#[doc(hidden)]
pub use layout::LayoutFaults;
pub use layout::{BatchError, TokenUse, token_uses};
#[doc(hidden)]
pub use learner::LearnerOptions;
pub use learner::{
    Agreement, Inspection, Learner, LearnerError, LossReport, MemberStep, OwnShards, PreparedRows, PreparedShards, RowPreparer,
    SourceLosses, StepReport, Terms, Verified, learning_rate, shards_of,
};
pub use loss::{Contrast, Counts, Factors, contrast};
pub use machine::{emulates_bfloat16, machine};
#[doc(hidden)]
pub use model::ModelFaults;
pub use model::{Initial, Model, ModelError, Parameter, ParameterSpec, parameter_count, parameter_specs};
pub use state::{HostBytes, HostState, HostTensor, StateCopy, StateError, StateTensor};
