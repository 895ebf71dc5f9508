//! Tokenizers that come in parts: `vocab.json`, `merges.txt` and the added tokens in `tokenizer_config.json`, as
//! some Qwen and InternVL checkpoints bring them instead of a `tokenizer.json`. The parts say nothing about
//! normalising and cutting text; that is known from the tokenizer class, and here it is Qwen2's.

use crate::error::{Error, Result};
use crate::format::read_bytes;
use serde_json::{Map, Value, json};
use std::path::Path;

/// How Qwen2's tokenizer cuts text before merging.
const CUTS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A `tokenizer.json` put together from the parts in `folder`.
pub(super) fn assembled(folder: &Path) -> Result<Vec<u8>> {
    let config = object(&folder.join("tokenizer_config.json"))?;
    let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("Qwen2Tokenizer");
    if !matches!(class, "Qwen2Tokenizer" | "Qwen2TokenizerFast") {
        let what =
            format!("{class} in parts is not supported; save the fast tokenizer to get a tokenizer.json");
        return Err(Error::file(folder, what));
    }
    let path = folder.join("merges.txt");
    let merges = String::from_utf8(read_bytes(&path)?)
        .map_err(|source| Error::file_because(&path, "is not utf-8", source))?;
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added_tokens(folder, &config)?,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CUTS}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": object(&folder.join("vocab.json"))?, "merges": merges},
    });
    Ok(tokenizer.to_string().into_bytes())
}

/// The tokens added to the vocabulary, in the order of their ids: what the configuration says, or, where it says
/// nothing, the plain table beside it.
fn added_tokens(folder: &Path, config: &Map<String, Value>) -> Result<Vec<Value>> {
    let path = folder.join("tokenizer_config.json");
    let mut tokens = Vec::new();
    if let Some(Value::Object(listed)) = config.get("added_tokens_decoder") {
        for (id, token) in listed {
            let Some((id, token)) = id.parse::<u32>().ok().zip(token.as_object()) else {
                return Err(Error::file(
                    &path,
                    format!("added_tokens_decoder: {id}: expected a token by its id"),
                ));
            };
            let mut token = token.clone();
            token.insert("id".into(), id.into());
            tokens.push((id, Value::Object(token)));
        }
    } else {
        let path = folder.join("added_tokens.json");
        for (content, id) in if path.exists() { object(&path)? } else { Map::new() } {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                return Err(Error::file(&path, format!("{content}: expected an id, got {id}")));
            };
            tokens.push((
                id,
                json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}),
            ));
        }
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens.into_iter().map(|(_, token)| token).collect())
}

fn object(path: &Path) -> Result<Map<String, Value>> {
    serde_json::from_slice(&read_bytes(path)?)
        .map_err(|source| Error::file_because(path, "expected a JSON object", source))
}
