//! What must hold of a run whatever happened to it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use lcl_tests::run::Run;
use lcl_trainer::run::state_log::{Origin, StateLine};
use serde_json::Value;

/// Of the loss in fast mode, where sums are taken in another order: a hundred times what that makes at the tests' learning rate, and a tenth
/// of what a single update does.
const TOLERANCE: f64 = 1e-5;

/// All lines of a folder of state logs.
pub(crate) fn states(folder: &Path) -> Result<Vec<StateLine>> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder)? {
        let text = fs::read_to_string(entry?.path())?;
        // The last line of one that was killed may be cut short.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            lines.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
        }
    }
    Ok(lines)
}

/// The hash after every step of an undisturbed run.
pub(crate) fn hashes(states: &[StateLine]) -> HashMap<u64, String> {
    states.iter().map(|line| (line.step, line.parameter_hash.clone())).collect()
}

/// Exact mode: whoever came to a step in whatever way holds the parameters of the undisturbed run, bit for bit.
pub(crate) fn expect_same_bits(states: &[StateLine], undisturbed: &HashMap<u64, String>) -> Result<()> {
    for line in states.iter().filter(|line| line.step > 0) {
        let expected = undisturbed.get(&line.step).with_context(|| format!("the undisturbed run has no step {}", line.step))?;
        ensure!(line.parameter_hash == *expected, "other bits than undisturbed ({expected}): {line:?}");
    }
    Ok(())
}

/// Both modes: members that hold the same step of the same generation hold the same parameters.
pub(crate) fn expect_agreement(states: &[StateLine]) -> Result<()> {
    let mut seen: BTreeMap<(u64, u64, u64), &StateLine> = BTreeMap::new();
    for line in states.iter().filter(|line| line.origin == Origin::Trained) {
        let first = seen.entry((line.step, line.generation.epoch, line.generation.n)).or_insert(line);
        ensure!(first.parameter_hash == line.parameter_hash, "two members hold different parameters: {first:?}, {line:?}");
    }
    // What was received is what the sender held when the generation began.
    let mut bases: BTreeMap<(u64, u64), &StateLine> = BTreeMap::new();
    for line in states.iter().filter(|line| line.origin != Origin::Trained) {
        let first = bases.entry((line.generation.epoch, line.generation.n)).or_insert(line);
        let same = (first.step, &first.parameter_hash) == (line.step, &line.parameter_hash);
        ensure!(same, "a generation began from different states: {first:?}, {line:?}");
    }
    // And that is what members came to by a step, whoever has it now.
    let trained: HashSet<(u64, &str)> = states.iter().filter(|line| line.origin == Origin::Trained).map(identity).collect();
    for line in states.iter().filter(|line| line.origin != Origin::Trained && line.step > 0) {
        ensure!(trained.contains(&identity(line)), "nobody has trained what a generation began from: {line:?}");
    }
    Ok(())
}

fn identity(line: &StateLine) -> (u64, &str) {
    (line.step, &line.parameter_hash)
}

/// Storage is read only when nobody holds a state: no process that was neither killed nor stopped had one before and after.
/// `absent`: processes that were stopped, from when to when.
pub(crate) fn expect_no_needless_restore(states: &[StateLine], absent: &[(u32, f64, f64)]) -> Result<usize> {
    let restores: Vec<&StateLine> = states.iter().filter(|line| line.origin == Origin::Restored).collect();
    for restore in &restores {
        for process in states.iter().map(|line| line.process).collect::<BTreeSet<_>>() {
            let own = || states.iter().filter(|line| line.process == process && line.process != restore.process);
            let before = own().any(|line| line.time < restore.time && line.generation < restore.generation);
            // A step of an older generation: it was alive, and had not been made to forget anything.
            let after = own().any(|line| line.time > restore.time);
            let was_absent = absent.iter().any(|(stopped, from, to)| *stopped == process && *from <= restore.time && restore.time <= *to);
            ensure!(!before || !after || was_absent, "process {process} held a state when {restore:?} read one from storage");
        }
    }
    Ok(restores.len())
}

