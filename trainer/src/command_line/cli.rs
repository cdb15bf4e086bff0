//! The command line of `lcl-trainer`. `lcl` passes its own `data`, `export`, `import`, `evaluate` and `report` through to it, and after it
//! has found the run's folder `status`, `resize`, `drain`, `checkpoint` and `stop`.

mod ask;
mod data;

use std::{
    num::{NonZero, NonZeroU32},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, builder::FalseyValueParser};
use lcl_data::image::CropBox;
use lcl_trainer_config::{CaptionChoice, CaptionFrom, Device, KeyKind, KeySeparator, Preset, SIDECAR_KEY, SampleKeys};

pub use self::{
    ask::{AnswerFormat, AskedRun, CheckpointArgs, DrainArgs, ResizeArgs, StatusArgs, StopArgs},
    data::{AddressesArgs, CheckArgs, ConvertArgs, DataArgs, ImagesLayout, IndexArgs, SourceArg, StatsArgs},
};
use crate::command_line::display::Output;

/// Trains LCL vision models and looks at what was trained.
#[derive(Debug, Parser)]
#[command(name = "lcl-trainer", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// How log lines are written (to standard error). Their level is set by `RUST_LOG`.
    #[arg(long, value_enum, default_value_t = LogFormat::Human, global = true, env = "LCL_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train from a configuration; goes on by itself where a checkpoint is.
    Train(TrainArgs),
    /// Train with a coordinator and several workers on this machine.
    Local(LocalArgs),
    /// Start the members of a worker and keep them alive: the program of a pod.
    #[command(after_help = WORKER_HELP)]
    Worker(WorkerArgs),
    /// Train as one member of a group that a coordinator leads.
    Member(MemberArgs),
    /// Say how a job is that `local` runs on this machine.
    Status(StatusArgs),
    /// Give a job that `local` runs on this machine another number of workers.
    Resize(ResizeArgs),
    /// Let a worker leave a job that `local` runs on this machine.
    Drain(DrainArgs),
    /// Have a job that `local` runs on this machine write a checkpoint and go on.
    Checkpoint(CheckpointArgs),
    /// End a job that `local` runs on this machine, after a checkpoint.
    Stop(StopArgs),
    /// Write a checkpoint's weights as one safetensors file.
    Export(ExportArgs),
    /// Begin a run with the weights of a safetensors file.
    Import(ImportArgs),
    /// Index, check, measure, show and convert data.
    #[command(subcommand)]
    Data(DataCommand),
    /// Measure a trained model.
    #[command(subcommand)]
    Evaluate(EvaluateCommand),
    /// Write a run's curves and results as one HTML page.
    Report(ReportArgs),
}

/// `train`
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration (JSON), as `lcl run` or the operator writes it.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Go on from a checkpoint; an error when there is none.
    #[arg(long, conflicts_with = "fresh")]
    pub resume: bool,
    /// Start over; refuses a folder that holds a run.
    #[arg(long)]
    pub fresh: bool,
    /// With --fresh: delete the checkpoints and metrics that are there.
    #[arg(long, requires = "fresh")]
    pub delete_existing: bool,
    /// Steps of the whole run, instead of the configuration's.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// What is shown; by default bars on a terminal, else lines.
    #[arg(long, value_enum)]
    pub output: Option<Output>,
}

/// `local`
#[derive(Debug, Args)]
pub struct LocalArgs {
    /// What is trained.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Workers that train together.
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroU32>)]
    pub workers: NonZeroU32,
    /// Processes that train in each of them.
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one::<NonZeroU32>)]
    pub members_per_worker: NonZeroU32,
    /// Fewest workers to train with [default: one, so that training goes on while any lives]
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one::<NonZeroU32>)]
    pub min_workers: NonZeroU32,
    /// Most workers that `resize` may ask for [default: as many as there are slots in a batch]
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroU32>)]
    pub max_workers: Option<NonZeroU32>,
    /// How long the coordinator waits.
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
}

