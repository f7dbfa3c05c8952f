//! An HTTP/1.1 client for export requests to one endpoint, over connections that are kept.
//!
//! A call takes the connection that was used last, or makes one; who finds `CONNECTIONS_MAX` in use waits for one. A
//! kept connection that its peer has closed in the meantime is noticed before it is used. A call is sent once: whether a
//! request whose connection broke was taken, nobody can tell here, so its sender is told, and decides.
//!
//! The answer is listened for while the request is sent, since a server may refuse a request that it hasn't read.
//!
//! What a server says of a request is its status. So once the status line is here, whatever else is wrong with the
//! answer (a header that is none, a body that is cut, chunks that are none, no end) costs the rest of the answer and the
//! connection, never the status: a request that was taken would be sent again. The rest has `REST` at most, and half of
//! what the caller still waits.
//!
//! Limits: an answer's size, its head of `ANSWER_HEAD_MAX` bytes and `ANSWER_FIELDS_MAX` fields; each call has its
//! deadline; a connection that nobody used for `KEEP` is closed, and one that is too old is used no more. No TLS, no
//! proxies.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{watch, Semaphore};
use tokio::time::{timeout, timeout_at, Instant};

use super::dial::{dial, Lives};
use super::http1::{self, Broken, Fields, HttpAnswered, HttpCall, Length, Reader};
use super::shared::{lock, spawn, Counted, Event, Heard, Shared, Socket, Target};
use super::wire;

const CONNECTIONS_MAX: usize = 64;
/// Shorter than servers keep theirs.
const KEEP: Duration = Duration::from_secs(15);
const FAR: Duration = Duration::from_secs(24 * 3600);
const REST: Duration = Duration::from_secs(2);
const ANSWER_HEAD_MAX: usize = 64 << 10;
const ANSWER_FIELDS_MAX: usize = 256;

pub struct HttpChannel {
    shared: Arc<Shared>,
    target: Target,
    /// Of every request: its first line and the fields that never change.
    start: String,
    gzip: bool,
    answer_bytes: usize,
    lives: Lives,
    kept: Mutex<Kept>,
    free: Semaphore,
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct Kept {
    links: Vec<Link>,
    swept: bool,
}

struct Link {
    reader: Reader<ReadHalf<Socket>>,
    writer: WriteHalf<Socket>,
    since: Instant,
    /// Of its use.
    end: Instant,
    _counted: Counted,
}

impl HttpChannel {
    pub fn new(
        shared: Arc<Shared>,
        target: Target,
        start: String,
        gzip: bool,
        answer_bytes: usize,
        lives: Lives,
    ) -> Self {
        let free = Semaphore::new(CONNECTIONS_MAX);
        let closed = watch::Sender::new(false);
        HttpChannel { shared, target, start, gzip, answer_bytes, lives, kept: Mutex::default(), free, closed }
    }

