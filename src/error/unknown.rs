//! Names nobody knows, and what may have been meant by them.

/// What is said of a name that is not known: which are, and the one that may have been meant.
pub fn unknown(name: &str, known: &[&str]) -> String {
    let meant = nearest(name, known.iter().copied());
    let meant = meant.map(|meant| format!(" (did you mean {meant:?}?)")).unwrap_or_default();
    let there = match known {
        [several @ .., last] if !several.is_empty() => format!("{} and {last}", several.join(", ")),
        _ => known.join(""),
    };
    format!("{name:?} is not known{meant}; there are {there}")
}

/// The one of some names that another may be a slip of: no more than a third of its letters are wrong.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 64;
    if name.len() > LONGEST {
        return None;
    }
    let name = name.to_lowercase();
    let (slips, meant) = known.into_iter().map(|known| (slips(&name, known), known)).min()?;
    let most = name.chars().count().max(meant.len()) / 3;
    (slips <= most.max(1)).then_some(meant)
}

/// Letters to add, drop, change or swap with their neighbour on the way from one word to another.
fn slips(from: &str, to: &str) -> usize {
    let [from, to] = [from, to].map(|word| word.chars().collect::<Vec<char>>());
    // From the first so many letters to the first so many.
    let mut least = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            if i == 0 || j == 0 {
                least[i][j] = i + j;
                continue;
            }
            let changed = least[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            least[i][j] = changed.min(least[i - 1][j] + 1).min(least[i][j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least[i][j] = least[i][j].min(least[i - 2][j - 2] + 1);
            }
        }
    }
    least[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_from_another_word() {
        let known = ["group_std", "batch_std", "rloo", "lr"];
        for (name, meant) in [
            ("gropu_std", Some("group_std")),
            ("Batch-std", Some("batch_std")),
            ("rlo", Some("rloo")),
            ("lrr", Some("lr")),
            ("whiten", None),
            ("", None),
            ("größe", None),
            (&"rloo".repeat(1 << 20), None),
        ] {
            assert_eq!(nearest(name, known), meant, "{name:.20}");
        }
        assert_eq!(["ab", "ba", "b", "abc", "xy"].map(|word| slips("ab", word)), [0, 1, 1, 1, 2]);
        let said = unknown("rlo", &known);
        assert_eq!(
            said,
            "\"rlo\" is not known (did you mean \"rloo\"?); there are group_std, batch_std, rloo and lr"
        );
    }
}
