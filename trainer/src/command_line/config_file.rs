//! Reading the configuration that the operator or `lcl run` wrote.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use lcl_trainer_config::{ConfigError, TrainerConfig, UserField};

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no configuration.
    #[error("{} in {} is not as expected", both_names(field), path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Path of the field.
        field: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A field breaks a rule.
    #[error("{} cannot be used", path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// Which and how.
        source: ConfigError,
    },
}

/// Reads and validates a configuration. `steps` replaces the number of steps in it.
pub fn read(path: &Path, steps: Option<u64>) -> Result<TrainerConfig, ConfigFileError> {
    let text = fs::read(path).map_err(|source| ConfigFileError::Read { path: path.to_owned(), source })?;
    read_text(&text, path, steps)
}

/// As [`read`], where `-` is standard input.
pub fn read_from(path: &Path, steps: Option<u64>) -> Result<TrainerConfig, ConfigFileError> {
    if path != Path::new("-") {
        return read(path, steps);
    }
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text).map_err(|source| ConfigFileError::Read { path: path.to_owned(), source })?;
    read_text(&text, path, steps)
}

fn read_text(text: &[u8], path: &Path, steps: Option<u64>) -> Result<TrainerConfig, ConfigFileError> {
    let mut config = parse(text).map_err(|error| {
        let field = error.path().to_string();
        ConfigFileError::Parse { path: path.to_owned(), field, source: error.into_inner() }
    })?;
    if let Some(steps) = steps {
        config.optimization.steps = steps;
    }
    config.validate().map_err(|source| ConfigFileError::Rule { path: path.to_owned(), source })?;
    Ok(config)
}

/// What a field is called in this file, and where a user would look for it.
fn both_names(field: &str) -> String {
    match (field, UserField::of(field)) {
        (".", _) => "the whole".to_owned(),
        (field, UserField::Manifest(path)) => format!("{field} ({path} in the manifest)"),
        (field, UserField::Argument(option)) => format!("{field} ({option} of `lcl run`)"),
        (field, UserField::Fixed) => field.to_owned(),
    }
}

fn parse(text: &[u8]) -> Result<TrainerConfig, serde_path_to_error::Error<serde_json::Error>> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(text))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::test_support::tiny_config;

    fn check(change: impl FnOnce(&mut serde_json::Value), steps: Option<u64>, expected: &[&str]) {
        let mut value = serde_json::to_value(tiny_config()).unwrap();
        change(&mut value);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), value.to_string()).unwrap();
        let error = read(file.path(), steps).unwrap_err();
        let message = format!("{error}: {}", error.source().unwrap());
        for part in expected {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
        assert!(message.contains(file.path().to_str().unwrap()), "{message}");
    }

    #[test]
    fn a_wrong_field_is_named_with_its_path() {
        check(|value| value["optimization"]["steps"] = "many".into(), None, &["optimization.steps", "expected u64"]);
        check(|value| value["model"]["shape"]["vision"]["colour"] = 1.into(), None, &["model.shape.vision", "colour"]);
        check(|value| value["data"]["threads"] = 0.into(), None, &["data.threads", "at least 1"]);
        check(|value| value["version"] = 7.into(), None, &["version", "7"]);
        let shards = ["/a.tar", "/d/{0..9.tar"];
        let expected = ["spec.data.webdataset.shards[1] is \"/d/{0..9.tar\", but the `{` at character 4 has no `}`"];
        check(|value| value["data"]["source"]["shards"] = shards.to_vec().into(), None, &expected);
        check(|value| value["data"]["source"]["shards"] = 7.into(), None, &["data.source (spec.data.webdataset in the manifest)"]);
        let keys = serde_json::json!({ "image": ["jpg"], "caption": ["jpg"] });
        check(|value| value["data"]["source"]["keys"] = keys, None, &["spec.data.webdataset.captionKeys is [\"jpg\"], but must not share"]);
    }

    #[test]
    fn the_rules_hold_for_steps_from_the_command_line_too() {
        check(|_| (), Some(1), &["optimization.schedule.cosine.warmupSteps is 2", "must not exceed"]);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nowhere/config.json"), None).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the configuration /nowhere/config.json");
    }
}
