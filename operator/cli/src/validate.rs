//! `lcl validate`: the rules of the custom resource, without a cluster.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Error};

use lcl_operator_core::{PodPolicy, validate_under};

use crate::{
    arguments::ValidateArguments,
    manifest,
    report::{self, Finding},
};

/// Checks every file and prints what was found. Exit code 0 when every job is valid, else 1.
pub(crate) fn execute(arguments: &ValidateArguments) -> Result<ExitCode, Error> {
    let policy = PodPolicy::allowing(arguments.allow.iter().copied());
    let findings: Vec<Finding> = arguments.files.iter().flat_map(|file| check(file, &policy)).collect();
    report::print(&findings, arguments.output).context("cannot print the result")?;
    Ok(if findings.iter().all(|finding| finding.valid) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check(file: &Path, policy: &PodPolicy) -> Vec<Finding> {
    let documents = match manifest::read(file) {
        Ok(documents) => documents,
        Err(error) => return vec![Finding::of_unreadable(file, &error)],
    };
    let jobs = documents.iter().filter(|document| document.is_job());
    let findings: Vec<_> = jobs
        .enumerate()
        .map(|(index, document)| {
            let errors = validate_under(&document.value, policy).err();
            Finding::of_job(file, (index + 1, document), errors.as_ref())
        })
        .collect();
    if findings.is_empty() { vec![Finding::of_jobless(file)] } else { findings }
}
