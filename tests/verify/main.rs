//! The answer verifier: the cases its rules were written from, what models really write, and what they might.

mod hostile;
mod models;

use pellucid::task::verify::{AnswerType, Gold, Grade, OnInvalidGold, Policy, Rule, Verdict, grade};

/// Id, response, gold, and whether the one is right by the other.
type Case = (&'static str, &'static str, &'static str, u8);

/// Where graders agree.
const COMMON: &[Case] = &[
    ("V01", r"\boxed{\frac{1}{2}}", r"0.5", 1),
    ("V02", r"\boxed{1/2}", r"\frac{1}{2}", 1),
    ("V03", r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", 1),
    ("V04", r"\boxed{\frac34}", r"\frac{3}{4}", 1),
    ("V05", r"\boxed{2\frac{1}{2}}", r"\frac{5}{2}", 1),
    ("V06", r"\boxed{-\frac{3}{5}}", r"\frac{-3}{5}", 1),
    ("V07", r"\boxed{0.333}", r"\frac{1}{3}", 0),
    ("V08", r"\boxed{0.3333333}", r"\frac{1}{3}", 1),
    ("V09", r"\boxed{3.0}", r"3", 1),
    ("V10", r"\boxed{1,234}", r"1234", 1),
    ("V11", r"\boxed{1{,}234}", r"1234", 1),
    ("V12", r"\boxed{1.2\times10^{3}}", r"1200", 1),
    ("V13", r"\boxed{2^{10}}", r"1024", 1),
    ("V14", r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1),
    ("V15", r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt{2}}{2}", 1),
    ("V16", r"\boxed{\frac{\sqrt{3}}{2}}", r"\frac{\sqrt3}{2}", 1),
    ("V17", r"\boxed{3.14}", r"\pi", 0),
    ("V18", r"\boxed{50\%}", r"0.5", 1),
    ("V19", r"\boxed{50\%}", r"50", 1),
    ("V20", r"\boxed{50}", r"50\%", 1),
    ("V21", r"\boxed{5}", r"50\%", 0),
    ("V22", r"\boxed{12\text{ cm}}", r"12", 1),
    ("V23", r"\boxed{12}", r"12\text{ cm}^2", 1),
    ("V24", r"\boxed{60^\circ}", r"60", 1),
    ("V25", r"\boxed{60 degrees}", r"60", 1),
    ("V26", r"\boxed{\$18.90}", r"18.90", 1),
    ("V27", r"\boxed{0.5\text{ m}}", r"50\text{ cm}", 0),
    ("V28", r"\boxed{x=5}", r"5", 1),
    ("V29", r"\boxed{5}", r"x=5", 1),
    ("V30", r"\boxed{(x+1)^2}", r"x^2+2x+1", 1),
    ("V31", r"\boxed{2y+3}", r"2x+3", 0),
    ("V32", r"\boxed{\{1,2,3\}}", r"\{3,2,1\}", 1),
    ("V33", r"\boxed{\{1,2\}}", r"\{1,2,3\}", 0),
    ("V34", r"\boxed{(1,2)}", r"(2,1)", 0),
    ("V35", r"\boxed{1,2}", r"\{1,2\}", 1),
    ("V36", r"\boxed{2, 1}", r"1, 2", 1),
    ("V37", r"\boxed{[0,1)}", r"[0,1]", 0),
    ("V38", r"\boxed{(2,\infty)}", r"x>2", 1),
    ("V39", r"\boxed{x>2}", r"(2,\infty)", 0),
    ("V40", r"\boxed{(-\infty,1)\cup(3,\infty)}", r"(3,\infty)\cup(-\infty,1)", 1),
    ("V41", r"\boxed{-4}", r"4", 0),
    ("V42", r"\boxed{\pm 2}", r"\{2,-2\}", 1),
    ("V43", r"First \boxed{3}. Correction: \boxed{4}", r"4", 1),
    ("V44", r"First \boxed{4}. Correction: \boxed{3}", r"4", 0),
    ("V45", r"The answer is \boxed{7", r"7", 0),
    ("V46", r"", r"7", 0),
    ("V47", r"\boxed{(C)}", r"C", 1),
    ("V48", r"\boxed{\text{D}}", r"D", 1),
    ("V49", r"\boxed{a}", r"A", 1),
    ("V50", r"\boxed{AB}", r"B", 0),
    ("V51", r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", 1),
    ("V52", r"\boxed{2.5000001}", r"2.5", 1),
    ("V53", r"\boxed{2.51}", r"2.5", 0),
    ("V54", r"\boxed{3+2i}", r"2i+3", 1),
];

/// Where this grader knows better than the usual ones.
const OWN: &[Case] = &[
    ("W01", r"The final answer is 42.", r"42", 0),
    ("W02", r"\boxed{B. 45^\circ}", r"B", 1),
    ("W03", r"no box here", r"None", 0),
    ("W04", r"\boxed{3 \text{ or } 4}", r"3", 0),
    ("W05", r"\boxed{A \text{ or } B}", r"A", 0),
    ("W06", r"\boxed{1,2,3,4,5}", r"3", 0),
    ("W07", r"\boxed{3} or \boxed{4}", r"3", 0),
    ("W08", r"\boxed{9^{9^{9^{9}}}}", r"7", 0),
    ("W09", r"\boxed{１２}", r"12", 1),
    ("W10", r"\boxed{12厘米}", r"12", 1),
    ("W11", r"\boxed{A(1,2)}", r"(1,2)", 1),
    ("W12", r"\boxed{\sin 30^\circ}", r"\frac12", 1),
    ("W13", r"\boxed{True}", r"true", 1),
    ("W14", r"\boxed{3,5}", r"3.5", 0),
    ("W15", r"\boxed{3:4}", r"\frac{3}{4}", 1),
    ("W16", r"\boxed{\approx 3.14}", r"3.14", 1),
    ("W20", r"\boxed{\log_2 8}", r"3", 1),
];

fn strings(choices: &[&str]) -> Vec<String> {
    choices.iter().map(|choice| choice.to_string()).collect()
}

fn plain(response: &str, gold: &str) -> Grade {
    grade(response, gold, None, &[], &Policy::default())
}

/// Grades an answer without a box around it.
fn says(answer: &str, gold: &str) -> bool {
    says_under(&Policy::default(), answer, gold)
}

fn says_under(policy: &Policy, answer: &str, gold: &str) -> bool {
    let gold = Gold::parse(gold, None, &[], policy).expect("the gold is valid");
    gold.grade_answer(answer, policy).verdict == Verdict::Right
}

fn verdict(right: bool) -> Verdict {
    if right { Verdict::Right } else { Verdict::Wrong }
}

#[test]
fn the_common_cases() {
    assert_eq!(COMMON.len(), 54);
    hold(COMMON);
}

#[test]
fn our_own_cases() {
    hold(OWN);
}

fn hold(cases: &[Case]) {
    let wrong: Vec<String> = cases
        .iter()
        .map(|&(id, response, gold, right)| (id, plain(response, gold), right))
        .filter(|(_, grade, right)| grade.verdict != verdict(*right == 1))
        .map(|(id, grade, _)| format!("{id}: {grade:?}"))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn choices_by_letter_and_content() {
    let policy = Policy::default();
    for (id, response, gold, choices, wanted, right, rule) in [
        ("W17", r"\boxed{45^\circ}", "B", &["30°", "45°", "60°"][..], None, true, Rule::ChoiceContent),
        ("W18", r"\boxed{45}", "B", &["45", "45°"], None, false, Rule::ChoiceAmbiguous),
        ("W19", r"\boxed{B, A}", "AB", &[], Some(AnswerType::MultiChoice), true, Rule::MultiChoice),
        ("labels", r"\boxed{30^\circ}", "A", &["A. 30°", "B. 45°"], None, true, Rule::ChoiceContent),
        ("gold by content", r"\boxed{B}", "45", &["30", "45"], None, true, Rule::Choice),
        (
            "both by content",
            r"\boxed{\text{Blue}}",
            "blue",
            &["red", "blue"],
            None,
            true,
            Rule::ChoiceContent,
        ),
        ("value of another", r"\boxed{30}", "B", &["30", "45"], None, false, Rule::ChoiceContent),
        ("several at once", r"\boxed{A, B}", "B", &["30", "45"], None, false, Rule::Hedge),
        ("no such letter", r"\boxed{E}", "B", &["30", "45"], None, false, Rule::ChoiceContent),
        ("several wanted", r"\boxed{AC}", "A, C", &["1", "2", "3"], None, true, Rule::MultiChoice),
        ("one of several", r"\boxed{A}", "A, C", &["1", "2", "3"], None, false, Rule::MultiChoice),
        ("several or", r"\boxed{A or C}", "A, C", &["1", "2", "3"], None, false, Rule::Hedge),
        ("not of options", r"\boxed{7}", "7", &["1", "7"], Some(AnswerType::Integer), true, Rule::Identical),
    ] {
        let grade = grade(response, gold, wanted, &strings(choices), &policy);
        assert_eq!((grade.verdict, grade.rule), (verdict(right), rule), "{id}: {grade:?}");
    }
    let strict = Policy { map_choices: false, ..Policy::default() };
    let grade = grade(r"\boxed{45}", "B", None, &strings(&["30", "45"]), &strict);
    assert_eq!((grade.verdict, grade.rule), (Verdict::Wrong, Rule::Unreadable));
}

#[test]
fn rules_say_what_decided() {
    for (response, gold, rule) in [
        ("", "7", Rule::NoAnswer),
        (r"\boxed{None}", "7", Rule::Unreadable),
        (r"\boxed{7}", "7", Rule::Identical),
        (r"\boxed{7.0}", "7", Rule::Integer),
        (r"\boxed{7.1}", "7.2", Rule::Float),
        (r"\boxed{50\%}", "0.5", Rule::Percent),
        (r"\boxed{x + x}", "2x", Rule::Expression),
        (r"\boxed{3, 4}", "3", Rule::Hedge),
        (r"\boxed{9^{9^{9^{9}}}}", "7", Rule::Guard),
        (r"\boxed{1001!}", "7", Rule::Guard),
        (r"\boxed{1e10001}", "7", Rule::Guard),
        (r"\boxed{(2, 1)}", "(1, 2)", Rule::Tuple),
        (r"\boxed{(1, 2]}", "[1, 2]", Rule::Interval),
        (r"\boxed{\frac{1}{2}", "1", Rule::NoAnswer),
        (r"\boxed{(1}", "1", Rule::Unreadable),
    ] {
        assert_eq!(plain(response, gold).rule, rule, "{response} for {gold}");
    }
    let json = serde_json::to_string(&plain(r"\boxed{yes}", "yes")).unwrap();
    assert_eq!(json, r#"{"verdict":1,"extracted":"yes","rule":"yesno"}"#);
    let json = serde_json::to_string(&plain("yes", "")).unwrap();
    assert_eq!(json, r#"{"verdict":"invalid_gold","extracted":null,"rule":"invalid_gold"}"#);
}

#[test]
fn policies_change_what_they_say() {
    let default = Policy::default();
    let lenient = Policy { strict_box: false, ..default.clone() };
    for (response, gold, right) in [
        ("The final answer is 42.", "42", true),
        ("The answer is 42 because 6 times 7 gives it", "42", false),
        ("It comes to 42", "42", true),
        ("**Answer:** (B)", "B", true),
        ("I choose B", "B", true),
        ("The answer is 12 cm.", "12", true),
        ("The answer is $x = 3$.", "3", true),
        ("no idea", "42", false),
        (r"The answer is 41. \boxed{42}", "42", true),
    ] {
        let grade = grade(response, gold, None, &[], &lenient);
        assert_eq!(grade.verdict, verdict(right), "{response}: {grade:?}");
    }
    assert!(!says_under(&Policy { percent: false, ..default.clone() }, "50%", "0.5"));
    assert!(says_under(&Policy { percent: false, ..default.clone() }, "50%", "50"));
    let converting = Policy { convert_units: true, ..default.clone() };
    assert!(says_under(&converting, "0.5 m", "50 cm") && !says_under(&default, "0.5 m", "50 cm"));
    assert!(says_under(&converting, "90 km/h", "25 m/s"));
    assert!(!says_under(&converting, "50 m", "50 cm"));
    assert!(!says_under(&converting, "50 kg", "50 cm") && says_under(&converting, "50", "50 cm"));
    let loose = Policy { rel_tol: 0.05, ..default.clone() };
    assert!(says_under(&loose, "10.4", "10.1") && !says_under(&loose, "10.7", "10.1"));
    assert!(!says_under(&loose, "104", "100"));
    let chart = grade(r"\boxed{104}", "100", Some(AnswerType::Float), &[], &loose);
    assert_eq!(chart.verdict, Verdict::Right);
    let tail = Policy { tail_chars: 10, ..default.clone() };
    assert_eq!(grade(r"\boxed{1} and a lot of text", "1", None, &[], &tail).rule, Rule::NoAnswer);
    for (on, wanted) in [
        (OnInvalidGold::Drop, Verdict::InvalidGold),
        (OnInvalidGold::Zero, Verdict::Wrong),
        (OnInvalidGold::One, Verdict::Right),
    ] {
        let policy = Policy { invalid_gold: on, ..default.clone() };
        assert_eq!(grade(r"\boxed{1}", r"\frac{1", None, &[], &policy).verdict, wanted);
    }
}

#[test]
fn golds_are_read_or_refused_with_the_reason() {
    use AnswerType::*;
    let parse = |gold: &str, wanted, choices: &[&str]| {
        Gold::parse(gold, wanted, &strings(choices), &Policy::default())
    };
    for (gold, kind) in [
        ("C", Choice),
        ("(C)", Choice),
        ("A, C", MultiChoice),
        ("No", YesNo),
        ("42", Integer),
        ("5.0", Integer),
        ("2.5", Float),
        (r"\pi", Float),
        ("2x", Expression),
        ("y = 2x", Equation),
        ("(1, 2)", Tuple),
        (r"\{1, 2\}", Set),
        ("1, 2", Set),
        (r"\begin{pmatrix}1\end{pmatrix}", Matrix),
        ("red circle", Text),
        ("ABC", Text),
        ("12 apples", Integer),
    ] {
        assert_eq!(parse(gold, None, &[]).unwrap().answer_type(), kind, "{gold}");
    }
    for (gold, wanted, choices, reason) in [
        ("", None, &[][..], "empty"),
        (" . ", None, &[], "empty"),
        (r"\frac{1", None, &[], "brackets do not match"),
        ("3+*4", None, &[], "cannot be read"),
        (r"\frac{1}{0}", None, &[], "has no value"),
        ("9^{9^9}", None, &[], "too large"),
        ("2.5", Some(Integer), &[], "no answer of the stated type"),
        ("red", Some(Float), &[], "no answer of the stated type"),
        ("maybe", Some(YesNo), &[], "neither yes nor no"),
        ("12", Some(Choice), &[], "no letter of an option"),
        ("F", None, &["1", "2"], "none of the 2 options"),
        ("7.00", None, &["7", "7.0"], "fits 2 options"),
    ] {
        let fault = parse(gold, wanted, choices).expect_err(gold).to_string();
        assert!(fault.contains(reason), "{gold}: {fault}");
    }
    assert!(parse(&"1".repeat(513), None, &[]).is_err());
    assert_eq!(AnswerType::named("multi-choice"), Some(MultiChoice));
    assert_eq!(AnswerType::named("prose"), None);
    assert!(AnswerType::names().ends_with("text"));
}
