//! HTTP/1.1 as it is read: heads and bodies of messages, strictly; and what passes of them to and from Python.
//!
//! Where two parsers disagree on where a message ends, a request can be hidden in another. So there is one way to read
//! each message, or none: one `Content-Length` of digits or `Transfer-Encoding: chunked`, never both, never twice;
//! lines end with CR LF; nothing is folded; a head that breaks a rule ends its connection.
//!
//! Limits: a head of `HEAD_MAX` bytes and `FIELDS_MAX` fields; lines of chunks, and all trailers (which are dropped),
//! of `LINE_MAX`. Sources: RFC 9110, RFC 9112.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::HeaderName;
use tokio::io::{AsyncRead, AsyncReadExt};

pub const HEAD_MAX: usize = 16 << 10;
pub const FIELDS_MAX: usize = 100;
const LINE_MAX: usize = 1 << 10;
/// Read at once while a head is awaited: most requests of a few spans whole.
const READ: usize = 8 << 10;
/// Set aside at once for a body whose length is known; what a peer only *says* will come costs no more.
const RESERVED_MAX: usize = 1 << 20;

/// Why a message can't be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// The connection ended first.
    Ended,
    TooLarge,
    /// Too many bytes are under way, all together.
    Busy,
    Malformed(String),
}

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Broken::Ended
    }
}

fn malformed<T>(text: impl Into<String>) -> Result<T, Broken> {
    Err(Broken::Malformed(text.into()))
}

/// A request, or what came of it.
pub struct HttpRequest {
    pub method: String,
    pub path: String,
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub metadata: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Why the body isn't there: a word, and what more there is to say.
    pub fault: Option<(&'static str, String)>,
}

/// The answer to a request. Length, date and connection are added to its fields.
pub struct HttpAnswer {
    pub status: u16,
    pub content_type: String,
    pub fields: Vec<(String, String)>,
    pub body: Bytes,
    pub close: bool,
}

impl HttpAnswer {
    /// Without a body, and the last on its connection.
    pub fn empty(status: u16) -> Self {
        let content_type = "application/x-protobuf".to_owned();
        HttpAnswer { status, content_type, fields: Vec::new(), body: Bytes::new(), close: true }
    }
}

/// One call, as Python gave it.
pub struct HttpCall {
    /// Names and values, checked, as they are sent.
    pub fields: String,
    pub body: Bytes,
    pub timeout: Option<Duration>,
}

/// An answer, or why there is none.
pub enum HttpAnswered {
    Answer { status: u16, reason: String, fields: Fields, body: Vec<u8> },
    /// No answer in time.
    Late,
    Failed(String),
}

/// What is of interest of an answer's head.
#[derive(Default)]
pub struct Fields {
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub retry_after: Option<String>,
    pub date: Option<String>,
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Sized(u64),
    Chunked,
    /// An answer's, until the connection ends.
    Rest,
}

/// The head of a request: what is of interest here.
#[derive(Debug)]
pub struct Head {
    pub method: String,
    /// Without a query.
    pub path: String,
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    /// Of the fields that are handed on, names in lower case.
    pub metadata: Vec<(String, String)>,
    pub length: Length,
    pub keep_alive: bool,
    /// Of HTTP/1.0, which has to be told that its connection stays.
    pub old: bool,
    pub expects: bool,
}

/// The head at the beginning of some bytes, and its size; None as long as it isn't whole.
pub fn request(bytes: &[u8], metadata: &[HeaderName]) -> Result<Option<(Head, usize)>, Broken> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    let size = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_MAX => return malformed("its head is too long"),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return malformed(error.to_string()),
    };
    if size > HEAD_MAX {
        return malformed("its head is too long");
    }
    whole_lines(&bytes[..size])?;
    let old = parsed.version == Some(0);
    let mut framing = Framing::default();
    let mut head = Head {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: path_of(parsed.path.unwrap_or_default()).to_owned(),
        content_type: None,
        content_encoding: None,
        metadata: Vec::new(),
        length: Length::Sized(0),
        keep_alive: false,
        old,
        expects: false,
    };
    let mut hosts = 0;
    for field in parsed.headers.iter() {
        let (name, value) = (field.name, field.value);
        framing.note(name, value)?;
        if name.eq_ignore_ascii_case("content-type") {
            head.content_type.get_or_insert_with(|| text(value));
        } else if name.eq_ignore_ascii_case("content-encoding") {
            head.content_encoding.get_or_insert_with(|| text(value));
        } else if name.eq_ignore_ascii_case("expect") {
            head.expects |= value.eq_ignore_ascii_case(b"100-continue");
        } else if name.eq_ignore_ascii_case("host") {
            hosts += 1;
        }
        if let Some(name) = metadata.iter().find(|each| name.eq_ignore_ascii_case(each.as_str())) {
            head.metadata.push((name.as_str().to_owned(), text(value)));
        }
    }
    if hosts > 1 || (hosts == 0 && !old) {
        return malformed("it has not exactly one Host");
    }
    if old && framing.chunked {
        return malformed("HTTP/1.0 has no Transfer-Encoding");
    }
    head.length = framing.length()?.unwrap_or(Length::Sized(0));
    head.keep_alive = if old { framing.keep } else { !framing.close };
    head.expects &= !old;
    Ok(Some((head, size)))
}

