//! Named places in a member, or in a process that trains alone, at which a test makes it die, stop or wait. A test aid: nobody else sets its
//! environment variables, and without them a place costs one load. A process that trains alone is the member `alone`, whose rank, members and
//! steps stay 0.
//!
//! Comes in: `LCL_FAIL_POINTS`, faults separated by `;`, each `PLACE[@KEY=VALUE,…]:ACTION`, as
//! `bucket@step=12,member=job-w-1/0,part=0:kill; form@members=2,after=0:stop`, and `LCL_FAIL_POINT_FOLDER`, an empty folder that all processes
//! of the run see. Goes out: what the action says, once per fault in the whole run, by whichever process comes there first.
//! Before it acts it writes `FOLDER/N` for fault N (from 0), one line of JSON ([`Hit`]): the test knows what was hit, and nobody else hits it.
//!
//! | key | the fault is for |
//! |---|---|
//! | `member`, `rank` | this member, this rank |
//! | `members` | groups of at least so many |
//! | `step`, `from` | so many completed steps, at least so many |
//! | `part` | the bucket, tensor or shard of this number |
//! | `time` | the time that everything else agrees in this process for the so manieth time |
//! | `after` | the time when fault N was hit |
//!
//! `LCL_COPY_BESIDE` has checkpoints copied on a processor as on a GPU.
//!
//! Actions: `kill` (SIGKILL to itself), `stop` (SIGSTOP to itself), `hold` (waits until `FOLDER/N.go` is there), `flip` (a bit of the weights,
//! before the next step's exchange).

use std::{
    env,
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    process,
    str::FromStr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};

/// The faults of a run.
pub const FAULTS: &str = "LCL_FAIL_POINTS";
/// Where hits are written.
pub const FOLDER: &str = "LCL_FAIL_POINT_FOLDER";
/// With it set to anything, copies for checkpoints are made beside the step on a processor as well, as they are on a GPU.
pub const COPY_BESIDE: &str = "LCL_COPY_BESIDE";
/// Between two looks of one that is held.
const POLL: Duration = Duration::from_millis(5);

/// A place in a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Before a group is built.
    Form,
    /// Before a tensor of the state is sent: its number.
    Send,
    /// Before a tensor of the state is received: its number.
    Receive,
    /// Before the step's batch is taken.
    Data,
    /// Before the first forward pass.
    Forward,
    /// Before gradients travel: the number of the bucket. In exact mode 0 and 1, before partial sums and before finished parts.
    Bucket,
    /// Every gradient is summed.
    Reduced,
    /// Before the update.
    BeforeUpdate,
    /// After the update; the step is not counted yet.
    AfterUpdate,
    /// Before the state is copied for a checkpoint, on the thread that copies it.
    Copy,
    /// The member's shards of a checkpoint are in the store, and nobody knows yet.
    Shard,
    /// Before a checkpoint's manifest is created.
    Manifest,
    /// Before a group is left in order.
    Leave,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Form,
        Self::Send,
        Self::Receive,
        Self::Data,
        Self::Forward,
        Self::Bucket,
        Self::Reduced,
        Self::BeforeUpdate,
        Self::AfterUpdate,
        Self::Copy,
        Self::Shard,
        Self::Manifest,
        Self::Leave,
    ];

    /// Its name in the environment variable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Data => "data",
            Self::Forward => "forward",
            Self::Bucket => "bucket",
            Self::Reduced => "reduced",
            Self::BeforeUpdate => "before-update",
            Self::AfterUpdate => "after-update",
            Self::Copy => "copy",
            Self::Shard => "shard",
            Self::Manifest => "manifest",
            Self::Leave => "leave",
        }
    }
}

/// What is done at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// Wait for a file.
    Hold,
    /// Have a bit of the weights flipped: see [`take_flip`].
    Flip,
}

impl Action {
    /// Its name in the environment variable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Hold => "hold",
            Self::Flip => "flip",
        }
    }
}

/// A fault: where, when, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    place: Place,
    action: Action,
    member: Option<String>,
    rank: Option<u32>,
    members: Option<u32>,
    step: Option<u64>,
    from: Option<u64>,
    part: Option<u64>,
    time: Option<u64>,
    after: Option<usize>,
}

/// What was hit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// Where.
    pub place: Place,
    /// What was done.
    pub action: Action,
    /// By which member.
    pub member: String,
    /// Its process.
    pub process: u32,
    /// Its rank.
    pub rank: u32,
    /// Members of its group.
    pub world: u32,
    /// Completed steps.
    pub step: u64,
    /// Number of the bucket or tensor.
    pub part: u64,
    /// Unix time in seconds.
    pub time: f64,
}

/// The environment variables cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum FailPointError {
    /// A fault is none.
    #[error("{FAULTS}: `{fault}` is no fault: {reason}")]
    Fault {
        /// As it was given.
        fault: String,
        /// What is wrong.
        reason: String,
    },
    /// There is nowhere to write hits.
    #[error("{FAULTS} is set, but {FOLDER} is not: it names a folder for what was hit")]
    NoFolder,
}

