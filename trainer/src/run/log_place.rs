//! Where this process stands in its training group, in every line that it logs: after a change of the group a worker's name alone does not
//! tell the rank.
//!
//! Comes in: rank and group, from the member that trains; a line of the log. Goes out: the line with both in it.

use std::sync::{PoisonError, RwLock};

use lcl_protocol::Generation;

static PLACE: RwLock<Option<(u32, Generation)>> = RwLock::new(None);

/// Rank and group from now on; `None` while there is no group.
pub(crate) fn set(place: Option<(u32, Generation)>) {
    *PLACE.write().unwrap_or_else(PoisonError::into_inner) = place;
}

/// The line as this process has to write it; `None` when there is nothing to add.
pub(crate) fn mark(line: &[u8]) -> Option<Vec<u8>> {
    let (rank, generation) = (*PLACE.read().unwrap_or_else(PoisonError::into_inner))?;
    Some(mark_with(line, rank, generation))
}

/// As fields at the end of a JSON object, in front of a line of text.
fn mark_with(line: &[u8], rank: u32, generation: Generation) -> Vec<u8> {
    match line.strip_suffix(b"}\n") {
        Some(object) if object.starts_with(b"{\"") => {
            [object, format!(",\"rank\":{rank},\"group\":\"{generation}\"}}\n").as_bytes()].concat()
        }
        _ => [format!("rank {rank} {generation} ").as_bytes(), line].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_gets_fields_and_a_line_of_text_a_beginning() {
        let check = |line: &str, expected: &str| {
            let marked = mark_with(line.as_bytes(), 3, Generation { epoch: 1, n: 20 });
            assert_eq!(String::from_utf8(marked).unwrap(), expected);
        };
        check("2026 INFO hello\n", "rank 3 g000001-000020 2026 INFO hello\n");
        check("{\"level\":\"INFO\"}\n", "{\"level\":\"INFO\",\"rank\":3,\"group\":\"g000001-000020\"}\n");
        check("{ no object }\n", "rank 3 g000001-000020 { no object }\n");
    }
}
