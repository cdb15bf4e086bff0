//! What happened to the members in a few short lines: each tells one disturbance from its beginning to the recovery.
//!
//! Comes in: [`Event`]s in order. Goes out: the last lines, for a place on the terminal that has no more room. Pure.

use std::collections::VecDeque;

use crate::processes::membership::Event;

/// Lines that are kept: what a person wants to see at a glance; everything is in the log.
const KEPT: usize = 3;

/// The last disturbances.
#[derive(Debug, Default)]
pub(super) struct Episodes {
    lines: VecDeque<String>,
    /// The last line's disturbance is not over.
    is_open: bool,
    /// Members that came and were not let in yet.
    waiting: Vec<String>,
}

impl Episodes {
    /// The lines, the oldest first.
    pub(super) fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// Takes in what happened. Whether the lines have changed.
    pub(super) fn take(&mut self, event: &Event) -> bool {
        match event {
            Event::MemberJoined { member } => {
                self.waiting.push(member.clone());
                return false;
            }
            Event::MemberLost { member, cause, .. } => {
                self.waiting.retain(|other| other != member);
                self.add(&format!("{member} lost ({})", cause.replace('_', " ")));
            }
            // The end of the job is no disturbance.
            Event::MemberLeft { reason, .. } if reason == "complete" => return false,
            Event::MemberLeft { member, .. } => {
                self.waiting.retain(|other| other != member);
                self.add(&format!("{member} left"));
            }
            Event::GroupFormed { members, desired, .. } => {
                let joined = std::mem::take(&mut self.waiting);
                if joined.is_empty() {
                    self.add(&format!("{members} of {desired} together"));
                } else {
                    self.add(&format!("{} joined: {members} of {desired}", joined.join(", ")));
                }
                self.is_open = members < desired;
            }
            Event::GroupAdopted { members, .. } => {
                self.waiting.clear();
                self.add(&format!("new coordinator, {members} members uninterrupted"));
                self.is_open = false;
            }
            Event::Recovered { seconds, .. } => self.append(&format!("; next step after {seconds:.1} s")),
            Event::WentBack { from, to } => self.add(&format!("went back from step {from} to {to}")),
            // The loss before it, or the report of a member, says it already; slowness is in the log.
            Event::GroupBroken { .. } | Event::MemberSlow { .. } => return false,
        }
        true
    }

    /// Goes on with the line of a disturbance that is not over, else begins one.
    fn add(&mut self, text: &str) {
        if self.is_open {
            return self.append(&format!("; {text}"));
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(text.to_owned());
        self.is_open = true;
    }

    fn append(&mut self, text: &str) {
        match self.lines.back_mut() {
            Some(line) => line.push_str(text),
            None => self.lines.push_back(text.trim_start_matches("; ").to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::records::GenerationRecord;

    fn joined(member: &str) -> Event {
        Event::MemberJoined { member: member.to_owned() }
    }

    fn lost(member: &str) -> Event {
        Event::MemberLost { member: member.to_owned(), cause: "stream_closed".to_owned(), reason: "reset".to_owned() }
    }

    fn formed(members: u32, desired: u32) -> Event {
        Event::GroupFormed { generation: GenerationRecord { epoch: 1, n: 1 }, members, desired, base: Some(9) }
    }

    fn recovered(seconds: f64) -> Event {
        Event::Recovered { generation: GenerationRecord { epoch: 1, n: 1 }, seconds }
    }

    #[test]
    fn a_line_tells_one_disturbance_from_the_loss_to_the_return() {
        let mut episodes = Episodes::default();
        let mut check = |events: &[Event], expected: &[&str]| {
            for event in events {
                episodes.take(event);
            }
            assert_eq!(episodes.lines().collect::<Vec<_>>(), expected);
        };
        let start = "a/0, b/0 joined: 2 of 2";
        check(&[joined("a/0"), joined("b/0"), formed(2, 2)], &[start]);
        check(&[lost("a/0"), formed(1, 2), recovered(0.42)], &[start, "a/0 lost (stream closed); 1 of 2 together; next step after 0.4 s"]);
        let whole = "a/0 lost (stream closed); 1 of 2 together; next step after 0.4 s; a/0 joined: 2 of 2; next step after 0.1 s";
        check(&[joined("a/0"), formed(2, 2), recovered(0.1)], &[start, whole]);
        // One that comes and goes before it was let in; then one that is to leave.
        let left = Event::MemberLeft { member: "b/0".to_owned(), reason: "drained".to_owned() };
        check(&[left, formed(1, 1)], &[start, whole, "b/0 left; 1 of 1 together"]);
        check(&[joined("c/0"), formed(2, 2)], &[whole, "b/0 left; 1 of 1 together", "c/0 joined: 2 of 2"]);
    }
}
