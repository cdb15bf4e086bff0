//! A process that writes down what it is asked for, with a script of what comes of it.

use std::{
    collections::VecDeque,
    pin::pin,
    task::{Context, Poll, Waker},
};

use super::*;
use crate::Division;

const FIRST: Generation = Generation { epoch: 1, n: 1 };

/// What a look for a command finds.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are few of them")]
enum Look {
    Command(MemberCommand),
    Nothing,
    /// Nothing, and from now on the process is asked to leave.
    Leave,
}

#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Script {
    looks: VecDeque<Look>,
    log: Vec<String>,
    completed: u64,
    skips: u32,
    is_bad: bool,
    has_trained: bool,
    is_asked: bool,
    holds_state: bool,
    is_alone: bool,
    /// What forming, coming level and steps end with, in this order; then all goes well.
    halts: VecDeque<Option<Halt<&'static str>>>,
    /// What the last save ends with.
    save: Option<Halt<&'static str>>,
}

impl Script {
    fn new(looks: impl IntoIterator<Item = Look>) -> Self {
        Self {
            looks: looks.into_iter().collect(),
            log: Vec::new(),
            completed: 0,
            skips: 0,
            is_bad: false,
            has_trained: true,
            is_asked: false,
            holds_state: true,
            is_alone: false,
            halts: VecDeque::new(),
            save: None,
        }
    }

    fn with(self, halts: impl IntoIterator<Item = Option<Halt<&'static str>>>) -> Self {
        Self { halts: halts.into_iter().collect(), ..self }
    }

    fn note(&mut self, what: impl Into<String>) {
        self.log.push(what.into());
    }

    fn look(&mut self) -> Option<MemberCommand> {
        match self.looks.pop_front()? {
            Look::Command(command) => return Some(command),
            Look::Nothing => {}
            Look::Leave => self.is_asked = true,
        }
        None
    }

    fn next_halt(&mut self) -> Result<(), Halt<&'static str>> {
        self.halts.pop_front().flatten().map_or(Ok(()), Err)
    }

    fn member(mut self) -> (Result<String, &'static str>, String) {
        let ended = now(drive(&mut self));
        (ended, self.log.join(" "))
    }

    fn alone(mut self) -> (Result<String, &'static str>, String) {
        let ended = now(drive_alone(&mut self));
        (ended, self.log.join(" "))
    }
}

fn now<T>(work: impl Future<Output = T>) -> T {
    match pin!(work).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("it waits"),
    }
}

impl Steps for Script {
    type Error = &'static str;
    type Exit = String;
    type Exchanged = ();

    fn is_asked_to_leave(&self) -> bool {
        self.is_asked
    }

    fn standing(&self) -> Standing {
        Standing {
            completed_steps: self.completed,
            steps: 3,
            consecutive_skips: self.skips,
            most_skips: 5,
            has_bad_data: self.is_bad,
            has_trained: self.has_trained,
        }
    }

    async fn exchange(&mut self) -> Result<(), Halt<&'static str>> {
        self.next_halt()
    }

    async fn step(&mut self, (): ()) -> Result<Agreed, Halt<&'static str>> {
        self.completed += 1;
        let step = self.completed;
        self.note(format!("step-{step}"));
        Ok(Agreed { flags: Flags::CHECKPOINT, is_busy: step == 1 })
    }

    async fn save(&mut self, occasion: Occasion) -> Result<(), Halt<&'static str>> {
        match occasion {
            Occasion::Step(agreed) if agreed.is_busy => self.note("busy"),
            Occasion::Step(_) => {}
            Occasion::Asked => self.note("save-asked"),
            Occasion::Last(_) => self.note("save-last"),
        }
        if matches!(occasion, Occasion::Step(_)) { Ok(()) } else { self.save.take().map_or(Ok(()), Err) }
    }

    async fn fail(&mut self, failure: Failure) -> &'static str {
        self.note(format!("fail-{failure:?}"));
        "failed"
    }

    async fn exit(&mut self, reason: EndReason, is_kept: bool) -> Result<String, &'static str> {
        Ok(format!("{reason}{}", if is_kept { " kept" } else { "" }))
    }
}

