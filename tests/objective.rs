//! Advantages, losses and weights against numbers worked out elsewhere, and the properties they must have.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use pellucid::rl::config::{Config, Credit};
use pellucid::train::objective::{
    Aggregation, BetaDensity, Clip, Kl, Normalizer, Outcome, Tiers, advantages, by_component, by_outcome, kl,
    part_weights, shape_reward, surrogate, token_weights,
};
use proptest::prelude::*;

/// Expected values are rounded to six digits.
#[track_caller]
fn close(got: f64, expected: f64) {
    assert!((got - expected).abs() <= 5e-6 * expected.abs().max(1e-12) + 1e-12, "{got}, expected {expected}");
}

#[track_caller]
fn all_close(got: &[Vec<f64>], expected: &[&[f64]]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert_eq!(got.len(), expected.len());
        got.iter().zip(*expected).for_each(|(&got, &expected)| close(got, expected));
    }
}

/// Groups by how many of `of` are right.
fn counts(right: &[usize], of: usize) -> Vec<Vec<f64>> {
    right.iter().map(|&right| (0..of).map(|at| f64::from(u8::from(at < right))).collect()).collect()
}

fn beta(rewards: &[Vec<f64>]) -> pellucid::train::objective::Advantages {
    advantages(rewards, &Normalizer::BetaDensity(BetaDensity::default())).unwrap()
}

const TIERS: [[f64; 8]; 4] = [
    [1., 1., 0.7, 0.7, 0., 0., 0., 0.],
    [0.7, 0.7, 0.7, 0., 0., 0., 0., 0.],
    [1., 1., 1., 1., 1., 1., 0.7, 0.],
    [0.7, 0., 0., 0., 0., 0., 0., 0.],
];

fn tiers() -> Vec<Vec<f64>> {
    TIERS.iter().map(|group| group.to_vec()).collect()
}

#[test]
fn beta_density_gives_the_golden_numbers() {
    let got = beta(&counts(&[1, 2, 3, 2], 4));
    let fit = got.fit.unwrap();
    [fit.mean, fit.variance, fit.data.unwrap()[0], fit.density[0], fit.density[1]]
        .into_iter()
        .zip([0.5, 0.0416667, 2.5, 1.83333, 1.83333])
        .for_each(|(got, expected)| close(got, expected));
    let (a, b, c) = (0.667379, 0.350079, 0.22246);
    all_close(&got.values, &[&[a, -c, -c, -c], &[b, b, -b, -b], &[c, c, c, -a], &[b, b, -b, -b]]);

    let got = beta(&counts(&[1, 2, 5, 7, 4], 8));
    let fit = got.fit.unwrap();
    let expected = [0.475, 0.0890625, 0.855, 0.945, 1.285, 1.315];
    let data = fit.data.unwrap();
    let fitted = [fit.mean, fit.variance, data[0], data[1], fit.density[0], fit.density[1]];
    fitted.into_iter().zip(expected).for_each(|(got, expected)| close(got, expected));
    for (group, (right, up, down)) in got.values.iter().zip([
        (1, 0.93022, -0.132889),
        (2, 0.686963, -0.228988),
        (5, 0.32909, -0.548484),
        (7, 0.140877, -0.98614),
        (4, 0.427088, -0.427088),
    ]) {
        group.iter().enumerate().for_each(|(at, &got)| close(got, if at < right { up } else { down }));
    }

    let got = beta(&tiers());
    close(got.fit.unwrap().density[1], 1.26649);
    let by_reward = [
        [(1., 0.506183), (0.7, 0.242088), (0., -0.374135)],
        [(1., 0.), (0.7, 0.393075), (0., -0.235845)],
        [(1., 0.177307), (0.7, -0.150029), (0., -0.913811)],
        [(1., 0.), (0.7, 0.633631), (0., -0.0905188)],
    ];
    for ((values, rewards), expected) in got.values.iter().zip(TIERS).zip(by_reward) {
        for (&value, reward) in values.iter().zip(rewards) {
            close(value, expected.iter().find(|(of, _)| *of == reward).unwrap().1);
        }
    }

    let got = beta(&counts(&[0, 2, 3, 4, 5, 8], 8));
    let fit = got.fit.unwrap();
    [fit.density[0], fit.density[1]].into_iter().zip([1.17233, 1.20366]).for_each(|(g, e)| close(g, e));
    assert!(got.values[0].iter().chain(&got.values[5]).all(|&value| value == 0.0));
    close(got.values[1][0], 0.701289);
    close(got.values[4][7], -0.574708);
    close(got.uniform, 2.0 / 6.0);
}

