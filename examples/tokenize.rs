//! Token ids of texts: `cargo run --release --example tokenize -- tokenizer.json < lines.jsonl`.
//!
//! Each line of the input is a JSON text; each line of the output is the JSON list of its ids. This is one
//! half of `tests/golden/tokenizer_parity.py`, which compares the ids with Python's.

use std::io::{BufRead, Write};

use pellucid::prompt::tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: tokenize tokenizer.json < lines.jsonl")?;
    let tokenizer = Tokenizer::load(path)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let ids = tokenizer.encode(&text)?;
        if tokenizer.decode(&ids, false)? != stream(&tokenizer, &ids)? {
            return Err(format!("streaming and whole decoding differ on {text:?}").into());
        }
        writeln!(out, "{}", serde_json::to_string(&ids)?)?;
    }
    Ok(())
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> pellucid::Result<String> {
    let mut stream = tokenizer.stream(false);
    let mut text = String::new();
    for &id in ids {
        text += &stream.push(id)?;
    }
    Ok(text + &stream.finish()?)
}
