//! `spec.data`: where samples come from and how one becomes a sequence.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::patterns::{ABSOLUTE_PATH, DATA_PLACE, JSON_PATH, SAMPLE_KEY, SOURCE_NAME};

/// What the model is trained on.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "[has(self.webdataset), has(self.mmc4), has(self.obelics), has(self.mixture)].filter(given, given).size() == 1",
        "exactly one data source must be given: webdataset, mmc4, obelics or mixture"
    ),
    validation = Rule::new(
        "has(self.webdataset) == has(oldSelf.webdataset) && (!has(self.webdataset) || self.webdataset == oldSelf.webdataset)"
    )
    .message("must not change after the job was created")
    .field_path(".webdataset"),
    validation = Rule::new("has(self.mmc4) == has(oldSelf.mmc4) && (!has(self.mmc4) || self.mmc4 == oldSelf.mmc4)")
        .message("must not change after the job was created")
        .field_path(".mmc4"),
    validation = Rule::new("has(self.obelics) == has(oldSelf.obelics) && (!has(self.obelics) || self.obelics == oldSelf.obelics)")
        .message("must not change after the job was created")
        .field_path(".obelics"),
    validation = Rule::new("has(self.mixture) == has(oldSelf.mixture) && (!has(self.mixture) || self.mixture == oldSelf.mixture)")
        .message("must not change after the job was created")
        .field_path(".mixture"),
    validation = Rule::new("!has(oldSelf.shuffle) || (has(self.shuffle) && self.shuffle == oldSelf.shuffle)")
        .message("must not change after the job was created")
        .field_path(".shuffle"),
)]
pub struct DataSpec {
    /// Image-text pairs in tar shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webdataset: Option<WebdatasetSpec>,
    /// Interleaved documents of MMC4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmc4: Option<Mmc4Spec>,
    /// Interleaved documents of OBELICS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obelics: Option<ObelicsSpec>,
    /// Several of these at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixture: Option<MixtureSpec>,
    /// Folder for the shards' indexes when they cannot be written beside the shards (a read-only volume): an absolute path in the
    /// worker's container, or a folder in an object store, in which `lcl data index` leaves the index of all shards. Default: beside the shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DATA_PLACE), length(max = 4096))]
    pub index_path: Option<String>,
    /// Where a node keeps what comes from object stores: its members share it. Nothing of it is needed again after the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheSpec>,
    /// Probability that an image precedes its caption, or its sentence in a document of MMC4. OBELICS has an order of its own. Default: 0.5,
    /// as in the paper.
    #[serde(default = "default_image_first_probability")]
    #[schemars(range(min = 0.0, max = 1.0))]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub image_first_probability: f64,
    /// Random crop of the training images. Default: that of the released code.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub augmentation: AugmentationSpec,
    /// Decode JPEG images at a reduced scale where the crop allows it: faster, and pixels differ slightly.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "must not change after the job was created"))]
    pub reduced_scale_decoding: bool,
    /// In which order the samples of a pass come. A job that was created without it may be given it, since versions without lanes shuffled the
    /// whole data set: `window: 1000000000` goes on with that order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shuffle: Option<ShuffleSpec>,
    /// Most of the last 10,000 records that may be of no use, as a part of them: more, and at least 100, fail the job with their causes. Records
    /// that a filter leaves out do not count. Default: 0.1.
    #[serde(default = "default_max_bad_fraction")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_bad_fraction: f64,
    /// Threads of each member that read and decode. Default: one per processor core the member has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<i32>,
    /// Batches loaded ahead of the step that uses them.
    #[serde(default = "default_prefetch")]
    #[schemars(range(min = 1, max = 1024))]
    pub prefetch: i32,
}

/// The cache of what comes from object stores.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheSpec {
    /// Its folder: an absolute path in the worker's container, on a disk of the node. Default: an `emptyDir` volume, which goes with the pod; a
    /// `hostPath` outlives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = ABSOLUTE_PATH), length(max = 4096))]
    pub path: Option<String>,
    /// Most GiB that are kept. Less than what the lanes of a node read at a time makes bytes be fetched again. Default: 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub size_gib: Option<i64>,
}

