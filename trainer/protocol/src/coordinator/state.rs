//! What the job is doing, with what is known only while it does that; and what is remembered of groups that have ended.

use std::time::Duration;

use super::{EndReason, Generation, Loss, group::Group};

/// What the job is doing.
#[derive(Debug)]
pub(super) enum State {
    /// There is no group that another one could follow: nobody has come yet, or too few were left of the last.
    Waiting(Pause),
    /// A group is led or gathered, or has ended and is to be followed by the next.
    Group(Box<Group>),
    /// Nothing more will be trained. With the last group, if there was one.
    Ended(EndReason, Option<Generation>),
}

/// What is waited for where no group is led.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pause {
    /// Since when the fewest members have been there without a group.
    pub(super) enough_since: Option<Duration>,
    /// Since when those who are to leave have been too few to form the generation that would save what they hold.
    pub(super) helpless_since: Option<Duration>,
}

impl State {
    pub(super) fn group(&self) -> Option<&Group> {
        match self {
            Self::Group(group) => Some(group),
            Self::Waiting(_) | Self::Ended(..) => None,
        }
    }

    pub(super) fn group_mut(&mut self) -> Option<&mut Group> {
        match self {
            Self::Group(group) => Some(group),
            Self::Waiting(_) | Self::Ended(..) => None,
        }
    }

    /// The group that is led from here.
    pub(super) fn open_group(&self) -> Option<&Group> {
        self.group().filter(|group| group.is_open())
    }

    /// See [`State::open_group`].
    pub(super) fn open_group_mut(&mut self) -> Option<&mut Group> {
        self.group_mut().filter(|group| group.is_open())
    }

    pub(super) fn is_open(&self) -> bool {
        self.open_group().is_some()
    }

    /// Whether a group trains, as far as is known.
    pub(super) fn trains(&self) -> bool {
        self.group().is_some_and(Group::trains)
    }

    /// The last generation that was formed or taken over; `None` also when too few were left of it.
    pub(super) fn generation(&self) -> Option<Generation> {
        match self {
            Self::Waiting(_) => None,
            Self::Group(group) => Some(group.generation),
            Self::Ended(_, generation) => *generation,
        }
    }

    pub(super) const fn ended(&self) -> Option<EndReason> {
        match self {
            Self::Ended(reason, _) => Some(*reason),
            Self::Waiting(_) | Self::Group(_) => None,
        }
    }

    /// Nothing where a group is led, and after the end.
    pub(super) fn pause(&self) -> Pause {
        match self {
            Self::Waiting(pause) => *pause,
            Self::Group(group) => group.pause(),
            Self::Ended(..) => Pause::default(),
        }
    }

    /// `None` where a group is led, and after the end.
    pub(super) fn pause_mut(&mut self) -> Option<&mut Pause> {
        match self {
            Self::Waiting(pause) => Some(pause),
            Self::Group(group) => group.pause_mut(),
            Self::Ended(..) => None,
        }
    }
}

/// What is remembered of groups that have ended.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The last generation that was closed here.
    pub(super) given_up: Option<Generation>,
    /// Generations in a row that committed nothing.
    pub(super) fruitless: u32,
    /// When the last open generation was closed, until the next one has committed.
    pub(super) broken_at: Option<Duration>,
    /// Members that were lost since a generation was formed.
    pub(super) losses: Vec<Loss>,
}
