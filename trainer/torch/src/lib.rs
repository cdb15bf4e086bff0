//! (to be written)

pub mod allocator;
pub mod optimizer;
pub mod shim;
