//! One spelling for what people write in many: full-width digits, kinds of minus, LaTeX that only sets type.
//!
//! What is left is plain characters with a few commands (`\frac`, `\sqrt`, names). Set braces become `⦃ ⦄`, so
//! that `{ }` only groups. This is not NFKC, which would turn 10² into 102: a raised digit becomes an exponent.

/// Commands that say how something looks or how large it is.
const LOOKS: &[&str] = &[
    "left",
    "right",
    "middle",
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "biggl",
    "biggr",
    "Biggl",
    "Biggr",
    "displaystyle",
    "textstyle",
    "limits",
    "nolimits",
    "quad",
    "qquad",
    "thinspace",
    "enspace",
    "rm",
    "bf",
    "it",
    "sf",
    "tt",
    "hfill",
    "mathstrut",
    "therefore",
    "checkmark",
];

/// Commands whose argument stands for itself.
const WRAPPERS: &[&str] = &[
    "text",
    "textbf",
    "textit",
    "textrm",
    "texttt",
    "textsf",
    "textnormal",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "mathtt",
    "mathnormal",
    "mathcal",
    "mbox",
    "hbox",
    "operatorname",
    "boldsymbol",
    "bm",
    "pmb",
    "emph",
    "underline",
    "boxed",
    "fbox",
    "mathop",
    "ensuremath",
];

/// Commands that are one character.
const CHARACTERS: &[(&str, char)] = &[
    ("le", '≤'),
    ("leq", '≤'),
    ("leqslant", '≤'),
    ("leqq", '≤'),
    ("ge", '≥'),
    ("geq", '≥'),
    ("geqslant", '≥'),
    ("geqq", '≥'),
    ("lt", '<'),
    ("gt", '>'),
    ("ne", '≠'),
    ("neq", '≠'),
    ("approx", '≈'),
    ("simeq", '≈'),
    ("times", '*'),
    ("cdot", '*'),
    ("ast", '*'),
    ("star", '*'),
    ("div", '/'),
    ("slash", '/'),
    ("infty", '∞'),
    ("pi", 'π'),
    ("cup", '∪'),
    ("bigcup", '∪'),
    ("cap", '∩'),
    ("pm", '±'),
    ("mp", '∓'),
    ("in", '∈'),
    ("colon", ':'),
    ("mid", '|'),
    ("vert", '|'),
    ("lvert", '|'),
    ("rvert", '|'),
    ("lbrace", '⦃'),
    ("rbrace", '⦄'),
    ("lbrack", '['),
    ("rbrack", ']'),
    ("lparen", '('),
    ("rparen", ')'),
    ("langle", '⟨'),
    ("rangle", '⟩'),
    ("degree", '°'),
    ("circ", '°'),
    ("ldots", '…'),
    ("cdots", '…'),
    ("dots", '…'),
    ("emptyset", '∅'),
    ("varnothing", '∅'),
    ("prime", '\''),
    ("lor", '∨'),
    ("land", '∧'),
    ("percent", '%'),
    ("sim", '≈'),
    ("mu", 'μ'),
    ("Omega", 'Ω'),
];

/// Currency signs, which units policy has us ignore.
const CURRENCY: &str = "$€£¥₹";

/// The one spelling. Normalising again changes nothing.
pub(super) fn normalise(text: &str) -> String {
    let mut text = text.to_owned();
    // A pass may bring together what makes a new command; each shortens the text or uses up a spelling.
    for _ in 0..16 {
        let next = trim(&Pass::over(&text));
        if next == text {
            break;
        }
        text = next;
    }
    text
}

struct Pass {
    input: Vec<char>,
    at: usize,
    out: String,
    /// Whether `out` ends in a command's name, which a letter would lengthen.
    named: bool,
}

impl Pass {
    fn over(text: &str) -> String {
        let mut pass = Pass { input: text.chars().collect(), at: 0, out: String::new(), named: false };
        while let Some(c) = pass.next() {
            pass.read(c);
        }
        pass.out
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        Some(c)
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.input.get(self.at + ahead).copied()
    }

