//! Members as processes: this test program started again with a role.

use lcl_torch::collectives::MemoryStore;
use serde_json::{Value, json};

use crate::{
    TIMEOUT,
    roles::{self, Place},
    wire::Member,
};

/// 150 groups whose buckets of gradients stay behind; the C library's own growth is a few MiB.
const LEAST_LEAK_KIB: u64 = 24 << 10;

fn start_all(role: &str, world_size: usize) -> Vec<Member> {
    let store = MemoryStore::default();
    (0..world_size).map(|rank| Member::start(&store, "processes::member_process", role, (rank, world_size), &[])).collect()
}

/// Not a test by itself: the body of a member process. Does nothing when the program was started by hand.
#[test]
fn member_process() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(role) = variable("LCL_ROLE") else { return };
    let number = |name: &str| variable(name).and_then(|text| text.parse().ok()).expect("a number");
    roles::play(&Place { role, rank: number("LCL_RANK"), world_size: number("LCL_WORLD_SIZE") }).expect("a role");
}

#[test]
fn two_processes_reproduce_the_recording_of_two_ranks() {
    let members = start_all("ddp2", 2);
    let reports: Vec<Value> = members.iter().map(Member::report).collect();
    assert!(reports.iter().all(|report| report["agrees"].as_u64() > Some(0)), "{reports:?}");
}

#[test]
fn uneven_processes_train_as_one_member_does() {
    for world_size in [2, 3] {
        let members = start_all("train", world_size);
        let reports: Vec<Value> = members.iter().map(Member::report).collect();
        println!("{reports:?}");
        for report in &reports {
            assert!(report["apart"].as_f64() < Some(1e-6), "{report}");
            // A few AdamW steps divide by tiny second moments: what is a rounding in a gradient may be more in a parameter.
            assert!(report["drift"].as_f64() < Some(1e-4), "{report}");
            assert_eq!(report["hash"], reports[0]["hash"], "the same bits on all members");
            assert!(report["steps"].as_u64() > Some(0));
        }
    }
}

#[test]
fn survivors_of_a_killed_process_form_the_next_generation_and_compute_the_same_step() {
    let mut members = start_all("survive", 3);
    let first: Vec<Value> = members.iter().map(Member::report).collect();
    assert!(first.iter().all(|report| report["stepped"] == first[0]["stepped"]), "{first:?}");
    members[1].command(&json!("die"));
    for survivor in [0, 2] {
        members[survivor].command(&json!("step"));
    }
    members[1].kill();
    for survivor in [0, 2] {
        let lost = members[survivor].report()["lost"].as_u64().expect("a time");
        println!("rank {survivor} noticed within {lost} ms of its step's start");
        assert!(lost < TIMEOUT.as_millis() as u64 / 2, "noticed by the loss, not by the time-out");
    }
    for (rank, survivor) in [0, 2].into_iter().enumerate() {
        members[survivor].command(&json!({"rank": rank, "world_size": 2}));
    }
    let last: Vec<Value> = [0, 2].map(|survivor: usize| members[survivor].report()).into();
    for report in &last {
        assert!(report["apart"].as_f64() < Some(1e-6), "{report}");
        assert_eq!(report["hash"], last[0]["hash"]);
    }
}

#[test]
fn in_exact_mode_products_do_not_depend_on_where_their_operands_lie() {
    // In a process of its own: MKL looks once how it is to compute.
    let report = start_all("aligned", 1)[0].report();
    assert_eq!(report, 0, "products with other bits");
}

#[test]
fn a_process_that_starts_itself_anew_keeps_its_id_and_streams_and_nothing_else() {
    let mut member = start_all("anew", 1).pop().expect("a member");
    let mut last = member.report();
    for _ in 0..3 {
        member.command(&json!("again"));
        let next = member.report();
        assert_eq!(next["process"], last["process"]);
        // Fewer at first: what this process has inherited without wanting it is closed, too.
        assert!(next["descriptors"].as_u64() <= last["descriptors"].as_u64(), "{next} after {last}");
        last = next;
    }
    member.command(&json!("end"));
}

#[test]
fn two_hundred_groups_leave_no_descriptor_no_thread_and_no_memory_behind() {
    let report = start_all("leak", 1)[0].report();
    println!("{report}");
    let count = |when: &str, index: usize| report[when][index].as_u64().expect("a count");
    for index in [0, 1] {
        assert!(count("after", index) <= count("before", index), "{report}");
    }
    // Over the last 150 of 200 groups. What a group keeps, a leak would keep 150 times: its buckets alone are hundreds of KiB.
    let (first, last) = (count("memory", 0), count("memory", 3));
    assert!(last <= first + LEAST_LEAK_KIB, "{report}");
}
