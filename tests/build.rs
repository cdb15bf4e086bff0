//! Builds the library that has a folder fail as a volume may (`native/volume.c`, `src/volume.rs`).

use std::{env, path::PathBuf, process::Command};

fn main() {
    let source = "native/volume.c";
    println!("cargo:rerun-if-changed={source}");
    println!("cargo:rerun-if-env-changed=CC");
    let library = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to build")).join("libvolume.so");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let built = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .arg(source)
        .args(["-ldl"])
        .status();
    assert!(built.as_ref().is_ok_and(std::process::ExitStatus::success), "{} does not build {source}: {built:?}", compiler.display());
    println!("cargo:rustc-env=LCL_VOLUME_LIBRARY={}", library.display());
}
