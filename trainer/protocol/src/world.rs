//! How many members a generation may have. A pure value.

/// Bounds on the number of members. Always 1 ≤ min ≤ desired ≤ max.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    min: u32,
    desired: u32,
    max: u32,
}

/// The bounds contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("members must be 1 ≤ min ≤ desired ≤ max, but min is {min}, desired {desired}, max {max}")]
pub struct InvalidWorld {
    /// Fewest members.
    pub min: u32,
    /// Wanted members.
    pub desired: u32,
    /// Most members.
    pub max: u32,
}

impl World {
    /// Bounds in members.
    pub const fn new(min: u32, desired: u32, max: u32) -> Result<Self, InvalidWorld> {
        if min >= 1 && min <= desired && desired <= max { Ok(Self { min, desired, max }) } else { Err(InvalidWorld { min, desired, max }) }
    }

    /// With fewer members nothing is trained.
    #[must_use]
    pub const fn min(self) -> u32 {
        self.min
    }

    /// With this many a generation is formed without waiting for more.
    #[must_use]
    pub const fn desired(self) -> u32 {
        self.desired
    }

    /// No generation has more; further members wait as spares.
    #[must_use]
    pub const fn max(self) -> u32 {
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_that_contradict_each_other_are_refused() {
        for (min, desired, max) in [(0, 1, 1), (2, 1, 2), (1, 3, 2)] {
            assert_eq!(World::new(min, desired, max), Err(InvalidWorld { min, desired, max }));
        }
        assert!(World::new(1, 2, 4).is_ok());
    }
}
