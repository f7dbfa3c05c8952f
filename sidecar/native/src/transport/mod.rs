//! A transport for the sidecar: gRPC's unary calls over plaintext HTTP/2, in and out, and OTLP over HTTP/1.1, beside
//! Python's event loop.
//!
//! Python's gRPC costs ten times what the sidecar does with a small request. What costs there is the crossing between
//! threads, several times a call, each with Python's lock. So one thread here speaks HTTP/2 and never takes that lock;
//! whole requests and answers cross in batches (`shared.rs`), and Python decides.
//!
//! `Transport` is the whole surface. Its Python twins are gRPC's own package and aiohttp, behind the same classes
//! (`skewd_sidecar.receive`, `skewd_sidecar.forward`).
//!
//! Limits: no TLS, no streaming, no proxies, Linux. A fault in a task ends that task's connection or call, is counted,
//! and is told to Python, which logs it.

mod client;
mod dial;
mod http1;
mod http_client;
mod http_server;
mod server;
mod shared;
mod wire;

use std::collections::HashMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{mpsc, Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use tokio::time::Instant;

use client::Channel;
use dial::Lives;
use http1::{Fields, HttpAnswer, HttpAnswered, HttpCall, HttpRequest};
use http_client::HttpChannel;
use server::Server;
use shared::{lock, Answer, Call, Command, Event, Limits, Listening, Protocol, Shared, Target};

/// What `skewd_sidecar.transport` expects: changes with what is called here, and with what events hold.
pub const INTERFACE: u32 = 4;

/// Kinds of events, as `take` gives them; the first value of each tuple.
const REQUEST: u8 = 0; // server, id, path, body, timeout_s | None, metadata
const GONE: u8 = 1; // id
const ANSWERED: u8 = 2; // call, code, message, body, details | None, whether the next hop said so
const CLOSED: u8 = 3; // server
const TROUBLE: u8 = 4; // text
const DEAF: u8 = 5; // server
const HTTP_REQUEST: u8 = 6; // server, id, method, path, content type | None, encoding | None, metadata, body, fault | None
const TURNED_AWAY: u8 = 7; // server, count

// call, status, reason, content type | None, encoding | None, retry after | None, date | None, body; without an answer
// call, None, why
const HTTP_ANSWERED: u8 = 8;

/// A thread that speaks gRPC for one event loop. See the module's text.
#[pyclass(frozen, module = "skewd_native")]
pub struct Transport {
    shared: Arc<Shared>,
    paths: Vec<String>,
    channels: Mutex<HashMap<u64, Endpoint>>,
    thread: Mutex<Option<(mpsc::Receiver<()>, JoinHandle<()>)>>,
}

/// An endpoint, on the thread.
enum Called {
    Grpc(Arc<Channel>),
    Http(Arc<HttpChannel>),
}

struct Endpoint {
    uris: Vec<Uri>,
}

#[pymethods]
impl Transport {
    /// Starts the thread. `paths`: the methods served and called, as `/package.Service/Method`; by their index after.
    #[new]
    fn new(paths: Vec<String>) -> PyResult<Self> {
        let shared = Arc::new(Shared::new()?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(4) // resolving names
            .build()?;
        let (ended, done) = mpsc::channel();
        let mine = shared.clone();
        let thread = std::thread::Builder::new().name("skewd-transport".to_owned()).spawn(move || {
            let run = AssertUnwindSafe(|| runtime.block_on(run(mine.clone())));
            if catch_unwind(run).is_err() {
                mine.stats.panics.fetch_add(1, Relaxed);
            }
            runtime.shutdown_timeout(Duration::from_millis(50)); // a name that is still being resolved is not waited for
            mine.die();
            mine.tell(Event::Trouble { text: "the native transport has ended".to_owned() });
            mine.signal_now();
            let _ = ended.send(());
        })?;
        Ok(Transport { shared, paths, channels: Mutex::default(), thread: Mutex::new(Some((done, thread))) })
    }

    /// Readable when there are events to take.
    #[getter]
    fn fd(&self) -> i32 {
        self.shared.fd()
    }

    /// Whether the thread has ended.
    #[getter]
    fn dead(&self) -> bool {
        self.shared.dead.load(Relaxed)
    }

    /// All events since the last time, as tuples that begin with their kind.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let now = Instant::now();
        let mut events = Vec::new();
        for event in self.shared.take() {
            events.push(match event {
                Event::Request { server, id, path, body, deadline, metadata, held } => {
                    let left = deadline.map(|deadline| deadline.saturating_duration_since(now).as_secs_f64());
                    let metadata = PyTuple::new(py, metadata)?;
                    let body = PyBytes::new(py, &body);
                    drop(held);
                    (REQUEST, server, id, path, body, left, metadata).into_pyobject(py)?
                }
                Event::Gone { id } => (GONE, id).into_pyobject(py)?.into_any().cast_into()?,
                Event::Answered { call, answer: Answer { code, message, body, details, heard } } => {
                    let details = details.map(|each| PyBytes::new(py, &each));
                    (ANSWERED, call, code, message, PyBytes::new(py, &body), details, heard).into_pyobject(py)?
                }
                Event::Closed { server } => (CLOSED, server).into_pyobject(py)?,
                Event::Trouble { text } => (TROUBLE, text).into_pyobject(py)?,
                Event::Deaf { server } => (DEAF, server).into_pyobject(py)?,
                Event::HttpRequest { server, id, request, held } => {
                    let HttpRequest { method, path, content_type, content_encoding, metadata, body, fault } = *request;
                    let metadata = PyTuple::new(py, metadata)?;
                    let body = PyBytes::new(py, &body);
                    drop(held);
                    (HTTP_REQUEST, server, id, method, path, content_type, content_encoding, metadata, body, fault)
                        .into_pyobject(py)?
                }
                Event::HttpAnswered { call, answered } => match *answered {
                    HttpAnswered::Answer { status, reason, fields, body } => {
                        let Fields { content_type, content_encoding, retry_after, date } = fields;
                        let body = PyBytes::new(py, &body);
                        (HTTP_ANSWERED, call, status, reason, content_type, content_encoding, retry_after, date, body)
                            .into_pyobject(py)?
                    }
                    HttpAnswered::Late => (HTTP_ANSWERED, call, None::<u16>, "late").into_pyobject(py)?,
                    HttpAnswered::Failed(text) => (HTTP_ANSWERED, call, None::<u16>, text).into_pyobject(py)?,
                },
                Event::TurnedAway { server, count } => (TURNED_AWAY, server, count).into_pyobject(py)?,
            });
        }
        PyList::new(py, events)
    }

    /// Sends everything given since the last time on its way.
    fn flush(&self) {
        self.shared.flush();
    }

    /// Serves on a listening socket, which becomes the transport's own.
    ///
    /// fd: of the socket, closed if this fails. unix: of its family. Sizes in bytes. metadata: names of headers that are
    /// handed on.
    #[pyo3(signature = (fd, *, unix, body_bytes, held_bytes, requests, connections, streams, read_s, metadata))]
    #[allow(clippy::too_many_arguments)]
    fn listen(
        &self,
        fd: i32,
        unix: bool,
        body_bytes: usize,
        held_bytes: usize,
        requests: usize,
        connections: usize,
        streams: u32,
        read_s: f64,
        metadata: Vec<String>,
    ) -> PyResult<u64> {
        let protocol = Protocol::Grpc;
        let limits = Limits { body_bytes, held_bytes, requests, connections, streams, read: limited(read_s) };
        self.serve(fd, unix, protocol, self.paths.clone(), &metadata, limits)
    }

    /// The same for OTLP over HTTP/1.1, whose `paths` are those whose bodies are read. idle_s: for a head to arrive.
    #[pyo3(signature = (fd, *, unix, paths, body_bytes, held_bytes, connections, idle_s, read_s, metadata))]
    #[allow(clippy::too_many_arguments)]
    fn listen_http(
        &self,
        fd: i32,
        unix: bool,
        paths: Vec<String>,
        body_bytes: usize,
        held_bytes: usize,
        connections: usize,
        idle_s: f64,
        read_s: f64,
        metadata: Vec<String>,
    ) -> PyResult<u64> {
        let protocol = Protocol::Http { idle: limited(idle_s) };
        let read = limited(read_s);
        let limits = Limits { body_bytes, held_bytes, requests: connections, connections, streams: 1, read };
        self.serve(fd, unix, protocol, paths, &metadata, limits)
    }

    /// Frees the address; requests under way have `grace_s`. An event tells when it is over.
    fn close(&self, server: u64, grace_s: f64) {
        self.shared.command(Command::Close { server, grace: seconds(grace_s) });
        self.shared.flush();
    }

    /// Answers a request, once flushed. One that nobody waits for any more is forgotten.
    fn reply(&self, id: u64, code: u8, message: String, body: PyBackedBytes, details: Option<Vec<u8>>) {
        let body = Bytes::from_owner(body);
        self.shared.command(Command::Reply { id, answer: Answer { code, message, body, details, heard: true } });
    }

    /// Answers an HTTP request, once flushed. `close`: the connection ends after it.
    fn reply_http(
        &self,
        id: u64,
        status: u16,
        content_type: String,
        fields: Vec<(String, String)>,
        body: PyBackedBytes,
        close: bool,
    ) {
        let answer = HttpAnswer { status, content_type, fields, body: Bytes::from_owner(body), close };
        self.shared.command(Command::HttpReply { id, answer });
    }

    /// An endpoint to call: a Unix socket's path, or a host and port. It is connected to when it is first called.
    ///
    /// connect_s: for a connection to be made. age_s: after that it is replaced.
    #[pyo3(signature = (authority, *, host=None, port=0, unix=None, gzip=false, answer_bytes, connect_s, age_s))]
    #[allow(clippy::too_many_arguments)]
    fn connect(
        &self,
        authority: &str,
        host: Option<String>,
        port: u16,
        unix: Option<std::path::PathBuf>,
        gzip: bool,
        answer_bytes: usize,
        connect_s: f64,
        age_s: f64,
    ) -> PyResult<u64> {
        let target = target_of(host, port, unix)?;
        let wrong = |_| PyValueError::new_err(format!("'{authority}' is no HTTP authority"));
        let authority: Authority = authority.parse().map_err(wrong)?;
        let mut uris = Vec::with_capacity(self.paths.len());
        for path in &self.paths {
            let path: PathAndQuery = path.parse().map_err(|_| PyValueError::new_err(format!("'{path}' is no path")))?;
            let uri = Uri::builder().scheme(Scheme::HTTP).authority(authority.clone()).path_and_query(path).build();
            uris.push(uri.map_err(|error| PyValueError::new_err(error.to_string()))?);
        }
        let id = self.shared.new_id();
        lock(&self.channels).insert(id, Endpoint { uris });
        self.shared.command(Command::Connect { id, target, gzip, answer_bytes, lives: lives(connect_s, age_s) });
        Ok(id)
    }

    /// An endpoint to POST to over HTTP/1.1. `fields`: sent with every request, beside Host and the length.
    ///
    /// ValueError: something that can't be sent.
    #[pyo3(signature = (
        authority, path, fields, *, host=None, port=0, unix=None, gzip=false, answer_bytes, connect_s, age_s
    ))]
    #[allow(clippy::too_many_arguments)]
    fn connect_http(
        &self,
        authority: &str,
        path: &str,
        fields: Vec<(String, String)>,
        host: Option<String>,
        port: u16,
        unix: Option<std::path::PathBuf>,
        gzip: bool,
        answer_bytes: usize,
        connect_s: f64,
        age_s: f64,
    ) -> PyResult<u64> {
        let target = target_of(host, port, unix)?;
        let wrong = |what: &str| PyValueError::new_err(format!("'{what}' cannot be asked for"));
        let authority: Authority = authority.parse().map_err(|_| wrong(authority))?;
        let path: PathAndQuery = path.parse().map_err(|_| wrong(path))?;
        let start = format!("POST {path} HTTP/1.1\r\nHost: {authority}\r\n{}", lines(&fields)?);
        let id = self.shared.new_id();
        let lives = lives(connect_s, age_s);
        self.shared.command(Command::ConnectHttp { id, target, start, gzip, answer_bytes, lives });
        Ok(id)
    }

    /// Begins a call over HTTP, once flushed; an event tells how it ended. Its number.
    ///
    /// ValueError: a header can't be sent.
    fn call_http(
        &self,
        channel: u64,
        body: PyBackedBytes,
        timeout_s: Option<f64>,
        fields: Vec<(String, String)>,
    ) -> PyResult<u64> {
        let fields = lines(&fields)?;
        let id = self.shared.new_id();
        let call = HttpCall { fields, body: Bytes::from_owner(body), timeout: timeout_s.map(seconds) };
        self.shared.command(Command::HttpCall { channel, id, call });
        Ok(id)
    }

    /// Ends an endpoint's calls and its connection.
    fn disconnect(&self, channel: u64) {
        lock(&self.channels).remove(&channel);
        self.shared.command(Command::Disconnect { id: channel });
        self.shared.flush();
    }

    /// Begins a call, once flushed; an event tells how it ended. Its number.
    ///
    /// ValueError: a header can't be sent, or no such endpoint.
    fn call(
        &self,
        channel: u64,
        path: usize,
        body: PyBackedBytes,
        timeout_s: Option<f64>,
        metadata: Vec<(String, String)>,
    ) -> PyResult<u64> {
        let uri = lock(&self.channels).get(&channel).and_then(|endpoint| endpoint.uris.get(path)).cloned();
        let uri = uri.ok_or_else(|| PyValueError::new_err("no such endpoint"))?;
        let metadata = client::headers(&metadata).map_err(PyValueError::new_err)?;
        let id = self.shared.new_id();
        let call = Call { uri, body: Bytes::from_owner(body), timeout: timeout_s.map(seconds), metadata };
        self.shared.command(Command::Call { channel, id, call });
        Ok(id)
    }

    /// Gives a call up, once flushed.
    fn cancel(&self, call: u64) {
        self.shared.command(Command::Cancel { id: call });
    }

    /// What is there at this moment, and faults since the start.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = &self.shared.stats;
        let dict = PyDict::new(py);
        for (name, value) in [
            ("connections", &stats.connections),
            ("requests", &stats.requests),
            ("held_bytes", &stats.held_bytes),
            ("calls", &stats.calls),
            ("next_hops", &stats.next_hops),
            ("refused", &stats.refused),
            ("panics", &stats.panics),
        ] {
            dict.set_item(name, value.load(Relaxed))?;
        }
        Ok(dict)
    }

    /// For tests: the next connection (1), request (2), call (3), command (4), turn of the thread's own loop (5), or
    /// connection that a listener accepts (6) panics.
    fn panic_once(&self, what: u64) {
        self.shared.panic.store(what, Relaxed);
    }

    /// Ends the thread, with all connections. False if it hasn't ended within `timeout_s`.
    fn shutdown(&self, py: Python<'_>, timeout_s: f64) -> bool {
        self.shared.command(Command::Stop);
        self.shared.flush();
        py.detach(|| {
            let mut thread = lock(&self.thread);
            let Some((done, handle)) = thread.take() else {
                return true;
            };
            if matches!(done.recv_timeout(seconds(timeout_s)), Err(mpsc::RecvTimeoutError::Timeout)) {
                *thread = Some((done, handle));
                return false;
            }
            let _ = handle.join(); // at its last instructions
            true
        })
    }
}