/// The fields that say where a message ends, and whether another follows.
#[derive(Default)]
pub struct Framing {
    sized: Option<u64>,
    chunked: bool,
    pub close: bool,
    pub keep: bool,
}

impl Framing {
    /// One more field of the head.
    pub fn note(&mut self, name: &str, value: &[u8]) -> Result<(), Broken> {
        if name.eq_ignore_ascii_case("content-length") {
            if self.sized.is_some() {
                return malformed("it has more than one Content-Length");
            }
            let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
            if !digits {
                return malformed("its Content-Length is no number");
            }
            self.sized = Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return malformed("its Transfer-Encoding is not just chunked");
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for token in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                self.close |= token.eq_ignore_ascii_case(b"close");
                self.keep |= token.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        Ok(())
    }

    /// Whether a field says the length that one before it said: an answer's client may take both for one.
    pub fn repeats(&self, name: &str, value: &[u8]) -> bool {
        let same = |each: &[u8]| {
            let each = each.trim_ascii();
            !each.is_empty() && std::str::from_utf8(each).ok().and_then(|text| text.parse().ok()) == self.sized
        };
        name.eq_ignore_ascii_case("content-length") && self.sized.is_some() && value.split(|&b| b == b',').all(same)
    }

    /// None where nothing says it.
    pub fn length(&self) -> Result<Option<Length>, Broken> {
        match (self.chunked, self.sized) {
            (true, Some(_)) => malformed("it has a Content-Length and a Transfer-Encoding"),
            (true, None) => Ok(Some(Length::Chunked)),
            (false, sized) => Ok(sized.map(Length::Sized)),
        }
    }
}

/// Every byte is a character: what other than ASCII may go on is for Python to say.
pub fn text(value: &[u8]) -> String {
    value.iter().map(|&byte| char::from(byte)).collect()
}

/// The path of a request's target, which a proxy may have made absolute.
fn path_of(target: &str) -> &str {
    let rest = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    rest.split_once('?').map_or(rest, |(path, _)| path)
}

/// LF comes after CR and CR before LF, or nowhere.
fn whole_lines(head: &[u8]) -> Result<(), Broken> {
    for (at, byte) in head.iter().enumerate() {
        let lonely = match byte {
            b'\n' => at == 0 || head[at - 1] != b'\r',
            b'\r' => head.get(at + 1) != Some(&b'\n'),
            _ => false,
        };
        if lonely {
            return malformed("its lines do not end with CR LF");
        }
    }
    Ok(())
}

/// The size that a chunk's first line says; what may be said beside it is nothing to us.
fn chunk_size(line: &[u8]) -> Result<usize, Broken> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || digits > 15 || !(rest.is_empty() || rest[0] == b';') {
        return malformed("a chunk's size is no number");
    }
    let value = |byte: &u8| char::from(*byte).to_digit(16).unwrap_or(0) as usize;
    Ok(line[..digits].iter().fold(0, |sum, digit| sum << 4 | value(digit)))
}

