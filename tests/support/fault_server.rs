//! An eval endpoint on loopback that misbehaves to order: raw TCP, one thread a connection, one scripted reply a
//! request.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// What a request gets.
#[derive(Clone)]
pub enum Reply {
    /// What a proper endpoint would answer.
    Good,
    /// The proper answer, changed.
    Edited(fn(&mut Value)),
    /// The same by what was asked.
    #[allow(dead_code, reason = "not every test needs it")]
    Scored(fn(&Value, &mut Value)),
    /// The proper answer, after that long.
    #[allow(dead_code, reason = "not every test needs it")]
    Slow(Duration),
    Status(u16, &'static [(&'static str, &'static str)], String),
    /// These bytes as they are, then the end of the connection.
    Raw(String),
    /// The connection ends after half of a proper answer.
    CutMidBody,
    /// The connection ends without an answer.
    Cut,
    /// As `Cut`, and from then on the server is a new one (another instance id).
    Die,
    /// 503 after a while that differs from request to request.
    #[allow(dead_code, reason = "not every test needs it")]
    SlowlyBusy,
    /// Nothing, until the client gives up.
    Hang,
    /// The head of an answer and a little of its body, then nothing.
    Stall,
    /// An answer whose body has that many bytes, without saying so before.
    Endless(usize),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What the server answers by itself, and what it has seen.
pub struct Inner {
    pub posts: Mutex<VecDeque<Reply>>,
    /// Replies to GET and DELETE of an evaluation.
    pub polls: Mutex<VecDeque<Reply>>,
    /// Replies to health checks; `Good` when empty.
    pub healths: Mutex<VecDeque<Reply>>,
    /// What follows when `posts` is empty.
    pub otherwise: Mutex<Reply>,
    pub capabilities: Mutex<Value>,
    pub seen: Mutex<Vec<Seen>>,
    /// The most evaluations that were being worked on at the same time.
    pub most_at_once: AtomicUsize,
    at_once: AtomicUsize,
    generation: AtomicUsize,
    stopped: AtomicBool,
}

/// The server; it stops when dropped.
pub struct FaultServer {
    pub address: SocketAddr,
    pub inner: Arc<Inner>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Capabilities of a proper endpoint: tasks `add` (20 samples) and `rev` (10 samples) with `accuracy`.
pub fn capabilities() -> Value {
    let metric = json!({"name": "accuracy", "higher_is_better": true, "aggregation": "mean", "min": 0, "max": 1});
    let task = |name: &str, n: u64| {
        json!({"name": name, "version": "1", "n_samples": n, "metrics": [metric],
               "supports": ["limit", "sample_ids", "per_sample", "seed"]})
    };
    json!({"protocol": ["1.0"], "instance_id": "boot-0", "fingerprint": "fp-1", "sources": ["path"], "deterministic": true,
           "tasks": [task("add", 20), task("rev", 10)], "limits": {"max_inflight": 1}})
}

impl FaultServer {
    pub fn start(posts: Vec<Reply>) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), posts)
    }

    pub fn start_on(address: SocketAddr, posts: Vec<Reply>) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let inner = Arc::new(Inner {
            posts: Mutex::new(posts.into()),
            polls: Mutex::default(),
            healths: Mutex::default(),
            otherwise: Mutex::new(Reply::Good),
            capabilities: Mutex::new(capabilities()),
            seen: Mutex::default(),
            most_at_once: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let address = listener.local_addr().unwrap();
        let serving = Arc::clone(&inner);
        let thread = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if serving.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(connection), inner) = (connection, Arc::clone(&serving)) else { continue };
                std::thread::spawn(move || serve(connection, &inner));
            }
        });
        Self { address, inner, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests with that method, in order.
    pub fn seen(&self, method: &str) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().iter().filter(|seen| seen.method == method).cloned().collect()
    }

    /// Evaluations asked for.
    pub fn posts(&self) -> usize {
        self.seen("POST").len()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.inner.stopped.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then closes the socket.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(connection: TcpStream, inner: &Inner) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let Some(seen) = read_request(&mut reader) else { return };
    inner.seen.lock().unwrap().push(seen.clone());
    let reply = match (seen.method.as_str(), seen.path.as_str()) {
        ("POST", _) => {
            inner.posts.lock().unwrap().pop_front().unwrap_or_else(|| inner.otherwise.lock().unwrap().clone())
        }
        (_, path) if path.ends_with("/v1/health") => inner.healths.lock().unwrap().pop_front().unwrap_or(Reply::Good),
        (_, "/v1/capabilities") => Reply::Good,
        _ => inner.polls.lock().unwrap().pop_front().unwrap_or(Reply::Good),
    };
    if seen.method == "POST" {
        let at_once = inner.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        inner.most_at_once.fetch_max(at_once, Ordering::SeqCst);
        if let Reply::Slow(work) = reply {
            std::thread::sleep(work);
        }
        // Before the answer leaves: who has it may send the next request, which this one must not be counted with.
        inner.at_once.fetch_sub(1, Ordering::SeqCst);
    }
    let _ = write_reply(connection, &mut reader, &reply, &seen, inner);
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { method, path, headers, body: String::from_utf8(body).unwrap() })
}

