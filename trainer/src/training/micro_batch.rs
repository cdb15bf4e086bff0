//! How a batch is cut when it does not fit into memory at once: the fewest parts under the cap, as equal as can be.

use std::ops::Range;

/// Ranges of rows, in order, that cover `rows`; none is longer than `cap`, and their lengths differ by at most one.
#[must_use]
pub fn split(rows: usize, cap: Option<u64>) -> Vec<Range<usize>> {
    let cap = cap.map_or(usize::MAX, |cap| usize::try_from(cap).unwrap_or(usize::MAX)).max(1);
    let parts = rows.div_ceil(cap);
    (0..parts).map(|part| part * rows / parts..(part + 1) * rows / parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: usize, cap: Option<u64>, lengths: &[usize]) {
        let parts = split(rows, cap);
        assert_eq!(parts.iter().map(Range::len).collect::<Vec<_>>(), lengths, "{rows} rows, cap {cap:?}");
        assert_eq!(parts.into_iter().flatten().collect::<Vec<_>>(), (0..rows).collect::<Vec<_>>());
    }

    #[test]
    fn the_fewest_equal_parts_under_the_cap_are_taken() {
        check(8, None, &[8]);
        check(8, Some(8), &[8]);
        check(8, Some(7), &[4, 4]);
        check(9, Some(4), &[3, 3, 3]);
        check(10, Some(4), &[3, 3, 4]);
        check(3, Some(1), &[1, 1, 1]);
        check(0, Some(4), &[]);
    }
}
