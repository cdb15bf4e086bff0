//! Quantities as Kubernetes reads them: `500m`, `2`, `1.5`, `32Gi`, `1e3`.
//!
//! Comes in: the text of a manifest. Goes out: a number to compare and to count with, or nothing where Kubernetes would refuse the text.
//! The grammar is that of `k8s.io/apimachinery/pkg/api/resource`: a sign, decimal digits with at most one point, and at most one suffix,
//! binary (`Ki` to `Ei`), decimal (`n`, `u`, `m`, none, `k` to `E`) or an exponent. What it rounds is rounded the same way: up, away from
//! nothing, to whole billionths.

/// One, in the unit that is counted in.
const NANO: i128 = 1_000_000_000;
/// Decimal digits that are kept of a number. 18 of them times the greatest suffix stay within 128 bits; a quantity that needs more to be
/// told from another is beyond what any node has.
const DIGITS: usize = 18;

/// An amount of something, in billionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity(i128);

impl Quantity {
    /// The least that a processor is shared out in.
    pub(crate) const THOUSANDTH: Self = Self(NANO / 1000);
    pub(crate) const ONE: Self = Self(NANO);
    pub(crate) const MEBI: Self = Self(NANO << 20);

    /// Reads what a manifest says.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (is_negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end = unsigned.find(|char: char| !char.is_ascii_digit() && char != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at_checked(end)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let Scale { exponent, factor } = Scale::parse(suffix)?;
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        let kept = digits.get(..DIGITS).unwrap_or(digits);
        let dropped = digits.get(kept.len()..).unwrap_or_default();
        let mut mantissa: i128 = if kept.is_empty() { 0 } else { kept.parse().ok()? };
        // What is left out counts as a little more: nothing that is wanted becomes nothing.
        mantissa += i128::from(dropped.bytes().any(|digit| digit != b'0'));
        let exponent = i64::from(exponent) + dropped.len() as i64 - fraction.len() as i64 + 9;
        let value = scale_by_ten(mantissa.saturating_mul(factor), exponent);
        Some(Self(if is_negative { -value } else { value }))
    }

    pub(crate) const fn is_negative(self) -> bool {
        self.0 < 0
    }

    pub(crate) const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether it is a whole number of `unit`; of nothing only nothing is.
    pub(crate) const fn is_multiple_of(self, unit: Self) -> bool {
        if unit.0 == 0 { self.0 == 0 } else { self.0 % unit.0 == 0 }
    }

    /// Whole units in it.
    pub(crate) fn whole(self) -> u64 {
        u64::try_from(self.0 / NANO).unwrap_or(if self.0 < 0 { 0 } else { u64::MAX })
    }
}

/// `mantissa` · 10^`exponent`, rounded up; not negative.
fn scale_by_ten(mantissa: i128, exponent: i64) -> i128 {
    let power = u32::try_from(exponent.unsigned_abs()).ok().and_then(|exponent| 10_i128.checked_pow(exponent));
    match (mantissa, power) {
        (0, _) => 0,
        (_, Some(power)) if exponent >= 0 => mantissa.saturating_mul(power),
        (_, Some(power)) => mantissa / power + i128::from(mantissa % power != 0),
        (_, None) if exponent >= 0 => i128::MAX,
        (_, None) => 1,
    }
}

/// What a suffix multiplies by: `factor` · 10^`exponent`.
struct Scale {
    exponent: i32,
    factor: i128,
}

impl Scale {
    fn parse(suffix: &str) -> Option<Self> {
        let decimal = |exponent| Some(Self { exponent, factor: 1 });
        let binary = |bits: u32| Some(Self { exponent: 0, factor: 1 << bits });
        match suffix {
            "" => decimal(0),
            "n" => decimal(-9),
            "u" => decimal(-6),
            "m" => decimal(-3),
            "k" => decimal(3),
            "M" => decimal(6),
            "G" => decimal(9),
            "T" => decimal(12),
            "P" => decimal(15),
            "E" => decimal(18),
            "Ki" => binary(10),
            "Mi" => binary(20),
            "Gi" => binary(30),
            "Ti" => binary(40),
            "Pi" => binary(50),
            "Ei" => binary(60),
            _ => decimal(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_what_kubernetes_takes_it_for() {
        let nano = |text: &str| Quantity::parse(text).map(|quantity| quantity.0);
        for (text, expected) in [
            ("0", 0),
            ("2", 2 * NANO),
            ("+2", 2 * NANO),
            ("-2", -2 * NANO),
            ("007", 7 * NANO),
            (".5", NANO / 2),
            ("1.", NANO),
            ("1.5", 3 * NANO / 2),
            ("500m", NANO / 2),
            ("1u", 1000),
            ("1n", 1),
            ("0.5n", 1),
            ("1e-30", 1),
            ("0e99", 0),
            ("1k", 1000 * NANO),
            ("1e3", 1000 * NANO),
            ("1E3", 1000 * NANO),
            ("1e+3", 1000 * NANO),
            ("15e-1", 3 * NANO / 2),
            ("1E", 1_000_000_000_000_000_000 * NANO),
            ("1Ki", 1024 * NANO),
            ("1.5Gi", 1536 * (NANO << 20)),
            ("0.5Ki", 512 * NANO),
            ("8Ei", (8 * NANO) << 60),
            ("1.0000000000000000000", NANO),
            ("0.1000000000000000000000000001", NANO / 10 + 1),
            ("1e999", i128::MAX),
            ("999999999999999999999999999999Ei", i128::MAX),
        ] {
            assert_eq!(nano(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "-",
            "+",
            ".",
            "Gi",
            "4 cores",
            "32GiB",
            "32 Gi",
            " 32Gi",
            "32Gi ",
            "32gi",
            "32GI",
            "1K",
            "1ki",
            "1mi",
            "1e",
            "1e1.5",
            "1e5Gi",
            "1.2.3",
            "1,5",
            "0x10",
            "1_000",
            "--1",
            "1-",
            "NaN",
            "inf",
            "1Mi1",
            "１",
            "1e99999999999",
        ] {
            assert_eq!(nano(text), None, "{text}");
        }
    }

    #[test]
    fn amounts_are_compared_by_what_they_are_and_not_by_how_they_are_written() {
        let quantity = |text| Quantity::parse(text).unwrap();
        assert_eq!(quantity("1"), quantity("1000m"));
        assert!(quantity("1G") < quantity("1Gi"));
        assert!(quantity("2").is_multiple_of(Quantity::ONE) && !quantity("1500m").is_multiple_of(Quantity::ONE));
        assert_eq!((quantity("2500m").whole(), quantity("-1").whole(), quantity("1e30").whole()), (2, 0, u64::MAX));
    }
}
