//! Random histories of joins, leaves, crashes, hangs, several processes of one name, broken streams, late and doubled messages, failed
//! collectives, resizes and drains against both machines, with every invariant checked at every event; then the faults stop, and training
//! must come to its end.
//!
//! `PROPTEST_CASES` sets the number of histories; a failing one is shrunk and printed, and its seed is kept beside this file.

mod process;
mod simulation;

use proptest::{prelude::*, test_runner::FileFailurePersistence};

use lcl_protocol::Phase;
use simulation::{Action, Simulation};

/// Histories in one run of the test: a few seconds.
const CASES: u32 = 400;

/// Rounds after which a slow member is evicted, if nothing comes between.
const CALM: u8 = 60;

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => any::<u8>().prop_map(Action::DeliverUp),
        6 => any::<u8>().prop_map(Action::DeliverDown),
        6 => any::<u8>().prop_map(Action::Work),
        6 => (1_u8..12).prop_map(Action::Rounds),
        2 => any::<u8>().prop_map(Action::RepeatUp),
        2 => any::<u8>().prop_map(Action::RepeatDown),
        3 => any::<u8>().prop_map(Action::Join),
        2 => any::<u8>().prop_map(Action::Crash),
        2 => any::<u8>().prop_map(Action::Break),
        2 => any::<u8>().prop_map(Action::FailCollective),
        1 => any::<u8>().prop_map(Action::Hang),
        1 => any::<u8>().prop_map(Action::Resume),
        1 => any::<u8>().prop_map(Action::Slow),
        1 => Just(Action::Rounds(CALM)),
        1 => any::<u8>().prop_map(Action::Drain),
        1 => any::<u8>().prop_map(Action::DrainWorker),
        1 => Just(Action::Checkpoint),
        1 => (1_u8..4, 0_u8..3).prop_map(|(desired, more)| Action::SetWorld { desired, more }),
        2 => (1_u16..900).prop_map(Action::Advance),
        1 => Just(Action::RestartCoordinator),
        1 => Just(Action::LoseCoordinator),
        1 => any::<u8>().prop_map(Action::Double),
        1 => any::<u8>().prop_map(Action::Restart),
    ]
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES),
        max_shrink_iters: 10_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/histories/regressions.txt"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_history_keeps_the_invariants_and_ends_once_the_faults_stop(actions in prop::collection::vec(action(), 1..160)) {
        let mut simulation = Simulation::new();
        for action in &actions {
            simulation.apply(action);
        }
        simulation.finish();
    }
}

/// Found by random histories of former kinds.
#[test]
fn histories_that_once_failed_keep_the_invariants() {
    use Action::{Advance, Break, Crash, DeliverUp, Drain, DrainWorker, FailCollective, Hang, Join, Rounds, SetWorld};
    let histories = [
        vec![
            Join(0),
            Join(103),
            Hang(0),
            Join(0),
            Join(0),
            DeliverUp(0),
            DeliverUp(0),
            DeliverUp(0),
            Rounds(5),
            Break(16),
            FailCollective(1),
            Rounds(6),
            Rounds(8),
            DrainWorker(7),
            Crash(178),
            Advance(580),
            Join(0),
        ],
        vec![
            Join(4),
            Join(51),
            Drain(50),
            Join(0),
            Rounds(1),
            SetWorld { desired: 1, more: 0 },
            Rounds(11),
            Break(157),
            Rounds(1),
            Drain(66),
        ],
    ];
    for history in histories {
        let mut simulation = Simulation::new();
        for action in &history {
            simulation.apply(action);
        }
        simulation.finish();
    }
}

#[test]
fn of_two_live_processes_of_a_name_the_one_that_came_later_trains_and_the_other_ends() {
    let mut simulation = Simulation::new();
    for action in [Action::Join(0), Action::Join(1), Action::Rounds(11), Action::Double(0), Action::Rounds(11), Action::Rounds(11)] {
        simulation.apply(&action);
    }
    assert_eq!((simulation.alive(), simulation.status().phase), (vec![1, 2], Phase::Running));
    // So it stays under the next coordinator, which has seen neither; and what the worker starts again needs no other ticket.
    for action in [Action::RestartCoordinator, Action::Rounds(11), Action::Restart(1), Action::Rounds(11)] {
        simulation.apply(&action);
    }
    assert_eq!((simulation.alive(), simulation.status().phase), (vec![1, 3], Phase::Running));
    simulation.finish();
}

