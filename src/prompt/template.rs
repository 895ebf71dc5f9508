//! Chat templates: the Jinja a checkpoint brings, rendered byte for byte as transformers renders it.
//!
//! minijinja is the engine; the modules below hold what Python does differently. Like transformers, a template
//! gets `messages`, `tools`, `documents`, `add_generation_prompt`, the special tokens, any further arguments,
//! `raise_exception` and `strftime_now`; unlike there, the time is UTC and may be given, so that a rendering can
//! be repeated. `{% generation %}` blocks stand for their contents.
//!
//! A template is code from a stranger. Its steps, its recursion and the size of what it writes are limited and
//! a panic of the engine becomes an error. Two things are not limited: the memory of a value that a template
//! makes huge (by doubling, joining, indenting) without writing it, and the time one step takes over a long list.

use std::fmt;
use std::io;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};
use crate::format::read_bytes;

mod date;
mod json;
mod method;
mod python;

/// Steps of the engine a template may take, and more for each message (published templates take 50 to 300).
const STEPS: usize = 400_000;
const STEPS_PER_MESSAGE: usize = 2_000;
/// Stack for each step: one step can nest a value one deeper, and printing and dropping it recurse. Measured at
/// most 400 bytes a level.
const STACK_PER_STEP: usize = 600;
/// Calls (macros, recursive loops) may be nested this deep: a quarter of it in macros.
const DEPTH: usize = 200;
/// Longest text a template may write.
const MAX_OUTPUT: usize = 64 << 20;
/// Longest template read from a file.
const MAX_SOURCE: usize = 4 << 20;

/// What a template is rendered with besides the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// Tools as JSON schemas (`null` if there are none).
    pub tools: Json,
    /// Documents for retrieval (`null` if there are none).
    pub documents: Json,
    /// Whether to open the assistant's next turn.
    pub add_generation_prompt: bool,
    /// Further arguments by name (`enable_thinking`, ...); they win over special tokens.
    pub arguments: Map<String, Json>,
    /// The time that `strftime_now` sees; the present if none.
    pub now: Option<SystemTime>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    special_tokens: Map<String, Json>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Finds the template of a checkpoint folder: `chat_template.jinja`, else `chat_template.json`, else
    /// the one in `tokenizer_config.json`, whose special tokens are used in any case.
    pub fn load(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let folder = folder.as_ref();
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json(&config_path)?.unwrap_or(Json::Null);
        let special_tokens = special_tokens(&config);
        let jinja = folder.join("chat_template.jinja");
        if let Some(source) = read_text(&jinja)? {
            return Self::new(&source, jinja, special_tokens).map(Some);
        }
        let json = folder.join("chat_template.json");
        for (path, document) in [(json.clone(), read_json(&json)?), (config_path, Some(config))] {
            if let Some(source) = document.as_ref().and_then(|document| document.get("chat_template")) {
                let source = default_template(source).ok_or_else(|| {
                    Error::file(&path, "chat_template: expected a text or a list holding `default`")
                })?;
                return Self::new(source, path, special_tokens).map(Some);
            }
        }
        Ok(None)
    }

    /// Compiles a template; `path` is how errors name it.
    pub fn new(source: &str, path: impl AsRef<Path>, special_tokens: Map<String, Json>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        if source.len() > MAX_SOURCE {
            return Err(Error::file(
                &path,
                format!("a template of {} bytes, at most {MAX_SOURCE} are read", source.len()),
            ));
        }
        let source = without_generation_tags(source);
        let compiled = catch_unwind(|| {
            let mut environment = Environment::new();
            environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
            environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
            environment.set_recursion_limit(DEPTH);
            // An error would carry the template's variables, to be dropped on the caller's stack.
            environment.set_debug(false);
            python::install(&mut environment);
            environment.add_template_owned("chat", source)?;
            Ok(environment)
        });
        let environment = settle(&path, compiled)?;
        Ok(ChatTemplate { environment, path, special_tokens })
    }

    /// Renders `messages` (objects as [`super::message::Message::to_template`] makes them).
    pub fn render(&self, messages: &[Json], options: &RenderOptions) -> Result<String> {
        let mut environment = self.environment.clone();
        let steps = STEPS + STEPS_PER_MESSAGE * messages.len();
        environment.set_fuel(Some(steps as u64));
        let context = self.context(messages, options);
        let mut output = Limited(Vec::new());
        // A thread of its own, because a template may nest values deeper than any caller's stack.
        let rendered = std::thread::scope(|scope| {
            let work = || {
                let rendered = environment.get_template("chat")?.render_captured_to(context, &mut output);
                rendered.map(|_| ())
            };
            std::thread::Builder::new()
                .stack_size(STACK_PER_STEP * steps)
                .spawn_scoped(scope, work)
                .map(|thread| thread.join())
        })
        .map_err(|e| Error::machine_because("chat template", "cannot start a thread", e))?;
        if output.0.len() > MAX_OUTPUT {
            return Err(Error::file(&self.path, format!("the template writes more than {MAX_OUTPUT} bytes")));
        }
        settle(&self.path, rendered)?;
        String::from_utf8(output.0)
            .map_err(|_| Error::internal("chat template", "the engine wrote broken UTF-8"))
    }

    fn context(&self, messages: &[Json], options: &RenderOptions) -> Value {
        let now = options.now.unwrap_or_else(SystemTime::now);
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
        let strftime = move |format: &str| date::strftime(format, seconds);
        let own = [
            ("messages", messages.iter().map(with_reasoning_names).collect()),
            ("tools", python::value(&options.tools)),
            ("documents", python::value(&options.documents)),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("strftime_now", Value::from_function(strftime)),
        ];
        let named = self.special_tokens.iter().chain(&options.arguments);
        let named = named.map(|(name, value)| (name.as_str(), python::value(value)));
        Value::from_pairs(named.chain(own))
    }
}

