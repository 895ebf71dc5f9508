//! Weights drawn afresh, in a way that small decoders learn from.
//!
//! A decoder this small does not find out by itself that a value belongs to the name before it: some heads of its first
//! block begin as heads that look one and two tokens back, by their biases alone. Nothing keeps them so.

use crate::error::Result;
use crate::format::config::DecoderConfig;
use crate::model::Model;
use crate::task::world::{Chance, Purpose};
use crate::tensor::Tensor;
use std::f64::consts::TAU;

/// Rotary pairs that look back, the fastest ones, and how strongly.
const PAIRS: usize = 5;
const STRENGTH: f64 = 6.0;

/// What the weights of a head that looks back are multiplied by: what a token is matters less than where.
const BLUR: f32 = 0.1;

/// Draws every weight of a model anew.
pub fn fresh(mut model: Model, seed: u64) -> Result<Model> {
    let named: Vec<(String, Vec<usize>)> =
        model.parameters().into_iter().map(|(name, weight)| (name, weight.shape().to_vec())).collect();
    let decoder = model.config.decoder.clone();
    let mut drawn = Vec::with_capacity(named.len());
    for ((name, shape), index) in named.iter().zip(0..) {
        let mut values = draw(name, shape, &mut Chance::new(seed, index, Purpose::Weight));
        look_back(name, &mut values, &decoder);
        drawn.push(model.backend.upload(Tensor::from_slice(shape, &values)?)?);
    }
    for (weight, drawn) in model.parameters_mut().into_iter().zip(drawn) {
        *weight = drawn;
    }
    Ok(model)
}

/// The values of a weight by its name.
fn draw(name: &str, shape: &[usize], chance: &mut Chance) -> Vec<f32> {
    let count: usize = shape.iter().product();
    let in_tower = name.contains("visual.");
    let ends = |module: &str| name.ends_with(&format!("{module}.weight"));
    let inputs = shape[shape.len() - 1] as f64;
    let deviation = match name {
        _ if name.ends_with(".bias") => return vec![0.0; count],
        _ if shape.len() == 1 => return vec![1.0; count],
        // What a block adds to the stream begins as nothing.
        _ if !in_tower && (ends("o_proj") || ends("down_proj")) => return vec![0.0; count],
        _ if ends("embed_tokens") => inputs.powf(-0.5),
        // Two frames that are the same count as one.
        _ if ends("patch_embed.proj") => 0.02 * 0.5f64.sqrt(),
        _ => 0.7 * inputs.powf(-0.5),
    };
    (0..count).map(|_| (deviation * normal(chance)) as f32).collect()
}

/// A standard normal draw, by Box and Muller; the same on every machine.
fn normal(chance: &mut Chance) -> f64 {
    let mut uniform = || (chance.below(1 << 24) as f64 + 0.5) / f64::from(1 << 24);
    let (radius, turn) = (uniform(), uniform());
    libm::sqrt(-2.0 * libm::log(radius)) * libm::cos(TAU * turn)
}

/// Turns the query heads that share the first key head of the first block towards the tokens one and two back, and so
/// on.
fn look_back(name: &str, values: &mut [f32], config: &DecoderConfig) {
    let (width, half) = (config.head_dim, config.head_dim / 2);
    let group = config.heads / config.kv_heads;
    let Some((_, place)) = name.split_once("layers.0.self_attn.") else { return };
    let frequency = |pair: usize| libm::pow(config.rope.theta, -2.0 * pair as f64 / width as f64);
    match place {
        "q_proj.weight" => {
            values[..group * width * config.hidden].iter_mut().for_each(|value| *value *= BLUR)
        }
        "k_proj.weight" => values[..width * config.hidden].iter_mut().for_each(|value| *value *= BLUR),
        "k_proj.bias" => values[..PAIRS].fill(STRENGTH as f32),
        "q_proj.bias" => {
            for (head, pair) in (0..group).flat_map(|head| (0..PAIRS).map(move |pair| (head, pair))) {
                let angle = frequency(pair) * (head + 1) as f64;
                values[head * width + pair] = (STRENGTH * libm::cos(angle)) as f32;
                values[head * width + half + pair] = (-STRENGTH * libm::sin(angle)) as f32;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ModelFolder;

    #[test]
    fn normal_draws_are_normal() {
        let mut chance = Chance::new(1, 2, Purpose::Weight);
        let draws: Vec<f64> = (0..20_000).map(|_| normal(&mut chance)).collect();
        let mean = |power: i32| draws.iter().map(|draw| draw.powi(power)).sum::<f64>() / draws.len() as f64;
        let moments = [1, 2, 3, 4].map(mean);
        for (moment, (expected, off)) in
            moments.iter().zip([(0.0, 0.04), (1.0, 0.05), (0.0, 0.15), (3.0, 0.4)])
        {
            assert!((moment - expected).abs() < off, "{moments:?}");
        }
    }

    /// Biases alone, turned by their positions: nearly all attention goes one and two tokens back.
    #[test]
    fn two_heads_look_back() {
        let config = ModelFolder::find("builtin:tiny-reasoner").unwrap().config().unwrap().decoder;
        let (width, half) = (config.head_dim, config.head_dim / 2);
        let mut query = vec![0.0; config.heads * width];
        let mut key = vec![0.0; config.kv_heads * width];
        look_back("model.layers.0.self_attn.q_proj.bias", &mut query, &config);
        look_back("model.layers.0.self_attn.k_proj.bias", &mut key, &config);
        assert!(query[2 * width..].iter().chain(&key[width..]).all(|&value| value == 0.0));
        for head in 0..2 {
            let score = |distance: usize| -> f64 {
                let pair = |i: usize| {
                    let angle = distance as f64 * config.rope.theta.powf(-2.0 * i as f64 / width as f64);
                    let [first, second] = [i, half + i].map(|i| f64::from(query[head * width + i]));
                    let turned = first * angle.cos() - second * angle.sin();
                    turned * f64::from(key[i])
                        + (second * angle.cos() + first * angle.sin()) * f64::from(key[half + i])
                };
                (0..half).map(pair).sum::<f64>() / (width as f64).sqrt()
            };
            let weights: Vec<f64> = (0..40).map(|distance| score(distance).exp()).collect();
            let share = weights[head + 1] / weights.iter().sum::<f64>();
            assert!(share > 0.95, "head {head}: {share}");
        }
    }
}
