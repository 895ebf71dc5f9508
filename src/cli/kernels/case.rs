//! An op and its sizes.

use serde::Serialize;
use std::{fmt, str::FromStr};

/// An op at a shape, in the letters of the column: T rows, K inner, N columns, R rank, C hidden, H and G heads, D head
/// dim, B sequences, V vocabulary.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Case {
    /// `[T, K]` to `[T, N]`, an adapter of rank R on all rows unless R is 0.
    Linear { t: usize, k: usize, n: usize, r: usize, bias: bool, then: Then },
    /// `[T, K]` to `[T, N]`, twice, multiplied; an adapter on either.
    GatedLinear { t: usize, k: usize, n: usize, r: usize, bias: bool },
    /// `[T, C]` in groups of D.
    RmsNorm { t: usize, c: usize, d: usize },
    /// `[T, C]`.
    LayerNorm { t: usize, c: usize },
    /// `[T, H, D]` by positions on so many axes.
    Rope { t: usize, h: usize, d: usize, axes: usize },
    /// B sequences of one length.
    Attention { b: usize, length: usize, h: usize, g: usize, d: usize, causal: bool },
    /// T keys and values into pages.
    KvAppend { t: usize, g: usize, d: usize },
    /// B sequences, each with so many new queries over so many keys.
    PagedAttention { b: usize, queries: usize, keys: usize, h: usize, g: usize, d: usize },
    /// B groups of sequences that decode, each sequence over so many keys, the first of them its whole group's.
    GroupAttention { b: usize, members: usize, shared: usize, keys: usize, h: usize, g: usize, d: usize },
    /// T rows out of a table `[V, C]`.
    GatherRows { t: usize, c: usize, v: usize },
    /// T rows into as many again.
    ScatterRows { t: usize, c: usize },
    /// `[T, C]` under a head `[V, C]`.
    Logprobs { t: usize, c: usize, v: usize },
    /// The same, drawing a token per row, out of all or out of the likeliest.
    Sample { t: usize, c: usize, v: usize, top_p: bool },
    /// `[T, K]` from `[T, N]`, and gradients of an adapter of rank R, or of the weight if R is 0.
    LinearBackward { t: usize, k: usize, n: usize, r: usize },
    /// `[T, F]`, three of them in place.
    GatedBackward { t: usize, f: usize },
    /// `[T, F]` in place.
    ActivateBackward { t: usize, f: usize },
    /// `[T, C]` in groups of D, and the gain's.
    RmsNormBackward { t: usize, c: usize, d: usize },
    /// B sequences of one length, causal; with a prefix they have a parent of so many rows in common.
    AttentionBackward { prefix: usize, b: usize, length: usize, h: usize, g: usize, d: usize },
    /// `[T, C]` under a head `[V, C]`, which is frozen.
    LogprobsBackward { t: usize, c: usize, v: usize },
    /// T rows into a table `[V, C]`.
    GatherRowsBackward { t: usize, c: usize, v: usize },
    /// N numbers.
    Zero { n: usize },
    /// Tensors of N numbers each.
    SqNorm { tensors: usize, n: usize },
    /// The same, with their state and the forward's copy.
    Adamw { tensors: usize, n: usize },
}

/// What a linear does with its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Then {
    Store,
    Add,
    AddScaled,
    Gelu,
    QuickGelu,
}

impl Case {
    /// The op's name, as `Backend` has it.
    pub(crate) fn op(&self) -> String {
        let name = self.to_string();
        name.split(' ').next().unwrap_or_default().to_owned()
    }

    /// T, all packed rows; of plain numbers, rows of 1024.
    pub(crate) fn rows(&self) -> usize {
        match *self {
            Case::Linear { t, .. }
            | Case::GatedLinear { t, .. }
            | Case::RmsNorm { t, .. }
            | Case::LayerNorm { t, .. }
            | Case::Rope { t, .. }
            | Case::KvAppend { t, .. }
            | Case::GatherRows { t, .. }
            | Case::ScatterRows { t, .. }
            | Case::Logprobs { t, .. }
            | Case::Sample { t, .. }
            | Case::LinearBackward { t, .. }
            | Case::GatedBackward { t, .. }
            | Case::ActivateBackward { t, .. }
            | Case::RmsNormBackward { t, .. }
            | Case::LogprobsBackward { t, .. }
            | Case::GatherRowsBackward { t, .. } => t,
            Case::AttentionBackward { prefix, b, length, .. } => prefix + b * length,
            Case::Zero { n } => n.div_ceil(1024),
            Case::SqNorm { tensors, n } | Case::Adamw { tensors, n } => tensors * n.div_ceil(1024),
            Case::Attention { b, length, .. } => b * length,
            Case::PagedAttention { b, queries, .. } => b * queries,
            Case::GroupAttention { b, members, .. } => b * members,
        }
    }

