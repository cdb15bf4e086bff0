//! `lcl run --local`: from a manifest to a trainer on this machine, by the operator's own validation and rendering.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::Write,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Context, Error, anyhow, bail};
use lcl_crds::KIND;
use lcl_operator_core::{
    PathError, PathMapping, PodPolicy, Slowness, Surroundings, Timeouts, ValidatedJob, render_trainer_config, validate_under,
};
use lcl_trainer_config::TrainerConfig;
use serde_json::Value;
use url::Url;

use crate::{
    arguments::{Output, RunArguments},
    manifest::{self, Document},
    report::{self, Finding},
    run_folder::{CONFIG_FILE, check_owner},
    trainer,
};

/// Runs the job; returns only when the trainer was not started.
pub(crate) fn execute(arguments: &RunArguments) -> Result<ExitCode, Error> {
    let file = &arguments.file;
    if !arguments.local {
        let file = file.display();
        bail!("only --local is for this command: to run the job in a cluster, `kubectl apply -f {file}` gives it to the operator");
    }
    let documents = manifest::read(file)?;
    let (position, document) = choose(&documents, file, arguments.name.as_deref())?;
    // With the steps that it will run: a rule that only they break is told here, by the manifest's own name for the field.
    let job = match validate_under(&with_steps(&document.value, arguments.steps), &PodPolicy::everything()) {
        Ok(job) => job,
        Err(errors) => {
            report::print(&[Finding::of_job(file, (position, document), Some(&errors))], arguments.output)?;
            if let Some(steps) = arguments.steps {
                eprintln!("note: checked with the {steps} steps of --steps in place of spec.optimization.steps");
            }
            return Ok(lcl_trainer_config::ExitCode::Permanent.into());
        }
    };
    let config = render(&job, arguments)?;
    let config_file = prepare(&config, arguments)?;
    trainer::become_trainer(trainer_arguments(&config_file, &job, arguments))
}

/// The manifest with other steps in place of its own, if it says how many.
fn with_steps(manifest: &Value, steps: Option<u64>) -> Value {
    let mut manifest = manifest.clone();
    if let (Some(steps), Some(own)) = (steps, manifest.pointer_mut("/spec/optimization/steps")) {
        *own = steps.into();
    }
    manifest
}

/// The one job of the manifest, or the one that was named, with its position among the jobs.
pub(crate) fn choose<'a>(documents: &'a [Document], file: &Path, wanted: Option<&str>) -> Result<(usize, &'a Document), Error> {
    let file = file.display();
    let jobs = || documents.iter().filter(|document| document.is_job()).enumerate().map(|(index, job)| (index + 1, job));
    let mut found = jobs().filter(|(_, job)| wanted.is_none_or(|name| job.name() == Some(name)));
    match (found.next(), found.next()) {
        (Some(job), None) => Ok(job),
        (None, _) => Err(match wanted {
            Some(name) => anyhow!("{file} holds no {KIND} named {name}"),
            None => anyhow!("{file} holds no {KIND}"),
        }),
        (Some(_), Some(_)) => {
            let names: Vec<_> = jobs().filter_map(|(_, job)| job.name()).collect();
            Err(anyhow!("{file} holds several jobs: choose one with --name ({})", names.join(", ")))
        }
    }
}

/// Whether it takes a coordinator: several processes train, or others may join later.
fn is_group(job: &ValidatedJob) -> bool {
    members(job) > 1 || job.world().max > 1
}

/// Processes that train: as many as in a cluster.
fn members(job: &ValidatedJob) -> usize {
    (job.spec().workers.replicas.unsigned_abs() * job.members_per_worker()) as usize
}

fn render(job: &ValidatedJob, arguments: &RunArguments) -> Result<TrainerConfig, Error> {
    let folders = local_folders(&arguments.volumes)?;
    let paths = PathMapping::on_this_machine(job, &folders).map_err(path_errors)?;
    // The members share this machine's processors: for reading as many as there are now, for computing as many as there are when one starts.
    let share = (thread::available_parallelism().map_or(1, NonZeroUsize::get) / members(job)).max(1);
    let threads = arguments.threads.map(NonZeroUsize::get);
    let data_threads = threads.unwrap_or(share);
    let config =
        render_trainer_config(job, &Surroundings { paths, device: arguments.device.into(), threads, cache_folder: None, data_threads });
    config.validate().context("the rendered configuration is refused; this is an error in lcl")?;
    Ok(config)
}