/// The ledger names every (pass, slot) once, and has the undisturbed run's work: to the last bit of the loss, or nearly.
pub(crate) fn expect_same_ledger(run: &Run, undisturbed: &Run, exact: bool) -> Result<usize> {
    let (work, expected) = (run.ledger()?, undisturbed.ledger()?);
    ensure!(work.len() <= expected.len(), "{} steps, undisturbed {}", work.len(), expected.len());
    let mut trained = BTreeSet::new();
    for (line, expected) in run.steps()?.iter().zip(undisturbed.steps()?) {
        let step = &line["step"];
        for range in line["slots"].as_array().context("no slots")? {
            let field = |name: &str| range[name].as_u64().with_context(|| format!("no {name} in {range}"));
            for slot in field("first")?..field("end")? {
                let total = step.as_u64().unwrap_or_default() * run.config.optimization.global_batch_size + slot;
                ensure!(trained.insert((field("pass")?, total)), "step {step}: slot {slot} is trained twice");
            }
        }
        for field in ["slots", "samples_digest", "rows", "images", "tokens", "skipped_samples", "redrawn_samples", "update_skipped"] {
            ensure!(line[field] == expected[field], "step {step}: {field} is {}, undisturbed {}", line[field], expected[field]);
        }
        // Of a mixture each source goes on where it was, too.
        for field in ["name", "first", "end", "rows", "images", "tokens", "predicted_tokens", "contrastive_images"] {
            let of_sources = |line: &Value| -> Vec<Value> {
                line["sources"].as_array().into_iter().flatten().map(|source| source[field].clone()).collect()
            };
            let (found, wanted) = (of_sources(line), of_sources(&expected));
            ensure!(found == wanted, "step {step}: {field} of the sources is {found:?}, undisturbed {wanted:?}");
        }
        let loss = |line: &Value| line["loss"].as_f64().context("no loss");
        let (found, wanted) = (loss(line)?, loss(&expected)?);
        if exact {
            ensure!(found.to_bits() == wanted.to_bits(), "step {step}: loss {found}, undisturbed {wanted}: {line}");
        } else {
            ensure!((found / wanted - 1.0).abs() < TOLERANCE, "step {step}: loss {found}, undisturbed {wanted}");
        }
    }
    Ok(work.len())
}

/// Every folder with a manifest holds what the manifest says. The folder may be removed meanwhile: its manifest goes first.
pub(crate) fn expect_whole_checkpoints(run: &Run, every_byte: bool) -> Result<usize> {
    let mut whole = 0;
    for checkpoint in run.checkpoints()?.into_iter().filter(|checkpoint| checkpoint.complete) {
        let manifest = checkpoint.path.join("manifest.json");
        let Err(error) = check_checkpoint(&checkpoint.path, &manifest, every_byte) else {
            whole += 1;
            continue;
        };
        ensure!(!manifest.exists(), "{} is visible and not whole: {error:#}", checkpoint.path.display());
    }
    Ok(whole)
}

fn check_checkpoint(folder: &Path, manifest: &PathBuf, every_byte: bool) -> Result<()> {
    let manifest: Value = serde_json::from_slice(&fs::read(manifest)?)?;
    for shard in manifest["manifest"]["shards"].as_array().context("no shards")? {
        let file = folder.join(shard["file"].as_str().context("no file")?);
        ensure!(file.metadata()?.len() == shard["bytes"].as_u64().context("no size")?, "{} has another size", file.display());
        if every_byte {
            let hash = blake3::hash(&fs::read(&file)?).to_hex();
            ensure!(shard["blake3"] == hash.as_str(), "{} has other bytes", file.display());
        }
    }
    Ok(())
}

/// The longest time between two steps, in seconds.
pub(crate) fn longest_gap(run: &Run) -> Result<f64> {
    let times: Vec<f64> = run.steps()?.iter().filter_map(|line| line["time"].as_f64()).collect();
    Ok(times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max))
}

#[cfg(test)]
mod tests {
    use lcl_trainer::run::records::GenerationRecord;

    use super::*;

    fn line(origin: Origin, n: u64, step: u64, hash: &str) -> StateLine {
        let generation = GenerationRecord { epoch: 1, n };
        StateLine { member: "w-0/0".to_owned(), process: 1, generation, step, origin, parameter_hash: hash.to_owned(), time: 0.0 }
    }

    #[test]
    fn a_generation_that_begins_from_what_nobody_trained_is_found() {
        let mut states = vec![line(Origin::Restored, 1, 0, "a"), line(Origin::Trained, 1, 1, "b"), line(Origin::Sent, 2, 1, "b")];
        assert!(expect_agreement(&states).is_ok());
        states.push(line(Origin::Received, 3, 1, "c"));
        assert!(expect_agreement(&states).is_err_and(|error| error.to_string().starts_with("nobody has trained")));
    }
}
