//! Which cases a verb takes.

use super::case::{Case, Pattern};
use crate::cli::device::Device;
use anyhow::{Result, bail};

/// Flags that choose among the cases.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Selection {
    /// Only cases whose name has all these words, or all of the next (see `bench kernels --list`)
    #[arg(long, value_name = "WORDS,…", value_delimiter = ',')]
    shapes: Vec<Pattern>,

    /// The most packed rows of a case [default: 512 on a CPU, else any]
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
}

/// Packed rows that a CPU is asked for unless told otherwise.
const CPU_ROWS: usize = 512;

impl Selection {
    /// The cases that were asked for by name, however large.
    pub(crate) fn named(&self, all: Vec<Case>) -> Result<Vec<Case>> {
        let wanted =
            |case: &Case| self.shapes.is_empty() || self.shapes.iter().any(|pattern| pattern.takes(case));
        let named: Vec<Case> = all.into_iter().filter(wanted).collect();
        if named.is_empty() {
            bail!("no case has these words; `pellucid bench kernels --list` names all");
        }
        Ok(named)
    }

    /// The cases that were asked for, and how many of those named have too many rows.
    pub(crate) fn cases(&self, all: Vec<Case>, device: Device) -> Result<(Vec<Case>, usize)> {
        let named = self.named(all)?;
        let (count, most) = (named.len(), self.most(device));
        let kept: Vec<Case> = named.into_iter().filter(|case| case.rows() <= most).collect();
        if kept.is_empty() {
            bail!("all {count} cases with these words have more than {most} rows; --rows N takes them in");
        }
        let left_out = count - kept.len();
        Ok((kept, left_out))
    }

    /// What to say of cases that were left out.
    pub(crate) fn remark(&self, left_out: usize, device: Device) -> String {
        format!(
            "{left_out} cases of more than {} rows were left out; --rows N takes them in",
            self.most(device)
        )
    }

    fn most(&self, device: Device) -> usize {
        self.rows.unwrap_or(if device == Device::Cpu { CPU_ROWS } else { usize::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    #[test]
    fn cases_are_chosen_by_words_and_rows() {
        let choose = |shapes: &[&str], rows| {
            let shapes = shapes.iter().map(|words| words.parse().unwrap()).collect();
            Selection { shapes, rows }.cases(table(), Device::Cpu)
        };
        let (all, left_out) = choose(&[], None).unwrap();
        assert!(left_out > 0 && all.iter().all(|case| case.rows() <= CPU_ROWS));
        assert_eq!(choose(&[], Some(usize::MAX)).unwrap().0.len(), all.len() + left_out);
        let (some, _) = choose(&["linear T=1", "rms_norm"], None).unwrap();
        let fits = |case: &Case| case.op() == "rms_norm" || case.op() == "linear" && case.rows() == 1;
        assert!(some.len() > 5 && some.iter().all(fits));
        assert!(choose(&["linear T=4096"], None).unwrap_err().to_string().contains("--rows"));
        assert!(choose(&["lineal"], None).unwrap_err().to_string().contains("--list"));
    }
}
