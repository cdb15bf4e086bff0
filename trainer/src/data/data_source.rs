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

use crate::command_line::{
    cli::{DataArgs, ImagesLayout, KeyArgs, SourceArg},
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
    if *source != SourceArg::Webdataset {
        let KeyArgs { image_keys, caption_keys, captions, filter, key_separator } = keys;
        refuse(filter.is_some(), "--filter", no_filter(*source))?;
        let rule = "is for pairs (--source webdataset): which parts a document has is said by the document";
        refuse(!image_keys.is_empty(), "--image-keys", rule)?;
        refuse(!caption_keys.is_empty(), "--caption-keys", rule)?;
        refuse(!captions.is_empty(), "--captions", rule)?;
        refuse(key_separator.is_some(), "--key-separator", rule)?;
    }
    let max_images = max_images.map_or(6, NonZero::get);
    Ok(match source {
        SourceArg::Webdataset => {
            let keys = keys.or(&SampleKeys::default()).map_err(|(option, rule)| SourceError::Option { option, rule })?;
            DataSource::Webdataset { shards: shards.clone(), keys }
        }
        SourceArg::Documents => DataSource::Documents { documents: DocumentsConfig { shards: shards.clone(), max_images } },
        SourceArg::Mmc4 => {
            let images = images_of_mmc4(images, *images_layout)?;
            let min_similarity = min_similarity.unwrap_or(0.24);
            DataSource::Mmc4 { mmc4: Mmc4Config { shards: shards.clone(), images, min_similarity, max_images } }
        }
        SourceArg::Obelics => {
            refuse(images.is_empty(), "--images", "must name the tar shards of the images of OBELICS")?;
            DataSource::Obelics { obelics: ObelicsConfig { shards: shards.clone(), images: images.clone(), split: !no_split, max_images } }
        }
    })
}

/// What there is for documents instead of a filter.
const fn no_filter(source: SourceArg) -> &'static str {
    match source {
        SourceArg::Mmc4 => {
            "is an expression over the json of pairs (--source webdataset): documents of MMC4 are chosen by --min-similarity and --max-images"
        }
        SourceArg::Obelics => {
            "is an expression over the json of pairs (--source webdataset): documents of OBELICS are chosen by their images that are in the shards \
             of --images, and by --max-images"
        }
        SourceArg::Documents | SourceArg::Webdataset => {
            "is an expression over the json of pairs (--source webdataset): leave out documents when the shards are written"
        }
    }
}

/// A folder, or tar shards where img2dataset has fetched them. What is a folder or ends like one is one.
fn images_of_mmc4(images: &[String], layout: Option<ImagesLayout>) -> Result<Mmc4Images, SourceError> {
    let refused = |option, rule| Err(SourceError::Option { option, rule });
    let are_shards = match images {
        [] => return refused("--images", "must name the folder of the images of MMC4, or the tar shards that hold them"),
        [one] => !Path::new(one).is_dir() && (one.contains("://") || [".tar", ".txt"].iter().any(|ending| one.ends_with(ending))),
        _ => true,
    };
    match (images, layout) {
        (_, Some(_)) if are_shards => {
            refused("--images-layout", "is for images in a folder: in tar shards they are found by their addresses")
        }
        ([folder], layout) if !are_shards => {
            let folder = absolute(folder);
            Ok(match layout.unwrap_or(ImagesLayout::Flat) {
                ImagesLayout::Flat => Mmc4Images::Flat { folder },
                ImagesLayout::ByShard => Mmc4Images::ByShard { folder },
            })
        }
        _ => Ok(Mmc4Images::Store { shards: images.to_vec() }),
    }
}

