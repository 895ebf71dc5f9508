//! How far a verb has come: a bar on a terminal; elsewhere, as in the log of a long run, a line now and then.

use super::Global;
use anyhow::Result;
use indicatif::{FormattedDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    cell::Cell,
    fmt::Display,
    io::IsTerminal,
    time::{Duration, Instant},
};

/// The least time between two lines of a log.
const PAUSE: Duration = Duration::from_secs(30);

/// Steps, problems or what else is counted.
pub(crate) struct Progress {
    what: &'static str,
    bar: ProgressBar,
    quiet: bool,
    /// When the last line was written, if ever; none on a terminal.
    log: Option<Cell<Option<Instant>>>,
}

impl Progress {
    /// Begins at one of so many.
    pub(crate) fn new(global: &Global, what: &'static str, at: u64, of: u64) -> Result<Self> {
        let terminal = std::io::stderr().is_terminal();
        let hidden = global.quiet || !terminal;
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let template = format!("{{bar:24}} {what} {{pos}}/{{len}}  {{msg}}  {{elapsed}}, {{eta}} left");
        let style = ProgressStyle::with_template(&template)?;
        let bar = ProgressBar::with_draw_target(Some(of), target).with_style(style).with_position(at);
        bar.reset_eta();
        let log = (!global.quiet && !terminal).then(Cell::default);
        Ok(Progress { what, bar, quiet: global.quiet, log })
    }

    /// Comes to a place, of which there is this to say.
    pub(crate) fn reach(&self, at: u64, message: String) {
        self.bar.set_message(message);
        self.bar.set_position(at);
        let Some(last) = &self.log else { return };
        if last.get().is_none_or(|last| last.elapsed() >= PAUSE) {
            last.set(Some(Instant::now()));
            let (of, message) = (self.bar.length().unwrap_or(at), self.bar.message());
            let [taken, left] = [self.bar.elapsed(), self.bar.eta()].map(FormattedDuration);
            eprintln!("{} {at}/{of}  {message}  {taken}, {left} left", self.what);
        }
    }

    /// A remark that stays.
    pub(crate) fn say(&self, remark: impl Display) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("{remark}"));
        }
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
