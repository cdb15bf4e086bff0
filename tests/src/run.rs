//! A run in a temporary folder: its data, its configuration, and what it left behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use lcl_trainer_config::{
    AugmentationConfig, CheckpointConfig, DataConfig, DataSource, Device, FORMAT_VERSION, GradientCompression, ModelConfig, ModelShape,
    Normalization, Objective, OptimizationConfig, Precision, RuntimeConfig, Schedule, SpecialTokens, TextShape, TrainerConfig, VisionShape,
};
use serde_json::Value;
use tempfile::TempDir;
use url::Url;

use crate::{
    data::{Fault, write_shard},
    process::{self, Finished, Running},
};

/// Samples in the shard of a [`Workbench`]: not a multiple of the batch, so that batches run across the ends of passes.
pub const SAMPLES: usize = 45;

/// A folder with a shard in which runs are made.
#[derive(Debug)]
pub struct Workbench {
    folder: TempDir,
}

impl Workbench {
    /// Writes the shard, with these faults.
    pub fn new(faults: &[(usize, Fault)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        write_shard(&folder.path().join("data.tar"), SAMPLES, faults)?;
        Ok(Self { folder })
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> PathBuf {
        self.folder.path().join("data.tar")
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A run of this many steps, done by a single process.
    pub fn alone(&self, steps: u64) -> Result<Run> {
        let mut run = self.begin("alone")?;
        run.config.optimization.steps = steps;
        run.complete(&[])?;
        Ok(run)
    }

    /// A run called `name` that does not exist yet, with a configuration made for speed.
    pub fn begin(&self, name: &str) -> Result<Run> {
        let folder = self.path(name);
        let config = config(&self.shard(), &folder)?;
        Ok(Run { config_file: self.path(&format!("{name}.json")), folder, config })
    }
}

/// A run: its configuration and its folder.
#[derive(Clone, Debug)]
pub struct Run {
    /// What is given to the trainer; change it before [`Run::start`].
    pub config: TrainerConfig,
    /// Checkpoints, metrics and event files.
    pub folder: PathBuf,
    config_file: PathBuf,
}

/// A checkpoint's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFolder {
    /// Where.
    pub path: PathBuf,
    /// Completed steps, as its name says.
    pub step: u64,
    /// Whether it has a manifest.
    pub complete: bool,
}

impl Run {
    /// The arguments of `train` for it, with the configuration written to its file.
    pub fn arguments(&self, more: &[&str]) -> Result<Vec<String>> {
        // By a rename: a member that was started a moment ago may be reading it.
        let written = self.config_file.with_extension("json.part");
        fs::write(&written, serde_json::to_vec_pretty(&self.config)?)?;
        fs::rename(&written, &self.config_file)?;
        let mut arguments = vec!["train".to_owned(), "--config".to_owned(), self.config_file.display().to_string()];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        Ok(arguments)
    }

    /// Starts the trainer.
    pub fn start(&self, more: &[&str]) -> Result<Running> {
        process::start(self.arguments(more)?)
    }

    /// Runs the trainer to its end.
    pub fn run(&self, more: &[&str]) -> Result<Finished> {
        self.start(more)?.wait()
    }

    /// Runs the trainer to its end, which has to be the run's, and gives the parameters' hash.
    pub fn complete(&self, more: &[&str]) -> Result<String> {
        self.run(more)?.expect_code(0)?;
        self.hash()
    }

    /// The parameters' hash that the last process reported.
    pub fn hash(&self) -> Result<String> {
        let events = self.events()?;
        let ended = events.iter().rev().find(|event| event["event"] == "ended").context("no process has ended in an orderly way")?;
        Ok(ended["parameter_hash"].as_str().context("no hash")?.to_owned())
    }

    /// The step lines.
    pub fn steps(&self) -> Result<Vec<Value>> {
        lines(&self.folder.join("metrics.jsonl"))
    }

    /// What else was recorded.
    pub fn events(&self) -> Result<Vec<Value>> {
        lines(&self.folder.join("run.jsonl"))
    }

    /// Fails unless every step from 0 stands in the ledger once, in order, with every slot of its batch. Gives what identifies the work of
    /// each step: slots, samples and loss.
    pub fn ledger(&self) -> Result<Vec<String>> {
        let mut work = Vec::new();
        let batch = self.config.optimization.global_batch_size;
        let events = self.events()?;
        let samples = match self.config.data.source {
            DataSource::Webdataset { .. } => SAMPLES as u64,
            _ => events.iter().find_map(|event| event["samples_per_pass"].as_u64()).context("no start is recorded")?,
        };
        for (index, line) in self.steps()?.iter().enumerate() {
            ensure!(line["step"] == index, "line {index} is step {}", line["step"]);
            let mut next = 0;
            for range in line["slots"].as_array().context("no slots")? {
                ensure!(range["first"] == next, "step {index}: a slot is missing or twice in {}", line["slots"]);
                next = range["end"].as_u64().context("no end")?;
                let total = index as u64 * batch + range["first"].as_u64().context("no first slot")?;
                let is_mixed = matches!(self.config.data.source, DataSource::Mixture { .. });
                ensure!(is_mixed || range["pass"] == total / samples, "step {index}: wrong pass in {}", line["slots"]);
            }
            ensure!(next == batch, "step {index} has {next} slots");
            work.push(format!("{} {} {}", line["slots"], line["samples_digest"], line["loss"]));
        }
        Ok(work)
    }

    /// Something as soon as this many steps are recorded; for `await_condition`.
    pub fn has_steps(&self, steps: usize) -> Result<Option<()>> {
        Ok((self.steps()?.len() >= steps).then_some(()))
    }

    /// Fails unless the ledger has every slot of every step once, with the samples of `alone` and nearly its losses: sums are taken in
    /// another order.
    pub fn expect_same_work(&self, alone: &Self) -> Result<()> {
        let steps = self.ledger()?.len();
        ensure!(steps == alone.ledger()?.len(), "{steps} steps");
        for (line, expected) in self.steps()?.iter().zip(alone.steps()?) {
            for field in ["slots", "samples_digest", "rows", "images", "tokens", "skipped_samples", "redrawn_samples", "learning_rate"] {
                ensure!(line[field] == expected[field], "step {}: {field} is {}, alone {}", line["step"], line[field], expected[field]);
            }
            let (loss, expected) = (line["loss"].as_f64().context("no loss")?, expected["loss"].as_f64().context("no loss")?);
            ensure!((loss / expected - 1.0).abs() < 1e-3, "step {}: loss {loss}, alone {expected}", line["step"]);
        }
        Ok(())
    }

    /// The arguments of another command than `train` for it.
    pub fn arguments_of(&self, command: &str, more: &[&str]) -> Result<Vec<String>> {
        let mut arguments = self.arguments(more)?;
        command.clone_into(arguments.first_mut().context("no command")?);
        Ok(arguments)
    }

    /// The checkpoints' folders, the newest first.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointFolder>> {
        let mut found = Vec::new();
        let Ok(entries) = fs::read_dir(&self.folder) else { return Ok(found) };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(step) = name.strip_prefix("step-").and_then(|rest| rest.split('-').next()) else { continue };
            found.push(CheckpointFolder { step: step.parse()?, complete: path.join("manifest.json").exists(), path });
        }
        found.sort_by(|left, right| right.path.cmp(&left.path));
        Ok(found)
    }

