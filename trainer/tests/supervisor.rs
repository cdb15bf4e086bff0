//! What a supervisor makes of its processes' ends. The processes are shells.

use std::{
    convert::Infallible,
    fs,
    io::Read,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use lcl_trainer::processes::{
    stop::StopRequest,
    supervisor::{Crew, Outcome, Role, Rules, supervise},
};
use lcl_trainer_config::ExitCode;

/// A supervisor waits for all children of its process, and so does every test.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

struct Shells {
    scripts: Vec<String>,
    stop: StopRequest,
    /// A stop is asked for when this many were started.
    stops_after: usize,
    started: usize,
}

impl Crew for Shells {
    type Error = Infallible;

    fn command(&mut self, index: usize) -> Result<Command, Infallible> {
        let mut command = Command::new("sh");
        command.args(["-c", &self.scripts[index]]);
        if self.scripts[index].starts_with("trap") {
            command.stdout(Stdio::piped());
        }
        Ok(command)
    }

    fn started(&mut self, _: usize, child: &mut Child) -> Result<(), Infallible> {
        self.started += 1;
        if let Some(stdout) = &mut child.stdout {
            // Its trap is set.
            stdout.read_exact(&mut [0]).unwrap();
        }
        if self.started == self.stops_after {
            self.stop.ask();
        }
        Ok(())
    }

    fn last_words(&mut self, index: usize) -> Option<String> {
        Some(format!("the words of {index}"))
    }
}

struct Case<'a> {
    /// Those that work.
    scripts: &'a [&'a str],
    helper: Option<&'a str>,
    returns: bool,
    stops_after: usize,
    patience: Option<Duration>,
    /// Deaths further apart are forgotten.
    window: Duration,
}

const CASE: Case<'static> =
    Case { scripts: &[], helper: None, returns: false, stops_after: usize::MAX, patience: None, window: Duration::from_mins(10) };

fn run(case: &Case<'_>) -> (Outcome, usize) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let stop = StopRequest::default();
    let scripts = case.scripts.iter().chain(&case.helper).map(|script| (*script).to_owned()).collect();
    let role = |index: usize| Role { name: format!("p{index}"), works: index < case.scripts.len(), returns: case.returns };
    let processes = (0..case.scripts.len() + usize::from(case.helper.is_some())).map(role).collect();
    let mut crew = Shells { scripts, stop: stop.clone(), stops_after: case.stops_after, started: 0 };
    let rules =
        Rules { patience: case.patience, window: case.window, first_pause: Duration::from_millis(1), most_deaths: 4, ..Rules::new(stop) };
    let outcome = supervise(&mut crew, processes, rules).unwrap();
    (outcome, crew.started)
}

fn check(case: &Case<'_>, code: ExitCode, words: &str) {
    let (outcome, _) = run(case);
    assert_eq!(outcome.code, code, "{:?}: {}", case.scripts, outcome.cause);
    assert!(outcome.cause.contains(words), "{:?}: {}", case.scripts, outcome.cause);
}

#[test]
fn the_codes_of_the_processes_decide_the_code_of_the_whole() {
    check(&Case { scripts: &["exit 0", "exit 0"], ..CASE }, ExitCode::Success, "complete");
    check(&Case { scripts: &["exit 80", "exit 80"], ..CASE }, ExitCode::Preempted, "by the coordinator");
    check(&Case { scripts: &["exit 80", "exit 0"], ..CASE }, ExitCode::Success, "complete");
    // What would fail again ends the others at once.
    check(
        &Case { scripts: &["exec sleep 1000", "exit 65"], ..CASE },
        ExitCode::Permanent,
        "p1 ended: permanent failure (exit code 65): the words of 1",
    );
    check(&Case { scripts: &["exit 2"], ..CASE }, ExitCode::Permanent, "usage");
    // So does one that another has taken the place of; but the whole may be started again.
    let case = Case { scripts: &["exec sleep 1000", "exit 81"], ..CASE };
    check(&case, ExitCode::Retryable, "p1 ended: superseded (exit code 81): the words of 1");
    let case = Case { scripts: &["exec sleep 1000", "exit 82"], ..CASE };
    check(&case, ExitCode::Unfit, "p1 ended: the machine is unfit (exit code 82): the words of 1");
    assert_eq!(run(&case).1, 2, "it was started again by this one");
}

