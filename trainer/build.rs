//! Makes the program find libtorch at run time without `LD_LIBRARY_PATH`.
//!
//! `lcl-torch` says where libtorch lies on this machine. An installed program looks in `../lib` beside its own folder first, so that it can
//! be shipped together with libtorch. With `LCL_RELOCATABLE` it looks nowhere else: a program for an image names no folder of the machine
//! that built it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
    println!("cargo:rerun-if-env-changed=LCL_RELOCATABLE");
    if std::env::var_os("LCL_RELOCATABLE").is_some() {
        return;
    }
    println!("cargo:rerun-if-env-changed=DEP_LCL_TORCH_SHIM_LIBTORCH_LIB");
    if let Ok(folder) = std::env::var("DEP_LCL_TORCH_SHIM_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