/// How long the coordinator of a local run waits. The environment's time-outs are for a cluster.
#[derive(Clone, Copy, Debug, Args)]
pub struct TimeoutArgs {
    /// Seconds without a word after which a member is lost; at least 3, since members give a sign of life each second
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = heartbeat_timeout)]
    pub heartbeat_timeout: Duration,
    /// Seconds that a member's training thread may stand still while others wait for it, before it is evicted; longer than any step
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    pub stall_timeout: Duration,
    /// Seconds to wait for all workers at the start before training begins with fewer; survivors go on at once
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub formation_wait: Duration,
    /// Evict a member whose own work in a step takes more than this many times the median's, for as long as --evict-slow-after says; it waits
    /// then until it is needed [default: slow members are only put on record]
    #[arg(long, value_name = "FACTOR")]
    pub evict_slow_factor: Option<f64>,
    /// Seconds for which a member has to be that slow, without a break and in one group
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub evict_slow_after: Duration,
}

/// As the custom resource bounds it: with less a single heartbeat that is late loses a member.
const LEAST_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);

fn heartbeat_timeout(text: &str) -> Result<Duration, String> {
    let timeout = seconds(text)?;
    let is_long_enough = timeout >= LEAST_HEARTBEAT_TIMEOUT;
    is_long_enough.then_some(timeout).ok_or_else(|| format!("must be at least {} s", LEAST_HEARTBEAT_TIMEOUT.as_secs()))
}

const WORKER_HELP: &str = "\
A member that dies is started again, after a pause that grows, until it has died 8 times within 10 minutes. SIGTERM lets all members leave
after their step; a second one ends them at once.

Exit codes: 0 the job is complete, 65 it would fail again (2 in a member counts as that), 75 it may go well next time, 80 all members left
in order, after SIGTERM or because the coordinator said so.";

/// `worker`
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The configuration (JSON), as `lcl run` or the operator writes it.
    #[arg(long, value_name = "FILE", env = "LCL_CONFIG")]
    pub config: PathBuf,
    /// Where the members belong to.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Members of this worker [default: one for each GPU that it sees, one without GPUs]
    #[arg(long, value_name = "N", env = "LCL_MEMBERS_PER_WORKER", value_parser = at_least_one::<NonZeroU32>)]
    pub members_per_worker: Option<NonZeroU32>,
    /// Threads of each member, instead of the configuration's [default: the processors are shared out]
    #[arg(long, value_name = "N", env = "LCL_THREADS", value_parser = at_least_one::<NonZero<usize>>)]
    pub threads: Option<NonZero<usize>>,
    /// Go on from a checkpoint; an error when there is none.
    #[arg(long)]
    pub resume: bool,
    /// Steps of the whole run, instead of the configuration's.
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
    /// What the leading member prints.
    #[arg(long, value_enum, default_value_t = Output::Plain)]
    pub output: Output,
    /// File for the cause of the end, in one line; only written if it is there.
    #[arg(long, value_name = "FILE", env = "LCL_TERMINATION_LOG", default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
    /// Seconds that members have to leave after SIGTERM before they are killed; less than the pod has.
    #[arg(long, value_name = "SECONDS", env = "LCL_DRAIN_TIMEOUT", default_value = "110", value_parser = seconds)]
    pub drain_timeout: Duration,
}

/// Where a member or a worker belongs to.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The coordinator, as host:port.
    #[arg(long, value_name = "HOST:PORT", env = "LCL_COORDINATOR")]
    pub coordinator: String,
    /// How the wire to it is protected.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Seconds between two signs of life to the coordinator; several fit into its --heartbeat-timeout.
    #[arg(long, value_name = "SECONDS", env = "LCL_HEARTBEAT_INTERVAL", default_value = "1", value_parser = seconds)]
    pub heartbeat_interval: Duration,
    /// Seconds without a word after which the coordinator is lost; at least two heartbeats, which it answers.
    #[arg(long, value_name = "SECONDS", env = "LCL_COORDINATOR_TIMEOUT", default_value = "10", value_parser = seconds)]
    pub coordinator_timeout: Duration,
    /// End when standard input does: with the process that started this one.
    #[arg(long)]
    pub ends_with_stdin: bool,
    /// Name of the worker.
    #[arg(long, value_name = "NAME", env = "LCL_WORKER")]
    pub worker: String,
    /// The node it runs on; ranks are ordered by it.
    #[arg(long, value_name = "NAME", env = "LCL_NODE", default_value = "localhost")]
    pub node: String,
    /// Address of this host under which the other members reach it.
    #[arg(long, value_name = "IP", env = "LCL_POD_IP", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// The job's uid: another job with the same checkpoint folder counts its epochs from 1 again [default: the folder counts them].
    #[arg(long, value_name = "UID", env = "LCL_JOB_UID")]
    pub job: Option<String>,
}