fn absolute(folder: &str) -> String {
    std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(Path::new(folder))).display().to_string()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command_line::cli::{Cli, Command, DataCommand};

    /// Where the images are that these arguments name.
    fn images(arguments: &str) -> Result<Mmc4Images, String> {
        let line = format!("lcl-trainer data check a.jsonl --source mmc4 {arguments}");
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        let Command::Data(DataCommand::Check(check)) = cli.command else { return Err("another command".to_owned()) };
        match source_of(&check.data).map_err(|error| error.to_string())? {
            DataSource::Mmc4 { mmc4 } => Ok(mmc4.images),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn images_of_mmc4_lie_in_a_folder_or_in_tar_shards_of_one_pattern_or_several() {
        let store = |shards: &[&str]| Ok(Mmc4Images::Store { shards: shards.iter().map(|shard| (*shard).to_owned()).collect() });
        assert_eq!(images("--images /i"), Ok(Mmc4Images::Flat { folder: "/i".to_owned() }));
        assert_eq!(images("--images /i --images-layout by-shard"), Ok(Mmc4Images::ByShard { folder: "/i".to_owned() }));
        assert_eq!(images("--images /i/*.tar"), store(&["/i/*.tar"]));
        assert_eq!(images("--images i/{00..07}.tar --images j.txt"), store(&["i/{00..07}.tar", "j.txt"]));
        assert_eq!(images("--images s3://bucket/i/*.tar"), store(&["s3://bucket/i/*.tar"]));
        for (arguments, part) in
            [("", "--images must name the folder"), ("--images /i/*.tar --images-layout flat", "--images-layout is for images in a folder")]
        {
            let error = images(arguments).expect_err(arguments);
            assert!(error.contains(part), "{arguments}: {error}");
        }
    }

    fn chosen(arguments: &str) -> Result<DataSource, String> {
        let line = format!("lcl-trainer data check a.tar {arguments}");
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        let Command::Data(DataCommand::Check(check)) = cli.command else { return Err("another command".to_owned()) };
        source_of(&check.data).map_err(|error| error.to_string())
    }

    #[test]
    fn sources_and_layouts_may_be_written_as_manifests_have_them() {
        for source in ["documents", "Documents", "DOCUMENTS"] {
            assert!(matches!(chosen(&format!("--source {source}")), Ok(DataSource::Documents { .. })), "{source}");
        }
        for source in ["webdataset", "WebDataset", "Pairs"] {
            assert!(matches!(chosen(&format!("--source {source} --key-separator LastDot")), Ok(DataSource::Webdataset { .. })), "{source}");
        }
        for source in ["mmc4", "MMC4"] {
            let found = chosen(&format!("--source {source} --images /i --images-layout ByShard"));
            assert!(matches!(found, Ok(DataSource::Mmc4 { .. })), "{source}: {found:?}");
        }
        assert!(matches!(chosen("--source OBELICS --images a.tar"), Ok(DataSource::Obelics { .. })));
    }

    #[test]
    fn what_is_for_pairs_is_refused_by_name_for_documents_and_for_a_jobs_data() {
        for (source, instead) in
            [("mmc4 --images /i", "--min-similarity"), ("obelics --images a.tar", "--max-images"), ("documents", "written")]
        {
            let refused = chosen(&format!("--source {source} --filter width>1")).expect_err(source);
            assert!(refused.starts_with("--filter is an expression over the json of pairs") && refused.contains(instead), "{refused}");
            for option in ["--image-keys png", "--caption-keys a", "--captions json:a", "--key-separator last-dot"] {
                let refused = chosen(&format!("--source {source} {option}")).expect_err(option);
                assert!(refused.starts_with(option.split(' ').next().unwrap_or_default()) && refused.contains("is for pairs"), "{refused}");
            }
        }
        for option in ["--filter width>1", "--captions json:a", "--image-keys png"] {
            let line = format!("lcl-trainer data check --config a.json {option}");
            let refused = Cli::try_parse_from(line.split_whitespace()).expect_err(option).to_string();
            assert!(refused.contains("cannot be used with"), "{refused}");
        }
    }

    #[test]
    fn a_folder_that_is_called_like_a_shard_is_a_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("images.tar");
        std::fs::create_dir(&path).expect("a folder");
        assert_eq!(images(&format!("--images {}", path.display())), Ok(Mmc4Images::Flat { folder: path.display().to_string() }));
    }
}
