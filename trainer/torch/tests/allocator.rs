//! Memory kept between steps, in a process of its own: the allocator is the whole process's.
#![allow(clippy::float_cmp, reason = "what was written must come back as it was")]

use std::fs;

use anyhow::{Context, Result, ensure};
use lcl_torch::{Device, Kind, Tensor, allocator, shim::runtime};

/// Minor page faults of this process so far.
fn faults() -> Result<u64> {
    let statistics = fs::read_to_string("/proc/self/stat")?;
    let fields = statistics.rsplit(')').next().context("no name in /proc/self/stat")?;
    Ok(fields.split_whitespace().nth(7).context("no fault count")?.parse()?)
}

fn filled(mebibytes: i64, value: f64) -> Result<Tensor> {
    Ok(Tensor::f_full([mebibytes << 18], value, (Kind::Float, Device::Cpu))?)
}

/// What a step does to memory: many sizes, freed in another order, from several threads.
fn work() -> Result<()> {
    let mut held = Vec::new();
    for mebibytes in [3, 70, 1, 200, 17, 40, 5] {
        held.push(filled(mebibytes, 1.0)?);
    }
    drop(held.swap_remove(1));
    drop(held.swap_remove(2));
    held.push(filled(60, 2.0)?);
    let threads: Vec<_> = (0..4).map(|index| std::thread::spawn(move || filled(10 + index, 3.0).map(drop))).collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(())
}

#[test]
fn memory_is_kept_reused_whole_and_never_shared() -> Result<()> {
    // Made by the allocator before, freed after the change.
    let earlier = filled(40, 5.0)?;
    ensure!(runtime::retained_bytes() == 0, "nothing is kept yet");
    allocator::retain_memory();
    drop(earlier);

    work()?;
    let (before, kept) = (faults()?, runtime::retained_bytes());
    for _ in 0..20 {
        work()?;
    }
    let used = faults()? - before;
    // 400 MiB a round: 20 rounds would fault two million times in pages of 4 KiB. New threads' stacks fault a little.
    ensure!(used < 5_000, "{used} page faults in 20 rounds");
    ensure!(runtime::retained_bytes() == kept, "kept regions grew from {kept} to {}", runtime::retained_bytes());

    // Blocks do not overlap: every tensor still holds its own value after all were written.
    let tensors = (1..40).map(|value| filled(1 + value % 7, value as f64)).collect::<Result<Vec<_>>>()?;
    let kept_ones: Vec<_> = tensors.into_iter().enumerate().filter(|(index, _)| index % 3 != 0).collect();
    let newer = (1..20).map(|value| filled(1 + value % 5, -value as f64)).collect::<Result<Vec<_>>>()?;
    for (index, tensor) in &kept_ones {
        let expected = (index + 1) as f64;
        ensure!(tensor.f_min()?.f_double_value(&[])? == expected && tensor.f_max()?.f_double_value(&[])? == expected, "tensor {index}");
        ensure!((tensor.data_ptr() as usize).is_multiple_of(64), "tensor {index} is not aligned to 64 bytes");
    }
    for (index, tensor) in newer.iter().enumerate() {
        let expected = -((index + 1) as f64);
        ensure!(
            tensor.f_min()?.f_double_value(&[])? == expected && tensor.f_max()?.f_double_value(&[])? == expected,
            "newer tensor {index}"
        );
    }

    // Larger than a region, and freed in whole: used again for many smaller ones.
    drop((kept_ones, newer));
    drop(filled(1_500, 0.0)?);
    let kept = runtime::retained_bytes();
    let many = (0..100).map(|_| filled(15, 1.0)).collect::<Result<Vec<_>>>()?;
    ensure!(runtime::retained_bytes() == kept, "100 tensors of 15 MiB fit into what a larger one left");
    drop(many);

    // More than there is: an error, and the process goes on.
    let failure = Tensor::f_empty([1 << 46], (Kind::Float, Device::Cpu)).err().context("2^48 bytes were given")?;
    ensure!(failure.to_string().contains("not enough memory"), "{failure}");
    drop(filled(1, 1.0)?);
    Ok(())
}
