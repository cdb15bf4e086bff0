//! Each check of the judge can fail: what it allows, and the least that it must not, told to a judge that has seen the same history.

use lcl_protocol::{Flags, Moves, Phase};

use super::*;

const FIRST: Generation = Generation { epoch: 1, n: 1 };
const SECOND: Generation = Generation { epoch: 1, n: 2 };
const REIGN: Reign = Reign { number: 1, epoch: 1 };
const A: ProcessId = ProcessId(1);
const B: ProcessId = ProcessId(2);
/// One that is in no generation.
const C: ProcessId = ProcessId(3);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn world(min: u32, desired: u32, max: u32) -> World {
    World::new(min, desired, max).unwrap()
}

/// A plan of a generation of two.
fn plan(generation: Generation, rank: u32, base: Option<StateLabel>, role: Role) -> Plan {
    let (division, seat) = (Division::full(2), rank);
    Plan { generation, rank, world: 2, division, seat, list_digest: generation.n, base, role, lost: Vec::new(), further_losses: 0 }
}

/// What two members give to the step after a state.
fn parts(state: State) -> Vec<Part> {
    let part = |rank| Part {
        step: state.label.step + 1,
        slots: Division::full(2).slots_of(rank, GLOBAL_BATCH).into_iter().flatten().collect(),
        exact: state.exact,
        fast: state.fast,
        flags: Flags::NONE,
    };
    vec![part(0), part(1)]
}

fn formed(generation: Generation, world: u32) -> HistoryEvent {
    HistoryEvent::Formed { generation, world, base: None }
}

/// A judge and what the members whom it watches hold.
struct Watched {
    judge: Judge,
    state: State,
}

impl Watched {
    /// Two members began from nothing, trained a step in the first generation and saved it.
    fn after_one_step() -> Self {
        let mut judge = Judge::default();
        judge.coordinator_started(REIGN, world(2, 2, 3));
        assert_eq!([0, 1, 2].map(|worker| judge.process_started(worker)), [A, B, C]);
        judge.now = at(1);
        judge.plan(A, &plan(FIRST, 0, None, Role::Restore), None, 1);
        judge.plan(B, &plan(FIRST, 1, None, Role::Receive(Moves::alike(Some(0), &[]))), None, 1);
        judge.restored(A, FIRST, None);
        let state = State::initial(FIRST);
        judge.holds(A, state);
        judge.holds(B, state);
        let mut watched = Self { judge, state };
        watched.status(1, 0, formed(FIRST, 2));
        watched.train(FIRST);
        watched.save();
        watched.status(2, 1, HistoryEvent::Recovered { generation: FIRST, took: at(0) });
        watched
    }

    fn label(&self) -> StateLabel {
        self.state.label
    }

    /// The second generation, of the same members, begins at 2 s.
    fn form_second(&mut self) {
        self.judge.now = at(2);
        self.get_plan(A, 0);
        self.get_plan(B, 1);
    }

    fn get_plan(&mut self, process: ProcessId, rank: u32) {
        let base = Some(self.label());
        self.judge.plan(process, &plan(SECOND, rank, base, Role::Level), base, 1);
    }

    /// Both members commit the next step.
    fn train(&mut self, generation: Generation) {
        let parts = parts(self.state);
        self.apply(A, 0, generation, &parts);
        self.apply(B, 1, generation, &parts);
        self.state = self.state.updated(generation, &parts);
    }

    /// One commits the next step of these parts. Its parameters are as they should be.
    fn apply(&mut self, process: ProcessId, rank: u32, generation: Generation, given: &[Part]) {
        let state = self.state.updated(generation, &parts(self.state));
        self.judge.applied(process, &plan(generation, rank, None, Role::Level), state, given);
    }

    fn save(&mut self) {
        self.judge.visible(A, self.label(), true, Fence { asked: at(1), epoch: 1 });
    }

    /// The coordinator shows a committed step, and one entry of its history.
    fn status(&mut self, sequence: u64, step: u64, event: HistoryEvent) {
        let entry = HistoryEntry { sequence, at: self.judge.now, event };
        let status = Status {
            phase: Phase::Running,
            generation: FIRST,
            world: world(2, 2, 3),
            members: Vec::new(),
            step,
            last_checkpoint: None,
            training: None,
            wanted_checkpoint: None,
            sources: Vec::new(),
            history: vec![entry],
        };
        self.judge.status(REIGN, &status);
    }
}

