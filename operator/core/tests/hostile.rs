//! Manifests that nobody would write: drawn from the definition's own schema, with wrong types, numbers out of all bounds, odd texts, deep
//! nesting and parts that are missing. Whatever comes, it is read or refused, decided about, and never is a pod made that does what is not
//! allowed.
//!
//! `LCL_HOSTILE_MANIFESTS` says how many are drawn (10,000 take about 40 seconds), `PROPTEST_RNG_SEED` the first one's seed. A failure names
//! the seed of its manifest: with it and a count of 1 it comes back.

#[path = "hostile/draw.rs"]
mod draw;
#[path = "hostile/life.rs"]
mod life;
#[path = "hostile/pods.rs"]
mod pods;
#[path = "support/jobs.rs"]
mod support;

use std::{env, panic, thread};

use lcl_crds::{MAX_WORKERS, PinnedStatus};
use lcl_operator_core::{
    FieldErrors, PathMapping, PodPolicy, Surroundings, ValidatedJob, World,
    build::{BuildContext, NetworkAccess, worker_selector},
    covers,
    observe::HistoryPlace,
    pins::{find_change, offer, pinned_spec},
    read_unchecked, render_trainer_config,
    resources::{AppliedResources, PinnedConfig, PreparedResources, address_of},
    validate, validate_change, validate_under,
};
use lcl_trainer_config::Device;
use serde_json::Value;

use draw::Draw;
use support::minimal_job;

/// Takes a few seconds.
const USUAL: u64 = 500;
/// Characters of a manifest in a message.
const SHOWN: usize = 4000;
/// What a message about something that is not allowed holds.
const NOT_ALLOWED: &str = "security.allow";

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{variable} is {text}: {error}")))
}

fn context(job: &ValidatedJob, policy: PodPolicy) -> BuildContext {
    let address = Some("10.96.0.17".to_owned());
    BuildContext {
        namespace: "vision".to_owned(),
        uid: "6c1c5e0c-0000-4000-8000-000000000001".to_owned(),
        pins: PinnedStatus { address, ..offer(job, 1, "coordinator", "trainer") },
        image_pull_policy: None,
        incident: 0,
        history: HistoryPlace::default(),
        excluded_nodes: Vec::new(),
        policy,
        network: Some(NetworkAccess {
            operator_namespace: "lcl-system".to_owned(),
            operator_labels: [("app.kubernetes.io/name".to_owned(), "lcl-operator".to_owned())].into(),
            metrics_from: Vec::new(),
        }),
    }
}

/// Makes everything that is made of a job, and gives the worker's pod.
fn build(job: &ValidatedJob, policy: PodPolicy) -> Result<Value, FieldErrors> {
    let context = context(job, policy);
    let prepared = PreparedResources::prepare(job, &context);
    for object in [serde_json::to_value(&prepared.budget), serde_json::to_value(&prepared.policies)] {
        let object = object.unwrap();
        assert!(covers(&object, &object));
    }
    let address = address_of(&prepared.service).expect("the Service has its address").to_owned();
    let applied = AppliedResources::new(address, PinnedConfig::read(prepared.config));
    let coordinator = serde_json::to_value(applied.coordinator_pod(job, &context, 1)).unwrap();
    pods::check_coordinator(&coordinator);
    assert!(worker_selector(job, &context).contains(job.name()));
    assert_eq!(find_change(&pinned_spec(job), job), None, "a job differs from itself");
    let surroundings =
        Surroundings { paths: PathMapping::in_container(), device: Device::Cpu, threads: None, cache_folder: None, data_threads: 1 };
    drop(render_trainer_config(job, &surroundings));
    let worker = applied.worker_pod(job, &context, 0).map(|pod| serde_json::to_value(pod).unwrap());
    let pods = [Some(coordinator), worker.as_ref().ok().cloned()].into_iter().flatten().collect::<Vec<_>>();
    life::decide_all_along(job, &context.uid, &context.pins, &pods);
    worker
}

/// What came of one manifest.
#[derive(Debug, Default)]
struct Counts {
    drawn: usize,
    valid: usize,
    readable: usize,
    built: usize,
    not_allowed: usize,
}

fn check(manifest: &Value, before: &Value, counts: &mut Counts) {
    let checked = validate(manifest);
    // In turns, since evaluating the rules is most of the time.
    let _ = match counts.drawn % 3 {
        0 => validate_change(manifest, before),
        1 => validate_change(before, manifest),
        _ => {
            let elsewhere = validate_under(manifest, &PodPolicy::everything());
            assert!(checked.is_err() || elsewhere.is_ok(), "more is allowed, and it is refused");
            elsewhere
        }
    };
    counts.drawn += 1;
    let is_not_allowed = checked.as_ref().is_err_and(|errors| errors.as_slice().iter().any(|error| error.rule.contains(NOT_ALLOWED)));
    counts.valid += usize::from(checked.is_ok());
    counts.not_allowed += usize::from(is_not_allowed);
    // Also a job that is refused now may have begun under other rules.
    let Ok(job) = read_unchecked(manifest) else {
        assert!(checked.is_err(), "it is valid, and cannot be read");
        return;
    };
    counts.readable += 1;
    match build(&job, PodPolicy::default()) {
        Ok(pod) => {
            counts.built += 1;
            assert!(!is_not_allowed, "a pod was made of what is not allowed");
            pods::check_worker(&pod);
        }
        Err(errors) => assert!(checked.is_err(), "the job is valid, and no pod is made of it: {errors}"),
    }
    assert!(build(&job, PodPolicy::everything()).is_ok(), "everything is allowed");
}

