//! The bound on everything: steps that a comparison may take, and the reasons it may stop early.
//!
//! A model under training writes whatever pays, so no text may hang the grader or eat its memory. Instead of a
//! clock and a process to kill, each step of reading and computing is paid for from a budget: the verdict is the
//! same on every machine, and a text that asks for too much is told so by the rule `guard` or `budget`.

/// Steps per grading: some milliseconds of work, and a hundred times what an honest answer takes.
const STEPS: u32 = 400_000;

/// The deepest nesting that is read.
pub(super) const DEEPEST: usize = 32;

/// The longest answer that is read, in characters.
pub(super) const LONGEST: usize = 512;

/// Why an answer was given up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// It is no formula that we know how to read.
    Unreadable,
    /// Its braces do not match.
    Unbalanced,
    /// It is too long, too deep, or its exponents and factorials are too large.
    Guard,
    /// It takes too many steps.
    Budget,
}

/// What is left of the budget.
#[derive(Debug)]
pub(super) struct Fuel(u32);

impl Default for Fuel {
    fn default() -> Self {
        Fuel(STEPS)
    }
}

impl Fuel {
    /// Pays for some steps.
    pub(super) fn spend(&mut self, steps: u32) -> Result<(), Stop> {
        self.0 = self.0.checked_sub(steps).ok_or(Stop::Budget)?;
        Ok(())
    }
}
