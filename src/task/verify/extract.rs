//! Where in a response the answer stands.

/// What follows the reasoning: an answer inside it is not given. Reasoning that never ends leaves nothing.
pub(super) fn after_reasoning(response: &str) -> &str {
    if let Some((_, after)) = response.rsplit_once("</think>") {
        return after;
    }
    if response.contains("<think>") { "" } else { response }
}

/// The last characters of a text, at most so many.
pub(super) fn tail(text: &str, characters: usize) -> &str {
    match characters.checked_sub(1).and_then(|last| text.char_indices().rev().nth(last)) {
        Some((start, _)) => &text[start..],
        None if characters == 0 => "",
        None => text,
    }
}

/// The content of the last `\boxed{…}` or `\fbox{…}` whose braces match, the inner one where one holds another.
pub(super) fn boxed(response: &str) -> Option<&str> {
    let bytes = response.as_bytes();
    let mut open: Vec<(usize, bool)> = Vec::new(); // where each open brace's content starts, and whether it is a box
    let mut best: Option<(usize, usize)> = None;
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => {
                let name = ["\\boxed", "\\fbox"].into_iter().find(|name| response[i..].starts_with(name));
                let after = i + name.map_or(2, str::len);
                let brace = after + bytes.get(after..).map_or(0, leading_spaces);
                if name.is_some() && bytes.get(brace) == Some(&b'{') {
                    open.push((brace + 1, true));
                    i = brace;
                } else {
                    i = after - 1;
                }
            }
            b'{' => open.push((i + 1, false)),
            b'}' => {
                if let Some((start, true)) = open.pop()
                    && best.is_none_or(|(other, _)| start > other)
                {
                    best = Some((start, i));
                }
            }
            _ => {}
        }
        i += 1;
        while !response.is_char_boundary(i.min(bytes.len())) {
            i += 1;
        }
    }
    best.map(|(start, end)| &response[start..end])
}

fn leading_spaces(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// What follows the last "answer is" or "answer:", up to the end of its sentence.
pub(super) fn announced(response: &str) -> Option<&str> {
    let lower = response.to_ascii_lowercase(); // of the same length, byte for byte
    let at = lower.rmatch_indices("answer").find_map(|(at, word)| {
        let after = &lower[at + word.len()..];
        let rest = after.trim_start_matches(['*', ' ', '_']);
        let rest = rest.strip_prefix("is").filter(|rest| !rest.starts_with(char::is_alphanumeric));
        let rest = rest.or_else(|| after.trim_start_matches(['*', ' ', '_']).strip_prefix(':'))?;
        let rest = rest.trim_start_matches(['*', ':', ' ', '_', '\n']);
        Some(lower.len() - rest.len())
    })?;
    let line = response[at..].lines().next().unwrap_or_default();
    let sentence = line.split_once(". ").map_or(line, |(sentence, _)| sentence);
    let sentence = sentence.trim_end_matches(['.', '*', ' ', '_']);
    (!sentence.is_empty()).then_some(sentence)
}

/// The last number in a text, with its sign.
pub(super) fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let inside = |i: &usize| {
        let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
        digit(*i) || (matches!(bytes[*i], b'.' | b',' | b'/') && *i > 0 && digit(i - 1) && digit(i + 1))
    };
    let start = (0..end).rev().take_while(inside).last()?;
    let signed =
        start > 0 && bytes[start - 1] == b'-' && (start < 2 || !bytes[start - 2].is_ascii_alphanumeric());
    Some(&text[start - usize::from(signed)..end])
}

/// The last letter that stands alone, as an option does.
pub(super) fn last_letter(text: &str) -> Option<&str> {
    let mut words = text.split(|c: char| !c.is_alphanumeric());
    words.rfind(|word| word.len() == 1 && word.as_bytes()[0].is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_that_closes() {
        for (response, answer) in [
            ("\\boxed{3} then \\boxed{4}", Some("4")),
            ("\\boxed{3} then \\boxed{4", Some("3")),
            ("\\boxed{\\frac{1}{2}}", Some("\\frac{1}{2}")),
            ("\\boxed {5}", Some("5")),
            ("\\boxed{a \\boxed{b} c}", Some("b")),
            ("\\boxed{\\{1, 2\\}}", Some("\\{1, 2\\}")),
            ("{ \\fbox{７} 厘", Some("７")),
            ("\\boxed{\\frac{1}{2 }", None),
            ("\\boxed 5 \\", None),
            ("}}} \\boxed", None),
            ("\\é\\boxed{é}", Some("é")),
        ] {
            assert_eq!(boxed(response), answer, "{response}");
        }
    }

    #[test]
    fn reasoning_gives_no_answer() {
        assert_eq!(after_reasoning("<think>\\boxed{1}</think> 2"), " 2");
        assert_eq!(after_reasoning("\\boxed{1}</think> 2"), " 2");
        assert_eq!(after_reasoning("<think>\\boxed{1}"), "");
        assert_eq!(after_reasoning("plain"), "plain");
    }

    #[test]
    fn the_tail_counts_characters() {
        assert_eq!(
            [tail("aéb", 2), tail("aéb", 3), tail("aéb", 9), tail("aéb", 0)],
            ["éb", "aéb", "aéb", ""]
        );
    }

    #[test]
    fn what_is_announced_without_a_box() {
        for (response, answer) in [
            ("So the answer is 42.", Some("42")),
            ("**Answer:** 7 cm. Done.", Some("7 cm")),
            ("The answer is: B", Some("B")),
            ("Answer is 3.5", Some("3.5")),
            ("the answer isn't clear", None),
            ("İ answer: x", Some("x")),
        ] {
            assert_eq!(announced(response), answer, "{response}");
        }
        assert_eq!(last_number("x-3 or -4.5."), Some("-4.5"));
        assert_eq!(last_number("from 3-7"), Some("7"));
        assert_eq!(last_number("none"), None);
        assert_eq!(last_letter("A or maybe (B)."), Some("B"));
    }
}
