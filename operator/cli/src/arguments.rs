//! The command line.

use std::{
    ffi::OsString,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use lcl_operator_core::Allowance;

const EXAMPLES: &str = "\
Examples:
  lcl validate job.yaml                    check a manifest as a cluster would, without one
  lcl run job.yaml --local                 train on this machine; the same command goes on after a stop
  lcl status runs/job                      how a run on this machine is, by its folder
  lcl resize runs/job --workers 3          give it another number of workers
  lcl stop runs/job                        save and end it
  lcl data show train-000.tar --sample 3   look at what the model sees
  lcl data check -f job.yaml               read all data of a manifest and say what is wrong with them
  lcl export --help                        options of a command that lcl-trainer executes";

/// Trains LCL vision models from one manifest, on this machine or in a cluster.
#[derive(Debug, Parser)]
#[command(name = "lcl", version, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check manifests against the schema and the rules of a job, without a cluster
    Validate(ValidateArguments),
    /// Run a job's manifest on this machine
    Run(RunArguments),
    /// Say how a run on this machine is: members, generation, step, what happened
    Status(StatusArguments),
    /// Give a run on this machine another number of workers
    Resize(ResizeArguments),
    /// Let a worker leave a run on this machine
    Drain(DrainArguments),
    /// Have a run on this machine write a checkpoint and go on
    Checkpoint(CheckpointArguments),
    /// End a run on this machine, after a checkpoint
    Stop(StopArguments),
    /// Index, check, measure, show and convert data, of shards or of a manifest's (lcl-trainer data)
    #[command(disable_help_flag = true)]
    Data(PassedOn),
    /// Write a checkpoint's weights as one file (lcl-trainer export)
    #[command(disable_help_flag = true)]
    Export(PassedOn),
    /// Make a checkpoint from weights in one file (lcl-trainer import)
    #[command(disable_help_flag = true)]
    Import(PassedOn),
    /// Measure a model (lcl-trainer evaluate)
    #[command(disable_help_flag = true)]
    Evaluate(PassedOn),
    /// Draw a run's curves (lcl-trainer report)
    #[command(disable_help_flag = true)]
    Report(PassedOn),
    /// Print a completion script for a shell
    Completion {
        /// The shell it is for
        shell: Shell,
    },
}

const VALIDATE_HELP: &str = "\
Each broken rule is printed on a line of its own with the place in the file, the field, its value and what it has to be. Objects of other
kinds in the same file are passed over. Exit code 0: all jobs are valid; 1: at least one is not, or a file cannot be read.

