//! What a model might write once it pays, and formulas of every sort: verdicts come, come soon, and are consistent.

use super::{plain, says};
use pellucid::task::verify::{Gold, Policy, Rule, Verdict, grade};
use proptest::prelude::*;

/// What a model might try once it pays: none of it may take long, and none of it may be right.
#[test]
fn hostile_answers_end_soon() {
    let deep = |open: &str, inside: &str, close: &str, times: usize| {
        format!(r"\boxed{{{}{inside}{}}}", open.repeat(times), close.repeat(times))
    };
    let begun = std::time::Instant::now();
    for response in [
        deep("(", "1", ")", 40),
        deep("(", "1", ")", 250),
        deep(r"\frac{1}{", "2", "}", 40),
        deep("-", "1", "", 500),
        deep("2^", "2", "", 200),
        deep(r"\sin", " x", "", 100),
        deep("|", "1", "", 500),
        deep("1,", "1", "", 250),
        deep("x+", "1", "", 250),
        deep(r"\pm", " 1", "", 100),
        deep("1:", "1", "", 250),
        deep("x=", "1", "", 250),
        deep("9!", "", "", 250),
        deep("1000!", "", "", 100),
        deep("2^{9999}", "", "", 60),
        deep("{", "", "}", 5_000),
        format!(r"\boxed{{{}}}", "9".repeat(600)),
        r"\boxed{".repeat(60_000),
        "<think>".repeat(60_000),
        "answer is ".repeat(60_000),
    ] {
        for gold in ["7", "x^2+1", r"\{1,2\}", "B", "red", r"\pm 3", "x > 2"] {
            let grade = plain(&response, gold);
            assert_eq!(grade.verdict, Verdict::Wrong, "{:.60} for {gold}: {grade:?}", response);
        }
    }
    let spent = begun.elapsed().as_secs_f64();
    assert!(spent < 20.0, "{spent} s for 140 gradings");
}

#[test]
fn large_numbers_are_told_apart() {
    assert!(says("2^{200}", "1606938044258990275541962092341162602522202993782792835301376"));
    assert!(!says("2^{200}+1", "1606938044258990275541962092341162602522202993782792835301376"));
    assert!(says("9007199254740993", "9007199254740993") && !says("9007199254740992", "9007199254740993"));
    assert!(says("10^{400}", r"10^{399} \cdot 10") && !says("10^{400}", "10^{401}"));
    assert!(!says(r"\infty", "10^{400}") && says(r"+\infty", r"\infty") && !says(r"-\infty", r"\infty"));
}

/// Pieces that formulas are made of, in no sensible order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "1",
        "2",
        "34",
        "0.5",
        "x",
        "y",
        "n",
        "e",
        "i",
        " ",
        "+",
        "-",
        "*",
        "/",
        "^",
        "_",
        "=",
        "<",
        ">",
        "!",
        "|",
        "%",
        ",",
        ";",
        ":",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        r"\{",
        r"\}",
        "$",
        r"\$",
        "&",
        r"\\",
        "°",
        "é",
        "厘米",
        "±",
        "∪",
        "∞",
        r"\frac",
        r"\frac{1}{2}",
        r"\sqrt",
        r"\sqrt[3]",
        r"\sin",
        r"\log_",
        r"\pm",
        r"\infty",
        r"\pi",
        r"\text{",
        r"\text{ or }",
        r"\left",
        r"\right.",
        r"\boxed{",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\cup",
        r"\in",
        r"\mathbb{R}",
        r"\circ",
        r"\overline{",
        r"\lfloor",
        r"\rfloor",
        r"\binom",
        r"\,",
        r"\!",
        "{,}",
        "or",
        "and",
        "cm",
        "m",
        "million",
        "A",
        "B",
        "yes",
        "e5",
        "e99999",
        "answer is ",
        "</think>",
        "**",
        ".",
        "\\",
        "½",
        "²",
        "\u{200b}",
        "\n",
        "log",
        "sinx",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// Formulas that make sense.
fn formula() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (0u32..40).prop_map(|n| n.to_string()),
        prop::sample::select(vec!["x", "y", r"\pi", r"\sqrt{2}", r"\frac{2}{3}"]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}+{b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!(r"\frac{{{a}}}{{{b}+50}}")),
            inner.prop_map(|a| format!("({a})^2")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is written ends in a verdict, the same one each time.
    #[test]
    fn nothing_panics(response in pieces(), gold in pieces(), choices in prop::collection::vec(pieces(), 0..3)) {
        for strict_box in [true, false] {
            let policy = Policy { strict_box, convert_units: true, ..Policy::default() };
            for choices in [&[][..], &choices] {
                let first = grade(&response, &gold, None, choices, &policy);
                prop_assert_eq!(&first, &grade(&response, &gold, None, choices, &policy));
                if let Ok(gold) = Gold::parse(&gold, None, choices, &policy) {
                    gold.grade_answer(&response, &policy);
                }
            }
        }
    }

    /// A gold answers itself.
    #[test]
    fn a_gold_is_right(gold in pieces()) {
        let policy = Policy::default();
        if let Ok(read) = Gold::parse(&gold, None, &[], &policy) && !gold.contains("boxed") {
            let grade = read.grade_answer(&gold, &policy);
            prop_assert!(grade.verdict == Verdict::Right || grade.rule == Rule::Hedge, "{:?} {:?}", grade, read);
        }
    }

    /// Formulas are equal both ways, to their sums in another order, and to nothing one larger.
    #[test]
    fn formulas_are_compared_both_ways(a in formula(), b in formula()) {
        let (sum, swapped) = (format!("{a}+{b}"), format!("{b}+{a}"));
        prop_assert!(says(&sum, &swapped) && says(&swapped, &sum));
        prop_assert_eq!(says(&a, &b), says(&b, &a));
        let (more, same) = (format!("{a}+1"), format!(r"\frac{{2 ({a})}}{{2}}"));
        prop_assert!(says(&same, &a));
        // Rational numbers are told apart whatever their size, others within rounding.
        let rounded = a.contains("pi") || a.contains("sqrt");
        prop_assert!(rounded || !says(&more, &a));
    }
}