impl Membership for Script {
    fn report(&mut self, event: MemberEvent) -> Result<(), &'static str> {
        self.note(match event {
            MemberEvent::Drain => "drain".to_owned(),
            MemberEvent::GroupFormed { generation } => format!("formed-{}", generation.n),
            MemberEvent::Recovered { step, .. } => format!("level-{step}"),
            MemberEvent::Overtaken { by, .. } => format!("overtaken-{}", by.n),
            MemberEvent::Committed { step, agreed, .. } => format!("committed-{step}-{}", agreed.bits()),
            MemberEvent::StateDiffers { ranks, is_own, .. } => format!("differs-{ranks:?}-{is_own}"),
            MemberEvent::Finished { .. } => "finished".to_owned(),
            MemberEvent::GroupClosed { failure, .. } => format!("closed-{}", failure.is_some()),
            other => format!("{other:?}"),
        });
        Ok(())
    }

    fn command(&mut self) -> Option<MemberCommand> {
        self.look()
    }

    async fn next_command(&mut self) -> Option<MemberCommand> {
        assert!(!self.looks.is_empty(), "nothing happens any more: {:?}", self.log);
        self.look()
    }

    fn holds_state(&self) -> bool {
        self.holds_state
    }

    fn is_alone(&self) -> bool {
        self.is_alone
    }

    async fn form(&mut self, plan: Plan) -> Result<(), Halt<&'static str>> {
        self.note(format!("form-{}", plan.generation.n));
        self.next_halt()
    }

    async fn level(&mut self, _: Generation, role: Role, _: Option<StateLabel>) -> Result<Level, Halt<&'static str>> {
        self.next_halt()?;
        Ok(if role == Role::Restore { Level::Overtaken(Generation { epoch: 9, n: 9 }) } else { Level::At(self.completed) })
    }

    fn begin(&mut self, _: Generation, step: u64) -> Result<(), &'static str> {
        self.note(format!("begin-{step}"));
        Ok(())
    }

    async fn leave(&mut self, _: Generation) -> Result<(), &'static str> {
        self.note("leave");
        Ok(())
    }

    fn drop_group(&mut self, _: Generation, why: &DropCause) -> Result<(), &'static str> {
        self.note(match why {
            DropCause::Agreed => "drop-agreed",
            DropCause::Aborted(_) => "drop-aborted",
            DropCause::Failed(_) => "drop-failed",
        });
        Ok(())
    }

    async fn refused(&mut self, refusal: Refusal) -> Result<String, &'static str> {
        Ok(refusal.to_string())
    }
}

fn form(generation: Generation) -> Look {
    Look::Command(MemberCommand::FormGroup(Plan {
        generation,
        rank: 0,
        world: 2,
        division: Division::full(2),
        seat: 0,
        list_digest: 0,
        base: None,
        role: Role::Level,
        lost: Vec::new(),
        further_losses: 0,
    }))
}

fn recover(role: Role) -> Look {
    Look::Command(MemberCommand::Recover { generation: FIRST, role, base: None })
}

fn train(generation: Generation) -> Look {
    Look::Command(MemberCommand::Train { generation, step: 0 })
}

fn exit(reason: EndReason) -> Look {
    Look::Command(MemberCommand::Exit { reason, is_kept: true })
}

fn save() -> Look {
    Look::Command(MemberCommand::WriteCheckpoint { generation: FIRST, step: 1 })
}

fn leave() -> Look {
    Look::Command(MemberCommand::LeaveGroup { generation: FIRST })
}

fn abort() -> Look {
    Look::Command(MemberCommand::AbortGroup { generation: FIRST, reason: "a member was lost".to_owned() })
}

fn cut() -> Halt<&'static str> {
    Halt::Group("cut".to_owned())
}