#[test]
fn degenerate_batches_have_defined_advantages() {
    // Equal means: no distribution to fit.
    let got = beta(&counts(&[1, 1, 1], 2));
    assert_eq!(got.fit.unwrap().density, [1.0, 1.0]);
    all_close(&got.values, &[&[0.5, -0.5], &[0.5, -0.5], &[0.5, -0.5]]);
    // More spread than any Beta distribution with a peak has.
    let got = beta(&counts(&[2, 0, 2, 0], 2));
    let fit = got.fit.unwrap();
    fit.data.unwrap().into_iter().for_each(|parameter| close(parameter, -0.125));
    assert_eq!(fit.density, [1.0, 1.0]);
    assert!(got.values.iter().flatten().all(|&value| value == 0.0));
    // One prompt; nothing right; everything right; one completion each.
    all_close(&beta(&[vec![1., 0., 0., 1.]]).values, &[&[0.5, -0.5, -0.5, 0.5]]);
    for right in [0, 2] {
        assert!(beta(&counts(&[right, right], 2)).values.iter().flatten().all(|&value| value == 0.0));
    }
    let got = beta(&[vec![1.], vec![0.], vec![1.]]);
    all_close(&got.values, &[&[1.], &[0.], &[1.]]);
    assert!(got.warning.is_some());
    // Tiny spread: large weights for outliers, bound by the limit.
    let mut rewards = counts(&[4; 31], 8);
    rewards.extend(counts(&[5], 8));
    let wide = BetaDensity { largest_weight: 1e6, ..BetaDensity::default() };
    let got = advantages(&rewards, &Normalizer::BetaDensity(wide)).unwrap();
    let fit = got.fit.unwrap();
    [fit.density[0], fit.density[1]].into_iter().zip([86.8268, 85.4961]).for_each(|(g, e)| close(g, e));
    close(got.values[0][0], 0.0961087 * 0.5);
    close(got.values[31][0], 16.6774 * 0.375);
    close(beta(&rewards).values[31][0], 10.0 * 0.375);
    // The debiased fit of the second golden case.
    let debiased = BetaDensity { debias: true, ..BetaDensity::default() };
    let got = advantages(&counts(&[1, 2, 5, 7, 4], 8), &Normalizer::BetaDensity(debiased)).unwrap();
    let density = got.fit.unwrap().density;
    density.into_iter().zip([1.46233, 1.51100]).for_each(|(g, e)| close(g, e));
}

/// The tiers as what became of each completion in its one trial.
fn outcomes() -> Vec<Vec<Vec<Outcome>>> {
    let of = |reward: &f64| vec![Outcome { correct: *reward > 0.0, asked: usize::from(*reward < 1.0) }];
    TIERS.iter().map(|group| group.iter().map(of).collect()).collect()
}

/// As a run's configuration says it.
fn configured(changes: &[&str]) -> Credit {
    let least = "captioner = { model = \"m\" }\ndata = { train = \"d\" }\nrun = { steps = 1, out = \"o\" }\n";
    let changes: Vec<String> = changes.iter().map(|change| change.to_string()).collect();
    Config::parse(least, &changes).unwrap().credit().unwrap()
}

