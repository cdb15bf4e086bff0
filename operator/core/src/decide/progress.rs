//! How the job is doing, for the status.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::{SignedDuration, Timestamp},
};
use lcl_crds::{GroupStatus, JobState, LCLTrainingJobStatus, LastCheckpointStatus, SourceStatus};

use super::{JobEvent, condition, draft::Draft, reason};
use crate::{
    ValidatedJob,
    build::{coordinator_name, worker_pod_name},
    cause::shorten,
    observe::{CheckpointSeen, GroupPhase, Link, ObservedPod, SourceSeen, Wait},
};

/// Checkpoints that follow each other faster are taken for as far apart: progress reaches the status some seconds late.
const SHORTEST_INTERVAL: SignedDuration = SignedDuration::from_secs(15);

/// How training is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// It has not begun.
    Starting,
    /// It goes on.
    Running,
    /// It stands still, for this reason.
    Recovering(&'static str),
    /// Nothing new is known, what was said before still counts.
    AsBefore,
    /// Nobody can say.
    Unreachable,
}

/// Fills in everything that follows from the group's and the pods' state.
pub(super) fn derive(draft: &mut Draft) {
    note_progress(draft);
    let health = judge(draft);
    let ready = count_ready(draft);
    let desired = draft.observed.job.world().desired;
    if let Some(workers) = &mut draft.status.workers {
        workers.ready = ready;
        workers.summary = Some(format!("{ready}/{desired}"));
    }
    set_conditions(draft, health, ready, desired);
    judge_workers(draft, ready);
    judge_checkpoint(draft);
}

/// Whether the fewest workers that the job trains with are ready.
fn judge_workers(draft: &mut Draft, ready: i32) {
    let min = draft.observed.job.world().min;
    let message = format!("{ready} workers are ready, at least {min} are needed");
    if ready >= min {
        return draft.set(condition::PODS_READY, "True", reason::PODS_READY, &message);
    }
    match describe_obstacles(draft) {
        Some(obstacles) => draft.set(condition::PODS_READY, "False", reason::POD_CANNOT_START, &format!("{message}; {obstacles}")),
        None => draft.set(condition::PODS_READY, "False", reason::WAITING_FOR_WORKERS, &message),
    }
}

/// What keeps pods of the job from starting: the one that was told, if it is still there, or the first by name, and how many more there are. Many
/// pods are often found out one by one, and that is no news.
fn describe_obstacles(draft: &Draft) -> Option<String> {
    let observed = draft.observed;
    let ours = observed.pods.iter().filter(|(_, pod)| pod.owner == observed.uid);
    let explained =
        |pod: &ObservedPod| observed.explanation.filter(|(uid, _)| *uid == pod.uid && !pod.running).map(|(_, obstacle)| obstacle);
    let found = ours.filter_map(|(name, pod)| Some((name, pod.obstacle.as_ref().or_else(|| explained(pod))?)));
    let texts: Vec<String> = found
        .map(|(name, obstacle)| {
            let container = obstacle.container.as_ref().map_or_else(String::new, |container| format!("container {container}: "));
            format!("pod {name}{CANNOT_START}{container}{}: {}", obstacle.reason, shorten(&obstacle.message))
        })
        .collect();
    let told = told_obstacle(&observed.status.conditions);
    let text = texts.iter().find(|text| told.is_some() && subject(text) == told).or_else(|| texts.first())?;
    Some(match texts.len() {
        1 => text.clone(),
        count => format!("{text} (and {} more pods)", count - 1),
    })
}

/// Between a pod's name and what keeps it from starting.
const CANNOT_START: &str = " cannot start: ";

/// The part of such a text that says which pod it is, which container and for what reason.
fn subject(text: &str) -> Option<&str> {
    let place = text.find(CANNOT_START)? + CANNOT_START.len();
    let mut rest = text.get(place..)?;
    if rest.starts_with("container ") {
        rest = rest.split_once(": ")?.1;
    }
    let reason = rest.split_once(": ").map_or(rest, |(reason, _)| reason);
    text.get(..text.len() - rest.len() + reason.len())
}

/// What the status says of it.
fn told_obstacle(conditions: &[Condition]) -> Option<&str> {
    subject(&conditions.iter().find(|told| told.type_ == condition::RECONCILING && told.reason == reason::POD_CANNOT_START)?.message)
}