    /// Starts a call; its end is an event.
    pub fn call(self: &Arc<Self>, id: u64, call: HttpCall) {
        let channel = self.clone();
        let ended = Ended { shared: self.shared.clone(), id, answered: None };
        let counted = Counted::new(&self.shared.stats, |stats| &stats.calls);
        let task = spawn(&self.shared, "a call", async move {
            let (_counted, mut ended) = (counted, ended);
            channel.shared.maybe_panic(3);
            let limit = call.timeout.unwrap_or(FAR).min(FAR);
            let mut closed = channel.closed.subscribe();
            ended.answered = Some(tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => HttpAnswered::Failed("the connection is closed".to_owned()),
                tried = timeout(limit, channel.attempt(call)) => match tried {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(text)) => HttpAnswered::Failed(text),
                    Err(_) => HttpAnswered::Late,
                },
            });
        });
        lock(&self.shared.calls).insert(id, task);
    }

    /// Ends all calls and the connections.
    pub fn close(&self) {
        self.closed.send_replace(true);
        lock(&self.kept).links.clear();
    }

    async fn attempt(self: &Arc<Self>, call: HttpCall) -> Result<HttpAnswered, String> {
        let began = Instant::now();
        let _place = self.free.acquire().await; // it is never closed
        let HttpCall { fields, body, timeout } = call;
        let deadline = began + timeout.unwrap_or(FAR).min(FAR);
        let body = if self.gzip { wire::gzipped(&body).map_or(body, Bytes::from) } else { body };
        let head = format!("{}{fields}Content-Length: {}\r\n\r\n", self.start, body.len());
        let mut link = match self.kept_link().await {
            Some(link) => link,
            None => self.open().await?,
        };
        let (answer, again) = self.exchange(&mut link, Bytes::from(head).chain(body), deadline).await?;
        if again && Instant::now() < link.end {
            self.keep(link);
        }
        Ok(answer)
    }

    /// The answer to a request, and whether its connection takes another.
    async fn exchange(
        &self,
        link: &mut Link,
        request: impl Buf,
        deadline: Instant,
    ) -> Result<(HttpAnswered, bool), String> {
        let Link { reader, writer, .. } = link;
        let mut request = request;
        let (head, whole) = {
            let writing = writer.write_all_buf(&mut request);
            let reading = answer_head(reader, deadline);
            tokio::pin!(writing, reading);
            tokio::select! {
                biased;
                written = &mut writing => {
                    let head = reading.await;
                    // Who couldn't be told all may have answered all the same; if not, that it went away is the reason.
                    if let (Err(error), Err(_)) = (&written, &head) {
                        return Err(error.to_string());
                    }
                    (head, written.is_ok())
                }
                head = &mut reading => (head, false),
            }
        };
        let head = head.map_err(told)?;
        let reading = reader.body(head.length, self.answer_bytes, |_| true);
        let body = timeout_at(rest_until(deadline), reading).await.unwrap_or(Err(Broken::Ended));
        let again = whole && head.keep_alive && body.is_ok() && reader.buffer.is_empty();
        let AnswerHead { status, reason, fields, .. } = head;
        Ok((HttpAnswered::Answer { status, reason, fields, body: body.unwrap_or_default() }, again))
    }

    /// The connection that was used last, if its peer still has it.
    async fn kept_link(&self) -> Option<Link> {
        loop {
            let mut link = lock(&self.kept).links.pop()?;
            let alive = tokio::select! {
                biased;
                _ = link.reader.more() => false, // closed, or something that nobody asked for
                () = std::future::ready(()) => true,
            };
            if alive && link.since.elapsed() < KEEP && Instant::now() < link.end {
                return Some(link);
            }
        }
    }

    async fn open(&self) -> Result<Link, String> {
        let socket = dial(&self.target, &self.lives, Heard::new()).await?;
        let (reader, writer) = tokio::io::split(socket);
        let counted = Counted::new(&self.shared.stats, |stats| &stats.next_hops);
        let (since, end) = (Instant::now(), self.lives.end());
        Ok(Link { reader: Reader::new(reader), writer, since, end, _counted: counted })
    }

    fn keep(self: &Arc<Self>, mut link: Link) {
        link.since = Instant::now();
        link.reader.buffer = bytes::BytesMut::new();
        let mut kept = lock(&self.kept);
        kept.links.push(link);
        if !kept.swept {
            kept.swept = true;
            let channel = self.clone();
            spawn(&self.shared, "the closing of connections", async move { channel.sweep().await });
        }
    }

    /// Closes what nobody uses, as long as there is something to close.
    async fn sweep(&self) {
        loop {
            let mut closed = self.closed.subscribe();
            if timeout(KEEP, closed.wait_for(|closed| *closed)).await.is_ok() {
                return;
            }
            let mut kept = lock(&self.kept);
            kept.links.retain(|link| link.since.elapsed() < KEEP && Instant::now() < link.end);
            if kept.links.is_empty() {
                kept.swept = false;
                return;
            }
        }
    }
}

