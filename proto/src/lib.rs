//! The wire between a job's coordinator, its members, and the operator.
//!
//! `lcl/v1alpha1/coordinator.proto` is the source; the code below is generated from it by `cargo run -p lcl-proto --example generate_proto`
//! and committed, so that a build needs neither protoc nor a generator. `tests/generated.rs` fails when the two drift apart.
//! This crate holds no logic: what a message means is written in `trainer/protocol`, and turned into it in `trainer/coordinator`.

/// `lcl.v1alpha1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
pub mod v1alpha1 {
    include!("generated/lcl.v1alpha1.rs");
}