/// All that is wrong with where files lie, a line each.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
pub(crate) fn path_errors(errors: Vec<PathError>) -> Error {
    anyhow!("{}", errors.iter().map(PathError::to_string).collect::<Vec<_>>().join("\n       "))
}

/// The folders given with `--volume`, absolute.
pub(crate) fn local_folders(volumes: &[(String, PathBuf)]) -> Result<BTreeMap<String, String>, Error> {
    let mut folders = BTreeMap::new();
    for (name, folder) in volumes {
        let absolute = std::path::absolute(folder).with_context(|| format!("--volume {name}={}", folder.display()))?;
        let absolute =
            absolute.into_os_string().into_string().map_err(|folder| anyhow!("--volume {name}: {} is not Unicode", folder.display()))?;
        if folders.insert(name.clone(), absolute).is_some() {
            bail!("--volume {name} is given twice");
        }
    }
    Ok(folders)
}

/// Writes the configuration where the trainer reads it: into the run's folder, or a temporary one when that is not on this machine.
fn prepare(config: &TrainerConfig, arguments: &RunArguments) -> Result<PathBuf, Error> {
    let json = serde_json::to_vec_pretty(config)?;
    let local = Url::parse(&config.checkpoint.uri).ok().filter(|uri| uri.scheme() == "file").and_then(|uri| uri.to_file_path().ok());
    let Some(folder) = local else {
        let mut file = tempfile::Builder::new().prefix(&format!("lcl-{}-", config.job)).suffix(".json").tempfile()?;
        file.write_all(&json)?;
        return Ok(file.into_temp_path().keep()?);
    };
    if !arguments.delete_existing {
        check_owner(&folder, &config.job)?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the run's folder {}", folder.display()))?;
    let path = folder.join(CONFIG_FILE);
    write_whole(&folder, &path, &json).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Writes so that a reader sees the old or the new content and never a part.
fn write_whole(folder: &Path, path: &Path, content: &[u8]) -> Result<(), Error> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}

fn trainer_arguments(config_file: &Path, job: &ValidatedJob, arguments: &RunArguments) -> Vec<OsString> {
    let workers = &job.spec().workers;
    let mut list: Vec<OsString> = vec![if is_group(job) { "local" } else { "train" }.into(), "--config".into(), config_file.into()];
    if is_group(job) {
        let world = job.spec().elastic.as_ref().map(|_| job.world());
        let numbers = [
            ("--workers", Some(workers.replicas)),
            ("--members-per-worker", i32::try_from(job.members_per_worker()).ok()),
            ("--min-workers", Some(world.as_ref().map_or(workers.replicas, |world| world.min))),
            ("--max-workers", world.map(|world| world.max)),
        ];
        let numbers = numbers.into_iter().filter_map(|(name, number)| Some((name, number?)));
        list.extend(numbers.flat_map(|(name, number)| [name.into(), number.to_string().into()]));
        let Timeouts { heartbeat, stall, formation, slow } = Timeouts::of(job);
        let waits = [("--heartbeat-timeout", heartbeat), ("--stall-timeout", stall), ("--formation-wait", formation)];
        let waits = waits.into_iter().filter_map(|(name, seconds)| Some((name, seconds?)));
        list.extend(waits.flat_map(|(name, seconds)| [name.into(), seconds.to_string().into()]));
        let slow =
            slow.map(|Slowness { factor, after }| [("--evict-slow-factor", factor.to_string()), ("--evict-slow-after", after.to_string())]);
        list.extend(slow.into_iter().flatten().flat_map(|(name, value)| [name.into(), value.into()]));
    }
    let flags = [(arguments.resume, "--resume"), (arguments.fresh, "--fresh"), (arguments.delete_existing, "--delete-existing")];
    list.extend(flags.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag.into()));
    if let Some(steps) = arguments.steps {
        list.extend(["--steps".into(), steps.to_string().into()]);
    }
    if arguments.output == Output::Json {
        list.extend(["--output".into(), "json".into()]);
    }
    list
}
