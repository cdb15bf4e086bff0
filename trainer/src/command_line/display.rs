//! What the user sees while a run trains: progress bars, plain lines, or one JSON object a line.
//!
//! Comes in: [`Record`]s, and in a job of several processes what happens to its members. Bars and plain lines go to standard error and
//! standard output respectively; log lines go above the bars through [`LogWriter`]. Nothing here decides anything.

mod episodes;

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use self::episodes::Episodes;
use crate::{
    processes::membership::{Event, Group, Happening},
    run::{
        log_place,
        records::{EndReason, Ended, Record, Started, StepRecord},
    },
};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Bars on the terminal.
    Progress,
    /// One line every few seconds.
    Plain,
    /// Every record of `metrics.jsonl`, as it is written; with several processes also what happens to the members.
    Json,
}

/// Between two plain lines: often enough to see that it lives, seldom enough for a log that is kept.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Shows records as they come.
#[derive(Debug)]
pub enum Display {
    /// Bars on the terminal.
    Progress(Box<Bars>),
    /// Lines.
    Plain {
        /// When the last line was printed.
        printed: Option<Instant>,
        /// Steps at the end.
        steps: u64,
    },
    /// JSON.
    Json,
}

/// Bars of a run.
#[derive(Debug)]
pub struct Bars {
    multi: MultiProgress,
    steps: ProgressBar,
    figures: ProgressBar,
    checkpoint: ProgressBar,
    /// In a job of several processes.
    members: Option<ProgressBar>,
    /// The last disturbances, below.
    happened: Vec<ProgressBar>,
    episodes: Episodes,
}

impl Display {
    /// Prepares the output. `multi` is what [`LogWriter`] draws around.
    #[must_use]
    pub fn new(output: Output, multi: &MultiProgress) -> Self {
        match output {
            Output::Progress => Self::Progress(Box::new(Bars::new(multi))),
            Output::Plain => Self::Plain { printed: None, steps: 0 },
            Output::Json => Self::Json,
        }
    }

    /// Shows one record. What cannot be shown (a closed pipe) does not stop training.
    pub fn show(&mut self, record: &Record) {
        match self {
            Self::Progress(bars) => bars.show(record),
            Self::Plain { printed, steps } => {
                if let Record::Started(started) = record {
                    *steps = started.steps;
                }
                let due = !matches!(record, Record::Step(_)) || printed.is_none_or(|at| at.elapsed() >= PLAIN_INTERVAL);
                if due && let Some(line) = plain_line(record, *steps) {
                    *printed = Some(Instant::now());
                    print_line(&line);
                }
            }
            Self::Json => print_line(&serde_json::to_string(record).unwrap_or_default()),
        }
    }

    /// Shows what happened to the members since the last call, and what the group is now.
    pub fn show_members(&mut self, group: &Group, news: &[Happening]) {
        match self {
            Self::Progress(bars) => bars.show_members(group, news),
            Self::Plain { .. } => {
                for happening in news.iter().filter(|happening| is_told(&happening.event)) {
                    print_line(&format!("members {}/{}  {}", group.members.ready, group.members.desired, happening.event.line()));
                }
            }
            Self::Json => news.iter().for_each(|happening| print_line(&serde_json::to_string(happening).unwrap_or_default())),
        }
    }
}

/// Whether it is worth a line: the job's end has one already.
fn is_told(event: &Event) -> bool {
    !matches!(event, Event::MemberLeft { reason, .. } if reason == "complete")
}

fn print_line(line: &str) {
    // A reader that went away (`lcl run | head`) is no reason to lose a run.
    let _ = writeln!(io::stdout(), "{line}");
}

fn plain_line(record: &Record, steps: u64) -> Option<String> {
    match record {
        Record::Started(started) => Some(started_line(started)),
        Record::Step(step) => Some(format!("step {}/{steps}  {}", step.step + 1, figures(step))),
        Record::CheckpointCommitted(checkpoint) => Some(format!(
            "checkpoint at step {}: training stood still {:.3} s, written in {:.2} s",
            checkpoint.completed_steps, checkpoint.stall_seconds, checkpoint.write_seconds
        )),
        // The log already has a warning with the reason.
        Record::CheckpointFailed(_) => None,
        Record::Ended(ended) => Some(ended_line(ended)),
    }
}

fn started_line(started: &Started) -> String {
    let Started { job, steps, completed_steps, global_batch_size, samples_per_pass, parameters, device, .. } = started;
    let begin = if *completed_steps == 0 { "starts".to_owned() } else { format!("goes on from step {completed_steps}") };
    let millions = *parameters as f64 / 1e6;
    format!(
        "{job} {begin}: {steps} steps of {global_batch_size} samples, {samples_per_pass} samples a pass, \
         {millions:.2} M parameters on {device}"
    )
}

