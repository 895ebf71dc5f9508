//! Stop texts in a stream: what may be shown already, and when to end.

/// Holds back text that could still turn out to be the beginning of a stop text.
#[derive(Debug)]
pub(super) struct StopWatch {
    stops: Vec<String>,
    text: String,
    shown: usize,
}

impl StopWatch {
    pub(super) fn new(stops: Vec<String>) -> Self {
        StopWatch { stops, text: String::new(), shown: 0 }
    }

    /// Takes more text; returns what may be shown now, and whether a stop text was met.
    pub(super) fn push(&mut self, more: &str) -> (String, bool) {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        // A stop text can only end in what is new, so it begins at most its length before that.
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(more);
        let met = self.stops.iter().filter_map(|stop| self.text[from..].find(stop.as_str())).min();
        if let Some(at) = met {
            self.text.truncate(from + at);
            return (self.show(self.text.len()), true);
        }
        let held = self.stops.iter().map(|stop| overlap(&self.text, stop)).max().unwrap_or(0);
        (self.show(self.text.len() - held), false)
    }

    /// The whole text without the stop text, and what of it has not been shown yet.
    pub(super) fn finish(mut self) -> (String, String) {
        let rest = self.show(self.text.len());
        (self.text, rest)
    }

    fn show(&mut self, until: usize) -> String {
        let from = self.shown.min(until);
        self.shown = self.shown.max(until);
        self.text[from..until].to_owned()
    }
}

/// Length of the longest ending of `text` that `stop` begins with.
fn overlap(text: &str, stop: &str) -> usize {
    let candidates = stop.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
    candidates
        .filter(|&length| length < stop.len())
        .find(|&length| text.ends_with(&stop[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feed(stops: &[String], pieces: &[String]) -> (String, String, bool) {
        let mut watch = StopWatch::new(stops.to_vec());
        let mut shown = String::new();
        for piece in pieces {
            let (text, met) = watch.push(piece);
            shown.push_str(&text);
            if met {
                let (whole, rest) = watch.finish();
                return (whole, shown + &rest, true);
            }
        }
        let (whole, rest) = watch.finish();
        (whole, shown + &rest, false)
    }

    #[test]
    fn a_stop_text_across_pieces_is_never_shown() {
        let pieces = ["ab", "cSTO", "Pxyz"].map(String::from);
        let (whole, shown, met) = feed(&["STOP".into()], &pieces);
        assert_eq!((whole.as_str(), shown.as_str(), met), ("abc", "abc", true));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(pieces in prop::collection::vec("[abé]{0,4}", 0..8), stop in "[abé]{1,3}") {
            let stops = [stop];
            let joined: String = pieces.concat();
            let (whole, shown, met) = feed(&stops, &pieces);
            prop_assert_eq!(&whole, &shown);
            prop_assert_eq!(met, joined.contains(&stops[0]));
            prop_assert_eq!(whole, joined.split(&stops[0]).next().unwrap_or("").to_owned());
        }
    }
}
