//! What must hold of any bytes given to a reader of files. `tests/format.rs` draws the bytes at random, the targets
//! in `fuzz/` search for them.

use pellucid::format::config::{Family, VisionConfig};
use pellucid::format::header::{self, byte_length};
use pellucid::format::{
    AdapterConfig, GenerationConfig, ImageProcessorConfig, ModelConfig, TokenizerConfig, parse_index,
};
use std::fmt::Debug;
use std::path::Path;

/// The name under which every file is read here.
const FILE: &str = "file.json";

/// An error begins with the name of the file at fault.
fn named<T: Debug>(result: Result<T, pellucid::Error>) -> Option<T> {
    result.map_err(|error| assert!(error.to_string().starts_with(FILE), "{error}")).ok()
}

/// A header is believed exactly when the reference implementation believes it, and then says the same.
pub(crate) fn safetensors_header(file: &[u8]) {
    let ours = header::parse(file);
    if let Err(complaint) = &ours {
        // The reference overflows on offsets far beyond the file, and takes the last of twins.
        if complaint.contains("beyond the file") || complaint.contains("listed twice") {
            return;
        }
    }
    let theirs = safetensors::SafeTensors::deserialize(file);
    let (Ok(ours), Ok(theirs)) = (&ours, &theirs) else {
        assert!(ours.is_err() && theirs.is_err(), "we say {ours:?}, the reference {:?}", theirs.err());
        return;
    };
    assert_eq!(ours.len(), theirs.len());
    for entry in ours {
        let view = theirs.tensor(&entry.name).expect("the reference has what we have");
        assert_eq!((view.dtype(), view.shape()), (entry.dtype, &*entry.shape));
        assert_eq!(view.data(), &file[entry.range.clone()]);
        assert_eq!(byte_length(entry.dtype, &entry.shape), Some(entry.range.len()));
    }
}

/// A configuration that is accepted cannot surprise the model that reads it.
pub(crate) fn config_json(bytes: &[u8]) {
    let Some(config) = named(ModelConfig::parse(Path::new(FILE), bytes)) else { return };
    let decoder = &config.decoder;
    assert!(decoder.heads.is_multiple_of(decoder.kv_heads) && decoder.head_dim.is_multiple_of(2));
    assert!(decoder.layers <= 4096 && decoder.rms_eps > 0.0 && decoder.rope.theta > 0.0);
    if let Some(sections) = decoder.rope.mrope_sections {
        assert_eq!(sections.iter().sum::<usize>() * 2, decoder.head_dim);
    }
    let has_tower = matches!(config.family, Family::Qwen2Vl | Family::Qwen25Vl | Family::InternVl);
    assert_eq!(config.vision.is_some(), has_tower);
    match config.vision {
        Some(VisionConfig::Qwen2Vl(tower) | VisionConfig::Qwen25Vl { tower, .. }) => {
            assert_eq!(tower.out_hidden, decoder.hidden);
            assert!(tower.hidden.is_multiple_of(tower.heads));
        }
        Some(VisionConfig::InternVit(tower)) => {
            assert!(tower.layers_used <= tower.layers && tower.tokens_per_tile() > 0);
        }
        None => {}
    }
}

/// An adapter's configuration that is read is written so that it reads the same, and answers for any module.
pub(crate) fn adapter_config(bytes: &[u8]) {
    let Some(config) = named(AdapterConfig::parse(Path::new(FILE), bytes)) else { return };
    let again = AdapterConfig::parse(Path::new(FILE), config.to_json().as_bytes());
    assert_eq!(named(again).as_ref(), Some(&config));
    for module in ["", "lm_head", "model.layers.0.self_attn.q_proj", "1.2.3.4"] {
        config.touches(module);
        assert!(config.rank_of(module) > 0 && config.scale_of(module) > 0.0);
    }
}

/// Shards named by an index lie in its own folder.
pub(crate) fn weight_index(bytes: &[u8]) {
    let Some(shard_of) = named(parse_index(Path::new(FILE), bytes)) else { return };
    for shard in shard_of.values() {
        assert_eq!(Path::new("folder").join(shard).parent(), Some(Path::new("folder")), "{shard}");
        assert_eq!(Path::new(shard).file_name(), Some(shard.as_ref()));
    }
}

/// The smaller files beside a model are read or refused.
pub(crate) fn model_settings(bytes: &[u8]) {
    let path = Path::new(FILE);
    named(GenerationConfig::parse(path, bytes));
    named(TokenizerConfig::parse(path, bytes));
    for family in [Family::Qwen2Vl, Family::InternVl, Family::Qwen2] {
        named(ImageProcessorConfig::parse(path, bytes, family));
    }
}
