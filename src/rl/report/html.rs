//! Markup that is well-formed by construction: every element closes, every text and value is escaped.

use std::fmt::{Display, Write};

/// Names and values of an element's attributes.
pub(super) type Attributes<'a> = &'a [(&'a str, &'a dyn Display)];

/// A page under way.
#[derive(Debug, Default)]
pub(super) struct Html {
    written: String,
}

impl Html {
    /// An element and what is in it.
    pub(super) fn element(&mut self, tag: &str, attributes: Attributes<'_>, inside: impl FnOnce(&mut Html)) {
        self.open(tag, attributes);
        self.written.push('>');
        inside(self);
        self.put(format_args!("</{tag}>"));
    }

    /// An element of words alone.
    pub(super) fn leaf(&mut self, tag: &str, attributes: Attributes<'_>, text: impl Display) {
        self.element(tag, attributes, |html| html.text(text));
    }

    /// An element with nothing in it.
    pub(super) fn empty(&mut self, tag: &str, attributes: Attributes<'_>) {
        self.open(tag, attributes);
        self.written.push_str("/>");
    }

    /// Words.
    pub(super) fn text(&mut self, text: impl Display) {
        let plain = text.to_string();
        self.escaped(&plain);
    }

    /// The whole document.
    pub(super) fn document(self) -> String {
        format!("<!DOCTYPE html>\n{}\n", self.written)
    }

    /// A style sheet of our own: the one text that is not escaped.
    pub(super) fn style(&mut self, sheet: &'static str) {
        self.put(format_args!("<style>{sheet}</style>"));
    }

    fn open(&mut self, tag: &str, attributes: Attributes<'_>) {
        self.put(format_args!("<{tag}"));
        for (name, value) in attributes {
            let value = value.to_string();
            self.put(format_args!(" {name}=\""));
            self.escaped(&value);
            self.written.push('"');
        }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.written.write_fmt(text).expect("a String takes everything");
    }

    /// Characters that mean something here by their numbers; those that no page should hold as the mark for that.
    fn escaped(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' | '<' | '>' | '"' | '\'' => self.put(format_args!("&#{};", c as u32)),
                '\n' | '\t' => self.written.push(c),
                c if c.is_control() || unfit(c) => self.written.push('\u{fffd}'),
                c => self.written.push(c),
            }
        }
    }
}

/// What is no character, and what turns the direction of the characters after it.
fn unfit(c: char) -> bool {
    matches!(c, '\u{fffe}' | '\u{ffff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A coordinate: a tenth of a unit is finer than any screen.
#[derive(Debug, Clone, Copy)]
pub(super) struct At(pub(super) f64);

impl Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rounded = (10.0 * self.0).round() / 10.0 + 0.0; // no −0
        rounded.fmt(f)
    }
}

/// A share as a percentage with one digit behind the point.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A number with three digits that count, in words of powers where it is very small or large.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let exponent = value.abs().log10().floor();
    if !(-4.0..6.0).contains(&exponent) {
        return powers(value);
    }
    let digits = (2.0 - exponent).max(0.0) as usize;
    let text = format!("{value:.digits$}");
    let short = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    short.replace('-', "−")
}

/// A probability as papers print it.
pub(super) fn probability(p: f64) -> String {
    if p >= 0.001 { format!("{p:.3}") } else { powers(p) }
}

/// 1.2×10⁻⁷.
fn powers(value: f64) -> String {
    let text = format!("{value:.1e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let raised = |c: char| match c {
        '-' => '⁻',
        digit => digit.to_digit(10).and_then(|d| "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(d as usize)).unwrap_or(digit),
    };
    format!("{}×10{}", digits.replace('-', "−"), exponent.chars().map(raised).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_said_stays_text() {
        let mut html = Html::default();
        let odd = "</p><script>alert('1')</script>&amp;\u{0}\u{202e}\u{5d0}\n";
        html.element("p", &[("title", &odd)], |html| html.text(odd));
        let escaped = "&#60;/p&#62;&#60;script&#62;alert(&#39;1&#39;)&#60;/script&#62;&#38;amp;\u{fffd}\u{fffd}\u{5d0}\n";
        assert_eq!(html.document(), format!("<!DOCTYPE html>\n<p title=\"{escaped}\">{escaped}</p>\n"));
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (-12.3456, "−12.3"),
            (1234.0, "1234"),
            (5e-4, "0.0005"),
            (1.24e-9, "1.2×10⁻⁹"),
            (2_500_000.0, "2.5×10⁶"),
            (9.9999, "10"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(probability(0.0573), "0.057");
        assert_eq!(probability(2.383e-218), "2.4×10⁻²¹⁸");
        assert_eq!(At(-0.01).to_string(), "0");
        assert_eq!(At(12.3456).to_string(), "12.3");
    }
}
