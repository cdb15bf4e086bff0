//! `report`: a run's records, wherever they lie, as one page.

use std::{fs, path::Path};

use lcl_checkpoint::{CheckpointStore, StoreOptions};
use lcl_trainer_config::ExitCode;

use crate::{
    command_line::{
        cli::ReportArgs,
        commands::{CommandError, say},
    },
    evaluation::{retrieval::Evaluation, trained::to_uri},
    report,
    run::{
        journal::{self, segments},
        records::StepRecord,
        run_folder::local_path,
    },
};

/// Writes a run's page: from its folder or its object store, with evaluations if some are given.
pub(super) fn write(arguments: &ReportArgs) -> Result<ExitCode, CommandError> {
    let uri = to_uri(&arguments.run)?;
    let file = |action, path: &Path| {
        let path = path.to_owned();
        move |source| CommandError::File { action, path, source }
    };
    let (steps, events) = if let Some(folder) = local_path(&uri)? {
        (journal::read_steps(&folder)?, journal::read_events(&folder)?)
    } else {
        let store = CheckpointStore::open(&uri, StoreOptions::default())?;
        let fetch = |name: &str| store.read_file(name).map(Option::unwrap_or_default);
        let place = Path::new(&uri);
        let mut metrics: Vec<StepRecord> = Vec::new();
        let closed = segments::among(store.file_names(segments::BEGINNING)?).into_iter().map(|segment| segment.name);
        for name in closed.chain([journal::METRICS_FILE.to_owned()]) {
            metrics.extend(journal::parse::<StepRecord>(&fetch(&name)?, &place.join(&name))?);
        }
        (metrics, journal::parse(&fetch(journal::RUN_FILE)?, &place.join(journal::RUN_FILE))?)
    };
    if steps.is_empty() {
        return Err(CommandError::NoMetrics { run: arguments.run.clone() });
    }
    let mut evaluations: Vec<Evaluation> = Vec::new();
    for path in &arguments.retrieval {
        let text = fs::read(path).map_err(file("read", path))?;
        let evaluation = serde_json::from_slice(&text).map_err(|source| CommandError::Evaluation { path: path.clone(), source })?;
        evaluations.push(evaluation);
    }
    let page = report::page(&journal::current(steps), &events, &evaluations);
    fs::write(&arguments.output, page).map_err(file("write", &arguments.output))?;
    say(&arguments.output.display().to_string());
    Ok(ExitCode::Success)
}
