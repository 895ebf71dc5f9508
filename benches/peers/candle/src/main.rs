//! candle-transformers' qwen2 on the CPU, measured as `benches/model.rs` measures.
//!
//!     cargo run --release -- FOLDER --threads 4 --dtype f32 [--rounds 3] [--json FILE]
//!
//! candle 0.9 multiplies no bf16 matrices on a CPU, so the weights are f32 (or f16) there.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen2::{Config, ModelForCausalLM};
use std::time::Instant;

const CONTEXT: usize = 512;
const STEPS: usize = 32;
const WARM_UP: usize = 3;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        arguments.iter().position(|argument| argument == name).map(|at| arguments[at + 1].clone())
    };
    let folder = &arguments[0];
    let threads = value("--threads").expect("--threads");
    // SAFETY: nothing else runs yet; candle's thread pools read this when they start.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", &threads) };
    let rounds: usize = value("--rounds").map_or(3, |rounds| rounds.parse().expect("a number"));
    let name = value("--dtype").unwrap_or("f32".into());
    let dtype = match name.as_str() {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => panic!("{other}: not f32, f16 or bf16"),
    };
    let config = std::fs::read_to_string(format!("{folder}/config.json"))?;
    let config: Config = serde_json::from_str(&config).map_err(candle_core::Error::wrap)?;
    let file = format!("{folder}/model.safetensors");
    // SAFETY: the file does not change while it is mapped.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&[file], dtype, &Device::Cpu)? };
    let mut model = ModelForCausalLM::new(&config, weights)?;

    let mut record = format!("{{\n  \"name\": \"candle 0.9\",\n  \"dtype\": \"{name}\",\n  \"threads\": {threads}");
    for batch in [1, 8] {
        let mut seconds = Vec::new();
        for _ in 0..rounds {
            model.clear_kv_cache();
            let prompts: Vec<u32> = (0..batch).flat_map(|sequence| prompt(&config, sequence)).collect();
            model.forward(&Tensor::from_vec(prompts, (batch, CONTEXT), &Device::Cpu)?, 0)?;
            let mut picked = Tensor::arange(0u32, batch as u32, &Device::Cpu)?.reshape((batch, 1))?;
            for step in 0..WARM_UP + STEPS {
                let start = Instant::now();
                picked = greedy(&model.forward(&picked, CONTEXT + step)?)?;
                if step >= WARM_UP {
                    seconds.push(start.elapsed().as_secs_f64());
                }
            }
        }
        record += &format!(",\n  \"decode{batch}\": {}", batch as f64 / median(seconds));
    }
    let mut seconds = Vec::new();
    for round in 0..1 + 2 * rounds {
        model.clear_kv_cache();
        let start = Instant::now();
        let tokens = Tensor::from_vec(prompt(&config, round), (1, CONTEXT), &Device::Cpu)?;
        greedy(&model.forward(&tokens, 0)?)?.to_vec2::<u32>()?;
        if round > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    record += &format!(",\n  \"prefill\": {}\n}}\n", CONTEXT as f64 / median(seconds));
    print!("{record}");
    if let Some(path) = value("--json") {
        std::fs::write(path, record)?;
    }
    Ok(())
}

fn prompt(config: &Config, sequence: usize) -> Vec<u32> {
    (0..CONTEXT).map(|at| ((at * 7919 + sequence * 104_729 + 11) % config.vocab_size) as u32).collect()
}

/// [B, 1, V] -> [B, 1]
fn greedy(logits: &Tensor) -> Result<Tensor> {
    logits.argmax(2)
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
