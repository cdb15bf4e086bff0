//! Carries out a plan with real processes, and judges what came of it.

use std::{
    collections::{BTreeSet, HashMap},
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use lcl_tests::{
    data::{self, Fault as BadSample},
    process,
    run::{Run, Workbench},
};
use lcl_trainer::{processes::fail_point, run::state_log};
use lcl_trainer_config::{DataSource, ExactConfig};
use serde_json::Value;

use crate::{
    checks,
    plan::{End, Plan, What},
    show::Show,
    watch::Watch,
};

/// In fast mode, where the losses of two runs drift apart: at 1e-3 they differ by 1e-6 after 200 steps and by a tenth after 1,000, at this
/// one by less than 1e-7 after 1,000.
const FAST_LEARNING_RATE: f64 = 1e-5;
/// Tokens of a sequence of the mixture, whose documents are longer than the pairs.
const CONTEXT: i64 = 64;
/// Steps of the second start of a run that was asked to stop.
const EPILOGUE: u64 = 6;

/// The undisturbed runs that others are compared with. They grow as far as they are needed.
#[derive(Debug)]
pub(crate) struct Arena {
    folder: PathBuf,
    workbench: Workbench,
    mixture: DataSource,
    undisturbed: Mutex<HashMap<Kind, Undisturbed>>,
}

/// Which undisturbed run a plan is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    exact: bool,
    mixture: bool,
}

impl Kind {
    fn of(plan: &Plan) -> Self {
        Self { exact: plan.exact, mixture: plan.mixture }
    }

    fn name(self) -> String {
        let Self { exact, mixture } = self;
        format!("undisturbed-{}-{}", if exact { "exact" } else { "fast" }, if mixture { "mixture" } else { "pairs" })
    }
}

#[derive(Clone, Debug)]
struct Undisturbed {
    run: Run,
    states: PathBuf,
    steps: u64,
}

/// What became of a plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Completed steps.
    pub(crate) steps: usize,
    /// What was hit.
    pub(crate) hits: Vec<(What, String)>,
    /// Restores from storage, the first one included.
    pub(crate) restores: usize,
    /// Generations.
    pub(crate) generations: usize,
    /// The longest time between two steps.
    pub(crate) longest_gap: f64,
    /// From the start to the end.
    pub(crate) seconds: f64,
}

