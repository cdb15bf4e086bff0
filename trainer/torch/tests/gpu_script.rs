//! `bench/gpu.sh` where there is no GPU: it says what it leaves out, and in tiny sizes on the processor each part does what it does on a GPU.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The script's programs as this test was built: beside it, and among the examples.
fn programs() -> Result<tempfile::TempDir> {
    let own = env::current_exe()?;
    let deps = own.parent().context("no folder")?;
    let newest = |name: &str| -> Result<PathBuf> {
        let built = fs::read_dir(deps)?.filter_map(|entry| {
            let path = entry.ok()?.path();
            let stem = path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('-')?;
            let metadata = path.metadata().ok()?;
            let is_program = !stem.contains('.') && metadata.permissions().mode() & 0o100 != 0;
            is_program.then(|| (metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), path))
        });
        Ok(built.max().with_context(|| format!("no {name} in {}: run `cargo test -p lcl-torch`", deps.display()))?.1)
    };
    let folder = tempfile::tempdir()?;
    symlink(newest("ranks")?, folder.path().join("ranks"))?;
    symlink(deps.join("../examples/bench_step"), folder.path().join("bench_step"))?;
    Ok(folder)
}

struct Run {
    output: Output,
    results: tempfile::TempDir,
}

impl Run {
    fn of(variables: &[(&str, &str)], programs: &Path) -> Result<Self> {
        let results = tempfile::tempdir()?;
        let output = Command::new(root().join("bench/gpu.sh"))
            .env("LCL_GPU_BENCH_RESULTS", results.path())
            .env("LCL_GPU_BENCH_PROGRAMS", programs)
            // Without PyTorch, which `make test` does not need.
            .env("LCL_GPU_BENCH_PYTHON", "/bin/false")
            .envs(variables.iter().copied())
            .output()?;
        Ok(Self { output, results })
    }

    /// Of each part: its name, and how it went.
    fn parts(&self) -> Result<Vec<(String, String)>> {
        let summary = fs::read_to_string(self.results.path().join("summary.md"))?;
        let line = |line: &str| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            (cells.len() == 5 && !["part", "---"].contains(&cells[1])).then(|| (cells[1].to_owned(), cells[2].to_owned()))
        };
        // Up to what the parts have printed.
        Ok(summary.split("\n## ").next().unwrap_or_default().lines().filter_map(line).collect())
    }

    fn said(&self) -> String {
        let logs = fs::read_dir(self.results.path()).into_iter().flatten().flatten();
        let logs = logs.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log" || extension == "md"));
        let read = |entry: fs::DirEntry| format!("{}:\n{}", entry.path().display(), fs::read_to_string(entry.path()).unwrap_or_default());
        let logs = logs.map(read).collect::<Vec<_>>().join("\n");
        format!(
            "{:?} {}{}\n{logs}",
            self.output.status,
            String::from_utf8_lossy(&self.output.stdout),
            String::from_utf8_lossy(&self.output.stderr)
        )
    }
}

fn kinds() -> Result<Vec<String>> {
    let output = Command::new(root().join("bench/gpu.sh")).arg("kinds").output()?;
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

#[test]
fn without_a_gpu_every_part_says_that_it_is_left_out_and_the_script_succeeds() -> Result<()> {
    // A machine with a GPU, too, seen without its tools.
    let tools = tempfile::tempdir()?;
    for tool in ["bash", "dirname", "realpath", "nproc", "mkdir", "rm", "tee", "head", "cat"] {
        let places = ["/usr/bin", "/bin"].map(|place| Path::new(place).join(tool));
        let place = places.iter().find(|place| place.exists()).with_context(|| format!("no {tool}"))?;
        symlink(place, tools.path().join(tool))?;
    }
    let path = tools.path().to_str().context("no text")?;
    let run = Run::of(&[("PATH", path)], Path::new("/nowhere"))?;
    ensure!(run.output.status.success(), "{}", run.said());
    let expected: Vec<_> = kinds()?.into_iter().map(|part| (part, "skipped: there is no GPU: nvidia-smi is missing".to_owned())).collect();
    assert_eq!(run.parts()?, expected, "{}", run.said());
    ensure!(expected.len() == 7);
    Ok(())
}

#[test]
fn on_the_processor_every_part_runs_in_tiny_sizes_and_leaves_its_table() -> Result<()> {
    let run = Run::of(&[("LCL_GPU_BENCH_DEVICE", "cpu")], programs()?.path())?;
    ensure!(run.output.status.success(), "{}", run.said());
    for (part, result) in run.parts()? {
        let expected = match part.as_str() {
            "formula" => "skipped: there is no Python with PyTorch",
            "sanitizer" => "skipped: the step runs; compute-sanitizer is for a GPU",
            _ => "passed",
        };
        assert!(result.starts_with(expected), "{part}: {result}\n{}", run.said());
    }
    let table = |part: &str| fs::read_to_string(run.results.path().join(format!("{part}.md")));
    for (part, expected) in [
        ("ranks", "test result: ok. 1 passed"),
        ("stall", "| beside | "),
        ("l14", "| float32 | lcl-torch | "),
        ("b16", "| float32 | lcl-torch | "),
        ("kernels", "| `aten::"),
    ] {
        let found = table(part)?;
        assert!(found.contains(expected), "{part}: {found}");
    }
    // The share of a peak that was named, by the formula.
    let row = table("l14")?.lines().find_map(|line| Some(line.strip_prefix("| float32 | lcl-torch | ")?.to_owned())).context("no row")?;
    assert!(row.split('|').nth(3).is_some_and(|cell| cell.trim().ends_with('%')), "{row}");
    Ok(())
}

#[test]
fn a_part_that_fails_is_told_and_the_later_ones_run() -> Result<()> {
    let programs = programs()?;
    let broken = programs.path().join("bench_step");
    fs::remove_file(&broken)?;
    fs::write(&broken, "#!/bin/sh\necho no memory is left >&2\nexit 3\n")?;
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755))?;
    let parts = [("LCL_GPU_BENCH_DEVICE", "cpu"), ("LCL_GPU_BENCH_PARTS", "stall formula kernels")];
    let run = Run::of(&parts, programs.path())?;
    assert_eq!(run.output.status.code(), Some(1), "{}", run.said());
    let results = run.parts()?;
    let [(_, stall), (_, formula), (_, kernels)] = results.as_slice() else { anyhow::bail!("{results:?}") };
    assert!(
        stall.starts_with("FAILED: status 1") && formula.starts_with("skipped") && kernels.starts_with("FAILED: status 3"),
        "{results:?}"
    );
    assert!(fs::read_to_string(run.results.path().join("stall.log"))?.contains("no memory is left"), "{}", run.said());
    Ok(())
}
