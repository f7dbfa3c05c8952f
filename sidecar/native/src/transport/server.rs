//! A gRPC server for unary calls, as small as a sidecar needs it; and what every server has: its connections, its end.
//!
//! One task a connection, one a request. A request's task reads the message, hands it to Python, waits for the answer
//! or for a reason not to wait any longer (the client cancelled, its deadline passed, the server closes), and writes
//! it. All that is counted is counted by values that the tasks own, so whatever ends a task gives back what it held.
//!
//! Limits (`Limits`): connections, of which the one longest without a request is closed for a new one; streams a
//! connection; requests and bytes of all together; sizes of messages and headers; time to begin, to send a body, to
//! take an answer. A peer that is silent is asked (PING) and closed if it doesn't answer; one that resets far more
//! requests than it lets finish is closed. What HTTP/2 alone defines (frames, windows, floods of continuations,
//! settings, resets and empty frames) is `h2`'s to bound.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{HeaderMap, HeaderName, HeaderValue, ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{oneshot, watch, Notify};
use tokio::time::{sleep, timeout, Instant};

use super::http_server;
use super::shared::{
    lock, spawn, Answer, Counted, Event, Heard, Held, Listening, Metadata, Protocol, Shared, Socket, REQUEST_BYTES,
};
use super::wire::{self, Encoding, Incoming, Refusal};

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
const FRAME_MAX: u32 = 32 << 10;
const HEADERS_MAX: u32 = 16 << 10;
const SEND_BUFFER: usize = 256 << 10;
const HANDSHAKE: Duration = Duration::from_secs(10);
const SEND: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(30);
/// After the grace, for the last answers to leave.
const FLUSH: Duration = Duration::from_millis(250);
const RESETS_MAX: i64 = 1000;
/// An answer up to this size is left to `h2`'s buffers; a longer one is sent as the client takes it.
const ANSWER_BUFFERED: usize = 64 << 10;

/// Longer details than this would not fit into the headers that clients take.
const DETAILS_MAX: usize = 4 << 10;

pub struct Server {
    pub id: u64,
    protocol: Protocol,
    pub(super) shared: Arc<Shared>,
    pub(super) limits: super::shared::Limits,
    pub(super) paths: Vec<String>,
    pub(super) metadata: Vec<HeaderName>,
    requests: AtomicUsize,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    empty: Notify,
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Serving,
    Draining,
    Ending,
    Over,
}

pub(super) struct Connection {
    active: AtomicUsize,
    pub(super) used: AtomicU64, // a count of all requests, at this connection's last
    resets: AtomicI64,
    pub(super) close: Notify,
}

static USES: AtomicU64 = AtomicU64::new(0);

pub(super) fn used_now() -> u64 {
    USES.fetch_add(1, Relaxed)
}

impl Server {
    pub fn new(
        shared: Arc<Shared>,
        id: u64,
        protocol: Protocol,
        paths: Vec<String>,
        metadata: Vec<HeaderName>,
        limits: super::shared::Limits,
    ) -> Self {
        Server {
            id,
            protocol,
            shared,
            limits,
            paths,
            metadata,
            requests: AtomicUsize::new(0),
            connections: Mutex::default(),
            empty: Notify::new(),
            phase: watch::Sender::new(Phase::Serving),
        }
    }

