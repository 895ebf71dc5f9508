//! One request to a server, and whose fault it is if nothing comes of it.

use super::Trouble;
use super::pause::pause_asked;
use super::reply::{Reply, complaint_in, read};
use super::settings::RemoteSettings;
use crate::error::{Error, Result};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};
use ureq::http::{HeaderValue, Response, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Timeout};

/// The most bytes of a reply.
const LARGEST_REPLY: u64 = 16 << 20;

/// Why a try came to nothing.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failure {
    /// The question will fare no better next time.
    Final(Trouble),
    /// It may.
    Passing(Trouble),
    /// The server is there and asks for time, perhaps for so much.
    Busy(Trouble, Option<Duration>),
    /// Nobody is there.
    Away(String),
    /// Nobody will be, as things are set up.
    Hopeless(String),
}

/// Somewhere to ask.
#[derive(Debug)]
pub(super) struct Server {
    agent: Agent,
    /// Ends in `/v1` or what stands for it.
    pub(super) base: String,
    key: Option<Key>,
}

struct Key(String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }
}

impl Server {
    pub(super) fn new(settings: &RemoteSettings) -> Result<Self> {
        let (base, host) = base(&settings.url)?;
        let key = settings.api_key_env.as_deref().map(key).transpose()?;
        // One request runs on one connection; the environment's proxy is for the world outside this machine.
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(settings.concurrency)
            .max_idle_connections_per_host(settings.concurrency)
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_global(Some(settings.timeout))
            .user_agent(concat!("pellucid/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &settings.certificates {
            config = config.tls_config(TlsConfig::builder().root_certs(roots(path)?).build());
        }
        if ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str()) {
            config = config.proxy(None);
        }
        Ok(Server { agent: config.build().new_agent(), base, key })
    }

    /// Asks a question.
    pub(super) fn ask(&self, body: &[u8]) -> Result<Reply, Failure> {
        let mut request = self
            .agent
            .post(format!("{}/chat/completions", self.base))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, key.header());
        }
        let body = self.body_of(request.send(body).map_err(failure)?)?;
        read(&self.keyless(body)).map_err(|trouble| match trouble {
            Trouble::Garbage(_) | Trouble::Stalled => Failure::Passing(trouble),
            Trouble::Refused { .. } => Failure::Final(trouble),
        })
    }

    /// The only model it has.
    pub(super) fn model(&self) -> Result<String, Failure> {
        let mut request = self.agent.get(format!("{}/models", self.base));
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, key.header());
        }
        let body = self.body_of(request.call().map_err(failure)?)?;
        let listed: Value = serde_json::from_slice(&body).unwrap_or_default();
        let models = listed["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        match models.iter().map(|model| model["id"].as_str()).collect::<Vec<_>>().as_slice() {
            [Some(name)] => Ok((*name).to_owned()),
            [_, _, ..] => {
                Err(Failure::Hopeless("it has several models; name one in reasoner.model".to_owned()))
            }
            _ => {
                let what =
                    format!("its list of models is no such thing: {}", complaint_in(&self.keyless(body)));
                Err(Failure::Passing(Trouble::Garbage(what)))
            }
        }
    }

    /// The body of a success; anything else is a failure.
    fn body_of(&self, mut response: Response<Body>) -> Result<Vec<u8>, Failure> {
        let status = response.status().as_u16();
        let after = pause_asked(response.headers(), SystemTime::now());
        let body = response.body_mut().with_config().limit(LARGEST_REPLY).read_to_vec();
        if (200..300).contains(&status) {
            return body.map_err(failure);
        }
        let mut what = complaint_in(&self.keyless(body.unwrap_or_default()));
        if let Some(place) = response.headers().get(header::LOCATION).and_then(|place| place.to_str().ok()) {
            what = format!("it points to {place}; give that as reasoner.url if it is right");
        }
        let refused = Trouble::Refused { status, what };
        Err(match status {
            429 | 502 | 503 | 504 | 529 => Failure::Busy(refused, after),
            408 | 425 | 500.. => Failure::Passing(refused),
            _ => Failure::Final(refused),
        })
    }

    /// A body without the key, should the server repeat it. Short keys are no secrets but words such as EMPTY, which a
    /// reply may well hold.
    fn keyless(&self, body: Vec<u8>) -> Vec<u8> {
        let Some(Key(key)) = self.key.as_ref().filter(|Key(key)| key.len() >= 8) else { return body };
        match std::str::from_utf8(&body) {
            Ok(text) if text.contains(key) => text.replace(key, "(the key)").into_bytes(),
            Ok(_) => body,
            Err(_) => String::from_utf8_lossy(&body).replace(key, "(the key)").into_bytes(),
        }
    }
}

