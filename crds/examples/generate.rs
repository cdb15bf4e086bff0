//! Writes `crds/generated/lcltrainingjobs.yaml` from the Rust types: `cargo run -p lcl-crds --example generate`.

use std::{error::Error, fs, path::PathBuf};

/// Where the file lies.
pub(crate) fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("generated/lcltrainingjobs.yaml")
}

/// What it has to hold.
pub(crate) fn render() -> Result<String, Box<dyn Error>> {
    let definition = serde_json::to_value(lcl_crds::custom_resource_definition())?;
    let yaml = serde_saphyr::to_string(&definition)?;
    Ok(format!("# Generated from crds/src by `cargo run -p lcl-crds --example generate`. Do not edit.\n{yaml}"))
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