impl Transport {
    fn serve(
        &self,
        fd: i32,
        unix: bool,
        protocol: Protocol,
        paths: Vec<String>,
        metadata: &[String],
        limits: Limits,
    ) -> PyResult<u64> {
        if fd < 0 {
            return Err(PyValueError::new_err("not a socket"));
        }
        // SAFETY: the caller gives the descriptor away, whatever becomes of it here.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        let names = metadata.iter().map(|name| HeaderName::from_bytes(name.as_bytes()));
        let metadata =
            names.collect::<Result<_, _>>().map_err(|_| PyValueError::new_err("not the name of a header"))?;
        let listener = if unix {
            Listening::Unix(std::os::unix::net::UnixListener::from(owned))
        } else {
            Listening::Tcp(std::net::TcpListener::from(owned))
        };
        let server = self.shared.new_id();
        self.shared.command(Command::Listen { server, protocol, listener, paths, metadata, limits });
        self.shared.flush();
        Ok(server)
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shared.command(Command::Stop);
        self.shared.flush();
    }
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.max(0.0)).unwrap_or(Duration::MAX)
}

fn target_of(host: Option<String>, port: u16, unix: Option<std::path::PathBuf>) -> PyResult<Target> {
    match (host, unix) {
        (Some(host), None) => Ok(Target::Tcp { host, port }),
        (None, Some(path)) => Ok(Target::Unix(path)),
        _ => Err(PyValueError::new_err("either a host or a Unix socket's path")),
    }
}

