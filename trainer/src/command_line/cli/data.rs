//! Arguments of the `data` commands that work for every source.

use std::{
    num::{NonZero, NonZeroU32, NonZeroU64},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, ValueEnum};
use lcl_trainer_config::Preset;

use super::{KeyArgs, ResultFormat, at_least_one};

/// Which data: shards, or those of a job.
#[derive(Clone, Debug, Args)]
pub struct DataArgs {
    /// Shards: paths, patterns such as `train-{000..011}.tar` or `train-*.tar`, or text files (.txt) with one shard a line.
    #[arg(required_unless_present = "config", value_name = "SHARD")]
    pub shards: Vec<String>,
    /// The data of a job in their place: its configuration (JSON), `-` for standard input. `lcl data COMMAND -f job.yaml` makes it of a
    /// manifest, with --name and --volume as `lcl run` takes them.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "shards", "source", "images", "images_layout", "min_similarity", "max_images", "no_split", "image_keys", "caption_keys", "captions",
        "filter", "key_separator"
    ])]
    pub config: Option<PathBuf>,
    /// What the shards are.
    #[arg(long, value_enum, ignore_case = true, default_value_t = SourceArg::Webdataset)]
    pub source: SourceArg,
    /// Where the images are: the folder of those of MMC4, or tar shards of those of MMC4 or OBELICS, with the same patterns; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub images: Vec<String>,
    /// How the images of MMC4 lie in their folder [default: flat]
    #[arg(long, value_enum, ignore_case = true)]
    pub images_layout: Option<ImagesLayout>,
    /// Least similarity of an image and its sentence in MMC4 [default: 0.24]
    #[arg(long, value_name = "COSINE", allow_negative_numbers = true, value_parser = cosine)]
    pub min_similarity: Option<f64>,
    /// Most images of a document [default: 6]
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZeroU32>)]
    pub max_images: Option<NonZeroU32>,
    /// Take whole pages of OBELICS, not the parts between changes of topic.
    #[arg(long)]
    pub no_split: bool,
    /// What is looked for in shards of pairs.
    #[command(flatten)]
    pub keys: KeyArgs,
    /// Folder for the index files, when they cannot lie beside the shards. What is made goes there and nowhere else.
    #[arg(long, value_name = "DIR")]
    pub index_path: Option<PathBuf>,
    /// Threads that read; one per core when left out.
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZero<usize>>)]
    pub threads: Option<NonZero<usize>>,
}

/// What shards are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceArg {
    /// Image-text pairs in tar shards (layout: Pairs in a manifest).
    #[value(alias = "pairs")]
    Webdataset,
    /// Documents in tar shards, as `data convert` writes them (layout: Documents in a manifest).
    Documents,
    /// MMC4 as it is published: JSON lines, zipped or not.
    Mmc4,
    /// OBELICS as it is published: parquet files.
    Obelics,
}

/// How the images of MMC4 lie in their folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImagesLayout {
    /// FOLDER/NAME.
    Flat,
    /// FOLDER/SHARD/NAME, with the number of the shard.
    #[value(alias = "byshard")]
    ByShard,
}

fn cosine(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (-1.0..=1.0).contains(&value) { Ok(value) } else { Err("must be a cosine: a number in [-1, 1]".to_owned()) }
}

/// `data index`
#[derive(Clone, Debug, Args)]
pub struct IndexArgs {
    /// Which data.
    #[command(flatten)]
    pub data: DataArgs,
    /// Name every shard and every warning, not the first twenty of each.
    #[arg(long)]
    pub all: bool,
}

/// `data check`
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Which data.
    #[command(flatten)]
    pub data: DataArgs,
    /// Also name what is left out without being a fault: images that are gone, documents none of whose images is there, pairs for which a filter has no
    /// value.
    #[arg(long)]
    pub all: bool,
    /// How findings and the result are printed; as JSON one object a line.
    #[arg(short, long, value_enum, default_value_t = ResultFormat::Text)]
    pub output: ResultFormat,
}

/// `data stats`
#[derive(Clone, Debug, Args)]
pub struct StatsArgs {
    /// Which data.
    #[command(flatten)]
    pub data: DataArgs,
    /// Model preset whose context and image size are used [default: the job's model, else tiny]
    #[arg(long, value_name = "PRESET", value_parser = Preset::from_str)]
    pub model: Option<Preset>,
    /// Samples of each source that are looked at, spread evenly.
    #[arg(long, value_name = "N", default_value = "10000", conflicts_with = "all", value_parser = at_least_one::<NonZeroU64>)]
    pub samples: NonZeroU64,
    /// Look at all samples.
    #[arg(long)]
    pub all: bool,
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value_t = ResultFormat::Text)]
    pub output: ResultFormat,
}

/// `data addresses`
#[derive(Clone, Debug, Args)]
pub struct AddressesArgs {
    /// Files of OBELICS, with the same patterns as shards.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// The folder to write to.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Files read at once; one per core when left out.
    #[arg(long, value_name = "N", value_parser = at_least_one::<NonZero<usize>>)]
    pub threads: Option<NonZero<usize>>,
}

/// `data convert`
#[derive(Clone, Debug, Args)]
pub struct ConvertArgs {
    /// Which data: --source mmc4 or obelics, or those of a job.
    #[command(flatten)]
    pub data: DataArgs,
    /// The folder to write to; one that holds a part of the same conversion is completed.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Most documents of a shard.
    #[arg(long, value_name = "N", default_value = "10000", value_parser = at_least_one::<NonZeroU64>)]
    pub documents_per_shard: NonZeroU64,
}
