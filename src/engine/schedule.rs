//! What the next forward pass computes: a pure function of what every sequence has and needs.
//!
//! Sequences are taken oldest first. One that decodes gets its one token, one that reads its prompt gets a chunk of
//! what the budget leaves once every decoder is served. When pages run out the youngest gives all of its up and is
//! computed again later, so the oldest always moves and nothing ever waits for itself. Newcomers enter in order of
//! arrival once there is room for the whole of their prompt.
//!
//! Where a device decodes by itself, a pass of nothing but decoders may be several: until somebody has drawn all tokens it
//! wants, pages run out, or somebody waits, which is to be looked at after every pass.

use crate::model::{PAGE, pages_for};

/// A sequence in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Running {
    /// Tokens it has.
    pub(super) length: usize,
    /// How many of them are in the cache.
    pub(super) computed: usize,
    /// Pages it lists.
    pub(super) pages: usize,
    /// Pages that nobody else lists.
    pub(super) exclusive: usize,
    /// Its last page is partly filled and others list it too: writing takes a copy.
    pub(super) shared_tail: bool,
    /// Sequences it counts for: those it becomes once its prompt is read.
    pub(super) lanes: usize,
    /// Its last token is one it has drawn, and so will be those after it.
    pub(super) decodes: bool,
    /// Tokens it may still draw: 0 once all are drawn and not all are read.
    pub(super) left: usize,
}

/// A request outside the batch, or a sequence put out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Tokens it has.
    pub(super) length: usize,
    /// How many of them known pages hold; whole pages, and never all tokens.
    pub(super) cached: usize,
    /// Pages among those that are idle now, so that taking them uses room up.
    pub(super) idle: usize,
    /// Sequences it becomes.
    pub(super) lanes: usize,
    /// Somebody in the batch is computing what it could share: it waits for that.
    pub(super) held: bool,
}

/// What there is to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Pages that can be taken.
    pub(super) pages: usize,
    /// Tokens of one pass.
    pub(super) tokens: usize,
    /// Sequences in the batch.
    pub(super) lanes: usize,
    /// Passes that a device makes by itself; 0 where there is none.
    pub(super) ahead: usize,
}

/// Who computes how many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// A sequence in the batch, by its place there.
    Running { at: usize, tokens: usize },
    /// A newcomer, by its place in the line.
    Waiting { at: usize, tokens: usize },
}

/// One pass, or several that a device makes by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// Sequences that leave the batch, before anybody computes.
    pub(super) preempted: Vec<usize>,
    pub(super) turns: Vec<Turn>,
    /// How many passes the device makes by itself, if that: everybody in them decodes, a token a pass.
    pub(super) ahead: usize,
}

impl Running {
    fn remaining(&self) -> usize {
        self.length - self.computed
    }

    fn decodes_now(&self) -> bool {
        self.remaining() == 1 && self.left > 0
    }

    /// Pages it takes to compute `tokens` more.
    fn needs(&self, tokens: usize) -> usize {
        pages_for(self.computed + tokens) - self.pages + usize::from(self.shared_tail)
    }

    /// Tokens it computes in so many passes in which everybody decodes.
    fn tokens_in(&self, passes: usize) -> usize {
        passes.min(self.left)
    }

    /// The most tokens that `pages` more pages let it compute.
    fn fits(&self, pages: usize) -> usize {
        match pages.checked_sub(usize::from(self.shared_tail)) {
            Some(pages) => ((self.pages + pages) * PAGE).saturating_sub(self.computed),
            None => 0,
        }
    }
}

/// Plans what comes next. `running` is ordered from the oldest, `waiting` in order of arrival.
pub(super) fn schedule(running: &[Running], waiting: &[Waiting], room: Room) -> Plan {
    let mut plan = pass(running, waiting, room);
    plan.ahead = ahead(&plan.turns, running, waiting, room);
    for turn in plan.turns.iter_mut().filter(|_| plan.ahead > 1) {
        if let Turn::Running { at, tokens } = turn {
            *tokens = running[*at].tokens_in(plan.ahead);
        }
    }
    plan
}

