//! What a run is: the settings that must not change when it goes on, and the comparison that names the field that did.
//!
//! Comes in: the configuration and the digest of the data. Goes out: an [`Identity`], stored with every checkpoint.
//! Model, batch, seed and data are in it. Learning rate, schedule, steps, clipping, decay, checkpoint policy, micro-batch, threads and device
//! are not: they may change.

use lcl_data::{Dataset, dataset::Description};
use lcl_trainer_config::{DataSource, ExactConfig, Field, Mmc4Config, ModelConfig, ObelicsConfig, SampleKeys, TrainerConfig};
use serde_json::{Map, Value, json};

/// The field that stands for the shards' names, sizes and counts.
pub(crate) const DATA_CONTENT: &str = "data.content";

/// Fields that follow from other settings, which say more: they are looked at last.
const DERIVED: [&str; 2] = [DATA_CONTENT, "data.shuffle.lanes"];

/// What the fields of the keys of images and captions begin with.
const SAMPLE_KEYS: &str = "data.source.keys";

/// The field of the sources of a mixture.
const MIXED_SOURCES: &str = "data.source.mixture.sources";

/// The greatest window that a manifest can give.
const WHOLE_SET: u64 = 1_000_000_000;

/// What a checkpoint's metadata calls the settings.
const IDENTITY: &str = "identity";

/// What it calls the description of the data.
const DATA: &str = "dataDescription";

/// The settings of a run that must not change, by the path of their field.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity {
    fields: Map<String, Value>,
    /// What the data consist of, where that is known: it says what has changed when their digest has.
    data: Option<Description>,
}

/// A run is continued with another configuration than it was begun with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}: set it back, or start another run in another folder (--fresh starts over in this one)",
    difference.as_ref().map_or_else(
        || format!("{} is {now}, but the checkpoint was trained with {before}", name(field)),
        |difference| format!("{} names other data than the checkpoint was trained with: {difference}", Field(field))
    )
)]
pub struct ChangedField {
    /// Path of the field in the trainer's configuration, in camel case; the message has the manifest's.
    pub field: String,
    /// What the checkpoint was trained with.
    pub before: String,
    /// What the configuration says now.
    pub now: String,
    /// Of other data what is different, as far as the checkpoint tells.
    pub difference: Option<String>,
}

/// The checkpoint's metadata holds no settings to compare with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint's metadata has no `identity`: it was not written by this program")]
pub struct NoIdentity;

fn name(field: &str) -> String {
    let is_content = field == DATA_CONTENT || field.ends_with(".shards") || field == MIXED_SOURCES;
    let what = if is_content { " (the digest of their names, sizes and counts)" } else { "" };
    format!("{}{what}", Field(field))
}

impl Identity {
    /// The identity of a run on this data set.
    #[must_use]
    pub fn of(config: &TrainerConfig, dataset: &Dataset) -> Self {
        Self { data: Some(dataset.description()), ..Self::new(config, Some(&dataset.digest())) }
    }

