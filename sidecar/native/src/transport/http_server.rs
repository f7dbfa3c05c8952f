//! An HTTP/1.1 server for export requests: it reads them whole, and Python decides.
//!
//! One task a connection, one request at a time. What can't be read (too long, too slow, cut short, no HTTP) goes to
//! Python as well, with its head and the reason, so that all answers are made in one place; its connection ends after
//! the answer, since where the next request would begin is unknown. The body of a request that is for no path here is
//! not read at all.
//!
//! Limits: those of the server, of which beyond `connections` are told to come again; of heads, `http1`'s. A client has
//! `idle` to begin a request and to finish its head, `read` for a body, and `SEND` to take an answer; one that goes away
//! is noticed, and its request given up. What comes while a request is under way is kept up to a head's size.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::http1::{self, Broken, Head, HttpAnswer, HttpRequest, Length, Reader};
use super::server::{used_now, Connection, Phase, Server, UnderWay};
use super::shared::{lock, Event, Held, Shared, Socket, REQUEST_BYTES};

const SEND: Duration = Duration::from_secs(30);
/// For a client to take the answer to what it is still sending.
const LINGER: Duration = Duration::from_secs(5);
/// Answers up to this size are sent together with their head.
const JOINED_MAX: usize = 16 << 10;
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const TURNED_AWAY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Tells a client beyond the limit to come again, if it is there to hear it.
pub async fn turn_away(mut socket: Socket) {
    let _ = timeout(Duration::ZERO, socket.write_all(TURNED_AWAY)).await;
}

pub async fn serve(
    server: Arc<Server>,
    socket: Socket,
    connection: Arc<Connection>,
    phase: watch::Receiver<Phase>,
    idle: Duration,
) {
    let mut over = phase.clone();
    let mut peer = Peer { server, connection: connection.clone(), phase, idle, reader: Reader::new(socket) };
    tokio::select! {
        biased;
        _ = over.wait_for(|phase| *phase == Phase::Over) => {}
        () = connection.close.notified() => {}
        () = peer.serve() => {}
    }
}

struct Peer {
    server: Arc<Server>,
    connection: Arc<Connection>,
    phase: watch::Receiver<Phase>,
    idle: Duration,
    reader: Reader<Socket>,
}

impl Peer {
    async fn serve(&mut self) {
        loop {
            self.server.shared.maybe_panic(1);
            let head = match self.head().await {
                Ok(Some(head)) => head,
                Ok(None) | Err(Broken::Ended) => return,
                Err(broken) => {
                    let held = Held::new(&self.server.shared.stats);
                    let Some(answer) = self.request(no_head(), Vec::new(), Some(fault(broken)), held).await else { return };
                    return self.last(&answer, true, true).await;
                }
            };
            self.connection.used.store(used_now(), Relaxed);
            let under_way = UnderWay::new(self.server.clone(), self.connection.clone());
            let (keep_alive, old) = (head.keep_alive, head.old);
            let bodiless = head.method == "HEAD";
            let mut held = Held::new(&self.server.shared.stats);
            let (body, trouble) = match self.body(&head, &mut held).await {
                Ok(body) => (body, None),
                Err(trouble) => (Vec::new(), Some(trouble)),
            };
            let whole = trouble.is_none();
            let Some(answer) = self.request(head, body, trouble, held).await else { return };
            let closing = *self.phase.borrow() != Phase::Serving;
            if !whole || !keep_alive || answer.close || closing {
                return self.last(&answer, !bodiless, !whole).await;
            }
            if self.answer(&answer, !bodiless, false, old).await.is_err() {
                return;
            }
            drop(under_way);
        }
    }

    /// The next request's head; None if the server closes before one begins.
    async fn head(&mut self) -> Result<Option<Head>, Broken> {
        let idle = self.idle;
        let reading = async {
            loop {
                if !self.reader.buffer.is_empty() {
                    if let Some((head, size)) = http1::request(&self.reader.buffer, &self.server.metadata)? {
                        let _ = self.reader.buffer.split_to(size);
                        return Ok(Some(head));
                    }
                    self.reader.more().await?;
                    continue;
                }
                self.reader.buffer = bytes::BytesMut::new(); // an idle connection needs none
                tokio::select! {
                    came = self.reader.more() => came?,
                    _ = self.phase.wait_for(|phase| *phase != Phase::Serving) => return Ok(None),
                }
            }
        };
        timeout(idle, reading).await.unwrap_or(Ok(None))
    }

    async fn body(&mut self, head: &Head, held: &mut Held) -> Result<Vec<u8>, (&'static str, String)> {
        let limits = &self.server.limits;
        let beside = head.metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if !held.add(REQUEST_BYTES + beside, limits.held_bytes) {
            return Err(fault(Broken::Busy));
        }
        if head.length == Length::Sized(0) {
            return Ok(Vec::new());
        }
        if head.method != "POST" || !self.server.paths.contains(&head.path) {
            return Err(("unread", String::new()));
        }
        if head.expects && !matches!(head.length, Length::Sized(size) if size > limits.body_bytes as u64) {
            timeout(SEND, self.reader.stream.write_all(CONTINUE)).await.ok().and_then(Result::ok).ok_or_else(ended)?;
        }
        let reading = self.reader.body(head.length, limits.body_bytes, |size| held.add(size, limits.held_bytes));
        match timeout(limits.read, reading).await {
            Ok(read) => read.map_err(fault),
            Err(_) => Err(("slow", String::new())),
        }
    }

