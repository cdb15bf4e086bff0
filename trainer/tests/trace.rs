//! The trace of a run's steps.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use lcl_tests::{process, run::Workbench};
use lcl_trainer_config::ExitCode;
use serde_json::Value;

const PERMANENT: u8 = ExitCode::Permanent.code();

/// A span of a trace: name, step if it says one, begin and end in microseconds.
type Span = (String, Option<u64>, [f64; 2]);

/// The spans of a trace in Chrome's format.
fn spans_of(text: &str) -> Result<Vec<Span>> {
    let mut open: Vec<(u64, Span)> = Vec::new();
    let mut spans = Vec::new();
    for event in serde_json::from_str::<Vec<Value>>(text)? {
        let (name, thread) = (event["name"].as_str().context("no name")?, event["tid"].as_u64().context("no thread")?);
        let time = || event["ts"].as_f64().context("no time");
        match event["ph"].as_str() {
            Some("B") => {
                let step = event["args"]["step"].as_str().and_then(|step| step.parse().ok());
                open.push((thread, (name.to_owned(), step, [time()?, 0.0])));
            }
            Some("E") => {
                let place = open.iter().rposition(|(on, span)| *on == thread && span.0 == name).context("an end without a begin")?;
                let (_, (name, step, [begin, _])) = open.remove(place);
                spans.push((name, step, [begin, time()?]));
            }
            _ => {}
        }
    }
    Ok(spans)
}

#[test]
fn a_trace_shows_the_parts_of_each_step_and_that_the_next_ones_rows_are_prepared_meanwhile() -> Result<()> {
    let workbench = Workbench::new(&[])?;
    let training = workbench.begin("run")?;
    let folder = workbench.path("traces");
    let mut command = Command::new(process::trainer()?);
    command.args(training.arguments(&["--steps", "20"])?).env("LCL_TRACE", &folder);
    process::start_command(command)?.wait()?.expect_code(0)?;
    let files = fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>()?;
    ensure!(files.len() == 1, "{files:?}");
    let spans = spans_of(&fs::read_to_string(files[0].path())?)?;
    for name in ["wait for data", "prepare rows", "exchange", "step", "forward", "contrast", "backward", "update"] {
        let found = spans.iter().filter(|span| span.0 == name).count();
        ensure!(found >= 20, "{found} spans are called {name}");
    }
    let of = |name: &str, step: u64| spans.iter().find(|span| span.0 == name && span.1 == Some(step)).map(|span| span.2);
    let meanwhile = (1..20).filter(|step| {
        let (Some([begin, end]), Some([step_begin, step_end])) = (of("prepare rows", *step), of("step", step - 1)) else { return false };
        step_begin <= begin && end <= step_end
    });
    // A batch that is not there yet is waited for after the step.
    ensure!(meanwhile.count() >= 5, "rows are prepared between steps: {spans:?}");

    // A folder that cannot be is named.
    fs::write(workbench.path("file"), "")?;
    let mut command = Command::new(process::trainer()?);
    command.args(training.arguments(&[])?).env("LCL_TRACE", workbench.path("file"));
    let refused = process::start_command(command)?.wait()?.expect_code(PERMANENT)?;
    ensure!(refused.stderr.contains("file/trace-") && refused.stderr.contains("LCL_TRACE"), "{}", refused.stderr);
    Ok(())
}
