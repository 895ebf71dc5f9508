//! Whether a caption gives the answer away instead of describing what leads to it (PRCO, section 3).
//!
//! By rule: words that announce an answer, with one behind them; an option called right; a box. That the right answer
//! *occurs* in a caption is no leak, for it may be written in the picture: the rule sees no question and no gold answer.
//! By model: somebody who reads both question and caption says yes or no.

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// How leaks are looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeakCheck {
    /// Not at all.
    Off,
    /// By words.
    #[default]
    Rule,
    /// By asking the model, without its adapter.
    Model,
}

/// Whether words announce an answer.
pub fn by_rule(caption: &str) -> bool {
    // A caption that a pattern gives up on has not been shown to leak.
    PATTERNS.iter().any(|pattern| pattern.is_match(caption).unwrap_or(false))
}

static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    // "(b)", "**C**", "B because", but not the article of "A line" or "a line".
    let letter = r"(?: \(\s*[A-Ha-h]\s*\)
        | \*{0,2} (?: [B-H]\b(?!['’]) | A\b(?!['’]|\s+[a-z]) | [b-h]\b(?=\W*$|[.,;)]) | a(?=\s*$|[.;)]) ) )";
    let value = r"(?: [-+−]?\s* (?: \.?\d | \\[dt]?frac | \\sqrt | \\pi | π )
        | (?i: yes | no | true | false )\b(?!\s+\w) )";
    let between = r"(?: [\s:*$(] | \\\(
        | \b(?i: the | option | choice | letter | approximately | about | simply | exactly | equal\s+to )\b )*";
    let answer = format!(r"(?= [\s:*$(\\∴\d] ) {between} (?: {value} | {letter} )");
    let equals = r"(?: \s[^.!?\n]{0,120}? (?: = | \b(?: is | are | equals )\b ) )?";
    let patterns = [
        r"\\boxed \s* \{ \s* [^\s}]".to_owned(),
        format!(
            r"(?i: \b(?: answer | solution ) (?: \s+to\s+(?:this|the)\s+(?:question|problem) )? \s* \*{{0,2}} \s*
            (?: is | = | : | equals | (?: must | would | should | will )\s+be ) ) {answer}"
        ),
        format!(
            r"(?i: \b correct\s+(?: option | choice | answer | one ) \s* (?: is | (?:would|must)\s+be | : | = )? )
            {answer}"
        ),
        format!(
            r"(?: (?i: \b(?: therefore | thus | hence | consequently )\b ) [,:]? | ∴ ) {equals} {answer}"
        ),
        format!(
            r"(?i: \b(?: option | choice | answer ) ) \s* {letter} \s*
            (?i: is | (?:must|would)\s+be ) \s* (?i: the\s+ )? (?i: correct | right | answer )\b"
        ),
        format!(
            r"(?i: \b(?: choose | select | pick )\s+(?: option | choice | answer | letter ) ) \s* {letter}"
        ),
    ];
    let compiled = |pattern| Regex::new(&format!("(?x){pattern}")).expect("is a pattern");
    patterns.map(compiled).into()
});

/// Tokens a model has for its reply: some think first.
pub const LONGEST_REPLY: usize = 512;

/// What a model is asked, with places for `{question}` and `{caption}`.
pub const ASK: &str = "Somebody described an image for a reader who cannot see it and has to answer a question about it. \
    Does the description state or directly imply a final answer or choice, instead of only describing what can be seen? \
    What is read off the image (labels, lengths, counts, the texts of options) is evidence and no answer, even if the \
    answer follows from it. Reply with one word, YES or NO.\n\nQuestion: {question}\n\nDescription: {caption}";

