//! A batch of episodes under way: who waits for which words.

use super::{Group, MIX, Member, Played, Scene, Spent, Spoken};
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

/// A scene's prompt and the captions that have been written.
pub(super) struct Shown {
    pub(super) input: Arc<Input>,
    pub(super) members: Vec<Option<Member>>,
}

/// A batch under way.
pub(super) struct Batch<'s, 'a> {
    pub(super) scenes: &'s [Scene<'a>],
    pub(super) sampling: &'s Sampling,
    pub(super) adapter: Option<&'s Published>,
    pub(super) open: HashMap<(Role, Ticket), Open>,
    pub(super) known: Known,
    pub(super) running: Vec<Running<'a>>,
    /// The prompt of each scene and its captions; none where there could be no prompt.
    pub(super) groups: Vec<Option<Shown>>,
    /// What could not be put to somebody, by scenes.
    pub(super) refused: Vec<(usize, Error)>,
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
        // Captions are asked for elsewhere: here the policy replies to requests.
        let section = if role == Role::Reasoner { "reasoner" } else { "reference" };
        actor.fits(section, sampling, &input)?;
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
        if let Some(shown) = &mut self.groups[scene]
            && let Some(member) = &mut shown.members[member]
        {
            member.outcomes[trial] = outcome;
            member.spoken[trial] = spoken;
        }
        self.left -= 1;
    }

    /// A scene that cannot be played to its end: its picture is damaged, its words do not fit into a context. What the
    /// machine or we ourselves are to blame for is given back.
    pub(super) fn refuse(&mut self, scene: usize, error: Error) -> Result<()> {
        if !error.is_of_input() {
            return Err(error);
        }
        self.note(scene, error);
        Ok(())
    }

    /// Why a scene is not all there. One reason is enough.
    pub(super) fn note(&mut self, scene: usize, error: Error) {
        if !self.refused.iter().any(|(other, _)| *other == scene) {
            self.refused.push((scene, error));
        }
    }

    /// Everything that was played. Where none of several scenes could be, it is not the scenes' fault.
    pub(super) fn played(mut self, spent: Spent) -> Result<Played> {
        let missing = || Error::internal(OP, "a caption is missing");
        let group = |Shown { input, members }| {
            let members = members.into_iter().collect::<Option<Vec<_>>>().ok_or_else(missing)?;
            Ok(Group { input, members })
        };
        let groups: Vec<Option<Group>> =
            self.groups.into_iter().map(|entry| entry.map(group).transpose()).collect::<Result<_>>()?;
        let told = |group: &Group| group.members.iter().any(|m| m.outcomes.iter().any(Option::is_some));
        // A server that answers nothing has its own measure of patience.
        let ours = self.refused.iter().position(|(_, error)| error.is_of_input());
        if let Some(first) = ours
            && groups.len() > 1
            && !groups.iter().flatten().any(told)
        {
            return Err(self.refused.swap_remove(first).1);
        }
        Ok(Played { groups, refused: self.refused, spent })
    }
}