    /// Begins to accept; on the runtime's thread.
    pub fn listen(self: &Arc<Self>, listening: Listening) {
        let listener = match listening {
            Listening::Tcp(each) => {
                each.set_nonblocking(true).and_then(|()| TcpListener::from_std(each)).map(Listener::Tcp)
            }
            Listening::Unix(each) => {
                each.set_nonblocking(true).and_then(|()| UnixListener::from_std(each)).map(Listener::Unix)
            }
        };
        match listener {
            Ok(listener) => {
                let server = self.clone();
                let deaf = Deaf(server.clone());
                spawn(&self.shared, "a listener", async move {
                    let _deaf = deaf;
                    server.accept(listener).await;
                });
            }
            Err(error) => {
                self.shared.tell(Event::Trouble { text: format!("the listening socket cannot be used: {error}") });
                self.shared.tell(Event::Deaf { server: self.id });
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: Listener) {
        let mut phase = self.phase.subscribe();
        loop {
            let heard = Heard::new();
            let accepted = tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
                accepted = listener.accept(heard.clone()) => accepted,
            };
            self.shared.maybe_panic(6);
            let Ok(socket) = accepted else {
                sleep(Duration::from_millis(50)).await; // no descriptors left, most likely; they come back
                continue;
            };
            if lock(&self.connections).len() >= self.limits.connections {
                match self.protocol {
                    Protocol::Grpc if self.evict() => {}
                    Protocol::Grpc => continue, // all are busy: the new one is closed
                    Protocol::Http { .. } => {
                        // Nobody can tell a client of HTTP/1.1 beforehand that its connection ends: none gives way.
                        self.shared.turned_away(self.id);
                        http_server::turn_away(socket).await;
                        continue;
                    }
                }
            }
            let server = self.clone();
            let connection = Arc::new(Connection {
                active: AtomicUsize::new(0),
                used: AtomicU64::new(used_now()),
                resets: AtomicI64::new(0),
                close: Notify::new(),
            });
            let id = self.shared.new_id();
            lock(&self.connections).insert(id, connection.clone());
            let listed =
                Listed { server: self.clone(), id, _counted: Counted::new(&self.shared.stats, |s| &s.connections) };
            spawn(&self.shared, "a connection", async move {
                let _listed = listed;
                let phase = server.phase.subscribe();
                match server.protocol {
                    Protocol::Grpc => server.serve(socket, &heard, connection, phase).await,
                    Protocol::Http { idle } => http_server::serve(server, socket, connection, phase, idle).await,
                }
            });
        }
    }

    /// Closes the connection that has been without a request for longest. False if none is without.
    fn evict(&self) -> bool {
        let mut connections = lock(&self.connections);
        let idle = connections.iter().filter(|(_, each)| each.active.load(Relaxed) == 0);
        let Some(id) = idle.min_by_key(|(_, each)| each.used.load(Relaxed)).map(|(id, _)| *id) else {
            return false;
        };
        if let Some(connection) = connections.remove(&id) {
            connection.close.notify_one();
        }
        true
    }

    async fn serve(
        self: Arc<Self>,
        socket: Socket,
        heard: &Heard,
        connection: Arc<Connection>,
        mut phase: watch::Receiver<Phase>,
    ) {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_header_list_size(HEADERS_MAX)
            .max_concurrent_streams(self.limits.streams)
            .max_send_buffer_size(SEND_BUFFER);
        let mut peer = tokio::select! {
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
            () = connection.close.notified() => return,
            shaken = timeout(HANDSHAKE, builder.handshake::<_, Bytes>(socket)) => match shaken {
                Ok(Ok(peer)) => peer,
                _ => return, // another protocol, or nothing at all
            },
        };
        let mut ping = peer.ping_pong();
        let mut mark = heard.mark();
        let mut asked = false;
        let mut draining = false;
        let mut tick = tokio::time::interval_at(Instant::now() + SILENCE, SILENCE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.shared.maybe_panic(1);
            tokio::select! {
                accepted = peer.accept() => match accepted {
                    Some(Ok((request, respond))) => self.begin(&connection, request, respond),
                    _ => return, // closed by either side, or broken
                },
                changed = phase.changed() => match (changed.is_ok(), *phase.borrow_and_update()) {
                    (true, Phase::Serving) => {}
                    (true, Phase::Draining | Phase::Ending) => {
                        if !draining {
                            draining = true;
                            peer.graceful_shutdown();
                        }
                    }
                    _ => return,
                },
                () = connection.close.notified() => return,
                _ = tick.tick() => {
                    let silent = heard.mark() == mark;
                    mark = heard.mark();
                    if silent && asked {
                        return;
                    }
                    asked = silent && ping.as_mut().is_some_and(|ping| ping.send_ping(h2::Ping::opaque()).is_ok());
                },
                pong = poll_fn(|cx| match ping.as_mut() {
                    Some(ping) => ping.poll_pong(cx),
                    None => std::task::Poll::Pending,
                }), if asked => match pong {
                    Ok(_) => asked = false,
                    Err(_) => return,
                },
            }
            if connection.resets.load(Relaxed) > RESETS_MAX {
                peer.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                let _ = timeout(FLUSH, poll_fn(|cx| peer.poll_closed(cx))).await;
                return;
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) {
        connection.used.store(used_now(), Relaxed);
        let under_way = UnderWay::new(self.clone(), connection.clone());
        let server = self.clone();
        spawn(&self.shared, "a request", async move { server.request(under_way, request, respond).await });
    }

    async fn request(
        self: Arc<Self>,
        under_way: UnderWay,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (head, mut body) = request.into_parts();
        let arrived = Instant::now();
        let received = self.receive(&under_way, &head, &mut body, arrived).await;
        if matches!(received, Err(Ended::Refused(_))) {
            self.shared.stats.refused.fetch_add(1, Relaxed);
        }
        let answer = match received {
            Ok(received) => {
                drop(body);
                self.hand_over(received, &mut respond).await
            }
            Err(Ended::Refused(refusal)) if refusal.http != 200 => {
                let mut response = Response::builder().status(refusal.http).body(()).unwrap_or_default();
                if refusal.http == 405 {
                    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                }
                let _ = respond.send_response(response, true);
                return;
            }
            Err(Ended::Refused(refusal)) => Some(Answer::failed(refusal.code, refusal.message)),
            Err(Ended::Gone) => None,
        };
        let resets = &under_way.connection.resets;
        if let Some(answer) = answer {
            // What a connection lets finish speaks for it.
            let _ = resets.fetch_update(Relaxed, Relaxed, |count| (count > 0).then(|| count - 1));
            let _ = timeout(SEND, send(respond, answer)).await;
        } else {
            resets.fetch_add(1, Relaxed);
        }
    }

    /// The whole request, checked.
    async fn receive(
        &self,
        under_way: &UnderWay,
        head: &http::request::Parts,
        body: &mut RecvStream,
        arrived: Instant,
    ) -> Result<Received, Ended> {
        let Head { path, encoding, timeout: limit, metadata } = self.check(head)?;
        if under_way.number > self.limits.requests {
            let refusal = Refusal::new(wire::UNAVAILABLE, "the sidecar has too many requests under way; try again");
            return Err(refusal.into());
        }
        let deadline = limit.and_then(|limit| arrived.checked_add(limit));
        let mut incoming = Incoming::new(self.limits.body_bytes);
        let mut held = Held::new(&self.shared.stats);
        let beside = metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if !held.add(REQUEST_BYTES + beside, self.limits.held_bytes) {
            return Err(too_many_bytes());
        }
        let late = arrived + self.limits.read;
        let until = deadline.map_or(late, |deadline| deadline.min(late));
        let reading = async {
            while let Some(piece) = poll_fn(|cx| body.poll_data(cx)).await {
                let piece = piece.map_err(|_| Ended::Gone)?;
                let _ = body.flow_control().release_capacity(piece.len());
                if !held.add(piece.len(), self.limits.held_bytes) {
                    return Err(too_many_bytes());
                }
                incoming.feed(&piece)?;
            }
            Ok::<(), Ended>(())
        };
        match tokio::time::timeout_at(until, reading).await {
            Ok(read) => read?,
            Err(_) => {
                let code = if deadline == Some(until) { wire::DEADLINE_EXCEEDED } else { wire::UNAVAILABLE };
                return Err(Refusal::new(code, "the request did not arrive in time").into());
            }
        }
        let size = incoming.size();
        let message = incoming.finish(encoding)?;
        if message.len() > size && !held.add(message.len() - size, self.limits.held_bytes) {
            return Err(too_many_bytes());
        }
        Ok(Received { path, message, deadline, metadata, held })
    }

    fn check(&self, head: &http::request::Parts) -> Result<Head, Refusal> {
        let kind = head.headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if !(kind.starts_with(b"application/grpc") && matches!(kind.get(16), None | Some(b'+' | b';'))) {
            return Err(Refusal {
                http: 415,
                ..Refusal::new(wire::INTERNAL, "this is a gRPC server; the content type is not")
            });
        }
        if head.method != Method::POST {
            return Err(Refusal { http: 405, ..Refusal::new(wire::INTERNAL, "gRPC calls are POSTs") });
        }
        let asked = head.uri.path();
        let Some(path) = self.paths.iter().position(|each| each == asked) else {
            let cut: String = asked.chars().take(100).collect();
            return Err(Refusal::new(wire::UNIMPLEMENTED, format!("no such method here: {cut}")));
        };
        let Some(encoding) = Encoding::parse(head.headers.get(wire::ENCODING).map(HeaderValue::as_bytes)) else {
            let text = format!("the message's encoding is not offered; send one of {}", wire::ENCODINGS);
            return Err(Refusal::new(wire::UNIMPLEMENTED, text));
        };
        let timeout = match head.headers.get(wire::TIMEOUT) {
            None => None,
            Some(value) => match wire::parse_timeout(value.as_bytes()) {
                None => return Err(Refusal::new(wire::INTERNAL, "malformed grpc-timeout")),
                some => some,
            },
        };
        let mut metadata = Metadata::new();
        for name in &self.metadata {
            for value in head.headers.get_all(name) {
                // Every byte is a character: what other than ASCII may go on is for Python to say.
                let text = value.as_bytes().iter().map(|&byte| char::from(byte)).collect();
                metadata.push((name.as_str().to_owned(), text));
            }
        }
        Ok(Head { path: path as u8, encoding, timeout, metadata })
    }

    /// Python's answer; None if nobody waits for one.
    async fn hand_over(&self, received: Received, respond: &mut SendResponse<Bytes>) -> Option<Answer> {
        let Received { path, message, deadline, metadata, held } = received;
        let id = self.shared.new_id();
        let (sender, answer) = oneshot::channel();
        lock(&self.shared.waiting).insert(id, sender);
        let mut waiting = Waiting { shared: &self.shared, id, answered: false };
        self.shared.tell(Event::Request { server: self.id, id, path, body: message, deadline, metadata, held });
        self.shared.maybe_panic(2);
        let mut phase = self.phase.subscribe();
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = answer => {
                waiting.answered = true;
                Some(answer.unwrap_or_else(|_| Answer::failed(wire::UNAVAILABLE, "the sidecar did not answer; try again")))
            }
            _ = poll_fn(|cx| respond.poll_reset(cx)) => None,
            () = late => Some(Answer::failed(wire::DEADLINE_EXCEEDED, "the deadline passed before the next hop answered")),
            _ = phase.wait_for(|phase| *phase >= Phase::Ending) =>
                Some(Answer::failed(wire::UNAVAILABLE, "the sidecar is shutting down; try again")),
        }
    }

    /// No more connections, GOAWAY to those there are, `grace` for their requests; then their end.
    pub fn close(self: &Arc<Self>, grace: Duration) {
        let server = self.clone();
        spawn(&self.shared, "the end of a listener", async move {
            struct Told(Arc<Server>);
            impl Drop for Told {
                fn drop(&mut self) {
                    self.0.shared.tell(Event::Closed { server: self.0.id });
                }
            }
            let _told = Told(server.clone());
            for (phase, within) in [(Phase::Draining, grace), (Phase::Ending, FLUSH), (Phase::Over, FLUSH)] {
                server.phase.send_replace(phase);
                let gone = async {
                    while !lock(&server.connections).is_empty() {
                        server.empty.notified().await;
                    }
                };
                if timeout(within, gone).await.is_ok() {
                    break;
                }
            }
            server.phase.send_replace(Phase::Over);
        });
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self, heard: Arc<Heard>) -> std::io::Result<Socket> {
        match self {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Socket::tcp(stream, heard)),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Socket::unix(stream, heard)),
        }
    }
}

