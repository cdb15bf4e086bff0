//! Which data a `data` command is about: those of a job, or shards that are named on the command line.
//!
//! Comes in: [`DataArgs`]. Goes out: a [`DataConfig`] as training has it, with the model that would see it.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    thread,
};

use lcl_data::shard::ListOrigin;
use lcl_trainer_config::{
    DataConfig, DataSource, DocumentsConfig, Mmc4Config, Mmc4Images, ModelConfig, ObelicsConfig, Objective, Precision, Preset, SampleKeys,
};

use crate::{
    cli::{DataArgs, ImagesLayout, SourceArg},
    config_file::{self, ConfigFileError},
};

/// The data that are meant cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The job's configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigFileError),
    /// An option is missing, or cannot be used with these data.
    #[error("{option} {rule}")]
    Option {
        /// The option.
        option: &'static str,
        /// What it has to be.
        rule: &'static str,
    },
}

/// Data, and the model that would see them.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// As in training.
    pub data: DataConfig,
    /// The job's, or one that was named.
    pub model: ModelConfig,
    /// The job's; 0 for shards by themselves.
    pub seed: u64,
    /// Who named the shards.
    pub origin: ListOrigin,
}

/// The data that the arguments name. `preset` replaces the job's model.
pub fn choose(arguments: &DataArgs, preset: Option<Preset>) -> Result<Chosen, SourceError> {
    let all = || thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let threads = arguments.threads.unwrap_or_else(all).get();
    let index_path = arguments.index_path.as_ref().map(|path| path.display().to_string());
    let Some(config) = &arguments.config else {
        let data = DataConfig { threads, index_path, ..DataConfig::new(source_of(arguments)?) };
        let model = model_of(preset.unwrap_or(Preset::Tiny));
        return Ok(Chosen { data, model, seed: 0, origin: ListOrigin::Arguments });
    };
    let config = config_file::read_from(config, None)?;
    let data = DataConfig { threads, index_path: index_path.or(config.data.index_path.clone()), ..config.data };
    let model = preset.map_or(config.model, model_of);
    Ok(Chosen { data, model, seed: config.optimization.seed, origin: ListOrigin::Manifest })
}

/// A preset with the main objective.
fn model_of(preset: Preset) -> ModelConfig {
    ModelConfig {
        shape: preset.shape(),
        objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
        drop_path: 0.0,
        layer_scale: None,
        activation_checkpointing: false,
        precision: Precision::Float32,
    }
}

fn source_of(arguments: &DataArgs) -> Result<DataSource, SourceError> {
    let DataArgs { shards, source, images, images_layout, min_similarity, max_images, no_split, keys, .. } = arguments;
    let refuse = |is_given: bool, option, rule| if is_given { Err(SourceError::Option { option, rule }) } else { Ok(()) };
    let (is_mmc4, is_obelics) = (*source == SourceArg::Mmc4, *source == SourceArg::Obelics);
    refuse(!images.is_empty() && !is_mmc4 && !is_obelics, "--images", "is for --source mmc4 and obelics")?;
    refuse(images_layout.is_some() && !is_mmc4, "--images-layout", "is for --source mmc4")?;
    refuse(min_similarity.is_some() && !is_mmc4, "--min-similarity", "is for --source mmc4")?;
    refuse(*no_split && !is_obelics, "--no-split", "is for --source obelics")?;
    refuse(max_images.is_some() && *source == SourceArg::Webdataset, "--max-images", "is for documents: a pair has one image")?;
    let max_images = max_images.map_or(6, NonZero::get);
    Ok(match source {
        SourceArg::Webdataset => {
            let keys = keys.or(&SampleKeys::default()).map_err(|(option, rule)| SourceError::Option { option, rule })?;
            DataSource::Webdataset { shards: shards.clone(), keys }
        }
        SourceArg::Documents => DataSource::Documents { documents: DocumentsConfig { shards: shards.clone(), max_images } },
        SourceArg::Mmc4 => {
            let rule = "must name the one folder of the images of MMC4";
            let [folder] = images.as_slice() else { return Err(SourceError::Option { option: "--images", rule }) };
            let folder = absolute(folder);
            let images = match images_layout.unwrap_or(ImagesLayout::Flat) {
                ImagesLayout::Flat => Mmc4Images::Flat { folder },
                ImagesLayout::ByShard => Mmc4Images::ByShard { folder },
            };
            let min_similarity = min_similarity.unwrap_or(0.24);
            DataSource::Mmc4 { mmc4: Mmc4Config { shards: shards.clone(), images, min_similarity, max_images } }
        }
        SourceArg::Obelics => {
            refuse(images.is_empty(), "--images", "must name the tar shards of the images of OBELICS")?;
            DataSource::Obelics { obelics: ObelicsConfig { shards: shards.clone(), images: images.clone(), split: !no_split, max_images } }
        }
    })
}

fn absolute(folder: &str) -> String {
    std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(Path::new(folder))).display().to_string()
}
