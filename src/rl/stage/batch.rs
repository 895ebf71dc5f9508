//! A batch of episodes under way: who waits for which words.

use super::{Group, MIX, Member, Scene, Spoken};
use crate::engine::{Input, Published, Sampling, Ticket};
use crate::error::{Error, Result};
use crate::rl::actor::Actor;
use crate::rl::episode::{Episode, Outcome, Rules};
use crate::rl::reply::Said;
use crate::task::data::Problem;
use std::{collections::HashMap, sync::Arc};

const OP: &str = "rollout";

/// What a request was for.
pub(super) enum Purpose {
    /// Captions of a scene.
    Captions(usize),
    /// Words that these episodes wait for, all of them for the same.
    Words(Vec<usize>),
    /// Words to one prompt, drawn for each of these episodes apart.
    Draws(Vec<usize>),
}

/// A request under way.
pub(super) struct Open {
    pub(super) purpose: Purpose,
    pub(super) input: Arc<Input>,
    pub(super) key: Option<Key>,
}

/// Whose engine a request runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Policy,
    Clarifier,
    Reasoner,
}

/// An episode and where its outcome goes.
pub(super) struct Running<'a> {
    pub(super) scene: usize,
    pub(super) member: usize,
    pub(super) trial: usize,
    pub(super) rules: &'a Rules,
    pub(super) problem: &'a Problem,
    pub(super) episode: Episode,
    pub(super) spoken: Vec<Spoken>,
}

/// Who is asked, about which scene where that matters, in which tokens.
pub(super) type Key = (Role, usize, Vec<u32>);

/// Words whose speaker is certain of them: the same request gives the same words.
pub(super) type Known = HashMap<Key, Asked>;

pub(super) enum Asked {
    Open(Ticket),
    Said(Said),
}

/// A batch under way.
pub(super) struct Batch<'s, 'a> {
    pub(super) scenes: &'s [Scene<'a>],
    pub(super) sampling: &'s Sampling,
    pub(super) adapter: Option<&'s Published>,
    pub(super) open: HashMap<(Role, Ticket), Open>,
    pub(super) known: Known,
    pub(super) running: Vec<Running<'a>>,
    pub(super) groups: Vec<(Arc<Input>, Vec<Option<Member>>)>,
    /// Episodes, and captions, that have not ended.
    pub(super) left: usize,
}

impl Batch<'_, '_> {
    /// Asks for words, or gives them at once where the same was asked before by anybody and drawing plays no part.
    pub(super) fn ask(
        &mut self,
        actor: &mut Actor<'_>,
        key: Key,
        input: Input,
        sampling: &Sampling,
        adapter: Option<&Published>,
        at: usize,
    ) -> Result<Option<Said>> {
        let role = key.0;
        let certain = sampling.temperature == 0.0;
        match self.known.get(&key).filter(|_| certain) {
            Some(Asked::Said(said)) => return Ok(Some(said.clone())),
            Some(Asked::Open(ticket)) => {
                if let Some(Open { purpose: Purpose::Words(episodes), .. }) =
                    self.open.get_mut(&(role, *ticket))
                {
                    episodes.push(at);
                }
                return Ok(None);
            }
            None => {}
        }
        let input = Arc::new(input);
        let seed = self.seed(at, &input);
        let ticket = actor.ask(input.clone(), sampling.clone(), vec![seed], adapter)?;
        let key = certain.then_some(key);
        if let Some(key) = &key {
            self.known.insert(key.clone(), Asked::Open(ticket));
        }
        self.open.insert((role, ticket), Open { purpose: Purpose::Words(vec![at]), input, key });
        Ok(None)
    }

    /// The seed of what an episode waits for: another for every turn of every trial, whenever it is asked.
    pub(super) fn seed(&self, at: usize, input: &Input) -> u64 {
        let Running { scene, member, trial, .. } = self.running[at];
        let turn = input.tokens().len() as u64 + ((trial as u64 + 1) << 32);
        self.scenes[scene].seeds[member] ^ turn.wrapping_mul(MIX)
    }

    pub(super) fn end(&mut self, at: usize, outcome: Option<Outcome>) {
        let Running { scene, member, trial, ref mut spoken, .. } = self.running[at];
        let spoken = std::mem::take(spoken);
        if let Some(member) = &mut self.groups[scene].1[member] {
            member.outcomes[trial] = outcome;
            member.spoken[trial] = spoken;
        }
        self.left -= 1;
    }

    pub(super) fn groups(self) -> Result<Vec<Group>> {
        let missing = || Error::internal(OP, "a caption is missing");
        let group = |(input, members): (Arc<Input>, Vec<Option<Member>>)| {
            let members = members.into_iter().collect::<Option<Vec<_>>>().ok_or_else(missing)?;
            Ok(Group { input, members })
        };
        self.groups.into_iter().map(group).collect()
    }
}
