//! What a group of 512 members has to keep to by the model of `examples/large_group` with its defaults (decision 35): the real machines, in
//! virtual time, and goals that serial sending, a transfer at the start or a coordinator that waits miss by far.

#[path = "../examples/large_group/network.rs"]
mod network;
#[path = "../examples/large_group/rows.rs"]
#[allow(dead_code, reason = "a part of it is for the table")]
mod rows;
#[path = "../examples/large_group/settings.rs"]
#[allow(dead_code, reason = "a part of it is for the table")]
mod settings;
#[path = "../examples/large_group/simulation.rs"]
mod simulation;

use settings::Settings;

const MEMBERS: usize = 512;

#[test]
fn a_fresh_start_of_512_sends_nothing() {
    let row = rows::start(&Settings::default(), MEMBERS, false);
    assert_eq!((row.received, row.sent, row.chain), (0, 0.0, 0), "{row:?}");
    let alone = rows::start(&Settings::default(), 1, false);
    assert!(row.level < alone.level + 1.0, "{row:?} against {alone:?}");
}

#[test]
fn a_restore_of_512_takes_less_than_twice_the_time_of_one() {
    let (row, alone) = (rows::start(&Settings::default(), MEMBERS, true), rows::start(&Settings::default(), 1, true));
    assert_eq!((row.received, alone.received), (MEMBERS - 1, 0));
    assert!(row.sent <= 1.0 && row.chain <= 10, "one state by each, a chain of the logarithm: {row:?}");
    assert!(row.level <= 2.0 * alone.level, "{row:?} against {alone:?}");
}

#[test]
fn after_a_loss_the_next_step_of_512_is_done_within_a_step_and_a_second() {
    let settings = Settings::default();
    for lost in [1, 8] {
        let [survivors, whole] = rows::loss(&settings, MEMBERS, lost, false);
        assert!(survivors.done <= settings.step + 1.0, "{survivors:?}");
        assert_eq!(survivors.received, 0, "all of them hold it");
        // Each half from another member.
        assert_eq!((whole.received, whole.sent, whole.chain), (lost, 0.5, 1), "{whole:?}");
    }
}

#[test]
fn the_same_model_gives_the_same_figures() {
    let run = || format!("{:?}", rows::loss(&Settings::default(), 24, 3, true));
    assert_eq!(run(), run());
}
