//! A gRPC client for unary calls to one endpoint, over one connection.
//!
//! The connection is made when a call needs it, and made again when a call finds it gone. A call waits for a connection
//! that is being made; once making it failed, calls fail at once until the next try is due (0.1 s after the first
//! failure, up to 1 s, with jitter), so a next hop that is away costs a sidecar nothing and is found within about a
//! second of its return. A call that its peer provably didn't take (the connection was gone before it was sent, the
//! stream was refused, a GOAWAY left it out) is sent once more, as gRPC's transparent retry. Nothing else is: the
//! exporter retries.
//!
//! A connection that is too old is replaced while it works: calls go on over it until the new one is there, and those
//! under way end on it. What a server says of a request is its status: once that is OK, a message that is missing, cut or
//! too long is left out, and the request is taken all the same; sent again it would be there twice.
//!
//! Limits: an answer's size; time to connect; a deadline for each call, and `REST` for what follows a message that can't
//! be read. After a call that ran out of time on a
//! connection that was silent all along, the connection is asked (PING) and dropped if it doesn't answer. No TLS, no
//! proxy, no load balancing: those endpoints are gRPC's own client's.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::RecvStream;
use http::header::{HeaderMap, HeaderName, HeaderValue, CONTENT_TYPE, TE, USER_AGENT};
use http::Request;
use tokio::sync::{watch, Notify};
use tokio::time::{timeout, timeout_at, Instant};

use super::dial::{chance, dial, Lives};
use super::shared::{lock, spawn, Answer, Call, Counted, Event, Heard, Shared, Target};
use super::wire::{self, Encoding, Incoming};

const WINDOW: u32 = 1 << 20;
const HEADERS_MAX: u32 = 32 << 10;
const REST: Duration = Duration::from_secs(2);
const PONG: Duration = Duration::from_secs(5);
const BACKOFF_MIN_MS: u64 = 100;
const BACKOFF_MAX_MS: u64 = 1000;
const FAR: Duration = Duration::from_secs(24 * 3600);
const AGENT: HeaderValue = HeaderValue::from_static(concat!("skewd-native/", env!("CARGO_PKG_VERSION")));

pub struct Channel {
    shared: Arc<Shared>,
    target: Target,
    gzip: bool,
    answer_bytes: usize,
    lives: Lives,
    state: watch::Sender<State>,
    closed: watch::Sender<bool>,
}

#[derive(Clone)]
enum State {
    Idle {
        failures: u32,
    },
    Connecting,
    Ready(Arc<Link>),
    /// Calls fail with this text until then.
    Away {
        until: Instant,
        text: String,
        failures: u32,
    },
}

/// A connection that works, or did.
struct Link {
    number: u64,
    /// None once another has taken its place: it ends with the calls under way.
    send: Mutex<Option<SendRequest<Bytes>>>,
    heard: Arc<Heard>,
    failures: u32, // before this one
    /// When another is to take its place; far away while that is being made.
    end: Mutex<Instant>,
    suspect: Notify,
    suspected: AtomicBool,
}

/// How an attempt ended.
enum Tried {
    Answered(Answer),
    /// The peer didn't take it; why, and whether the connection takes others.
    NotTaken {
        text: String,
        usable: bool,
    },
}

impl Channel {
    pub fn new(shared: Arc<Shared>, target: Target, gzip: bool, answer_bytes: usize, lives: Lives) -> Self {
        Channel {
            shared,
            target,
            gzip,
            answer_bytes,
            lives,
            state: watch::Sender::new(State::Idle { failures: 0 }),
            closed: watch::Sender::new(false),
        }
    }

