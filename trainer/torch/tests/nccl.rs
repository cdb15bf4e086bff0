//! The object with NCCL: what it needs, and, where a GPU is, that a group of one works with it.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lcl_torch::{
    Device, Kind, Tensor,
    collectives::{AbortHandle, Group, GroupError, GroupOptions, MemoryStore},
    shim::{cuda, nccl},
};
use object::{File, Object, ObjectSymbol};

const TIMEOUT: Duration = Duration::from_mins(1);

/// The libraries of libtorch that are in the process when the object is loaded. NCCL itself is called through libtorch alone.
const LIBRARIES: [&str; 4] = ["libtorch_cuda.so", "libtorch_cpu.so", "libc10_cuda.so", "libc10.so"];

/// libtorch's folder: where this process has it from.
fn folder() -> Result<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let path = maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.ends_with("libtorch_cpu.so"));
    Ok(PathBuf::from(path.context("libtorch is not loaded")?).parent().context("no folder")?.to_owned())
}

/// Names that the system's C and C++ libraries have, as the process has loaded them.
fn system_names() -> Result<BTreeSet<String>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let paths: BTreeSet<&str> = maps.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let mut names = BTreeSet::new();
    for path in paths {
        let name = path.rsplit('/').next().unwrap_or_default();
        if ["libc.so", "libstdc++.so", "libgcc_s.so", "libm.so", "ld-linux"].iter().any(|prefix| name.starts_with(prefix)) {
            names.extend(exported(&fs::read(path)?)?);
        }
    }
    Ok(names)
}

fn exported(library: &[u8]) -> Result<Vec<String>> {
    let file = File::parse(library)?;
    Ok(file.dynamic_symbols().filter(|symbol| !symbol.is_undefined()).filter_map(|symbol| Some(symbol.name().ok()?.to_owned())).collect())
}

#[test]
fn libtorch_has_every_name_that_the_object_needs() -> Result<()> {
    let object = File::parse(nccl::object())?;
    let needed: BTreeSet<String> = object
        .dynamic_symbols()
        .filter(|symbol| symbol.is_undefined() && !symbol.is_weak())
        .filter_map(|symbol| Some(symbol.name().ok()?.to_owned()))
        .filter(|name| !name.is_empty())
        .collect();
    ensure!(needed.iter().any(|name| name.contains("ProcessGroupNCCL")), "{needed:?}");
    let mut missing = &needed - &system_names()?;
    for library in LIBRARIES {
        let path = folder()?.join(library);
        if !path.exists() && library.contains("cuda") {
            println!("skipped: {} is not there, libtorch is a build for the CPU", path.display());
            return Ok(());
        }
        for name in exported(&fs::read(&path).with_context(|| path.display().to_string())?)? {
            missing.remove(&name);
        }
    }
    ensure!(missing.is_empty(), "nobody has {missing:?}");
    Ok(())
}

fn form(device: Device, store: &MemoryStore, rank: usize, world_size: usize) -> Result<Group, GroupError> {
    let options = GroupOptions {
        store: Arc::new(store.session()),
        prefix: "one".to_owned(),
        rank,
        world_size,
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        device,
        timeout: TIMEOUT,
    };
    Group::form(options, &AbortHandle::new())
}

#[test]
fn a_group_on_a_gpu_that_is_not_there_says_what_is_missing() {
    if cuda::load().expect("an answer") {
        println!("skipped: libtorch's CUDA half is here");
        return;
    }
    let error = form(Device::Cuda(0), &MemoryStore::default(), 0, 1).map(drop).expect_err("there is no GPU");
    let GroupError::Nccl { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.message.contains("libtorch_cuda.so has to lie beside libtorch_cpu.so"), "{source}");
}

#[test]
fn members_on_different_kinds_of_devices_are_told_so() {
    let store = MemoryStore::default();
    let errors = std::thread::scope(|scope| {
        let members = [Device::Cpu, Device::Cuda(0)];
        let start = |(rank, device)| {
            let store = &store;
            scope.spawn(move || form(device, store, rank, 2).map(drop).expect_err("they do not fit").to_string())
        };
        members.into_iter().enumerate().map(start).collect::<Vec<_>>().into_iter().map(|member| member.join().expect("a member")).collect()
    });
    let errors: Vec<String> = errors;
    // Whoever sees it first may close its connections under the other one.
    assert!(errors.iter().any(|error| error.contains("with a GPU (1) and without (0)")), "{errors:?}");
}

#[test]
fn a_group_of_one_works_on_a_gpu() -> Result<()> {
    if cuda::device_count()? == 0 {
        println!("skipped: there is no GPU");
        return Ok(());
    }
    let device = Device::Cuda(0);
    let mut group = form(device, &MemoryStore::default(), 0, 1)?;
    let numbers = Tensor::from_slice(&[1.0f32, 2.0, 4.0]).to_device(device);
    let mut sum = numbers.copy();
    group.all_reduce(&mut sum, TIMEOUT)?;
    group.broadcast(&mut sum, 0, TIMEOUT)?;
    let gathered = group.all_gather_rows(&numbers, &[3], TIMEOUT)?;
    let exchanged = group.all_to_all(&numbers, &[3], &[3], TIMEOUT)?;
    for found in [sum, gathered, exchanged] {
        ensure!(found.device() == device && found.equal(&numbers), "{found:?}");
    }
    // Counts stay in host memory.
    ensure!(group.exchange(&[7], TIMEOUT)? == [[7]]);
    let host = Tensor::ones([2], (Kind::Float, Device::Cpu));
    ensure!(group.all_gather_rows(&host, &[2], TIMEOUT)?.device() == Device::Cpu);
    group.leave(TIMEOUT)?;
    Ok(())
}