#[test]
fn an_older_process_that_nobody_could_reach_ends_when_it_comes_back() {
    let mut simulation = Simulation::new();
    for action in [Action::Join(0), Action::Join(1), Action::Rounds(11), Action::Hang(0), Action::Double(0), Action::Rounds(11)] {
        simulation.apply(&action);
    }
    assert_eq!(simulation.alive(), [0, 1, 2]);
    for action in [Action::RestartCoordinator, Action::Rounds(11), Action::Resume(0), Action::Rounds(11), Action::Rounds(11)] {
        simulation.apply(&action);
    }
    assert_eq!((simulation.alive(), simulation.status().phase), (vec![1, 2], Phase::Running));
    simulation.finish();
}

/// The generated histories are worth something only if they reach the interesting places.
#[test]
fn a_history_without_faults_trains_from_the_first_step_to_the_last_in_few_generations() {
    let mut simulation = Simulation::new();
    simulation.finish();
    assert!(simulation.generations() <= 3, "{} generations", simulation.generations());
}

#[test]
fn a_joiner_is_let_in_at_an_agreed_step_without_a_failure() {
    let mut simulation = Simulation::new();
    for action in [Action::Join(0), Action::Join(1), Action::Rounds(11), Action::Join(2), Action::Rounds(11), Action::Rounds(11)] {
        simulation.apply(&action);
    }
    assert_eq!(simulation.broken(), 0);
    assert!(simulation.generations() >= 2);
    simulation.finish();
}

#[test]
fn training_goes_on_without_a_coordinator_and_a_new_one_takes_the_group_over() {
    let mut simulation = Simulation::new();
    for action in [Action::Join(0), Action::Join(1), Action::Rounds(11), Action::Rounds(11)] {
        simulation.apply(&action);
    }
    let (generations, before) = (simulation.generations(), simulation.trained());
    simulation.apply(&Action::LoseCoordinator);
    simulation.apply(&Action::Rounds(11));
    let without = simulation.trained();
    assert!(without > before, "{without} steps, {before} when the coordinator went");
    simulation.apply(&Action::RestartCoordinator);
    simulation.apply(&Action::Rounds(11));
    assert!(simulation.trained() > without);
    assert_eq!((simulation.generations(), simulation.broken()), (generations, 0), "nothing was interrupted");
    simulation.finish();
}

#[test]
fn a_slow_process_is_evicted_and_stays_out_until_another_takes_its_place() {
    let mut simulation = Simulation::new();
    simulation.apply(&Action::SetWorld { desired: 3, more: 0 });
    for action in [Action::Join(0), Action::Join(1), Action::Join(2), Action::Rounds(11), Action::Slow(2), Action::Rounds(CALM)] {
        simulation.apply(&action);
    }
    let members = |simulation: &Simulation| simulation.status().members.iter().filter(|member| member.rank.is_some()).count();
    assert_eq!((simulation.too_slow.len(), members(&simulation), simulation.status().members.len()), (1, 2, 3));
    let before = simulation.trained();
    simulation.apply(&Action::Rounds(CALM));
    assert!(simulation.trained() > before + 10 && members(&simulation) == 2, "the others go on");
    for action in [Action::Restart(2), Action::Rounds(CALM), Action::Rounds(CALM)] {
        simulation.apply(&action);
    }
    assert_eq!((simulation.too_slow.len(), members(&simulation)), (1, 3), "what took its place is not slow");
    simulation.finish();
}

#[test]
fn a_checkpoint_is_written_though_the_generation_that_was_asked_for_it_fails() {
    let mut simulation = Simulation::new();
    for action in [Action::Join(0), Action::Join(1), Action::Rounds(11), Action::Rounds(11), Action::Rounds(11)] {
        simulation.apply(&action);
    }
    // Nobody has heard of the wish when the collective fails.
    simulation.apply(&Action::Checkpoint);
    simulation.apply(&Action::FailCollective(0));
    let asked = simulation.status();
    assert!(asked.wanted_checkpoint == Some(asked.step) && asked.step > 0 && asked.last_checkpoint.is_none(), "{asked:?}");
    for _ in 0..3 {
        simulation.apply(&Action::Rounds(11));
    }
    let status = simulation.status();
    assert!(status.wanted_checkpoint.is_none() && status.saved_step() >= Some(asked.step), "{status:?}");
    assert_eq!((simulation.broken(), simulation.generations()), (1, 2));
    simulation.finish();
}
