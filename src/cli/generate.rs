//! `pellucid generate`: one completion, streamed.

use super::Global;
use super::model::ModelFlags;
use super::sampling::SamplingFlags;
use anyhow::{Result, bail};
use pellucid::engine::{self, Features};
use pellucid::prompt::message::{ImageReference, Message};
use pellucid::prompt::reader::Words;
use serde_json::json;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Complete one prompt and print the text as it comes
///
/// Example: pellucid generate Qwen/Qwen2.5-VL-3B-Instruct --image chart.png --prompt "What does the chart show?"
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A folder, or a hub id in the offline cache
    model: String,

    /// What to say to the model
    #[arg(long, value_name = "TEXT")]
    prompt: String,

    /// A picture to show before the prompt (may be repeated)
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,

    /// A system message before it all
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,

    /// Give the prompt to the model as it is, without its chat template
    #[arg(long)]
    raw: bool,

    #[command(flatten)]
    model_flags: ModelFlags,

    #[command(flatten)]
    sampling: SamplingFlags,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<()> {
    let start = Instant::now();
    let opened = arguments.model_flags.open(&arguments.model, global)?;
    let sampling = arguments.sampling.settings(global.seed(), &opened.generation);
    sampling.check_for(1, opened.model.config.decoder.vocab)?;
    if sampling.entropy && !global.json {
        bail!("--entropy is part of the record that --json prints; add --json");
    }
    let images: Vec<_> = arguments.image.iter().cloned().map(ImageReference::Path).collect();
    let (words, given) = if arguments.raw {
        (Words::Text(arguments.prompt.clone()), images)
    } else {
        let system = arguments.system.iter().map(|text| Message::text("system", text));
        let user = match images.is_empty() {
            true => Message::text("user", &arguments.prompt),
            false => Message::user(images, &arguments.prompt),
        };
        (Words::Messages(system.chain([user]).collect()), Vec::new())
    };
    let input = Arc::new(opened.input(&words, &given, Path::new(""), &mut Features::default())?);
    let ready = Instant::now();

    let mut out = io::stdout().lock();
    let mut first = None;
    let completion = engine::generate(opened.generation(), &input, &sampling, |text| {
        first.get_or_insert_with(Instant::now);
        if global.json {
            return Ok(());
        }
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|source| pellucid::Error::machine_because("generate", "cannot write the text", source))
    })?;
    if global.json {
        let mut record = json!({
            "text": completion.text,
            "token_ids": completion.tokens,
            "logprobs": completion.logprobs,
            "finish_reason": completion.finish.name(),
            "seed": sampling.seed,
            "prompt_token_ids": input.tokens(),
        });
        if sampling.entropy {
            record["entropy"] = json!(completion.entropy);
        }
        writeln!(out, "{record}")?;
    } else if !completion.text.ends_with('\n') {
        writeln!(out)?;
    }
    out.flush()?;
    if !global.quiet {
        let first = first.unwrap_or(ready);
        let tokens = completion.tokens.len();
        let rate = (tokens.saturating_sub(1)) as f64 / first.elapsed().as_secs_f64().max(1e-9);
        eprintln!(
            "{} prompt tokens, first text after {:.2} s (loaded in {:.2} s); {tokens} tokens, {rate:.1} per second; {}",
            input.tokens().len(),
            (first - ready).as_secs_f64(),
            (ready - start).as_secs_f64(),
            completion.finish.name(),
        );
    }
    Ok(())
}
