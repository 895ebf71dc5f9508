//! What memory large tensors take. Alone in its program, so that nobody else's memory is counted.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use pellucid::tensor::{Dtype, Tensor};

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

/// A cache of a gigabyte costs nothing before it is used, is zero then, and costs what was written to.
#[test]
fn a_large_tensor_takes_memory_as_it_is_written() {
    const ROWS: usize = 1 << 14;
    let before = resident();
    let mut cache = Tensor::zeros(Dtype::BF16, &[ROWS, 1 << 15]).unwrap();
    assert_eq!(cache.bytes().as_ptr().align_offset(64), 0);
    let untouched = resident() - before;
    assert!(untouched < 64 << 20, "{untouched} bytes");

    let (quarter, row) = (ROWS / 4, cache.row_len() * cache.dtype().size());
    assert!(cache.bytes()[(quarter - 1) * row..quarter * row].iter().all(|&byte| byte == 0));
    cache.bytes_mut().unwrap()[..quarter * row].fill(1);
    let written = resident() - before;
    assert!((256 << 20..320 << 20).contains(&written), "{written} bytes");

    let copy = cache.rows_of(quarter - 1..quarter + 1).unwrap().clone();
    assert_eq!((copy.bytes()[0], copy.bytes()[row]), (1, 0));
}
