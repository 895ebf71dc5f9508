//! What is said about a scene: captions, requests for what is missing, clarifications, verdicts.
//!
//! Words stand apart by one space. A fact is a name with a value right behind it; a bare name mentions an object and says
//! nothing about it. Lists have ` , ` between their items and end in ` .`.

use super::chance::Chance;
use super::question::{Attribute, Fact, Question, Value};
use super::scene::{Cell, Name, Scene};
use std::fmt;

/// Words a caption may have, the end token being one.
pub const CAPTION_BUDGET: usize = 12;

/// Items as a list.
fn list<T: fmt::Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    format!("{} .", items.join(" , "))
}

/// The facts a text states, in its order: wherever a value stands behind a name.
pub fn facts(text: &str) -> Vec<Fact> {
    let words: Vec<&str> = text.split(' ').collect();
    let fact = |pair: &[&str]| {
        let number = pair[1].parse().ok().filter(|number| (1..=9).contains(number)).map(Value::Number);
        let value = number.or_else(|| Cell::parse(pair[1]).map(Value::Position))?;
        Some(Fact { name: Name::parse(pair[0])?, value })
    };
    words.windows(2).filter_map(fact).collect()
}

/// Every fact about a scene, in any order.
pub fn full_caption(scene: &Scene, chance: &mut Chance) -> String {
    let mut facts: Vec<Fact> = scene
        .objects
        .iter()
        .flat_map(|object| [Attribute::Number, Attribute::Position].map(|a| scene.fact(object.name, a)))
        .flatten()
        .collect();
    chance.shuffle(&mut facts);
    list(&facts)
}

/// The same facts as in a caption, in any order.
pub fn restated(caption: &str, chance: &mut Chance) -> String {
    let mut facts = facts(caption);
    chance.shuffle(&mut facts);
    list(&facts)
}

/// How complete a caption is; chances in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Manner {
    number: usize,
    position: usize,
    /// The same for what is asked, if it is more.
    asked: usize,
}

/// How often people say of a thing what is asked about it, in percent.
pub const TOLD: usize = 35;

/// A caption as people write them: two to four salient things, what is needed usually not among what is said.
pub fn human_caption(scene: &Scene, question: &Question, chance: &mut Chance) -> String {
    telling_caption(scene, question, TOLD, chance)
}

/// The same by people who say what is asked `told` times in a hundred.
pub fn telling_caption(scene: &Scene, question: &Question, told: usize, chance: &mut Chance) -> String {
    let mut names: Vec<Name> = scene.objects.iter().map(|object| object.name).collect();
    chance.shuffle(&mut names);
    if chance.percent(50) {
        names.sort_by_key(|name| !question.names().contains(name)); // stable: the rest keeps its order
    }
    names.truncate(2 + chance.below(3));
    let manner = Manner { number: 25, position: 35, asked: told };
    described(scene, question, &names, manner, chance)
}

/// A caption that says too little or enough, as a reasoner must be prepared for.
pub fn mixed_caption(scene: &Scene, question: &Question, chance: &mut Chance) -> String {
    if chance.percent(35) {
        return human_caption(scene, question, chance);
    }
    let others = chance.one(&[0, 50, 80]);
    let asked = question.names();
    let mut names: Vec<Name> = scene.objects.iter().map(|object| object.name).collect();
    names.retain(|name| chance.percent(if asked.contains(name) { 85 } else { others }));
    chance.shuffle(&mut names);
    if chance.percent(50) {
        names.sort_by_key(|name| !asked.contains(name));
    }
    let manner = Manner {
        number: chance.one(&[0, 30, 70, 100]),
        position: chance.one(&[0, 0, 30, 100]),
        asked: chance.one(&[20, 60, 100]),
    };
    described(scene, question, &names, manner, chance)
}