    /// The newest checkpoint that has a manifest.
    pub fn newest_checkpoint(&self) -> Result<CheckpointFolder> {
        self.checkpoints()?.into_iter().find(|checkpoint| checkpoint.complete).context("there is no checkpoint")
    }
}

impl CheckpointFolder {
    /// Turns one bit in the middle of its first shard.
    pub fn damage(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                let mut bytes = fs::read(&path)?;
                let middle = bytes.len() / 2;
                *bytes.get_mut(middle).context("an empty shard")? ^= 1;
                return Ok(fs::write(&path, bytes)?);
            }
        }
        anyhow::bail!("{} has no shard", self.path.display())
    }
}

/// The whole lines of a file of JSON objects; none when it is not there. The last may be being written.
fn lines(path: &Path) -> Result<Vec<Value>> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(Vec::new()) };
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))).collect()
}

/// A model that is small beside its vocabulary, one thread, a checkpoint every five steps of forty.
fn config(shard: &Path, folder: &Path) -> Result<TrainerConfig> {
    let uri = Url::from_file_path(folder).map_err(|()| anyhow::anyhow!("{} is no absolute path", folder.display()))?;
    Ok(TrainerConfig {
        version: FORMAT_VERSION,
        job: "process-test".to_owned(),
        model: ModelConfig {
            shape: ModelShape {
                vision: VisionShape { image_size: 32, patch_size: 16, width: 32, layers: 2, heads: 2 },
                text: TextShape { width: 16, layers: 2, heads: 2, context_length: 24, vocab_size: 49_411 },
                embed_dim: 16,
                pool_heads: 2,
                special_tokens: SpecialTokens::CLIP,
            },
            objective: Objective::Lcl { generation_weight: 1.0, contrastive_weight: 0.1 },
            // On, so that a resume with other random numbers shows.
            drop_path: 0.2,
            layer_scale: None,
            activation_checkpointing: false,
            precision: Precision::Float32,
        },
        data: DataConfig {
            augmentation: AugmentationConfig { scale: [0.5, 1.0], ..AugmentationConfig::default() },
            max_bad_fraction: 1.0,
            ..DataConfig::new(DataSource::webdataset(vec![shard.display().to_string()]))
        },
        optimization: OptimizationConfig {
            steps: 40,
            global_batch_size: 8,
            micro_batch_size: None,
            learning_rate: 1e-3,
            weight_decay: 0.1,
            betas: [0.9, 0.98],
            epsilon: 1e-6,
            schedule: Schedule::Constant { warmup_steps: Some(4) },
            gradient_clip: Some(1.0),
            normalization: Normalization::Global,
            gradient_compression: GradientCompression::None,
            exact: None,
            seed: 11,
            max_consecutive_skipped_steps: 3,
        },
        checkpoint: CheckpointConfig { uri: uri.into(), every_steps: 5, keep_last: 2, keep_every_steps: None },
        runtime: RuntimeConfig { device: Device::Cpu, threads: Some(1) },
    })
}