/// A connection's bytes as they come.
pub struct Reader<S> {
    pub stream: S,
    pub buffer: BytesMut,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub fn new(stream: S) -> Self {
        Reader { stream, buffer: BytesMut::new() }
    }

    /// Waits for more, and puts it into the buffer.
    pub async fn more(&mut self) -> Result<(), Broken> {
        self.buffer.reserve(READ);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(Broken::Ended),
            _ => Ok(()),
        }
    }

    /// A body of at most `max` bytes. `took` is told of all that comes; false ends it.
    pub async fn body(
        &mut self,
        length: Length,
        max: usize,
        mut took: impl FnMut(usize) -> bool,
    ) -> Result<Vec<u8>, Broken> {
        let mut body = Vec::new();
        match length {
            Length::Sized(size) if size > max as u64 => return Err(Broken::TooLarge),
            Length::Sized(size) => self.exactly(size as usize, &mut body, &mut took).await?,
            Length::Chunked => {
                loop {
                    let size = chunk_size(&self.line().await?)?;
                    if size == 0 {
                        break;
                    }
                    if size > max - body.len() {
                        return Err(Broken::TooLarge);
                    }
                    self.exactly(size, &mut body, &mut took).await?;
                    if !self.line().await?.is_empty() {
                        return malformed("a chunk is longer than it says");
                    }
                }
                let mut trailers = 0;
                loop {
                    let line = self.line().await?.len();
                    trailers += line;
                    if line == 0 {
                        break;
                    }
                    if trailers > LINE_MAX {
                        return malformed("its trailers are too long");
                    }
                }
            }
            Length::Rest => loop {
                if body.len() + self.buffer.len() > max {
                    return Err(Broken::TooLarge);
                }
                body.extend_from_slice(&self.buffer);
                self.buffer.clear();
                match self.more().await {
                    Ok(()) => {}
                    Err(Broken::Ended) => break,
                    Err(other) => return Err(other),
                }
            },
        }
        Ok(body)
    }

    /// The next `size` bytes, straight from the connection where they aren't here yet.
    async fn exactly(
        &mut self,
        size: usize,
        body: &mut Vec<u8>,
        took: &mut impl FnMut(usize) -> bool,
    ) -> Result<(), Broken> {
        let end = body.len() + size;
        body.reserve(size.min(RESERVED_MAX));
        let here = size.min(self.buffer.len());
        body.extend_from_slice(&self.buffer[..here]);
        self.buffer.advance(here);
        if !took(here) {
            return Err(Broken::Busy);
        }
        while body.len() < end {
            let left = end - body.len();
            let came = (&mut self.stream).take(left as u64).read_buf(body).await?;
            if came == 0 {
                return Err(Broken::Ended);
            }
            if !took(came) {
                return Err(Broken::Busy);
            }
        }
        Ok(())
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<BytesMut, Broken> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let mut line = self.buffer.split_to(end + 1);
                if end > LINE_MAX {
                    return malformed("a line is too long");
                }
                whole_lines(&line)?;
                line.truncate(end - 1);
                return Ok(line);
            }
            if self.buffer.len() > LINE_MAX {
                return malformed("a line is too long");
            }
            self.more().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "POST /v1/traces HTTP/1.1\r\nHost: x\r\n";

    fn head(text: &str) -> Result<Option<(Head, usize)>, Broken> {
        request(text.as_bytes(), &[HeaderName::from_static("x-tenant")])
    }

    fn read(bytes: &[u8], length: Length, max: usize) -> Result<Vec<u8>, Broken> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Reader::new(bytes).body(length, max, |_| true))
    }

    #[test]
    fn a_head_is_read_once_it_is_whole_and_not_before() {
        let more = "Content-Type: a/b\r\nX-Tenant: 7\r\nx-tenant: 8\r\nContent-Length: 12\r\nConnection: TE, close\r\n\r\n";
        let whole = format!("{START}{more}");
        for cut in 0..whole.len() {
            assert!(head(&whole[..cut]).unwrap().is_none(), "{cut}");
        }
        let (found, size) = head(&format!("{whole}body")).unwrap().unwrap();
        assert_eq!((size, found.method.as_str(), found.path.as_str()), (whole.len(), "POST", "/v1/traces"));
        assert_eq!((found.length, found.keep_alive, found.content_type.as_deref()), (Length::Sized(12), false, Some("a/b")));
        let values: Vec<_> = found.metadata.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["7", "8"]);
    }

    #[test]
    fn where_a_request_ends_is_never_a_matter_of_opinion() {
        for more in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 9999999999999999999\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Content-Length: 1\n",
            "X: a\r\n folded\r\n",
            "X: a\rContent-Length: 1\r\n",
            "X: a\0b\r\n",
            ": x\r\n",
            "Host: y\r\n",
        ] {
            assert!(matches!(head(&format!("{START}{more}\r\n")), Err(Broken::Malformed(_))), "{more:?}");
        }
        assert!(head("POST /v1/traces HTTP/1.1\r\n\r\n").is_err(), "no Host");
        assert!(head("POST /v1/traces HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(head("POST /v1/traces HTTP/2.0\r\nHost: x\r\n\r\n").is_err());
        assert!(head(&format!("{START}X: {}", "a".repeat(HEAD_MAX))).is_err());
        assert!(head(&format!("{START}{}\r\n", "X: a\r\n".repeat(FIELDS_MAX))).is_err());
    }

    #[test]
    fn paths_come_without_what_surrounds_them() {
        for (target, path) in [("/a?b=/c", "/a"), ("http://host:1/a/b?c", "/a/b"), ("http://host", "/"), ("*", "*")] {
            assert_eq!(path_of(target), path);
        }
    }

    #[test]
    fn bodies_are_whole_or_refused() {
        assert_eq!(read(b"abcdef", Length::Sized(4), 4).unwrap(), b"abcd");
        assert_eq!(read(b"abc", Length::Sized(4), 4), Err(Broken::Ended));
        assert_eq!(read(b"abc", Length::Sized(5), 4), Err(Broken::TooLarge));
        assert_eq!(read(b"abc", Length::Rest, 3).unwrap(), b"abc");
        assert_eq!(read(b"abcd", Length::Rest, 3), Err(Broken::TooLarge));
        let chunks = b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: x\r\n\r\n";
        assert_eq!(read(chunks, Length::Chunked, 13).unwrap(), b"abc0123456789");
        assert_eq!(read(chunks, Length::Chunked, 12), Err(Broken::TooLarge));
        for cut in 0..chunks.len() {
            assert_eq!(read(&chunks[..cut], Length::Chunked, 99), Err(Broken::Ended), "{cut}");
        }
        for bad in [
            &b"3\r\nabcd\r\n0\r\n\r\n"[..],
            b"3\nabc\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"-1\r\n",
            b"0x3\r\nabc\r\n",
            b"3 4\r\nabc\r\n",
            b"\r\n",
            b"1000000000000000\r\n",
        ] {
            assert!(matches!(read(bad, Length::Chunked, 99), Err(Broken::Malformed(_))), "{bad:?}");
        }
        assert_eq!(read(b"fffffffffffffff\r\n", Length::Chunked, 99), Err(Broken::TooLarge));
        let long = [&b"0\r\n"[..], "T: x\r\n".repeat(400).as_bytes(), b"\r\n"].concat();
        assert!(matches!(read(&long, Length::Chunked, 99), Err(Broken::Malformed(_))));
        assert!(matches!(read(&[b'1'; 3000], Length::Chunked, 99), Err(Broken::Malformed(_))));
    }
}
