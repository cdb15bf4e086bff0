//! What happens to the members of a job, as its coordinator tells it: records for programs and lines for people.
//!
//! Comes in: the statuses of one coordinator after the other. Goes out: [`Happening`]s, each once, and the [`Group`] as it is.
//! These are not the run's records (`records.rs`): nothing of them is written to its files.

use lcl_protocol::{HistoryEntry, HistoryEvent, Phase, SourceProgress, Status};
use serde::{Deserialize, Serialize};

use crate::run::records::GenerationRecord;

/// The group as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// `waiting` (for members), `running`, `recovering` (after a loss or a change) or `ended`.
    pub phase: String,
    /// Why the job has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_reason: Option<String>,
    /// Who trains, or trained last; its number is 0 before the first.
    #[serde(rename = "id")]
    pub generation: GenerationRecord,
    /// How many there are, and how many there should be.
    pub members: Members,
    /// Steps that all members have completed.
    pub step: u64,
    /// Step of the newest checkpoint.
    pub last_checkpoint: Option<u64>,
    /// The loss that is minimised, a mean of the last steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Samples of all members a second, a mean of the last steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_per_second: Option<f64>,
    /// The sources of a mixture, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceStatus>,
}

/// How a source of a mixture comes along. Losses and waits are means of the last steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Its samples that have had their turn in the whole run.
    pub samples: u64,
    /// Over its predicted tokens, not weighted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation_loss: Option<f64>,
    /// Over its contrasted images, not weighted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contrastive_loss: Option<f64>,
    /// Its part of a step's wait for data.
    pub data_wait_seconds: f64,
}

impl From<&SourceProgress> for SourceStatus {
    fn from(source: &SourceProgress) -> Self {
        Self {
            name: source.name.clone(),
            samples: source.samples,
            generation_loss: source.generation_loss,
            contrastive_loss: source.contrastive_loss,
            data_wait_seconds: source.data_wait.as_secs_f64(),
        }
    }
}

/// Numbers of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// In the group.
    pub ready: u32,
    /// Wanted.
    pub desired: u32,
    /// With fewer nothing is trained.
    pub min: u32,
    /// More wait.
    pub max: u32,
}

impl From<&Status> for Group {
    fn from(status: &Status) -> Self {
        let (phase, end_reason) = match status.phase {
            Phase::Waiting => ("waiting", None),
            Phase::Running => ("running", None),
            Phase::Recovering => ("recovering", None),
            Phase::Ended(reason) => ("ended", Some(reason.to_string())),
        };
        let ready = status.members.iter().filter(|member| member.rank.is_some()).count();
        Self {
            phase: phase.to_owned(),
            end_reason,
            generation: status.generation.into(),
            members: Members {
                ready: ready.try_into().unwrap_or(u32::MAX),
                desired: status.world.desired(),
                min: status.world.min(),
                max: status.world.max(),
            },
            step: status.step,
            last_checkpoint: status.saved_step(),
            loss: status.training.and_then(|training| training.loss),
            samples_per_second: status.training.map(|training| training.samples_per_second),
            sources: status.sources.iter().map(SourceStatus::from).collect(),
        }
    }
}

impl Group {
    /// In a line, for people.
    #[must_use]
    pub fn line(&self) -> String {
        let Members { ready, desired, .. } = self.members;
        let phase = if self.phase == "running" { String::new() } else { format!("  {}", self.phase) };
        format!("members {ready}/{desired}  group {}{phase}", self.generation)
    }
}

