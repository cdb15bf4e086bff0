//! How it is trained: data, optimization, checkpoints and the process's surroundings.

use serde::{Deserialize, Serialize};

use crate::{keys::SampleKeys, model::ModelConfig};

/// Everything a training process must know that does not change while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainerConfig {
    /// [`crate::FORMAT_VERSION`] of the writer.
    pub version: u32,
    /// Name of the job, for logs and file names.
    pub job: String,
    /// What is trained.
    pub model: ModelConfig,
    /// On what.
    pub data: DataConfig,
    /// By which rule.
    pub optimization: OptimizationConfig,
    /// Where and when state is saved.
    pub checkpoint: CheckpointConfig,
    /// The process's surroundings. May differ between two runs of the same job without changing the result's meaning.
    pub runtime: RuntimeConfig,
}

/// Where samples come from and how one becomes a sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataConfig {
    /// The data set.
    pub source: DataSource,
    /// Folder for shard indexes when they cannot lie beside the shards; `None`: beside them.
    pub index_path: Option<String>,
    /// Where bytes of object stores are kept, and how many.
    #[serde(default)]
    pub cache: CacheConfig,
    /// Probability that the image precedes its caption.
    pub image_first_probability: f64,
    /// Random crop of the training transform.
    pub augmentation: AugmentationConfig,
    /// Decode JPEGs at a reduced scale where the crop allows it.
    pub reduced_scale_decoding: bool,
    /// In which order the samples of a pass come. What an earlier version wrote has the default.
    #[serde(default)]
    pub shuffle: ShuffleConfig,
    /// Most of the last records that may be of no use, as a part of them; more are an error.
    #[serde(default = "default_max_bad_fraction")]
    pub max_bad_fraction: f64,
    /// Threads that read and decode.
    pub threads: usize,
    /// Batches loaded ahead of the step that uses them.
    pub prefetch: usize,
}

impl DataConfig {
    /// This source, read as a job's manifest has it that says nothing else, by one thread.
    #[must_use]
    pub fn new(source: DataSource) -> Self {
        Self {
            source,
            index_path: None,
            cache: CacheConfig::default(),
            image_first_probability: 0.5,
            augmentation: AugmentationConfig::default(),
            reduced_scale_decoding: false,
            shuffle: ShuffleConfig::default(),
            max_bad_fraction: default_max_bad_fraction(),
            threads: 1,
            prefetch: 2,
        }
    }
}

/// The cache of what comes from object stores, which the members of a node share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheConfig {
    /// Its folder; `None`: where the user's caches are.
    pub path: Option<String>,
    /// Most bytes.
    pub bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { path: None, bytes: CACHE_BYTES }
    }
}

/// Most bytes of the cache when the job says nothing: two windows of 200 MB for each of a hundred lanes, and as much again.
pub const CACHE_BYTES: u64 = 64 << 30;

/// One in ten: a hundred times what published sets have that were fetched with care.
const fn default_max_bad_fraction() -> f64 {
    0.1
}

/// A data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, tag = "kind")]
pub enum DataSource {
    /// Image-text pairs in tar shards: members of one sample share their name up to its dot.
    Webdataset {
        /// The shards in order, as [`crate::ShardEntry`] reads each.
        shards: Vec<String>,
        /// Which members are images and captions. What an earlier version wrote has the defaults.
        #[serde(default, skip_serializing_if = "SampleKeys::is_default")]
        keys: SampleKeys,
    },
    /// Documents in tar shards: `KEY.json` with the parts of one, and `KEY.N.jpg` and the like with its images.
    Documents {
        /// Its settings.
        documents: DocumentsConfig,
    },
    /// MMC4, as it is published.
    Mmc4 {
        /// Its settings.
        mmc4: Mmc4Config,
    },
    /// OBELICS, as it is published.
    Obelics {
        /// Its settings.
        obelics: ObelicsConfig,
    },
    /// Several of these at once.
    Mixture {
        /// Which, and in what proportion.
        mixture: MixtureConfig,
    },
}

/// Several sources of which every step takes samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MixtureConfig {
    /// What the weights count.
    pub by: MixtureUnit,
    /// The sources, two or more.
    pub sources: Vec<MixedSource>,
}