/// Fields as HTTP/1.1 has them, each known to be no more than a name and a value.
fn lines(fields: &[(String, String)]) -> PyResult<String> {
    let checked = client::headers(fields).map_err(PyValueError::new_err)?;
    for name in [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION] {
        if checked.contains_key(&name) {
            return Err(PyValueError::new_err(format!("the header '{name}' cannot be given")));
        }
    }
    Ok(fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect())
}

fn lives(connect_s: f64, age_s: f64) -> Lives {
    Lives { connect: limited(connect_s), age: seconds(age_s).min(Duration::from_secs(365 * 24 * 3600)) }
}

fn limited(value: f64) -> Duration {
    seconds(value).min(Duration::from_secs(3600))
}

/// The thread's work: obeying, until told to stop.
async fn run(shared: Arc<Shared>) {
    tokio::spawn(shared.clone().signal());
    let mut servers: HashMap<u64, Arc<Server>> = HashMap::new();
    let mut channels: HashMap<u64, Called> = HashMap::new();
    loop {
        let commands = shared.commands().await;
        shared.maybe_panic(5);
        for command in commands {
            if matches!(command, Command::Stop) {
                return;
            }
            let lost = match &command {
                Command::Call { id, .. } | Command::Reply { id, .. } | Command::HttpReply { id, .. } => Some(*id),
                _ => None,
            };
            let lost_http = match &command {
                Command::HttpCall { id, .. } => Some(*id),
                _ => None,
            };
            let deaf = match &command {
                Command::Listen { server, .. } => Some(*server),
                _ => None,
            };
            let obeying = AssertUnwindSafe(|| obey(&shared, &mut servers, &mut channels, command));
            if catch_unwind(obeying).is_err() {
                shared.stats.panics.fetch_add(1, Relaxed);
                shared.tell(Event::Trouble { text: "a fault in the native transport: a command was lost".to_owned() });
                if let Some(server) = deaf {
                    shared.tell(Event::Deaf { server });
                }
                if let Some(call) = lost_http {
                    let answered = Box::new(HttpAnswered::Failed("a fault in it".to_owned()));
                    shared.tell(Event::HttpAnswered { call, answered });
                }
                if let Some(id) = lost {
                    lock(&shared.http_waiting).remove(&id);
                    lock(&shared.waiting).remove(&id); // whoever waits there sees that no answer comes
                    shared.tell(Event::Answered { call: id, answer: Answer::failed(wire::UNAVAILABLE, "a fault in it") });
                }
            }
        }
    }
}

