//! `status`, `resize`, `drain`, `checkpoint` and `stop`: asks the launcher of a run, and says what it answered. Making text of an answer is
//! pure.

use std::{fmt::Write as _, path::PathBuf};

use serde::Serialize;

use crate::{
    command_line::cli::{AnswerFormat, AskedRun},
    processes::{
        control::{Answer, ControlError, MemberStatus, Request, Resized, RunStatus, Saving, Stopping, WorkerStatus, ask},
        membership::{Members, SourceStatus},
    },
    run::run_folder::{RunFolderError, local_path},
};

/// Happenings that a status for people tells; JSON has all.
const RECENT: usize = 12;

/// A run cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The URI names no folder.
    #[error(transparent)]
    Uri(#[from] RunFolderError),
    /// The launcher cannot be asked, or refuses.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Asks, and gives what is to be printed.
pub fn execute(run: &AskedRun, request: &Request) -> Result<String, AskError> {
    let folder = local_path(&run.run)?.unwrap_or_else(|| PathBuf::from(&run.run));
    let answer = ask(&folder, request)?;
    Ok(match (answer, run.output) {
        (Answer::Status(status), AnswerFormat::Text) => status_text(&status),
        (Answer::Status(status), AnswerFormat::Json) => json(&status),
        (Answer::Accepted(resized), AnswerFormat::Text) => resized_text(&resized),
        (Answer::Accepted(resized), AnswerFormat::Json) => json(&resized),
        (Answer::Saving(saving), AnswerFormat::Text) => saving_text(saving),
        (Answer::Saving(saving), AnswerFormat::Json) => json(&saving),
        (Answer::Stopping(stopping), AnswerFormat::Text) => stopping_text(&stopping),
        (Answer::Stopping(stopping), AnswerFormat::Json) => json(&stopping),
        // `ask` has made an error of it.
        (Answer::Refused { reason }, _) => reason,
    })
}

/// Strings, numbers and lists of them: JSON can express all of it.
fn json(answer: &impl Serialize) -> String {
    serde_json::to_string_pretty(answer).unwrap_or_default()
}

fn resized_text(resized: &Resized) -> String {
    let Resized { workers, starting, leaving } = resized;
    let text = format!("{workers} workers from now on");
    match (starting.is_empty(), leaving.is_empty()) {
        (true, true) => text + ", as before",
        (false, _) => text + &format!("; {} starting", starting.join(", ")),
        (true, false) => text + &format!("; {} leaving after the step under way", leaving.join(", ")),
    }
}

fn saving_text(saving: Saving) -> String {
    let Saving { from, is_committed, .. } = saving;
    if is_committed {
        format!("step {from} is saved already")
    } else {
        format!("a checkpoint of step {from} or the ones after it is being written; `lcl status` tells when it is there")
    }
}

fn stopping_text(stopping: &Stopping) -> String {
    let after = stopping.step.map(|step| format!(" some steps after {step}")).unwrap_or_default();
    let leaving =
        if stopping.leaving.is_empty() { "no worker runs".to_owned() } else { format!("{} leaving", stopping.leaving.join(", ")) };
    format!("the run saves and ends{after}; {leaving}; the command that started it goes on with it")
}

fn status_text(status: &RunStatus) -> String {
    let RunStatus { job, steps, pid, coordinator, unseen, group, size, workers, history, time } = status;
    // Writing to a string cannot fail.
    let mut text = String::new();
    match group {
        None => {
            let _ = writeln!(text, "{job}: starting");
        }
        Some(group) => {
            let end = group.end_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let saved =
                group.last_checkpoint.map_or_else(|| "no checkpoint yet".to_owned(), |step| format!("last checkpoint at step {step}"));
            let Members { ready, desired, min, .. } = group.members;
            let _ = writeln!(text, "{job}: {}{end}, step {} of {steps}, {saved}", group.phase, group.step);
            let _ = writeln!(text, "members      {ready}/{desired} ready (at least {min} to train)");
            let _ = writeln!(text, "group        {}", group.generation);
            if let (Some(loss), Some(rate)) = (group.loss, group.samples_per_second) {
                let _ = writeln!(text, "loss         {loss:.4}, {rate:.1} samples/s");
            }
        }
    }
    let most = size.max.map_or_else(|| " or more".to_owned(), |max| format!(" to {max}"));
    let _ = writeln!(text, "workers      {} wanted ({}{most} allowed)", size.wanted, size.min);
    let place = coordinator.as_deref().unwrap_or("not there yet");
    let unseen = unseen.as_ref().map(|reason| format!(", not seen at the moment: {reason}")).unwrap_or_default();
    let _ = writeln!(text, "coordinator  {place}{unseen}");
    let _ = writeln!(text, "launcher     process {pid}\n");
    let width = workers.iter().map(|worker| worker.name.len()).max().unwrap_or_default().max("WORKER".len());
    let _ = writeln!(text, "{:width$}  {:>8}  {:8}  MEMBERS", "WORKER", "PROCESS", "STATE");
    for worker in workers {
        let WorkerStatus { name, state, pid, members } = worker;
        let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let members: Vec<String> = members.iter().map(member_text).collect();
        let _ =
            writeln!(text, "{name:width$}  {pid:>8}  {state:8}  {}", if members.is_empty() { "-".to_owned() } else { members.join(", ") });
    }
    let sources = group.as_ref().map(|group| group.sources.as_slice()).unwrap_or_default();
    if !sources.is_empty() {
        text.push_str(&sources_text(sources));
    }
    if !history.is_empty() {
        text.push_str("\nRECENTLY\n");
    }
    for happening in history.iter().skip(history.len().saturating_sub(RECENT)) {
        let _ = writeln!(text, "{:>8.1} s ago  {}", (time - happening.time).max(0.0), happening.event.line());
    }
    text.truncate(text.trim_end().len());
    text
}

/// The sources of a mixture, a line each.
fn sources_text(sources: &[SourceStatus]) -> String {
    let width = sources.iter().map(|source| source.name.len()).max().unwrap_or_default().max("SOURCE".len());
    let mut text = format!("\n{:width$}  {:>11}  {:>10}  {:>11}  {:>9}\n", "SOURCE", "SAMPLES", "GENERATION", "CONTRASTIVE", "DATA WAIT");
    for source in sources {
        let SourceStatus { name, samples, generation_loss, contrastive_loss, data_wait_seconds } = source;
        let loss = |loss: &Option<f64>| loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}"));
        let (generation, contrastive) = (loss(generation_loss), loss(contrastive_loss));
        let _ = writeln!(text, "{name:width$}  {samples:>11}  {generation:>10}  {contrastive:>11}  {data_wait_seconds:>7.3} s");
    }
    text
}

