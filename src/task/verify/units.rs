//! What may follow a number: percent signs, words like million, and units.
//!
//! Units are ignored unless the policy converts them; then those of the table are brought to metres, kilograms and
//! seconds.

/// Powers of metre, kilogram, second and degree of arc, and how many of them the unit is.
type Known = (&'static [&'static str], [i32; 4], f64);

const LENGTH: [i32; 4] = [1, 0, 0, 0];
const MASS: [i32; 4] = [0, 1, 0, 0];
const TIME: [i32; 4] = [0, 0, 1, 0];
const ARC: [i32; 4] = [0, 0, 0, 1];
const VOLUME: [i32; 4] = [3, 0, 0, 0];

const KNOWN: &[Known] = &[
    (&["mm", "millimeter", "millimetre", "毫米"], LENGTH, 1e-3),
    (&["cm", "centimeter", "centimetre", "厘米"], LENGTH, 1e-2),
    (&["dm", "decimeter", "decimetre", "分米"], LENGTH, 1e-1),
    (&["m", "meter", "metre", "米"], LENGTH, 1.0),
    (&["km", "kilometer", "kilometre", "千米", "公里"], LENGTH, 1e3),
    (&["in", "inch", "inche"], LENGTH, 0.0254),
    (&["ft", "foot", "feet"], LENGTH, 0.3048),
    (&["yd", "yard"], LENGTH, 0.9144),
    (&["mi", "mile"], LENGTH, 1609.344),
    (&["mg", "milligram"], MASS, 1e-6),
    (&["g", "gram", "克"], MASS, 1e-3),
    (&["kg", "kilogram", "千克"], MASS, 1.0),
    (&["lb", "pound"], MASS, 0.453_592_37),
    (&["oz", "ounce"], MASS, 0.028_349_523_125),
    (&["ms", "millisecond"], TIME, 1e-3),
    (&["s", "sec", "second", "秒"], TIME, 1.0),
    (&["min", "minute", "分钟"], TIME, 60.0),
    (&["h", "hr", "hour", "小时"], TIME, 3600.0),
    (&["day", "天"], TIME, 86_400.0),
    (&["ml", "mL", "milliliter", "millilitre", "毫升"], VOLUME, 1e-6),
    (&["L", "l", "liter", "litre", "升"], VOLUME, 1e-3),
    (&["deg", "degree"], ARC, 1.0),
    (&["rad", "radian"], ARC, 180.0 / std::f64::consts::PI),
];

/// More words of two and three letters that are units and not products of variables.
const SHORT: &[&str] = &[
    "km", "Hz", "Pa", "kPa", "mol", "kJ", "kW", "kWh", "MW", "mA", "mV", "kV", "dB", "nm", "um", "μm", "atm",
    "bar", "eV", "GHz", "MHz", "kHz", "cal", "ppm", "mph", "kph", "rpm", "sq", "cu", "pm", "am", "PM", "AM",
    "GB", "MB", "KB", "TB", "USD", "yr", "yrs", "hrs", "lbs", "pts", "per", "kN", "cm", "ha", "au", "pt",
    "pts", "gal", "cc", "pc", "pcs", "rev", "deg", "st", "nd", "rd", "th",
];

/// Single letters that are units when they stand apart from a number.
const LETTERS: &str = "mgshLlNJWVAKCFΩ";

/// Words that multiply.
const SCALES: &[(&str, i32)] = &[
    ("hundred", 2),
    ("thousand", 3),
    ("million", 6),
    ("billion", 9),
    ("trillion", 12),
    ("百", 2),
    ("千", 3),
    ("万", 4),
    ("亿", 8),
];

/// Whether a run of letters after a number is a unit and no product of variables. `apart`: spaces before it.
pub(super) fn is_unit(run: &str, apart: bool) -> bool {
    let singular = run.strip_suffix('s').unwrap_or(run);
    match run.chars().count() {
        0 => false,
        1 => apart && LETTERS.contains(run),
        _ => {
            SHORT.contains(&run)
                || KNOWN.iter().any(|(names, ..)| names.iter().any(|n| *n == run || *n == singular))
        }
    }
}

/// What follows a number.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tail {
    /// The power of ten that words like million stand for.
    pub(super) scale: i32,
    pub(super) percent: bool,
    /// Powers of metre, kilogram, second and degree, and the factor to them, where every unit is of the table.
    pub(super) unit: Option<([i32; 4], f64)>,
}

/// The most words a unit may have.
const WORDS: usize = 6;

