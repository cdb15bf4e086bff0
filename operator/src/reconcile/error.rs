//! Why a reconcile failed.

use lcl_operator_core::{FieldErrors, observe::Problem};
use thiserror::Error;

use crate::{
    authority::AuthorityError,
    category::{Categorized, Category},
};

/// Why a reconcile failed. It is repeated, after a pause.
#[derive(Debug, Error)]
pub(crate) enum ReconcileError {
    /// The API server refused, or did not answer.
    #[error("{what}: {}", in_words(source))]
    Api { what: String, source: kube::Error },
    /// Somebody else's object has the name.
    #[error("{kind} {name} exists and does not belong to the job: rename the job or remove it")]
    Foreign { kind: &'static str, name: String },
    /// There is a newer state of the job, or of a pod, than the one that was looked at.
    #[error("the job has changed meanwhile")]
    Stale,
    /// An object cannot be written as JSON.
    #[error("{kind} cannot be written as JSON: {source}")]
    Encode { kind: &'static str, source: serde_json::Error },
    /// No certificates for the job.
    #[error(transparent)]
    Certificates(#[from] AuthorityError),
    /// A pod would do what the operator was not told to allow. Of the same job the status says so by the manifest's own fields.
    #[error("no pod is made of the job's template: {0}")]
    NotAllowed(FieldErrors),
    /// The coordinator refused, or did not answer.
    #[error("{what}: {source}")]
    Coordinator { what: String, source: Box<tonic::Status> },
}

impl ReconcileError {
    /// What is gone needs no deletion. A conflict may mean that another object has the name, but also that this one was changed meanwhile and
    /// is still there: nobody else would look again.
    pub(crate) fn of_deletion(what: &str, source: kube::Error) -> Result<(), Self> {
        match source {
            kube::Error::Api(answer) if answer.code == 404 => Ok(()),
            kube::Error::Api(answer) if answer.code == 409 => Err(Self::Stale),
            source => Err(Self::Api { what: format!("deleting {what}"), source }),
        }
    }

    /// A problem that somebody has to solve; `None` for one that may pass by itself.
    pub(super) fn as_problem(&self) -> Option<Problem> {
        let problem = || Some(Problem { reason: self.category().reason()?, message: self.to_string() });
        match self {
            Self::Foreign { .. } | Self::Encode { .. } | Self::Certificates(_) => problem(),
            Self::Api { source: kube::Error::Api(answer), .. } => {
                matches!(answer.code, 400..=499 if ![408, 409, 429].contains(&answer.code)).then(problem).flatten()
            }
            Self::Api { .. } | Self::Stale | Self::NotAllowed(_) | Self::Coordinator { .. } => None,
        }
    }

    /// Whether the API server has said no, so that it is certain that nothing was created.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Api { source: kube::Error::Api(answer), .. } if (400..500).contains(&answer.code) && answer.code != 408)
    }
}

impl Categorized for ReconcileError {
    fn category(&self) -> Category {
        match self {
            Self::Api { source, .. } => source.category(),
            Self::Foreign { .. } => Category::ForeignObject,
            Self::NotAllowed(_) => Category::NotAllowed,
            Self::Stale => Category::Conflict,
            Self::Encode { .. } => Category::Encoding,
            Self::Certificates(error) => error.category(),
            Self::Coordinator { .. } => Category::Coordinator,
        }
    }
}

/// What the API server has said, without what programs make of it.
fn in_words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(answer) if !answer.message.is_empty() => answer.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deletion_that_meets_a_conflict_is_looked_at_again() {
        let deletion = |code: u16| {
            let answer = json!({ "status": "Failure", "reason": "R", "message": "words", "code": code });
            let answer = kube::Error::Api(serde_json::from_value(answer).expect("an answer"));
            ReconcileError::of_deletion("pod a", answer).map_err(|error| error.to_string())
        };
        assert_eq!(deletion(404), Ok(()), "it is gone");
        assert_eq!(deletion(409), Err(ReconcileError::Stale.to_string()), "the pod may still be there");
        assert_eq!(deletion(500), Err("deleting pod a: words".to_owned()));
    }
}