/// Tells Python that a listener ended before its server was closed.
struct Deaf(Arc<Server>);

impl Drop for Deaf {
    fn drop(&mut self) {
        if *self.0.phase.borrow() == Phase::Serving {
            self.0.shared.tell(Event::Deaf { server: self.0.id });
        }
    }
}

/// A connection's entry, for as long as its task runs.
struct Listed {
    server: Arc<Server>,
    id: u64,
    _counted: Counted,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.server.connections).remove(&self.id);
        self.server.empty.notify_one();
    }
}

/// A request's place among those under way.
pub(super) struct UnderWay {
    server: Arc<Server>,
    connection: Arc<Connection>,
    number: usize,
    _counted: Counted,
}

impl UnderWay {
    pub(super) fn new(server: Arc<Server>, connection: Arc<Connection>) -> Self {
        connection.active.fetch_add(1, Relaxed);
        let number = server.requests.fetch_add(1, Relaxed) + 1;
        let counted = Counted::new(&server.shared.stats, |stats| &stats.requests);
        UnderWay { server, connection, number, _counted: counted }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.connection.active.fetch_sub(1, Relaxed);
        self.server.requests.fetch_sub(1, Relaxed);
    }
}

/// A request that Python was handed; it is told if nobody waits any more.
struct Waiting<'a> {
    shared: &'a Arc<Shared>,
    id: u64,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered {
            lock(&self.shared.waiting).remove(&self.id);
            self.shared.tell(Event::Gone { id: self.id });
        }
    }
}

