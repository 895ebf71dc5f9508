//! What training takes of a machine's memory is what was planned.

use super::*;

#[test]
fn activations_take_what_was_planned() {
    for (name, dtype) in [("qwen3", Dtype::F32), ("qwen2_5", Dtype::BF16)] {
        let school = School::new(&Case::read(name), cpu(), dtype);
        let samples = graded(&school);
        let mut trainer = Trainer::new(school.model.clone(), school.lora.clone(), reinforce()).unwrap();
        let mut held = Vec::new();
        for _ in 0..4 {
            trainer.step(&samples).unwrap();
            held.push(trainer.activation_bytes());
        }
        assert!(held.iter().all(|&bytes| bytes == held[0]), "{held:?}");
        let rows = packed(&samples, 300).iter().map(|batch| batch.tokens).max().unwrap();
        let cache = school.model.decoder.cache_dtype(&*school.model.backend);
        let config = school.model.decoder.config();
        let scratch = rows * school.model.backend.attention_scratch(config.heads, config.head_dim);
        let planned = train_bytes(config, Dtype::F32, cache, rows) + scratch;
        assert!(held[0].abs_diff(planned) * 20 <= planned, "{name}: {} for {planned}", held[0]);
    }
}

/// What is kept of blocks changes no bit, and takes what was planned.
#[test]
fn what_is_kept_is_what_would_be_computed() {
    for (name, dtype) in [("qwen3", Dtype::BF16), ("qwen2_5_vl", Dtype::F32)] {
        let school = School::new(&Case::read(name), cpu(), dtype);
        let samples = graded(&school);
        let model = &school.model;
        let block = kept_block_bytes(model.decoder.config(), Dtype::F32, reinforce().microbatch_tokens);
        let run = |keep_bytes: usize| {
            let settings = TrainSettings { keep_bytes, ..reinforce() };
            let mut trainer = Trainer::new(model.clone(), school.lora.clone(), settings).unwrap();
            let stats: Vec<_> = (0..3).map(|_| trainer.step(&samples).unwrap()).collect();
            let weights: Vec<Vec<u8>> =
                trainer.lora().unwrap().tensors().map(|tensor| tensor.bytes().to_vec()).collect();
            (stats, weights, trainer.activation_bytes())
        };
        let (stats, weights, bytes) = run(block - 1);
        // What is held is that of the last microbatch; a plan says how many rows that had.
        let cache = model.decoder.cache_dtype(&*model.backend);
        let config = model.decoder.config();
        let scratch = model.backend.attention_scratch(config.heads, config.head_dim);
        let rows = bytes / (train_bytes(config, Dtype::F32, cache, 1) + scratch);
        for (keep_bytes, blocks) in [(block, 1), (2 * block, 2), (usize::MAX, model.decoder.config().layers)]
        {
            let (kept_stats, kept_weights, kept_bytes) = run(keep_bytes);
            assert_eq!((&kept_stats, &kept_weights), (&stats, &weights), "{name} {blocks} blocks");
            let planned = blocks * kept_block_bytes(model.decoder.config(), Dtype::F32, rows);
            let more = kept_bytes - bytes;
            assert!(more.abs_diff(planned) * 20 <= planned, "{name}: {more} for {planned}, {blocks} blocks");
        }
    }
}
