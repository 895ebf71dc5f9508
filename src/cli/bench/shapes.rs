//! Decoders by name, to be timed with random weights: what a pass takes does not depend on what the weights say.

use pellucid::format::config::{DecoderConfig, RopeConfig, RopeScaling};

/// The names there are, the smallest first.
pub(super) const NAMES: [&str; 5] = ["tiny", "smollm2-135m", "qwen2.5-0.5b", "qwen2-vl-2b", "qwen2.5-vl-3b"];

/// The decoder of this name.
pub(super) fn shape(name: &str) -> Option<DecoderConfig> {
    // layers, hidden, heads, kv heads, head dim, ffn, vocabulary
    let sizes = match name {
        "tiny" => [3, 128, 4, 2, 32, 256, 512],
        "smollm2-135m" => [30, 576, 9, 3, 64, 1536, 49_152],
        "qwen2.5-0.5b" => [24, 896, 14, 2, 64, 4864, 151_936],
        "qwen2-vl-2b" => [28, 1536, 12, 2, 128, 8960, 151_936],
        "qwen2.5-vl-3b" => [36, 2048, 16, 2, 128, 11_008, 151_936],
        _ => return None,
    };
    let [layers, hidden, heads, kv_heads, head_dim, ffn, vocab] = sizes;
    let mrope_sections = name.contains("-vl-").then_some([16, 24, 24]);
    Some(DecoderConfig {
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn,
        vocab,
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 1e6, scaling: RopeScaling::None, mrope_sections },
        qkv_bias: name.starts_with("qwen"),
        attention_out_bias: false,
        mlp_bias: false,
        qk_norm: false,
        tied_head: true,
        max_positions: 32_768,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_shape_that_holds_together() {
        for name in NAMES {
            let shape = shape(name).expect("a name has a shape");
            assert!(shape.heads.is_multiple_of(shape.kv_heads) && shape.head_dim.is_multiple_of(2), "{name}");
            assert!(shape.rope.mrope_sections.is_none_or(|s| s.iter().sum::<usize>() == shape.head_dim / 2));
        }
        assert!(shape("qwen").is_none());
    }
}
