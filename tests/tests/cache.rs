//! The cache of what is fetched or built (`scripts/cache.sh`): shared by clones, complete or not there.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lcl_tests::{
    process::{Finished, Running, await_condition, start_command},
    workspace,
};
use rustix::process::Signal;
use tempfile::TempDir;

/// An entry's name as `cache_entry` makes it.
const ENTRY: &str = "tool-1.0-0123456789ab";
/// Fills an entry as soon as a line comes through the pipe.
const FILL: &str = "fill() { echo filled >> ../fills; read -r < ../pipe; echo content > \"$1/file\"; }";

/// A cache and folders that stand for clones.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let place = Self { folder: TempDir::new()? };
        for clone in ["one", "two"] {
            fs::create_dir(place.path(clone))?;
        }
        ensure!(Command::new("mkfifo").arg(place.path("pipe")).status()?.success());
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cached(&self, name: &str) -> PathBuf {
        self.path("cache").join(name)
    }

    /// Starts a script in a clone, as the project's own scripts begin.
    fn start(&self, clone: &str, script: &str) -> Result<Running> {
        let mut command = Command::new("bash");
        let library = workspace().join("scripts/cache.sh");
        command.args(["-euo", "pipefail", "-c", &format!("source {}\n{FILL}\n{script}", library.display())]);
        command.current_dir(self.path(clone)).env("LCL_CACHE", self.path("cache"));
        start_command(command)
    }

    fn run(&self, clone: &str, script: &str) -> Result<Finished> {
        self.start(clone, script)?.wait()
    }

    /// Lets one fill go on. Waits until there is one.
    fn let_fill(&self) -> Result<()> {
        Ok(File::create(self.path("pipe"))?.write_all(b"\n")?)
    }

    fn fills(&self) -> usize {
        fs::read_to_string(self.path("fills")).unwrap_or_default().lines().count()
    }

    /// What lies in the cache, by name.
    fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<_> =
            fs::read_dir(self.path("cache"))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
        names.sort();
        Ok(names)
    }
}

fn fill_and_link() -> String {
    format!("cache_fill {ENTRY} fill; cache_link {ENTRY} tool")
}

fn content(clone: &Path) -> Result<String> {
    let file = clone.join(".deps/tool/file");
    fs::read_to_string(&file).with_context(|| file.display().to_string())
}

#[test]
fn two_clones_that_want_an_entry_at_once_fill_it_once() -> Result<()> {
    let place = Place::new()?;
    let first = place.start("one", &fill_and_link())?;
    await_condition("the first fill", || Ok((place.fills() == 1).then_some(())))?;
    ensure!(!place.cached(ENTRY).exists(), "the entry is there before it is filled");
    let second = place.start("two", &fill_and_link())?;
    // Not by the kernel's list of locks, which within a container leaves out one whose taker has ended.
    await_condition("the second to wait", || {
        Ok(lcl_tests::process::descendants(second.id())?.iter().any(|(_, words)| words.starts_with("flock ")).then_some(()))
    })?;
    place.let_fill()?;
    first.wait()?.expect_code(0)?;
    second.wait()?.expect_code(0)?;
    ensure!(place.fills() == 1, "filled {} times", place.fills());
    for clone in ["one", "two"] {
        ensure!(content(&place.path(clone))? == "content\n");
        ensure!(fs::read_link(place.path(clone).join(".deps/tool"))? == place.cached(ENTRY));
    }
    ensure!(place.names()? == ["locks", ENTRY]);
    Ok(())
}

#[test]
fn what_a_killed_fill_leaves_is_no_entry_and_is_swept_by_the_next_one() -> Result<()> {
    let place = Place::new()?;
    let killed = place.start("one", &format!("cache_fill {ENTRY} fill"))?;
    await_condition("the fill", || Ok((place.fills() == 1).then_some(())))?;
    // The fill is a process of its own.
    for (process, _) in lcl_tests::process::descendants(killed.id())? {
        lcl_tests::process::kill(process)?;
    }
    killed.kill()?;
    ensure!(place.names()?.iter().any(|name| name.starts_with(&format!(".{ENTRY}."))), "nothing is left: {:?}", place.names()?);
    // Another entry's fill sweeps as well.
    place.run("two", "instant() { :; }; cache_fill other-2.0-ba9876543210 instant")?.expect_code(0)?;
    ensure!(place.names()? == ["locks", "other-2.0-ba9876543210"], "{:?}", place.names()?);
    Ok(())
}

