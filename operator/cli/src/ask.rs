//! `lcl status`, `lcl resize`, `lcl drain`, `lcl checkpoint` and `lcl stop`: finds the folder of a run on this machine and hands the rest to
//! the trainer, whose launcher listens there.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Error, anyhow, bail};
use lcl_crds::KIND;
use lcl_operator_core::{PathMapping, PodPolicy, validate_under};
use url::Url;

use crate::{
    arguments::{Asking, CheckpointArguments, DrainArguments, Output, ResizeArguments, StatusArguments, StopArguments},
    manifest,
    run::{choose, local_folders, path_errors},
    trainer,
};

pub(crate) fn status(arguments: &StatusArguments) -> Result<ExitCode, Error> {
    hand_over("status", &arguments.run, &arguments.asking, [])
}

pub(crate) fn resize(arguments: &ResizeArguments) -> Result<ExitCode, Error> {
    hand_over("resize", &arguments.run, &arguments.asking, ["--workers".into(), arguments.workers.to_string().into()])
}

pub(crate) fn drain(arguments: &DrainArguments) -> Result<ExitCode, Error> {
    hand_over("drain", &arguments.run, &arguments.asking, [OsString::from(&arguments.worker)])
}

pub(crate) fn checkpoint(arguments: &CheckpointArguments) -> Result<ExitCode, Error> {
    hand_over("checkpoint", &arguments.run, &arguments.asking, [])
}

pub(crate) fn stop(arguments: &StopArguments) -> Result<ExitCode, Error> {
    hand_over("stop", &arguments.run, &arguments.asking, [])
}

/// Becomes the trainer, which asks; returns only when the run's folder is not found or the trainer not started.
fn hand_over<const N: usize>(command: &str, run: &Path, asking: &Asking, more: [OsString; N]) -> Result<ExitCode, Error> {
    let folder = find_folder(command, run, asking)?;
    let output = (asking.output == Output::Json).then(|| ["--output", "json"].map(OsString::from));
    let arguments = [OsString::from(command), folder.into()].into_iter().chain(more);
    trainer::become_trainer(arguments.chain(output.into_iter().flatten()))
}

/// The folder that was named, or the one in which the named manifest has its run.
fn find_folder(command: &str, named: &Path, asking: &Asking) -> Result<PathBuf, Error> {
    if named.is_dir() {
        return Ok(named.to_owned());
    }
    if !named.is_file() && named != Path::new("-") {
        let named = named.display();
        let instead = match command {
            "resize" => format!("`kubectl scale lcljob {named} --replicas=N` gives a job in a cluster another size"),
            "drain" => "a worker of a job in a cluster is drained by `kubectl delete pod`".to_owned(),
            "status" => format!("of a job in a cluster `kubectl describe lcljob {named}` tells"),
            _ => format!("lcl {command} is for runs on this machine alone"),
        };
        bail!("{named} is neither the folder of a run on this machine nor a manifest; {instead}");
    }
    let file = named.display();
    let documents = manifest::read(named)?;
    let (_, document) = choose(&documents, named, asking.name.as_deref())?;
    let job = validate_under(&document.value, &PodPolicy::everything())
        .map_err(|_| anyhow!("{file} holds no valid {KIND}: `lcl validate {file}` says why"))?;
    let paths = PathMapping::on_this_machine(&job, &local_folders(&asking.volumes)?).map_err(path_errors)?;
    let uri = paths.map_uri(&job.spec().checkpoint.uri);
    let parsed = Url::parse(&uri).with_context(|| format!("spec.checkpoint.uri is {uri}"))?;
    match parsed.to_file_path() {
        Ok(folder) if parsed.scheme() == "file" => Ok(folder),
        _ => bail!("the run of {file} is kept at {uri}, which is no folder: name the one that the run printed when it began"),
    }
}
