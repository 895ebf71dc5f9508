//! Where problems come from: files, or the built-in world, which never runs out of them.

use crate::error::{Error, Result, unknown};
use crate::task::data::{Cursor, Fault, Layout, Loaded, Order, Problem};
use crate::task::verify::Policy;
use crate::task::world::{Example, HELD_OUT};
use std::{path::Path, sync::Arc};

/// The built-in world's name.
pub const WORLD: &str = "builtin:world";

/// Problems in an order.
#[derive(Debug)]
pub enum Source {
    /// From files.
    Files {
        /// All of them.
        problems: Vec<Arc<Problem>>,
        /// The order of every epoch.
        order: Order,
    },
    /// The world's, by a seed.
    World {
        /// The seed.
        seed: u64,
        /// The kinds of questions that are asked; all where none is said.
        kinds: Vec<String>,
    },
}

impl Source {
    /// Opens what is trained on; rows that are no problems are given beside it. `builtin:world/sum` asks sums alone.
    pub fn open(
        name: &Path,
        layout: &Layout,
        policy: &Policy,
        seed: u64,
        shuffle: bool,
    ) -> Result<(Self, Vec<Fault>)> {
        if let Some(kinds) = world(name)? {
            // Training never sees what is held out.
            let seed = if seed == HELD_OUT { 0 } else { seed };
            return Ok((Source::World { seed, kinds }, Vec::new()));
        }
        let Loaded { problems, faults } = Loaded::open(name, layout, policy)?;
        let order = Order::new(seed, problems.len(), shuffle);
        Ok((Source::Files { problems: problems.into_iter().map(Arc::new).collect(), order }, faults))
    }

    /// Opens what is measured by: as it stands, and at most so many.
    pub fn held_out(
        name: &Path,
        layout: &Layout,
        policy: &Policy,
        limit: Option<usize>,
    ) -> Result<(Vec<Arc<Problem>>, Vec<Fault>)> {
        if let Some(kinds) = world(name)? {
            let mut source = Source::World { seed: HELD_OUT, kinds };
            return Ok((source.take(&mut Cursor::default(), limit.unwrap_or(1000))?, Vec::new()));
        }
        let Loaded { mut problems, faults } = Loaded::open(name, layout, policy)?;
        problems.truncate(limit.unwrap_or(usize::MAX));
        Ok((problems.into_iter().map(Arc::new).collect(), faults))
    }

    /// The next problems, which moves the cursor.
    pub fn take(&mut self, cursor: &mut Cursor, wanted: usize) -> Result<Vec<Arc<Problem>>> {
        match self {
            Source::Files { problems, order } => {
                Ok(order.take(cursor, wanted).into_iter().map(|at| problems[at].clone()).collect())
            }
            Source::World { seed, kinds } => {
                let mut taken = Vec::with_capacity(wanted);
                while taken.len() < wanted {
                    let example = Example::new(*seed, cursor.position);
                    cursor.position += 1;
                    if kinds.is_empty() || kinds.iter().any(|kind| kind == example.question.kind()) {
                        taken.push(Arc::new(example.problem()?));
                    }
                }
                Ok(taken)
            }
        }
    }
}

/// The kinds of questions a name of the world asks for, if it is one.
fn world(name: &Path) -> Result<Option<Vec<String>>> {
    const KINDS: [&str; 4] = ["read", "sum", "peri", "where"];
    let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(WORLD)) else { return Ok(None) };
    let kinds: Vec<String> =
        rest.split(['/', ',']).filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
    match kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
        Some(odd) => Err(Error::caller("tiny world", format!("kind of question {}", unknown(odd, &KINDS)))),
        None => Ok(Some(kinds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(name: &str) -> Source {
        Source::open(Path::new(name), &Layout::default(), &Policy::default(), 5, true).expect("opens").0
    }

    #[test]
    fn the_world_goes_on_where_it_was_left() {
        let ids = |problems: Vec<Arc<Problem>>| problems.iter().map(|p| p.id.clone()).collect::<Vec<_>>();
        let mut cursor = Cursor::default();
        let whole = ids(open(WORLD).take(&mut Cursor::default(), 9).expect("problems"));
        let mut parts = ids(open(WORLD).take(&mut cursor, 4).expect("problems"));
        parts.extend(ids(open(WORLD).take(&mut cursor, 5).expect("problems")));
        assert_eq!(whole, parts);
        let sums = open("builtin:world/sum").take(&mut Cursor::default(), 9).expect("problems");
        assert!(sums.iter().all(|problem| problem.subject.as_deref() == Some("sum")));
        assert!(world(Path::new("builtin:world/product")).is_err());
    }

    #[test]
    fn nothing_held_out_is_ever_trained_on() {
        let layout = Layout::default();
        let held = Source::held_out(Path::new(WORLD), &layout, &Policy::default(), Some(7)).expect("opens").0;
        assert_eq!(held.len(), 7);
        let source = Source::open(Path::new(WORLD), &layout, &Policy::default(), HELD_OUT, true);
        let trained = source.expect("opens").0.take(&mut Cursor::default(), 7).expect("problems");
        assert!(held.iter().zip(&trained).all(|(held, trained)| held.id != trained.id));
    }
}
