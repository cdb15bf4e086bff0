//! The processes of a job on a machine: who starts them, keeps them alive, asks them and has them stop.

pub mod control;
pub mod fail_point;
pub mod local;
pub mod membership;
pub(crate) mod processors;
pub mod stop;
pub mod supervisor;
pub mod worker;
