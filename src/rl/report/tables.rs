//! Evaluations as tables.

use super::chart::intervals;
use super::html::{Html, percent, probability};
use crate::rl::evaluation::{Cell, Change, Comparison, Evaluation, LEAST_IN_CELL, Mode, Rate};

/// A first evaluation and a last one of the same kind; only the last where there is one alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) before: Option<&'a Evaluation>,
    pub(super) after: &'a Evaluation,
}

impl<'a> Pair<'a> {
    /// The first and last evaluations of each kind: those where asking was allowed first, the highest temperature first.
    pub(super) fn all(evaluations: &'a [Evaluation]) -> Vec<Self> {
        let kind = |e: &Evaluation| (e.mode == Mode::SinglePass, e.conditions.temperature);
        let mut kinds: Vec<(bool, f32)> = evaluations.iter().map(kind).collect();
        kinds.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        kinds.dedup();
        let pair = |wanted: (bool, f32)| {
            let same: Vec<&Evaluation> = evaluations.iter().filter(|e| kind(e) == wanted).collect();
            let (after, rest) = same.split_last()?;
            Some(Pair { before: rest.first().copied(), after })
        };
        kinds.into_iter().filter_map(pair).collect()
    }

    /// Whether an evaluation is of this kind.
    pub(super) fn like(&self, evaluation: &Evaluation) -> bool {
        let kind = |e: &Evaluation| (e.mode, e.conditions.temperature);
        kind(self.after) == kind(evaluation)
    }

    /// How its captions were made.
    pub(super) fn captions(&self) -> String {
        match self.after.conditions.temperature {
            0.0 => "greedy captions".to_owned(),
            drawn => format!("captions drawn at temperature {drawn}"),
        }
    }

    fn comparison(&self) -> Option<Comparison> {
        Comparison::between(self.before?, self.after).ok()
    }
}

/// A table that scrolls by itself where it is too wide, for fingers and for keys; its title stays.
pub(super) fn table(html: &mut Html, caption: &str, heads: &[&str], rows: impl FnOnce(&mut Html)) {
    let region: super::html::Attributes<'_> =
        &[("class", &"scroll"), ("role", &"region"), ("aria-label", &caption), ("tabindex", &"0")];
    html.leaf("h3", &[("class", &"title")], caption);
    html.element("div", region, |html| {
        html.element("table", &[("aria-label", &caption)], |html| {
            html.element("thead", &[], |html| {
                html.element("tr", &[], |html| {
                    heads.iter().for_each(|head| html.leaf("th", &[("scope", &"col")], head));
                });
            });
            html.element("tbody", &[], rows);
        });
    });
}

/// All metrics before and after.
pub(super) fn metrics(html: &mut Html, pair: &Pair<'_>) {
    let Pair { before, after } = pair;
    let comparison = pair.comparison();
    let change = |name: &str| {
        let changes = comparison.as_ref()?.changes();
        changes.into_iter().find(|(known, _)| *known == name).and_then(|(_, change)| change)
    };
    let steps = match before {
        Some(before) => format!("steps {} and {}", before.conditions.step, after.conditions.step),
        None => format!("step {}", after.conditions.step),
    };
    let caption = format!("{} problems, {}, {steps}", after.metrics.items, pair.captions());
    let heads: &[&str] = match before {
        Some(_) => &["", "before", "after", "0 … 50 … 100 %", "change, points", "lost / gained", "p"],
        None => &["", "share", "0 … 50 … 100 %"],
    };
    table(html, &caption, heads, |html| {
        let earlier = before.map(|before| before.metrics.rates());
        for (at, (name, rate)) in after.metrics.rates().into_iter().enumerate() {
            let was = earlier.and_then(|rates| rates[at].1);
            if rate.is_none() && was.is_none() {
                continue;
            }
            html.element("tr", &[], |html| {
                html.leaf("th", &[("scope", &"row")], name);
                if before.is_some() {
                    share(html, was);
                }
                share(html, rate);
                html.element("td", &[("class", &"plot")], |html| intervals(html, was, rate));
                if before.is_some() {
                    changed(html, was, rate, change(name));
                }
            });
        }
    });
    html.element("p", &[("class", &"note")], |html| {
        html.text("Brackets and bars are Wilson’s 95 % intervals; hollow is before, filled after. ");
        if let Some(comparison) = &comparison {
            let over = comparison.items;
            html.text(format!(
                "Lost and gained count the {over} problems in both; p is McNemar’s exact test on them. "
            ));
            if let Some(reduction) = comparison.relative_reduction {
                html.text(format!("Requests went down by {} of what they were. ", percent(reduction)));
            }
        }
        let points = |share: f64| format!("{:+.1} points", 100.0 * share).replace('-', "−");
        if let Some(gap) = after.metrics.gap {
            html.text(format!("Clarification gap {}. ", points(gap)));
        }
        if let Some(criticality) = after.metrics.criticality {
            html.text(format!("Criticality of asking {}. ", points(criticality)));
        }
        if let Some(tokens) = after.metrics.caption_tokens {
            html.text(format!("Captions have {:.1} tokens, 95 % at most {:.0}. ", tokens.mean, tokens.p95));
        }
        if !after.metrics.fallbacks.is_empty() {
            let list: Vec<String> =
                after.metrics.fallbacks.iter().map(|(name, count)| format!("{name} {count}×")).collect();
            html.text(format!("Decisions that had to be guessed: {}. ", list.join(", ")));
        }
        for (count, why) in after.metrics.left_out() {
            html.text(format!("{count} problems are left out: {why}. "));
        }
    });
}