    /// Python's answer; None if nobody waits for one.
    async fn request(
        &mut self,
        head: Head,
        body: Vec<u8>,
        fault: Option<(&'static str, String)>,
        held: Held,
    ) -> Option<HttpAnswer> {
        let shared = self.server.shared.clone();
        let id = shared.new_id();
        let (sender, mut answer) = oneshot::channel();
        lock(&shared.http_waiting).insert(id, sender);
        let mut waiting = Waiting { shared: &shared, id, answered: false };
        let listens = fault.is_none(); // whoever sent half a request may be gone already
        if !listens {
            shared.stats.refused.fetch_add(1, Relaxed);
        }
        let Head { method, path, content_type, content_encoding, metadata, .. } = head;
        let request = HttpRequest { method, path, content_type, content_encoding, metadata, body, fault };
        shared.tell(Event::HttpRequest { server: self.server.id, id, request: Box::new(request), held });
        shared.maybe_panic(2);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    waiting.answered = true;
                    return Some(answer.unwrap_or_else(|_| {
                        let mut lost = HttpAnswer::empty(503); // a fault of ours: worth another attempt
                        lost.fields.push(("Retry-After".to_owned(), "1".to_owned()));
                        lost
                    }));
                }
                _ = self.phase.wait_for(|phase| *phase >= Phase::Ending) => {
                    let mut answer = HttpAnswer::empty(503);
                    answer.fields.push(("Retry-After".to_owned(), "1".to_owned()));
                    return Some(answer);
                }
                came = self.reader.more(), if listens && self.reader.buffer.len() < http1::HEAD_MAX => {
                    if came.is_err() {
                        return None;
                    }
                }
            }
        }
    }

    /// An answer after which the connection ends; if its client still sends, not before it had a chance to read it.
    async fn last(&mut self, answer: &HttpAnswer, with_body: bool, sends: bool) {
        let sent = self.answer(answer, with_body, true, false).await.is_ok();
        if !(sent && self.reader.stream.shutdown().await.is_ok() && sends) {
            return;
        }
        let mut scrap = [0; 4096];
        let rest = async { while matches!(self.reader.stream.read(&mut scrap).await, Ok(1..)) {} };
        tokio::select! {
            _ = timeout(LINGER, rest) => {}
            _ = self.phase.wait_for(|phase| *phase != Phase::Serving) => {}
        }
    }

    async fn answer(&mut self, answer: &HttpAnswer, with_body: bool, close: bool, old: bool) -> Result<(), Broken> {
        let mut bytes = head_of(answer, close, old).into_bytes();
        let body = if with_body { &answer.body[..] } else { &[] };
        let joined = body.len() <= JOINED_MAX;
        if joined {
            bytes.extend_from_slice(body);
        }
        let stream = &mut self.reader.stream;
        let sending = async {
            stream.write_all(&bytes).await?;
            if !joined {
                stream.write_all(body).await?;
            }
            stream.flush().await
        };
        timeout(SEND, sending).await.map_err(|_| Broken::Ended)?.map_err(Broken::from)
    }
}

fn no_head() -> Head {
    Head {
        method: String::new(),
        path: String::new(),
        content_type: None,
        content_encoding: None,
        metadata: Vec::new(),
        length: Length::Sized(0),
        keep_alive: false,
        old: false,
        expects: false,
    }
}

fn ended() -> (&'static str, String) {
    ("cut_short", String::new())
}

fn fault(broken: Broken) -> (&'static str, String) {
    match broken {
        Broken::Ended => ended(),
        Broken::TooLarge => ("too_large", String::new()),
        Broken::Busy => ("busy", String::new()),
        Broken::Malformed(text) => ("not_http", text),
    }
}

fn head_of(answer: &HttpAnswer, close: bool, old: bool) -> String {
    use std::fmt::Write;
    let reason = StatusCode::from_u16(answer.status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
    let mut head = String::with_capacity(256);
    let date = httpdate::HttpDate::from(SystemTime::now());
    // Writing to a string does not fail.
    let _ = write!(
        head,
        "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nDate: {date}\r\n",
        answer.status,
        answer.content_type,
        answer.body.len()
    );
    for (name, value) in &answer.fields {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if close {
        head.push_str("Connection: close\r\n");
    } else if old {
        head.push_str("Connection: keep-alive\r\n");
    }
    head.push_str("\r\n");
    head
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
            lock(&self.shared.http_waiting).remove(&self.id);
            self.shared.tell(Event::Gone { id: self.id });
        }
    }
}
