//! Histories of jobs, each played by a [`scene::Scene`].

mod conditions;
mod ending;
mod failures;
mod histories;
#[path = "../../tests/support/jobs.rs"]
mod jobs;
mod scaling;
mod scene;
mod starting;
mod suspension;