fn write_reply(
    mut out: TcpStream,
    reader: &mut BufReader<TcpStream>,
    reply: &Reply,
    seen: &Seen,
    inner: &Inner,
) -> std::io::Result<()> {
    let good = || good_answer(seen, inner).to_string();
    let until_the_client_leaves = |reader: &mut BufReader<TcpStream>| {
        let _ = reader.read(&mut [0]);
    };
    match reply {
        Reply::Good | Reply::Slow(_) => out.write_all(http(200, &[], &good()).as_bytes()),
        Reply::Edited(edit) => {
            let mut answer = good_answer(seen, inner);
            edit(&mut answer);
            out.write_all(http(200, &[], &answer.to_string()).as_bytes())
        }
        Reply::Scored(score) => {
            let mut answer = good_answer(seen, inner);
            score(&seen.json(), &mut answer);
            out.write_all(http(200, &[], &answer.to_string()).as_bytes())
        }
        Reply::SlowlyBusy => {
            let turn = inner.seen.lock().unwrap().len() as u64;
            std::thread::sleep(Duration::from_millis(50 + turn * 37 % 200));
            out.write_all(http(503, &[("Retry-After", "1")], "busy").as_bytes())
        }
        Reply::Status(status, headers, body) => out.write_all(http(*status, headers, body).as_bytes()),
        Reply::Raw(bytes) => out.write_all(bytes.as_bytes()),
        Reply::CutMidBody => {
            let whole = http(200, &[], &good());
            out.write_all(&whole.as_bytes()[..whole.len() - 40])
        }
        Reply::Cut => Ok(()),
        Reply::Die => {
            inner.generation.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        Reply::Hang => {
            until_the_client_leaves(reader);
            Ok(())
        }
        Reply::Stall => {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")?;
            until_the_client_leaves(reader);
            Ok(())
        }
        Reply::Endless(bytes) => {
            out.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            let chunk = [b' '; 4096];
            for _ in 0..bytes.div_ceil(chunk.len()) {
                out.write_all(&chunk)?;
            }
            Ok(())
        }
    }
}

/// An HTTP/1.1 answer.
pub fn http(status: u16, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn good_answer(seen: &Seen, inner: &Inner) -> Value {
    let instance = format!("boot-{}", inner.generation.load(Ordering::SeqCst));
    let mut capabilities = inner.capabilities.lock().unwrap().clone();
    capabilities["instance_id"] = json!(instance);
    match (seen.method.as_str(), seen.path.as_str()) {
        (_, path) if path.ends_with("/v1/health") => json!({"status": "ok", "instance_id": instance}),
        ("POST", _) => evaluation(&seen.json(), &capabilities),
        ("GET", "/v1/capabilities") => capabilities,
        // A poll: the evaluation that was asked for last.
        _ => {
            let asked = inner.seen.lock().unwrap().iter().rfind(|seen| seen.method == "POST").unwrap().json();
            evaluation(&asked, &capabilities)
        }
    }
}

/// Scores by sample number alone: every third sample is wrong.
fn evaluation(request: &Value, capabilities: &Value) -> Value {
    let mut tasks = serde_json::Map::new();
    for task in request["tasks"].as_array().unwrap() {
        let known =
            capabilities["tasks"].as_array().unwrap().iter().find(|known| known["name"] == task["name"]).unwrap();
        let n = known["n_samples"].as_u64().unwrap();
        let ids: Vec<Value> = match (&task["sample_ids"], &task["limit"]) {
            (Value::Array(ids), _) => ids.clone(),
            (_, Value::Number(limit)) => (0..n.min(limit.as_u64().unwrap())).map(Value::from).collect(),
            _ => (0..n).map(Value::from).collect(),
        };
        let scores: Vec<f64> =
            ids.iter().map(|id| if id.as_u64().unwrap().is_multiple_of(3) { 0.0 } else { 1.0 }).collect();
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        tasks.insert(
            task["name"].as_str().unwrap().to_owned(),
            json!({"n": ids.len(), "metrics": {"accuracy": {"value": mean, "stderr": 0.1}},
                   "per_sample": {"ids": ids, "scores": {"accuracy": scores}}}),
        );
    }
    json!({"evaluation_id": request["evaluation_id"], "candidate_id": request["candidate"]["id"], "status": "succeeded",
           "instance_id": capabilities["instance_id"], "fingerprint": capabilities["fingerprint"], "tasks": tasks,
           "timing": {"evaluate_s": 0.01}})
}
