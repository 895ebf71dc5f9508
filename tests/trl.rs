//! GRPO losses and slopes as TRL's trainer computes them (`tests/golden/trl_losses.py`).

use pellucid::train::objective::{Aggregation, Clip, Kl, kl, surrogate, token_weights};
use serde::Deserialize;

/// Values of tokens, by microbatch and sequence.
type Tokens = Vec<Vec<Vec<f64>>>;

#[derive(Deserialize)]
struct Fixture {
    epsilon_low: f64,
    epsilon_high: f64,
    longest: usize,
    advantages: Vec<Vec<f64>>,
    new: Tokens,
    old: Tokens,
    reference: Tokens,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    loss_type: String,
    beta: f64,
    delta: Option<f64>,
    loss: f64,
    clipped: usize,
    gradient: Tokens,
}

/// What TRL calls its ways to count tokens, and what they are called here.
const LOSS_TYPES: [(&str, &str); 4] = [
    ("grpo", "seq_mean_token_mean"),
    ("bnpo", "token_mean_local"),
    ("dr_grpo", "const"),
    ("dapo", "token_mean_global"),
];

#[test]
fn losses_and_slopes_are_those_of_trl() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/trl_losses.json"));
    let fixture: Fixture = serde_json::from_str(&text.unwrap()).unwrap();
    let lengths: Vec<Vec<usize>> =
        fixture.new.iter().map(|batch| batch.iter().map(Vec::len).collect()).collect();
    for case in &fixture.cases {
        let name = format!("{} with beta {} and delta {:?}", case.loss_type, case.beta, case.delta);
        let (_, aggregation) = LOSS_TYPES.into_iter().find(|(theirs, _)| *theirs == case.loss_type).unwrap();
        let weights = token_weights(&lengths, Aggregation::named(aggregation, fixture.longest).unwrap());
        // TRL's `delta` is the dual clip: above 1 + epsilon_high it is felt by bad tokens alone.
        let clip = Clip { low: fixture.epsilon_low, high: fixture.epsilon_high, dual: case.delta };
        let (mut loss, mut clipped) = (0.0, 0);
        for (batch, lengths) in lengths.iter().enumerate() {
            for (sequence, &length) in lengths.iter().enumerate() {
                for token in 0..length {
                    let at = |tokens: &Tokens| tokens[batch][sequence][token];
                    let (logp, advantage) = (at(&fixture.new), fixture.advantages[batch][sequence]);
                    let (policy, held) = surrogate(logp, at(&fixture.old), advantage, &clip);
                    let pull = kl(Kl::K3, logp, at(&fixture.reference));
                    let weight = weights[batch][sequence];
                    loss += weight * (policy.value + case.beta * pull.value);
                    let slope = weight * (policy.slope + case.beta * pull.slope);
                    let expected = at(&case.gradient);
                    let far = (slope - expected).abs();
                    assert!(far <= 1e-9 * expected.abs(), "{name}: slope {slope}, expected {expected}");
                    clipped += usize::from(held);
                }
            }
        }
        assert!((loss - case.loss).abs() <= 1e-9 * case.loss.abs(), "{name}: {loss}, expected {}", case.loss);
        // TRL does not count what only `delta` holds.
        let dual = case.delta.is_some();
        assert!(clipped == case.clipped || dual && clipped > case.clipped, "{name}: {clipped} clipped");
    }
}
