//! What was in the way, in a word: the same one in metrics, in the log, and in what a job's status and Events give as the reason.
//!
//! Every enum of errors of this crate says to which category its variants belong; `docs/operations.md` lists them.

use std::error::Error;

use lcl_operator_core::decide::reason;

use crate::{client::NoAnswer, fence::Refused, leader::Lost, revision::Restored};

/// A kind of obstacle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Category {
    /// The API server refused.
    ApiServer,
    /// It did not answer in time.
    NoAnswer,
    /// Not sent: another operator may act now.
    Fenced,
    /// There is a newer state than the one that was looked at.
    Conflict,
    /// Somebody else's object has the name.
    ForeignObject,
    /// The operator was not told to allow it.
    NotAllowed,
    /// An object cannot be written as JSON.
    Encoding,
    /// Certificates cannot be made.
    Certificates,
    /// A job's coordinator refused, or did not answer.
    Coordinator,
    /// A lease cannot be read or written.
    Lease,
    /// This process leads no longer.
    LeaseLost,
    /// The cluster's data were restored from a backup.
    Restored,
}

impl Category {
    /// All of them.
    #[cfg(test)]
    const ALL: [Self; 12] = [
        Self::ApiServer,
        Self::NoAnswer,
        Self::Fenced,
        Self::Conflict,
        Self::ForeignObject,
        Self::NotAllowed,
        Self::Encoding,
        Self::Certificates,
        Self::Coordinator,
        Self::Lease,
        Self::LeaseLost,
        Self::Restored,
    ];

    /// Label of the metric `lcl_operator_errors_total`, and the log's field `category`.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::ApiServer => "api_server",
            Self::NoAnswer => "no_answer",
            Self::Fenced => "fenced",
            Self::Conflict => "conflict",
            Self::ForeignObject => "foreign_object",
            Self::NotAllowed => "not_allowed",
            Self::Encoding => "encoding",
            Self::Certificates => "certificates",
            Self::Coordinator => "coordinator",
            Self::Lease => "lease",
            Self::LeaseLost => "lease_lost",
            Self::Restored => "restored",
        }
    }

    /// Reason of the condition `Stalled` and of the Event; `None` where a job is not told, since it passes by itself or is about the operator.
    pub(crate) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::ApiServer | Self::ForeignObject | Self::Encoding | Self::Certificates => Some(reason::CREATE_FAILED),
            Self::NotAllowed => Some(reason::VALIDATION_FAILED),
            Self::NoAnswer | Self::Fenced | Self::Conflict | Self::Coordinator | Self::Lease | Self::LeaseLost | Self::Restored => None,
        }
    }
}

/// An error that says what was in the way.
pub(crate) trait Categorized {
    /// Of which category it is.
    fn category(&self) -> Category;
}

/// That of a request to the API server: it may not have been sent, or not have been answered.
impl Categorized for kube::Error {
    fn category(&self) -> Category {
        let mut cause: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if error.is::<Refused>() {
                return Category::Fenced;
            }
            if error.is::<NoAnswer>() {
                return Category::NoAnswer;
            }
            cause = error.source();
        }
        Category::ApiServer
    }
}

/// Label of what ended the process, where it is known: for the last line of the log.
pub fn category_of(error: &anyhow::Error) -> Option<&'static str> {
    let lost = error.downcast_ref::<Lost>().map(Categorized::category);
    lost.or_else(|| error.downcast_ref::<Restored>().map(Categorized::category)).map(Category::label)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// A row of the table: `| label | reason, or a dash | what it is |`.
    #[test]
    fn every_category_is_in_the_documentation_with_its_reason() {
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md")).expect("the page");
        let (_, table) = page.split_once("## Errors of the operator").expect("the section");
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        for category in Category::ALL {
            let row = rows.iter().find(|row| row.get(1) == Some(&format!("`{}`", category.label()).as_str()));
            let row = row.unwrap_or_else(|| panic!("{} is not in docs/operations.md", category.label()));
            let reason = category.reason().map_or_else(|| "–".to_owned(), |reason| format!("`{reason}`"));
            assert_eq!(row.get(2), Some(&reason.as_str()), "{}", category.label());
        }
        let listed = rows.iter().filter(|row| row.get(1).is_some_and(|label| label.starts_with('`'))).count();
        assert_eq!(listed, Category::ALL.len(), "the page lists what there is not");
    }

    #[test]
    fn what_ended_the_process_has_its_category() {
        let restored = anyhow::Error::from(Restored::WentBack { from: 2, to: 1 }).context("watching jobs");
        assert_eq!(category_of(&restored), Some("restored"));
        assert_eq!(category_of(&anyhow::anyhow!("something else")), None);
    }

    #[test]
    fn a_request_that_was_not_answered_is_told_from_one_that_was_refused() {
        let late = kube::Error::Service(Box::new(NoAnswer::of_a_test()));
        assert_eq!(late.category(), Category::NoAnswer);
        assert_eq!(kube::Error::LinesCodecMaxLineLengthExceeded.category(), Category::ApiServer);
    }
}
