//! A question as the server reads it. Its bytes are also its name: equal bytes are one question.

use super::settings::RemoteSettings;
use crate::error::{Error, Result};
use crate::prompt::message::{Content, Message, Part};
use serde_json::{Map, Value, json};

/// What equal questions share.
pub(super) type Name = blake3::Hash;

/// A question, ready to be sent.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) body: Vec<u8>,
}

impl Question {
    /// Of words alone. If the last of them are the assistant's, the reply goes on from there.
    pub(super) fn new(
        settings: &RemoteSettings,
        model: &str,
        messages: &[Message],
        seed: u64,
    ) -> Result<Self> {
        let told = messages.iter().map(words).collect::<Result<Vec<Value>>>()?;
        let mut body = Map::new();
        body.insert("model".into(), model.into());
        body.insert("messages".into(), told.into());
        // Newer names of a limit replace the older one; servers that know both refuse to be told both.
        if !settings.extra.contains_key("max_completion_tokens") {
            body.insert("max_tokens".into(), settings.max_tokens.into());
        }
        body.insert("temperature".into(), settings.temperature.into());
        if let Some(top_p) = settings.top_p {
            body.insert("top_p".into(), top_p.into());
        }
        // 31 bits: llama.cpp's server has no more, and takes 2^32 - 1 for "whatever you like".
        body.insert("seed".into(), (seed & 0x7fff_ffff).into());
        if messages.last().is_some_and(|last| last.role == "assistant") {
            body.insert("add_generation_prompt".into(), false.into());
            body.insert("continue_final_message".into(), true.into());
        }
        body.extend(settings.extra.clone());
        let body = Value::Object(body).to_string().into_bytes();
        Ok(Question { name: blake3::hash(&body), body })
    }
}

/// A message as text: a server of a text model need not know of parts.
fn words(message: &Message) -> Result<Value> {
    let text = match &message.content {
        Content::Text(text) => Some(text.clone()),
        Content::Parts(parts) => parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Image(_) => None,
            })
            .collect(),
        Content::Empty | Content::Data(_) => None,
    };
    let Some(text) = text else {
        let what = format!("a {} message is not words alone; the reasoner reads nothing else", message.role);
        return Err(Error::caller("reasoner", what));
    };
    Ok(json!({"role": message.role, "content": text}))
}