/// How the wire to the coordinator is protected: certificates or --insecure.
#[derive(Debug, Args)]
pub struct SecurityArgs {
    /// The certificate to show the coordinator, in PEM.
    #[arg(long, value_name = "FILE", env = "LCL_TLS_CERTIFICATE")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", env = "LCL_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Certificates of the authority that the coordinator's must be of, for the name lcl-coordinator.
    #[arg(long, value_name = "FILE", env = "LCL_TLS_CA")]
    pub tls_ca: Option<PathBuf>,
    /// Talk to it without encryption.
    #[arg(long, env = "LCL_INSECURE", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub insecure: bool,
}

/// A whole number that is not 0.
fn at_least_one<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| "must be a whole number of at least 1".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// `member`
#[derive(Debug, Args)]
pub struct MemberArgs {
    /// What is trained; all members have the same.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Where it belongs to.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Its number within the worker.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub index: u32,
    /// Number of the worker's run, the same for all members that it starts; drawn at random for a member that no worker starts.
    #[arg(long, value_name = "NUMBER")]
    pub run: Option<u64>,
    /// How often that run has started this member.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "run")]
    pub start: u64,
    /// Threads, instead of the configuration's.
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZero<usize>>)]
    pub threads: Option<NonZero<usize>>,
}

/// `export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Where the model is.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The file to write.
    #[arg(short, long, value_name = "FILE.safetensors")]
    pub output: PathBuf,
    /// The vision encoder and its pooling alone.
    #[arg(long)]
    pub vision_only: bool,
}

/// Where a model is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ModelArgs {
    /// A run, as URI or folder: its newest usable checkpoint.
    #[arg(long, value_name = "URI")]
    pub run: Option<String>,
    /// One checkpoint, as URI or folder.
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<String>,
}

/// `import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The weights, under the reference's parameter names.
    #[arg(value_name = "FILE.safetensors")]
    pub file: PathBuf,
    /// The configuration of the run that begins with them; the checkpoint goes to its `checkpoint.uri`.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// `data`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Write the index files of shards, and the tables of stores of images, and say what is in them. Fails when members of pairs have the same
    /// name.
    Index(IndexArgs),
    /// Read everything, decode every image, and name what is bad by cause, shard, member and byte. Fails when anything is.
    Check(CheckArgs),
    /// Count samples and images, measure lengths and sizes, and say how much a model's context cuts off.
    Stats(StatsArgs),
    /// Write documents of MMC4 or OBELICS as tar shards that hold everything they need.
    Convert(ConvertArgs),
    /// Write the addresses of the images of OBELICS as parquet files with a column `url`, for img2dataset to fetch them.
    Addresses(AddressesArgs),
    /// Texts to token ids: a JSON string a line in, a JSON list of ids a line out, the text alone without special tokens.
    Tokenize {
        /// The texts; standard input when left out.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Samples as the model sees them: one of a shard, or a page of some of any source.
    Show(ShowArgs),
}