fn figures(step: &StepRecord) -> String {
    let mut text = format!(
        "loss {:.4} (generation {:.4}, contrastive {:.4})  gradient {:.2}  lr {:.2e}  scale {:.1}  {:.1} samples/s  waits {:.0} %",
        step.loss,
        step.generation_loss,
        step.contrastive_loss,
        step.gradient_norm,
        step.learning_rate,
        step.logit_scale,
        step.samples_per_second,
        100.0 * step.data_wait_seconds / (step.data_wait_seconds + step.step_seconds).max(f64::MIN_POSITIVE),
    );
    text.push_str(&data_limit(step).unwrap_or_default());
    if step.update_skipped {
        text.push_str("  update left out");
    }
    text
}

/// Part of the time that training may wait for data before the line says why: below it more threads would hardly be noticed.
const NOTABLE_WAIT: f64 = 0.1;

/// Which stage of the data threads makes training wait, and what helps.
fn data_limit(step: &StepRecord) -> Option<String> {
    let waits = step.data_wait_seconds / (step.data_wait_seconds + step.step_seconds).max(f64::MIN_POSITIVE);
    let stages = step.data_stages.filter(|_| waits >= NOTABLE_WAIT)?;
    let (stage, part) = stages.limit();
    let advice = match stage {
        "read" => "faster storage, or more of spec.data.threads",
        _ => "more of spec.data.threads, while there are processors",
    };
    Some(format!(" for data, limited by {stage} ({:.0} % of {} threads' work): {advice}", 100.0 * part, stages.threads))
}

fn ended_line(ended: &Ended) -> String {
    let reason = match ended.reason {
        EndReason::Completed => "completed",
        EndReason::Preempted => "stopped as asked",
        EndReason::Diverged => "stopped, since no update was possible,",
        EndReason::BadData => "failed, since too many records cannot be used,",
        EndReason::NothingTrained => "failed, since no step had an update,",
    };
    let speed = ended.rows as f64 / ended.training_seconds.max(f64::MIN_POSITIVE);
    let mut text = format!(
        "{reason} after {} steps; this process: {} samples in {:.1} s, {speed:.1} samples/s; parameter hash {}",
        ended.completed_steps, ended.rows, ended.training_seconds, ended.parameter_hash
    );
    for (cause, count) in &ended.skipped_samples {
        // Writing to a string cannot fail.
        let _ = write!(text, "; {count} samples left out: {cause}");
    }
    for (fault, count) in &ended.tolerated_images {
        let _ = write!(text, "; {count} images used in spite of a fault: {fault}");
    }
    text
}

fn bar(multi: &MultiProgress, template: &str) -> ProgressBar {
    // A wrong template shows at the first run of the program; the plain default is no reason to fail then.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    multi.add(ProgressBar::no_length()).with_style(style.progress_chars("━╸─"))
}

impl Bars {
    fn new(multi: &MultiProgress) -> Self {
        multi.set_draw_target(ProgressDrawTarget::stderr());
        Self {
            multi: multi.clone(),
            steps: bar(multi, "{prefix} {bar:40.cyan} step {human_pos}/{human_len}  {elapsed_precise} gone, {eta_precise} left"),
            figures: bar(multi, "{msg}"),
            checkpoint: bar(multi, "{msg:.dim}"),
            members: None,
            happened: Vec::new(),
            episodes: Episodes::default(),
        }
    }

    fn show_members(&mut self, group: &Group, news: &[Happening]) {
        let Self { multi, members, happened, episodes, .. } = self;
        members.get_or_insert_with(|| bar(multi, "{msg}")).set_message(group.line());
        let mut has_changed = false;
        for happening in news {
            has_changed |= episodes.take(&happening.event);
        }
        if !has_changed {
            return;
        }
        for (place, line) in episodes.lines().enumerate() {
            if place == happened.len() {
                happened.push(bar(multi, "  {msg:.dim}"));
            }
            if let Some(bar) = happened.get(place) {
                bar.set_message(line.to_owned());
            }
        }
    }

    fn show(&self, record: &Record) {
        match record {
            Record::Started(started) => {
                let _ = self.multi.println(started_line(started));
                self.steps.set_prefix(started.job.clone());
                self.steps.set_length(started.steps);
                self.steps.set_position(started.completed_steps);
                self.steps.reset_eta();
                self.checkpoint.set_message("no checkpoint yet");
            }
            Record::Step(step) => {
                self.steps.set_position(step.step + 1);
                self.figures.set_message(figures(step));
            }
            Record::CheckpointCommitted(_) | Record::CheckpointFailed(_) => {
                if let Some(line) = plain_line(record, 0) {
                    self.checkpoint.set_message(line);
                }
            }
            Record::Ended(ended) => {
                for bar in [&self.steps, &self.figures, &self.checkpoint].into_iter().chain(&self.members).chain(&self.happened) {
                    bar.finish();
                }
                let _ = self.multi.println(ended_line(ended));
            }
        }
    }
}