/// Whether the newest checkpoint is as young as checkpoints of this job usually are. Its age is counted from when it was first heard of: its
/// time is by its writer's clock.
fn judge_checkpoint(draft: &mut Draft) {
    let Some(last) = draft.status.last_checkpoint.clone() else {
        return draft.set(condition::CHECKPOINT_FRESH, "False", reason::NO_CHECKPOINT, "no checkpoint was written yet");
    };
    let interval = SignedDuration::from_secs(last.interval_seconds.unwrap_or(0)).max(SHORTEST_INTERVAL);
    let limit = interval.saturating_add(interval);
    let overdue = limit.saturating_add(SignedDuration::from_secs(1));
    let now = draft.observed.now;
    let wait = Wait::Checkpoint(last.step);
    let is_news = draft.observed.status.last_checkpoint.as_ref().is_none_or(|stored| stored.step != last.step);
    let is_old = if is_news || draft.observed.waited.contains_key(&wait) {
        draft.has_waited(wait, overdue)
    } else {
        // Heard of before this process was there: there is nothing but its writer's clock.
        if let Some(at) = last.time.0.checked_add(overdue).ok().filter(|at| *at > now) {
            draft.wake_at(at);
        }
        now.duration_since(last.time.0) > limit
    };
    if is_old {
        let message = format!("the newest checkpoint is older than {} seconds, twice the time from one to the next", limit.as_secs());
        return draft.set(condition::CHECKPOINT_FRESH, "False", reason::CHECKPOINT_OLD, &message);
    }
    draft.set(condition::CHECKPOINT_FRESH, "True", reason::CHECKPOINT_WRITTEN, "checkpoints are written in time");
}

/// Step, generation, checkpoint and sources, if the coordinator tells them.
pub(super) fn note_progress(draft: &mut Draft) {
    // A coordinator that has formed nothing yet knows of no progress.
    let Some(group) = draft.group().filter(|group| group.n > 0) else { return };
    // One that has just begun may not have heard yet what its members hold, or read from storage: that training went back is certain when it
    // has gone on.
    let before = draft.status.steps.map_or(0, |steps| steps.completed);
    let is_known = (group.phase != GroupPhase::Recovering && group.step > 0) || group.step.cast_signed() >= before;
    if let (true, Some(steps)) = (is_known, &mut draft.status.steps) {
        steps.completed = group.step.cast_signed();
    }
    let members = group.members.iter().filter(|member| member.ranked).count();
    let seen = GroupStatus {
        epoch: group.epoch.cast_signed(),
        number: group.n.cast_signed(),
        members: i32::try_from(members).unwrap_or(i32::MAX),
    };
    let name = format!("group {}.{}", seen.epoch, seen.number);
    match draft.status.group {
        None => draft.events.push(JobEvent { warning: false, reason: reason::TRAINING_STARTED, note: name }),
        // A recovery may be over before anybody looks: the group's number tells of it all the same.
        Some(old) if (old.epoch, old.number) != (seen.epoch, seen.number) => {
            let from = if is_known { format!(" from step {}", group.step) } else { String::new() };
            let note = format!("{name}: {members} members train on{from}");
            draft.events.push(JobEvent { warning: false, reason: reason::GROUP_FORMED, note });
        }
        Some(_) => {}
    }
    draft.status.group = Some(seen);
    // A new coordinator has not heard of them until a step is done.
    if !group.sources.is_empty() {
        draft.status.sources = source_statuses(draft.observed.job, &group.sources);
    }
    if let Some(training) = group.training {
        (draft.status.loss, draft.status.samples_per_second) = (training.loss, training.samples_per_second);
    }
    if let Some(seen) = &group.last_checkpoint {
        note_checkpoint(draft, seen);
    }
}

/// The time is the writer's. A clock that is ahead of ours would keep an old checkpoint fresh: what is still to come is taken for now.
fn note_checkpoint(draft: &mut Draft, seen: &CheckpointSeen) {
    let step = seen.step.cast_signed();
    if draft.status.last_checkpoint.as_ref().is_some_and(|last| last.step == step) {
        return;
    }
    let time = seen.time.min(draft.observed.now);
    // From one to the next by the writers' clocks; the job's start is by ours.
    let since = |before: &Time, now: Timestamp| now.duration_since(before.0).as_secs().max(0);
    let started = draft.status.start_time.as_ref().map(|start| since(start, draft.observed.now));
    let interval_seconds = draft.status.last_checkpoint.as_ref().map(|last| since(&last.time, time)).or(started);
    let folder = draft.observed.job.spec().checkpoint.uri.trim_end_matches('/');
    let uri = (!seen.folder.is_empty()).then(|| format!("{folder}/{}", seen.folder));
    draft.status.last_checkpoint = Some(LastCheckpointStatus { step, time: Time(time), uri, interval_seconds });
}

