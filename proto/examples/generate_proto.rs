//! Writes `proto/src/generated/lcl.v1alpha1.rs` from the `.proto` files: `cargo run -p lcl-proto --example generate_proto`.

use std::{error::Error, fs, path::PathBuf};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Where the file lies.
pub(crate) fn path() -> PathBuf {
    folder().join("src/generated/lcl.v1alpha1.rs")
}

/// What it has to hold.
pub(crate) fn render() -> Result<String, Box<dyn Error>> {
    let descriptors = protox::compile(["lcl/v1alpha1/coordinator.proto"], [folder()])?;
    let out = tempfile::tempdir()?;
    tonic_prost_build::configure().out_dir(out.path()).compile_fds(descriptors)?;
    Ok(fs::read_to_string(out.path().join("lcl.v1alpha1.rs"))?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = path();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, render()?)?;
    println!("wrote {}", path.display());
    Ok(())
}