/// Which files of a sample are looked for, as data.webdataset says it in a manifest.
#[derive(Clone, Debug, Default, Args)]
pub struct KeyArgs {
    /// Endings of images, in the order in which one is chosen [default: jpg,png,jpeg,webp]
    #[arg(long, value_name = "KEY,...", value_delimiter = ',')]
    pub image_keys: Vec<String>,
    /// Endings of captions, in the same way [default: txt]
    #[arg(long, value_name = "KEY,...", value_delimiter = ',')]
    pub caption_keys: Vec<String>,
    /// Where captions come from when a sample may have several: endings, or fields of its json, each with its weight (txt=1,json:caption=2)
    #[arg(long, value_name = "FROM[=N],...", value_delimiter = ',', value_parser = caption_choice, conflicts_with = "caption_keys")]
    pub captions: Vec<CaptionChoice>,
    /// Which samples count: a CEL expression over the fields of their json, such as 'similarity >= 0.28' [default: all]
    #[arg(long, value_name = "EXPRESSION", value_parser = filter)]
    pub filter: Option<String>,
    /// The dot of a file's name that ends the sample's name [default: first-dot]
    #[arg(long, value_enum, ignore_case = true)]
    pub key_separator: Option<SeparatorArg>,
}

/// The dot of a file's name that ends the sample's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeparatorArg {
    /// The first, as the webdataset library has it.
    #[value(alias = "firstdot")]
    FirstDot,
    /// The last.
    #[value(alias = "lastdot")]
    LastDot,
}

/// As in a manifest.
const MOST_WEIGHT: u32 = 1_000_000;

fn caption_choice(text: &str) -> Result<CaptionChoice, String> {
    let (from, weight) = text.rsplit_once('=').unwrap_or((text, "1"));
    let fits = |weight: &u32| (1..=MOST_WEIGHT).contains(weight);
    let weight = weight.parse().ok().filter(fits).ok_or("the weight behind `=` must be a whole number from 1 to 1000000")?;
    let path = from.strip_prefix(SIDECAR_KEY).and_then(|rest| rest.strip_prefix(':'));
    if path.is_some_and(str::is_empty) {
        return Err("a field must stand behind `json:`, as in json:caption".to_owned());
    }
    let from = path.map_or_else(|| CaptionFrom::Key(from.to_owned()), |path| CaptionFrom::Json(path.to_owned()));
    Ok(CaptionChoice { from, weight })
}

