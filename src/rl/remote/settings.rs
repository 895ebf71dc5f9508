//! What a run says about its reasoner, and what a server is asked with.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

const OP: &str = "reasoner";

/// `[reasoner.server]`: how a server is asked. Where it is, its key, and how its model answers, `[reasoner]` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Requests under way at a time.
    pub concurrency: usize,
    /// Seconds for one request, from its first byte to the last of its reply.
    pub timeout: f64,
    /// Times that a question is asked again after a failure of its own.
    pub retries: usize,
    /// Seconds that a question waits for a server that is down or too busy.
    pub patience: f64,
    /// Questions in a row without a reply, until the run stops.
    pub max_troubles: usize,
    /// Questions that may be sent in all.
    pub max_requests: Option<u64>,
    /// Tokens, read and written, after which no more is sent.
    pub max_total_tokens: Option<u64>,
    /// A file that keeps replies, so that no question is asked twice, not even by the next run.
    pub cache: Option<PathBuf>,
    /// A file of certificates (PEM) to trust instead of the public ones.
    pub certificates: Option<PathBuf>,
    /// Further keys of every request, such as `{ chat_template_kwargs = { enable_thinking = false } }`.
    pub extra: toml::Table,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            concurrency: 64,
            timeout: 600.0,
            retries: 4,
            patience: 900.0,
            max_troubles: 32,
            max_requests: None,
            max_total_tokens: None,
            cache: None,
            certificates: None,
            extra: toml::Table::new(),
        }
    }
}

/// How a server is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteSettings {
    /// Where it is, with or without `/v1`.
    pub url: String,
    /// Which of its models; asked from it if it is not said.
    pub model: Option<String>,
    /// The environment variable that holds its key.
    pub api_key_env: Option<String>,
    /// The most tokens of one reply.
    pub max_tokens: usize,
    /// The temperature of the replies.
    pub temperature: f64,
    /// The probability that tokens are drawn from.
    pub top_p: Option<f64>,
    /// Requests under way at a time.
    pub concurrency: usize,
    /// For connecting.
    pub connect_timeout: Duration,
    /// For one request in all.
    pub timeout: Duration,
    /// Times that a question is asked again after a failure of its own.
    pub retries: usize,
    /// The pause before the first of them; each doubles it, up to sixty times this.
    pub pause: Duration,
    /// How long a question waits for a server that is down or too busy.
    pub patience: Duration,
    /// Questions in a row without a reply, until asking is given up.
    pub max_troubles: usize,
    /// Questions that may be sent in all.
    pub max_requests: Option<u64>,
    /// Tokens, read and written, after which no more is sent.
    pub max_total_tokens: Option<u64>,
    /// A file that keeps replies.
    pub cache: Option<PathBuf>,
    /// A file of certificates to trust instead of the public ones.
    pub certificates: Option<PathBuf>,
    /// Further keys of every request.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl RemoteSettings {
    /// A server, and what is usual.
    pub fn at(url: impl Into<String>) -> Self {
        ServerConfig::default().settings(url).expect("what is usual is allowed")
    }
}

impl ServerConfig {
    /// The settings for a server; of its model, key and sampling they have what is usual.
    pub fn settings(&self, url: impl Into<String>) -> Result<RemoteSettings> {
        let refuse = |what: String| Err(Error::caller(OP, what));
        let seconds = |name: &str, value: f64| match Duration::try_from_secs_f64(value) {
            Ok(duration) if !duration.is_zero() => Ok(duration),
            _ => Err(Error::caller(OP, format!("reasoner.server.{name} is {value}; it is seconds, above 0"))),
        };
        if !(1..=4096).contains(&self.concurrency) {
            return refuse(format!(
                "reasoner.server.concurrency is {}; it is from 1 to 4096",
                self.concurrency
            ));
        }
        if self.max_troubles == 0 {
            return refuse("reasoner.server.max_troubles is 0; it has to be at least 1".to_owned());
        }
        let extra = serde_json::to_value(&self.extra)
            .map_err(|cause| Error::caller(OP, format!("reasoner.server.extra cannot be sent: {cause}")))?;
        Ok(RemoteSettings {
            url: url.into(),
            model: None,
            api_key_env: None,
            max_tokens: 4096,
            temperature: 0.0,
            top_p: None,
            concurrency: self.concurrency,
            connect_timeout: Duration::from_secs(10),
            timeout: seconds("timeout", self.timeout)?,
            retries: self.retries,
            pause: Duration::from_millis(500),
            patience: seconds("patience", self.patience)?,
            max_troubles: self.max_troubles,
            max_requests: self.max_requests,
            max_total_tokens: self.max_total_tokens,
            cache: self.cache.clone(),
            certificates: self.certificates.clone(),
            extra: extra.as_object().cloned().unwrap_or_default(),
        })
    }
}