    /// Starts a call; its end is an event.
    pub fn call(self: &Arc<Self>, id: u64, call: Call) {
        let channel = self.clone();
        let ended = Ended { shared: self.shared.clone(), id, answer: None };
        let counted = Counted::new(&self.shared.stats, |stats| &stats.calls);
        let task = spawn(&self.shared, "a call", async move {
            let (_counted, mut ended) = (counted, ended);
            let mut closed = channel.closed.subscribe();
            channel.shared.maybe_panic(3);
            ended.answer = Some(tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => Answer::failed(wire::UNAVAILABLE, "the connection is closed"),
                answer = channel.attempt(call) => answer,
            });
        });
        lock(&self.shared.calls).insert(id, task);
    }

    /// Ends all calls and the connection.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    async fn attempt(self: &Arc<Self>, call: Call) -> Answer {
        let began = Instant::now();
        let deadline = began + call.timeout.unwrap_or(FAR).min(FAR);
        let pieces = wire::framed(call.body.clone(), self.gzip);
        let mut used: Option<(Arc<Link>, u64)> = None;
        let trying = async {
            let mut last = String::new();
            for _ in 0..2 {
                let link = match self.link().await {
                    Ok(link) => link,
                    Err(text) => return Answer::failed(wire::UNAVAILABLE, text),
                };
                used = Some((link.clone(), link.heard.mark()));
                match self.exchange(&link, &call, pieces.clone(), deadline).await {
                    Tried::Answered(answer) => return answer,
                    Tried::NotTaken { text, usable } => {
                        last = text;
                        if !usable {
                            self.gone(&link);
                        }
                    }
                }
            }
            Answer::failed(wire::UNAVAILABLE, last)
        };
        match timeout_at(deadline, trying).await {
            Ok(answer) => answer,
            Err(_) => {
                if let Some((link, mark)) = used {
                    if link.heard.mark() == mark && !link.suspected.swap(true, Relaxed) {
                        link.suspect.notify_one();
                    }
                }
                let waited = deadline - began;
                Answer::failed(wire::DEADLINE_EXCEEDED, format!("no answer within {} s", waited.as_secs_f64()))
            }
        }
    }

    /// A connection that works, as far as is known; else what making one failed with.
    async fn link(self: &Arc<Self>) -> Result<Arc<Link>, String> {
        let mut state = self.state.subscribe();
        let current = match &*state.borrow() {
            State::Ready(link) => Some(link.clone()),
            _ => None,
        };
        if let Some(link) = current {
            self.renew(&link);
            return Ok(link);
        }
        let mut begin = None;
        self.state.send_if_modified(|state| {
            let failures = match state {
                State::Idle { failures } => *failures,
                State::Away { until, failures, .. } if *until <= Instant::now() => *failures,
                _ => return false,
            };
            *state = State::Connecting;
            begin = Some(failures);
            true
        });
        if let Some(failures) = begin {
            let channel = self.clone();
            let attempt = Attempt { channel: channel.clone(), failures, over: false, instead_of: None };
            spawn(&self.shared, "a connection to the next hop", async move { channel.connect(attempt).await });
        }
        let settled = state.wait_for(|state| matches!(state, State::Ready(_) | State::Away { .. })).await;
        match settled.as_deref() {
            Ok(State::Ready(link)) => Ok(link.clone()),
            Ok(State::Away { text, .. }) => Err(text.clone()),
            _ => Err("the connection is closed".to_owned()),
        }
    }

    /// Makes another connection if this one is too old. As long as that fails, the old one is used.
    fn renew(self: &Arc<Self>, link: &Arc<Link>) {
        let now = Instant::now();
        let mut end = lock(&link.end);
        if now < *end {
            return;
        }
        *end = now + FAR;
        let channel = self.clone();
        let attempt = Attempt { channel: channel.clone(), failures: 0, over: false, instead_of: Some(link.clone()) };
        spawn(&self.shared, "a connection to the next hop", async move { channel.connect(attempt).await });
    }

    /// Makes the connection and lives as long as it does.
    async fn connect(self: Arc<Self>, mut attempt: Attempt) {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let failures = attempt.failures;
        let heard = Heard::new();
        let mut closed = self.closed.subscribe();
        let opened = tokio::select! {
            _ = closed.wait_for(|closed| *closed) => return,
            opened = dial(&self.target, &self.lives, heard.clone()) => opened,
        };
        let socket = match opened {
            Ok(socket) => socket,
            Err(text) => return attempt.fail(text),
        };
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(HEADERS_MAX);
        let (send, mut connection) = match builder.handshake::<_, Bytes>(socket).await {
            Ok(both) => both,
            Err(error) => return attempt.fail(error.to_string()),
        };
        let mut ping = connection.ping_pong();
        let link = Arc::new(Link {
            number: NUMBERS.fetch_add(1, Relaxed),
            send: Mutex::new(Some(send)),
            heard,
            failures,
            end: Mutex::new(self.lives.end()),
            suspect: Notify::new(),
            suspected: AtomicBool::new(false),
        });
        let _counted = Counted::new(&self.shared.stats, |stats| &stats.next_hops);
        attempt.over = true;
        let _lost = Lost { channel: self.clone(), link: link.clone() };
        self.state.send_replace(State::Ready(link.clone()));
        if let Some(old) = attempt.instead_of.take() {
            lock(&old.send).take(); // the last that could begin a call on it
        }
        let suspicion = async {
            loop {
                link.suspect.notified().await;
                let Some(ping) = ping.as_mut() else { return };
                let asked = async {
                    ping.send_ping(h2::Ping::opaque()).is_ok() && poll_fn(|cx| ping.poll_pong(cx)).await.is_ok()
                };
                if !timeout(PONG, asked).await.unwrap_or(false) {
                    return;
                }
                link.suspected.store(false, Relaxed);
            }
        };
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => {}
            _ = &mut connection => {}
            () = suspicion => {}
        }
    }

    /// The connection is used no more. One that never said a word counts as a failure to connect.
    fn gone(&self, link: &Link) {
        self.state.send_if_modified(|state| match state {
            State::Ready(current) if current.number == link.number => {
                *state = if link.heard.ever() {
                    State::Idle { failures: 0 }
                } else {
                    away(link.failures, "the connection was closed before anything was said".to_owned())
                };
                true
            }
            _ => false,
        });
    }

    async fn exchange(&self, link: &Link, call: &Call, pieces: Vec<Bytes>, deadline: Instant) -> Tried {
        let Some(send) = lock(&link.send).clone() else {
            return Tried::NotTaken { text: "the connection was replaced".to_owned(), usable: true };
        };
        let mut send = match send.ready().await {
            Ok(send) => send,
            Err(error) => return Tried::NotTaken { text: error.to_string(), usable: false },
        };
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = call.uri.clone();
        let fields = request.headers_mut();
        *fields = call.metadata.clone();
        fields.insert(TE, HeaderValue::from_static("trailers"));
        fields.insert(CONTENT_TYPE, wire::GRPC);
        fields.entry(USER_AGENT).or_insert(AGENT);
        fields.insert(wire::ACCEPT_ENCODING, HeaderValue::from_static(wire::ENCODINGS));
        if self.gzip {
            fields.insert(wire::ENCODING, HeaderValue::from_static("gzip"));
        }
        if call.timeout.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(value) = HeaderValue::from_str(&wire::format_timeout(left)) {
                fields.insert(wire::TIMEOUT, value);
            }
        }
        let sent = send.send_request(request, false).and_then(|(response, mut stream)| {
            let last = pieces.len() - 1;
            for (number, piece) in pieces.into_iter().enumerate() {
                stream.send_data(piece, number == last)?;
            }
            Ok((response, stream))
        });
        let (response, _stream) = match sent {
            Ok(sent) => sent,
            Err(error) => return broken(&error),
        };
        match response.await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                self.answer(head.status.as_u16(), &head.headers, body).await
            }
            Err(error) => broken(&error),
        }
    }

    async fn answer(&self, status: u16, head: &HeaderMap, mut body: RecvStream) -> Tried {
        if body.is_end_stream() && head.contains_key(wire::STATUS) {
            return Tried::Answered(ended(head, None));
        }
        if status != 200 {
            return Tried::Answered(Answer::refused(wire::code_of_http(status), format!("HTTP status {status}")));
        }
        let kind = head.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        if !kind.starts_with(b"application/grpc") {
            return Tried::Answered(Answer::refused(wire::UNKNOWN, "the answer is not gRPC's, by its content type"));
        }
        let encoding = Encoding::parse(head.get(wire::ENCODING).map(HeaderValue::as_bytes));
        let mut incoming = Incoming::new(self.answer_bytes);
        while let Some(piece) = poll_fn(|cx| body.poll_data(cx)).await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return broken(&error),
            };
            let _ = body.flow_control().release_capacity(piece.len());
            if let Err(refusal) = incoming.feed(&piece) {
                return Tried::Answered(match timeout(REST, rest(&mut body)).await {
                    Ok(Some(trailers)) => ended(&trailers, None),
                    // Who sends a message, of whatever size, has taken the request.
                    _ if refusal.code == wire::RESOURCE_EXHAUSTED => Answer::refused(wire::OK, ""),
                    _ => Answer::refused(refusal.code, refusal.message),
                });
            }
        }
        let trailers = match poll_fn(|cx| body.poll_trailers(cx)).await {
            Ok(trailers) => trailers.unwrap_or_default(),
            Err(error) => return broken(&error),
        };
        Tried::Answered(ended(&trailers, encoding.and_then(|encoding| incoming.finish(encoding).ok())))
    }
}