/// What came back from the engine, with errors in our words.
fn settle<T>(path: &Path, result: std::thread::Result<Result<T, minijinja::Error>>) -> Result<T> {
    let Ok(result) = result else {
        return Err(Error::file(path, "the template engine failed on this template"));
    };
    result.map_err(|error| {
        if let Some(message) = python::raised(&error) {
            return Error::caller("chat template", message);
        }
        let line = error.line().map_or(String::new(), |line| format!("line {line}: "));
        let what = match error.kind() {
            ErrorKind::OutOfFuel => "the template takes too many steps, does it loop forever?".to_owned(),
            kind => error.detail().map_or(kind.to_string(), |detail| format!("{kind}: {detail}")),
        };
        Error::file(path, format!("chat template: {line}{what}"))
    })
}

/// Reasoning goes by several names; transformers gives a message the standard one, which templates read, and
/// `thinking`.
fn with_reasoning_names(message: &Json) -> Value {
    let names = ["reasoning_content", "thinking", "reasoning"];
    let reasoning = names.iter().find_map(|name| message.get(name).filter(|value| !value.is_null()));
    match (message, reasoning) {
        (Json::Object(fields), Some(reasoning)) => {
            let mut named = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
            named.extend(fields.clone());
            named.insert("reasoning_content".into(), reasoning.clone());
            python::value(&Json::Object(named))
        }
        _ => python::value(message),
    }
}

/// `{% generation %}` marks the assistant's words for training masks and changes no text: it becomes a block
/// that only opens a scope. (The tag's text inside a string or a `raw` block would be rewritten too.)
fn without_generation_tags(source: &str) -> String {
    let tag =
        fancy_regex::Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("a valid pattern");
    tag.replace_all(source, "${1}${2}with${3}").into_owned()
}

/// The template called `default` where a file names several.
fn default_template(source: &Json) -> Option<&str> {
    let named = |name: &str| source.as_array()?.iter().find(|entry| entry["name"] == name)?.get("template");
    source.as_str().or_else(|| named("default")?.as_str())
}

fn special_tokens(config: &Json) -> Map<String, Json> {
    let text = |token: &Json| token.as_str().or_else(|| token.get("content")?.as_str()).map(Json::from);
    let names = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    names.iter().filter_map(|name| Some(((*name).to_owned(), text(config.get(*name)?)?))).collect()
}

fn read_text(path: &Path) -> Result<Option<String>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = String::from_utf8(read_bytes(path)?);
    text.map(Some).map_err(|e| Error::file_because(path, "is not utf-8", e))
}

fn read_json(path: &Path) -> Result<Option<Json>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|e| Error::file_because(path, "not valid json", e))
}

/// Collects what a template writes, up to a little more than [`MAX_OUTPUT`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() > MAX_OUTPUT {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let taken = bytes.len().min(MAX_OUTPUT + 1 - self.0.len());
        self.0.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