/// What the weights of a mixture count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MixtureUnit {
    /// Images: a source whose samples have more of them gives fewer samples.
    #[default]
    Images,
    /// Samples.
    Samples,
}

/// A source of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MixedSource {
    /// What it is called in metrics.
    pub name: String,
    /// Its part, beside those of the others.
    pub weight: u64,
    /// What it is; no mixture.
    pub source: DataSource,
}

/// Documents in tar shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DocumentsConfig {
    /// Tar shards, as [`crate::ShardEntry`] reads each.
    pub shards: Vec<String>,
    /// Most images of a document.
    pub max_images: u32,
}

/// Documents of MMC4.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mmc4Config {
    /// Shards of JSON lines, zipped or not, as [`crate::ShardEntry`] reads each. Those that are not there are left out.
    pub shards: Vec<String>,
    /// Where the images are.
    pub images: Mmc4Images,
    /// Least similarity of an image and its sentence.
    pub min_similarity: f64,
    /// Most images of a document.
    pub max_images: u32,
}

/// Where the images of MMC4 are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, tag = "layout")]
pub enum Mmc4Images {
    /// All in one folder.
    Flat {
        /// The folder.
        folder: String,
    },
    /// In a folder for each shard, called by its number.
    ByShard {
        /// The folder of these.
        folder: String,
    },
    /// In tar shards, as img2dataset leaves them, where each is found by the address that the document has.
    Store {
        /// The shards.
        shards: Vec<String>,
    },
}

impl Mmc4Images {
    /// The folder, where they lie in one.
    #[must_use]
    pub fn folder(&self) -> Option<&str> {
        match self {
            Self::Flat { folder } | Self::ByShard { folder } => Some(folder),
            Self::Store { .. } => None,
        }
    }

    /// The shards, where they lie in such.
    #[must_use]
    pub fn shards(&self) -> &[String] {
        match self {
            Self::Store { shards } => shards,
            Self::Flat { .. } | Self::ByShard { .. } => &[],
        }
    }
}

/// Documents of OBELICS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObelicsConfig {
    /// Parquet files, as [`crate::ShardEntry`] reads each.
    pub shards: Vec<String>,
    /// Tar shards of the images, as img2dataset leaves them.
    pub images: Vec<String>,
    /// Whether a document ends where the page changes its topic.
    pub split: bool,
    /// Most images of a document.
    pub max_images: u32,
}

impl MixtureConfig {
    /// What each source has, with the path of the source in front of that of the field.
    fn each<'a, T>(&'a self, of: impl Fn(&'a DataSource) -> Vec<(String, T)>) -> Vec<(String, T)> {
        let sources = self.sources.iter().enumerate();
        let fields =
            sources.flat_map(|(index, mixed)| of(&mixed.source).into_iter().map(move |(field, value)| (in_mixture(index, &field), value)));
        fields.collect()
    }
}

/// The path of a source's field, such as `data.source.shards`, when the source is one of a mixture.
#[must_use]
pub fn in_mixture(index: usize, field: &str) -> String {
    format!("data.source.mixture.sources[{index}].source{}", field.strip_prefix("data.source").unwrap_or(field))
}

impl DataSource {
    /// Pairs in these shards, under the keys that are usual.
    #[must_use]
    pub fn webdataset(shards: Vec<String>) -> Self {
        Self::Webdataset { shards, keys: SampleKeys::default() }
    }

    /// The lists of shards, each with the path of its field.
    #[must_use]
    pub fn lists(&self) -> Vec<(String, &[String])> {
        match self {
            Self::Webdataset { shards, .. } => vec![("data.source.shards".to_owned(), shards)],
            Self::Documents { documents } => vec![("data.source.documents.shards".to_owned(), &documents.shards)],
            Self::Mmc4 { mmc4 } => {
                let images = ("data.source.mmc4.images.shards".to_owned(), mmc4.images.shards());
                let images = (!images.1.is_empty()).then_some(images);
                [("data.source.mmc4.shards".to_owned(), &*mmc4.shards)].into_iter().chain(images).collect()
            }
            Self::Obelics { obelics } => {
                vec![("data.source.obelics.shards".to_owned(), &obelics.shards), ("data.source.obelics.images".to_owned(), &obelics.images)]
            }
            Self::Mixture { mixture } => mixture.each(Self::lists),
        }
    }

