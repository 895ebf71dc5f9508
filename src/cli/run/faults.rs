//! Rows of data that are left out: said in short, and kept in full beside the run.

use super::super::Global;
use anyhow::{Context, Result};
use pellucid::format::save::replace_file;
use pellucid::rl::evaluation::{Evaluation, LeftOut};
use pellucid::task::data::Fault;
use serde_json::{Value, json};
use std::{fs, path::Path};

const FILE: &str = "faults.jsonl";

/// How many are said; the others are counted.
const SHOWN: usize = 5;

/// Says which rows of the data under a key are left out: some of them, and that all are in the folder if they will be.
pub(crate) fn say(key: &str, faults: &[Fault], out: Option<&Path>, global: &Global) {
    if global.quiet || faults.is_empty() {
        return;
    }
    eprintln!("{} rows of {key} are left out:", faults.len());
    faults.iter().take(SHOWN).for_each(|fault| eprintln!("  {fault}"));
    let more = faults.len().saturating_sub(SHOWN);
    match out.map(|out| out.join(FILE)) {
        Some(file) if more > 0 => eprintln!("  and {more} more; all are in {}", file.display()),
        None if more > 0 => eprintln!("  and {more} more"),
        _ => {}
    }
}

/// Which problems an evaluation leaves out: some of them, and that all are in its file; none if it leaves out none.
pub(crate) fn left_out(evaluation: &Evaluation, file: &Path) -> Option<String> {
    let left_out = &evaluation.left_out;
    let some = left_out.iter().take(SHOWN).map(|LeftOut { id, what }| format!("\n  {id}: {what}"));
    let said = format!("{} problems of data.eval are left out:", left_out.len()) + &some.collect::<String>();
    match left_out.len().saturating_sub(SHOWN) {
        _ if left_out.is_empty() => None,
        0 => Some(said),
        more => Some(format!("{said}\n  and {more} more; all are in {}", file.display())),
    }
}

/// Keeps them in a folder, in place of what was kept there under the same key.
pub(crate) fn keep(key: &str, faults: &[Fault], out: &Path) -> Result<()> {
    let path = out.join(FILE);
    if faults.is_empty() && !path.exists() {
        return Ok(());
    }
    let unreadable = || format!("cannot read {}", path.display());
    let text =
        if path.exists() { fs::read_to_string(&path).with_context(unreadable)? } else { String::new() };
    let other = |line: &&str| serde_json::from_str(line).is_ok_and(|line: Value| line["data"] != key);
    let ours = faults.iter().map(|Fault { place, id, what }| {
        json!({"data": key, "file": place.file, "line": place.row, "id": id, "what": what}).to_string()
    });
    let lines = text.lines().filter(other).map(str::to_owned).chain(ours);
    Ok(replace_file(&path, lines.map(|line| line + "\n").collect::<String>().as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pellucid::rl::evaluation::Conditions;

    #[test]
    fn of_many_problems_that_are_left_out_some_are_named() {
        let said = |count: u64| {
            let torn = |number| LeftOut { id: format!("p{number}"), what: "torn".to_owned() };
            let conditions = Conditions { step: 0, temperature: 0.0, seed: 0, of: None };
            let evaluation = Evaluation::of(conditions, Vec::new());
            let evaluation = evaluation.leaving_out((0..count).map(torn).collect(), count);
            left_out(&evaluation, Path::new("eval-0.json"))
        };
        assert_eq!(said(0), None);
        let many = said(7).expect("some are left out");
        assert!(many.contains("  p0: torn\n") && many.contains("p4") && !many.contains("p5"), "{many}");
        assert!(many.ends_with("and 2 more; all are in eval-0.json"), "{many}");
    }
}