struct Head {
    path: u8,
    encoding: Encoding,
    timeout: Option<Duration>,
    metadata: Metadata,
}

struct Received {
    path: u8,
    message: Vec<u8>,
    deadline: Option<Instant>,
    metadata: Metadata,
    held: Held,
}

enum Ended {
    Refused(Refusal),
    Gone,
}

impl From<Refusal> for Ended {
    fn from(refusal: Refusal) -> Self {
        Ended::Refused(refusal)
    }
}

fn too_many_bytes() -> Ended {
    Refusal::new(wire::UNAVAILABLE, "the sidecar has too many bytes under way; try again").into()
}

/// An error is the client's absence: nobody is left to tell.
async fn send(mut respond: SendResponse<Bytes>, answer: Answer) -> Result<(), h2::Error> {
    let Answer { code, message, body, details, .. } = answer;
    let mut response = Response::new(());
    let fields = status(code, &message, details.as_deref());
    if code != wire::OK {
        *response.headers_mut() = fields; // headers and trailers in one
        response.headers_mut().insert(CONTENT_TYPE, wire::GRPC);
        response.headers_mut().insert(wire::ACCEPT_ENCODING, HeaderValue::from_static(wire::ENCODINGS));
        respond.send_response(response, true)?;
        return Ok(());
    }
    response.headers_mut().insert(CONTENT_TYPE, wire::GRPC);
    let mut stream = respond.send_response(response, false)?;
    for mut piece in wire::framed(body, false) {
        while piece.len() > ANSWER_BUFFERED {
            stream.reserve_capacity(piece.len());
            let Some(capacity) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
                return Ok(());
            };
            let size = capacity?.min(piece.len());
            stream.send_data(piece.split_to(size), false)?;
        }
        stream.send_data(piece, false)?;
    }
    stream.send_trailers(fields)
}

fn status(code: u8, message: &str, details: Option<&[u8]>) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(3);
    fields.insert(wire::STATUS, HeaderValue::from(u16::from(code)));
    if !message.is_empty() {
        if let Ok(value) = HeaderValue::from_bytes(&wire::encode_message(message)) {
            fields.insert(wire::MESSAGE, value);
        }
    }
    if let Some(details) = details.filter(|details| details.len() <= DETAILS_MAX) {
        if let Ok(value) = HeaderValue::from_str(&wire::encode_binary(details)) {
            fields.insert(wire::DETAILS, value);
        }
    }
    fields
}