/// What it says; None where it says neither or both.
pub fn said(reply: &str) -> Option<bool> {
    let spoken = reply.rsplit_once("</think>").map_or(reply, |(_, after)| after);
    let words = spoken.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
    let verdicts: Vec<bool> = words
        .filter_map(|word| match word.as_str() {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        })
        .collect();
    let first = *verdicts.first()?;
    verdicts.iter().all(|verdict| *verdict == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captions as captioners write them, each with whether it gives the answer away; labelled by hand, by those who wrote
    /// the rule.
    const LABELLED: [(&str, bool); 60] = [
        // Evidence, some of which holds the answer.
        ("AB = 5, BC = 7", false),
        ("- Triangle ABC with AB = 5 cm and angle C = 90°\n- The side BC is labelled x", false),
        ("The option B reads 45°, option C reads 60°.", false),
        ("Answer choices: (A) 12 (B) 15 (C) 18", false),
        ("Options are A: 3, B: 4, C: 5 and D: none.", false),
        ("The answer is not shown in the picture.", false),
        ("The answer box is empty.", false),
        ("There is a line labelled 'Answer:' followed by a blank.", false),
        ("Therefore a line meets it at P.", false),
        ("A line passes through A, thus the points A, B and C are collinear.", false),
        ("The bar for 2019 is the tallest, at 45.", false),
        ("The correct reading of the scale needs its unit, which is kg.", false),
        ("Point A is at (2, 3). Point B is at (5, 7).", false),
        ("A select button stands below a picture of a cat.", false),
        ("The pie chart shows 40% red, 35% blue and 25% green.", false),
        ("The solution in the beaker is blue.", false),
        ("The solution is heated to 80 degrees by a burner.", false),
        ("The figure shows a circle with centre O and radius 6.", false),
        ("A is the midpoint of BC and D lies on AC.", false),
        ("The function f is drawn from x = -2 to x = 4; it crosses the axis at 1.", false),
        ("There are 3 apples, 2 pears and no bananas.", false),
        ("", false),
        ("The caption of the table says: \"Thus spoke Zarathustra\".", false),
        ("The sign says NO PARKING; true north points up.", false),
        ("The student must answer five questions on the sheet.", false),
        ("The answer sheet has rows 1 to 10.", false),
        ("Hence the name: the ring is shaped like a horseshoe.", false),
        ("The question asks which option is correct. Option A: a cube. Option B: a cone.", false),
        ("An arrow points from choice B to choice D.", false),
        ("The graph of g is a parabola; its vertex is (1, -4).", false),
        // Answers.
        ("The answer is 12.", true),
        ("so the correct option is (B)", true),
        ("Therefore, 7", true),
        ("Answer: C", true),
        ("\\boxed{3}", true),
        ("correct answer is the option d", true),
        ("**Answer:** 45°", true),
        ("The final answer is $\\frac{1}{2}$.", true),
        ("The sides are 3 and 4. Therefore, the hypotenuse is 5.", true),
        ("Thus x = 12.", true),
        ("Hence the area equals 24 cm².", true),
        ("∴ x = 3", true),
        ("Option B is correct because the line is steeper.", true),
        ("The correct choice is A.", true),
        ("You should choose option C.", true),
        ("The answer must be D since the others are too small.", true),
        ("The answer to the question is yes.", true),
        ("The solution is x = 4, so the answer is 4.", true),
        ("Answer is B", true),
        ("The correct answer: 18", true),
        ("The answer would be approximately 3.14.", true),
        ("- three red dots\n- therefore the number of dots is 3", true),
        ("The answer is -2.", true),
        ("The answer is \\(\\sqrt{2}\\).", true),
        ("Choice (A) is the correct one.", true),
        ("Answer: True", true),
        // Answers that the rule does not see; a model may.
        ("Clearly the tallest child is Anna, who is who the question is about.", true),
        ("It has to be the second option.", true),
        ("Adding them up gives 17, which is what is asked for.", true),
        ("The answer is Paris.", true),
    ];

    #[test]
    fn the_rule_is_precise_and_finds_most() {
        let found =
            |leaks: bool| LABELLED.iter().filter(move |(caption, label)| *label == leaks && by_rule(caption));
        let wrong: Vec<&str> = found(false).map(|(caption, _)| *caption).collect();
        assert!(wrong.is_empty(), "no leaks: {wrong:?}");
        let missed: Vec<&str> =
            LABELLED.iter().filter(|(caption, label)| *label && !by_rule(caption)).map(|(c, _)| *c).collect();
        // Precision 1, recall 26 of 30: those at the end of the list.
        assert_eq!(missed, LABELLED[56..].iter().map(|(caption, _)| *caption).collect::<Vec<_>>());
    }

    #[test]
    fn long_captions_take_no_longer_than_their_length() {
        let long = "therefore ".repeat(20_000) + &"(".repeat(20_000);
        assert!(!by_rule(&long));
    }

    #[test]
    fn a_model_says_yes_or_no() {
        for (reply, verdict) in [
            ("YES", Some(true)),
            ("no.", Some(false)),
            ("**No**", Some(false)),
            ("<think>it says yes there, or no</think>\nYES", Some(true)),
            ("Yes, it states the answer. Yes.", Some(true)),
            ("Yes and no", None),
            ("It does.", None),
            ("nothing", None),
            ("", None),
        ] {
            assert_eq!(said(reply), verdict, "{reply}");
        }
    }
}