/// What happens is a violation of exactly these checks, each known by its words.
fn finds(names: &[&str], happens: impl FnOnce(&mut Watched)) {
    let mut watched = Watched::after_one_step();
    happens(&mut watched);
    let violations = watched.judge.violations();
    let are_named = violations.len() == names.len() && violations.iter().zip(names).all(|(violation, name)| violation.contains(name));
    assert!(are_named, "expected {names:?}, found {violations:#?}");
}

fn allows(happens: impl FnOnce(&mut Watched)) {
    finds(&[], happens);
}

#[test]
fn a_process_gets_greater_and_greater_generations() {
    let again = |watched: &mut Watched| watched.judge.plan(A, &plan(FIRST, 0, None, Role::Restore), None, 1);
    allows(Watched::form_second);
    finds(&["process 1 gets g000001-000001 after Some"], again);
}

#[test]
fn a_generation_has_one_list_of_members() {
    let two_lists = ["g000001-000002 has two lists of members"];
    let after_a = |other: fn(&mut Plan)| {
        move |watched: &mut Watched| {
            watched.get_plan(A, 0);
            let base = Some(watched.label());
            let mut plan = plan(SECOND, 1, base, Role::Level);
            other(&mut plan);
            watched.judge.plan(B, &plan, plan.base, 1);
        }
    };
    allows(after_a(|_| {}));
    finds(&two_lists, after_a(|plan| plan.list_digest += 1));
    finds(&two_lists, after_a(|plan| plan.division = Division::full(3)));
    finds(&two_lists, after_a(|plan| plan.world = 3));
    finds(&two_lists, after_a(|plan| plan.base = Some(StateLabel { step: 2, generation: FIRST })));
    finds(&two_lists, after_a(|plan| plan.rank = 0));
}

#[test]
fn a_generation_goes_on_from_the_greatest_label_of_its_members() {
    let initial = State::initial(FIRST).label;
    let role = || Role::Receive(Moves::alike(Some(0), &[]));
    allows(|watched| watched.judge.plan(B, &plan(SECOND, 1, Some(watched.label()), role()), Some(initial), 1));
    finds(&["goes on from"], |watched| watched.judge.plan(B, &plan(SECOND, 1, Some(initial), role()), Some(watched.label()), 1));
}

#[test]
fn no_generation_is_formed_on_less_than_an_attached_member_holds() {
    let initial = State::initial(FIRST).label;
    let passed_over = |base, stream| {
        move |watched: &mut Watched| {
            let held = Some(watched.label());
            watched.judge.plan(B, &plan(SECOND, 0, base, Role::Level), base, 1);
            watched.judge.plan(A, &plan(SECOND.next(), 0, held, Role::Level), held, stream);
        }
    };
    allows(passed_over(Some(StateLabel { step: 1, ..initial }), 1));
    // It came back, on another stream.
    allows(passed_over(Some(initial), 2));
    finds(&["process 1 was attached with"], passed_over(Some(initial), 1));
}

#[test]
fn only_who_holds_the_base_is_level_with_it_or_sends_it() {
    let (level, send, receive) = (Role::Level, Role::Send(Moves::alike(None, &[1])), Role::Receive(Moves::alike(Some(1), &[])));
    let held = |held: bool, role: &Role| {
        let role = role.clone();
        move |watched: &mut Watched| {
            let base = Some(watched.label());
            watched.judge.plan(A, &plan(SECOND, 0, base, role), base.filter(|_| held), 1);
        }
    };
    for (is_held, right, wrong) in [(true, vec![&level, &send], vec![&receive]), (false, vec![&receive], vec![&level, &send])] {
        for role in right {
            allows(held(is_held, role));
        }
        for role in wrong {
            finds(&["for process 1, which holds"], held(is_held, role));
        }
    }
}

#[test]
fn parameters_are_those_of_an_undisturbed_run_and_the_same_for_the_same_label() {
    allows(|watched| watched.judge.holds(B, watched.state));
    let other = |watched: &Watched| State { exact: watched.state.exact + 1, ..watched.state };
    finds(&["than an undisturbed run has"], |watched| watched.judge.holds(B, other(watched)));
    let other = |watched: &Watched| State { fast: watched.state.fast + 1, ..watched.state };
    finds(&["than another process"], |watched| watched.judge.holds(B, other(watched)));
}