#[test]
fn tiers_and_components_are_taken_apart() {
    let Credit { normalizer, tiers: apart, .. } =
        configured(&["objective.preset=acrl-xiao", "objective.tiers=decompose"]);
    let got = by_outcome(&outcomes(), &[1.0, 0.7], apart, &normalizer).unwrap();
    assert_eq!((got.uniform, got.fit), (0.0, None));
    let got = got.values;
    let by_reward = [
        [(1., 0.514990), (0.7, 0.234733), (0., -0.374861)],
        [(1., 0.), (0.7, 0.384220), (0., -0.230532)],
        [(1., 0.174133), (0.7, -0.132993), (0., -0.911806)],
        [(1., 0.), (0.7, 0.639958), (0., -0.0914226)],
    ];
    for ((values, rewards), expected) in got.iter().zip(TIERS).zip(by_reward) {
        for (&value, reward) in values.iter().zip(rewards) {
            close(value, expected.iter().find(|(of, _)| *of == reward).unwrap().1);
        }
    }
    // As they are, they are their rewards.
    let Credit { normalizer, tiers: direct, .. } = configured(&["objective.preset=acrl-xiao"]);
    assert_eq!(by_outcome(&outcomes(), &[1.0, 0.7], direct, &normalizer).unwrap(), beta(&tiers()));
    // Where the factor does not depend on the rewards, apart and together are the same.
    for name in ["none", "rloo"] {
        let normalizer = Normalizer::named(name).unwrap();
        let of = |tiers| by_outcome(&outcomes(), &[1.0, 0.7], tiers, &normalizer).unwrap().values;
        for (a, b) in of(Tiers::Direct).iter().flatten().zip(of(Tiers::Decompose).iter().flatten()) {
            assert!((a - b).abs() < 1e-15, "{name}: {a} and {b}");
        }
    }
    // By hand: of [1, .49, .7, 0] by 0, 2, 1 requests, right within 0 is [1, 0, 0, 0], within 1 [1, 0, 1, 0] and within 2
    // [1, 1, 1, 0]; deviations are 1/2, 1/√3 and 1/2.
    let of = |correct, asked| vec![Outcome { correct, asked }];
    let group = [vec![of(true, 0), of(true, 2), of(true, 1), of(false, 2)]];
    let std = Normalizer::GroupStd { eps: 0.0, ddof: 1 };
    let got = by_outcome(&group, &[1.0, 0.7, 0.49], Tiers::Decompose, &std).unwrap().values;
    let root = 3f64.sqrt();
    all_close(
        &got,
        &[&[
            0.3 * 1.5 + 0.21 * root / 2.0 + 0.49 * 0.5,
            -0.3 * 0.5 - 0.21 * root / 2.0 + 0.49 * 0.5,
            -0.3 * 0.5 + 0.21 * root / 2.0 + 0.49 * 0.5,
            -0.3 * 0.5 - 0.21 * root / 2.0 - 0.49 * 1.5,
        ]],
    );
    // Trials of a completion are averaged: 1 and .7 earn .85.
    let trials =
        |all: &[(bool, usize)]| all.iter().map(|&(correct, asked)| Outcome { correct, asked }).collect();
    let group = [vec![trials(&[(true, 0), (true, 1)]), trials(&[(true, 1), (false, 0)])]];
    let got = by_outcome(&group, &[1.0, 0.7], Tiers::Direct, &Normalizer::None).unwrap().values;
    all_close(&got, &[&[0.25, -0.25]]);

    let accuracy = counts(&[1, 2, 3, 2], 4);
    let format: Vec<Vec<f64>> =
        [[1., 1., 0., 0.], [1., 1., 1., 0.], [1., 1., 1., 1.], [1., 0., 1., 1.]].map(Vec::from).to_vec();
    let silent = vec![vec![0.0; 4]; 4];
    let normalizer = Normalizer::BetaDensity(BetaDensity::default());
    let parts = [(&accuracy[..], 1.0), (&format[..], 1.0), (&silent[..], 1.0)];
    let got = by_component(&parts, &normalizer).unwrap();
    all_close(
        &got,
        &[
            &[0.538773, 0.0938543, -0.316314, -0.316314],
            &[0.263068, 0.263068, -0.0870109, -0.439124],
            &[0.111230, 0.111230, 0.111230, -0.333689],
            &[0.263068, -0.0890458, -0.0870109, -0.0870109],
        ],
    );
}

#[test]
fn other_normalizers_give_the_golden_numbers() {
    let one = vec![vec![1., 0., 0., 0.]];
    let of = |rewards: &[Vec<f64>], normalizer| advantages(rewards, &normalizer).unwrap().values;
    for (normalizer, up, down) in [
        (Normalizer::GroupStd { eps: 1e-6, ddof: 1 }, 1.5, -0.499999),
        (Normalizer::GroupStd { eps: 1e-6, ddof: 0 }, 1.73205, -0.577349),
        (Normalizer::None, 0.75, -0.25),
        (Normalizer::Rloo, 1.0, -0.333333),
    ] {
        let got = of(&one, normalizer);
        close(got[0][0], up);
        close(got[0][3], down);
    }
    let tier = vec![TIERS[0].to_vec()];
    for (normalizer, expected) in [
        (Normalizer::GroupStd { eps: 1e-6, ddof: 1 }, [1.22790, 0.587255, -0.907576]),
        (Normalizer::named("group_std").unwrap(), [1.22764, 0.587131, -0.907384]),
        (Normalizer::None, [0.575, 0.275, -0.425]),
        (Normalizer::Rloo, [0.657143, 0.314286, -0.485714]),
    ] {
        let got = of(&tier, normalizer);
        [0, 2, 4].into_iter().zip(expected).for_each(|(at, expected)| close(got[0][at], expected));
    }
    let batch = counts(&[1, 2, 3, 2], 4);
    for (normalizer, quarter) in
        [(Normalizer::Whiten, 0.517549), (Normalizer::named("batch_std").unwrap(), 0.484029)]
    {
        let got = of(&batch, normalizer);
        close(got[0][1], -quarter);
        close(got[1][0], 2.0 * quarter);
        close(got[2][3], -3.0 * quarter);
    }
}