#[test]
fn no_manifest_makes_the_operator_panic_or_make_a_pod_that_is_not_allowed() {
    let (first, count) = (number("PROPTEST_RNG_SEED").unwrap_or(0), number("LCL_HOSTILE_MANIFESTS").unwrap_or(USUAL));
    let schema = serde_json::to_value(lcl_crds::custom_resource_definition()).unwrap();
    let schema = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    let run = |thread: u64| {
        let mut counts = Counts::default();
        let mut before = minimal_job();
        for seed in (thread..count).step_by(threads as usize).map(|offset| first.wrapping_add(offset)) {
            let manifest = Draw::new(seed).manifest(schema, &minimal_job());
            let checked = panic::catch_unwind(panic::AssertUnwindSafe(|| check(&manifest, &before, &mut counts)));
            let shown: String = manifest.to_string().chars().take(SHOWN).collect();
            assert!(checked.is_ok(), "see the message above; the manifest of seed {seed} is {shown}");
            before = manifest;
        }
        counts
    };
    let counts: Vec<Counts> = thread::scope(|scope| {
        let runs: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        runs.into_iter().map(|run| run.join().expect("a manifest was the end of it: see above")).collect()
    });
    let [valid, readable, built, not_allowed] = [
        counts.iter().map(|one| one.valid).sum::<usize>(),
        counts.iter().map(|one| one.readable).sum(),
        counts.iter().map(|one| one.built).sum(),
        counts.iter().map(|one| one.not_allowed).sum(),
    ];
    eprintln!(
        "{count} manifests from seed {first}: {valid} valid, {readable} readable, {built} pods, {not_allowed} with something not allowed"
    );
    // Else nothing was tested but the first lines of a parser.
    assert!(count < USUAL || [valid, readable - valid, built, not_allowed].iter().all(|some| *some >= 10), "the draw is too poor");
}

/// Where the schema has integers, as names from the manifest's root on.
fn integers(schema: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    if schema["type"] == "integer" {
        found.push(path.clone());
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        path.push(name.clone());
        integers(inner, path, found);
        path.pop();
    }
}

#[test]
fn a_number_out_of_bounds_in_a_stored_job_costs_the_operator_nothing() {
    let schema = serde_json::to_value(lcl_crds::custom_resource_definition()).unwrap();
    let mut found = Vec::new();
    integers(&schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], &mut vec!["spec".to_owned()], &mut found);
    assert!(found.len() > 40, "{found:?}");
    let mut counts = Counts::default();
    for path in found.iter().filter(|path| !path.iter().any(|name| name == "template")) {
        for number in [i32::MIN, -1, 0, i32::MAX] {
            let mut job = minimal_job();
            let field = path.iter().fold(&mut job, |value, name| &mut value[name]);
            *field = number.into();
            eprintln!("{} = {number}", path.join("."));
            check(&job, &minimal_job(), &mut counts);
        }
    }
    assert!(counts.readable > counts.valid && counts.valid > 0, "{counts:?}");
}

#[test]
fn a_stored_job_has_no_more_workers_than_a_definition_ever_allowed() {
    let mut manifest = minimal_job();
    manifest["spec"]["workers"]["replicas"] = i32::MAX.into();
    assert_eq!(read_unchecked(&manifest).unwrap().world(), World { min: MAX_WORKERS, desired: MAX_WORKERS, max: MAX_WORKERS });
}

#[test]
fn texts_without_an_end_are_refused_or_taken_but_never_the_end_of_the_operator() {
    const TIMES: usize = 20_000;
    let mut job = minimal_job();
    for text in ["(", "!", "-", "[", "{", "a.", "a+", "'", "{a,", "*", "\\"] {
        let text = text.repeat(TIMES);
        for pointer in ["/spec/data/webdataset/filter", "/spec/checkpoint/uri", "/metadata/name", "/spec/data/indexPath"] {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            let mut long = job.clone();
            long.pointer_mut(parent).unwrap()[name] = text.clone().into();
            let _ = validate(&long);
        }
        job["spec"]["data"]["webdataset"]["shards"] = serde_json::json!([format!("/{text}")]);
        let _ = validate(&job);
        job = minimal_job();
    }
}
