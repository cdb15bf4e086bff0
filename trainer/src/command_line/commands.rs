//! From parsed arguments to an exit code: each command's work is in its own module, printing is here.

use std::{
    ffi::OsString,
    fs, io,
    io::{IsTerminal, Write},
    num::{NonZero, NonZeroU32},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use clap::ValueEnum;
use indicatif::MultiProgress;
use lcl_checkpoint::StoreError;
use lcl_coordinator::{Security, SecurityError, draw_number};
use lcl_data::{
    Dataset, LoaderOptions, Viewer,
    check::Finding,
    convert::ConvertOptions,
    count_of, fetched,
    index::index_whole,
    may_pass,
    obelics::write_addresses,
    shard::{ListOrigin, find_shards},
    show::{ShowOptions, ShowTransform},
    stats::StatsOptions,
    use_cache,
};
use lcl_protocol::Incarnation;
use lcl_trainer_config::{AugmentationConfig, DataConfig, DataSource, ExitCode, Objective, Preset, SampleKeys};
use rustix::process::{Signal, getpid, kill_process};

use crate::{
    chain,
    command_line::{
        cli::{
            AddressesArgs, AskedRun, CheckArgs, Command, ConvertArgs, DataCommand, EvaluateCommand, ExportArgs, HeldOutArgs, ImportArgs,
            IndexArgs, KeyArgs, LocalArgs, LogFormat, MemberArgs, ModelArgs, PlaceArgs, ResultFormat, RetrievalArgs, SecurityArgs,
            ShowArgs, SourceArg, StatsArgs, TrainArgs, WorkerArgs,
        },
        config_file::{self, ConfigFileError},
        control_commands::{self, AskError},
        data_commands::{self, DataCommandError, ShowFiles},
        data_page,
        display::Output,
        report_command,
    },
    data::{
        data_source::{self, Chosen, SourceError},
        data_tools::{self, Progress},
    },
    evaluation::{
        evaluate::{self, EvaluateError, EvaluateOptions},
        generation,
        trained::{Source, TrainedError},
        weights::{self, WeightsError},
    },
    processes::{
        control::Request,
        fail_point::{self, FailPointError},
        local::{self, LocalError, LocalOptions, count_gpus},
        processors,
        stop::StopRequest,
        supervisor::Outcome,
        worker::{self, WorkerError, WorkerOptions},
    },
    run::{journal::JournalError, run_folder::RunFolderError, state_log},
    training::{self, Begin, MemberOptions, TrainError, TrainOptions},
};

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    /// Signals cannot be taken over.
    #[error("taking over SIGTERM and SIGINT")]
    Signals {
        /// Why.
        source: io::Error,
    },
    /// The faults that a test asks for cannot be understood.
    #[error(transparent)]
    FailPoint(#[from] FailPointError),
    /// The states that a test asks for cannot be written.
    #[error("opening a file in the folder that {} names", state_log::FOLDER)]
    StateLog {
        /// Why.
        source: io::Error,
    },
    /// It is not clear how the wire is protected.
    #[error("the wire to the coordinator")]
    Security(#[from] SecurityError),
    /// The coordinator would be taken for lost between two heartbeats.
    #[error(
        "--coordinator-timeout is {timeout:?}, less than two times --heartbeat-interval, which is {interval:?}: the coordinator answers \
         heartbeats alone, and would be taken for lost between two of them"
    )]
    Heartbeats {
        /// Between two heartbeats.
        interval: Duration,
        /// After how long the coordinator is lost.
        timeout: Duration,
    },
    /// libtorch cannot say how many GPUs there are.
    #[error("counting GPUs")]
    Gpus(#[from] lcl_torch::shim::ShimError),
    /// `local` failed.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// `worker` failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// A run cannot be asked.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// `train` failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// `export` or `import` failed.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Keys that no file's name can have.
    #[error("{option} {rule}")]
    Keys {
        /// The option.
        option: &'static str,
        /// What it has to be.
        rule: &'static str,
    },
    /// It is not clear which data are meant.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Only pairs of one shard are shown one by one.
    #[error(
        "one sample by itself is shown of one shard of pairs: name a page to write with --html FILE for several shards, for documents and for a job's data"
    )]
    Page,
    /// `data` failed.
    #[error(transparent)]
    Data(#[from] DataCommandError),
    /// `evaluate` failed.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// `report` cannot find the run.
    #[error("finding the run")]
    Run(#[from] TrainedError),
    /// `report` cannot read the run's URI.
    #[error("finding the run")]
    Folder(#[from] RunFolderError),
    /// `report` cannot fetch the metrics.
    #[error("fetching metrics.jsonl")]
    Store(#[from] StoreError),
    /// `report` cannot read the metrics.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// `report` finds no metrics.
    #[error("{run} holds no metrics.jsonl: name the folder of a run (its spec.checkpoint.uri)")]
    NoMetrics {
        /// As it was given.
        run: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Read or write.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no retrieval result.
    #[error("{} is no result of `evaluate retrieval --output json`", path.display())]
    Evaluation {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl CommandError {
    /// What the process returns for it.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Train(error) => error.exit_code(),
            Self::Local(error) => error.exit_code(),
            Self::Signals { .. } | Self::Gpus(_) | Self::Store(_) | Self::Worker(_) => ExitCode::Retryable,
            // Storage that does not answer, or a disk without room.
            error if may_pass(error) => ExitCode::Retryable,
            _ => ExitCode::Permanent,
        }
    }
}

/// Runs a command. `multi` is what log lines are drawn around.
pub fn run(command: Command, log_format: LogFormat, multi: MultiProgress) -> Result<ExitCode, CommandError> {
    match command {
        Command::Train(arguments) => train(&arguments, None, multi),
        Command::Local(arguments) => local(&arguments, log_format, multi),
        Command::Worker(arguments) => worker(arguments, log_format),
        Command::Member(arguments) => member(&arguments, multi),
        Command::Status(arguments) => ask(&arguments.run, &Request::Status),
        Command::Resize(arguments) => ask(&arguments.run, &Request::Resize { workers: arguments.workers }),
        Command::Drain(arguments) => ask(&arguments.run, &Request::Drain { worker: arguments.worker }),
        Command::Checkpoint(arguments) => ask(&arguments.run, &Request::Checkpoint),
        Command::Stop(arguments) => ask(&arguments.run, &Request::Stop),
        Command::Export(arguments) => export(&arguments),
        Command::Import(arguments) => import(&arguments),
        Command::Data(DataCommand::Index(arguments)) => index(&arguments),
        Command::Data(DataCommand::Check(arguments)) => check(&arguments, &multi),
        Command::Data(DataCommand::Stats(arguments)) => stats(&arguments, &multi),
        Command::Data(DataCommand::Convert(arguments)) => convert(&arguments, &multi),
        Command::Data(DataCommand::Addresses(arguments)) => addresses(&arguments),
        Command::Data(DataCommand::Tokenize { file }) => tokenize(file.as_deref()),
        Command::Data(DataCommand::Show(arguments)) => show(arguments),
        Command::Evaluate(EvaluateCommand::Retrieval(arguments)) => retrieval(&arguments),
        Command::Evaluate(EvaluateCommand::Generation(arguments)) => generation(&arguments),
        Command::Report(arguments) => report_command::write(&arguments),
    }
}

fn begin_of(arguments: &TrainArgs) -> Begin {
    match (arguments.resume, arguments.fresh) {
        (true, _) => Begin::Resume,
        (_, true) => Begin::Fresh { delete_existing: arguments.delete_existing },
        _ => Begin::Anyhow,
    }
}

fn output_of(arguments: &TrainArgs) -> Output {
    arguments.output.unwrap_or(if io::stderr().is_terminal() { Output::Progress } else { Output::Plain })
}

/// One member for each GPU, unless the user says otherwise.
fn members_of(asked: Option<NonZeroU32>, gpus: usize) -> NonZeroU32 {
    let for_gpus = || NonZeroU32::new(u32::try_from(gpus).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN);
    asked.unwrap_or_else(for_gpus)
}

fn local(arguments: &LocalArgs, log_format: LogFormat, multi: MultiProgress) -> Result<ExitCode, CommandError> {
    let train = &arguments.train;
    let config = config_file::read(&train.config, train.steps)?;
    let stop = StopRequest::from_signals().map_err(|source| CommandError::Signals { source })?;
    let options = LocalOptions {
        config_file: train.config.clone(),
        workers: arguments.workers,
        members_per_worker: arguments.members_per_worker,
        min_workers: arguments.min_workers,
        max_workers: arguments.max_workers,
        begin: begin_of(train),
        timeouts: arguments.timeouts,
        threads: config.runtime.threads,
        passed_on: passed_on(train.steps, train.resume),
        output: output_of(train),
        log_format,
        multi,
        stop,
    };
    Ok(local::run(&config, &options)?)
}

/// Arguments that are every member's.
fn passed_on(steps: Option<u64>, resume: bool) -> Vec<OsString> {
    let steps = steps.into_iter().flat_map(|steps| ["--steps".into(), steps.to_string().into()]);
    steps.chain(resume.then(|| "--resume".into())).collect()
}

fn worker(arguments: WorkerArgs, log_format: LogFormat) -> Result<ExitCode, CommandError> {
    let termination_log = arguments.termination_log.clone();
    let outcome = supervise_members(arguments, log_format);
    worker::write_cause(&termination_log, &outcome.as_ref().map_or_else(|error| chain(error), |outcome| outcome.cause.clone()));
    Ok(outcome?.code)
}

fn supervise_members(arguments: WorkerArgs, log_format: LogFormat) -> Result<Outcome, CommandError> {
    // Before anything can go wrong: as process 1 this one is sent no signal that it does not take over.
    let stop = StopRequest::from_signals().map_err(|source| CommandError::Signals { source })?;
    let security = enter(&arguments.place)?;
    let config = config_file::read(&arguments.config, arguments.steps)?;
    // Where it is said, libtorch is not loaded for it.
    let gpus = if arguments.members_per_worker.is_none() { count_gpus(config.runtime.device)? } else { 0 };
    let members = members_of(arguments.members_per_worker, gpus);
    let share = || processors::share(thread::available_parallelism().map_or(1, NonZero::get), members.get());
    let mut passed_on = passed_on(arguments.steps, arguments.resume);
    if let Some(output) = arguments.output.to_possible_value() {
        passed_on.extend(["--output".into(), output.get_name().into()]);
    }
    let PlaceArgs { coordinator, worker, node, host, heartbeat_interval, coordinator_timeout, job, .. } = arguments.place;
    passed_on.extend(job.into_iter().flat_map(|job| [OsString::from("--job"), job.into()]));
    let options = WorkerOptions {
        config_file: arguments.config,
        coordinator,
        security,
        heartbeat_interval,
        coordinator_timeout,
        name: worker,
        members,
        node,
        host,
        threads: arguments.threads.map(NonZero::get).or(config.runtime.threads).or_else(share),
        passed_on,
        log_format,
        drain_timeout: arguments.drain_timeout,
        stop,
    };
    Ok(worker::run(&options)?)
}

/// What holds for every process that talks to a coordinator.
fn enter(place: &PlaceArgs) -> Result<Security, CommandError> {
    let SecurityArgs { insecure, tls_certificate, tls_key, tls_ca } = &place.security;
    let security = Security::choose(*insecure, tls_certificate.clone(), tls_key.clone(), tls_ca.clone())?;
    let (interval, timeout) = (place.heartbeat_interval, place.coordinator_timeout);
    if interval.is_zero() || timeout < 2 * interval {
        return Err(CommandError::Heartbeats { interval, timeout });
    }
    if place.ends_with_stdin {
        end_with_stdin()?;
    }
    Ok(security)
}

/// Ends this process as soon as standard input does: the pipe to the process that started it is gone.
fn end_with_stdin() -> Result<(), CommandError> {
    let watch = || {
        // An error means that there is no more to come either.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        tracing::error!("the process that started this one is gone");
        // Not by `exit`: that runs libtorch's destructors beside its threads. Nobody is there to read the code.
        let _ = kill_process(getpid(), Signal::KILL);
    };
    let thread = thread::Builder::new().name("parent".to_owned()).spawn(watch);
    thread.map(drop).map_err(|source| CommandError::Signals { source })
}

fn member(arguments: &MemberArgs, multi: MultiProgress) -> Result<ExitCode, CommandError> {
    let place = &arguments.place;
    let name = format!("{}/{}", place.worker, arguments.index);
    fail_point::arm(&name)?;
    state_log::open(&name).map_err(|source| CommandError::StateLog { source })?;
    let member = MemberOptions {
        security: enter(place)?,
        heartbeat_interval: place.heartbeat_interval,
        coordinator_timeout: place.coordinator_timeout,
        coordinator: place.coordinator.clone(),
        worker: place.worker.clone(),
        index: arguments.index,
        incarnation: Incarnation { run: arguments.run.unwrap_or_else(draw_number), start: arguments.start },
        node: place.node.clone(),
        host: place.host,
        job: place.job.clone(),
    };
    train(&arguments.train, Some((member, arguments.threads)), multi)
}

/// Alone, or as a member of a group.
fn train(
    arguments: &TrainArgs,
    member: Option<(MemberOptions, Option<NonZero<usize>>)>,
    multi: MultiProgress,
) -> Result<ExitCode, CommandError> {
    let mut config = config_file::read(&arguments.config, arguments.steps)?;
    let (begin, output) = (begin_of(arguments), output_of(arguments));
    let stop = StopRequest::from_signals().map_err(|source| CommandError::Signals { source })?;
    let options = TrainOptions { begin, output, stop, multi };
    Ok(match member {
        None => {
            fail_point::arm("alone")?;
            state_log::open("alone").map_err(|source| CommandError::StateLog { source })?;
            training::train(config, options)?
        }
        Some((member, threads)) => {
            config.runtime.threads = threads.map(NonZero::get).or(config.runtime.threads);
            training::train_as_member(config, options, member)?
        }
    })
}

fn ask(run: &AskedRun, request: &Request) -> Result<ExitCode, CommandError> {
    say(&control_commands::execute(run, request)?);
    Ok(ExitCode::Success)
}

fn source(model: &ModelArgs) -> Source {
    match &model.checkpoint {
        Some(checkpoint) => Source::Checkpoint(checkpoint.clone()),
        // The parser takes care that one of the two is there.
        None => Source::Run(model.run.clone().unwrap_or_default()),
    }
}

fn export(arguments: &ExportArgs) -> Result<ExitCode, CommandError> {
    let exported = weights::export(&source(&arguments.model), &arguments.output, arguments.vision_only)?;
    say(&format!(
        "{}: {} tensors, {:.2} M parameters after {} steps",
        arguments.output.display(),
        exported.tensors,
        exported.parameters as f64 / 1e6,
        exported.completed_steps
    ));
    Ok(ExitCode::Success)
}

fn import(arguments: &ImportArgs) -> Result<ExitCode, CommandError> {
    let config = config_file::read(&arguments.config, None)?;
    weights::import(&arguments.file, &config)?;
    say(&format!("{} holds the weights of {} as step 0", config.checkpoint.uri, arguments.file.display()));
    Ok(ExitCode::Success)
}

/// The keys that were asked for, and `otherwise` for those that were not.
fn sample_keys(asked: &KeyArgs, otherwise: &SampleKeys) -> Result<SampleKeys, CommandError> {
    asked.or(otherwise).map_err(|(option, rule)| CommandError::Keys { option, rule })
}

fn index(arguments: &IndexArgs) -> Result<ExitCode, CommandError> {
    let chosen = data_source::choose(&arguments.data, None)?;
    let most = if arguments.all { usize::MAX } else { data_tools::SHARDS_LISTED };
    let folder = chosen.data.index_path.as_ref().map(Path::new);
    let threads = NonZero::new(chosen.data.threads).unwrap_or(NonZero::<usize>::MIN);
    let (mut doubled, mut bad) = (0, Vec::new());
    use_cache(&chosen.data.cache);
    for (name, source) in data_tools::sources(&chosen.data) {
        let DataSource::Webdataset { shards, keys } = source else { continue };
        let mut indexed = data_commands::index(&name, &shards, folder, &keys, threads)?;
        let reports = &indexed.reports;
        let listed = data_commands::indexes_in_words(reports, most);
        if !listed.is_empty() {
            say(listed.trim_end());
        }
        // Without some of its shards it would be one of another data set.
        if indexed.bad.is_empty() {
            let paths: Vec<PathBuf> = reports.iter().map(|report| report.shard.clone()).collect();
            let whole = index_whole(&paths, chosen.data.index_path.as_deref(), &keys, threads);
            if let Some(whole) = whole.map_err(DataCommandError::from)? {
                let [shards, samples] =
                    [(whole.shards as u64, "shard"), (whole.samples, "sample")].map(|(count, noun)| count_of(count, noun));
                say(&format!("{}: index of {shards}, {samples}", whole.index.display()));
            }
        }
        if !reports.is_empty() {
            let summary = data_commands::summarize(reports, &keys, most);
            say(summary.text.trim_end());
            doubled += summary.doubled;
        }
        bad.append(&mut indexed.bad);
    }
    if chosen.data.source.has_documents() {
        let text = data_tools::index_documents(&chosen, most, &mut bad).map_err(DataCommandError::from)?;
        if !text.is_empty() {
            say(text.trim_end());
        }
    }
    if !bad.is_empty() {
        say(&data_tools::bad_in_words(&bad));
    }
    let fetched = fetched();
    if fetched.requests > 0 {
        say(&format!("fetched: {} MB with {} requests", fetched.bytes / 1_000_000, fetched.requests));
    }
    Ok(if doubled > 0 || !bad.is_empty() { ExitCode::Permanent } else { ExitCode::Success })
}

fn check(arguments: &CheckArgs, multi: &MultiProgress) -> Result<ExitCode, CommandError> {
    let chosen = data_source::choose(&arguments.data, None)?;
    let progress = Progress::new(multi);
    let is_json = arguments.output == ResultFormat::Json;
    let found = |finding: &Finding| {
        if finding.bad || arguments.all {
            let text = if is_json { event("finding", finding) } else { data_tools::finding_in_words(finding) };
            progress.beside(|| say(&text));
        }
    };
    let report = lcl_data::check::check(&chosen.data, chosen.origin, arguments.all, found, |done, of| progress.set(done, of));
    progress.finish();
    let report = report.map_err(DataCommandError::from)?;
    say(&if is_json { event("checked", &report) } else { data_tools::checked_in_words(&report) });
    Ok(if report.bad.is_empty() { ExitCode::Success } else { ExitCode::Permanent })
}

/// A record on a line of its own, told apart by its `event`.
fn event(name: &str, record: &impl serde::Serialize) -> String {
    // Numbers and strings with string keys: JSON can express all of it.
    let mut value = serde_json::to_value(record).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("event".to_owned(), name.into());
    }
    value.to_string()
}

fn stats(arguments: &StatsArgs, multi: &MultiProgress) -> Result<ExitCode, CommandError> {
    let Chosen { data, model, seed, origin } = data_source::choose(&arguments.data, arguments.model)?;
    let dataset = Dataset::open_from(&data, origin).map_err(DataCommandError::from)?;
    let most = (!arguments.all).then_some(arguments.samples);
    let options = StatsOptions { model: model.shape, objective: model.objective, seed, most };
    let progress = Progress::new(multi);
    let found = lcl_data::stats::stats(&dataset, &data, &options, |done, of| progress.set(done, of));
    progress.finish();
    let found = found.map_err(DataCommandError::from)?;
    match arguments.output {
        ResultFormat::Text => say(data_tools::stats_in_words(&found).trim_end()),
        ResultFormat::Json => say(&serde_json::to_string_pretty(&found).unwrap_or_default()),
    }
    Ok(ExitCode::Success)
}

fn convert(arguments: &ConvertArgs, multi: &MultiProgress) -> Result<ExitCode, CommandError> {
    let chosen = data_source::choose(&arguments.data, None)?;
    if arguments.output.to_str().is_some_and(|output| output.contains("://")) {
        let rule = "must be a folder: copy the shards to a bucket when they are written";
        return Err(SourceError::Option { option: "--output", rule }.into());
    }
    let options = ConvertOptions { output: arguments.output.clone(), documents_per_shard: arguments.documents_per_shard };
    let progress = Progress::new(multi);
    let report = lcl_data::convert::convert(&chosen.data, chosen.origin, &options, |done, of| progress.set(done, of));
    progress.finish();
    say(&data_tools::converted_in_words(&report.map_err(DataCommandError::from)?, &arguments.output));
    Ok(ExitCode::Success)
}

fn addresses(arguments: &AddressesArgs) -> Result<ExitCode, CommandError> {
    let threads = arguments.threads.or_else(|| thread::available_parallelism().ok()).unwrap_or(NonZero::<usize>::MIN);
    let files = find_shards(&arguments.files, ListOrigin::Arguments, threads).map_err(DataCommandError::from)?;
    let count = write_addresses(&files, &arguments.output, threads).map_err(DataCommandError::from)?;
    let (addresses, files) =
        (if count == 1 { "1 address".to_owned() } else { format!("{count} addresses") }, count_of(files.len() as u64, "file"));
    say(&format!("wrote {addresses} of {files} to {}", arguments.output.display()));
    Ok(ExitCode::Success)
}

/// Writes the page of some samples.
fn show_page(arguments: &ShowArgs, path: &Path) -> Result<ExitCode, CommandError> {
    let Chosen { data, model, seed, origin } = data_source::choose(&arguments.data, arguments.model)?;
    let data = DataConfig { reduced_scale_decoding: data.reduced_scale_decoding || arguments.reduced_scale, ..data };
    let dataset = Arc::new(Dataset::open_from(&data, origin).map_err(DataCommandError::from)?);
    let options = LoaderOptions {
        model: model.shape.clone(),
        objective: model.objective,
        seed: arguments.seed.unwrap_or(seed),
        global_batch_size: 1,
        slots: (0..1).into(),
        first_step: 0,
        last_step: 1,
    };
    let mut viewer = Viewer::new(&dataset, &data, options).map_err(DataCommandError::from)?;
    let all = dataset.samples_per_pass();
    let end = all.min(arguments.sample.saturating_add(arguments.count)).max(arguments.sample + 1);
    let mut samples = Vec::new();
    for sample in arguments.sample..end {
        samples.push((sample, viewer.view(sample).map_err(DataCommandError::from)?));
    }
    let page = data_page::page("What the model sees", &model, &samples, all).map_err(DataCommandError::from)?;
    fs::write(path, page).map_err(|source| CommandError::File { action: "write", path: path.to_owned(), source })?;
    say(&path.display().to_string());
    Ok(ExitCode::Success)
}

fn tokenize(file: Option<&Path>) -> Result<ExitCode, CommandError> {
    let output = io::stdout().lock();
    let result = match file {
        None => data_commands::tokenize(io::stdin().lock(), output),
        Some(path) => {
            let file = fs::File::open(path).map_err(|source| CommandError::File { action: "read", path: path.to_owned(), source })?;
            data_commands::tokenize(io::BufReader::new(file), output)
        }
    };
    match result {
        Err(error) if error.is_closed_pipe() => Ok(ExitCode::Success),
        result => Ok(result.map(|()| ExitCode::Success)?),
    }
}

fn show(arguments: ShowArgs) -> Result<ExitCode, CommandError> {
    if let Some(path) = &arguments.html {
        return show_page(&arguments, path);
    }
    let (true, [shard]) = (arguments.data.source == SourceArg::Webdataset, arguments.data.shards.as_slice()) else {
        return Err(CommandError::Page);
    };
    let shape = arguments.model.unwrap_or(Preset::Tiny).shape();
    let options = ShowOptions {
        sample: arguments.sample,
        keys: sample_keys(&arguments.data.keys, &SampleKeys::default())?,
        seed: arguments.seed.unwrap_or(0),
        size: arguments.size.unwrap_or_else(|| u32::try_from(shape.vision.image_size).unwrap_or_default()),
        transform: match (arguments.eval, arguments.crop) {
            (true, _) => ShowTransform::Evaluate,
            (_, Some(crop)) => ShowTransform::Crop(crop),
            _ => ShowTransform::Train(AugmentationConfig::default()),
        },
        reduced_scale_decoding: arguments.reduced_scale,
        model: shape,
        // The token layout of the main objective, with the reference's coin for which comes first.
        objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
        image_first_probability: 0.5,
    };
    let files = match arguments.output {
        None => ShowFiles { png: arguments.png, safetensors: arguments.safetensors },
        Some(folder) => {
            fs::create_dir_all(&folder).map_err(|source| CommandError::File { action: "write", path: folder.clone(), source })?;
            let file = |extension: &str| Some(folder.join(format!("sample-{:06}.{extension}", arguments.sample)));
            ShowFiles { png: file("png"), safetensors: file("safetensors") }
        }
    };
    say(data_commands::show_sample(Path::new(shard), &options, &files)?.trim_end());
    Ok(ExitCode::Success)
}

fn retrieval(arguments: &RetrievalArgs) -> Result<ExitCode, CommandError> {
    let evaluation = evaluate::retrieval(&evaluate_options(&arguments.held_out), arguments.examples)?;
    say_result(&arguments.held_out, &evaluation, evaluate::to_text)
}

fn generation(arguments: &HeldOutArgs) -> Result<ExitCode, CommandError> {
    let found = generation::generation(&evaluate_options(arguments))?;
    say_result(arguments, &found, generation::to_text)
}

fn evaluate_options(arguments: &HeldOutArgs) -> EvaluateOptions {
    EvaluateOptions {
        source: source(&arguments.model),
        shards: arguments.shards.clone(),
        keys: arguments.keys.clone(),
        index_path: arguments.index_path.clone(),
        name: arguments.name.clone(),
        device: arguments.device.into(),
        threads: arguments.threads.map(NonZero::get),
    }
}

fn say_result<T: serde::Serialize>(arguments: &HeldOutArgs, result: &T, to_text: impl Fn(&T) -> String) -> Result<ExitCode, CommandError> {
    // Numbers and strings with string keys: JSON can express all of it.
    let json = serde_json::to_string_pretty(result).unwrap_or_default();
    if let Some(path) = &arguments.output_file {
        fs::write(path, &json).map_err(|source| CommandError::File { action: "write", path: path.clone(), source })?;
    }
    match arguments.output {
        ResultFormat::Text => say(to_text(result).trim_end()),
        ResultFormat::Json => say(&json),
    }
    Ok(ExitCode::Success)
}

/// A reader that went away is no failure.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_a_member_for_each_gpu_unless_it_is_said_otherwise() {
        let check = |asked: Option<u32>, gpus, expected| {
            assert_eq!(members_of(asked.and_then(NonZeroU32::new), gpus).get(), expected, "{asked:?}, {gpus} GPUs");
        };
        check(None, 0, 1);
        check(None, 1, 1);
        check(None, 8, 8);
        check(Some(2), 8, 2);
        check(Some(2), 0, 2);
    }
}