fn member_text(member: &MemberStatus) -> String {
    let rank = member.rank.map_or_else(|| "waits".to_owned(), |rank| format!("rank {rank}"));
    let step = member.step.map(|step| format!(" at step {step}")).unwrap_or_default();
    format!("{} {rank}{step}", member.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        processes::{
            control::Size,
            membership::{Event, Group, Happening},
        },
        run::records::GenerationRecord,
    };

    #[test]
    fn a_status_for_people_says_what_they_look_for() {
        let generation = GenerationRecord { epoch: 1, n: 2 };
        let worker = |number: u32, state: &str, pid, members| WorkerStatus {
            name: format!("job-w-{number}"),
            state: state.to_owned(),
            pid,
            members,
        };
        let member = MemberStatus { name: "job-w-0/0".to_owned(), rank: Some(0), step: Some(198) };
        let lost =
            Event::MemberLost { member: "job-w-1/0".to_owned(), cause: "stream_closed".to_owned(), reason: "stream closed".to_owned() };
        let status = RunStatus {
            job: "job".to_owned(),
            steps: 397,
            pid: 10,
            coordinator: Some("127.0.0.1:1234".to_owned()),
            unseen: None,
            group: Some(Group {
                phase: "running".to_owned(),
                end_reason: None,
                generation,
                members: Members { ready: 1, desired: 2, min: 1, max: 2 },
                step: 198,
                last_checkpoint: None,
                loss: None,
                samples_per_second: None,
                sources: vec![
                    SourceStatus {
                        name: "laion".to_owned(),
                        samples: 40_123,
                        generation_loss: Some(2.75),
                        contrastive_loss: Some(0.5),
                        data_wait_seconds: 0.0,
                    },
                    SourceStatus {
                        name: "mmc4-core".to_owned(),
                        samples: 9,
                        generation_loss: None,
                        contrastive_loss: None,
                        data_wait_seconds: 0.25,
                    },
                ],
            }),
            size: Size { wanted: 2, min: 1, max: Some(3) },
            workers: vec![worker(0, "running", Some(11), vec![member]), worker(1, "starting", None, vec![])],
            history: vec![Happening { time: 97.5, event: lost }],
            time: 100.0,
        };
        assert_eq!(
            status_text(&status),
            "\
job: running, step 198 of 397, no checkpoint yet
members      1/2 ready (at least 1 to train)
group        g000001-000002
workers      2 wanted (1 to 3 allowed)
coordinator  127.0.0.1:1234
launcher     process 10

WORKER    PROCESS  STATE     MEMBERS
job-w-0        11  running   job-w-0/0 rank 0 at step 198
job-w-1         -  starting  -

SOURCE         SAMPLES  GENERATION  CONTRASTIVE  DATA WAIT
laion            40123       2.750        0.500    0.000 s
mmc4-core            9           -            -    0.250 s

RECENTLY
     2.5 s ago  job-w-1/0 lost: stream closed"
        );
    }

    #[test]
    fn what_becomes_of_a_checkpoint_and_of_a_stop_is_said() {
        let saving = |is_committed| saving_text(Saving { from: 9, is_committed, last_checkpoint: None });
        assert_eq!(saving(false), "a checkpoint of step 9 or the ones after it is being written; `lcl status` tells when it is there");
        assert_eq!(saving(true), "step 9 is saved already");
        let stopping =
            |leaving: &[&str], step| stopping_text(&Stopping { leaving: leaving.iter().map(|name| (*name).to_owned()).collect(), step });
        assert_eq!(
            stopping(&["j-w-0", "j-w-1"], Some(9)),
            "the run saves and ends some steps after 9; j-w-0, j-w-1 leaving; the command that started it goes on with it"
        );
        assert_eq!(stopping(&[], None), "the run saves and ends; no worker runs; the command that started it goes on with it");
    }

    #[test]
    fn what_a_resize_did_is_said_and_that_it_did_nothing_too() {
        let check = |starting: &[&str], leaving: &[&str], expected: &str| {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(resized_text(&Resized { workers: 2, starting: names(starting), leaving: names(leaving) }), expected);
        };
        check(&["j-w-1"], &[], "2 workers from now on; j-w-1 starting");
        check(&[], &["j-w-3", "j-w-2"], "2 workers from now on; j-w-3, j-w-2 leaving after the step under way");
        check(&[], &[], "2 workers from now on, as before");
    }
}