    /// The identity of a configuration whose data set has `data_digest`; `None` leaves open which data it will be (imported weights have
    /// seen none).
    #[must_use]
    pub fn new(config: &TrainerConfig, data_digest: Option<&str>) -> Self {
        let TrainerConfig { model, data, optimization, .. } = config;
        // The same result with less memory: may change.
        let model = ModelConfig { activation_checkpointing: false, ..model.clone() };
        let mut model = serde_json::to_value(model).unwrap_or_default();
        if let Some(model) = model.as_object_mut() {
            model.remove("activationCheckpointing");
        }
        let fields = json!({
            "model": model,
            "data": {
                "imageFirstProbability": data.image_first_probability,
                "augmentation": data.augmentation,
                "reducedScaleDecoding": data.reduced_scale_decoding,
                "shuffle": {
                    "lanes": data.shuffle.lanes_of(optimization.global_batch_size),
                    "window": data.shuffle.window,
                },
            },
            "optimization": {
                "globalBatchSize": optimization.global_batch_size,
                "normalization": optimization.normalization,
                "gradientCompression": optimization.gradient_compression,
                // Not how often it is verified, which changes no bit.
                "exact": optimization.exact.map(|exact| ExactConfig { verify_every_steps: None, ..exact }),
                "seed": optimization.seed,
                // The stored moments are averages with these.
                "betas": optimization.betas,
                "epsilon": optimization.epsilon,
            },
        });
        let mut flat = Map::new();
        flatten("", fields, &mut flat);
        // Left out as long as they are what they were before anybody could say otherwise: older checkpoints go on.
        if let Some(keys) = data.source.keys().filter(|keys| !keys.is_default()) {
            flatten(SAMPLE_KEYS, json!(keys), &mut flat);
        }
        // What decides which documents are samples, and what becomes of them; where they lie may change.
        match &data.source {
            DataSource::Webdataset { .. } => {}
            DataSource::Documents { documents } => {
                flatten("data.source.documents", json!({ "maxImages": documents.max_images }), &mut flat);
            }
            DataSource::Mmc4 { mmc4: Mmc4Config { min_similarity, max_images, .. } } => {
                let settings = json!({ "minSimilarity": min_similarity, "maxImages": max_images });
                flatten("data.source.mmc4", settings, &mut flat);
            }
            DataSource::Obelics { obelics: ObelicsConfig { split, max_images, .. } } => {
                flatten("data.source.obelics", json!({ "split": split, "maxImages": max_images }), &mut flat);
            }
            DataSource::Mixture { mixture } => {
                // Weights and settings of all sources; where they lie may change.
                let sources = mixture.sources.iter().map(|mixed| {
                    let settings = match &mixed.source {
                        DataSource::Webdataset { keys, .. } => json!({ "keys": keys }),
                        DataSource::Documents { documents } => json!({ "maxImages": documents.max_images }),
                        DataSource::Mmc4 { mmc4 } => json!({ "minSimilarity": mmc4.min_similarity, "maxImages": mmc4.max_images }),
                        DataSource::Obelics { obelics } => json!({ "split": obelics.split, "maxImages": obelics.max_images }),
                        DataSource::Mixture { .. } => Value::Null,
                    };
                    json!({ "name": mixed.name, "weight": mixed.weight, "settings": settings })
                });
                let settings = json!({ "by": mixture.by, "sources": sources.collect::<Vec<_>>() });
                flatten("data.source.mixture", settings, &mut flat);
            }
        }
        if let Some(digest) = data_digest {
            flat.insert(DATA_CONTENT.to_owned(), digest.into());
        }
        Self { fields: flat, data: None }
    }

    /// The settings, by their fields.
    #[must_use]
    pub fn to_value(&self) -> Value {
        Value::Object(self.fields.clone())
    }

    /// As stored in a checkpoint's metadata.
    #[must_use]
    pub fn to_metadata(&self) -> Map<String, Value> {
        // Plain data with string keys: JSON can express all of it.
        let data = self.data.as_ref().map(|data| (DATA.to_owned(), json!(data)));
        [(IDENTITY.to_owned(), self.to_value())].into_iter().chain(data).collect()
    }

    /// Reads what [`Identity::to_metadata`] wrote, or an earlier version, which knew no more of the data than their digest.
    pub fn from_metadata(metadata: &Value) -> Result<Self, NoIdentity> {
        let fields = metadata.get(IDENTITY).and_then(Value::as_object).ok_or(NoIdentity)?.clone();
        let data = metadata.get(DATA).and_then(|data| serde_json::from_value(data.clone()).ok());
        Ok(Self { fields, data })
    }