fn filter(text: &str) -> Result<String, String> {
    lcl_data::check_filter(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

impl KeyArgs {
    /// These keys, and `otherwise` for what was left out; else the option that cannot be used, and what it has to be. A filter is no part of
    /// `otherwise`: samples that are looked at may have no sidecar.
    pub fn or(&self, otherwise: &SampleKeys) -> Result<SampleKeys, (&'static str, &'static str)> {
        let list = |given: &[String], otherwise: &[String]| if given.is_empty() { otherwise.to_vec() } else { given.to_vec() };
        let keys = SampleKeys {
            image: list(&self.image_keys, &otherwise.image),
            // One place says where captions come from.
            caption: if self.captions.is_empty() { list(&self.caption_keys, &otherwise.caption) } else { SampleKeys::default().caption },
            captions: match (self.captions.is_empty(), self.caption_keys.is_empty()) {
                (false, _) => self.captions.clone(),
                (true, true) => otherwise.captions.clone(),
                (true, false) => Vec::new(),
            },
            filter: self.filter.clone(),
            separator: match self.key_separator {
                None => otherwise.separator,
                Some(SeparatorArg::FirstDot) => KeySeparator::FirstDot,
                Some(SeparatorArg::LastDot) => KeySeparator::LastDot,
            },
        };
        match keys.find_fault() {
            None => Ok(keys),
            Some((KeyKind::Image, rule)) => Err(("--image-keys", rule)),
            Some((KeyKind::Caption, rule)) => Err(("--caption-keys", rule)),
            Some((KeyKind::Captions, rule)) => Err(("--captions", rule)),
            Some((KeyKind::Filter, rule)) => Err(("--filter", rule)),
        }
    }
}

/// `data show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Which data; without --html one shard of pairs.
    #[command(flatten)]
    pub data: DataArgs,
    /// Write an HTML page of samples from --sample on: pictures as the model gets them, and every token by the loss that it is trained with.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["size", "eval", "crop", "output", "png", "safetensors"])]
    pub html: Option<PathBuf>,
    /// Samples of the page.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub count: u64,
    /// Number of the sample, or of the first one of the page.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub sample: u64,
    /// Seed of the random choices [default: the job's, else 0]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Model preset whose token layout and image size are used [default: the job's model, else tiny]
    #[arg(long, value_name = "PRESET", value_parser = Preset::from_str)]
    pub model: Option<Preset>,
    /// Side of the image in pixels, instead of the model's.
    #[arg(long, value_name = "N")]
    pub size: Option<u32>,
    /// The evaluation transform instead of the training one.
    #[arg(long, conflicts_with = "crop")]
    pub eval: bool,
    /// This crop instead of a random one, in pixels.
    #[arg(long, value_name = "TOP,LEFT,HEIGHT,WIDTH", value_parser = parse_crop)]
    pub crop: Option<CropBox>,
    /// Decode JPEGs at a reduced scale where the crop allows it.
    #[arg(long)]
    pub reduced_scale: bool,
    /// Folder for `NAME.png` and `NAME.safetensors`, named after the sample.
    #[arg(short, long, value_name = "DIR", conflicts_with_all = ["png", "safetensors"])]
    pub output: Option<PathBuf>,
    /// The image as PNG.
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// The image as `image`, float32 [3, H, W], normalised.
    #[arg(long, value_name = "FILE")]
    pub safetensors: Option<PathBuf>,
}

/// `evaluate`
#[derive(Debug, Subcommand)]
pub enum EvaluateCommand {
    /// Held-out image to text and text to image recall beside chance.
    Retrieval(RetrievalArgs),
    /// Loss of held-out captions, each after its own image and after another one.
    Generation(HeldOutArgs),
}

/// `evaluate retrieval`
#[derive(Debug, Args)]
pub struct RetrievalArgs {
    /// What is measured on what.
    #[command(flatten)]
    pub held_out: HeldOutArgs,
    /// Examples to show.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub examples: usize,
}

/// A model and held-out pairs: `evaluate generation`, and what `evaluate retrieval` has in common with it.
#[derive(Debug, Args)]
pub struct HeldOutArgs {
    /// Where the model is.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Held-out shards: paths, patterns such as `test-{000..011}.tar` or `test-*.tar`, or text files (.txt) with one shard a line.
    #[arg(long, required = true, num_args = 1.., value_name = "SHARD")]
    pub shards: Vec<String>,
    /// What is looked for in them; what is left out is as in training.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// Folder of the index files, when they cannot lie beside the shards.
    #[arg(long, value_name = "DIR")]
    pub index_path: Option<String>,
    /// What the result is called.
    #[arg(long, value_name = "NAME", default_value = "held-out pairs")]
    pub name: String,
    /// Where the model computes.
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    /// Threads of the computation; one per core when left out.
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZero<usize>>)]
    pub threads: Option<NonZero<usize>>,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = ResultFormat::Text)]
    pub output: ResultFormat,
    /// Also write the result as JSON here; that of `retrieval` is readable by `report --retrieval`.
    #[arg(long, value_name = "FILE.json")]
    pub output_file: Option<PathBuf>,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ResultFormat {
    /// For people.
    Text,
    /// One JSON object; that of `evaluate retrieval` is readable by `report --retrieval`.
    Json,
}

/// Where a model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceArg {
    /// A GPU when libtorch has one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU.
    Cuda,
}

impl From<DeviceArg> for Device {
    fn from(device: DeviceArg) -> Self {
        match device {
            DeviceArg::Auto => Self::Auto,
            DeviceArg::Cpu => Self::Cpu,
            DeviceArg::Cuda => Self::Cuda,
        }
    }
}

/// `report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The run's folder, with its `metrics.jsonl`, or its URI.
    #[arg(value_name = "RUN")]
    pub run: String,
    /// The page to write.
    #[arg(short, long, value_name = "FILE.html")]
    pub output: PathBuf,
    /// Results of `evaluate retrieval --output-file`; may be given several times.
    #[arg(long, value_name = "FILE.json")]
    pub retrieval: Vec<PathBuf>,
}