fn told(broken: Broken) -> String {
    match broken {
        Broken::Malformed(text) => format!("its answer is not HTTP/1.1 as it should be: {text}"),
        _ => "the connection was closed without an answer".to_owned(),
    }
}

struct AnswerHead {
    status: u16,
    reason: String,
    fields: Fields,
    length: Length,
    keep_alive: bool,
}

/// The head of the answer, after those that only say that it is to come.
///
/// Fails only as long as there is no status: a head that is wrong below its first line is a status, and nothing else.
async fn answer_head<S: tokio::io::AsyncRead + Unpin>(
    reader: &mut Reader<S>,
    deadline: Instant,
) -> Result<AnswerHead, Broken> {
    let mut until = None;
    loop {
        let broken = match parse(&reader.buffer) {
            Ok(Some((head, size))) => {
                reader.buffer.advance(size);
                if !(100..200).contains(&head.status) {
                    return Ok(head);
                }
                if head.status == 101 {
                    return Err(Broken::Malformed("it changes to another protocol".to_owned()));
                }
                continue;
            }
            Ok(None) => {
                if until.is_none() && bare(&reader.buffer).is_some() {
                    until = Some(rest_until(deadline));
                }
                let more = match until {
                    Some(until) => timeout_at(until, reader.more()).await.unwrap_or(Err(Broken::Ended)),
                    None => reader.more().await,
                };
                match more {
                    Ok(()) => continue,
                    Err(broken) => broken,
                }
            }
            Err(broken) => broken,
        };
        return bare(&reader.buffer).ok_or(broken);
    }
}

/// When the rest of an answer, whose status is here, is waited for no more.
fn rest_until(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + (deadline.saturating_duration_since(now) / 2).min(REST)
}

/// The status that a head's first line says, and nothing else: what follows can't be read. None before the line is whole.
fn bare(bytes: &[u8]) -> Option<AnswerHead> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let line = bytes[..end].trim_ascii_end();
    let digits = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..)).map(<[u8]>::trim_ascii_start)?;
    let (digits, rest) = digits.split_at_checked(3)?;
    if !digits.iter().all(u8::is_ascii_digit) || rest.first().is_some_and(|&byte| byte != b' ') {
        return None;
    }
    let status = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    let reason = String::from_utf8_lossy(rest.trim_ascii()).into_owned();
    let fields = Fields::default();
    (status >= 200).then_some(AnswerHead { status, reason, fields, length: Length::Sized(0), keep_alive: false })
}

fn parse(bytes: &[u8]) -> Result<Option<(AnswerHead, usize)>, Broken> {
    let mut found = [httparse::EMPTY_HEADER; ANSWER_FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut found);
    let mut parser = httparse::ParserConfig::default();
    parser
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    let size = match parser.parse_response(&mut parsed, bytes) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) if bytes.len() >= ANSWER_HEAD_MAX => {
            return Err(Broken::Malformed("its head is too long".to_owned()));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(Broken::Malformed(error.to_string())),
    };
    let status = parsed.code.unwrap_or(0);
    let mut fields = Fields::default();
    let mut framing = http1::Framing::default();
    let mut odd = false;
    for field in parsed.headers.iter() {
        odd |= !framing.repeats(field.name, field.value) && framing.note(field.name, field.value).is_err();
        let wanted = match () {
            () if field.name.eq_ignore_ascii_case("content-type") => &mut fields.content_type,
            () if field.name.eq_ignore_ascii_case("content-encoding") => &mut fields.content_encoding,
            () if field.name.eq_ignore_ascii_case("retry-after") => &mut fields.retry_after,
            () if field.name.eq_ignore_ascii_case("date") => &mut fields.date,
            () => continue,
        };
        wanted.get_or_insert_with(|| unfolded(field.value));
    }
    let length = match framing.length() {
        _ if status < 200 || status == 204 || status == 304 => Length::Sized(0),
        Ok(length) if !odd => length.unwrap_or(Length::Rest),
        // Where it ends is a matter of opinion: it is left unread, and so is all that comes after it.
        _ => {
            odd = true;
            Length::Sized(0)
        }
    };
    let keep_alive = parsed.version == Some(1) && !odd && !framing.close && length != Length::Rest;
    // The parser leaves out a reason that isn't ASCII; people may want to read it all the same.
    let line = bytes[..size].split(|&byte| byte == b'\r').next().unwrap_or_default();
    let reason = line.splitn(3, |&byte| byte == b' ').nth(2).unwrap_or_default();
    let reason = String::from_utf8_lossy(reason).into_owned();
    Ok(Some((AnswerHead { status, reason, fields, length, keep_alive }, size)))
}