/// What is told of the manifest's sources, in its order; of no others, whatever the members say.
fn source_statuses(job: &ValidatedJob, told: &[SourceSeen]) -> Vec<SourceStatus> {
    let named = job.spec().data.mixture.iter().flat_map(|mixture| &mixture.sources);
    let status = |source: &SourceSeen| SourceStatus {
        name: source.name.clone(),
        samples: i64::try_from(source.samples).unwrap_or(i64::MAX),
        generation_loss: source.generation_loss,
        contrastive_loss: source.contrastive_loss,
        data_wait_seconds: Some(source.data_wait_seconds),
    };
    named.filter_map(|named| told.iter().find(|source| source.name == named.name).map(status)).collect()
}

fn judge(draft: &Draft) -> Health {
    let has_trained = draft.status.group.is_some();
    let standing = |reason| if has_trained { Health::Recovering(reason) } else { Health::Starting };
    let coordinator = draft.observed.pods.get(&coordinator_name(draft.observed.job)).filter(|pod| pod.owner == draft.observed.uid);
    if coordinator.is_none_or(|pod| pod.end.is_some() || pod.deletion.is_some()) {
        return standing(reason::COORDINATOR_LOST);
    }
    match draft.observed.link {
        Link::Connected(group) => match group.phase {
            GroupPhase::Running => Health::Running,
            GroupPhase::Waiting => standing(reason::WAITING_FOR_WORKERS),
            GroupPhase::Recovering | GroupPhase::Ended | GroupPhase::Complete => standing(reason::GROUP_BROKEN),
        },
        Link::Unknown => Health::AsBefore,
        Link::Unreachable if has_trained => Health::Unreachable,
        Link::Unreachable => Health::Starting,
    }
}

/// Workers all of whose members train; before the coordinator says anything, workers that are ready.
fn count_ready(draft: &Draft) -> i32 {
    let observed = draft.observed;
    let each = observed.job.members_per_worker() as usize;
    let well = |name: &str| observed.pods.get(name).filter(|pod| pod.owner == observed.uid && pod.end.is_none() && pod.deletion.is_none());
    let before = observed.status.workers.as_ref().map_or(0, |workers| workers.ready);
    let names = (0..observed.job.world().desired).map(|index| worker_pod_name(observed.job, index.unsigned_abs()));
    let ready = match observed.link {
        Link::Connected(group) => {
            let mut ranked = std::collections::BTreeMap::<&str, usize>::new();
            for member in group.members.iter().filter(|member| member.ranked) {
                *ranked.entry(&member.worker).or_default() += 1;
            }
            names.filter(|name| ranked.get(name.as_str()).is_some_and(|members| *members >= each)).count()
        }
        Link::Unknown | Link::Unreachable => names.filter(|name| well(name).is_some_and(|pod| pod.ready)).count(),
    };
    let ready = i32::try_from(ready).unwrap_or(i32::MAX);
    let keeps = *observed.link == Link::Unknown && observed.status.group.is_some();
    if keeps { before.min(ready) } else { ready }
}

fn set_conditions(draft: &mut Draft, health: Health, ready: i32, desired: i32) {
    let before = if draft.had(condition::RUNNING, "True") {
        Health::Running
    } else if draft.had(condition::RECOVERING, "True") {
        Health::Recovering(reason::GROUP_BROKEN)
    } else if draft.had(condition::RUNNING, "Unknown") {
        Health::Unreachable
    } else {
        Health::Starting
    };
    let health = match health {
        // The reason of a recovery stays as it was written.
        Health::AsBefore if matches!(before, Health::Recovering(_)) => {
            return set_rest(draft, false);
        }
        Health::AsBefore => before,
        known => known,
    };
    let state = match health {
        Health::Running | Health::AsBefore => {
            draft.set(condition::RUNNING, "True", reason::TRAINING, &format!("{ready} of {desired} workers train"));
            draft.set(condition::RECOVERING, "False", reason::TRAINING, "training goes on");
            JobState::Running
        }
        Health::Recovering(why) => {
            let message = describe_recovery(draft, why);
            draft.set(condition::RUNNING, "False", why, &message);
            draft.set(condition::RECOVERING, "True", why, &message);
            JobState::Recovering
        }
        Health::Starting => {
            draft.set(condition::RUNNING, "False", reason::WAITING_FOR_WORKERS, "no group was formed yet");
            draft.set(condition::RECOVERING, "False", reason::WAITING_FOR_WORKERS, "no group was formed yet");
            JobState::Pending
        }
        Health::Unreachable => {
            let message = "the coordinator's pod runs, but the operator cannot reach it";
            draft.set(condition::RUNNING, "Unknown", reason::COORDINATOR_UNREACHABLE, message);
            draft.set(condition::RECOVERING, "Unknown", reason::COORDINATOR_UNREACHABLE, message);
            JobState::Unknown
        }
    };
    draft.status.state = Some(state);
    let running = |health| matches!(health, Health::Running);
    match (before, health) {
        (Health::Running, Health::Recovering(why)) => {
            let note = describe_recovery(draft, why);
            draft.events.push(JobEvent { warning: true, reason: reason::RECOVERING, note });
        }
        (Health::Recovering(_), now) if running(now) => {
            let note = format!("{ready} of {desired} workers train at step {}", draft.step());
            draft.events.push(JobEvent { warning: false, reason: reason::RECOVERED, note });
        }
        _ => {}
    }
    set_rest(draft, running(health) && ready == desired);
}