#[test]
fn a_sweep_leaves_what_is_being_filled() -> Result<()> {
    let place = Place::new()?;
    let filling = place.start("one", &fill_and_link())?;
    await_condition("the fill", || Ok((place.fills() == 1).then_some(())))?;
    place.run("two", "instant() { :; }; cache_fill other-2.0-ba9876543210 instant; cache_clean")?.expect_code(0)?;
    place.let_fill()?;
    filling.wait()?.expect_code(0)?;
    ensure!(content(&place.path("one"))? == "content\n");
    Ok(())
}

#[test]
fn a_fill_that_fails_or_is_interrupted_leaves_nothing() -> Result<()> {
    let place = Place::new()?;
    // The first error ends it: what comes after must not make it look filled.
    let failed = place.run("one", &format!("broken() {{ false; touch \"$1/file\"; }}; cache_fill {ENTRY} broken; touch went-on"))?;
    ensure!(failed.code()? != 0 && !place.path("one/went-on").exists());
    ensure!(place.names()? == ["locks"], "{:?}", place.names()?);

    let interrupted = place.start("one", &fill_and_link())?;
    await_condition("the fill", || Ok((place.fills() == 1).then_some(())))?;
    // Before the first of them has ended: those below it would no longer be found as its own.
    let below = lcl_tests::process::descendants(interrupted.id())?;
    interrupted.signal(Signal::TERM)?;
    for (process, _) in below {
        rustix::process::kill_process(rustix::process::Pid::from_raw(i32::try_from(process)?).context("no process")?, Signal::TERM)?;
    }
    ensure!(interrupted.wait()?.status.code() != Some(0));
    await_condition("the folder to go", || Ok((place.names()? == ["locks"]).then_some(())))?;
    Ok(())
}

#[test]
fn an_entry_is_named_by_all_that_it_is_made_of() -> Result<()> {
    let place = Place::new()?;
    let name = |pins: &str, words: &str| -> Result<String> {
        fs::write(place.path("one/pins"), pins)?;
        Ok(place.run("one", &format!("cache_entry tool-1.0 pins - <<< '{words}'"))?.expect_code(0)?.stdout.trim().to_owned())
    };
    let one = name("a", "b")?;
    ensure!(one.starts_with("tool-1.0-") && one.len() == "tool-1.0-".len() + 12, "{one}");
    ensure!(one == name("a", "b")? && one != name("c", "b")? && one != name("a", "c")?);
    // A file that is not there must not count as an empty one.
    ensure!(place.run("one", "entry=$(cache_entry tool-1.0 nowhere); echo \"$entry\"")?.code()? != 0);
    Ok(())
}

#[test]
fn a_link_takes_the_place_of_an_older_clones_folder_and_of_a_link_to_elsewhere() -> Result<()> {
    let place = Place::new()?;
    fs::create_dir_all(place.path("one/.deps/tool"))?;
    fs::write(place.path("one/.deps/tool/file"), "old")?;
    fs::create_dir_all(place.path("two/.deps"))?;
    symlink(place.path("nowhere"), place.path("two/.deps/tool"))?;
    fs::create_dir_all(place.cached(ENTRY))?;
    fs::write(place.cached(ENTRY).join("file"), "new")?;
    for clone in ["one", "two", "two"] {
        place.run(clone, &fill_and_link())?.expect_code(0)?;
        ensure!(content(&place.path(clone))? == "new");
        ensure!(fs::read_dir(place.path(clone).join(".deps"))?.count() == 1, "something is left beside the link in {clone}");
    }
    Ok(())
}

#[test]
fn cleaning_names_each_entry_and_leaves_what_is_not_the_caches() -> Result<()> {
    let place = Place::new()?;
    for folder in [ENTRY, "other-2.0-ba9876543210", "somebody's-folder", "notes-somebodyelse"] {
        fs::create_dir_all(place.cached(folder))?;
        fs::write(place.cached(folder).join("file"), "content")?;
    }
    let said = place.run("one", "cache_clean")?.expect_code(0)?.stdout;
    for entry in [ENTRY, "other-2.0-ba9876543210"] {
        ensure!(said.contains(&place.cached(entry).display().to_string()), "{said}");
    }
    ensure!(said.lines().count() == 2, "{said}");
    ensure!(place.names()? == ["locks", "notes-somebodyelse", "somebody's-folder"], "{:?}", place.names()?);
    Ok(())
}