    /// BLAKE3 over the fields, as hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        // The map is ordered by field, so equal settings give equal text.
        blake3::hash(self.to_value().to_string().as_bytes()).to_hex().to_string()
    }

    /// The field that says where the data lie.
    fn content_field(&self) -> String {
        let kinds = [("documents", ".shards"), ("mmc4", ".shards"), ("obelics", ".shards"), ("mixture", ".sources")];
        let has = |kind: &str| self.fields.keys().any(|field| field.starts_with(&format!("data.source.{kind}.")));
        let found = kinds.into_iter().find(|(kind, _)| has(kind));
        found.map_or(DATA_CONTENT.to_owned(), |(kind, list)| format!("data.source.{kind}{list}"))
    }

    /// The first field that differs from what a checkpoint was trained with.
    pub fn compare(&self, before: &Self) -> Result<(), ChangedField> {
        let none = Value::Null;
        let mut usual = Map::new();
        flatten(SAMPLE_KEYS, json!(SampleKeys::default()), &mut usual);
        // Before there were windows the whole data set was one; how many lanes there would have been did not matter.
        flatten("data.shuffle.window", json!(WHOLE_SET), &mut usual);
        let of = |identity: &Self, field: &String| identity.fields.get(field).or_else(|| usual.get(field)).unwrap_or(&none).clone();
        let fields = self.fields.keys().chain(before.fields.keys().filter(|field| !self.fields.contains_key(*field)));
        let (derived, settings): (Vec<_>, Vec<_>) = fields.partition(|field| DERIVED.contains(&field.as_str()));
        for field in settings.into_iter().chain(derived) {
            if DERIVED.contains(&field.as_str()) && !before.fields.contains_key(field) {
                continue;
            }
            let (now, was) = (of(self, field), of(before, field));
            if now != was {
                if let Some(changed) = changed_source(field, &was, &now) {
                    return Err(changed);
                }
                let changed = |field, difference| ChangedField { field, before: was.to_string(), now: now.to_string(), difference };
                return Err(if field == DATA_CONTENT {
                    let data = self.data.as_ref().zip(before.data.as_ref());
                    changed(self.content_field(), data.and_then(|(now, before)| now.changed_from(before)))
                } else {
                    changed(field.clone(), None)
                });
            }
        }
        Ok(())
    }
}

/// Which setting of which source of a mixture has changed, as long as they are the same sources.
fn changed_source(field: &str, before: &Value, now: &Value) -> Option<ChangedField> {
    let (before, now) = (before.as_array()?, now.as_array()?);
    let same_sources = before.len() == now.len() && before.iter().zip(now).all(|(before, now)| before["name"] == now["name"]);
    let sources = || before.iter().zip(now).enumerate().filter(|_| same_sources && field == MIXED_SOURCES);
    sources().find_map(|(number, (before, now))| {
        let (mut was, mut is) = (Map::new(), Map::new());
        flatten("", before.clone(), &mut was);
        flatten("", now.clone(), &mut is);
        let none = Value::Null;
        let of = |settings: &Map<String, Value>, name: &String| settings.get(name).unwrap_or(&none).clone();
        let name = is.keys().chain(was.keys()).find(|name| of(&was, name) != of(&is, name))?;
        let kind = if is.contains_key("settings.minSimilarity") { ".mmc4" } else { ".obelics" };
        let below = match name.strip_prefix("settings") {
            Some(keys) if keys.starts_with(".keys") => format!(".source{keys}"),
            Some(setting) => format!(".source{kind}{setting}"),
            None => format!(".{name}"),
        };
        let (before, now) = (of(&was, name).to_string(), of(&is, name).to_string());
        Some(ChangedField { field: format!("{MIXED_SOURCES}[{number}]{below}"), before, now, difference: None })
    })
}

