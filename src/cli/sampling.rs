//! Sampling flags, the same on every verb that draws tokens.

use pellucid::engine::Sampling;
use pellucid::format::GenerationConfig;

/// How tokens are drawn.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingFlags {
    /// The most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,

    /// 0 takes the likeliest token [default: 1]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,

    /// Keep the likeliest tokens whose probabilities reach this sum [default: 1, all]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,

    /// Keep this many of the likeliest tokens [default: 0, all]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Keep tokens at least this probable relative to the likeliest [default: 0, all]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,

    /// Above 1, push down the logits of tokens already seen [default: 1]
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,

    /// End a completion at this text (may be repeated)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// End a completion at these tokens, in its ids but not in its text
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    stop_token_ids: Vec<u32>,

    /// Go on past the model's end tokens
    #[arg(long)]
    ignore_eos: bool,

    /// Also give the entropy, in nats, of the distribution each token was drawn from, over the full vocabulary
    #[arg(long)]
    entropy: bool,

    /// Take settings that are not given from the checkpoint's generation_config.json
    #[arg(long)]
    model_defaults: bool,
}

impl SamplingFlags {
    /// The settings, with the checkpoint's where they were asked for.
    pub(crate) fn settings(&self, seed: u64, generation: &GenerationConfig) -> Sampling {
        let plain = Sampling::default();
        let suggested = |value: Option<f64>| value.filter(|_| self.model_defaults).map(|value| value as f32);
        // A checkpoint that says not to sample means the likeliest token.
        let greedy = self.model_defaults && generation.do_sample == Some(false);
        let temperature = if greedy { Some(0.0) } else { suggested(generation.temperature) };
        let top_k = generation.top_k.filter(|_| self.model_defaults);
        Sampling {
            max_tokens: self.max_tokens,
            temperature: self.temperature.or(temperature).unwrap_or(plain.temperature),
            top_p: self.top_p.or(suggested(generation.top_p)).unwrap_or(plain.top_p),
            top_k: self.top_k.or(top_k).unwrap_or(plain.top_k),
            min_p: self.min_p.or(suggested(generation.min_p)).unwrap_or(plain.min_p),
            repetition_penalty: self
                .repetition_penalty
                .or(suggested(generation.repetition_penalty))
                .unwrap_or(plain.repetition_penalty),
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            ignore_eos: self.ignore_eos,
            entropy: self.entropy,
            seed,
        }
    }
}