/// The trailers after what is left of a message that can't be read; None if the stream breaks.
async fn rest(body: &mut RecvStream) -> Option<HeaderMap> {
    while let Some(piece) = poll_fn(|cx| body.poll_data(cx)).await {
        let _ = body.flow_control().release_capacity(piece.ok()?.len());
    }
    poll_fn(|cx| body.poll_trailers(cx)).await.ok()?
}

/// The answer that headers with a `grpc-status` give, with the message that came before them, as far as it is one.
fn ended(fields: &HeaderMap, message: Option<Vec<u8>>) -> Answer {
    let Some(value) = fields.get(wire::STATUS) else {
        return Answer::refused(wire::UNKNOWN, "the answer has no grpc-status");
    };
    let code = value.to_str().ok().and_then(|text| text.parse::<u8>().ok()).filter(|code| *code <= 16);
    match code.unwrap_or(wire::UNKNOWN) {
        wire::OK => Answer { body: Bytes::from(message.unwrap_or_default()), ..Answer::refused(wire::OK, "") },
        code => Answer {
            code,
            message: fields.get(wire::MESSAGE).map_or_else(String::new, |value| wire::decode_message(value.as_bytes())),
            body: Bytes::new(),
            details: fields.get(wire::DETAILS).and_then(|value| wire::decode_binary(value.as_bytes())),
            heard: true,
        },
    }
}