impl Key {
    fn header(&self) -> HeaderValue {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {}", self.0)).expect("was tried when it was read");
        value.set_sensitive(true);
        value
    }
}

/// What paths are added to, and the host.
fn base(url: &str) -> Result<(String, String)> {
    let refuse = |why: &str| {
        let what = format!("reasoner.url {url:?} {why}; expected one like http://localhost:8000");
        Error::caller("reasoner", what)
    };
    let parsed: Uri = url.parse().map_err(|_| refuse("is no address"))?;
    let (Some(scheme), Some(authority)) = (parsed.scheme_str(), parsed.authority()) else {
        return Err(refuse("is no whole address"));
    };
    if !["http", "https"].contains(&scheme) {
        return Err(refuse("is neither http nor https"));
    }
    if authority.as_str().contains('@') {
        // Not shown: it may hold a password.
        let what = "reasoner.url holds a name before its @; a key is given by reasoner.api_key_env";
        return Err(Error::caller("reasoner", what));
    }
    if parsed.query().is_some() {
        return Err(refuse("has a ? in it"));
    }
    let path = match parsed.path().trim_end_matches('/') {
        "" => "/v1",
        path => path,
    };
    Ok((format!("{scheme}://{authority}{path}"), parsed.host().unwrap_or_default().to_owned()))
}

/// A key, from the environment.
fn key(variable: &str) -> Result<Key> {
    let refuse = |why: &str| {
        let what = format!("reasoner.api_key_env names {variable}, which {why} in the environment");
        Error::caller("reasoner", what)
    };
    let key = std::env::var(variable).map_err(|_| refuse("is not text, or not there,"))?;
    let key = key.trim();
    if key.is_empty() {
        return Err(refuse("is empty"));
    }
    if HeaderValue::from_str(key).is_err() {
        return Err(refuse("holds what no header may hold"));
    }
    Ok(Key(key.to_owned()))
}

/// Certificates of a file.
fn roots(path: &Path) -> Result<RootCerts> {
    let text = std::fs::read(path).map_err(|cause| Error::file_because(path, "cannot be read", cause))?;
    let mut found: Vec<Certificate<'static>> = Vec::new();
    for item in parse_pem(&text) {
        let item = item.map_err(|cause| Error::file_because(path, "is no PEM", cause))?;
        if let PemItem::Certificate(certificate) = item {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(Error::file(path, "holds no certificates; expected -----BEGIN CERTIFICATE----- in it"));
    }
    Ok(RootCerts::from(found))
}

/// Whose fault an error of the client is.
fn failure(error: ureq::Error) -> Failure {
    use ureq::Error as E;
    match &error {
        E::Timeout(Timeout::Connect | Timeout::Resolve) => Failure::Away(error.to_string()),
        E::Timeout(_) => Failure::Passing(Trouble::Stalled),
        E::HostNotFound | E::ConnectionFailed | E::ConnectProxyFailed(_) => Failure::Away(error.to_string()),
        E::Io(cause) => match cause.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                Failure::Away(cause.to_string())
            }
            // What rustls says of certificates, and of servers that do not speak TLS.
            ErrorKind::InvalidData => Failure::Hopeless(cause.to_string()),
            _ => Failure::Passing(Trouble::Garbage(format!("the connection broke off: {cause}"))),
        },
        E::BodyExceedsLimit(limit) => {
            Failure::Passing(Trouble::Garbage(format!("the reply is longer than {limit} bytes")))
        }
        E::Tls(_) | E::Rustls(_) | E::TlsRequired | E::BadUri(_) | E::Http(_) | E::InvalidProxyUrl => {
            Failure::Hopeless(error.to_string())
        }
        _ => Failure::Passing(Trouble::Garbage(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (url, expected) in [
            ("http://localhost:8000", "http://localhost:8000/v1"),
            ("http://localhost:8000/", "http://localhost:8000/v1"),
            ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
            ("https://one.example/api/v3", "https://one.example/api/v3"),
            ("http://[::1]:80", "http://[::1]:80/v1"),
        ] {
            assert_eq!(base(url).unwrap().0, expected);
        }
        for (url, expected) in [
            ("", "no address"),
            ("localhost:8000", "no whole address"),
            ("/v1", "no whole address"),
            ("ftp://one.example", "neither http nor https"),
            ("http://one.example/v1?key=1", "has a ?"),
            ("http://me:secret@one.example", "before its @"),
        ] {
            let error = base(url).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
