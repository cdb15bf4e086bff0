//! `export` and `import`: all parameters as one safetensors file under the reference's names.
//!
//! Comes in: a checkpoint, or such a file. Goes out: such a file, or a run folder with a checkpoint of step 0 that training goes on from.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use lcl_checkpoint::{Dtype, Generation, SafetensorsError, StoreError, TensorData, read_safetensors, write_safetensors};
use lcl_torch::{Device, Learner, LearnerError, StateTensor};
use lcl_trainer_config::TrainerConfig;

use crate::{
    evaluation::trained::{Source, Trained, TrainedError},
    run::{
        identity::Identity,
        run_folder::{RunFolder, RunFolderError},
    },
    training::{Facts, FinalSaveError, Saver, metadata},
};

/// What the parameters are called in a checkpoint: this before the reference's name.
const PREFIX: &str = "model.";
/// The parts of the model that make an image's vector; the language model is left behind after pre-training.
const VISION_PARTS: [&str; 2] = ["visual.", "pool_project."];

/// Weights could not be exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The checkpoint cannot be read.
    #[error("reading the model")]
    Trained(#[from] TrainedError),
    /// The file cannot be written or read.
    #[error(transparent)]
    File(#[from] SafetensorsError),
    /// The file's numbers are of another type.
    #[error("{name} in {} is {dtype}, but weights are F32: convert the file first", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// Names or shapes are not those of the configured model.
    #[error("{} does not fit the configured model", path.display())]
    Fit {
        /// The file.
        path: PathBuf,
        /// Which tensor and how.
        source: LearnerError,
    },
    /// The model cannot be built.
    #[error("building the model")]
    Learner(#[from] LearnerError),
    /// The run's folder cannot be used.
    #[error("opening the run's folder")]
    Folder(#[from] RunFolderError),
    /// The store failed.
    #[error("using the checkpoint store")]
    Store(#[from] StoreError),
    /// There is a run already.
    #[error("{uri} holds checkpoints already: import into another folder (spec.checkpoint.uri)")]
    NotEmpty {
        /// The folder.
        uri: String,
    },
    /// The checkpoint could not be written.
    #[error("writing the checkpoint of step 0")]
    Save(#[from] FinalSaveError),
}

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Tensors in the file.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Completed steps of the checkpoint.
    pub completed_steps: u64,
}

/// Writes the parameters of a checkpoint; of the vision encoder alone when `vision_only`.
///
/// The file's metadata has the model's shape as JSON under `shape`, so that a reader needs no other file.
pub fn export(source: &Source, file: &Path, vision_only: bool) -> Result<Exported, WeightsError> {
    let Trained { restored, config } = Trained::read(source)?;
    let completed_steps = restored.id.step;
    let tensors: Vec<TensorData> = restored
        .tensors
        .into_iter()
        .filter_map(|tensor| {
            let name = tensor.name.strip_prefix(PREFIX)?.to_owned();
            let wanted = !vision_only || VISION_PARTS.iter().any(|part| name.starts_with(part));
            wanted.then_some(TensorData { name, ..tensor })
        })
        .collect();
    let shape = serde_json::to_string(&config.model.shape).unwrap_or_default();
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("shape".to_owned(), shape),
        ("completedSteps".to_owned(), completed_steps.to_string()),
    ]);
    write_safetensors(file, &tensors, &metadata)?;
    let parameters = tensors.iter().map(|tensor| tensor.data.len() / size_of::<f32>()).sum();
    Ok(Exported { tensors: tensors.len(), parameters, completed_steps })
}

/// Makes a checkpoint of step 0 with the weights of `file` in the run folder of `config`. `train --resume` goes on from it.
pub fn import(file: &Path, config: &TrainerConfig) -> Result<(), WeightsError> {
    let content = read_safetensors(file)?;
    if let Some(tensor) = content.tensors.iter().find(|tensor| tensor.dtype != Dtype::F32) {
        return Err(WeightsError::Dtype { path: file.to_owned(), name: tensor.name.clone(), dtype: tensor.dtype });
    }
    let mut learner = Learner::new(config, Device::Cpu)?;
    let tensors = content.tensors.iter().map(|tensor| StateTensor { name: &tensor.name, shape: &tensor.shape, data: &tensor.data });
    learner.load_parameters(tensors).map_err(|source| WeightsError::Fit { path: file.to_owned(), source })?;

    let folder = RunFolder::open(&config.checkpoint.uri)?;
    if folder.store().list()?.iter().any(|entry| entry.complete) {
        return Err(WeightsError::NotEmpty { uri: config.checkpoint.uri.clone() });
    }
    let generation = Generation { epoch: folder.store().claim_epoch()?, n: 0 };
    // Which data they will be trained on is fixed by the first checkpoint that training writes.
    let identity = Identity::new(config, None);
    let facts = Facts { completed_steps: 0, config_digest: identity.digest(), metadata: metadata(config, &identity, &learner, 0) };
    let mut writer = Saver::new(folder.store().clone(), &config.checkpoint, generation, None, &learner);
    let (_, saved) = writer.finish(&learner, facts);
    Ok(saved?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::tiny_config;
    use lcl_checkpoint::TensorSpec;

    fn config_in(folder: &Path) -> TrainerConfig {
        let mut config = tiny_config();
        config.model.shape.text.vocab_size = 64;
        config.model.shape.special_tokens = lcl_trainer_config::SpecialTokens {
            start_of_text: 59,
            end_of_text: 60,
            image_placeholder: 61,
            start_of_image: 62,
            end_of_image: 63,
        };
        config.checkpoint.uri = url::Url::from_file_path(folder).unwrap().into();
        config
    }

    fn random_weights(config: &TrainerConfig) -> Vec<TensorData> {
        lcl_torch::parameter_specs(&config.model)
            .iter()
            .enumerate()
            .map(|(index, spec)| {
                let mut data = vec![0; spec.elements() as usize * 4];
                blake3::Hasher::new().update(&index.to_le_bytes()).finalize_xof().fill(&mut data);
                // Exponents that make small finite numbers.
                data.chunks_exact_mut(4).for_each(|number| number[3] = 0x3c);
                TensorData {
                    name: spec.name.clone(),
                    shape: spec.shape.iter().map(|size| *size as usize).collect(),
                    dtype: Dtype::F32,
                    data: data.into(),
                }
            })
            .collect()
    }

    fn sorted(mut tensors: Vec<TensorData>) -> Vec<TensorData> {
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
        tensors
    }

    #[test]
    fn imported_weights_are_exported_with_every_byte_and_the_vision_part_alone() {
        let folder = tempfile::tempdir().unwrap();
        let config = config_in(&folder.path().join("run"));
        let weights = random_weights(&config);
        let (file, back, vision) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
        write_safetensors(&file, &weights, &BTreeMap::new()).unwrap();
        import(&file, &config).unwrap();
        let source = Source::Run(config.checkpoint.uri.clone());
        assert_eq!(export(&source, &back, false).unwrap().tensors, weights.len());
        assert_eq!(sorted(read_safetensors(&back).unwrap().tensors), sorted(weights));
        export(&source, &vision, true).unwrap();
        let specs: Vec<TensorSpec> = read_safetensors(&vision).unwrap().tensors.iter().map(TensorData::spec).collect();
        assert!(specs.iter().all(|spec| spec.name.starts_with("visual.") || spec.name.starts_with("pool_project.")));
        assert!(
            specs.iter().any(|spec| spec.name == "visual.conv1.weight") && specs.iter().any(|spec| spec.name.starts_with("pool_project."))
        );
        assert!(matches!(import(&file, &config), Err(WeightsError::NotEmpty { .. })));
    }

    #[test]
    fn weights_that_do_not_fit_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let config = config_in(&folder.path().join("run"));
        let check = |change: &dyn Fn(&mut Vec<TensorData>), expected: &str| {
            let mut weights = random_weights(&config);
            change(&mut weights);
            let file = folder.path().join("weights");
            write_safetensors(&file, &weights, &BTreeMap::new()).unwrap();
            let message = crate::chain(&import(&file, &config).unwrap_err());
            assert!(message.contains(expected), "{expected} is not in: {message}");
        };
        check(&|weights| drop(weights.remove(0)), "`logit_scale` is missing");
        check(&|weights| weights[0].name = "other".to_owned(), "logit_scale");
        check(&|weights| weights[2].shape.reverse(), "visual.positional_embedding");
        check(
            &|weights| {
                weights[1].dtype = Dtype::F16;
                weights[1].data = weights[1].data.slice(..weights[1].data.len() / 2);
            },
            "visual.class_embedding",
        );
        assert!(!folder.path().join("run").exists(), "a run was begun with weights that do not fit");
    }
}