#[test]
fn only_members_commit_and_each_a_step_once() {
    allows(|watched| watched.train(FIRST));
    finds(&["of which it is no member"], |watched| watched.apply(C, 0, FIRST, &parts(watched.state)));
    finds(&["commits step 2 of g000001-000001 twice"], |watched| {
        watched.apply(A, 0, FIRST, &parts(watched.state));
        watched.apply(A, 0, FIRST, &parts(watched.state));
    });
}

#[test]
fn members_compute_a_step_from_the_same_state() {
    let given = |change: fn(&mut Part)| {
        move |watched: &mut Watched| {
            let mut parts = parts(watched.state);
            change(&mut parts[1]);
            watched.apply(A, 0, FIRST, &parts);
        }
    };
    allows(given(|_| {}));
    for change in [(|part| part.step += 1) as fn(&mut Part), |part| part.exact += 1, |part| part.fast += 1] {
        finds(&["hold different states"], given(change));
    }
}

#[test]
fn a_step_has_every_slot_once_and_from_the_member_whose_it_is() {
    let given = |change: fn(&mut Vec<Part>)| {
        move |watched: &mut Watched| {
            let mut parts = parts(watched.state);
            change(&mut parts);
            watched.apply(A, 0, FIRST, &parts);
        }
    };
    let others = "other members than its generation's";
    allows(given(|_| {}));
    finds(&["has slots", others], given(|parts| parts.truncate(1)));
    finds(&["has slots", others], given(|parts| parts[1].slots.push(0)));
    finds(&[others], given(|parts| parts.reverse()));
    finds(&[others], given(|parts| (parts[0].slots, parts[1].slots) = ((0..5).collect(), (5..GLOBAL_BATCH).collect())));
}

/// A member raises a wish, and steps are committed from then on.
fn raise(watched: &mut Watched, wish: Flags, steps: usize) {
    let mut given = parts(watched.state);
    given[1].flags = wish;
    watched.apply(A, 0, FIRST, &given);
    watched.state = watched.state.updated(FIRST, &given);
    for _ in 1..steps {
        watched.train(FIRST);
    }
}

#[test]
fn a_wish_takes_effect_after_the_step_that_follows_the_one_in_which_all_read_it() {
    for wish in [Flags::LEAVE, Flags::CHECKPOINT] {
        let obey = |steps| {
            move |watched: &mut Watched| {
                raise(watched, wish, steps);
                watched.judge.obeys(A, wish, watched.label());
            }
        };
        allows(obey(2));
        finds(&["process 1 obeys"], obey(1));
    }
    // In a state that another generation's step made nothing has been agreed on.
    finds(&["process 1 obeys"], |watched| {
        raise(watched, Flags::LEAVE, 1);
        watched.form_second();
        watched.train(SECOND);
        watched.judge.obeys(A, Flags::LEAVE, watched.label());
    });
}

#[test]
fn nobody_trains_on_after_the_step_in_which_its_group_leaves() {
    allows(|watched| raise(watched, Flags::LEAVE, 2));
    allows(|watched| raise(watched, Flags::CHECKPOINT, 3));
    let on = "its group was to leave after the step before";
    finds(&[on, on], |watched| raise(watched, Flags::LEAVE, 3));
}

#[test]
fn all_members_read_the_same_wishes_in_a_step() {
    let read = |by_b| {
        move |watched: &mut Watched| {
            let mut parts = parts(watched.state);
            watched.apply(A, 0, FIRST, &parts);
            parts[0].flags = by_b;
            watched.apply(B, 1, FIRST, &parts);
        }
    };
    allows(read(Flags::NONE));
    finds(&["process 2 reads Flags(1) in step 2"], read(Flags::LEAVE));
}

#[test]
fn a_store_does_not_answer_once_its_coordinator_has_formed_another_generation() {
    let answered = |generation, asked, epoch| {
        move |watched: &mut Watched| {
            watched.form_second();
            watched.judge.answered(A, generation, Fence { asked, epoch });
        }
    };
    allows(answered(FIRST, at(2), 1));
    allows(answered(SECOND, at(3), 1));
    allows(answered(FIRST, at(3), 2));
    finds(&["is answered in the store of g000001-000001"], answered(FIRST, at(3), 1));
}

#[test]
fn a_visible_checkpoint_is_complete() {
    let visible = |is_complete| {
        move |watched: &mut Watched| {
            watched.train(FIRST);
            watched.judge.visible(A, watched.label(), is_complete, Fence { asked: at(1), epoch: 1 });
        }
    };
    allows(visible(true));
    finds(&["is not complete"], visible(false));
}