/// Reads what follows a number; none where it is no unit.
pub(super) fn tail(text: &str) -> Option<Tail> {
    let mut tail = Tail::default();
    let mut rest = text.trim();
    loop {
        let before = rest;
        rest = rest.trim_start();
        for (word, power) in SCALES {
            let after = rest.strip_prefix(word);
            let whole =
                |after: &&str| !word.is_ascii() || !after.starts_with(|c: char| c.is_ascii_alphabetic());
            if let Some(after) = after.filter(whole) {
                (tail.scale, rest) = ((tail.scale + power).min(100), after);
            }
        }
        for sign in ["%", "percentage points", "percent", "per cent"] {
            if let Some(after) = rest.strip_prefix(sign) {
                (tail.percent, rest) = (true, after);
                break;
            }
        }
        if rest == before {
            break;
        }
    }
    if rest.is_empty() {
        return Some(tail);
    }
    let rest = rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(rest);
    tail.unit = units(rest)?;
    Some(tail)
}

/// Units with powers, products and quotients: the outer none is "no unit", the inner one "not of the table".
fn units(text: &str) -> Option<Option<([i32; 4], f64)>> {
    let chars: Vec<char> = text.chars().collect();
    let (mut total, mut known) = (([0; 4], 1.0), true);
    let (mut i, mut words, mut below, mut ahead) = (0, 0, 1, 1);
    while i < chars.len() {
        let c = chars[i];
        if c.is_alphabetic() || c == '°' {
            let end = (i + 1..chars.len())
                .find(|&j| !chars[j].is_alphabetic() || chars[j].is_ascii() != c.is_ascii());
            let run: String = chars[i..end.unwrap_or(chars.len())].iter().collect();
            i = end.unwrap_or(chars.len());
            words += 1;
            match run.to_lowercase().as_str() {
                "per" => below = -1,
                "square" | "sq" => ahead = 2,
                "cubic" | "cu" => ahead = 3,
                _ => {
                    let power = exponent(&chars, &mut i)? * ahead * below;
                    ahead = 1;
                    let singular = run.strip_suffix('s').filter(|s| s.len() > 2).unwrap_or(&run);
                    let entry =
                        KNOWN.iter().find(|(names, ..)| names.iter().any(|n| *n == run || *n == singular));
                    match entry {
                        Some((_, dimension, factor)) => {
                            (0..4).for_each(|axis| total.0[axis] += dimension[axis] * power);
                            total.1 *= libm::pow(*factor, f64::from(power));
                        }
                        None => known = false,
                    }
                }
            }
        } else {
            match c {
                '/' => below = -1,
                ' ' | '*' | '-' | '.' | '(' | ')' | '\'' | '{' | '}' => {}
                _ => return None,
            }
            i += 1;
        }
    }
    (words > 0 && words <= WORDS).then_some(known.then_some(total))
}

/// A small power after a unit: `^2`, `^{-1}`.
fn exponent(chars: &[char], i: &mut usize) -> Option<i32> {
    let mut at = *i;
    while chars.get(at) == Some(&' ') {
        at += 1;
    }
    if chars.get(at) != Some(&'^') {
        return Some(1);
    }
    at += 1;
    let text: String = chars[at..].iter().take_while(|c| "{-0123456789 }".contains(**c)).collect();
    *i = at + text.chars().count();
    let digits = text.replace(['{', '}', ' '], "");
    digits.parse().ok().filter(|power: &i32| power.abs() <= 9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_what_is_none() {
        let unit = |text| tail(text).and_then(|tail| tail.unit);
        assert_eq!(unit("cm"), Some((LENGTH, 1e-2)));
        assert_eq!(unit("square meters"), Some(([2, 0, 0, 0], 1.0)));
        assert_eq!(unit("m / s^{2}"), Some(([1, 0, -2, 0], 1.0)));
        assert_eq!(unit("km per hour").map(|u| u.0), Some([1, 0, -1, 0]));
        assert_eq!(unit("apples"), None);
        for (text, scale, percent) in
            [("%", 0, true), ("percent", 0, true), ("million dollars", 6, false), ("万人", 4, false)]
        {
            let tail = tail(text).unwrap();
            assert_eq!((tail.scale, tail.percent), (scale, percent), "{text}");
        }
        for text in ["+ 3", "cm or 4 cm", "^2", "a b c d e f g", "m^{99}"] {
            assert_eq!(tail(text), None, "{text}");
        }
    }
}
