//! Named model sizes. Figures from the reference implementation's model configurations and the paper (arXiv 2406.07543).

use std::{fmt, str::FromStr};

use crate::model::{ModelShape, SpecialTokens, TextShape, VisionShape};

/// A named model size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// The reference's B/16 for pairs, 249.92 M parameters.
    VitB16Laion,
    /// The reference's B/32 for pairs, 177.66 M parameters.
    VitB32Laion,
    /// The reference's B/32 for documents, 178.64 M parameters.
    VitB32Mmc4,
    /// The paper's main model; the size of its language model is not published, ours is that of B/16.
    VitL14Laion,
    /// For tests and demonstrations, 14.4 M parameters.
    Tiny,
    /// The same for documents: a context of 256 holds six images of 16 tokens with a sentence each.
    TinyMmc4,
}

/// No preset has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown model preset `{name}`: use one of {}", Preset::ALL.map(Preset::name).join(", "))]
pub struct UnknownPreset {
    /// The name that was given.
    pub name: String,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 6] = [Self::VitB16Laion, Self::VitB32Laion, Self::VitB32Mmc4, Self::VitL14Laion, Self::Tiny, Self::TinyMmc4];

    /// The name used in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VitB16Laion => "vit-b-16-laion",
            Self::VitB32Laion => "vit-b-32-laion",
            Self::VitB32Mmc4 => "vit-b-32-mmc4",
            Self::VitL14Laion => "vit-l-14-laion",
            Self::Tiny => "tiny",
            Self::TinyMmc4 => "tiny-mmc4",
        }
    }

    /// The sizes behind the name.
    #[must_use]
    pub const fn shape(self) -> ModelShape {
        match self {
            Self::VitB16Laion => shape((224, 16, 768, 12, 12), (768, 12, 12, 280), 768, 12),
            Self::VitB32Laion => shape((224, 32, 768, 12, 12), (512, 12, 8, 128), 512, 8),
            Self::VitB32Mmc4 => shape((224, 32, 768, 12, 12), (512, 12, 8, 2048), 512, 8),
            Self::VitL14Laion => shape((224, 14, 1024, 24, 16), (768, 12, 12, 340), 768, 12),
            Self::Tiny => shape((64, 16, 128, 4, 4), (128, 4, 4, 64), 128, 4),
            Self::TinyMmc4 => shape((64, 16, 128, 4, 4), (128, 4, 4, 256), 128, 4),
        }
    }

    /// Highest drop-path probability when the job does not say: the paper's for its main model, none as in the released code for the rest.
    #[must_use]
    pub const fn drop_path(self) -> f64 {
        match self {
            Self::VitL14Laion => 0.2,
            Self::VitB16Laion | Self::VitB32Laion | Self::VitB32Mmc4 | Self::Tiny | Self::TinyMmc4 => 0.0,
        }
    }

    /// Initial value of layer-scale when the job does not say. The paper's main model has it but does not print the value: 1e-5 is what
    /// `CaiT` (arXiv 2103.17239), which introduced it, uses at a depth of 24.
    #[must_use]
    pub const fn layer_scale(self) -> Option<f64> {
        match self {
            Self::VitL14Laion => Some(1e-5),
            Self::VitB16Laion | Self::VitB32Laion | Self::VitB32Mmc4 | Self::Tiny | Self::TinyMmc4 => None,
        }
    }
}

/// Entries of the CLIP vocabulary with the three image tokens.
pub const VOCAB_SIZE: i64 = 49_411;

const fn shape(vision: (i64, i64, i64, i64, i64), text: (i64, i64, i64, i64), embed_dim: i64, pool_heads: i64) -> ModelShape {
    ModelShape {
        vision: VisionShape { image_size: vision.0, patch_size: vision.1, width: vision.2, layers: vision.3, heads: vision.4 },
        text: TextShape { width: text.0, layers: text.1, heads: text.2, context_length: text.3, vocab_size: VOCAB_SIZE },
        embed_dim,
        pool_heads,
        special_tokens: SpecialTokens::CLIP,
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = UnknownPreset;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| UnknownPreset { name: name.to_owned() })
    }
}