/// Something that happened to the members. `event` says what when it is printed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Happening {
    /// Unix time in seconds at which it was heard of.
    pub time: f64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// A member attached: it is let in as soon as the others have finished their step.
    MemberJoined {
        /// `WORKER/INDEX`.
        member: String,
    },
    /// A member was lost.
    MemberLost {
        /// `WORKER/INDEX`.
        member: String,
        /// By which sign: `stream_closed`, `silent`, `no_report`, `replaced` or `stalled`.
        cause: String,
        /// What was seen.
        reason: String,
    },
    /// A member left in order.
    MemberLeft {
        /// `WORKER/INDEX`.
        member: String,
        /// Why.
        reason: String,
    },
    /// A member is slower than the others for a while, and all wait for it in every step.
    MemberSlow {
        /// `WORKER/INDEX`.
        member: String,
        /// Its own work in a step.
        step_seconds: f64,
        /// The median of all.
        median_seconds: f64,
    },
    /// A group was formed.
    GroupFormed {
        /// Which.
        #[serde(rename = "group")]
        generation: GenerationRecord,
        /// Its members.
        members: u32,
        /// Members that were wanted then.
        desired: u32,
        /// The step it goes on from; null: from storage or the start.
        base: Option<u64>,
    },
    /// A coordinator that was started again leads the group as it is.
    GroupAdopted {
        /// Which.
        #[serde(rename = "group")]
        generation: GenerationRecord,
        /// Its members.
        members: u32,
    },
    /// A group ended before its time.
    GroupBroken {
        /// Which.
        #[serde(rename = "group")]
        generation: GenerationRecord,
        /// What was seen.
        reason: String,
    },
    /// All members of a group have completed a step.
    Recovered {
        /// Which.
        #[serde(rename = "group")]
        generation: GenerationRecord,
        /// Since the end of the group before.
        seconds: f64,
    },
    /// No live member held what was completed before.
    WentBack {
        /// Completed steps before.
        from: u64,
        /// Completed steps now.
        to: u64,
    },
}

impl Event {
    fn of(event: HistoryEvent, desired: u32) -> Self {
        let text = |member: lcl_protocol::MemberName| member.to_string();
        match event {
            HistoryEvent::Joined { member } => Self::MemberJoined { member: text(member) },
            HistoryEvent::Lost { member, cause, reason } => {
                Self::MemberLost { member: text(member), cause: cause.category().to_owned(), reason }
            }
            HistoryEvent::Left { member, reason } => Self::MemberLeft { member: text(member), reason: reason.to_string() },
            HistoryEvent::Slow { member, step_work, median } => {
                Self::MemberSlow { member: text(member), step_seconds: step_work.as_secs_f64(), median_seconds: median.as_secs_f64() }
            }
            HistoryEvent::Formed { generation, world, base } => {
                Self::GroupFormed { generation: generation.into(), members: world, desired, base }
            }
            HistoryEvent::Adopted { generation, world } => Self::GroupAdopted { generation: generation.into(), members: world },
            HistoryEvent::Broken { generation, reason } => Self::GroupBroken { generation: generation.into(), reason },
            HistoryEvent::Recovered { generation, took } => Self::Recovered { generation: generation.into(), seconds: took.as_secs_f64() },
            HistoryEvent::WentBack { from, to } => Self::WentBack { from, to },
        }
    }

    /// In a line, for people.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::MemberJoined { member } => format!("{member} is there"),
            Self::MemberLost { member, reason, .. } => format!("{member} lost: {reason}"),
            Self::MemberLeft { member, reason } => format!("{member} left: {reason}"),
            Self::MemberSlow { member, step_seconds, median_seconds } => {
                format!("{member} is slow: {step_seconds:.2} s of work in a step, the median is {median_seconds:.2} s")
            }
            Self::GroupFormed { generation, members, desired, base } => {
                let base = base.map_or_else(|| "from storage or the start".to_owned(), |step| format!("from step {step}"));
                format!("{generation} formed: {members} of {desired} members, {base}")
            }
            Self::GroupAdopted { generation, members } => {
                format!("{generation} goes on under a new coordinator: {members} members, uninterrupted")
            }
            Self::GroupBroken { generation, reason } => format!("{generation} broken: {reason}"),
            Self::Recovered { generation, seconds } => {
                format!("{generation} completed its first step {seconds:.2} s after the group before had ended")
            }
            Self::WentBack { from, to } => format!("went back from step {from} to step {to}: no live member held more"),
        }
    }
}

