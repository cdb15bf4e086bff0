//! How findings about manifests are printed: a line each for people, one JSON list for programs.

use std::{
    io::{self, Write},
    path::Path,
};

use lcl_crds::KIND;
use lcl_operator_core::{FieldError, FieldErrors};
use serde::Serialize;

use crate::{
    arguments::Output,
    manifest::{Document, ManifestError, Place},
};

/// What was found out about one document, or about a file that holds none.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// The file as it was named.
    file: String,
    /// Position of the document among the file's jobs, from 1; `None` for the file as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<usize>,
    /// The job's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Whether every rule is kept.
    pub(crate) valid: bool,
    /// What is wrong.
    errors: Vec<LocatedError>,
}

/// A broken rule and where it stands.
#[derive(Debug, Serialize)]
struct LocatedError {
    #[serde(flatten)]
    error: FieldError,
    #[serde(flatten)]
    place: Option<Place>,
}

impl Finding {
    /// A job was checked.
    pub(crate) fn of_job(file: &Path, document: (usize, &Document), errors: Option<&FieldErrors>) -> Self {
        let (position, document) = document;
        let errors = errors.map(FieldErrors::as_slice).unwrap_or_default();
        let mut errors: Vec<_> =
            errors.iter().map(|error| LocatedError { error: error.clone(), place: document.find(&error.field) }).collect();
        errors.sort_by_key(|error| error.place);
        Self {
            file: file.display().to_string(),
            document: Some(position),
            name: document.name().map(str::to_owned),
            valid: errors.is_empty(),
            errors,
        }
    }

    /// The file could not be read.
    pub(crate) fn of_unreadable(file: &Path, error: &ManifestError) -> Self {
        let rule = match error {
            ManifestError::Read { source, .. } => format!("{error}: {source}"),
            ManifestError::Parse { reason, .. } => format!("must be valid YAML: {reason}"),
        };
        Self::of_file(file, rule)
    }

    /// The file holds no job.
    pub(crate) fn of_jobless(file: &Path) -> Self {
        Self::of_file(file, format!("holds no {KIND}"))
    }

    fn of_file(file: &Path, rule: String) -> Self {
        let error = FieldError { field: String::new(), value: None, rule };
        let errors = vec![LocatedError { error, place: None }];
        Self { file: file.display().to_string(), document: None, name: None, valid: false, errors }
    }

    fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        if self.valid {
            return writeln!(out, "{}: {KIND} {} is valid", self.file, self.name.as_deref().unwrap_or_default());
        }
        for LocatedError { error, place } in &self.errors {
            write!(out, "{}:", self.file)?;
            if let Some(place) = place {
                write!(out, "{place}:")?;
            }
            match self.document {
                Some(_) => writeln!(out, " {error}")?,
                None => writeln!(out, " {}", error.rule)?,
            }
        }
        Ok(())
    }
}

/// Prints findings to standard output.
pub(crate) fn print(findings: &[Finding], output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        Output::Text => findings.iter().try_for_each(|finding| finding.write_text(&mut out))?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, findings)?;
            writeln!(out)?;
        }
    }
    out.flush()
}
