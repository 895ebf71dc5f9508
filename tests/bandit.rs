//! Why the clarifier is frozen: a captioner of three captions, every course of an episode enumerated. The expected policy
//! gradient, by the functions a run uses, is the slope of the expected reward as long as nothing after the caption depends
//! on the policy, and is not once the policy answers its own requests.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use pellucid::train::objective::{
    Aggregation, Clip, Normalizer, Outcome, Tiers, by_outcome, part_weights, surrogate,
};

const CAPTIONS: usize = 3;
const REPLIES: usize = 2;
const PAYMENT: [f64; 2] = [1.0, 0.7];
const THETA: [f64; CAPTIONS] = [0.3, -0.5, 0.9];

/// How often a caption is asked about, how often it is answered rightly at once, and after each reply.
const ASKED: [f64; CAPTIONS] = [0.9, 0.4, 0.1];
const AT_ONCE: [f64; CAPTIONS] = [0.2, 0.5, 0.8];
const REPLIED: [[f64; REPLIES]; CAPTIONS] = [[0.9, 0.1], [0.7, 0.3], [0.95, 0.4]];

type Policy = [f64; CAPTIONS];
/// Who replies: the probabilities of replies, by the policy's parameters.
type Clarifier = fn(&Policy) -> [f64; REPLIES];

fn frozen(_: &Policy) -> [f64; REPLIES] {
    [0.35, 0.65]
}

/// The policy's own weights reply: what is learned for captions moves replies, too.
fn wired(theta: &Policy) -> [f64; REPLIES] {
    let first = 1.0 / (1.0 + (theta[1] - theta[2]).exp());
    [first, 1.0 - first]
}

fn softmax(theta: &Policy) -> Policy {
    let sum: f64 = theta.iter().map(|logit| logit.exp()).sum();
    theta.map(|logit| logit.exp() / sum)
}

/// Captions, what becomes of them, and how likely that is.
fn courses(theta: &Policy, clarifier: Clarifier) -> Vec<(usize, Outcome, f64)> {
    let (policy, replies) = (softmax(theta), clarifier(theta));
    let mut all = Vec::new();
    for caption in 0..CAPTIONS {
        let mut add = |asked: usize, rightly: f64, likely: f64| {
            for (correct, share) in [(true, rightly), (false, 1.0 - rightly)] {
                all.push((caption, Outcome { correct, asked }, policy[caption] * likely * share));
            }
        };
        add(0, AT_ONCE[caption], 1.0 - ASKED[caption]);
        for (reply, likely) in replies.iter().enumerate() {
            add(1, REPLIED[caption][reply], ASKED[caption] * likely);
        }
    }
    all
}

fn expected_reward(theta: &Policy, clarifier: Clarifier) -> f64 {
    let paid = |(_, outcome, likely): (usize, Outcome, f64)| likely * outcome.reward(&PAYMENT);
    courses(theta, clarifier).into_iter().map(paid).sum()
}

fn differences(clarifier: Clarifier) -> Policy {
    let by = 1e-5;
    std::array::from_fn(|at| {
        let moved = |by: f64| {
            let mut theta = THETA;
            theta[at] += by;
            expected_reward(&theta, clarifier)
        };
        (moved(by) - moved(-by)) / (2.0 * by)
    })
}

/// The gradient a step of two captions follows, over every pair of courses.
fn policy_gradient(clarifier: Clarifier, tiers: Tiers, normalizer: &Normalizer) -> Policy {
    let policy = softmax(&THETA);
    let clip = Clip { low: 0.2, high: 0.2, dual: None };
    let weights = part_weights(&[vec![(0, 1), (0, 1)]], Aggregation::SeqMeanTokenSum).concat();
    let courses = courses(&THETA, clarifier);
    let mut gradient = [0.0; CAPTIONS];
    for first in &courses {
        for second in &courses {
            let pair = [first, second];
            let group = pair.map(|(_, outcome, _)| vec![*outcome]).to_vec();
            let advantages = by_outcome(&[group], &PAYMENT, tiers, normalizer).unwrap().values.concat();
            for ((&(caption, ..), advantage), weight) in pair.into_iter().zip(advantages).zip(&weights) {
                let logp = policy[caption].ln();
                let (loss, _) = surrogate(logp, logp, advantage, &clip);
                for (at, gradient) in gradient.iter_mut().enumerate() {
                    let score = f64::from(u8::from(at == caption)) - policy[at];
                    *gradient -= first.2 * second.2 * weight * loss.slope * score;
                }
            }
        }
    }
    gradient
}

fn distance(a: &Policy, b: &Policy) -> f64 {
    let far: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (far / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn courses_are_all_there_are() {
    for clarifier in [frozen as Clarifier, wired] {
        let sum: f64 = courses(&THETA, clarifier).iter().map(|(.., likely)| likely).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
    }
}

#[test]
fn the_policy_gradient_is_that_of_the_expected_reward_while_others_are_frozen() {
    let slope = differences(frozen);
    for tiers in [Tiers::Direct, Tiers::Decompose] {
        // Leaving itself out, a baseline biases nothing; a mean of two that includes it halves the gradient.
        for (normalizer, share) in [(Normalizer::Rloo, 1.0), (Normalizer::None, 0.5)] {
            let gradient = policy_gradient(frozen, tiers, &normalizer).map(|slope| slope / share);
            let far = distance(&gradient, &slope);
            assert!(far < 1e-8, "{tiers:?} {normalizer:?}: {gradient:?} for {slope:?}, off by {far:e}");
        }
    }
}

#[test]
fn a_policy_that_answers_its_own_requests_follows_another_gradient() {
    let slope = differences(wired);
    let gradient = policy_gradient(wired, Tiers::Direct, &Normalizer::Rloo);
    let far = distance(&gradient, &slope);
    assert!(far > 0.1, "{gradient:?} for {slope:?}, off by {far:e}");
    // What is missing is the slope of the replies: with those held as they are, all is well.
    let held = |theta: &Policy| {
        let paid = |(caption, outcome, _): &(usize, Outcome, f64), likely: f64| {
            likely * softmax(theta)[*caption] / softmax(&THETA)[*caption] * outcome.reward(&PAYMENT)
        };
        courses(&THETA, wired).iter().map(|course| paid(course, course.2)).sum::<f64>()
    };
    let by = 1e-5;
    let without: Policy = std::array::from_fn(|at| {
        let moved = |by: f64| {
            let mut theta = THETA;
            theta[at] += by;
            held(&theta)
        };
        (moved(by) - moved(-by)) / (2.0 * by)
    });
    assert!(distance(&gradient, &without) < 1e-8, "{gradient:?} for {without:?}");
}