#[track_caller]
fn check((ended, log): (Result<String, &'static str>, String), expected: Result<&str, &'static str>, expected_log: &str) {
    assert_eq!((ended.as_deref().map_err(|error| *error), log.as_str()), (expected, expected_log));
}

const BEGUN: &str = "form-1 formed-1 begin-0";

#[test]
fn alone_it_makes_all_steps_saves_and_ends() {
    check(Script::new([]).alone(), Ok("complete kept"), "step-1 busy step-2 step-3 save-last");
}

#[test]
fn alone_it_leaves_between_two_steps_or_while_it_waits_for_data_but_not_after_the_last_step() {
    let asked = |completed| Script { is_asked: true, completed, ..Script::new([]) };
    check(asked(1).alone(), Ok("drained"), "");
    check(asked(3).alone(), Ok("complete kept"), "save-last");
    check(Script::new([]).with([None, Some(Halt::NoData)]).alone(), Ok("drained"), "step-1 busy");
}

#[test]
fn what_makes_no_sense_to_go_on_with_is_an_error_and_only_a_good_state_is_saved_before() {
    let script = || Script::new([]);
    check(Script { skips: 5, ..script() }.alone(), Err("failed"), "fail-Diverged");
    check(Script { is_bad: true, ..script() }.alone(), Err("failed"), "save-last fail-BadData");
    check(Script { completed: 3, has_trained: false, ..script() }.alone(), Err("failed"), "fail-NothingTrained");
    check(Script { completed: 3, save: Some(Halt::Fatal("full")), ..script() }.alone(), Err("full"), "save-last");
    check(script().with([Some(Halt::Fatal("no memory"))]).alone(), Err("no memory"), "");
}

#[test]
fn a_member_forms_a_group_comes_level_trains_and_ends_when_it_is_told() {
    let looks = [form(FIRST), recover(Role::Follow), train(FIRST), Look::Nothing, Look::Nothing, Look::Nothing, Look::Nothing];
    let log = "form-1 formed-1 level-0 begin-0 step-1 busy committed-1-2 step-2 committed-2-2 step-3 committed-3-2 save-last finished";
    check(Script::new(looks.into_iter().chain([exit(EndReason::Complete)])).member(), Ok("complete kept"), log);
}

#[test]
fn between_two_steps_it_does_what_was_agreed() {
    let looks = [form(FIRST), train(FIRST), Look::Nothing, save(), Look::Nothing, leave(), exit(EndReason::Drained)];
    let log = format!("{BEGUN} step-1 busy committed-1-2 save-asked step-2 committed-2-2 leave drop-agreed closed-false");
    check(Script::new(looks).member(), Ok("drained kept"), &log);
}

#[test]
fn after_an_abort_or_a_failure_it_makes_no_step_until_it_trains_in_another_group() {
    let second = FIRST.next();
    // Of the old group nothing counts any more; that it is dropped is said even where there is none.
    let stale = [recover(Role::Follow), train(FIRST), Look::Nothing, abort()];
    let again = [form(second), train(second), Look::Nothing, exit(EndReason::Stopped)];
    let then = "drop-aborted closed-false form-2 formed-2 begin-0 step-1 busy committed-1-2";
    let looks = [form(FIRST), train(FIRST), abort()].into_iter().chain(stale.clone()).chain(again.clone());
    check(Script::new(looks).member(), Ok("stopped kept"), &format!("{BEGUN} drop-aborted closed-false {then}"));
    let looks = [form(FIRST), train(FIRST), Look::Nothing].into_iter().chain(stale).chain(again);
    check(Script::new(looks).with([None, Some(cut())]).member(), Ok("stopped kept"), &format!("{BEGUN} drop-failed closed-true {then}"));
}

#[test]
fn a_group_that_is_not_built_or_not_level_is_dropped_and_said_to_have_failed() {
    let end = exit(EndReason::Stopped);
    check(Script::new([form(FIRST), end.clone()]).with([Some(cut())]).member(), Ok("stopped kept"), "form-1 drop-failed closed-true");
    let looks = [form(FIRST), recover(Role::Follow), end.clone()];
    check(Script::new(looks).with([None, Some(cut())]).member(), Ok("stopped kept"), "form-1 formed-1 drop-failed closed-true");
    let looks = [form(FIRST), recover(Role::Restore), end];
    check(Script::new(looks).member(), Ok("stopped kept"), "form-1 formed-1 overtaken-9");
}

#[test]
fn a_last_checkpoint_that_others_did_not_write_is_tried_again_in_the_next_group() {
    let looks = [form(FIRST), train(FIRST), Look::Nothing, exit(EndReason::Stopped)];
    let script = Script { completed: 3, save: Some(cut()), ..Script::new(looks) };
    check(script.member(), Ok("stopped kept"), &format!("{BEGUN} save-last drop-failed closed-true"));
}

#[test]
fn who_is_asked_to_leave_says_so_once_and_goes_on_until_it_is_agreed() {
    let looks = [form(FIRST), train(FIRST), Look::Leave, Look::Nothing, leave(), exit(EndReason::Drained)];
    let log = format!("{BEGUN} step-1 busy committed-1-2 drain step-2 committed-2-2 leave drop-agreed closed-false");
    check(Script::new(looks).member(), Ok("drained kept"), &log);
}

#[test]
fn who_is_asked_to_leave_and_holds_nothing_leaves_without_the_coordinators_word() {
    let script = || Script { holds_state: false, ..Script::new([Look::Leave, Look::Nothing]) };
    check(script().member(), Ok("drained kept"), "drain");
    check(
        Script { looks: [Look::Leave, Look::Nothing, exit(EndReason::Drained)].into(), ..Script::new([]) }.member(),
        Ok("drained kept"),
        "drain",
    );
}

#[test]
fn whose_state_differs_is_said_before_the_group_is_dropped() {
    let looks = [form(FIRST), train(FIRST), Look::Nothing, exit(EndReason::Stopped)];
    let differs = Halt::Differs { ranks: vec![1], is_own: true, reason: "another checksum".to_owned() };
    let log = format!("{BEGUN} differs-[1]-true drop-failed closed-true");
    check(Script::new(looks).with([None, Some(differs)]).member(), Ok("stopped kept"), &log);
}

#[test]
fn a_step_whose_data_do_not_come_before_the_process_leaves_is_left_to_the_others() {
    let no_data = || [None, Some(Halt::NoData)];
    let looks = [form(FIRST), train(FIRST), Look::Leave];
    // The coordinator hears of the wish before it hears of the group.
    let missed = format!("{BEGUN} drain drop-failed closed-true");
    let then_ends = looks.clone().into_iter().chain([exit(EndReason::Drained)]);
    check(Script::new(then_ends).with(no_data()).member(), Ok("drained kept"), &missed);
    // Alone, or put into a group again, it alone has the state, and saves it.
    check(Script { is_alone: true, ..Script::new(looks.clone()) }.with(no_data()).member(), Ok("drained"), &missed);
    let second = FIRST.next();
    let again = looks.into_iter().chain([form(second), train(second), Look::Nothing]);
    let log = format!("{missed} form-2 formed-2 begin-0 drop-failed closed-true");
    check(Script::new(again).with(no_data().into_iter().chain(no_data())).member(), Ok("drained"), &log);
}