fn parse_crop(text: &str) -> Result<CropBox, String> {
    let numbers: Vec<u32> = text
        .split(',')
        .map(|part| part.trim().parse().map_err(|error| format!("`{part}` is no whole number of pixels ({error})")))
        .collect::<Result<_, _>>()?;
    match numbers.as_slice() {
        &[top, left, height, width] => Ok(CropBox { top, left, height, width }),
        _ => Err(format!("{} numbers are given, but TOP,LEFT,HEIGHT,WIDTH are four", numbers.len())),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn contradictions_and_omissions_are_refused() {
        let check = |line: &str, expected: Option<&str>| {
            let result = Cli::try_parse_from(line.split(' '));
            match (result, expected) {
                (Ok(_), None) => {}
                (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{line}: {error}"),
                (result, expected) => panic!("{line}: {result:?}, expected {expected:?}"),
            }
        };
        check("lcl-trainer train --config a.json --resume --fresh", Some("cannot be used with"));
        check("lcl-trainer train --config a.json --delete-existing", Some("--fresh"));
        check("lcl-trainer train --config a.json --fresh --delete-existing --steps 7 --output json", None);
        check("lcl-trainer export -o a.safetensors", Some("--run"));
        check("lcl-trainer export --run a --checkpoint b -o a.safetensors", Some("cannot be used with"));
        check("lcl-trainer data show a.tar --crop 1,2,3", Some("3 numbers"));
        check("lcl-trainer data show a.tar --crop 1,2,3,4 --eval", Some("cannot be used with"));
        check("lcl-trainer data show a.tar --model huge", Some("unknown model preset"));
        check("lcl-trainer data index", Some("SHARD"));
        check("lcl-trainer data check --config a.json b.tar", Some("cannot be used with"));
        check("lcl-trainer data check --config - --threads 2 --all -o json", None);
        check("lcl-trainer data stats a.parquet --source obelics --images i/*.tar --images j.tar --no-split --samples 10", None);
        check("lcl-trainer data stats a.tar --samples 10 --all", Some("cannot be used with"));
        check("lcl-trainer data convert a.jsonl --source mmc4 --images i --min-similarity -0.5 -o out", None);
        check("lcl-trainer data convert a.jsonl --source mmc4 --images i --min-similarity 2 -o out", Some("a cosine"));
        check("lcl-trainer data show a.tar --html a.html --png a.png", Some("cannot be used with"));
        check("lcl-trainer data index a.tar --image-keys png,jpg --caption-keys json --key-separator lastDot", None);
        check("lcl-trainer data show a.tar --key-separator middle", Some("first-dot"));
        check("lcl-trainer data show a.tar --captions json:alt=3,txt", None);
        check("lcl-trainer data show a.tar --captions json:", Some("json:caption"));
        check("lcl-trainer data show a.tar --captions txt=1000001", Some("from 1 to 1000000"));
        check("lcl-trainer data stats a.parquet --source obelics --images i/*.tar --max-images 0", Some("a whole number of at least 1"));
        check("lcl-trainer resize runs/a --workers 0", Some("a whole number of at least 1"));
        check("lcl-trainer resize runs/a", Some("--workers"));
        check("lcl-trainer drain runs/a", Some("WORKER"));
        check("lcl-trainer status runs/a -o json", None);
        check("lcl-trainer checkpoint", Some("RUN"));
        check("lcl-trainer stop runs/a -o json", None);
        check("lcl-trainer local --config a.json --workers 2 --heartbeat-timeout 2.9", Some("at least 3 s"));
        check("lcl-trainer local --config a.json --workers 2 --heartbeat-timeout 3 --stall-timeout 60", None);
        check("lcl-trainer local --config a.json --workers 2 --evict-slow-factor 2.5 --evict-slow-after 60", None);
        check("lcl-trainer evaluate retrieval --run a --shards b c --output json --examples 2", None);
        check("lcl-trainer evaluate generation --run a --shards b c --output json", None);
        check("lcl-trainer evaluate generation --run a", Some("--shards"));
    }
}
