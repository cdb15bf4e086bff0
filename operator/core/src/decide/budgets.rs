//! Budgets of failures, counted by incident, and the pause before what was lost is created again. Pure.
//!
//! What several pods suffer for the same cause within [`INCIDENT`] is one incident: a storage outage that ends 64 workers must not spend 64
//! failures. A pod bears the number of the newest incident at its creation, so that one that was created *after* an incident began and ends
//! again begins the next, however soon that is.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use lcl_crds::{BudgetStatus, FailureBudgetSpec, FailurePolicySpec, FailuresStatus};

use crate::cause::Budget;

/// So long after its beginning ends of older pods belong to an incident. An outage ends programs one after the other, as their own attempts
/// run out: members try a volume for 64 s, and a collective fails as soon as the first of its members is gone.
const INCIDENT: SignedDuration = SignedDuration::from_secs(60);
/// Pause after the second incident without progress in between; doubled with every further one.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// Longest pause: a cause that goes away is found out within a minute.
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_secs(60);

/// The end of a pod, as far as budgets look at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge {
    /// Which budget.
    pub(super) budget: Budget,
    /// Number of the incident that was the newest when the pod was created.
    pub(super) created_in: i64,
    /// Completed steps of the job.
    pub(super) step: i64,
    /// The time.
    pub(super) now: Timestamp,
}

/// Counts the end of a pod: as a new incident, or as a part of one that is known.
pub(super) fn charge(failures: &mut FailuresStatus, policy: &FailurePolicySpec, charge: Charge) {
    let Charge { budget, created_in, step, now } = charge;
    let window = SignedDuration::from_secs(spec(policy, budget).map_or(0, |spec| spec.window_seconds));
    let number = failures.incidents.saturating_add(1);
    let known = status_mut(failures, budget).get_or_insert_default();
    // Who put the time on record may have had another clock.
    let age = known.times.last().map(|Time(began)| now.duration_since((*began).min(now)));
    if created_in < known.newest && age.is_some_and(|age| age <= INCIDENT) {
        return;
    }
    known.newest = number;
    known.times.retain(|Time(began)| now.duration_since(*began) < window);
    known.times.push(Time(now));
    failures.incidents = number;
    failures.in_a_row = if step > failures.step { 1 } else { failures.in_a_row.saturating_add(1) };
    failures.step = failures.step.max(step);
}

/// A budget that is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spent {
    pub(super) budget: Budget,
    pub(super) incidents: usize,
    pub(super) window_seconds: i64,
}

/// The first budget whose window holds more incidents than its limit.
pub(super) fn find_spent(failures: &FailuresStatus, policy: &FailurePolicySpec, now: Timestamp) -> Option<Spent> {
    Budget::ALL.into_iter().find_map(|budget| {
        let FailureBudgetSpec { limit, window_seconds } = spec(policy, budget)?;
        let window = SignedDuration::from_secs(window_seconds);
        let times = &status(failures, budget)?.times;
        let incidents = times.iter().filter(|Time(began)| now.duration_since(*began) < window).count();
        (incidents > usize::try_from(limit).unwrap_or_default()).then_some(Spent { budget, incidents, window_seconds })
    })
}

/// The pause after the newest incident, before anything is created; `step`: what is completed now.
pub(super) fn pause(failures: &FailuresStatus, step: i64) -> SignedDuration {
    if step > failures.step {
        return SignedDuration::ZERO;
    }
    match failures.in_a_row.checked_sub(2).and_then(|doublings| u32::try_from(doublings).ok()) {
        Some(doublings) => FIRST_PAUSE.checked_mul(1 << doublings.min(16)).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE),
        None => SignedDuration::ZERO,
    }
}

fn spec(policy: &FailurePolicySpec, budget: Budget) -> Option<FailureBudgetSpec> {
    match budget {
        Budget::Application => Some(policy.application),
        Budget::Infrastructure => Some(policy.infrastructure),
        Budget::Preemption => Some(policy.preemption),
        Budget::Ignored => None,
    }
}

fn status(failures: &FailuresStatus, budget: Budget) -> Option<&BudgetStatus> {
    match budget {
        Budget::Application => failures.application.as_ref(),
        Budget::Infrastructure => failures.infrastructure.as_ref(),
        Budget::Preemption => failures.preemption.as_ref(),
        Budget::Ignored => failures.ignored.as_ref(),
    }
}