fn flatten(path: &str, value: Value, flat: &mut Map<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name } else { format!("{path}.{name}") };
                flatten(&path, value, flat);
            }
        }
        value => {
            flat.insert(path.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::tiny_config;
    use lcl_trainer_config::{
        CaptionChoice, CaptionFrom, KeySeparator, MixedSource, MixtureConfig, MixtureUnit, Precision, Schedule, ShuffleConfig,
    };

    fn check(change: impl FnOnce(&mut TrainerConfig), expected: Option<&str>) {
        let config = tiny_config();
        let before = Identity::new(&config, Some("data"));
        let mut changed = config;
        change(&mut changed);
        let now = Identity::new(&changed, Some("data"));
        let difference = now.compare(&Identity::from_metadata(&Value::Object(before.to_metadata())).unwrap()).err();
        assert_eq!(difference.as_ref().map(|changed| changed.field.as_str()), expected);
        assert_eq!(before.digest() == now.digest(), expected.is_none());
    }

    #[test]
    fn a_changed_model_batch_or_seed_is_named() {
        check(|config| config.model.shape.vision.width = 48, Some("model.shape.vision.width"));
        check(|config| config.model.drop_path = 0.1, Some("model.dropPath"));
        check(|config| config.model.layer_scale = Some(1e-4), Some("model.layerScale"));
        check(|config| config.model.precision = Precision::Bfloat16, Some("model.precision"));
        check(|config| config.model.objective = lcl_trainer_config::Objective::Clip, Some("model.objective.kind"));
        check(|config| config.optimization.global_batch_size = 9, Some("optimization.globalBatchSize"));
        check(|config| config.optimization.global_batch_size = 128, Some("optimization.globalBatchSize"));
        check(|config| config.optimization.seed = 9, Some("optimization.seed"));
        check(|config| config.optimization.betas = [0.9, 0.999], Some("optimization.betas"));
        check(|config| config.optimization.epsilon = 1e-8, Some("optimization.epsilon"));
        check(|config| config.data.augmentation.scale = [0.5, 1.0], Some("data.augmentation.scale"));
        check(|config| config.data.image_first_probability = 0.4, Some("data.imageFirstProbability"));
        check(|config| config.data.shuffle.window = 9, Some("data.shuffle.window"));
        check(|config| config.data.shuffle.lanes = Some(7), Some("data.shuffle.lanes"));
        let with_keys = |config: &mut TrainerConfig, change: fn(&mut SampleKeys)| {
            let DataSource::Webdataset { keys, .. } = &mut config.data.source else { panic!("pairs") };
            change(keys);
        };
        check(|config| with_keys(config, |keys| keys.image.reverse()), Some("data.source.keys.image"));
        check(|config| with_keys(config, |keys| keys.caption.push("caption".to_owned())), Some("data.source.keys.caption"));
        check(|config| with_keys(config, |keys| keys.separator = KeySeparator::LastDot), Some("data.source.keys.separator"));
        check(|config| with_keys(config, |keys| keys.filter = Some("width > 1".to_owned())), Some("data.source.keys.filter"));
        check(|config| with_keys(config, |keys| keys.captions = vec![choice(1)]), Some("data.source.keys.captions"));
    }

    fn choice(weight: u32) -> CaptionChoice {
        CaptionChoice { from: CaptionFrom::Json("caption".to_owned()), weight }
    }

    #[test]
    fn a_changed_setting_of_a_source_of_a_mixture_is_named_by_its_place() {
        let check = |change: fn(&mut MixtureConfig), expected: &str| {
            let mut config = tiny_config();
            let filtered = SampleKeys { filter: Some("width > 1".to_owned()), captions: vec![choice(1)], ..SampleKeys::default() };
            let pairs = |keys| DataSource::Webdataset { shards: vec!["/a.tar".to_owned()], keys };
            let source = |name: &str, source| MixedSource { name: name.to_owned(), weight: 1, source };
            let sources = vec![source("a", pairs(SampleKeys::default())), source("b", pairs(filtered))];
            let mut mixture = MixtureConfig { by: MixtureUnit::Samples, sources };
            config.data.source = DataSource::Mixture { mixture: mixture.clone() };
            let before = Identity::new(&config, Some("data"));
            change(&mut mixture);
            config.data.source = DataSource::Mixture { mixture };
            let refused = Identity::new(&config, Some("other")).compare(&before).unwrap_err().to_string();
            assert!(refused.starts_with(expected), "{refused}");
        };
        check(
            |mixture| {
                let DataSource::Webdataset { keys, .. } = &mut mixture.sources[1].source else { panic!("pairs") };
                keys.filter = Some("width > 2".to_owned());
            },
            "spec.data.mixture.sources[1].webdataset.filter is \"width > 2\", but the checkpoint was trained with \"width > 1\"",
        );
        check(
            |mixture| {
                let DataSource::Webdataset { keys, .. } = &mut mixture.sources[0].source else { panic!("pairs") };
                keys.captions = vec![choice(2)];
            },
            "spec.data.mixture.sources[0].webdataset.captions is [{",
        );
        check(|mixture| mixture.sources[1].weight = 3, "spec.data.mixture.sources[1].weight is 3,");
        check(|mixture| drop(mixture.sources.pop()), "spec.data.mixture.sources (the digest of their names, sizes and counts) is [");
    }

    #[test]
    fn a_checkpoint_from_before_there_were_keys_has_the_usual_ones() {
        let config = tiny_config();
        let before = Identity::new(&config, Some("data"));
        assert!(!before.to_value().to_string().contains("keys"), "older programs would refuse it");
        let mut changed = config;
        let DataSource::Webdataset { keys, .. } = &mut changed.data.source else { panic!("pairs") };
        keys.caption = vec!["caption".to_owned()];
        let now = Identity::new(&changed, Some("data"));
        let refused = now.compare(&before).unwrap_err();
        assert_eq!((refused.before.as_str(), refused.now.as_str()), ("[\"txt\"]", "[\"caption\"]"));
        assert_eq!(before.compare(&now).unwrap_err().field, "data.source.keys.caption");
        assert_eq!(before.compare(&before.clone()), Ok(()));
    }

    #[test]
    fn a_checkpoint_from_before_there_were_windows_was_trained_in_the_order_of_the_largest() {
        let config = tiny_config();
        let before = Identity::new(&config, Some("data")).to_value();
        let fields = before.as_object().unwrap().iter().filter(|(field, _)| !field.starts_with("data.shuffle"));
        let before = Identity { fields: fields.map(|(field, value)| (field.clone(), value.clone())).collect(), data: None };
        let refused = Identity::new(&config, Some("data")).compare(&before).unwrap_err();
        assert_eq!((refused.field.as_str(), refused.before.as_str()), ("data.shuffle.window", "1000000000"));
        let mut changed = config;
        changed.data.shuffle = ShuffleConfig { lanes: Some(3), window: 1_000_000_000 };
        assert_eq!(Identity::new(&changed, Some("data")).compare(&before), Ok(()));
    }

    #[test]
    fn a_changed_setting_of_documents_is_named_before_the_digest_that_depends_on_it() {
        let mut config = tiny_config();
        let mmc4 = Mmc4Config {
            shards: vec!["/a.jsonl".to_owned()],
            images: lcl_trainer_config::Mmc4Images::Flat { folder: "/images".to_owned() },
            min_similarity: 0.24,
            max_images: 6,
        };
        config.data.source = DataSource::Mmc4 { mmc4: mmc4.clone() };
        let before = Identity::new(&config, Some("one"));
        let other = Identity::new(&config, Some("other")).compare(&before).unwrap_err();
        assert!(other.to_string().starts_with("spec.data.mmc4.shards (the digest of their names, sizes and counts) is"), "{other}");
        config.data.source = DataSource::Mmc4 { mmc4: Mmc4Config { min_similarity: 0.25, ..mmc4.clone() } };
        let changed = Identity::new(&config, Some("other")).compare(&before).unwrap_err();
        assert_eq!(changed.field, "data.source.mmc4.minSimilarity");
        let moved = DataSource::Mmc4 { mmc4: Mmc4Config { shards: vec!["/b/{0,1}.jsonl".to_owned()], ..mmc4 } };
        config.data.source = moved;
        assert_eq!(Identity::new(&config, Some("one")).compare(&before), Ok(()));
    }

    #[test]
    fn schedule_policy_and_surroundings_may_change() {
        check(|config| config.optimization.learning_rate = 1e-5, None);
        check(|config| config.optimization.steps = 1_000_000, None);
        check(|config| config.optimization.schedule = Schedule::Constant { warmup_steps: Some(1) }, None);
        check(|config| config.optimization.gradient_clip = Some(0.5), None);
        check(|config| config.optimization.micro_batch_size = Some(1), None);
        check(|config| config.checkpoint.keep_last = 9, None);
        check(|config| config.model.activation_checkpointing = true, None);
        check(|config| config.runtime.threads = Some(9), None);
        check(|config| config.data.threads = 9, None);
        // What nobody wrote and what comes to the same.
        check(
            |config| config.data.shuffle.lanes = Some(config.optimization.global_batch_size / 32).filter(|lanes| *lanes > 0).or(Some(1)),
            None,
        );
    }

    #[test]
    fn other_data_are_told_by_what_has_changed_where_the_checkpoint_says_what_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let (config, shard) = (tiny_config(), folder.path().join("a.tar"));
        let identity = |samples: usize| {
            let mut writer = lcl_data::shard::ShardWriter::create(&shard).unwrap();
            (0..samples).for_each(|key| writer.append_member(&key.to_string(), "jpg", b"x").unwrap());
            writer.append_member("z", "jpg", b"x").unwrap();
            writer.append_member("z", "txt", b"x").unwrap();
            writer.finish().unwrap();
            let source = DataSource::webdataset(vec![shard.display().to_string()]);
            Identity::of(&config, &Dataset::open(&lcl_trainer_config::DataConfig::new(source)).unwrap())
        };
        let before = Value::Object(identity(1).to_metadata());
        let now = identity(9);
        let refused = now.compare(&Identity::from_metadata(&before).unwrap()).unwrap_err().to_string();
        let expected =
            "spec.data.webdataset.shards names other data than the checkpoint was trained with: there are 10 samples, and were 2; ";
        assert!(refused.starts_with(expected) && refused.contains("shard 1, a.tar, has 12288 bytes, and had 4096"), "{refused}");
        assert!(!refused.contains("digest"), "{refused}");
        // Nothing else depends on it.
        assert_eq!(now.digest(), Identity { data: None, ..now.clone() }.digest());
        let earlier = json!({ "identity": before["identity"] });
        let refused = now.compare(&Identity::from_metadata(&earlier).unwrap()).unwrap_err().to_string();
        assert!(refused.starts_with("spec.data.webdataset.shards (the digest of their names, sizes and counts) is"), "{refused}");
        assert_eq!(Identity::from_metadata(&json!({})), Err(NoIdentity));
    }

    #[test]
    fn other_data_is_named_by_its_content_and_not_by_its_folder() {
        let config = tiny_config();
        let difference = Identity::new(&config, Some("one")).compare(&Identity::new(&config, Some("other"))).unwrap_err();
        assert_eq!(difference.field, "data.content");
        let message = difference.to_string();
        assert!(message.starts_with("spec.data.webdataset.shards (the digest of their names, sizes and counts) is \"one\""), "{message}");
        let mut moved = config.clone();
        moved.data.source = lcl_trainer_config::DataSource::webdataset(vec!["/elsewhere/a.tar".to_owned()]);
        assert_eq!(Identity::new(&moved, Some("one")).compare(&Identity::new(&config, Some("one"))), Ok(()));
        assert_eq!(Identity::new(&config, Some("one")).compare(&Identity::new(&config, None)), Ok(()));
    }
}