/// Where a member is.
struct Armed {
    faults: Vec<Fault>,
    /// How often this process has come to each of them.
    times: Vec<AtomicU64>,
    folder: PathBuf,
    member: String,
    rank: AtomicU32,
    world: AtomicU32,
    step: AtomicU64,
}

static ARMED: OnceLock<Armed> = OnceLock::new();
static FLIP: AtomicBool = AtomicBool::new(false);

/// Reads the environment; without the variable nothing happens, now or later. To be called before training.
pub fn arm(member: &str) -> Result<(), FailPointError> {
    let Ok(text) = env::var(FAULTS) else { return Ok(()) };
    let folder = env::var_os(FOLDER).map(PathBuf::from).ok_or(FailPointError::NoFolder)?;
    let faults: Vec<Fault> = text.split(';').map(str::trim).filter(|fault| !fault.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    let times = faults.iter().map(|_| AtomicU64::new(0)).collect();
    let (rank, world, step) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU64::new(0));
    let armed = Armed { faults, times, folder, member: member.to_owned(), rank, world, step };
    if ARMED.set(armed).is_ok() {
        tracing::warn!(faults = text, "faults are armed: this is a test");
        lcl_torch::probe::observe(in_step);
    }
    Ok(())
}

/// Says where this member is from now on: its rank, the members of its group, completed steps.
pub fn stand(rank: u32, world: u32, step: u64) {
    if let Some(armed) = ARMED.get() {
        armed.rank.store(rank, Ordering::Relaxed);
        armed.world.store(world, Ordering::Relaxed);
        armed.step.store(step, Ordering::Relaxed);
    }
}

/// This member comes to a place. Returns, if at all, when it may go on.
pub fn reach(place: Place) {
    reach_part(place, 0);
}

/// As [`reach`], for one part of several.
pub fn reach_part(place: Place, part: usize) {
    if let Some(armed) = ARMED.get() {
        armed.reach(place, part as u64);
    }
}

/// Whether a bit of the weights is to be flipped now; once for each fault that says so.
pub fn take_flip() -> bool {
    FLIP.swap(false, Ordering::Relaxed)
}

fn in_step(phase: lcl_torch::probe::Phase) {
    use lcl_torch::probe::Phase;
    match phase {
        Phase::Forward => reach(Place::Forward),
        Phase::Bucket(index) => reach_part(Place::Bucket, index),
        Phase::Reduced => reach(Place::Reduced),
        Phase::BeforeUpdate => reach(Place::BeforeUpdate),
        Phase::AfterUpdate => reach(Place::AfterUpdate),
        Phase::Copy => reach(Place::Copy),
        // The place before: the update waits for the copy.
        Phase::CopyAwaited => {}
    }
}

impl Armed {
    fn reach(&self, place: Place, part: u64) {
        let (rank, world) = (self.rank.load(Ordering::Relaxed), self.world.load(Ordering::Relaxed));
        let step = self.step.load(Ordering::Relaxed);
        for (index, fault) in self.faults.iter().enumerate() {
            let is_due = fault.after.is_none_or(|earlier| self.folder.join(earlier.to_string()).exists());
            if fault.matches(place, &self.member, [rank, world], step, part) && is_due && self.is_the_time(index, fault) {
                let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
                let (action, member, process) = (fault.action, self.member.clone(), process::id());
                self.hit(index, &Hit { place, action, member, process, rank, world, step, part, time });
            }
        }
    }

    /// Counts, and compares with the time that is meant.
    fn is_the_time(&self, index: usize, fault: &Fault) -> bool {
        let times = self.times.get(index).map_or(0, |times| times.fetch_add(1, Ordering::Relaxed) + 1);
        fault.time.is_none_or(|wanted| wanted == times)
    }

    fn hit(&self, index: usize, hit: &Hit) {
        let path = self.folder.join(index.to_string());
        // Whoever creates the file is the one that is hit.
        let Ok(mut file) = OpenOptions::new().write(true).create_new(true).open(&path) else { return };
        if let Err(error) = serde_json::to_writer(&mut file, hit).map_err(std::io::Error::from).and_then(|()| file.write_all(b"\n")) {
            tracing::error!(%error, file = %path.display(), "the hit of a fault is not recorded");
        }
        drop(file);
        match hit.action {
            // Neither can fail for the own process.
            Action::Kill => drop(kill_process(getpid(), Signal::KILL)),
            Action::Stop => drop(kill_process(getpid(), Signal::STOP)),
            Action::Flip => FLIP.store(true, Ordering::Relaxed),
            Action::Hold => {
                let go = path.with_extension("go");
                while !go.exists() {
                    thread::sleep(POLL);
                }
            }
        }
    }
}

impl Fault {
    fn matches(&self, place: Place, member: &str, [rank, world]: [u32; 2], step: u64, part: u64) -> bool {
        self.place == place
            && self.member.as_ref().is_none_or(|wanted| wanted == member)
            && self.rank.is_none_or(|wanted| wanted == rank)
            && self.members.is_none_or(|fewest| fewest <= world)
            && self.step.is_none_or(|wanted| wanted == step)
            && self.from.is_none_or(|first| first <= step)
            && self.part.is_none_or(|wanted| wanted == part)
    }
}