#[test]
fn who_dies_is_started_again_until_it_has_died_too_often() {
    for (script, cause) in
        [("exit 75", "retryable failure"), ("exit 1", "exit code 1"), ("kill -9 $$", "killed by signal 9; it died 4 times")]
    {
        let case = Case { scripts: &["exec sleep 1000", script], ..CASE };
        let (outcome, started) = run(&case);
        assert_eq!((outcome.code, started), (ExitCode::Retryable, 5), "{}", outcome.cause);
        assert!(outcome.cause.contains(cause), "{}", outcome.cause);
    }
    // Leaving in order is a death only for those that are to come back.
    let (outcome, started) = run(&Case { scripts: &["exit 80"], returns: true, ..CASE });
    assert_eq!((outcome.code, started), (ExitCode::Retryable, 4));
}

/// Between two such ends a member may train for hours: once a volume that took no checkpoint had a pod begin again and again.
#[test]
fn who_cannot_save_the_end_of_its_work_is_not_started_again_for_ever() {
    // Ends so far apart that none is counted with another; the limit of 100 is for the case that they are not counted at all.
    let folder = tempfile::tempdir().unwrap();
    let count = folder.path().join("count").display().to_string();
    let script = format!("echo >> {count}; [ $(wc -l < {count}) -lt 100 ] || exit 0; exit 74");
    let (outcome, started) = run(&Case { scripts: &[&script], window: Duration::ZERO, ..CASE });
    assert_eq!((outcome.code, started), (ExitCode::Unsaved, 3), "{}", outcome.cause);
    assert!(
        outcome.cause.contains("the last checkpoint is not written (exit code 74): the words of 0; so it ended 3 times"),
        "{}",
        outcome.cause
    );
}

#[test]
fn a_stop_is_passed_on_and_who_does_not_leave_in_time_is_killed() {
    let leaves = "trap 'exit 80' TERM; echo; while :; do sleep 0.01; done";
    check(&Case { scripts: &[leaves, leaves], stops_after: 2, ..CASE }, ExitCode::Preempted, "by a signal");
    // Not ready yet: it is as gone as it was asked to be.
    check(&Case { scripts: &["exec sleep 1000"], stops_after: 1, ..CASE }, ExitCode::Preempted, "by a signal");
    let stays = "trap '' TERM; echo; while :; do sleep 0.01; done";
    let patience = Some(Duration::from_millis(50));
    check(&Case { scripts: &[leaves, stays], stops_after: 2, patience, ..CASE }, ExitCode::Retryable, "p1 was killed by signal 9");
}

#[test]
fn a_helper_lives_as_long_as_it_is_needed_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("helpers").display().to_string();
    // The first helper dies, the second is there when the work ends; it has a child that outlives neither. A shell gives what runs beside it
    // no input of its own.
    let helper = format!("echo $$ >> {path}; [ $(wc -l < {path}) -gt 1 ] || exit 1; exec 3<&0; cat <&3 > /dev/null & wait");
    let works = format!("until [ -e {path} ] && [ $(wc -l < {path}) -gt 1 ]; do sleep 0.01; done");
    check(&Case { scripts: &[&works], helper: Some(&helper), ..CASE }, ExitCode::Success, "complete");
    let helpers = fs::read_to_string(&path).unwrap();
    assert_eq!(helpers.lines().count(), 2);
    assert!(helpers.lines().all(|id| !std::path::Path::new(&format!("/proc/{id}")).exists()), "{helpers}");
}