    fn starts(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c))
    }

    fn push(&mut self, c: char) {
        if c == ' ' && (self.out.is_empty() || self.out.ends_with(' ')) {
            return;
        }
        if self.named && c.is_ascii_alphabetic() {
            self.out.push(' ');
        }
        self.named = false;
        self.out.push(c);
    }

    fn push_all(&mut self, text: &str) {
        text.chars().for_each(|c| self.push(c));
    }

    fn read(&mut self, c: char) {
        match c {
            '\\' => self.command(),
            '{' if self.starts(",}") => {
                self.at += 2;
                // TeX's way to write a comma inside a number.
                let joins = self.out.ends_with(|c: char| c.is_ascii_digit())
                    && self.peek(0).is_some_and(|c| c.is_ascii_digit());
                if !joins {
                    self.push(',');
                }
            }
            '^' if self.starts("{°}") || self.starts("{ ° }") => {
                self.at += if self.starts("{°}") { 3 } else { 5 };
                self.push('°');
            }
            '^' if self.starts("°") => {}
            '^' if self.starts("\\circ") => {
                self.at += 5;
                self.push('°');
            }
            '^' if self.starts("{\\circ}") => {
                self.at += 7;
                self.push('°');
            }
            _ if CURRENCY.contains(c) => {}
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' => {}
            '\u{ff01}'..='\u{ff5e}' => {
                let plain = char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c);
                self.read(plain);
            }
            '<' | '>' | '!' if self.starts("=") => {
                self.at += 1;
                self.push(if c == '<' {
                    '≤'
                } else if c == '>' {
                    '≥'
                } else {
                    '≠'
                });
            }
            '√' => self.name("sqrt"),
            '∛' => self.push_all("\\sqrt[3]"),
            '‐'..='―' | '−' | '﹣' => self.push('-'),
            '×' | '·' | '⋅' | '∙' | '∗' | '•' => self.push('*'),
            '÷' | '⁄' | '∕' => self.push('/'),
            '⩽' | '≦' => self.push('≤'),
            '⩾' | '≧' => self.push('≥'),
            '≃' | '≅' | '∼' => self.push('≈'),
            '′' | '’' | '‘' => self.push('\''),
            '“' | '”' => self.push('"'),
            'º' | '˚' => self.push('°'),
            'µ' => self.push('μ'),
            '、' => self.push(','),
            '。' => self.push('.'),
            '∶' => self.push(':'),
            '~' => self.push(' '),
            '…' => self.push('…'),
            _ if c.is_whitespace() || c.is_control() => self.push(' '),
            _ => match (raised(c), vulgar(c)) {
                (Some(first), _) => {
                    let mut exponent = String::from(first);
                    while let Some(next) = self.peek(0).and_then(raised) {
                        exponent.push(next);
                        self.at += 1;
                    }
                    self.push_all(&format!("^{{{exponent}}}"));
                }
                (None, Some((above, below))) => self.push_all(&format!("\\frac{{{above}}}{{{below}}}")),
                (None, None) => self.push(c),
            },
        }
    }

    fn command(&mut self) {
        let letters = (0..).take_while(|&i| self.peek(i).is_some_and(|c| c.is_ascii_alphabetic())).count();
        if letters == 0 {
            return self.escaped();
        }
        let name: String = self.input[self.at..self.at + letters].iter().collect();
        self.at += letters;
        if LOOKS.contains(&name.as_str()) {
            let fence = ["left", "right"].contains(&name.as_str());
            if fence && self.peek(0) == Some('.') {
                self.at += 1; // a fence that is not drawn
            }
            self.push(' ');
        } else if WRAPPERS.contains(&name.as_str()) {
            self.unwrap();
        } else if name == "mathbb" {
            self.set_of_numbers();
        } else if let Some((_, c)) = CHARACTERS.iter().find(|(command, _)| *command == name) {
            self.push(*c);
        } else {
            match name.as_str() {
                "dfrac" | "tfrac" | "cfrac" => self.name("frac"),
                "dbinom" | "tbinom" => self.name("binom"),
                _ => self.name(&name),
            }
        }
    }

    fn name(&mut self, name: &str) {
        self.push('\\');
        self.out.push_str(name);
        self.named = true;
    }

    /// What follows a backslash and is no letter.
    fn escaped(&mut self) {
        match self.next() {
            Some('\\') => self.push_all("\\\\"),
            Some('{') => self.push('⦃'),
            Some('}') => self.push('⦄'),
            Some('!') => {}
            Some(',') => {
                // A thin space between groups of three digits only sets type.
                let digits = (0..4).take_while(|&i| self.peek(i).is_some_and(|c| c.is_ascii_digit())).count();
                if !(digits == 3 && self.out.ends_with(|c: char| c.is_ascii_digit())) {
                    self.push(' ');
                }
            }
            Some('#') => {}
            Some(';' | ':' | ' ' | '(' | ')' | '[' | ']' | '>' | '/') => self.push(' '),
            Some(c) => self.read(c),
            None => {}
        }
    }

    /// Puts an argument in place of its command, with spaces around.
    fn unwrap(&mut self) {
        while self.peek(0) == Some(' ') {
            self.at += 1;
        }
        if self.peek(0) == Some('*') && self.peek(1) == Some('{') {
            self.at += 1;
        }
        self.push(' ');
        if self.peek(0) == Some('{')
            && let Some(length) = matching(&self.input[self.at..])
        {
            self.input[self.at] = ' ';
            self.input[self.at + length] = ' ';
        }
    }

    /// `\mathbb{R}` or `\mathbb R`.
    fn set_of_numbers(&mut self) {
        let (letter, length) = match (self.peek(0), self.peek(1), self.peek(2)) {
            (Some('{'), Some(letter), Some('}')) => (letter, 3),
            (Some(' '), Some(letter), _) => (letter, 2),
            _ => return self.name("mathbb"),
        };
        let set = match letter {
            'R' => 'ℝ',
            'N' => 'ℕ',
            'Z' => 'ℤ',
            'Q' => 'ℚ',
            'C' => 'ℂ',
            _ => return self.name("mathbb"),
        };
        self.at += length;
        self.push(set);
    }
}