fn describe_recovery(draft: &Draft, why: &str) -> String {
    let last = draft.status.last_failure.as_ref().filter(|_| !draft.status.replacing.is_empty());
    match (last, why) {
        (Some(last), _) => format!("{}: {}: {}", last.pod, last.reason, last.message),
        (None, reason::COORDINATOR_LOST) => "the coordinator is being replaced".to_owned(),
        (None, reason::WAITING_FOR_WORKERS) => "fewer members than the job needs are there".to_owned(),
        (None, _) => "the members form a new group".to_owned(),
    }
}

/// The conditions of kstatus.
fn set_rest(draft: &mut Draft, as_wanted: bool) {
    if as_wanted {
        draft.unset(condition::RECONCILING);
    } else if let Some(obstacles) = describe_obstacles(draft) {
        let is_news = told_obstacle(&draft.observed.status.conditions) != subject(&obstacles);
        draft.set(condition::RECONCILING, "True", reason::POD_CANNOT_START, &obstacles);
        if is_news {
            draft.events.push(JobEvent { warning: true, reason: reason::POD_CANNOT_START, note: obstacles });
        }
    } else {
        draft.set(condition::RECONCILING, "True", "InProgress", "not all workers train yet");
    }
    let Some(problem) = draft.observed.problem else { return draft.unset(condition::STALLED) };
    let known = draft.observed.status.conditions.iter().any(|old| old.type_ == condition::STALLED && old.message == problem.message);
    draft.set(condition::STALLED, "True", problem.reason, &problem.message);
    if !known {
        draft.events.push(JobEvent { warning: true, reason: problem.reason, note: problem.message.clone() });
    }
}

/// How soon a status has to be written that differs from the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// At once: something follows from it, or somebody waits for it.
    Now,
    /// It differs in numbers that grow while all is well, and in how many more pods cannot start either.
    Progress,
    /// Before the first group, it differs in how the pods come along, which they do one after the other.
    Start,
    /// It differs in nothing but that the pods are there, which is on record for an operator that did not see them.
    Record,
}

/// How soon this status has to be written.
#[must_use]
pub fn urgency(old: &LCLTrainingJobStatus, new: &LCLTrainingJobStatus) -> Urgency {
    let mut new = new.clone();
    let begins = old.group.is_none() && old.start_time.is_some();
    if begins && let (Some(old), Some(new)) = (&old.workers, &mut new.workers) {
        new.created = new.created.min(old.created);
    }
    if new == *old {
        return Urgency::Record;
    }
    for (old, new) in old.conditions.iter().zip(&mut new.conditions) {
        let is_of_pods = old.reason == reason::POD_CANNOT_START && new.reason == old.reason;
        if is_of_pods && subject(&old.message) == subject(&new.message) {
            new.message.clone_from(&old.message);
        }
    }
    new.steps = old.steps;
    new.last_checkpoint.clone_from(&old.last_checkpoint);
    (new.loss, new.samples_per_second) = (old.loss, old.samples_per_second);
    new.sources.clone_from(&old.sources);
    new.startup.clone_from(&old.startup);
    if new == *old {
        return if begins { Urgency::Start } else { Urgency::Progress };
    }
    if !begins {
        return Urgency::Now;
    }
    for (old, new) in old.conditions.iter().zip(&mut new.conditions) {
        let is_of_start = [condition::PODS_READY, condition::RECONCILING].contains(&old.type_.as_str()) && new.type_ == old.type_;
        if is_of_start && new.status == old.status {
            new.reason.clone_from(&old.reason);
            new.message.clone_from(&old.message);
        }
    }
    // That all are ready is what one waits for.
    if let (Some(old), Some(new)) = (&old.workers, &mut new.workers)
        && new.ready < new.desired
    {
        new.ready = old.ready;
        new.summary.clone_from(&old.summary);
    }
    if new == *old { Urgency::Start } else { Urgency::Now }
}
