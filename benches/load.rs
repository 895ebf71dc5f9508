//! Loading a checkpoint: how long, and how much memory of its own the process needs beside the files' pages.
//!
//!     python benches/peers/checkpoint.py /tmp/3b --shape qwen2.5-3b --shards 3
//!     cargo bench --bench load -- /tmp/3b [--threads 4] [--json FILE]
//!
//! One process measures one load, so that peaks belong to it: `benches/peers/load.py` repeats it with the page cache
//! cold and warm, beside a plain read of the same files. A load maps the files and copies no matrix; the first
//! forward pass is what brings the pages in, so it is part of the picture.

mod support;

use pellucid::Result;
use pellucid::backend::cpu::Cpu;
use pellucid::model::{Model, Positions, Run, pages_for};
use serde_json::json;
use std::{path::Path, sync::Arc};
use support::{machine::memory, timing::timed};

fn main() -> Result<()> {
    let arguments = support::Arguments::read();
    let Some(folder) = arguments.folder("load") else { return Ok(()) };
    let threads = arguments.number("--threads", std::thread::available_parallelism().map_or(1, |n| n.get()));
    let backend = Arc::new(Cpu::new(Some(threads))?);
    let files = file_bytes(&folder);
    println!("{}: {:.2} GB of weights", folder.display(), files / 1e9);

    let before = memory();
    let (model, load) = timed(|| Model::load(&folder, backend, None));
    let model = model?;
    let loaded = memory();
    let (ran, first) = timed(|| one_token(&model));
    ran?;
    let passed = memory();
    let (ran, second) = timed(|| one_token(&model));
    ran?;
    println!("load {load:.3} s, first pass {first:.3} s, second pass {second:.3} s");
    let kinds = ["VmRSS", "RssAnon", "RssFile", "VmHWM"];
    println!("{:16}{:>12}{:>12}{:>12}{:>12}  MB", "", kinds[0], kinds[1], kinds[2], kinds[3]);
    let mut record = json!({ "files": files, "load": load, "first_pass": first, "second_pass": second, "threads": threads });
    for (when, memory) in [("before", &before), ("loaded", &loaded), ("first pass", &passed)] {
        let bytes = kinds.map(|kind| memory.get(kind).copied().unwrap_or(f64::NAN));
        println!("{when:16}{}", bytes.map(|bytes| format!("{:12.1}", bytes / 1e6)).concat());
        record[when] = json!(memory);
    }
    arguments.write_json(&record);
    Ok(())
}

/// Reads every weight once.
fn one_token(model: &Model) -> Result<()> {
    let backend = &*model.backend;
    let (mut cache, mut work) = (model.cache(pages_for(1))?, model.workspace()?);
    let run =
        Run { tokens: &[1], seat: None, start: 0, positions: &Positions::plain(1), pages: &[0], images: &[] };
    let normed = model.decoder.forward(backend, &[run], &[], &mut cache, &mut work)?;
    std::hint::black_box(backend.download(&model.decoder.logits(backend, normed)?)?);
    Ok(())
}

fn file_bytes(folder: &Path) -> f64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let weights = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "safetensors"));
    weights.filter_map(|entry| entry.metadata().ok()).map(|data| data.len() as f64).sum()
}