    /// The folders of images, each with the path of its field.
    #[must_use]
    pub fn folders(&self) -> Vec<(String, &str)> {
        match self {
            Self::Mmc4 { mmc4 } => {
                mmc4.images.folder().map(|folder| ("data.source.mmc4.images.folder".to_owned(), folder)).into_iter().collect()
            }
            Self::Webdataset { .. } | Self::Documents { .. } | Self::Obelics { .. } => Vec::new(),
            Self::Mixture { mixture } => mixture.each(Self::folders),
        }
    }

    /// The same with other paths: `shard` maps entries of lists, `folder` folders.
    #[must_use]
    pub fn map(mut self, shard: &impl Fn(&str) -> String, folder: &impl Fn(&str) -> String) -> Self {
        let all = |list: &mut Vec<String>| list.iter_mut().for_each(|entry| *entry = shard(entry));
        match &mut self {
            Self::Webdataset { shards, .. } => all(shards),
            Self::Documents { documents } => all(&mut documents.shards),
            Self::Mmc4 { mmc4 } => {
                all(&mut mmc4.shards);
                match &mut mmc4.images {
                    Mmc4Images::Flat { folder: place } | Mmc4Images::ByShard { folder: place } => *place = folder(place),
                    Mmc4Images::Store { shards } => all(shards),
                }
            }
            Self::Obelics { obelics } => {
                all(&mut obelics.shards);
                all(&mut obelics.images);
            }
            Self::Mixture { mixture } => {
                for mixed in &mut mixture.sources {
                    mixed.source = mixed.source.clone().map(shard, folder);
                }
            }
        }
        self
    }

    /// Whether some samples are documents.
    #[must_use]
    pub fn has_documents(&self) -> bool {
        match self {
            Self::Webdataset { .. } => false,
            Self::Documents { .. } | Self::Mmc4 { .. } | Self::Obelics { .. } => true,
            Self::Mixture { mixture } => mixture.sources.iter().any(|mixed| mixed.source.has_documents()),
        }
    }

    /// Which members of a sample are its image and its caption, where these are members of an archive.
    #[must_use]
    pub fn keys(&self) -> Option<&SampleKeys> {
        match self {
            Self::Webdataset { keys, .. } => Some(keys),
            Self::Documents { .. } | Self::Mmc4 { .. } | Self::Obelics { .. } | Self::Mixture { .. } => None,
        }
    }
}

/// How the samples of a pass are mixed: lanes walk the data set side by side, each window by window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShuffleConfig {
    /// Places of the data set that are read side by side; `None`: one for every [`SLOTS_OF_A_LANE`] slots of the global batch.
    pub lanes: Option<u64>,
    /// Most samples among which a lane mixes. A data set with no more is permuted as a whole.
    pub window: u64,
}

/// Slots of a lane when the job does not say how many lanes there are. With 64 nodes a batch of 32,768 has 16 lanes a node, so that few of them
/// are read by two nodes when the nodes' shares are no whole lanes.
const SLOTS_OF_A_LANE: u64 = 32;

impl ShuffleConfig {
    /// Lanes of a global batch of this size, between 1 and its slots.
    #[must_use]
    pub fn lanes_of(&self, global_batch_size: u64) -> u64 {
        self.lanes.unwrap_or(global_batch_size / SLOTS_OF_A_LANE).clamp(1, global_batch_size.max(1))
    }
}

impl Default for ShuffleConfig {
    fn default() -> Self {
        // 200 MB of images of 256 pixels: most of a shard as img2dataset writes them.
        Self { lanes: None, window: 8192 }
    }
}

/// `RandomResizedCrop` as torchvision defines it; no flip.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AugmentationConfig {
    /// Least and greatest part of the image's area that is kept.
    pub scale: [f64; 2],
    /// Least and greatest aspect ratio (width / height) of the crop before it is resized.
    pub ratio: [f64; 2],
}

