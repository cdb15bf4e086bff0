use serde_json::json;

use super::*;

fn pod(name: &str, version: u64) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "team", "uid": format!("uid-of-{name}"), "resourceVersion": version.to_string(),
            "labels": { "lcl.dev/job-name": "job", "lcl.dev/role": "worker", "lcl.dev/worker-index": "0" },
            "ownerReferences": [{ "apiVersion": "lcl.dev/v1alpha1", "kind": "LCLTrainingJob", "name": "job", "uid": "u", "controller": true }],
        },
        "status": { "phase": if version.is_multiple_of(2) { "Running" } else { "Pending" } },
    }))
    .expect("a pod")
}

fn key() -> JobKey {
    JobKey { namespace: "team".to_owned(), name: "job".to_owned() }
}

fn names(cache: &PodCache) -> Vec<String> {
    cache.pods(&key()).0.into_keys().collect()
}

#[test]
fn a_pod_of_our_own_is_there_before_the_watch_tells() {
    let cache = PodCache::default();
    cache.take(Event::Apply(pod("a", 5)));
    cache.wrote(&pod("b", 6));
    assert_eq!(names(&cache), ["a", "b"]);
    assert_eq!(cache.take(Event::Apply(pod("b", 8))), [], "the same as what the write said");
    assert_eq!(cache.take(Event::Apply(pod("b", 9))), [key()], "it has changed");
}

#[test]
fn a_late_answer_does_not_bring_back_what_the_watch_saw_go() {
    let cache = PodCache::default();
    cache.take(Event::Apply(pod("a", 5)));
    cache.take(Event::Delete(pod("a", 7)));
    cache.wrote(&pod("a", 5));
    assert_eq!(names(&cache), [""; 0]);
}

#[test]
fn a_new_listing_replaces_the_old_one_except_for_writes_that_it_cannot_know() {
    let cache = PodCache::default();
    assert!(!cache.is_complete());
    cache.take(Event::Apply(pod("a", 4)));
    cache.take(Event::Init);
    cache.take(Event::InitApply(pod("b", 6)));
    cache.wrote(&pod("c", 9));
    assert_eq!(names(&cache), ["a", "c"], "until the listing is complete the old one counts");
    assert_eq!(cache.take(Event::InitDone), [key()]);
    assert_eq!(names(&cache), ["b", "c"]);
    assert!(cache.is_complete());
}

#[test]
fn another_pod_of_the_same_name_is_not_taken_for_the_one_that_went() {
    let cache = PodCache::default();
    cache.take(Event::Apply(pod("a", 4)));
    let mut other = pod("a", 3);
    other.metadata.uid = Some("another".to_owned());
    assert_eq!(cache.take(Event::Delete(other)), []);
    assert_eq!(names(&cache), ["a"]);
}

/// A worker's pod that has ended, and that somebody deletes or not.
fn ended(version: u64, is_deleted: bool) -> Pod {
    let mut pod = pod("a", version);
    let status = json!({ "phase": "Failed", "containerStatuses": [{
        "name": "worker", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        "state": { "terminated": { "exitCode": 75, "reason": "Error" } },
    }] });
    pod.status = Some(serde_json::from_value(status).expect("a status"));
    if is_deleted {
        pod.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time"));
        pod.metadata.deletion_grace_period_seconds = Some(0);
    }
    pod
}

/// Exit codes of pods that are gone, and whether they had ended before they were deleted.
fn left(cache: &PodCache) -> Vec<(Option<i32>, bool)> {
    cache.pods(&key()).1.values().filter_map(|pod| pod.end.as_ref()).map(|end| (end.exit_code, end.before_deletion)).collect()
}

#[test]
fn a_pod_that_goes_leaves_its_last_state_until_that_was_counted() {
    let cache = PodCache::default();
    cache.take(Event::Apply(pod("a", 4)));
    cache.take(Event::Apply(ended(5, false)));
    cache.take(Event::Apply(ended(6, true)));
    assert_eq!(left(&cache), []);
    assert_eq!(cache.take(Event::Delete(ended(7, true))), [key()]);
    assert_eq!(left(&cache), [(Some(75), true)]);
    let shown = cache.pods(&key()).1;
    cache.forget_gone(&key(), &shown, &["a".to_owned()]);
    assert_eq!(left(&cache).len(), 1, "it is to be shown again");
    cache.forget_gone(&key(), &LastStates::new(), &[]);
    assert_eq!(left(&cache).len(), 1, "it came while the others were counted");
    cache.forget_gone(&key(), &shown, &[]);
    assert_eq!(left(&cache), []);
    assert!(cache.lock().gone.is_empty(), "nothing is kept of the job");
}

#[test]
fn one_that_was_deleted_while_it_ran_did_not_end_before() {
    let cache = PodCache::default();
    let mut deleted = pod("a", 5);
    deleted.metadata.deletion_timestamp = ended(5, true).metadata.deletion_timestamp;
    for event in [pod("a", 4), deleted, ended(6, true)] {
        cache.take(Event::Apply(event));
    }
    cache.take(Event::Delete(ended(7, true)));
    assert_eq!(left(&cache), [(Some(75), false)]);
}

#[test]
fn nothing_is_left_by_a_pod_that_has_a_successor_or_whose_job_is_gone() {
    let cache = PodCache::default();
    let lose = || {
        cache.take(Event::Apply(ended(5, false)));
        cache.take(Event::Delete(ended(7, true)));
        assert_eq!(left(&cache).len(), 1);
    };
    lose();
    cache.wrote(&pod("a", 9));
    assert_eq!(left(&cache), [], "the next one was created");
    lose();
    cache.retain_gone(|_| false);
    assert_eq!(left(&cache), []);
    lose();
    cache.take(Event::Init);
    cache.take(Event::InitApply(pod("a", 9)));
    cache.take(Event::InitDone);
    assert_eq!(left(&cache), [], "the next one was found");
}

#[test]
fn of_a_pod_that_went_while_nobody_watched_no_more_is_known_than_before() {
    let cache = PodCache::default();
    let list_nothing = || {
        cache.take(Event::Init);
        cache.take(Event::InitDone);
    };
    cache.take(Event::Apply(pod("a", 4)));
    list_nothing();
    assert_eq!(left(&cache), [], "what ended it nobody has seen");
    cache.take(Event::Apply(ended(5, false)));
    list_nothing();
    assert_eq!(left(&cache), [(Some(75), true)]);
    list_nothing();
    assert_eq!(left(&cache), [(Some(75), true)], "it is still to be counted");
    // One that is still there had ended before it was deleted.
    cache.take(Event::Apply(ended(8, false)));
    cache.take(Event::Init);
    cache.take(Event::InitApply(ended(9, true)));
    cache.take(Event::InitDone);
    assert_eq!(left(&cache), []);
    cache.take(Event::Delete(ended(10, true)));
    assert_eq!(left(&cache), [(Some(75), true)]);
}