/// Image-text pairs in tar shards. The files of one sample stand next to each other and share their name up to a dot; what follows the dot is
/// the file's key. A sample has one image and a caption.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.captionKeys.exists(key, key in self.imageKeys)")
        .message("must not share a key with imageKeys (the defaults are txt, and jpg, png, jpeg, webp)")
        .field_path(".captionKeys"),
    validation = Rule::new("self.keySeparator != 'LastDot' || !self.imageKeys.exists(key, key.contains('.'))")
        .message("must hold no dot when keySeparator is LastDot")
        .field_path(".imageKeys"),
    validation = Rule::new("self.keySeparator != 'LastDot' || !self.captionKeys.exists(key, key.contains('.'))")
        .message("must hold no dot when keySeparator is LastDot")
        .field_path(".captionKeys"),
    // Left out, it has its default by the time that this is asked.
    validation = Rule::new("!has(self.captions) || self.captionKeys == ['txt']")
        .message("must be left out when captions is given")
        .field_path(".captionKeys"),
    validation = Rule::new("!has(self.captions) || !self.captions.exists(caption, has(caption.key) && caption.key in self.imageKeys)")
        .message("must not share a key with imageKeys (the defaults are jpg, png, jpeg, webp)")
        .field_path(".captions"),
    validation = Rule::new("!has(self.captions) || !('json' in self.imageKeys) || !self.captions.exists(caption, has(caption.json))")
        .message("must not come from json when imageKeys has that key")
        .field_path(".captions"),
    validation = Rule::new(
        "!has(self.captions) || self.keySeparator != 'LastDot' || !self.captions.exists(caption, has(caption.key) && caption.key.contains('.'))"
    )
    .message("must hold no dot when keySeparator is LastDot")
    .field_path(".captions"),
    validation = Rule::new("self.layout != 'Documents' || self.keySeparator == 'FirstDot'")
        .message("must be FirstDot when layout is Documents: what follows the first dot tells a document's parts apart")
        .field_path(".keySeparator"),
    validation = Rule::new("self.layout != 'Documents' || !has(self.filter)")
        .message("must not be given when layout is Documents: it is for the json of pairs")
        .field_path(".filter"),
    validation = Rule::new("self.layout != 'Documents' || !has(self.captions)")
        .message("must not be given when layout is Documents: it is for the json of pairs")
        .field_path(".captions"),
    validation = Rule::new("self.layout == 'Documents' || !has(self.maxImages)")
        .message("must not be given when layout is Pairs: a pair has one image")
        .field_path(".maxImages"),
)]
pub struct WebdatasetSpec {
    /// The shards in order: absolute paths in the worker's container, or URIs (`s3://BUCKET/NAME`, `gs://`, `az://`, `https://`, `http://`). `{000..011}` and `{a,b}` stand for several, as in
    /// `/data/train-{000..011}.tar`; `*`, `?` and `[a-c]` for the files that fit, in the order of their names. An entry that ends in `.txt`
    /// is a text file with one shard a line, taken as it is; a relative one starts at the text file's folder.
    #[schemars(length(min = 1, max = 4096), inner(regex(pattern = DATA_PLACE), length(max = 4096)))]
    pub shards: Vec<String>,
    /// Keys of images, without the dot before them, in the order in which one is chosen when a sample has several.
    /// Default: jpg, png, jpeg, webp.
    #[serde(default = "default_image_keys")]
    #[schemars(length(min = 1, max = 32), inner(regex(pattern = SAMPLE_KEY), length(max = 64)))]
    pub image_keys: Vec<String>,
    /// Keys of captions, in the same way. Default: txt.
    #[serde(default = "default_caption_keys")]
    #[schemars(length(min = 1, max = 32), inner(regex(pattern = SAMPLE_KEY), length(max = 64)))]
    pub caption_keys: Vec<String>,
    /// Where captions come from when a sample may have several, in place of `captionKeys`. In every pass one of those that the sample has is
    /// drawn, in proportion to their weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub captions: Option<Vec<CaptionSpec>>,
    /// Which samples count: a CEL expression over the fields of the sample's json, as img2dataset writes it, such as
    /// `similarity >= 0.28 && NSFW != "NSFW"`. A sample for which it is not true is none: it is left out when the shards are indexed, and
    /// counted with its cause. Default: all samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub filter: Option<String>,
    /// Which dot of a file's name ends the sample's name: `FirstDot`, as the webdataset library has it (`a.b.jpg` is `b.jpg` of the sample
    /// `a`), or `LastDot` (`jpg` of the sample `a.b`).
    #[serde(default)]
    pub key_separator: KeySeparatorSpec,
    /// What a sample is: `Pairs`, an image and a caption, or `Documents`, as `lcl data convert` writes them: `KEY.json` with the parts of a
    /// document in their order, and `KEY.0.jpg`, `KEY.1.png` and so on with its images. With documents the keys of images and captions are of no
    /// use. Default: Pairs.
    #[serde(default)]
    pub layout: LayoutSpec,
    /// Most images of a document, with `layout: Documents` alone. Default: 6, as with MMC4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub max_images: Option<i32>,
}