/// Writes log lines above the bars.
#[derive(Clone, Debug)]
pub struct LogWriter(MultiProgress);

impl LogWriter {
    /// Writes around the bars of `multi`.
    #[must_use]
    pub fn new(multi: MultiProgress) -> Self {
        Self(multi)
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match log_place::mark(bytes) {
            // Whole or not at all: what was added does not count.
            Some(marked) => self.0.suspend(|| io::stderr().write_all(&marked)).map(|()| bytes.len()),
            None => self.0.suspend(|| io::stderr().write(bytes)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        processes::membership::Members,
        run::records::{DataStages, GenerationRecord, tests::step_record},
    };

    #[test]
    fn a_plain_step_line_has_the_figures_a_reader_looks_for() {
        let line = plain_line(&Record::Step(Box::new(step_record(4))), 100).unwrap();
        assert_eq!(
            line,
            "step 5/100  loss 2.0000 (generation 1.8000, contrastive 2.0000)  gradient 1.50  lr 1.00e-3  scale 14.3  50.0 samples/s  \
             waits 9 %"
        );
    }

    #[test]
    fn a_step_that_waited_for_data_says_which_stage_of_the_threads_took_longest() {
        let line = |data_wait_seconds, read, decode| {
            let stages = DataStages { threads: 4, read, decode, compose: 1.0, wait: 0.0 };
            let step = StepRecord { data_wait_seconds, step_seconds: 0.06, data_stages: Some(stages), ..step_record(4) };
            plain_line(&Record::Step(Box::new(step)), 100).unwrap()
        };
        let decode = line(0.04, 2.0, 7.0);
        let expected =
            "waits 40 % for data, limited by decode (70 % of 4 threads' work): more of spec.data.threads, while there are processors";
        assert!(decode.ends_with(expected), "{decode}");
        let read = line(0.04, 9.0, 0.0);
        assert!(read.ends_with("limited by read (90 % of 4 threads' work): faster storage, or more of spec.data.threads"), "{read}");
        assert!(line(0.004, 2.0, 7.0).ends_with("waits 6 %"));
    }

    #[test]
    fn the_last_line_names_left_out_samples_by_cause() {
        let line = plain_line(
            &Record::Ended(Ended {
                completed_steps: 7,
                generation: GenerationRecord { epoch: 1, n: 0 },
                time: 0.0,
                reason: EndReason::Preempted,
                parameter_hash: "abc".to_owned(),
                skipped_samples: [("no_caption".to_owned(), 3)].into(),
                tolerated_images: [("jpeg_scan_header".to_owned(), 2)].into(),
                skipped_updates: 0,
                training_seconds: 2.0,
                rows: 10,
            }),
            7,
        )
        .unwrap();
        assert_eq!(
            line,
            "stopped as asked after 7 steps; this process: 10 samples in 2.0 s, 5.0 samples/s; parameter hash abc; \
             3 samples left out: no_caption; 2 images used in spite of a fault: jpeg_scan_header"
        );
    }
    #[test]
    fn beside_the_bars_stand_the_members_and_what_befell_them() {
        let multi = MultiProgress::new();
        let mut display = Display::new(Output::Progress, &multi);
        multi.set_draw_target(ProgressDrawTarget::hidden());
        let generation = |n| GenerationRecord { epoch: 1, n };
        let group = |phase: &str, ready, n| Group {
            phase: phase.to_owned(),
            end_reason: None,
            generation: generation(n),
            members: Members { ready, desired: 2, min: 1, max: 2 },
            step: 9,
            last_checkpoint: None,
            loss: None,
            samples_per_second: None,
            sources: Vec::new(),
        };
        let happen = |event| [Happening { time: 1.0, event }];
        let lost = Event::MemberLost { member: "w-1/0".to_owned(), cause: "stream_closed".to_owned(), reason: "reset".to_owned() };
        display.show_members(&group("recovering", 1, 1), &happen(lost));
        let shown = |display: &Display| {
            let Display::Progress(bars) = display else { panic!("no bars") };
            bars.members.iter().chain(&bars.happened).map(ProgressBar::message).collect::<Vec<_>>()
        };
        assert_eq!(shown(&display), ["members 1/2  group g000001-000001  recovering", "w-1/0 lost (stream closed)"]);
        let formed = Event::GroupFormed { generation: generation(2), members: 1, desired: 2, base: Some(9) };
        display.show_members(&group("running", 1, 2), &happen(formed));
        assert_eq!(shown(&display), ["members 1/2  group g000001-000002", "w-1/0 lost (stream closed); 1 of 2 together"]);
    }
}