impl Default for AugmentationConfig {
    /// The reference recipe.
    fn default() -> Self {
        Self { scale: [0.9, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

/// The optimizer's rule and its schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OptimizationConfig {
    /// Steps of the whole job.
    pub steps: u64,
    /// Samples per step over all members; constant.
    pub global_batch_size: u64,
    /// Most samples one member holds in memory at once; `None`: its whole share.
    pub micro_batch_size: Option<u64>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay of tensors with two or more dimensions.
    pub weight_decay: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Warm-up and decay of the learning rate.
    pub schedule: Schedule,
    /// Largest allowed L2 norm of all gradients; `None`: no clipping.
    pub gradient_clip: Option<f64>,
    /// How losses are averaged over the members.
    pub normalization: Normalization,
    /// How gradients travel between the members.
    pub gradient_compression: GradientCompression,
    /// Steps whose result has the same bits at every number of members; `None`: steps that are as fast as can be.
    pub exact: Option<ExactConfig>,
    /// Seed of initial weights, sample order and every random choice.
    pub seed: u64,
    /// The job fails after this many steps in a row with a non-finite loss or gradient. Such a step is skipped and counted.
    pub max_consecutive_skipped_steps: u32,
}

/// Learning rate over the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, tag = "kind")]
pub enum Schedule {
    /// Linear from 0 over `warmup_steps`, then half a cosine to 0 at the last step.
    #[serde(rename_all = "camelCase")]
    Cosine {
        /// Steps of the linear part; `None`: see [`OptimizationConfig::warmup_steps`].
        warmup_steps: Option<u64>,
    },
    /// Linear from 0 over `warmup_steps`, then constant.
    #[serde(rename_all = "camelCase")]
    Constant {
        /// Steps of the linear part; `None`: see [`OptimizationConfig::warmup_steps`].
        warmup_steps: Option<u64>,
    },
}

/// Steps of warm-up where nobody says how many: those of the paper and the released code.
const WARMUP_STEPS: u64 = 2000;
/// Of a shorter run its tenth part: more would be no warm-up but a good part of the training.
const WARMUP_PART: u64 = 10;

impl Schedule {
    /// Steps of the linear part as they were given.
    #[must_use]
    pub const fn warmup_steps(self) -> Option<u64> {
        let (Self::Cosine { warmup_steps } | Self::Constant { warmup_steps }) = self;
        warmup_steps
    }

    /// The same schedule with this warm-up.
    #[must_use]
    pub const fn with_warmup(self, steps: u64) -> Self {
        let warmup_steps = Some(steps);
        match self {
            Self::Cosine { .. } => Self::Cosine { warmup_steps },
            Self::Constant { .. } => Self::Constant { warmup_steps },
        }
    }
}

impl OptimizationConfig {
    /// Steps of the linear part of a run that begins with this configuration: those given, else 2,000 but at most a tenth of the steps.
    /// A run that goes on keeps what it has begun with.
    #[must_use]
    pub fn warmup_steps(&self) -> u64 {
        self.schedule.warmup_steps().unwrap_or_else(|| WARMUP_STEPS.min(self.steps / WARMUP_PART))
    }
}

/// How losses are averaged over the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Normalization {
    /// By the counts of the whole global batch: the result does not depend on the number of members.
    Global,
    /// By each member's own counts, then the mean over members: the reference implementation.
    PerRank,
}

/// How gradients travel between the members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GradientCompression {
    /// As they are.
    #[default]
    None,
    /// Rounded to bfloat16 and summed in it: half the bytes.
    Bf16,
}

/// What fixes the order of every addition, whatever the number of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExactConfig {
    /// Parts of the global batch that are computed one by one and summed along a fixed tree; at least as many as members.
    pub virtual_shards: u32,
    /// Threads of libtorch's operators, the same in every member; goes before `runtime.threads`.
    pub threads: u32,
    /// Steps after which two members compute a shard and compare the bits of its gradient; `None`: they never do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_every_steps: Option<u64>,
}

/// Where and when state is saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Folder of checkpoints, metrics and event files: `file://`, `s3://`, `gs://` or `az://`.
    pub uri: String,
    /// Steps between checkpoints; the last step is always saved.
    pub every_steps: u64,
    /// Newest checkpoints kept.
    pub keep_last: u32,
    /// Every checkpoint whose step is a multiple of this is kept for good; `None`: none is.
    pub keep_every_steps: Option<u64>,
}

/// The process's surroundings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Where the model lives.
    pub device: Device,
    /// Threads of libtorch's operators; `None`: one per core.
    pub threads: Option<usize>,
}

/// Where the model lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Device {
    /// A GPU when libtorch has one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU; an error when there is none.
    Cuda,
}