impl Arena {
    /// One with a data set, below the folder for tests' files.
    pub(crate) fn new() -> Result<Self> {
        // A slot without a sample, so that shards have different numbers of rows.
        let workbench = Workbench::new(&[(7, BadSample::NoCaption)])?;
        let mixture = data::mixture(&workbench.shard(), &workbench.path("mixture"))?;
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(std::process::id().to_string());
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, workbench, mixture, undisturbed: Mutex::default() })
    }

    fn begin(&self, name: &str, Kind { exact, mixture }: Kind, steps: u64) -> Result<Run> {
        let mut run = self.workbench.begin(name)?;
        if mixture {
            run.config.data.source = self.mixture.clone();
            run.config.model.shape.text.context_length = CONTEXT;
        }
        let optimization = &mut run.config.optimization;
        (optimization.steps, optimization.global_batch_size) = (steps, 16);
        optimization.exact = exact.then_some(ExactConfig { virtual_shards: 8, threads: 1, verify_every_steps: None });
        if !exact {
            optimization.learning_rate = FAST_LEARNING_RATE;
        }
        run.config.checkpoint.every_steps = 10;
        Ok(run)
    }

    /// The undisturbed run of a kind, at least so long.
    fn undisturbed(&self, kind: Kind, steps: u64) -> Result<Undisturbed> {
        let mut all = self.undisturbed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&kind).filter(|known| known.steps >= steps) {
            return Ok(known.clone());
        }
        let name = kind.name();
        let run = self.begin(&name, kind, steps)?;
        let states = self.workbench.path(&format!("{name}-states"));
        fs::create_dir_all(&states)?;
        let mut command = std::process::Command::new(process::trainer()?);
        command.args(run.arguments(&["--output", "json"])?).env(state_log::FOLDER, &states);
        process::start_command(command)?.wait()?.expect_code(0)?;
        let grown = Undisturbed { run, states, steps };
        all.insert(kind, grown.clone());
        Ok(grown)
    }

    /// Carries out a plan. On a failure everything that it left is kept, and said where.
    pub(crate) fn carry_out(&self, plan: &Plan) -> Result<Outcome> {
        let folder = self.folder.join(&plan.name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("plan.txt"), plan.to_string())?;
        let mut running = None;
        let result = self.attempt(plan, &folder, &mut running);
        match &result {
            Ok(_) => fs::remove_dir_all(&folder)?,
            Err(error) => self
                .keep(plan, &folder, running.as_ref(), error)
                .unwrap_or_else(|lost| println!("{}: not all is kept: {lost:#}", plan.name)),
        }
        drop(running);
        fs::remove_dir_all(self.workbench.path(&plan.name)).ok();
        result.with_context(|| format!("{plan}everything it left lies in {}; again: {}\n", folder.display(), plan.again()))
    }

    fn keep(&self, plan: &Plan, folder: &Path, running: Option<&Show>, error: &anyhow::Error) -> Result<()> {
        fs::write(folder.join("error.txt"), format!("{error:#}\n"))?;
        if let Some(show) = running {
            show.keep_logs(folder)?;
        }
        copy(&self.workbench.path(&plan.name), &folder.join("run"))
    }

    fn attempt(&self, plan: &Plan, folder: &Path, running: &mut Option<Show>) -> Result<Outcome> {
        let (hits, states) = (folder.join("hits"), folder.join("states"));
        fs::create_dir_all(&hits)?;
        fs::create_dir_all(&states)?;
        let steps = if let End::Steps(steps) = plan.end { steps } else { 1_000_000 };
        let mut run = self.begin(&plan.name, Kind::of(plan), steps)?;
        let environment = vec![
            (fail_point::FAULTS, plan.environment()),
            (fail_point::FOLDER, hits.display().to_string()),
            (state_log::FOLDER, states.display().to_string()),
            // What GPUs do. Copies at once are in all other tests.
            (fail_point::COPY_BESIDE, "1".to_owned()),
        ];
        let watch = Watch::default();
        let show = running.insert(Show::begin(plan, &run, hits, environment)?);
        let mut outcome = Outcome::default();
        let begun = Instant::now();
        thread::scope(|scope| -> Result<()> {
            let watcher = scope.spawn(|| watch.look(&run));
            let played = show.play(&run, &watch);
            watch.end();
            let seen = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
            played.and(seen)
        })?;
        outcome.seconds = begun.elapsed().as_secs_f64();
        outcome.hits = show.hits();
        let absent = show.absent();
        watch.expect_nothing_left()?;
        if plan.end == End::WhenAllWereHit {
            let stopped = run.steps()?.len() as u64;
            ensure!(run.newest_checkpoint()?.step == stopped, "checkpoint {:?} of {stopped} steps", run.newest_checkpoint()?);
            run.config.optimization.steps = stopped + EPILOGUE;
            let mut command = std::process::Command::new(process::trainer()?);
            command.args(run.arguments_of("local", &["--workers", "2", "--resume", "--output", "json"])?);
            command.env(state_log::FOLDER, &states);
            process::start_command(command)?.wait()?.expect_code(0)?;
        }
        self.judge(plan, &run, &states, &absent, &mut outcome)?;
        Ok(outcome)
    }

    fn judge(&self, plan: &Plan, run: &Run, states: &Path, absent: &[(u32, f64, f64)], outcome: &mut Outcome) -> Result<()> {
        let steps = run.config.optimization.steps;
        let undisturbed = self.undisturbed(Kind::of(plan), steps)?;
        let states = checks::states(states)?;
        checks::expect_agreement(&states)?;
        if plan.exact {
            checks::expect_same_bits(&states, &checks::hashes(&checks::states(&undisturbed.states)?))?;
        }
        outcome.steps = checks::expect_same_ledger(run, &undisturbed.run, plan.exact)?;
        ensure!(outcome.steps as u64 == steps, "{} of {steps} steps are in the ledger", outcome.steps);
        let sources = |line: &Value| line["sources"].as_array().map_or(0, Vec::len);
        ensure!(!plan.mixture || run.steps()?.iter().all(|line| sources(line) == 3), "the ledger does not name the sources");
        let last = states.iter().filter(|line| line.step == steps).map(|line| &line.parameter_hash).next_back();
        ensure!(last == Some(&run.hash()?), "the run says that it ended with {}, and its members held {last:?}", run.hash()?);
        outcome.restores = checks::expect_no_needless_restore(&states, absent)?;
        ensure!(checks::expect_whole_checkpoints(run, true)? > 0, "there is no checkpoint at the end");
        ensure!(run.newest_checkpoint()?.step == steps, "the newest checkpoint is {:?}", run.newest_checkpoint()?);
        outcome.longest_gap = checks::longest_gap(run)?;
        outcome.generations = states.iter().map(|line| line.generation).collect::<BTreeSet<_>>().len();
        Ok(())
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // Empty unless something failed.
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Copies the files that are there: the run may still be going. Its socket is no file.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    fs::create_dir_all(to)?;
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.path().is_file() {
            match fs::copy(entry.path(), target) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(())
}
