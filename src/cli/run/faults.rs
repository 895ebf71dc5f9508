//! Rows of data that are left out: said in short, and kept in full beside the run.

use super::super::Global;
use anyhow::{Context, Result};
use pellucid::format::save::replace_file;
use pellucid::task::data::Fault;
use serde_json::{Value, json};
use std::{fs, path::Path};

const FILE: &str = "faults.jsonl";

/// Says which rows of the data under a key are left out: some of them, and that all are in the folder if they will be.
pub(crate) fn say(key: &str, faults: &[Fault], out: Option<&Path>, global: &Global) {
    const SHOWN: usize = 5;
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
