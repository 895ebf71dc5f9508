//! A server that does whatever servers do, one connection for each request.

#![allow(dead_code, reason = "each file of tests uses what it needs")]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a server got.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// How many came before it.
    pub(crate) number: usize,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Request {
    /// The last message.
    pub(crate) fn words(&self) -> String {
        let messages = self.body["messages"].as_array().expect("messages");
        messages.last().expect("one")["content"].as_str().expect("words").to_owned()
    }
}

/// What it does then.
pub(crate) enum Act {
    /// Sends bytes, as they are, and closes.
    Send(Vec<u8>),
    /// Says nothing until the client has gone.
    Stall,
}

pub(crate) fn with_status(status: u16, headers: &str, body: &[u8]) -> Act {
    let mut bytes = format!(
        "HTTP/1.1 {status} X\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    Act::Send(bytes)
}

pub(crate) fn completion(text: &str, finish: &str) -> Act {
    let body = json!({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    });
    with_status(200, "content-type: application/json\r\n", body.to_string().as_bytes())
}

/// A server under way.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    down: Arc<AtomicBool>,
    listening: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(act: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        Server::start_at("127.0.0.1:0", act)
    }

    pub(crate) fn start_at(address: &str, act: impl Fn(&Request) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).expect("the port is free");
        let address = listener.local_addr().expect("is bound");
        let (seen, down) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (all, off, act) = (Arc::clone(&seen), Arc::clone(&down), Arc::new(act));
        let listening = thread::spawn(move || {
            for stream in listener.incoming() {
                if off.load(SeqCst) {
                    return;
                }
                let (stream, all, act) = (stream.expect("a connection"), Arc::clone(&all), Arc::clone(&act));
                thread::spawn(move || serve(stream, &all, &*act));
            }
        });
        Server { address, seen, down, listening: Some(listening) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn stop(&mut self) {
        if let Some(listening) = self.listening.take() {
            self.down.store(true, SeqCst);
            drop(TcpStream::connect(self.address)); // so that it looks up
            listening.join().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(mut stream: TcpStream, all: &Mutex<Vec<Request>>, act: &dyn Fn(&Request) -> Act) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) => {}
            // As servers answer those who speak TLS to them.
            Err(_) => {
                return drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"));
            }
        }
        if let Some(number) = line.to_lowercase().strip_prefix("content-length:") {
            length = number.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let request = {
        let mut all = all.lock().unwrap();
        let request = Request { number: all.len(), head, body };
        all.push(request.clone());
        request
    };
    match act(&request) {
        Act::Send(bytes) => drop(stream.write_all(&bytes)), // a client may have had enough
        Act::Stall => drop(reader.read(&mut [0])),
    }
}