Examples:
  lcl validate job.yaml
  kustomize build overlays/eu | lcl validate -
  lcl validate --allow HostPath examples/emoji.yaml
  lcl validate -o json jobs/*.yaml";

#[derive(Debug, Args)]
#[command(after_help = VALIDATE_HELP)]
pub(crate) struct ValidateArguments {
    /// Manifests, each with one or several YAML documents; `-` reads standard input
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// What the cluster's operator allows templates to do, separated by commas: `HostPath`, `HostNamespaces`, `Privileged`, `Root`,
    /// `ApiTokens` (its chart's values `security.allow…`)
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    pub(crate) allow: Vec<Allowance>,
    /// How the result is printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

const RUN_HELP: &str = "\
Where files lie: a path in the manifest below a volume mount of the container `worker` is looked up in the volume's local folder, which is
that given by --volume, else a hostPath volume's own path. Other paths are used as they are.

What happens to the run's folder (spec.checkpoint.uri): if it holds checkpoints of this job, the run goes on from the newest one; those of
another job, or a changed model, batch, seed or data, are refused by name. --resume is refused when there is nothing to go on from.
--fresh starts over, and is refused when the folder holds a run, unless --delete-existing says that this run may be deleted: its
checkpoints, metrics and event files, and nothing else in the folder.

What runs: one process for a single member; else, and with an elastic.maxWorkers above one, lcl-coordinator, a process for each of
workers.replicas, and their members. Whatever of these is killed is started again; with spec.elastic the others train on meanwhile. All end
with this program. From another terminal `lcl status`, `lcl resize`, `lcl drain`, `lcl checkpoint` and
`lcl stop` talk to it.

With -o json every record is one object a line, told apart by its `event`: started, step, checkpoint_committed, checkpoint_failed, ended; of
several processes also member_joined, member_lost, member_left, member_slow, group_formed, group_adopted, group_broken,
recovered and went_back, each with its `time`.

The trainer is lcl-trainer: beside this program, else in PATH; LCL_TRAINER names another. lcl-coordinator lies beside it. Its exit code is passed on: 0 done, 65 will fail
again (also: manifest refused), 75 may go well next time, 80 stopped by a signal after a checkpoint.

Examples:
  lcl run examples/emoji.yaml --local --volume data=./data --volume runs=./runs
  lcl run job.yaml --local --steps 100 -o json
  lcl run job.yaml --local --fresh --delete-existing";

#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct RunArguments {
    /// The manifest; `-` reads standard input
    pub(crate) file: PathBuf,
    /// Run on this machine; needs no Kubernetes
    #[arg(long)]
    pub(crate) local: bool,
    /// Which job, when the manifest holds several
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Fail when there is no checkpoint to go on from
    #[arg(long, conflicts_with = "fresh")]
    pub(crate) resume: bool,
    /// Start over
    #[arg(long)]
    pub(crate) fresh: bool,
    /// With --fresh: delete the run that is in the folder
    #[arg(long, requires = "fresh")]
    pub(crate) delete_existing: bool,
    /// Steps of the whole job, in place of spec.optimization.steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steps: Option<u64>,
    /// Local folder of a volume of the manifest; may be repeated
    #[arg(long = "volume", value_name = "NAME=DIR", value_parser = parse_volume)]
    pub(crate) volumes: Vec<(String, PathBuf)>,
    /// Processor threads of the trainer; default: one per core
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Where the model lives
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub(crate) device: Device,
    /// How progress, or what is wrong with the manifest, is printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

const RUN_NAMED: &str = "\
RUN is the run's folder (spec.checkpoint.uri, or for one in an object store the folder that the run printed when it began), or the manifest
that it was started with; then with the same --volume options. The user who started the run may ask, on the same machine. A job in a cluster
is looked at and resized with kubectl: `kubectl get lcljob`, `kubectl scale lcljob`.";

const STATUS_HELP: &str = "\
With -o json one object: job, steps, pid, coordinator, group (phase, generation, members, step, last_checkpoint, of a mixture
sources), size (wanted, min, max),
workers (name, state, pid, members with rank and step) and history (time and event, with fields of its own for each kind of event).

Examples:
  lcl status runs/job
  lcl status job.yaml --volume runs=./runs -o json";

/// `status`
#[derive(Debug, Args)]
#[command(before_help = RUN_NAMED, after_help = STATUS_HELP)]
pub(crate) struct StatusArguments {
    /// The run's folder or manifest
    #[arg(default_value = ".")]
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

const RESIZE_HELP: &str = "\
More workers: those that are missing are started, and let in after the step that is under way when they are ready. Fewer: those with the
highest numbers leave after their step. The others stay the processes they are, and the global batch stays the same. On one machine more
workers share the same processors: those that start from then on compute with as many threads as there are processors for each member that is
wanted, those that run keep theirs (optimization.exact.threads and --threads hold for all). Allowed is what spec.elastic says; without it any
number for which the batch has slots. It lasts until the run ends. The answer comes when it is accepted; `lcl status` tells when it is done.
Repeated, it changes nothing.

Examples:
  lcl resize runs/job --workers 3";

/// `resize`
#[derive(Debug, Args)]
#[command(before_help = RUN_NAMED, after_help = RESIZE_HELP)]
pub(crate) struct ResizeArguments {
    /// The run's folder or manifest
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) asking: Asking,
    /// Workers from now on
    #[arg(long, value_name = "N")]
    pub(crate) workers: NonZeroU32,
}

const DRAIN_HELP: &str = "\
The worker's members leave after the step under way; that counts as no failure. In a cluster a worker whose node is drained is replaced on
another one. Here there is no other place, so it is not replaced: one worker less is wanted until `lcl resize` asks for more.

Examples:
  lcl drain runs/job job-w-1";

/// `drain`
#[derive(Debug, Args)]
#[command(before_help = RUN_NAMED, after_help = DRAIN_HELP)]
pub(crate) struct DrainArguments {
    /// The run's folder or manifest
    pub(crate) run: PathBuf,
    /// The worker, as `lcl status` calls it
    pub(crate) worker: String,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

const CHECKPOINT_HELP: &str = "\
Besides those of spec.checkpoint.everySteps one is written of the step that is under way or one of the next, and training goes on. The answer
comes when it is accepted; `lcl status` tells when it is there. If the last completed step is saved already nothing is written.

Examples:
  lcl checkpoint runs/job";

/// `checkpoint`
#[derive(Debug, Args)]
#[command(before_help = RUN_NAMED, after_help = CHECKPOINT_HELP)]
pub(crate) struct CheckpointArguments {
    /// The run's folder or manifest
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

const STOP_HELP: &str = "\
As Ctrl-C in the terminal of the run: after the step under way a checkpoint is written, and all processes end; `lcl run` returns 80. The
command that started the run goes on with it. The answer comes when it is accepted; the run has ended when `lcl status` finds none. Repeated,
it changes nothing. A Ctrl-C after it ends the run at once.

Examples:
  lcl stop runs/job";

/// `stop`
#[derive(Debug, Args)]
#[command(before_help = RUN_NAMED, after_help = STOP_HELP)]
pub(crate) struct StopArguments {
    /// The run's folder or manifest
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) asking: Asking,
}

/// How the folder of a manifest's run is found, and how the answer is printed.
#[derive(Debug, Args)]
pub(crate) struct Asking {
    /// Which job, when the manifest holds several
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Local folder of a volume of the manifest; may be repeated
    #[arg(long = "volume", value_name = "NAME=DIR", value_parser = parse_volume)]
    pub(crate) volumes: Vec<(String, PathBuf)>,
    /// How the answer is printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// Arguments that `lcl-trainer` understands.
#[derive(Debug, Args)]
pub(crate) struct PassedOn {
    /// Passed on as they are; try --help
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub(crate) arguments: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// A GPU for every member when there are so many, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// A GPU for every member; an error when there are fewer
    Cuda,
}

impl From<Device> for lcl_trainer_config::Device {
    fn from(device: Device) -> Self {
        match device {
            Device::Auto => Self::Auto,
            Device::Cpu => Self::Cpu,
            Device::Cuda => Self::Cuda,
        }
    }
}

pub(crate) fn parse_volume(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => Ok((name.to_owned(), PathBuf::from(folder))),
        _ => Err("must be NAME=DIR, such as data=./data".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    /// The trainer's messages name these for settings that no manifest has.
    #[test]
    fn options_that_the_trainer_names_are_those_of_a_run() {
        let command = Arguments::command();
        let run = command.find_subcommand("run").unwrap();
        for field in ["runtime.device", "runtime.threads"] {
            let lcl_trainer_config::UserField::Argument(option) = lcl_trainer_config::UserField::of(field) else { panic!("{field}") };
            assert!(run.get_arguments().any(|argument| argument.get_long() == option.strip_prefix("--")), "{option}");
        }
    }

    #[test]
    fn a_volume_is_a_name_and_a_folder() {
        assert_eq!(parse_volume("data=/a=b"), Ok(("data".to_owned(), PathBuf::from("/a=b"))));
        for wrong in ["data", "=x", "data=", ""] {
            assert!(parse_volume(wrong).is_err(), "{wrong}");
        }
    }
}
