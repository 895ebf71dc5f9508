//! Evaluations as people read them in a terminal.

use super::{Breakdown, Change, Comparison, Evaluation, LEAST_IN_CELL, Rate};
use std::fmt;

impl fmt::Display for Rate {
    /// `93.6 % [91.9, 95.0] of 1000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rate, low, high] = [self.rate, self.low, self.high].map(|share| 100.0 * share);
        write!(f, "{rate:.1} % [{low:.1}, {high:.1}] of {}", self.of)
    }
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (metrics, conditions) = (&self.metrics, &self.conditions);
        let captions = match conditions.temperature {
            0.0 => "greedy captions".to_owned(),
            drawn => format!("captions drawn at temperature {drawn}"),
        };
        writeln!(f, "{} problems at step {}, {captions}", metrics.items, conditions.step)?;
        for (name, rate) in metrics.rates() {
            if let Some(rate) = rate {
                writeln!(f, "  {name:<26} {rate}")?;
            }
        }
        for (name, points) in [("clarification gap", metrics.gap), ("criticality", metrics.criticality)] {
            if let Some(points) = points {
                writeln!(f, "  {name:<26} {:+.1} points", 100.0 * points)?;
            }
        }
        if let Some(tokens) = metrics.caption_tokens {
            writeln!(
                f,
                "  {:<26} {:.1} on average, 95 % within {:.0}",
                "caption tokens", tokens.mean, tokens.p95
            )?;
        }
        for (name, count) in &metrics.fallbacks {
            writeln!(f, "  {:<26} {count} times", format!("decision guessed: {name}"))?;
        }
        for (count, why) in metrics.left_out() {
            writeln!(f, "  {count} problems are left out: {why}")?;
        }
        self.breakdowns.iter().try_for_each(|breakdown| breakdown.fmt(f))
    }
}

impl fmt::Display for Breakdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["count", "single pass", "without asking", "clarified", "asked"];
        write!(f, "\n{:<24}", format!("by {}", self.by))?;
        heads.iter().try_for_each(|head| write!(f, "{head:>16}"))?;
        writeln!(f)?;
        for cell in &self.cells {
            write!(f, "{:<24}{:>16}", cell.name, cell.items)?;
            if cell.suppressed() {
                writeln!(f, "  fewer than {LEAST_IN_CELL}: not shown")?;
                continue;
            }
            for rate in [
                cell.accuracy_single,
                cell.first_pass_right,
                cell.accuracy_clarified,
                cell.clarification_rate,
            ] {
                let percent = rate.map_or("-".to_owned(), |rate| format!("{:.1} %", 100.0 * rate.rate));
                write!(f, "{percent:>16}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nchange over the {} problems in both", self.items)?;
        for (name, change) in self.changes() {
            if let Some(Change { before, after, lost, gained, p }) = change {
                let [before, after] = [before, after].map(|share| 100.0 * share);
                write!(f, "  {name:<26} {before:.1} % -> {after:.1} % ")?;
                writeln!(f, "({lost} lost, {gained} gained, McNemar p = {p:.2e})")?;
            }
        }
        match self.relative_reduction {
            Some(share) => writeln!(f, "  {:<26} {:.1} %", "requests fewer by", 100.0 * share),
            None => Ok(()),
        }
    }
}

impl super::Metrics {
    /// How many problems are left out, and why; reasons that concern none are not among them.
    pub fn left_out(&self) -> impl Iterator<Item = (u64, &'static str)> {
        let reasons = [
            (self.invalid_golds, "their golds cannot be read"),
            (self.unshown, "their pictures or words cannot be shown"),
            (self.unanswered, super::UNANSWERED),
        ];
        reasons.into_iter().filter(|(count, _)| *count > 0)
    }

    /// Every rate under what people call it.
    pub fn rates(&self) -> [(&'static str, Option<Rate>); 11] {
        [
            ("single-pass accuracy", self.accuracy_single),
            ("right without asking", self.first_pass_right),
            ("wrong without asking", self.first_pass_wrong),
            ("accuracy with asking", self.accuracy_clarified),
            ("clarification rate", self.clarification_rate),
            ("accuracy denied", self.accuracy_denied),
            ("accuracy granted", self.accuracy_granted),
            ("rescued by the reply", self.rescue_rate),
            ("harmed by the reply", self.harm_rate),
            ("captions cut off", self.captions_truncated),
            ("answers cut off", self.answers_truncated),
        ]
    }
}

impl Comparison {
    /// Every change under what people call it.
    pub fn changes(&self) -> [(&'static str, Option<Change>); 4] {
        [
            ("single-pass accuracy", self.accuracy_single),
            ("right without asking", self.first_pass_right),
            ("accuracy with asking", self.accuracy_clarified),
            ("clarification rate", self.clarification_rate),
        ]
    }
}