/// Tells what in a coordinator's history is new, over its changes and its successors.
#[derive(Debug, Default)]
pub struct Chronicle {
    last: Option<HistoryEntry>,
}

impl Chronicle {
    /// What happened since the last call. `time`: Unix time in seconds.
    pub fn news(&mut self, status: &Status, time: f64) -> Vec<Happening> {
        let new = self.new_entries(&status.history);
        let Some(last) = new.last() else { return Vec::new() };
        self.last = Some(last.clone());
        let desired = status.world.desired();
        new.iter().map(|entry| Happening { time, event: Event::of(entry.event.clone(), desired) }).collect()
    }

    /// Numbers begin anew with every coordinator: entries of one number that differ are of two.
    fn new_entries<'a>(&self, history: &'a [HistoryEntry]) -> &'a [HistoryEntry] {
        let Some(last) = &self.last else { return history };
        match history.iter().position(|entry| entry == last) {
            Some(place) => history.get(place + 1..).unwrap_or_default(),
            None => history,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lcl_protocol::{Generation, LossCause, MemberName, World};

    use super::*;

    fn status(history: &[(u64, u64, HistoryEvent)]) -> Status {
        let entry = |(sequence, at, event): &(u64, u64, HistoryEvent)| HistoryEntry {
            sequence: *sequence,
            at: Duration::from_millis(*at),
            event: event.clone(),
        };
        Status {
            phase: Phase::Running,
            generation: Generation { epoch: 1, n: 1 },
            world: World::new(1, 2, 2).unwrap(),
            members: Vec::new(),
            step: 7,
            last_checkpoint: None,
            training: None,
            wanted_checkpoint: None,
            sources: Vec::new(),
            history: history.iter().map(entry).collect(),
        }
    }

    fn joined(worker: &str) -> HistoryEvent {
        HistoryEvent::Joined { member: MemberName { worker: worker.to_owned(), index: 0 } }
    }

    #[test]
    fn each_entry_is_told_once_and_those_of_a_new_coordinator_are_new_though_their_numbers_are_not() {
        let mut chronicle = Chronicle::default();
        let mut check = |history: &[(u64, u64, HistoryEvent)], expected: &[&str]| {
            let told: Vec<String> = chronicle.news(&status(history), 1.0).iter().map(|happening| happening.event.line()).collect();
            assert_eq!(told, expected);
        };
        check(&[], &[]);
        check(&[(1, 5, joined("a"))], &["a/0 is there"]);
        check(&[(1, 5, joined("a"))], &[]);
        check(&[(1, 5, joined("a")), (2, 9, joined("b"))], &["b/0 is there"]);
        // Some were missed.
        check(&[(4, 11, joined("d"))], &["d/0 is there"]);
        // Another coordinator, without a history, and then with one of the same number.
        check(&[], &[]);
        check(&[(3, 7, joined("b")), (4, 8, joined("d"))], &["b/0 is there", "d/0 is there"]);
    }

    #[test]
    fn a_record_says_what_happened_by_its_event() {
        let member = MemberName { worker: "w-0".to_owned(), index: 1 };
        let lost = HistoryEvent::Lost { member, cause: LossCause::Silent, reason: "nothing heard".to_owned() };
        let formed = HistoryEvent::Formed { generation: Generation { epoch: 1, n: 2 }, world: 1, base: Some(198) };
        let news = Chronicle::default().news(&status(&[(1, 1, lost), (2, 2, formed)]), 3.5);
        let lines: Vec<String> = news.iter().map(|happening| serde_json::to_string(happening).unwrap()).collect();
        assert_eq!(
            lines,
            [
                r#"{"time":3.5,"event":"member_lost","member":"w-0/1","cause":"silent","reason":"nothing heard"}"#,
                r#"{"time":3.5,"event":"group_formed","group":{"epoch":1,"number":2},"members":1,"desired":2,"base":198}"#
            ]
        );
        let read: Vec<Happening> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, news);
        assert_eq!(news[1].event.line(), "g000001-000002 formed: 1 of 2 members, from step 198");
    }
}
