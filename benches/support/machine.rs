//! How fast this machine reads memory: the bound of decoding.

use super::timing::timed;
use std::collections::BTreeMap;

/// Bytes per second that `threads` threads together read from memory, the best of several passes over far more
/// than the caches hold.
pub(crate) fn read_bandwidth(threads: usize) -> f64 {
    const WORDS: usize = 1 << 27; // 1 GiB
    const PASSES: usize = 8;
    let words: Vec<u64> = (0..WORDS as u64).collect();
    let pass = || {
        std::thread::scope(|scope| {
            for part in words.chunks(WORDS.div_ceil(threads)) {
                scope.spawn(|| std::hint::black_box(sum(part)));
            }
        });
    };
    let fastest = (0..PASSES).map(|_| timed(pass).1).fold(f64::INFINITY, f64::min);
    (8 * WORDS) as f64 / fastest
}

/// Many independent sums, so that loads and not additions are waited for.
fn sum(words: &[u64]) -> u64 {
    const LANES: usize = 64;
    let mut sums = [0u64; LANES];
    for chunk in words.chunks_exact(LANES) {
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |total, &sum| total.wrapping_add(sum))
}

/// What the kernel says of this process's memory, in bytes: `VmRSS`, `VmHWM` (the peak), `RssAnon` (its own),
/// `RssFile` (pages of mapped files, which are the page cache's). Empty where there is no /proc.
pub(crate) fn memory() -> BTreeMap<String, f64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let fields = status.lines().filter_map(|line| line.split_once(':'));
    let kilobytes =
        |text: &str| text.trim().strip_suffix(" kB").and_then(|number| number.parse::<f64>().ok());
    fields.filter_map(|(name, text)| Some((name.to_owned(), kilobytes(text)? * 1024.0))).collect()
}
