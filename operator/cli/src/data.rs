//! `lcl data`: hands everything to the trainer's tools, and makes of a manifest that is named with `-f` the configuration that they read.
//!
//! Comes in: the arguments as they were typed. Goes out: the trainer, with `-f FILE`, `--name` and `--volume` replaced by `--config -` and the
//! rendered configuration on its standard input. All other arguments are the trainer's and pass as they are.

use std::{
    ffi::{OsStr, OsString},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use anyhow::{Context, Error, bail};
use lcl_operator_core::{PathMapping, PodPolicy, Surroundings, render_trainer_config, validate_under};

use crate::{
    arguments::{self, Output, PassedOn},
    manifest,
    report::{self, Finding},
    run::{choose, local_folders, path_errors},
    trainer,
};

/// The options of a manifest, taken out of the others.
#[derive(Debug, Default, PartialEq, Eq)]
struct Taken {
    file: Option<PathBuf>,
    name: Option<String>,
    volumes: Vec<(String, PathBuf)>,
    /// The rest, in its order.
    others: Vec<OsString>,
}

/// Becomes the trainer; returns only when that fails or the manifest cannot be used.
pub(crate) fn execute(passed_on: PassedOn) -> Result<ExitCode, Error> {
    let Taken { file, name, volumes, others } = take(passed_on.arguments)?;
    let begin = std::iter::once(OsString::from("data")).chain(others);
    let Some(file) = file else {
        if name.is_some() || !volumes.is_empty() {
            bail!("--name and --volume belong to a manifest: name it with -f");
        }
        return trainer::become_trainer(begin);
    };
    let documents = manifest::read(&file)?;
    let (position, document) = choose(&documents, &file, name.as_deref())?;
    let job = match validate_under(&document.value, &PodPolicy::everything()) {
        Ok(job) => job,
        Err(errors) => {
            report::print(&[Finding::of_job(&file, (position, document), Some(&errors))], Output::Text)?;
            return Ok(lcl_trainer_config::ExitCode::Permanent.into());
        }
    };
    let paths = PathMapping::of_data_on_this_machine(&job, &local_folders(&volumes)?).map_err(path_errors)?;
    let data_threads = thread::available_parallelism().map_or(1, usize::from);
    let surroundings = Surroundings { paths, device: lcl_trainer_config::Device::Cpu, threads: None, cache_folder: None, data_threads };
    let config = render_trainer_config(&job, &surroundings);
    // Without a name: nothing is left behind.
    let mut input = tempfile::tempfile().context("making a temporary file for the configuration")?;
    input.write_all(&serde_json::to_vec(&config)?)?;
    input.seek(SeekFrom::Start(0))?;
    trainer::become_trainer_with(begin.chain(["--config".into(), "-".into()]), input)
}

/// Takes the options of a manifest out of the arguments.
fn take(arguments: Vec<OsString>) -> Result<Taken, Error> {
    let mut taken = Taken::default();
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            taken.others.push(argument);
            taken.others.extend(rest.by_ref());
            break;
        }
        let Some((option, value)) = option_of(&argument) else {
            taken.others.push(argument);
            continue;
        };
        let Some(value) = value.or_else(|| rest.next()) else { bail!("{option} needs a value") };
        let text = || value.to_str().map(str::to_owned).with_context(|| format!("{option} is not Unicode"));
        match option {
            "--name" => taken.name = Some(text()?),
            "--volume" => taken.volumes.push(arguments::parse_volume(&text()?).map_err(|error| Error::msg(format!("--volume {error}")))?),
            _ if taken.file.is_some() => bail!("-f is given twice: one manifest is looked at at a time"),
            _ => taken.file = Some(Path::new(&value).to_owned()),
        }
    }
    Ok(taken)
}

/// Which option of a manifest an argument is, with the value that is written to it.
fn option_of(argument: &OsStr) -> Option<(&'static str, Option<OsString>)> {
    let text = argument.to_str()?;
    for option in ["--file", "--name", "--volume"] {
        if let Some(rest) = text.strip_prefix(option) {
            if rest.is_empty() {
                return Some((option, None));
            }
            if let Some(value) = rest.strip_prefix('=') {
                return Some((option, Some(value.into())));
            }
        }
    }
    let rest = text.strip_prefix("-f")?;
    Some(("-f", (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &str) -> Result<Taken, Error> {
        take(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn options_of_a_manifest_are_taken_out_and_all_others_pass() {
        let others = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let all = taken("check -f job.yaml --threads 2 --name a --volume data=./d --volume=runs=r --all").expect("sound arguments");
        let volumes = [("data", "./d"), ("runs", "r")].map(|(name, folder)| (name.to_owned(), PathBuf::from(folder)));
        let expected = Taken {
            file: Some("job.yaml".into()),
            name: Some("a".to_owned()),
            volumes: volumes.into(),
            others: others("check --threads 2 --all"),
        };
        assert_eq!(all, expected);
        for line in ["stats --file=job.yaml", "stats -fjob.yaml", "stats -f=job.yaml", "stats --file job.yaml"] {
            let found = taken(line).expect("sound arguments");
            assert_eq!((found.file, found.others), (Some("job.yaml".into()), others("stats")), "{line}");
        }
        let plain = "show a.tar --sample 3 -o out --files x";
        assert_eq!(taken(plain).expect("sound arguments"), Taken { others: others(plain), ..Taken::default() });
        // Behind `--` everything is a shard.
        assert_eq!(taken("index -- -f").expect("sound arguments").others, others("index -- -f"));
    }

    #[test]
    fn what_is_wrong_with_them_is_said() {
        for (line, words) in [("check -f", "-f needs a value"), ("check -f a -f b", "twice"), ("check -f a --volume b", "NAME=DIR")] {
            let message = taken(line).expect_err(line).to_string();
            assert!(message.contains(words), "{line}: {message}");
        }
    }
}