/// A stream or connection that ended without an answer.
fn broken(error: &h2::Error) -> Tried {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let left_out = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
    if error.is_remote() && (refused || left_out) {
        return Tried::NotTaken { text: error.to_string(), usable: refused };
    }
    let code = match error.reason() {
        Some(reason) if error.is_reset() => wire::code_of_reset(reason),
        _ => wire::UNAVAILABLE,
    };
    Tried::Answered(Answer::failed(code, error.to_string()))
}

fn away(failures: u32, text: String) -> State {
    let ceiling = (BACKOFF_MIN_MS << failures.min(8)).min(BACKOFF_MAX_MS);
    let wait = ceiling - ceiling * u64::from(chance()) / 1024;
    State::Away { until: Instant::now() + Duration::from_millis(wait), text, failures: failures + 1 }
}

/// An attempt to connect, which ends in one way or another: nobody waits for one that isn't being made.
struct Attempt {
    channel: Arc<Channel>,
    failures: u32,
    over: bool,
    /// The connection that it shall take the place of.
    instead_of: Option<Arc<Link>>,
}

impl Attempt {
    fn fail(mut self, text: String) {
        self.failed(text);
    }

    fn failed(&mut self, text: String) {
        self.over = true;
        match self.instead_of.take() {
            Some(old) => *lock(&old.end) = Instant::now() + self.channel.lives.age / 16, // it serves a little longer
            None => drop(self.channel.state.send_replace(away(self.failures, text))),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.over {
            self.failed("the connection could not be made".to_owned());
        }
    }
}

struct Lost {
    channel: Arc<Channel>,
    link: Arc<Link>,
}

impl Drop for Lost {
    fn drop(&mut self) {
        self.channel.gone(&self.link);
    }
}

/// Tells Python how the call ended, whatever ended it.
struct Ended {
    shared: Arc<Shared>,
    id: u64,
    answer: Option<Answer>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        lock(&self.shared.calls).remove(&self.id);
        let answer = self.answer.take();
        let answer = answer.unwrap_or_else(|| Answer::failed(wire::UNAVAILABLE, "the call was given up"));
        self.shared.tell(Event::Answered { call: self.id, answer });
    }
}

/// What a call sends along; None if a name or value can't be sent.
pub fn headers(pairs: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::with_capacity(pairs.len() + 6);
    for (name, value) in pairs {
        let wrong = || format!("the header '{name}' cannot be sent");
        let field = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        map.append(field, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| wrong())?);
    }
    Ok(map)
}
