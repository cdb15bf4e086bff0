//! What a user calls a field of the trainer's configuration: the one table from its path there to the job's manifest.
//!
//! Comes in: a path in the configuration, such as `data.source.shards[0]`. Goes out: where its value was written. Every message of the
//! trainer that names a field does so by this table, since nobody but the operator and `lcl run` ever writes the configuration.

use std::fmt;

/// Where the value of a field comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserField {
    /// This field of the manifest.
    Manifest(String),
    /// This option of `lcl run`.
    Argument(&'static str),
    /// No user sets it: the program does.
    Fixed,
}

/// A target of the table.
#[derive(Clone, Copy)]
enum Target {
    Manifest(&'static str),
    Argument(&'static str),
    Fixed,
}

/// Fields whose path in the manifest is another one than `spec.` and their own, each with all that lies below it.
const OTHERWISE: &[(&str, Target)] = &[
    ("version", Target::Fixed),
    ("job", Target::Manifest("metadata.name")),
    // The tokenizer's.
    ("model.shape.text.vocabSize", Target::Fixed),
    ("model.shape.specialTokens", Target::Fixed),
    // A tagged union here is "exactly one of" there.
    ("model.objective.kind", Target::Manifest("spec.model.objective")),
    ("model.objective.generationWeight", Target::Manifest("spec.model.objective.lcl.generationWeight")),
    ("model.objective.contrastiveWeight", Target::Manifest("spec.model.objective.lcl.contrastiveWeight")),
    ("data.cache.bytes", Target::Manifest("spec.data.cache.sizeGib")),
    ("data.source.kind", Target::Manifest("spec.data")),
    ("data.source.shards", Target::Manifest("spec.data.webdataset.shards")),
    ("data.source.keys.image", Target::Manifest("spec.data.webdataset.imageKeys")),
    ("data.source.keys.caption", Target::Manifest("spec.data.webdataset.captionKeys")),
    ("data.source.keys.captions", Target::Manifest("spec.data.webdataset.captions")),
    ("data.source.keys.filter", Target::Manifest("spec.data.webdataset.filter")),
    ("data.source.keys.separator", Target::Manifest("spec.data.webdataset.keySeparator")),
    ("data.source.documents", Target::Manifest("spec.data.webdataset")),
    ("data.source.mmc4", Target::Manifest("spec.data.mmc4")),
    ("data.source.obelics", Target::Manifest("spec.data.obelics")),
    ("data.source.mixture", Target::Manifest("spec.data.mixture")),
    ("data.source", Target::Manifest("spec.data.webdataset")),
    // What a run's identity calls the names, sizes and counts of the shards.
    ("data.content", Target::Manifest("spec.data.webdataset.shards")),
    ("optimization.schedule.kind", Target::Manifest("spec.optimization.schedule")),
    ("optimization.schedule.warmupSteps", Target::Manifest("spec.optimization.schedule")),
    ("runtime.device", Target::Argument("--device")),
    ("runtime.threads", Target::Argument("--threads")),
];

impl UserField {
    /// A field of a source of a mixture: what it is called without the mixture, behind the place of the source.
    fn in_mixture(field: &str) -> Option<Self> {
        let (index, below) = field.strip_prefix("data.source.mixture.sources[")?.split_once(']')?;
        let Self::Manifest(path) = Self::of(&format!("data.source{}", below.strip_prefix(".source")?)) else { return None };
        Some(Self::Manifest(format!("spec.data.mixture.sources[{index}]{}", path.strip_prefix("spec.data")?)))
    }

    /// What the user calls `field`, a path in the trainer's configuration.
    #[must_use]
    pub fn of(field: &str) -> Self {
        let below = |(path, target): &(&'static str, Target)| {
            let rest = field.strip_prefix(path)?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then_some((rest.to_owned(), *target))
        };
        if let Some(found) = Self::in_mixture(field) {
            return found;
        }
        match OTHERWISE.iter().find_map(below) {
            None => Self::Manifest(format!("spec.{field}")),
            Some((rest, Target::Manifest(path))) => Self::Manifest(format!("{path}{rest}")),
            Some((_, Target::Argument(option))) => Self::Argument(option),
            Some((_, Target::Fixed)) => Self::Fixed,
        }
    }
}

/// A field of the trainer's configuration; shown under the name that the user knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a>(pub &'a str);

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UserField::of(self.0) {
            UserField::Manifest(path) => f.write_str(&path),
            UserField::Argument(option) => f.write_str(option),
            UserField::Fixed => write!(f, "the trainer configuration's {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_called_what_the_manifest_calls_it() {
        let check = |field: &str, expected: &str| assert_eq!(Field(field).to_string(), expected);
        check("data.threads", "spec.data.threads");
        check("data.source.shards", "spec.data.webdataset.shards");
        check("data.source.shards[12]", "spec.data.webdataset.shards[12]");
        check("data.source.keys.image[0]", "spec.data.webdataset.imageKeys[0]");
        check("data.source.keys.captions", "spec.data.webdataset.captions");
        check("data.source.mixture.sources[1].source.keys.filter", "spec.data.mixture.sources[1].webdataset.filter");
        check("data.source", "spec.data.webdataset");
        check("data.source.documents.maxImages", "spec.data.webdataset.maxImages");
        check("data.source.mixture.sources[1].weight", "spec.data.mixture.sources[1].weight");
        check("data.source.mixture.sources[1].source.shards[0]", "spec.data.mixture.sources[1].webdataset.shards[0]");
        check("data.source.mixture.sources[0].source.mmc4.images.folder", "spec.data.mixture.sources[0].mmc4.images.folder");
        check("data.sources", "spec.data.sources");
        check("model.objective.kind", "spec.model.objective");
        check("runtime.device", "--device");
        check("version", "the trainer configuration's version");
    }
}