/// A value on one line.
fn unfolded(value: &[u8]) -> String {
    if value.contains(&b'\n') {
        return http1::text(value).split_whitespace().collect::<Vec<_>>().join(" ");
    }
    http1::text(value)
}

/// Tells Python how the call ended, whatever ended it.
struct Ended {
    shared: Arc<Shared>,
    id: u64,
    answered: Option<HttpAnswered>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        lock(&self.shared.calls).remove(&self.id);
        let answered = self.answered.take();
        let answered = answered.unwrap_or_else(|| HttpAnswered::Failed("the call was given up".to_owned()));
        self.shared.tell(Event::HttpAnswered { call: self.id, answered: Box::new(answered) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(bytes: &[u8]) -> Result<AnswerHead, Broken> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { answer_head(&mut Reader::new(bytes), Instant::now() + REST).await })
    }

    #[test]
    fn answers_say_where_they_end() {
        for (text, length, keep) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Length::Sized(3), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n", Length::Sized(3), false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", Length::Sized(3), false),
            ("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", Length::Chunked, true),
            ("HTTP/1.1 200 OK\r\n\r\n", Length::Rest, false),
            ("HTTP/1.1 204 No Content\r\n\r\n", Length::Sized(0), true),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n", Length::Sized(0), true),
        ] {
            let found = head(text.as_bytes()).unwrap_or_else(|broken| panic!("{text:?}: {broken:?}"));
            assert_eq!((found.length, found.keep_alive), (length, keep), "{text:?}");
        }
        for text in ["HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 101 X\r\n\r\n", "SSH-2.0-OpenSSH\r\n\r\n"] {
            assert!(matches!(head(text.as_bytes()), Err(Broken::Malformed(_))), "{text:?}");
        }
        assert!(matches!(head(b"HTTP/1.1 200"), Err(Broken::Ended)));
        for text in ["HTTP/1.1 20 OK\r\n", "HTTP/1.1 2000 OK\r\n", "HTTP/1.1 100 Continue\r\n"] {
            assert!(head(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_status_outlives_all_that_is_wrong_below_it() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 3\r\n\r\n", "x".repeat(20_000));
        for (text, length, keep) in [
            ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 3\r\n\r\n", Length::Sized(3), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", Length::Sized(3), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\n", Length::Sized(0), false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", Length::Sized(0), false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Length::Sized(0), false),
            ("HTTP/1.1 200 OK\r\nno field\r\nContent-Length: 3\r\n\r\n", Length::Sized(3), true),
            ("HTTP/1.1 200 OK\r\nContent-Len", Length::Sized(0), false),
            (long.as_str(), Length::Sized(3), true),
        ] {
            let found = head(text.as_bytes()).unwrap_or_else(|broken| panic!("{text:.80?}: {broken:?}"));
            assert_eq!((found.status, found.length, found.keep_alive), (200, length, keep), "{text:.80?}");
        }
        let endless = format!("HTTP/1.1 429 Slow\r\nX: {}", "x".repeat(2 * ANSWER_HEAD_MAX));
        assert_eq!(head(endless.as_bytes()).unwrap().status, 429);
        let folded = head(b"HTTP/1.1 503 No\r\nRetry-After:\r\n 7\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert_eq!(folded.fields.retry_after.as_deref(), Some("7"));
    }
}
