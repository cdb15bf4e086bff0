//! Compiles the C++ shim against libtorch, and the object with NCCL that a program carries and loads where there is a GPU; makes the programs of this crate find libtorch at run time.
//!
//! libtorch is found as torch-sys finds it: `LIBTORCH` (or `LIBTORCH_INCLUDE` and `LIBTORCH_LIB`), else `/usr`.
//! `.cargo/config.toml` sets `LIBTORCH` to the copy that `make deps` unpacks, unless the user's environment names one.
//!
//! Crates with programs that link `lcl-torch` need the run-time path too, and cargo does not pass link arguments on to dependents.
//! They depend on `lcl-torch` directly and have this `build.rs`:
//!
//! ```ignore
//! fn main() {
//!     if let Some(folder) = std::env::var_os("DEP_LCL_TORCH_SHIM_LIBTORCH_LIB") {
//!         println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.to_string_lossy());
//!     }
//! }
//! ```

use std::{
    env,
    path::{Path, PathBuf},
    process::exit,
};

/// Where libtorch lies.
struct Libtorch {
    /// Folder that holds `include/`.
    include: PathBuf,
    /// Folder that holds `libtorch_cpu.so`.
    lib: PathBuf,
}

fn environment(name: &str) -> Option<PathBuf> {
    println!("cargo:rerun-if-env-changed={name}");
    env::var_os(name).map(PathBuf::from)
}

impl Libtorch {
    fn find() -> Result<Self, String> {
        let root = environment("LIBTORCH").unwrap_or_else(|| PathBuf::from("/usr"));
        let include = environment("LIBTORCH_INCLUDE").unwrap_or_else(|| root.clone()).join("include");
        let lib = environment("LIBTORCH_LIB").unwrap_or(root).join("lib");
        for path in [include.join("torch/csrc/autograd/custom_function.h"), lib.join("libtorch_cpu.so")] {
            if !path.exists() {
                return Err(format!(
                    "libtorch 2.11.0 is not there ({} is missing): run `make deps`, or set LIBTORCH to an unpacked libtorch",
                    path.display()
                ));
            }
        }
        Ok(Self { include, lib })
    }

    fn compile_shim(&self) {
        println!("cargo:rerun-if-changed=shim");
        cc::Build::new()
            .cpp(true)
            .file("shim/lcl_shim.cpp")
            .file("shim/lcl_collectives.cpp")
            .file("shim/lcl_profile.cpp")
            .include("shim")
            .flag(include_as_system(Path::new("shim/gloo_declarations")))
            // libtorch's header of its Gloo backend is empty without it.
            .define("USE_C10D_GLOO", None)
            .flag(include_as_system(&self.include))
            .flag(include_as_system(&self.include.join("torch/csrc/api/include")))
            .flag("-std=c++17")
            // The ABI of the wheels and of PyTorch's own libtorch archives since 2.7.
            .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
            // The row loops of the loss are slow without it; a debug build of the shim would make the tests slow.
            .opt_level(3)
            // libtorch's parallel loops are OpenMP templates in its headers. The runtime is linked by torch-sys.
            .flag("-fopenmp")
            .extra_warnings(true)
            .compile("lcl_torch_shim");
        println!("cargo:rustc-link-search=native={}", self.lib.display());
        for library in ["torch_cpu", "c10"] {
            println!("cargo:rustc-link-lib={library}");
        }
    }

    /// Compiles `liblcl_nccl.so` into `OUT_DIR`. It is linked against nothing: what it needs is in the process when it is loaded.
    fn compile_nccl(&self, headers: &[PathBuf]) -> Result<(), String> {
        let mut build = cc::Build::new();
        build
            .cpp(true)
            .pic(true)
            .file("shim/lcl_nccl.cpp")
            .include("shim")
            .flag(include_as_system(Path::new("shim/cuda_declarations")))
            .flag("-std=c++17")
            .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
            .flag("-fvisibility=hidden")
            .opt_level(2)
            .extra_warnings(true);
        for headers in headers {
            build.flag(include_as_system(headers));
        }
        build.flag(include_as_system(&self.include)).flag(include_as_system(&self.include.join("torch/csrc/api/include")));
        let objects = build.compile_intermediates();
        let object = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("liblcl_nccl.so");
        // The same bytes whoever builds it, and no names but those it gives and takes.
        let mut link = build.get_compiler().to_command();
        link.args(["-shared", "-Wl,--build-id=none", "-Wl,--strip-all", "-o"]).arg(&object).args(&objects);
        match link.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("linking {} ended with {status}", object.display())),
            Err(error) => Err(format!("{link:?} could not be run: {error}")),
        }
    }

    fn export_run_path(&self) {
        println!("cargo:libtorch_lib={}", self.lib.display());
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", self.lib.display());
    }
}

/// Folders with the headers of CUDA 13.0 and NCCL 2.28.9: those that `make deps` unpacks, else the user's own.
fn cuda_headers() -> Result<Vec<PathBuf>, String> {
    let pinned = environment("LCL_CUDA_HEADERS").map(|folder| folder.join("include"));
    if let Some(folder) = pinned.filter(|folder| folder.join("nccl.h").exists()) {
        return Ok(vec![folder]);
    }
    let own: Vec<PathBuf> = ["CUDA_HOME", "NCCL_HOME"].into_iter().filter_map(environment).map(|folder| folder.join("include")).collect();
    for header in ["cuda_runtime_api.h", "nccl.h"] {
        if !own.iter().any(|folder| folder.join(header).exists()) {
            return Err(format!("{header} is not there: run `make deps`, or set CUDA_HOME to CUDA 13.0 and NCCL_HOME to NCCL 2.28.9"));
        }
    }
    Ok(own)
}

/// `-isystem`: warnings in libtorch's headers are not ours.
fn include_as_system(path: &Path) -> String {
    format!("-isystem{}", path.display())
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let build = || {
        let libtorch = Libtorch::find()?;
        libtorch.compile_shim();
        libtorch.compile_nccl(&cuda_headers()?)?;
        libtorch.export_run_path();
        Ok::<(), String>(())
    };
    if let Err(message) = build() {
        println!("cargo:error={message}");
        exit(1);
    }
}
