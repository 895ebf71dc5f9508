//! Small pictures in a terminal: two pixels to a character, the upper one its colour, the lower one its ground.

use std::fmt::Write;

/// Lines of a picture, every second pixel of it, that leave the terminal's colours as they were.
pub(crate) fn lines(side: usize, pixel: impl Fn(usize, usize) -> [u8; 3]) -> Vec<String> {
    (0..side / 4)
        .map(|line| {
            let mut text = String::new();
            for column in 0..side / 2 {
                let [r, g, b] = pixel(2 * column, 4 * line);
                let [lower_r, lower_g, lower_b] = pixel(2 * column, 4 * line + 2);
                let colours = format!("\x1b[38;2;{r};{g};{b};48;2;{lower_r};{lower_g};{lower_b}m▀");
                let _ = write!(text, "{colours}"); // a String takes everything
            }
            text + "\x1b[0m"
        })
        .collect()
}

/// Words in lines of at most so many characters.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_whole_and_within_their_width() {
        assert_eq!(wrapped("a bb ccc dddd", 4), ["a bb", "ccc", "dddd"]);
        assert_eq!(wrapped("toolong a", 3), ["toolong", "a"]);
    }

    #[test]
    fn two_pixels_make_a_character() {
        let lines = lines(8, |x, y| [x as u8, y as u8, 0]);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].matches('▀').count(), 4);
        assert!(lines[1].starts_with("\x1b[38;2;0;4;0;48;2;0;6;0m▀\x1b[38;2;2;4;0;48;2;2;6;0m▀"));
    }
}
