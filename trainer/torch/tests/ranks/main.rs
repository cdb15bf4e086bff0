//! Ranks as processes, on the processor and, where a GPU is, all of them on that one: forming, training as one member does, exact mode, an
//! abort in the middle of a collective, and a state that goes from one to the other. Both take the same code, so what a machine without a
//! GPU shows is everything but the GPU.
//!
//! NCCL refuses two ranks on one GPU of one machine. Each process here says that it is another machine (`NCCL_HOSTID`), so that NCCL takes
//! them, and has them talk over a socket.

mod roles;
#[path = "../training/support.rs"]
#[allow(dead_code, reason = "a part of it is for one member alone")]
mod support;
#[path = "../collectives/wire.rs"]
#[allow(dead_code, reason = "a part of it is for other tests")]
mod wire;

use std::time::Duration;

use lcl_torch::{collectives::MemoryStore, shim::cuda};
use serde_json::{Value, json};
use wire::Member;

/// Far above what anything takes here, so that a hung operation fails the test with a reason.
pub(crate) const TIMEOUT: Duration = Duration::from_mins(1);

/// Where all ranks of a test compute.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Processor,
    OneGpu,
}

impl Place {
    /// Whether it is there; says so if it is not.
    fn is_there(self) -> bool {
        let is_there = self == Self::Processor || (cuda::load().expect("an answer") && cuda::device_count().expect("a number") > 0);
        if !is_there {
            println!("skipped: there is no GPU");
        }
        is_there
    }

    /// What the process of a rank is told besides its role.
    fn variables(self, rank: usize) -> Vec<(&'static str, String)> {
        if self == Self::Processor {
            return Vec::new();
        }
        let plain = [("LCL_ON_GPU", "1"), ("NCCL_NET", "Socket"), ("NCCL_SOCKET_IFNAME", "lo"), ("NCCL_MNNVL_ENABLE", "0")];
        let plain = plain.into_iter().map(|(name, value)| (name, value.to_owned()));
        plain.chain([("NCCL_HOSTID", format!("rank-{rank}"))]).collect()
    }
}

fn start_all(place: Place, role: &str, world_size: usize) -> Vec<Member> {
    let store = MemoryStore::default();
    let start = |rank| Member::start(&store, "rank_process", role, (rank, world_size), &place.variables(rank));
    (0..world_size).map(start).collect()
}

fn reports(place: Place, role: &str, world_size: usize) -> Vec<Value> {
    let reports: Vec<Value> = start_all(place, role, world_size).iter().map(Member::report).collect();
    println!("{place:?}, {role}, {world_size}: {reports:?}");
    reports
}

/// Not a test by itself: the body of a rank's process. Does nothing when the program was started by hand.
#[test]
fn rank_process() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(role) = variable("LCL_ROLE") else { return };
    let number = |name: &str| variable(name).and_then(|text| text.parse().ok()).expect("a number");
    roles::play(&role, number("LCL_RANK"), number("LCL_WORLD_SIZE"), variable("LCL_ON_GPU").is_some()).expect("a role");
}

fn check_training(place: Place) {
    for world_size in [2, 3] {
        let reports = reports(place, "train", world_size);
        for report in &reports {
            assert!(report["apart"].as_f64() < Some(2e-6), "{report}");
            // A few AdamW steps divide by tiny second moments: what is a rounding in a gradient may be more in a parameter.
            assert!(report["drift"].as_f64() < Some(1e-4), "{report}");
            assert_eq!(report["hash"], reports[0]["hash"], "the same bits on all ranks");
            assert_eq!(report["steps"], 3);
        }
    }
}

fn check_exact_mode(place: Place) {
    for role in ["exact-float32", "exact-bfloat16"] {
        let alone = reports(place, role, 1);
        for report in reports(place, role, 2) {
            assert_eq!(report, alone[0], "{role}: the bits of two ranks are not those of one");
        }
    }
}

fn check_abort(place: Place) {
    let mut ranks = start_all(place, "abort", 2);
    let before: Vec<Value> = ranks.iter().map(Member::report).collect();
    assert_eq!(before[0], before[1]);
    // Rank 0 sums gradients, and waits for rank 1, which does not come.
    assert_eq!(ranks[0].report(), "summing");
    ranks[0].command(&json!("abort"));
    let aborted = ranks[0].report();
    println!("{place:?}: {aborted}");
    assert_eq!(aborted["hash"], before[0], "the aborted step has changed something");
    for rank in &mut ranks {
        rank.command(&json!("again"));
    }
    let after: Vec<Value> = ranks.iter().map(Member::report).collect();
    let undisturbed = reports(place, "undisturbed", 2);
    assert_eq!([&after[0], &after[1]], [&undisturbed[0], &undisturbed[1]], "not the bits of ranks that were not disturbed");
}

fn check_transfer(place: Place) {
    let reports = reports(place, "transfer", 2);
    assert_eq!(reports[0], reports[1]);
}

#[test]
fn on_the_processor_ranks_train_as_one_does() {
    check_training(Place::Processor);
}

#[test]
fn on_one_gpu_ranks_train_as_one_does() {
    if Place::OneGpu.is_there() {
        check_training(Place::OneGpu);
    }
}

#[test]
fn on_the_processor_exact_mode_has_the_bits_of_one_rank() {
    check_exact_mode(Place::Processor);
}

#[test]
fn on_one_gpu_exact_mode_has_the_bits_of_one_rank() {
    if Place::OneGpu.is_there() {
        check_exact_mode(Place::OneGpu);
    }
}

#[test]
fn on_the_processor_an_abort_in_a_collective_changes_nothing_and_the_next_group_takes_the_step() {
    check_abort(Place::Processor);
}

#[test]
fn on_one_gpu_an_abort_in_a_collective_changes_nothing_and_the_next_group_takes_the_step() {
    if Place::OneGpu.is_there() {
        check_abort(Place::OneGpu);
    }
}

#[test]
fn on_the_processor_a_state_goes_from_one_rank_to_the_other_and_both_go_on_alike() {
    check_transfer(Place::Processor);
}

#[test]
fn on_one_gpu_a_state_goes_from_one_rank_to_the_other_and_both_go_on_alike() {
    if Place::OneGpu.is_there() {
        check_transfer(Place::OneGpu);
    }
}
