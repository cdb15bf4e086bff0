//! This machine's processors, shared out among the processes that train on it.

/// Threads of each of `members` processes; `None`: all are for one, which finds them itself. Members of equal share end a step together, and
/// more threads than processors would only wait for each other.
pub(crate) fn share(processors: usize, members: u32) -> Option<usize> {
    let members = usize::try_from(members).unwrap_or(usize::MAX);
    (members > 1).then(|| (processors / members).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_shared_out_and_everybody_has_one() {
        for (processors, members, expected) in [(8, 1, None), (8, 2, Some(4)), (8, 3, Some(2)), (2, 4, Some(1)), (8, u32::MAX, Some(1))] {
            assert_eq!(share(processors, members), expected, "{processors} processors, {members} members");
        }
    }
}