/// What a sample in tar shards is.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayoutSpec {
    /// An image and a caption.
    #[default]
    Pairs,
    /// An interleaved document.
    Documents,
}

/// Where a caption may come from: a file of the sample, or a field of its json.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.key) != has(self.json)", "exactly one of key and json must be given"))]
pub struct CaptionSpec {
    /// Key of the file that is the caption, without the dot before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = SAMPLE_KEY), length(max = 64))]
    pub key: Option<String>,
    /// Field of the sample's json that is the caption: a name, or names of objects within one another with dots between them, as in
    /// `meta.alt_text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = JSON_PATH), length(max = 256))]
    pub json: Option<String>,
    /// How often it is drawn, beside the others that the sample has. Default: 1.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub weight: i64,
}

/// Several sources of which every step takes samples in proportion to their weights, exactly in every prefix of the run. Each source has passes
/// of its own.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MixtureSpec {
    /// What the weights count: `Images`, so that a source of documents gives fewer samples the more images these have, or `Samples`.
    /// Default: images, as in the paper.
    #[serde(default)]
    pub by: MixtureUnitSpec,
    /// The sources.
    #[schemars(length(min = 2, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sources: Vec<MixedSourceSpec>,
}

/// What the weights of a mixture count.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MixtureUnitSpec {
    /// Images.
    #[default]
    Images,
    /// Samples.
    Samples,
}

/// A source of a mixture.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "[has(self.webdataset), has(self.mmc4), has(self.obelics)].filter(given, given).size() == 1",
    "exactly one data source must be given: webdataset, mmc4 or obelics"
))]
pub struct MixedSourceSpec {
    /// What it is called in metrics.
    #[schemars(regex(pattern = SOURCE_NAME), length(max = 63))]
    pub name: String,
    /// Its part, beside those of the others. Default: 1.
    #[serde(default = "default_weight")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub weight: i64,
    /// Image-text pairs in tar shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webdataset: Option<WebdatasetSpec>,
    /// Interleaved documents of MMC4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmc4: Option<Mmc4Spec>,
    /// Interleaved documents of OBELICS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obelics: Option<ObelicsSpec>,
}

fn default_weight() -> i64 {
    1
}

/// MMC4 as it is published. Of every sentence's images one is taken at random, the first `maxImages` by sentence are kept, and what cannot be
/// read is left out, as the released code does. A document without an image is replaced by another one.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mmc4Spec {
    /// The shards in order, `docs_shard_{0..23098}_v2.jsonl.zip` or unpacked ones: absolute paths in the worker's container or URIs, with the same
    /// patterns as those of `webdataset`. Shards that are not there are left out, since some are missing in what was published.
    #[schemars(length(min = 1, max = 4096), inner(regex(pattern = DATA_PLACE), length(max = 4096)))]
    pub shards: Vec<String>,
    /// Where the images are.
    pub images: Mmc4ImagesSpec,
    /// Least similarity of an image and its sentence. Default: 0.24, as in the released code.
    #[serde(default = "default_min_similarity")]
    #[schemars(range(min = -1.0, max = 1.0))]
    pub min_similarity: f64,
    /// Most images of a document. Default: 6, as in the released code.
    #[serde(default = "default_max_images")]
    #[schemars(range(min = 1, max = 64))]
    pub max_images: i32,
}

/// Where the images of MMC4 are: in a folder, or in tar shards.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.folder) != has(self.shards)", "exactly one of folder and shards must be given"),
    validation = Rule::new("has(self.folder) || self.layout == 'Flat'")
        .message("must be left out with shards")
        .field_path(".layout"),
)]
pub struct Mmc4ImagesSpec {
    /// Their folder: an absolute path in the worker's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = ABSOLUTE_PATH), length(max = 4096))]
    pub folder: Option<String>,
    /// The tar shards of the images as img2dataset leaves them: absolute paths in the worker's container or URIs, with the same patterns as
    /// those of `webdataset`. An image is found by its address, the document's `raw_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096), inner(regex(pattern = DATA_PLACE), length(max = 4096)))]
    pub shards: Option<Vec<String>>,
    /// How they lie in the folder. Default: flat.
    #[serde(default)]
    pub layout: Mmc4LayoutSpec,
}