/// The second of two is not needed once both run; when it has left it is needed again, and then a third, which ends the work.
struct Changing {
    script: String,
    last: String,
    started: Vec<usize>,
    ended: Vec<usize>,
}

impl Crew for Changing {
    type Error = Infallible;

    fn command(&mut self, index: usize) -> Result<Command, Infallible> {
        let mut command = Command::new("sh");
        command.args(["-c", if index < 2 { &self.script } else { &self.last }]).stdout(Stdio::piped());
        Ok(command)
    }

    fn started(&mut self, index: usize, child: &mut Child) -> Result<(), Infallible> {
        // Its trap is set.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        self.started.push(index);
        Ok(())
    }

    fn last_words(&mut self, index: usize) -> Option<String> {
        self.ended.push(index);
        None
    }

    fn needs(&mut self, index: usize) -> bool {
        index != 1 || self.started.len() != 2 || self.ended.contains(&1)
    }

    fn further(&mut self, count: usize) -> Option<Role> {
        (count == 2 && self.started.len() == 3).then(|| Role { name: "p2".to_owned(), works: true, returns: true })
    }
}

#[test]
fn who_is_not_needed_any_more_is_asked_to_leave_and_who_is_needed_is_started_and_the_others_are_not_touched() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let done = folder.path().join("done").display().to_string();
    let mut crew = Changing {
        script: format!("trap 'exit 80' TERM; echo; until [ -e {done} ]; do sleep 0.01; done"),
        last: format!("echo; touch {done}"),
        started: Vec::new(),
        ended: Vec::new(),
    };
    let role = |index: usize| Role { name: format!("p{index}"), works: true, returns: true };
    // A single death would end it: leaving as asked is none.
    let rules = Rules { most_deaths: 1, ..Rules::new(StopRequest::default()) };
    let outcome = supervise(&mut crew, vec![role(0), role(1)], rules).unwrap();
    assert_eq!(outcome.code, ExitCode::Success, "{}", outcome.cause);
    assert_eq!(crew.started, [0, 1, 1, 2]);
    assert_eq!(crew.ended[0], 1);
}

/// The first of two is not needed any more; once it has heard so, a stop is asked for.
struct Leaving {
    scripts: [String; 2],
    asked: PathBuf,
    stop: StopRequest,
    started: usize,
}

impl Crew for Leaving {
    type Error = Infallible;

    fn command(&mut self, index: usize) -> Result<Command, Infallible> {
        let mut command = Command::new("sh");
        command.args(["-c", &self.scripts[index]]).stdout(Stdio::piped());
        Ok(command)
    }

    fn started(&mut self, _: usize, child: &mut Child) -> Result<(), Infallible> {
        // Its trap is set.
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        self.started += 1;
        Ok(())
    }

    fn last_words(&mut self, _: usize) -> Option<String> {
        None
    }

    fn needs(&mut self, index: usize) -> bool {
        if self.asked.exists() {
            self.stop.ask();
        }
        index == 1 || self.started < 2
    }
}

#[test]
fn who_is_leaving_when_a_stop_is_asked_for_is_not_asked_again() {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let (asked, left) = (folder.path().join("asked"), folder.path().join("left"));
    // The second signal comes, if at all, before that to the other one, which lets this one end.
    let first = format!(
        "trap 'trap \"exit 143\" TERM; touch {}' TERM; echo; until [ -e {} ]; do sleep 0.01; done; exit 80",
        asked.display(),
        left.display()
    );
    let second = format!("trap 'touch {}; exit 80' TERM; echo; while :; do sleep 0.01; done", left.display());
    let stop = StopRequest::default();
    let mut crew = Leaving { scripts: [first, second], asked, stop: stop.clone(), started: 0 };
    let role = |index: usize| Role { name: format!("p{index}"), works: true, returns: true };
    let outcome = supervise(&mut crew, vec![role(0), role(1)], Rules::new(stop)).unwrap();
    assert_eq!(outcome.code, ExitCode::Preempted, "{}", outcome.cause);
}