fn status_mut(failures: &mut FailuresStatus, budget: Budget) -> &mut Option<BudgetStatus> {
    match budget {
        Budget::Application => &mut failures.application,
        Budget::Infrastructure => &mut failures.infrastructure,
        Budget::Preemption => &mut failures.preemption,
        Budget::Ignored => &mut failures.ignored,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn after(seconds: i64) -> Timestamp {
        BEGAN.checked_add(SignedDuration::from_secs(seconds)).expect("a time")
    }

    fn ended(failures: &mut FailuresStatus, budget: Budget, created_in: i64, seconds: i64) {
        charge(failures, &FailurePolicySpec::default(), Charge { budget, created_in, step: 0, now: after(seconds) });
    }

    #[test]
    fn what_older_pods_suffer_within_a_minute_is_one_incident_and_what_newer_ones_suffer_another() {
        let mut failures = FailuresStatus::default();
        for seconds in 0..60 {
            ended(&mut failures, Budget::Application, 0, seconds);
        }
        assert_eq!((failures.incidents, failures.in_a_row), (1, 1));
        // One that was created after it began.
        ended(&mut failures, Budget::Application, 1, 60);
        assert_eq!(failures.incidents, 2);
        // Pods of the beginning, half a minute after the second and a minute and a half after the first.
        ended(&mut failures, Budget::Application, 0, 90);
        assert_eq!(failures.incidents, 2);
        ended(&mut failures, Budget::Application, 0, 121);
        assert_eq!((failures.incidents, failures.in_a_row), (3, 3));
        // Another cause is another incident.
        ended(&mut failures, Budget::Preemption, 0, 121);
        assert_eq!(failures.incidents, 4);
        // A clock that was set back makes no incident of one that is known, and one of what is new.
        ended(&mut failures, Budget::Preemption, 0, -3600);
        assert_eq!(failures.incidents, 4);
        ended(&mut failures, Budget::Preemption, 4, -3600);
        assert_eq!(failures.incidents, 5);
    }

    #[test]
    fn a_budget_is_spent_by_more_incidents_than_its_limit_within_its_window() {
        let policy = FailurePolicySpec { application: FailureBudgetSpec { limit: 2, window_seconds: 600 }, ..FailurePolicySpec::default() };
        let mut failures = FailuresStatus::default();
        let spent = |failures: &FailuresStatus, seconds| find_spent(failures, &policy, after(seconds));
        for (created_in, seconds) in [(0, 0), (1, 300), (2, 601)] {
            charge(&mut failures, &policy, Charge { budget: Budget::Application, created_in, step: 0, now: after(seconds) });
            assert_eq!(spent(&failures, seconds), None, "{seconds}");
        }
        assert_eq!(failures.application.as_ref().map(|budget| budget.times.len()), Some(2), "the first is out of the window");
        charge(&mut failures, &policy, Charge { budget: Budget::Application, created_in: 3, step: 0, now: after(700) });
        assert_eq!(spent(&failures, 700), Some(Spent { budget: Budget::Application, incidents: 3, window_seconds: 600 }));
        // As when the limit is lowered long after.
        assert_eq!(spent(&failures, 1300), None, "they are out of the window by now");
        // What is ignored spends nothing, however much it is.
        let mut failures = FailuresStatus::default();
        for number in 0..200 {
            ended(&mut failures, Budget::Ignored, number, number);
        }
        assert_eq!((failures.incidents, spent(&failures, 200)), (200, None));
        assert_eq!(failures.ignored.map(|budget| budget.times.len()), Some(1), "they are not kept");
    }

    #[test]
    fn every_cause_makes_the_pause_longer_and_progress_ends_it() {
        let mut failures = FailuresStatus::default();
        let mut pauses = Vec::new();
        for (number, budget) in Budget::ALL.into_iter().cycle().take(10).enumerate() {
            ended(&mut failures, budget, number as i64, number as i64);
            pauses.push(pause(&failures, 0).as_secs());
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(pause(&failures, 1).as_secs(), 0);
        charge(
            &mut failures,
            &FailurePolicySpec::default(),
            Charge { budget: Budget::Application, created_in: 10, step: 1, now: after(20) },
        );
        assert_eq!((failures.in_a_row, failures.step), (1, 1));
    }
}