    /// Few rows, columns, sequences, keys and numbers; the axes that sums run over and the heads stay as they are.
    pub(crate) fn shrunk(mut self) -> Self {
        let few = |axis: &mut usize, most: usize| *axis = (*axis).min(most);
        match &mut self {
            Case::Linear { t, n, .. } | Case::GatedLinear { t, n, .. } => {
                few(t, 5);
                few(n, 200);
            }
            Case::RmsNorm { t, .. }
            | Case::LayerNorm { t, .. }
            | Case::Rope { t, .. }
            | Case::KvAppend { t, .. }
            | Case::ScatterRows { t, .. } => few(t, 5),
            Case::Attention { b, length, .. } => {
                few(b, 2);
                few(length, 140);
            }
            Case::PagedAttention { b, queries, keys, .. } => {
                few(b, 2);
                few(queries, 70);
                few(keys, 600);
            }
            Case::GroupAttention { b, members, shared, keys, .. } => {
                few(b, 2);
                few(members, 3);
                few(shared, 320);
                few(keys, 600);
            }
            Case::GatherRows { t, v, .. }
            | Case::Logprobs { t, v, .. }
            | Case::Sample { t, v, .. }
            | Case::LogprobsBackward { t, v, .. }
            | Case::GatherRowsBackward { t, v, .. } => {
                few(t, 3);
                few(v, 1500);
            }
            Case::LinearBackward { t, k, .. } => {
                few(t, 5);
                few(k, 200);
            }
            Case::GatedBackward { t, f } | Case::ActivateBackward { t, f } => {
                few(t, 5);
                few(f, 3000);
            }
            Case::RmsNormBackward { t, .. } => few(t, 5),
            Case::AttentionBackward { prefix, b, length, .. } => {
                few(prefix, 70);
                few(b, 2);
                few(length, 70);
            }
            Case::Zero { n } => few(n, 5000),
            Case::SqNorm { tensors, n } => {
                few(tensors, 3);
                few(n, 40_000);
            }
            Case::Adamw { tensors, n } => {
                few(tensors, 60);
                few(n, 2100);
            }
        }
        self
    }
}

/// `linear T=1 K=2048 N=256 bias`: how cases are named in tables, records and on the command line.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        for (at, (name, value)) in fields.as_object().into_iter().flatten().enumerate() {
            let name = if name.len() == 1 { name.to_uppercase() } else { name.clone() };
            match value {
                serde_json::Value::Bool(true) => write!(f, " {name}")?,
                serde_json::Value::Bool(false) => {}
                serde_json::Value::String(text) if at == 0 => f.write_str(text)?,
                serde_json::Value::String(text) if text == "store" => {}
                serde_json::Value::String(text) => write!(f, " {text}")?,
                number => write!(f, " {name}={number}")?,
            }
        }
        Ok(())
    }
}

/// Words that must all occur in a case's name: `linear T=1`.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Vec<String>);

impl Pattern {
    /// Whether the name has all the words, as words.
    pub(crate) fn takes(&self, case: &Case) -> bool {
        let name = case.to_string();
        self.0.iter().all(|word| name.split(' ').any(|other| other == word))
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            Err("expected words such as \"linear T=1\"".into())
        } else {
            Ok(Pattern(words))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_named_by_op_and_sizes() {
        let linear = Case::Linear { t: 1, k: 2048, n: 256, r: 16, bias: true, then: Then::Add };
        assert_eq!(linear.to_string(), "linear T=1 K=2048 N=256 R=16 bias add");
        let attention = Case::Attention { b: 2, length: 64, h: 16, g: 16, d: 80, causal: false };
        assert_eq!(attention.to_string(), "attention B=2 length=64 H=16 G=16 D=80");
    }

    #[test]
    fn a_pattern_takes_whole_words() {
        let takes = |pattern: &str, t| {
            let case = Case::LayerNorm { t, c: 8 };
            pattern.parse::<Pattern>().unwrap().takes(&case)
        };
        assert!(takes("layer_norm T=1", 1) && takes("T=12", 12) && takes("C=8 layer_norm", 1));
        assert!(!takes("layer_norm T=1", 12) && !takes("norm", 1));
        assert!(" ".parse::<Pattern>().is_err());
    }

    #[test]
    fn shrinking_keeps_what_sums_run_over() {
        let case = Case::Linear { t: 4096, k: 11008, n: 2048, r: 16, bias: false, then: Then::Add };
        let small = Case::Linear { t: 5, k: 11008, n: 200, r: 16, bias: false, then: Then::Add };
        assert_eq!(case.shrunk(), small);
    }
}