fn share(html: &mut Html, rate: Option<Rate>) {
    html.element("td", &[], |html| match rate {
        Some(rate) => {
            html.text(percent(rate.rate));
            html.leaf("small", &[], format!(" [{:.1}, {:.1}]", 100.0 * rate.low, 100.0 * rate.high));
        }
        None => html.text("–"),
    });
}

fn changed(html: &mut Html, before: Option<Rate>, after: Option<Rate>, change: Option<Change>) {
    let points = before.zip(after).map(|(before, after)| 100.0 * (after.rate - before.rate));
    let sign = |points: f64| {
        if points == 0.0 { "0".to_owned() } else { format!("{points:+.1}").replace('-', "−") }
    };
    html.leaf("td", &[], points.map_or("–".to_owned(), sign));
    let counts = change.map(|change| format!("{} / {}", change.lost, change.gained));
    html.leaf("td", &[], counts.unwrap_or("–".to_owned()));
    html.leaf("td", &[], change.map_or("–".to_owned(), |change| probability(change.p)));
}

/// Cells of each breakdown, before and after.
pub(super) fn breakdowns(html: &mut Html, pair: &Pair<'_>) {
    for breakdown in &pair.after.breakdowns {
        let earlier = |name: &str| {
            let same = pair.before?.breakdowns.iter().find(|other| other.by == breakdown.by)?;
            same.cells.iter().find(|cell| cell.name == name)
        };
        let caption = format!("By {}, {}", breakdown.by, pair.captions());
        // What was measured of some cell, each with the way to it.
        type Column = (&'static str, fn(&Cell) -> Option<Rate>);
        let columns: [Column; 4] = [
            ("single pass", |cell| cell.accuracy_single),
            ("without asking", |cell| cell.first_pass_right),
            ("with asking", |cell| cell.accuracy_clarified),
            ("asked", |cell| cell.clarification_rate),
        ];
        let measured: Vec<&Column> =
            columns.iter().filter(|(_, of)| breakdown.cells.iter().any(|cell| of(cell).is_some())).collect();
        let mut heads = vec!["", "count"];
        heads.extend(measured.iter().map(|(name, _)| *name));
        table(html, &caption, &heads, |html| {
            for cell in &breakdown.cells {
                html.element("tr", &[], |html| {
                    html.leaf("th", &[("scope", &"row"), ("dir", &"auto")], &cell.name);
                    html.leaf("td", &[], cell.items);
                    if cell.suppressed() {
                        let text = format!("fewer than {LEAST_IN_CELL}: not shown");
                        html.leaf("td", &[("colspan", &measured.len()), ("class", &"quiet")], text);
                        return;
                    }
                    for (_, of) in &measured {
                        let was = earlier(&cell.name).and_then(of);
                        html.element("td", &[], |html| {
                            if let Some(was) = was {
                                html.leaf("small", &[], format!("{} → ", percent(was.rate)));
                            }
                            html.text(of(cell).map_or("–".to_owned(), |rate| percent(rate.rate)));
                        });
                    }
                });
            }
        });
    }
}