/// A caption beyond any budget: four things or more, and facts about most of them in any order.
pub fn long_caption(scene: &Scene, chance: &mut Chance) -> String {
    let mut names: Vec<Name> = scene.objects.iter().map(|object| object.name).collect();
    chance.shuffle(&mut names);
    names.truncate(4 + chance.below(names.len().max(4) - 3));
    let (number, position) = (chance.one(&[50, 90]), chance.one(&[10, 50]));
    let mut items = Vec::new();
    for name in names {
        let before = items.len();
        for (attribute, percent) in [(Attribute::Number, number), (Attribute::Position, position)] {
            if chance.percent(percent) {
                items.extend(scene.fact(name, attribute).map(|fact| fact.to_string()));
            }
        }
        if items.len() == before {
            items.push(name.to_string());
        }
    }
    chance.shuffle(&mut items);
    list(&items)
}

/// Mentions objects with some of their facts, up to the one that would exceed the budget.
fn described(
    scene: &Scene,
    question: &Question,
    names: &[Name],
    manner: Manner,
    chance: &mut Chance,
) -> String {
    let mut items: Vec<String> = Vec::new();
    let mut words = 2; // the full stop and the end token
    for name in names {
        let mut said = Vec::new();
        for (attribute, percent) in
            [(Attribute::Number, manner.number), (Attribute::Position, manner.position)]
        {
            let asked = question.names().contains(name) && question.attribute() == attribute;
            if chance.percent(if asked { percent.max(manner.asked) } else { percent }) {
                said.extend(scene.fact(*name, attribute).map(|fact| fact.to_string()));
            }
        }
        if said.is_empty() {
            said.push(name.to_string());
        }
        let commas = said.len() - usize::from(items.is_empty());
        let more = said.iter().map(|item| item.split(' ').count()).sum::<usize>() + commas;
        if words + more > CAPTION_BUDGET {
            break;
        }
        words += more;
        items.extend(said);
    }
    list(&items)
}

/// A request for one fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// About what.
    pub name: Name,
    /// What.
    pub attribute: Attribute,
}

impl Request {
    /// Reads a request as it is written; anything before it is skipped.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (attribute, rest) = match text.rsplit_once("what is the number on the ") {
            Some((_, rest)) => (Attribute::Number, rest),
            None => (Attribute::Position, text.rsplit_once("where is the ")?.1),
        };
        Some(Request { name: Name::parse(rest.strip_suffix(" ?")?)?, attribute })
    }

    /// What there is to say to it; nothing about an object that is not there.
    pub fn clarification(&self, scene: &Scene) -> Option<String> {
        scene.fact(self.name, self.attribute).map(|fact| list(&[fact]))
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attribute {
            Attribute::Number => write!(f, "what is the number on the {} ?", self.name),
            Attribute::Position => write!(f, "where is the {} ?", self.name),
        }
    }
}

/// What a reasoner makes of what it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What is known of each object asked about.
    pub thought: String,
    /// The answer, or what is missing for it.
    pub decision: Result<String, Request>,
}

impl Verdict {
    /// The verdict of a perfect reasoner that has read these texts; what was said last counts.
    pub fn of(question: &Question, texts: &[&str]) -> Self {
        let facts: Vec<Fact> = texts.iter().flat_map(|text| facts(text)).collect();
        let attribute = question.attribute();
        let known = |name: Name| {
            let about = facts.iter().rev().filter(|fact| fact.name == name).map(|fact| fact.value);
            about.into_iter().find(|value| value.attribute() == attribute)
        };
        let names = question.names();
        let values: Vec<Option<Value>> = names.iter().map(|name| known(*name)).collect();
        let thought = |(name, value): (&Name, &Option<Value>)| match value {
            Some(value) => format!("{name} {value}"),
            None => format!("{name} unknown"),
        };
        let thoughts: Vec<String> = names.iter().zip(&values).map(thought).collect();
        let missing = names.iter().zip(&values).find(|(_, value)| value.is_none()).map(|(name, _)| *name);
        let request = Request { name: missing.unwrap_or(names[0]), attribute };
        Verdict { thought: list(&thoughts), decision: question.answer(&values).ok_or(request) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.decision {
            Ok(answer) => write!(f, "{} SOLVED : {answer}", self.thought),
            Err(request) => write!(f, "{} NEED MORE INFO : {request}", self.thought),
        }
    }
}