#[test]
fn what_means_nothing_is_refused_by_name() {
    let refused = |result: pellucid::Result<_>, words: &[&str]| {
        let error = result.map(|_: Vec<Vec<f64>>| ()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let of = |rewards: &[Vec<f64>]| {
        advantages(rewards, &Normalizer::BetaDensity(BetaDensity::default())).map(|got| got.values)
    };
    refused(of(&[]), &["no groups"]);
    refused(of(&[vec![1.0], vec![]]), &["group 1", "empty"]);
    refused(of(&[vec![1.0, f64::NAN]]), &["reward 1", "group 0", "NaN"]);
    refused(of(&[vec![2.0, 0.0]]), &["reward 2", "0 to 1", "range"]);
    let paid = |payment: &[f64]| {
        by_outcome(&outcomes(), payment, Tiers::Direct, &Normalizer::None).map(|got| got.values)
    };
    refused(paid(&[0.7, 1.0]), &["[0.7, 1.0]", "do not rise"]);
    refused(paid(&[1.0, f64::NAN]), &["NaN"]);
    let untried = by_outcome(&[vec![vec![]]], &[1.0], Tiers::Direct, &Normalizer::None);
    refused(untried.map(|got| got.values), &["without a trial"]);
    refused(shape_reward(1.0, &[0.0], &[], (Kl::K1, 0.1)).map(|_| Vec::new()), &["1 log-probs", "0 of"]);
    let named = |name| Normalizer::named(name).map(|_| Vec::new());
    refused(named("bnpo"), &["beta_density", "token_mean_local"]);
    refused(named("grpo"), &["grpo", "group_std"]);
    refused(Aggregation::named("bnpo", 1).map(|_| Vec::new()), &["bnpo", "token_mean_local"]);
}

#[test]
fn the_surrogate_is_clipped_on_the_side_that_gains() {
    let clips = [
        Clip { low: 0.2, high: 0.2, dual: None },
        Clip { low: 0.2, high: 0.28, dual: None },
        Clip { low: 0.2, high: 0.28, dual: Some(3.0) },
        Clip { low: 0.2, high: 0.28, dual: Some(10.0) },
    ];
    for (ratio, advantage, losses) in [
        (1.5f64, 1.0, [-1.2, -1.28, -1.28, -1.28]),
        (0.6, 1.0, [-0.6; 4]),
        (1.5, -1.0, [1.5; 4]),
        (0.6, -1.0, [0.8; 4]),
        (12.0, -1.0, [12.0, 12.0, 3.0, 10.0]),
    ] {
        for (clip, expected) in clips.iter().zip(losses) {
            let (loss, clipped) = surrogate(ratio.ln(), 0.0, advantage, clip);
            close(loss.value, expected);
            assert_eq!(clipped, (expected - -advantage * ratio).abs() > 1e-9, "{ratio} {advantage}");
        }
    }
    // At the first update old and new are the same, and the slope is that of the plain policy gradient.
    let (loss, clipped) = surrogate(-1.3, -1.3, 0.8, &clips[1]);
    assert_eq!((loss.value, loss.slope, clipped), (-0.8, -0.8, false));
}

#[test]
fn divergences_are_the_three_estimates() {
    for (logp, reference, expected) in [
        (-1.0, -1.2, [0.2, 0.02, 0.0187308]),
        (-1.2, -1.0, [-0.2, 0.02, 0.0214028]),
        (-2.0, -0.5, [-1.5, 1.125, 1.98169]),
        (-0.5, -2.0, [1.5, 1.125, 0.72313]),
    ] {
        for (kind, expected) in [Kl::K1, Kl::K2, Kl::K3].into_iter().zip(expected) {
            close(kl(kind, logp, reference).value, expected);
        }
    }
}

/// With the numbers of the table above: a reward loses the sum over its tokens times the coefficient.
#[test]
fn divergence_is_taken_off_rewards() {
    let (logp, reference) = ([-1.0, -1.2, -2.0, -0.5], [-1.2, -1.0, -0.5, -2.0]);
    for (kind, sum) in [(Kl::K1, 0.0), (Kl::K2, 2.29), (Kl::K3, 0.0187308 + 0.0214028 + 1.98169 + 0.72313)] {
        let shaped = shape_reward(0.7, &logp, &reference, (kind, 0.1)).unwrap();
        assert!((shaped - (0.7 - 0.1 * sum)).abs() < 1e-6, "{kind:?}: {shaped}");
    }
    close(shape_reward(1.0, &logp[..2], &reference[2..], (Kl::K1, 0.5)).unwrap(), 1.0 - 0.5 * (-0.5 + 0.8));
}

#[test]
fn aggregations_weigh_tokens_as_their_names_say() {
    let losses: [&[f64]; 2] = [&[1., 2.], &[0.5; 6]];
    let lengths = vec![vec![2, 6]];
    let total = |aggregation, microbatches: &[Vec<usize>], losses: &[&[f64]]| -> f64 {
        let weights = token_weights(microbatches, aggregation).concat();
        losses.iter().zip(weights).map(|(losses, weight)| weight * losses.iter().sum::<f64>()).sum()
    };
    for (name, expected) in [
        ("seq_mean_token_mean", 1.0),
        ("token_mean_local", 0.75),
        ("token_mean_global", 0.75),
        ("const", 0.1875),
        ("seq_mean_token_sum", 3.0),
    ] {
        close(total(Aggregation::named(name, 16).unwrap(), &lengths, &losses), expected);
    }
    // Two microbatches tell TRL's mean from the global one.
    let microbatches = vec![vec![2, 6], vec![1, 3]];
    let losses: [&[f64]; 4] = [&[1., 2.], &[0.5; 6], &[3.], &[1.; 3]];
    close(total(Aggregation::TokenMeanLocal, &microbatches, &losses), 1.125);
    close(total(Aggregation::TokenMeanGlobal, &microbatches, &losses), 1.0);
    close(total(Aggregation::SeqMeanTokenMean, &microbatches, &losses), 1.5);
}

/// Observers (part 0) of 2 and 6 tokens, solvers (part 1) of 4, 1 and 3: in the first microbatch one of each, in the
/// second a solver alone, in the third the rest. Each part's losses count as if the other were not there.
#[test]
fn parts_of_a_loss_are_weighed_apart_and_added() {
    let microbatches = vec![vec![(0, 2), (1, 4)], vec![(1, 1)], vec![(1, 3), (0, 6)]];
    for (name, expected) in [
        ("seq_mean_token_mean", [[1. / 4., 1. / 12.], [1. / 3., 0.], [1. / 9., 1. / 12.]]),
        // Two microbatches hold observers, three hold solvers.
        ("token_mean_local", [[1. / 4., 1. / 12.], [1. / 3., 0.], [1. / 9., 1. / 12.]]),
        ("token_mean_global", [[1. / 8., 1. / 8.], [1. / 8., 0.], [1. / 8., 1. / 8.]]),
        ("const", [[1. / 32., 1. / 48.], [1. / 48., 0.], [1. / 48., 1. / 32.]]),
        ("seq_mean_token_sum", [[1. / 2., 1. / 3.], [1. / 3., 0.], [1. / 3., 1. / 2.]]),
    ] {
        let got = part_weights(&microbatches, Aggregation::named(name, 16).unwrap());
        all_close(&got, &[&expected[0], &expected[1][..1], &expected[2]]);
    }
    // Means over microbatches differ from those over sequences where a microbatch holds two of a part.
    let microbatches = vec![vec![(0, 2), (1, 5), (0, 6)], vec![(1, 3), (1, 1)]];
    let got = part_weights(&microbatches, Aggregation::TokenMeanLocal);
    all_close(&got, &[&[1. / 8., 1. / 10., 1. / 8.], &[1. / 8., 1. / 8.]]);
    let got = part_weights(&microbatches, Aggregation::TokenMeanGlobal);
    all_close(&got, &[&[1. / 8., 1. / 9., 1. / 8.], &[1. / 9., 1. / 9.]]);
    // One part is what it was.
    let plain = vec![vec![2, 6], vec![1, 3]];
    let one = vec![vec![(7, 2), (7, 6)], vec![(7, 1), (7, 3)]];
    for name in
        ["seq_mean_token_mean", "token_mean_local", "token_mean_global", "const", "seq_mean_token_sum"]
    {
        let aggregation = Aggregation::named(name, 16).unwrap();
        assert_eq!(part_weights(&one, aggregation), token_weights(&plain, aggregation), "{name}");
    }
}

fn batches() -> impl Strategy<Value = Vec<Vec<f64>>> {
    let tier = prop_oneof![Just(0.0), Just(0.7), Just(1.0)];
    prop::collection::vec(prop::collection::vec(tier, 2..9), 1..9)
}

proptest! {
    #[test]
    fn groups_sum_to_zero_and_uniform_ones_are_zero(rewards in batches()) {
        for name in ["none", "group_std", "batch_std", "whiten", "rloo", "beta_density"] {
            let got = advantages(&rewards, &Normalizer::named(name).unwrap()).unwrap();
            for (values, group) in got.values.iter().zip(&rewards) {
                prop_assert!(values.iter().all(|value| value.is_finite()));
                let size: f64 = values.iter().map(|value| value.abs()).sum();
                prop_assert!(values.iter().sum::<f64>().abs() <= 1e-9 * size.max(1.0), "{}", name);
                if group.iter().all(|reward| *reward == group[0]) {
                    prop_assert!(values.iter().all(|value| *value == 0.0), "{}", name);
                }
            }
        }
    }

    #[test]
    fn the_order_of_prompts_does_not_matter(rewards in batches(), turn in 0usize..9) {
        let turn = turn % rewards.len();
        let mut turned = rewards.clone();
        turned.rotate_left(turn);
        let (mut values, other) = (beta(&rewards).values, beta(&turned).values);
        values.rotate_left(turn);
        for (a, b) in values.iter().flatten().zip(other.iter().flatten()) {
            prop_assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0));
        }
    }

    /// Forced parameters: (1, 1) is the centred reward, (3/2, 3/2) is π/8 of GRPO with the population's deviation.
    #[test]
    fn known_densities_are_known_normalizers(right in prop::collection::vec(0usize..9, 2..7)) {
        let rewards = counts(&right, 8);
        let forced = |parameter| {
            let fixed = BetaDensity { fixed: Some([parameter; 2]), largest_weight: 1e6, ..BetaDensity::default() };
            advantages(&rewards, &Normalizer::BetaDensity(fixed)).unwrap().values.concat()
        };
        let centred = advantages(&rewards, &Normalizer::None).unwrap().values.concat();
        let grpo = Normalizer::GroupStd { eps: 0.0, ddof: 0 };
        let grpo = advantages(&rewards, &grpo).unwrap().values.concat();
        for ((one, half), (centred, grpo)) in forced(1.0).iter().zip(forced(1.5)).zip(centred.iter().zip(&grpo)) {
            prop_assert!((one - centred).abs() < 1e-12);
            prop_assert!((half - std::f64::consts::FRAC_PI_8 * grpo).abs() < 1e-12);
        }
    }

    /// Slopes are derivatives.
    #[test]
    fn slopes_agree_with_differences(logp in -3.0f64..-0.1, old in -3.0f64..-0.1, advantage in -2.0f64..2.0) {
        let clip = Clip { low: 0.2, high: 0.28, dual: Some(3.0) };
        let step = 1e-6;
        let check = |at: &dyn Fn(f64) -> f64, slope: f64| {
            let difference = (at(logp + step) - at(logp - step)) / (2.0 * step);
            (difference - slope).abs() <= 1e-4 * slope.abs().max(1.0)
        };
        let (loss, clipped) = surrogate(logp, old, advantage, &clip);
        let near = |edge: f64| ((logp - old).exp() - edge).abs() < 1e-4;
        if !near(0.8) && !near(1.28) && !near(3.0) {
            prop_assert!(check(&|logp| surrogate(logp, old, advantage, &clip).0.value, loss.slope));
            prop_assert_eq!(clipped, loss.slope == 0.0 && advantage != 0.0);
        }
        for kind in [Kl::K1, Kl::K2, Kl::K3] {
            prop_assert!(check(&|logp| kl(kind, logp, old).value, kl(kind, logp, old).slope));
        }
    }
}