/// How many passes like this one a device can make by itself.
fn ahead(turns: &[Turn], running: &[Running], waiting: &[Waiting], room: Room) -> usize {
    let decodes = |turn: &Turn| matches!(*turn, Turn::Running { at, .. } if running[at].decodes && running[at].decodes_now());
    if room.ahead == 0 || turns.is_empty() || !turns.iter().all(decodes) {
        return 0;
    }
    if !waiting.is_empty() || turns.len() < running.iter().filter(|sequence| sequence.left > 0).count() {
        return 1;
    }
    let most = running.iter().map(|sequence| sequence.left).max().unwrap_or(0).min(room.ahead);
    let pages = |passes: usize| running.iter().map(|one| one.needs(one.tokens_in(passes))).sum::<usize>();
    (1..=most).rev().find(|&passes| pages(passes) <= room.pages).unwrap_or(1)
}

/// Plans one pass.
fn pass(running: &[Running], waiting: &[Waiting], room: Room) -> Plan {
    let Room { mut pages, mut tokens, lanes, .. } = room;
    let mut plan = Plan::default();
    let mut alive = running.len(); // sequences from here on are out
    let mut decoders = running.iter().filter(|sequence| sequence.decodes_now()).count();
    let mut stalled = false;
    let mut at = 0;
    while at < alive {
        let sequence = &running[at];
        let wanted = match sequence.remaining() {
            _ if sequence.left == 0 => 0,
            1 => {
                decoders -= 1;
                tokens.min(1)
            }
            rest => rest.min(tokens.saturating_sub(decoders)),
        };
        while wanted > 0 && sequence.fits(pages) == 0 && alive > at + 1 {
            alive -= 1;
            let youngest = &running[alive];
            decoders -= usize::from(youngest.decodes_now());
            pages += youngest.exclusive;
            plan.preempted.push(alive);
        }
        let turn = wanted.min(sequence.fits(pages));
        if turn > 0 {
            pages -= sequence.needs(turn);
            tokens -= turn;
            plan.turns.push(Turn::Running { at, tokens: turn });
        } else {
            stalled |= wanted > 0;
        }
        at += 1;
    }
    if stalled || !plan.preempted.is_empty() {
        return plan;
    }
    // What those in the batch still need for their prompts is spoken for.
    let promised: usize = running.iter().map(|s| pages_for(s.length).saturating_sub(s.pages)).sum();
    let given: usize = room.pages - pages;
    let mut pages = pages.saturating_sub(promised.saturating_sub(given));
    let mut lanes = lanes.saturating_sub(running.iter().map(|sequence| sequence.lanes).sum());
    for (at, newcomer) in waiting.iter().enumerate().filter(|(_, newcomer)| !newcomer.held) {
        let whole = pages_for(newcomer.length) - newcomer.cached / PAGE + newcomer.idle + newcomer.lanes - 1;
        if newcomer.lanes > lanes || whole > pages || tokens == 0 {
            break;
        }
        let turn = tokens.min(newcomer.length - newcomer.cached);
        lanes -= newcomer.lanes;
        pages -= whole;
        tokens -= turn;
        plan.turns.push(Turn::Waiting { at, tokens: turn });
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoding(computed: usize) -> Running {
        let pages = pages_for(computed);
        Running {
            length: computed + 1,
            computed,
            pages,
            exclusive: pages,
            shared_tail: false,
            lanes: 1,
            decodes: true,
            left: 6,
        }
    }

    fn newcomer(length: usize) -> Waiting {
        Waiting { length, cached: 0, idle: 0, lanes: 1, held: false }
    }

    #[test]
    fn decoders_are_served_before_a_prompt_takes_the_rest() {
        let reading = Running { length: 500, ..decoding(100) };
        let room = Room { pages: 100, tokens: 50, lanes: 8, ahead: 0 };
        let plan = schedule(&[reading, decoding(10), decoding(64)], &[newcomer(30)], room);
        let turns = [(0, 48), (1, 1), (2, 1)].map(|(at, tokens)| Turn::Running { at, tokens });
        assert_eq!(plan, Plan { turns: turns.to_vec(), ..Plan::default() });
    }

    #[test]
    fn the_youngest_makes_room() {
        // Both stand at the end of a page and nothing is free.
        let room = Room { pages: 0, tokens: 8, lanes: 8, ahead: 0 };
        let plan = schedule(&[decoding(64), decoding(128)], &[newcomer(1)], room);
        assert_eq!(plan.preempted, [1]);
        assert_eq!(plan.turns, [Turn::Running { at: 0, tokens: 1 }]);
    }

    #[test]
    fn decoders_go_ahead_until_one_wants_to_be_looked_at() {
        let ahead = |running: &[Running], waiting: &[Waiting], pages| {
            let plan = schedule(running, waiting, Room { pages, tokens: 8, lanes: 8, ahead: 4 });
            let tokens = plan.turns.iter().map(|turn| match *turn {
                Turn::Running { tokens, .. } | Turn::Waiting { tokens, .. } => tokens,
            });
            (plan.ahead, tokens.collect::<Vec<_>>())
        };
        let short = Running { left: 2, ..decoding(10) };
        assert_eq!(ahead(&[short, decoding(62)], &[], 1), (4, vec![2, 4]));
        assert_eq!(ahead(&[short, decoding(62)], &[], 0), (2, vec![2, 2]), "a third pass takes a page");
        assert_eq!(ahead(&[short, short], &[], 9), (2, vec![2, 2]), "all that anybody wants");
        assert_eq!(ahead(&[short], &[newcomer(9 * PAGE)], 1), (1, vec![1]), "somebody waits");
        let reading = Running { length: 500, decodes: false, ..decoding(100) };
        assert_eq!(ahead(&[short, reading], &[], 9), (0, vec![1, 7]), "somebody reads");
        let first = Running { decodes: false, ..decoding(0) };
        assert_eq!(ahead(&[first], &[], 9), (0, vec![1]), "a prompt of one token may be a picture's");
    }

    #[test]
    fn a_newcomer_waits_for_what_another_computes_and_lets_others_pass() {
        let held = Waiting { held: true, ..newcomer(10) };
        let plan = schedule(&[], &[held, newcomer(20)], Room { pages: 9, tokens: 100, lanes: 8, ahead: 0 });
        assert_eq!(plan.turns, [Turn::Waiting { at: 1, tokens: 20 }]);
    }

    #[test]
    fn a_newcomer_that_does_not_fit_is_not_overtaken() {
        let plan = schedule(
            &[],
            &[newcomer(10 * PAGE), newcomer(1)],
            Room { pages: 9, tokens: 100, lanes: 8, ahead: 0 },
        );
        assert_eq!(plan, Plan::default());
    }

    /// Every small state: nobody gets more than there is, the oldest moves, and pages are not promised twice.
    #[test]
    fn small_states_exhaustively() {
        let sequences: Vec<Running> = [0, 1, PAGE - 1, PAGE, PAGE + 1]
            .into_iter()
            .flat_map(|computed| [1, 2, PAGE + 3].map(|rest| (computed, rest)))
            .flat_map(|(computed, rest)| [false, true].map(|shared| (computed, rest, shared)))
            .filter(|(computed, _, shared)| !shared || computed % PAGE != 0)
            .map(|(computed, rest, shared_tail)| {
                let pages = pages_for(computed);
                let exclusive = pages - usize::from(shared_tail);
                let decodes = rest == 1;
                let left = if decodes && computed == PAGE + 1 { 0 } else { 1 + computed % 4 };
                Running {
                    length: computed + rest,
                    pages,
                    exclusive,
                    shared_tail,
                    decodes,
                    left,
                    ..decoding(computed)
                }
            })
            .collect();
        let newcomers = [
            newcomer(1),
            newcomer(3 * PAGE),
            Waiting { cached: PAGE, idle: 1, lanes: 2, ..newcomer(PAGE + 5) },
        ];
        let mut batches: Vec<Vec<Running>> = vec![vec![]];
        for &a in &sequences {
            batches.push(vec![a]);
            for &b in &sequences {
                batches.push(vec![a, b]);
                batches.extend(sequences.iter().step_by(3).map(|&c| vec![a, b, c]));
            }
        }
        let mut seen = 0;
        for batch in &batches {
            for pages in 0..6 {
                for tokens in [1, 2, 70] {
                    for waiting in [&newcomers[..0], &newcomers[..1], &newcomers[..]] {
                        for ahead in [0, 3] {
                            holds(batch, waiting, Room { pages, tokens, lanes: 4, ahead });
                            seen += 1;
                        }
                    }
                }
            }
        }
        assert!(seen > 100_000, "{seen}");
    }

    fn holds(batch: &[Running], waiting: &[Waiting], room: Room) {
        let plan = schedule(batch, waiting, room);
        let state = format!("{batch:?} {waiting:?} {room:?} {plan:?}");
        let freed: usize = plan.preempted.iter().map(|&at| batch[at].exclusive).sum();
        let (mut pages, mut tokens, mut lanes) = (0, 0, 0);
        let mut order = Vec::new();
        for turn in &plan.turns {
            match *turn {
                Turn::Running { at, tokens: count } => {
                    assert!(!plan.preempted.contains(&at), "{state}");
                    let most =
                        if plan.ahead > 1 { plan.ahead.min(batch[at].left) } else { batch[at].remaining() };
                    assert!(count >= 1 && count <= most, "{state}");
                    pages += batch[at].needs(count);
                    tokens += if plan.ahead > 1 { 1 } else { count };
                    order.push(at);
                }
                Turn::Waiting { at, tokens: count } => {
                    assert!(plan.preempted.is_empty(), "{state}");
                    let one = &waiting[at];
                    assert!(count >= 1 && count <= one.length - one.cached, "{state}");
                    pages += pages_for(one.length) - one.cached / PAGE + one.idle + one.lanes - 1;
                    tokens += count;
                    lanes += one.lanes;
                    order.push(batch.len() + at);
                }
            }
        }
        assert!(pages <= room.pages + freed, "{state}");
        assert!(tokens <= room.tokens, "{state}");
        assert!(lanes == 0 || lanes + batch.len() <= room.lanes, "{state}");
        assert!(order.is_sorted(), "{state}");
        assert!(plan.ahead <= room.ahead, "{state}");
        if plan.ahead > 0 {
            assert!(
                lanes == 0 && order.iter().all(|&at| batch[at].decodes && batch[at].remaining() == 1),
                "{state}"
            );
        }
        if plan.ahead > 1 {
            let wanting = batch.iter().filter(|one| one.left > 0).count();
            assert!(waiting.is_empty() && order.len() == wanting, "{state}");
            assert!(batch.iter().any(|one| one.left >= plan.ahead), "{state}");
        }
        assert!(
            plan.preempted.iter().rev().copied().eq(batch.len() - plan.preempted.len()..batch.len()),
            "{state}"
        );
        // The oldest moves whenever pages of the others can make it move.
        if let Some(oldest) = batch.first() {
            let most = room.pages + batch[1..].iter().map(|other| other.exclusive).sum::<usize>();
            let served = plan.turns.first().is_some_and(|turn| matches!(turn, Turn::Running { at: 0, .. }));
            // A prompt gives way to decoders when the budget is no larger than their number.
            let decoders = batch[1..].iter().filter(|other| other.decodes_now()).count();
            let crowded = oldest.remaining() > 1 && room.tokens <= decoders;
            assert!(served || crowded || oldest.left == 0 || oldest.fits(most) == 0, "{state}");
        }
    }
}