impl FromStr for Fault {
    type Err = FailPointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |reason: String| FailPointError::Fault { fault: text.to_owned(), reason };
        let (place, action) = text.rsplit_once(':').ok_or_else(|| wrong("it has no `:ACTION`".to_owned()))?;
        let (place, keys) = place.split_once('@').unwrap_or((place, ""));
        let place = Place::ALL.into_iter().find(|known| known.name() == place).ok_or_else(|| wrong(format!("no place `{place}`")))?;
        let actions = [Action::Kill, Action::Stop, Action::Hold, Action::Flip];
        let action = actions.into_iter().find(|known| known.name() == action).ok_or_else(|| wrong(format!("no action `{action}`")))?;
        let mut fault =
            Self { place, action, member: None, rank: None, members: None, step: None, from: None, part: None, time: None, after: None };
        for pair in keys.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong(format!("`{pair}` is no `KEY=VALUE`")))?;
            fault.set(key, value).map_err(wrong)?;
        }
        Ok(fault)
    }
}

impl Fault {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        fn number<T: FromStr>(value: &str) -> Result<Option<T>, String> {
            value.parse().map(Some).map_err(|_| format!("`{value}` is no number"))
        }
        match key {
            "member" => self.member = Some(value.to_owned()),
            "rank" => self.rank = number(value)?,
            "members" => self.members = number(value)?,
            "step" => self.step = number(value)?,
            "from" => self.from = number(value)?,
            "part" => self.part = number(value)?,
            "time" => self.time = number(value)?,
            "after" => self.after = number(value)?,
            _ => return Err(format!("no key `{key}`")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(folder: &std::path::Path, faults: &str) -> Armed {
        let faults: Vec<Fault> = faults.split(';').map(|fault| fault.parse().unwrap()).collect();
        let times = faults.iter().map(|_| AtomicU64::new(0)).collect();
        let (rank, world, step) = (AtomicU32::new(1), AtomicU32::new(3), AtomicU64::new(7));
        Armed { faults, times, folder: folder.to_owned(), member: "w-1/0".to_owned(), rank, world, step }
    }

    /// Holds that are free to go on: what is left is whether they were hit.
    fn hits(faults: &str, place: Place, part: u64) -> Vec<usize> {
        let folder = tempfile::tempdir().unwrap();
        let count = faults.split(';').count();
        for index in 0..count {
            std::fs::write(folder.path().join(format!("{index}.go")), "").unwrap();
        }
        armed(folder.path(), faults).reach(place, part);
        (0..count).filter(|index| folder.path().join(index.to_string()).exists()).collect()
    }

    #[test]
    fn a_fault_is_hit_where_all_of_its_keys_agree() {
        let all = "data:hold;data@member=w-1/0,rank=1,members=3,step=7,part=2:hold;data@member=w-0/0:hold;data@rank=0:hold;\
                   data@members=4:hold;data@step=6:hold;data@from=6:hold;data@from=8:hold;data@part=0:hold;form:hold";
        assert_eq!(hits(all, Place::Data, 2), [0, 1, 6]);
        assert_eq!(hits(all, Place::Form, 0), [9]);
    }

    #[test]
    fn a_fault_waits_for_the_one_that_comes_before_it() {
        assert_eq!(hits("data@after=1:hold;form:hold", Place::Data, 0), [0_usize; 0]);
        assert_eq!(hits("data:hold;data@after=0:hold", Place::Data, 0), [0, 1]);
    }

    #[test]
    fn a_fault_may_wait_for_the_second_time() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("0.go"), "").unwrap();
        let armed = armed(folder.path(), "shard@time=2:hold");
        armed.reach(Place::Shard, 0);
        assert!(!folder.path().join("0").exists());
        armed.reach(Place::Shard, 0);
        assert!(folder.path().join("0").exists());
    }

    #[test]
    fn a_fault_is_hit_once_by_one_process_which_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("0.go"), "").unwrap();
        armed(folder.path(), "bucket@part=1:hold").reach(Place::Bucket, 1);
        let text = std::fs::read_to_string(folder.path().join("0")).unwrap();
        armed(folder.path(), "bucket@part=1:hold").reach(Place::Bucket, 1);
        assert_eq!(std::fs::read_to_string(folder.path().join("0")).unwrap(), text);
        let hit: Hit = serde_json::from_str(&text).unwrap();
        assert_eq!((hit.place, hit.part, hit.step, hit.process), (Place::Bucket, 1, 7, process::id()));
        assert_eq!(hit.member, "w-1/0");
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, part) in [
            ("data", "no `:ACTION`"),
            ("dat:kill", "no place `dat`"),
            ("data:maim", "no action `maim`"),
            ("data@steps=1:kill", "no key `steps`"),
            ("data@step=x:kill", "`x` is no number"),
            ("data@step:kill", "`step` is no `KEY=VALUE`"),
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn every_place_is_called_in_the_environment_as_in_a_hit() {
        for place in Place::ALL {
            assert_eq!(serde_json::to_value(place).unwrap(), place.name());
            assert!(format!("{}:kill", place.name()).parse::<Fault>().is_ok());
        }
    }
}