/// How the images of MMC4 lie in their folder.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mmc4LayoutSpec {
    /// `FOLDER/NAME`, as the released code reads them.
    #[default]
    Flat,
    /// `FOLDER/SHARD/NAME` with the number of the shard, as the publisher's script saves them.
    ByShard,
}

/// OBELICS as it is published, with its images in shards as img2dataset leaves them. A document ends where the page changes its topic; images
/// that are not there or cannot be read are left out, and the first `maxImages` of the others are kept.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObelicsSpec {
    /// The parquet files in order: absolute paths in the worker's container or URIs, with the same patterns as those of `webdataset`.
    #[schemars(length(min = 1, max = 4096), inner(regex(pattern = DATA_PLACE), length(max = 4096)))]
    pub shards: Vec<String>,
    /// The tar shards of the images, each with its address in the sample's json, in the same way.
    #[schemars(length(min = 1, max = 4096), inner(regex(pattern = DATA_PLACE), length(max = 4096)))]
    pub images: Vec<String>,
    /// Whether a document ends where the page changes its topic. Default: true.
    #[serde(default = "default_split")]
    pub split: bool,
    /// Most images of a document. Default: 6, as with MMC4.
    #[serde(default = "default_max_images")]
    #[schemars(range(min = 1, max = 64))]
    pub max_images: i32,
}

/// That of the released code.
fn default_min_similarity() -> f64 {
    0.24
}

/// That of the released code.
fn default_max_images() -> i32 {
    6
}

fn default_split() -> bool {
    true
}

/// Which dot of a file's name ends the sample's name.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeySeparatorSpec {
    /// The first.
    #[default]
    FirstDot,
    /// The last.
    LastDot,
}

/// How the samples of a pass are mixed. The slots of the global batch are divided into lanes; each walks a part of the shards, which are in
/// another order in every pass, and mixes the samples of a window. So a batch comes from as many places as there are lanes, and each lane
/// reads long stretches.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShuffleSpec {
    /// Places of the data set that are read side by side. Default: the global batch divided by 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub lanes: Option<i64>,
    /// Most samples among which a lane mixes. A data set with no more is shuffled as a whole. Default: 8192.
    #[serde(default = "default_window")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub window: i64,
}

/// `RandomResizedCrop` as torchvision defines it; images are never flipped.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.scale[0] <= self.scale[1]").message("must be two ascending numbers in (0, 1]").field_path(".scale"),
    validation = Rule::new("self.ratio[0] <= self.ratio[1]").message("must be two ascending positive numbers").field_path(".ratio"),
)]
pub struct AugmentationSpec {
    /// Least and greatest part of the image's area that is kept. Default: 0.9 and 1.
    #[serde(default = "default_scale")]
    #[schemars(inner(range(min = 1e-6, max = 1.0)))]
    pub scale: [f64; 2],
    /// Least and greatest aspect ratio (width / height) of the crop before it is resized. Default: 3/4 and 4/3.
    #[serde(default = "default_ratio")]
    #[schemars(inner(range(min = 1e-3, max = 1e3)))]
    pub ratio: [f64; 2],
}

impl Default for AugmentationSpec {
    fn default() -> Self {
        Self { scale: default_scale(), ratio: default_ratio() }
    }
}

/// The released code's, as the ratio.
fn default_scale() -> [f64; 2] {
    [0.9, 1.0]
}

fn default_ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

/// One in ten: a hundred times what published sets have that were fetched with care.
fn default_max_bad_fraction() -> f64 {
    0.1
}

fn default_image_first_probability() -> f64 {
    0.5
}

/// Two: one batch being copied to the device while the next is assembled.
fn default_prefetch() -> i32 {
    2
}

/// 200 MB of images of 256 pixels: most of a shard as img2dataset writes them.
fn default_window() -> i64 {
    8192
}

/// Those of the reference's loader, as the caption's.
fn default_image_keys() -> Vec<String> {
    ["jpg", "png", "jpeg", "webp"].map(str::to_owned).into()
}

fn default_caption_keys() -> Vec<String> {
    vec!["txt".to_owned()]
}
