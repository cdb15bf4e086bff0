//! `spec.data`: where samples come from and how one becomes a sequence.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::patterns::ABSOLUTE_PATH;

/// What the model is trained on.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.webdataset)", "exactly one data source must be given: webdataset"),
    validation = Rule::new(
        "has(self.webdataset) == has(oldSelf.webdataset) && (!has(self.webdataset) || self.webdataset == oldSelf.webdataset)"
    )
    .message("must not change after the job was created")
    .field_path(".webdataset"),
)]
pub struct DataSpec {
    /// Image-text pairs in tar shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webdataset: Option<WebdatasetSpec>,
    /// Folder for the shards' indexes when they cannot be written beside the shards (a read-only volume): an absolute path in the
    /// worker's container. Default: beside the shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = ABSOLUTE_PATH), length(max = 4096))]
    pub index_path: Option<String>,
    /// Probability that the image precedes its caption. Default: 0.5, as in the paper.
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
    /// Threads of each member that read and decode. Default: one per processor core the member has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<i32>,
    /// Batches prepared ahead of the step that uses them.
    #[serde(default = "default_prefetch")]
    #[schemars(range(min = 1, max = 1024))]
    pub prefetch: i32,
}

/// Image-text pairs in tar shards: the files of one sample share the name up to the first dot, one image (`.jpg`, `.jpeg`, `.png`,
/// `.webp`) and one `.txt`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WebdatasetSpec {
    /// The shards in order: absolute paths in the worker's container. `{000..011}` stands for a range, as in
    /// `/data/train-{000..011}.tar`.
    #[schemars(length(min = 1, max = 4096), inner(regex(pattern = ABSOLUTE_PATH), length(max = 4096)))]
    pub shards: Vec<String>,
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

fn default_image_first_probability() -> f64 {
    0.5
}

/// Two: one batch being copied to the device while the next is assembled.
fn default_prefetch() -> i32 {
    2
}