/// The distance from an opening brace to its closing one.
fn matching(text: &[char]) -> Option<usize> {
    let mut depth = 0;
    let mut escaped = false;
    for (i, &c) in text.iter().enumerate() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' if depth == 1 => return Some(i),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn raised(c: char) -> Option<char> {
    Some(match c {
        '¹' => '1',
        '²' => '2',
        '³' => '3',
        '⁰' => '0',
        '⁴'..='⁹' => char::from_u32(u32::from(c) - u32::from('⁴') + u32::from('4'))?,
        '⁻' => '-',
        'ⁿ' => 'n',
        _ => return None,
    })
}

fn vulgar(c: char) -> Option<(u8, u8)> {
    Some(match c {
        '½' => (1, 2),
        '⅓' => (1, 3),
        '⅔' => (2, 3),
        '¼' => (1, 4),
        '¾' => (3, 4),
        '⅕' => (1, 5),
        '⅖' => (2, 5),
        '⅗' => (3, 5),
        '⅘' => (4, 5),
        '⅙' => (1, 6),
        '⅚' => (5, 6),
        '⅛' => (1, 8),
        '⅜' => (3, 8),
        '⅝' => (5, 8),
        '⅞' => (7, 8),
        _ => return None,
    })
}

/// Without marks at the ends that belong to the sentence or its typesetting.
fn trim(text: &str) -> String {
    let mut text = text.trim();
    loop {
        let before = text;
        text = text.trim_end_matches([' ', ',', ';', '.']).trim_start_matches([' ', ',', ';']);
        if let Some(rest) = text.strip_suffix("\\\\") {
            text = rest;
        }
        for mark in ["**", "__", "`", "\"", "*", "_"] {
            let inner = text.strip_prefix(mark).and_then(|rest| rest.strip_suffix(mark));
            if let Some(inner) = inner.filter(|inner| !inner.is_empty()) {
                text = inner;
            }
        }
        if text == before {
            return text.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_fall_together() {
        for (given, wanted) in [
            ("１２，３", "12,3"),
            ("\\left( 1, 2 \\right]", "( 1, 2 ]"),
            ("1{,}234", "1234"),
            ("10\\,000", "10000"),
            ("5\\,\\text{cm}^2", "5 cm ^2"),
            ("\\dfrac12", "\\frac12"),
            ("60^\\circ", "60°"),
            ("60^{\\circ}", "60°"),
            ("−3×10⁻³", "-3*10^{-3}"),
            ("2½", "2\\frac{1}{2}"),
            ("\\$18.90.", "18.90"),
            ("$\\alpha x$", "\\alpha x"),
            ("\\alpha$x", "\\alpha x"),
            ("**42**", "42"),
            ("\\{1\\}", "⦃1⦄"),
            ("\\mathbb{R}", "ℝ"),
            ("\\textbf{\\text{D}}", "D"),
            ("\\text{unclosed", "{unclosed"),
            ("\\", ""),
            ("\\leq\\le", "≤≤"),
            ("\\leftarrow", "\\leftarrow"),
        ] {
            assert_eq!(normalise(given), wanted, "{given}");
            assert_eq!(normalise(wanted), wanted, "{wanted}");
        }
    }
}
