//! What the bits of a computation depend on besides its inputs, in words that a person can compare.
//!
//! Comes in: the device. Goes out: a line such as `libtorch 2.11.0 (AVX2, MKL 2024.2, oneDNN 3.7.1), AuthenticAMD avx avx2 fma, 1 thread`,
//! with the kind of GPU behind it where one computes. The same line on two machines is no proof that their results are equal bit for bit,
//! but another line is the usual reason why they are not.

use std::fs;

use tch::Device;

use crate::{
    DeviceError,
    shim::{cuda, runtime},
};

/// This process's machine, as far as results on `device` depend on it. Call it once threads are set.
pub fn machine(device: Device) -> Result<String, DeviceError> {
    let [libtorch, capability, mkl, onednn] = runtime::libraries()?;
    let threads = runtime::intra_op_threads()?;
    let processor = processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let (mkl, onednn) = (version(&mkl), version(&onednn));
    let plural = if threads == 1 { "" } else { "s" };
    let gpu = match device {
        Device::Cuda(index) => format!(", {}", cuda::device_name(index)?),
        _ => String::new(),
    };
    Ok(format!("libtorch {libtorch} ({capability}, MKL {mkl}, oneDNN {onednn}), {processor}, {threads} thread{plural}{gpu}"))
}

/// Whether the device multiplies bfloat16 matrices without instructions for it: many times slower than float32.
pub fn emulates_bfloat16(device: Device) -> Result<bool, DeviceError> {
    match device {
        Device::Cuda(index) => Ok(!cuda::supports_bfloat16(index)?),
        _ => Ok(!has_bfloat16(&processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))),
    }
}

/// Of [`processor`]'s line.
fn has_bfloat16(processor: &str) -> bool {
    processor.split_whitespace().any(|flag| ["avx512_bf16", "amx_bf16", "bf16"].contains(&flag))
}

/// The first word that begins like a version: `2024.2` of "Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build …".
fn version(text: &str) -> &str {
    let word = text.split_whitespace().find(|word| word.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit()));
    word.and_then(|word| word.trim_start_matches('v').split('-').next()).unwrap_or("none")
}

/// Who made the first processor of `/proc/cpuinfo`, and its instructions for arithmetic on vectors and matrices.
fn processor(cpuinfo: &str) -> String {
    let field = |names: &[&str]| {
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| names.contains(&name.trim())).map_or("", |(_, value)| value.trim())
    };
    let counts = |flag: &&str| ["avx", "fma", "amx", "asimd", "sve", "sme", "bf16", "i8mm"].iter().any(|start| flag.starts_with(start));
    let mut parts = vec![field(&["vendor_id", "CPU implementer"])];
    let mut flags: Vec<&str> = field(&["flags", "Features"]).split_whitespace().filter(counts).collect();
    flags.sort_unstable();
    parts.append(&mut flags);
    parts.retain(|part| !part.is_empty());
    if parts.is_empty() { std::env::consts::ARCH.to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_what_computes() -> Result<(), DeviceError> {
        let machine = machine(Device::Cpu)?;
        let parts: Vec<&str> = machine.split(", ").collect();
        assert!(parts[0].starts_with("libtorch 2.11.0 (") && parts.len() == 5 && parts[4].contains("thread"), "{machine}");
        Ok(())
    }

    #[test]
    fn versions_and_processors_are_read_from_what_is_said_of_them() {
        let mkl = "Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 20240605 for Intel(R) 64 architecture applications";
        let onednn = "Intel(R) MKL-DNN v3.7.1 (Git Hash 8d263e693366ef8db40acc569cc7d8edf644556d)";
        assert_eq!((version(mkl), version(onednn), version("MKL not found")), ("2024.2", "3.7.1", "none"));
        let amd =
            "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu sse2 fma avx avx2 xsaves\n\nvendor_id\t: Other\nflags\t: avx512f\n";
        assert_eq!(processor(amd), "AuthenticAMD avx avx2 fma");
        assert_eq!(processor("Features\t: fp asimd sve bf16\nCPU implementer\t: 0x41\n"), "0x41 asimd bf16 sve");
        assert_eq!(processor(""), std::env::consts::ARCH);
        assert_eq!(["AuthenticAMD avx2", "GenuineIntel amx_bf16 avx2", "0x41 bf16"].map(has_bfloat16), [false, true, true]);
    }
}
