//! The spread of some numbers, in memory that does not grow with how many there are.
//!
//! Comes in: numbers. Goes out: mean, quantiles, a histogram. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

/// Numbers below this are kept as they are: lengths of sequences. Larger ones, of bytes, keep three digits.
const EXACT: u64 = 10_000;

/// How often each number was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    counts: BTreeMap<u64, u64>,
    count: u64,
    sum: u128,
}

/// What is said of some numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many there are.
    pub count: u64,
    /// Their mean; 0 when there are none, as all that follow.
    pub mean: f64,
    /// The least.
    pub least: u64,
    /// Half of them are not above it.
    pub median: u64,
    /// 95 % of them are not above it.
    pub p95: u64,
    /// 99 % of them are not above it.
    pub p99: u64,
    /// The greatest.
    pub most: u64,
}

impl Spread {
    /// Takes a number.
    pub fn push(&mut self, value: u64) {
        let kept = if value < EXACT {
            value
        } else {
            let unit = 10_u64.pow(value.ilog10() - 2);
            value / unit * unit
        };
        *self.counts.entry(kept).or_default() += 1;
        self.count += 1;
        self.sum += u128::from(value);
    }

    /// Takes all numbers of another.
    pub fn add(&mut self, other: &Self) {
        for (value, count) in &other.counts {
            *self.counts.entry(*value).or_default() += count;
        }
        self.count += other.count;
        self.sum += other.sum;
    }

    /// The number that this part of all numbers, in percent, is not above.
    fn quantile(&self, percent: u64) -> u64 {
        let wanted = (self.count * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let reached = self.counts.iter().find(|(_, count)| {
            seen += **count;
            seen >= wanted
        });
        reached.map_or(0, |(value, _)| *value)
    }

    /// What is said of them.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count,
            mean: if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 },
            least: self.counts.keys().next().copied().unwrap_or(0),
            median: self.quantile(50),
            p95: self.quantile(95),
            p99: self.quantile(99),
            most: self.counts.keys().next_back().copied().unwrap_or(0),
        }
    }

    /// How many numbers lie in each of so many classes of this width, up to the last one with any: the number above each, and the count. What is
    /// beyond all of them is in one more, without an end.
    #[must_use]
    pub fn histogram(&self, width: u64, classes: u64) -> Vec<(Option<u64>, u64)> {
        let mut counts = vec![0; classes as usize + 1];
        for (value, count) in &self.counts {
            if let Some(place) = counts.get_mut((value / width.max(1)).min(classes) as usize) {
                *place += count;
            }
        }
        let used = counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        let ends = (1..=classes).map(|class| Some(class * width)).chain([None]);
        ends.zip(counts).take(used).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_classes_are_those_of_the_numbers() {
        let (mut low, mut high) = (Spread::default(), Spread::default());
        for value in 1..=50 {
            low.push(value);
            high.push(value + 50);
        }
        low.add(&high);
        let expected = Summary { count: 100, mean: 50.5, least: 1, median: 50, p95: 95, p99: 99, most: 100 };
        assert_eq!(low.summary(), expected);
        assert_eq!(low.histogram(40, 4), [(Some(40), 39), (Some(80), 40), (Some(120), 21)]);
        assert_eq!(low.histogram(40, 2), [(Some(40), 39), (Some(80), 40), (None, 21)]);
        assert_eq!(Spread::default().summary(), Summary::default());
        assert_eq!(Spread::default().histogram(7, 3), []);
    }

    #[test]
    fn large_numbers_keep_three_digits_and_their_mean() {
        let mut spread = Spread::default();
        for value in [9_999, 123_456, u64::MAX] {
            spread.push(value);
        }
        assert_eq!((spread.summary().least, spread.summary().median), (9_999, 123_000));
        assert_eq!(spread.summary().most, 18_400_000_000_000_000_000);
        assert!((spread.summary().mean - (133_455.0 + u64::MAX as f64) / 3.0).abs() < 1e6);
    }
}