#[test]
fn a_checkpoint_does_not_become_visible_once_its_coordinator_has_formed_another_generation() {
    let visible = |asked, epoch| {
        move |watched: &mut Watched| {
            watched.form_second();
            watched.judge.visible(A, watched.label(), true, Fence { asked, epoch });
        }
    };
    allows(visible(at(2), 1));
    // A coordinator that was replaced knows nothing of it.
    allows(visible(at(3), 2));
    finds(&["it was not fenced"], visible(at(3), 1));
}

#[test]
fn what_is_restored_is_the_newest_checkpoint_and_of_no_later_generation() {
    allows(|watched| watched.judge.restored(A, SECOND, Some(watched.label())));
    finds(&["is restored, the newest is"], |watched| watched.judge.restored(A, SECOND, None));
    let earlier = Generation { n: 0, ..FIRST };
    finds(&["which a later generation wrote"], |watched| watched.judge.restored(A, earlier, Some(watched.label())));
}

#[test]
fn the_committed_step_does_not_fall_without_a_word() {
    let went_back = HistoryEvent::WentBack { from: 1, to: 0 };
    allows(|watched| watched.status(3, 1, formed(SECOND, 2)));
    allows(|watched| watched.status(3, 0, went_back.clone()));
    finds(&["fell from 1 to 0"], |watched| watched.status(3, 0, formed(SECOND, 2)));
    // It was said before, of another fall.
    finds(&["fell from 1 to 0"], |watched| watched.status(2, 0, went_back.clone()));
}

#[test]
fn a_generation_is_formed_within_the_bounds_in_force() {
    let form = |resized: Option<(Duration, Option<Duration>)>, members| {
        move |watched: &mut Watched| {
            for (time, is_accepted) in resized.into_iter().flat_map(|(sent, accepted)| [(Some(sent), false), (accepted, true)]) {
                if let Some(time) = time {
                    watched.judge.now = time;
                    watched.judge.bounds(REIGN, world(4, 4, 4), is_accepted);
                }
            }
            watched.judge.now = at(5);
            watched.status(3, 1, formed(SECOND, members));
        }
    };
    let allowed = ["members, allowed are"];
    allows(form(None, 2));
    allows(form(None, 3));
    finds(&allowed, form(None, 1));
    finds(&allowed, form(None, 4));
    // Other bounds are in force, or may be, or come later.
    let (on_the_way, in_force, later) = (Some((at(4), None)), Some((at(3), Some(at(4)))), Some((at(6), Some(at(7)))));
    allows(form(on_the_way, 3));
    allows(form(on_the_way, 4));
    allows(form(in_force, 4));
    finds(&allowed, form(in_force, 3));
    finds(&allowed, form(later, 4));
}

#[test]
fn a_generation_has_as_many_members_as_its_plans_say() {
    let form = |members| {
        move |watched: &mut Watched| {
            watched.form_second();
            watched.status(3, 1, formed(SECOND, members));
        }
    };
    allows(form(2));
    finds(&["has 3 members, its plans say"], form(3));
}

#[test]
fn a_complete_job_has_committed_every_step_and_saved_the_last() {
    allows(|watched| {
        watched.train(FIRST);
        watched.save();
        watched.judge.complete(2);
    });
    finds(&["not every step up to 2 was committed"], |watched| {
        watched.state = watched.state.updated(FIRST, &parts(watched.state));
        watched.save();
        watched.judge.complete(2);
    });
    finds(&["its newest checkpoint is Some(1)"], |watched| {
        watched.train(FIRST);
        watched.judge.complete(2);
    });
}

#[test]
fn a_stopped_job_has_saved_what_all_members_had() {
    let exit = |watched: &mut Watched, step| watched.judge.exited(A, EndReason::Stopped, Some(step));
    allows(|watched| {
        watched.train(FIRST);
        watched.save();
        exit(watched, 2);
        watched.judge.stopped();
    });
    // Only one of them had applied it.
    allows(|watched| {
        watched.apply(A, 0, FIRST, &parts(watched.state));
        exit(watched, 2);
        watched.judge.stopped();
    });
    finds(&["the job was stopped with step Some(2)"], |watched| {
        watched.train(FIRST);
        exit(watched, 2);
        watched.judge.stopped();
    });
}