fn obey(
    shared: &Arc<Shared>,
    servers: &mut HashMap<u64, Arc<Server>>,
    channels: &mut HashMap<u64, Called>,
    command: Command,
) {
    shared.maybe_panic(4);
    match command {
        Command::Listen { server: id, protocol, listener, paths, metadata, limits } => {
            let server = Arc::new(Server::new(shared.clone(), id, protocol, paths, metadata, limits));
            server.listen(listener);
            servers.insert(id, server);
        }
        Command::Close { server, grace } => match servers.remove(&server) {
            Some(server) => server.close(grace),
            None => shared.tell(Event::Closed { server }),
        },
        Command::Reply { id, answer } => {
            if let Some(waiting) = lock(&shared.waiting).remove(&id) {
                let _ = waiting.send(answer); // gone in the meantime
            }
        }
        Command::HttpReply { id, answer } => {
            if let Some(waiting) = lock(&shared.http_waiting).remove(&id) {
                let _ = waiting.send(answer);
            }
        }
        Command::Connect { id, target, gzip, answer_bytes, lives } => {
            let channel = Channel::new(shared.clone(), target, gzip, answer_bytes, lives);
            channels.insert(id, Called::Grpc(Arc::new(channel)));
        }
        Command::Disconnect { id } => {
            match channels.remove(&id) {
                Some(Called::Grpc(channel)) => channel.close(),
                Some(Called::Http(channel)) => channel.close(),
                None => {}
            }
        }
        Command::ConnectHttp { id, target, start, gzip, answer_bytes, lives } => {
            let channel = HttpChannel::new(shared.clone(), target, start, gzip, answer_bytes, lives);
            channels.insert(id, Called::Http(Arc::new(channel)));
        }
        Command::HttpCall { channel, id, call } => match channels.get(&channel) {
            Some(Called::Http(channel)) => channel.call(id, call),
            _ => {
                let answered = Box::new(HttpAnswered::Failed("closed".to_owned()));
                shared.tell(Event::HttpAnswered { call: id, answered });
            }
        },
        Command::Call { channel, id, call } => match channels.get(&channel) {
            Some(Called::Grpc(channel)) => channel.call(id, call),
            _ => shared.tell(Event::Answered { call: id, answer: Answer::failed(wire::UNAVAILABLE, "closed") }),
        },
        Command::Cancel { id } => {
            if let Some(task) = lock(&shared.calls).remove(&id) {
                task.abort();
            }
        }
        Command::Stop => {}
    }
}
