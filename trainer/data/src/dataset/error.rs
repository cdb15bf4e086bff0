//! Why a data set cannot be opened or read.
//!
//! Comes in: what shards, indexes and folders give for errors. Goes out: one error, and the system's behind it, which decides whether another attempt
//! can help.

use std::{io, path::PathBuf};

use lcl_trainer_config::{Field, in_mixture};

use super::NoPair;
use crate::{
    count_of,
    documents::DocumentIndexError,
    index::IndexError,
    shard::{ListError, ShardError},
};

/// A data set cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The list of shards is malformed.
    #[error(transparent)]
    List(#[from] ListError),
    /// A shard or its index cannot be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A shard cannot be read.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// There is nothing to train on.
    #[error(transparent)]
    NoPair(Box<NoPair>),
    /// A shard of MMC4 cannot be read.
    #[error(transparent)]
    Mmc4(#[from] crate::mmc4::ShardError),
    /// A file of OBELICS cannot be read.
    #[error(transparent)]
    Obelics(#[from] crate::obelics::ObelicsError),
    /// The table of addresses of images cannot be made or read.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// An index of documents cannot be made or read.
    #[error(transparent)]
    Documents(#[from] DocumentIndexError),
    /// An image's file is there and cannot be read.
    #[error("reading image {path}")]
    Image {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The folder of images is not there.
    #[error("{} is {path}, which is no folder here: check the name, and that its volume is mounted", Field(field))]
    Folder {
        /// The field that names it, as a path in the trainer's configuration.
        field: String,
        /// The folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// None of the images that documents name is where they are looked for.
    #[error(
        "{} is {place}: of {} that were looked for there none is there, the first: {example}; {advice}",
        Field(field),
        count_of(*looked_for, "image")
    )]
    NoImageFound {
        /// The field that says where images are, as a path in the trainer's configuration.
        field: String,
        /// What it names.
        place: String,
        /// How many were looked for: some of each of the shards.
        looked_for: u64,
        /// The first of them: a path, or an address.
        example: String,
        /// What to do.
        advice: String,
    },
    /// Images lie in folders by the number of their shard, and a shard has none.
    #[error("{} is ByShard, but the name of {path} has no number (as in docs_shard_17_v2.jsonl)", Field(field))]
    NoShardNumber {
        /// The field, as a path in the trainer's configuration.
        field: String,
        /// The shard.
        path: PathBuf,
    },
    /// There is no document to train on.
    #[error("{}: {}", Field(field), match documents {
        0 => format!("there is no document in {}: check that these are the right files", count_of(*shards as u64, "shard")),
        _ => format!(
            "of {} in {} none has an image that may be used: {causes}",
            count_of(*documents, "document"),
            count_of(*shards as u64, "shard")
        ),
    })]
    NoDocument {
        /// The field that names the shards, as a path in the trainer's configuration.
        field: String,
        /// Number of shards.
        shards: usize,
        /// Documents in them.
        documents: u64,
        /// How many were left out for which cause, and the first of each.
        causes: String,
    },
    /// What a field names cannot be used.
    #[error("{}", Field(field))]
    Unusable {
        /// The field, as a path in the trainer's configuration.
        field: String,
        /// Why.
        source: Box<DatasetError>,
    },
    /// A list of shards cannot be written.
    #[error("writing a list of shards into {folder}: make room there, or name another folder in TMPDIR")]
    Temporary {
        /// Where temporary files are.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A sample's number is not below the number of samples.
    #[error("sample {sample} does not exist: the data set has {samples}, numbered from 0")]
    OutOfRange {
        /// The number asked for.
        sample: u64,
        /// Samples of the data set.
        samples: u64,
    },
}

impl DatasetError {
    /// There is nothing in what this field names.
    pub(crate) fn no_document(field: &str) -> Self {
        Self::NoDocument { field: field.to_owned(), shards: 0, documents: 0, causes: String::new() }
    }

    /// The same with the name of the field that names the shards, for a source that may be one of a mixture. What passes by itself, or has
    /// the name of another field, stays as it is.
    pub(crate) fn of_field(self, name: &str, mixed: Option<usize>) -> Self {
        let field = mixed.map_or_else(|| name.to_owned(), |source| in_mixture(source, name));
        match self {
            Self::NoDocument { shards, documents, causes, .. } => Self::NoDocument { field, shards, documents, causes },
            Self::Shard(_)
            | Self::Mmc4(_)
            | Self::Obelics(_)
            | Self::Store(_)
            | Self::Index(IndexError::Shard(_) | IndexError::NotMade { .. })
                if self.io().is_none() =>
            {
                Self::Unusable { field, source: Box::new(self) }
            }
            other => other,
        }
    }

    /// What is wrong, without the name of the field.
    pub(crate) fn without_field(&self) -> &Self {
        match self {
            Self::Unusable { source, .. } => source,
            other => other,
        }
    }

    pub(crate) fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Index(error) => error.io(),
            Self::Shard(error) => error.io(),
            Self::Mmc4(error) => error.io(),
            Self::Obelics(error) => error.io(),
            Self::Store(error) => error.io(),
            Self::Documents(error) => error.io(),
            Self::Image { source, .. } | Self::Folder { source, .. } | Self::Temporary { source, .. } => Some(source),
            _ => None,
        }
    }
}
