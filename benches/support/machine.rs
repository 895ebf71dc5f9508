//! What this machine tells about a process.

use std::collections::BTreeMap;

/// What the kernel says of this process's memory, in bytes: `VmRSS`, `VmHWM` (the peak), `RssAnon` (its own),
/// `RssFile` (pages of mapped files, which are the page cache's). Empty where there is no /proc.
pub(crate) fn memory() -> BTreeMap<String, f64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let fields = status.lines().filter_map(|line| line.split_once(':'));
    let kilobytes =
        |text: &str| text.trim().strip_suffix(" kB").and_then(|number| number.parse::<f64>().ok());
    fields.filter_map(|(name, text)| Some((name.to_owned(), kilobytes(text)? * 1024.0))).collect()
}
