//! What gRPC puts on top of HTTP/2: prefixes, time-outs, percent signs, codes. Pure.
//!
//! Source: the gRPC over HTTP/2 protocol description and the gRPC status code mapping for HTTP and HTTP/2.

use std::io::Read;
use std::time::Duration;

use base64::engine::{general_purpose::GeneralPurpose, DecodePaddingMode, GeneralPurposeConfig};
use base64::{alphabet, Engine};
use bytes::Bytes;
use flate2::bufread::{MultiGzDecoder, ZlibDecoder};
use flate2::write::GzEncoder;
use flate2::Compression;
use http::header::{HeaderName, HeaderValue};

pub const OK: u8 = 0;
pub const CANCELLED: u8 = 1;
pub const UNKNOWN: u8 = 2;
pub const DEADLINE_EXCEEDED: u8 = 4;
pub const PERMISSION_DENIED: u8 = 7;
pub const RESOURCE_EXHAUSTED: u8 = 8;
pub const UNIMPLEMENTED: u8 = 12;
pub const INTERNAL: u8 = 13;
pub const UNAVAILABLE: u8 = 14;
pub const UNAUTHENTICATED: u8 = 16;

// Names of headers, and the value of one.
pub const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
pub const STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
pub const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
pub const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
pub const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Bytes before each message: a flag and a length.
pub const PREFIX: usize = 5;

/// Set aside at once for a message whose length is known; what a peer only *says* will come costs no more.
const RESERVED_MAX: usize = 1 << 20;

const MESSAGE_MAX: usize = 1024;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A request, or an answer, that is refused with a gRPC code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: u8,
    pub message: String,
    /// Not 200 only for what isn't gRPC at all.
    pub http: u16,
}

impl Refusal {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into(), http: 200 }
    }
}

/// What `grpc-encoding` says of compressed messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Deflate,
}

/// All that are offered, for `grpc-accept-encoding`.
pub const ENCODINGS: &str = "identity,deflate,gzip";

impl Encoding {
    /// None for one that isn't offered.
    pub fn parse(value: Option<&[u8]>) -> Option<Self> {
        match value {
            None | Some(b"identity") => Some(Encoding::Identity),
            Some(b"gzip") => Some(Encoding::Gzip),
            Some(b"deflate") => Some(Encoding::Deflate),
            Some(_) => None,
        }
    }
}

/// One message that arrives in pieces.
pub struct Incoming {
    limit: usize,
    prefix: [u8; PREFIX],
    have: usize,
    length: usize,
    message: Vec<u8>,
}

impl Incoming {
    /// `limit`: of the message, in bytes, before and after decompression.
    pub fn new(limit: usize) -> Self {
        Incoming { limit, prefix: [0; PREFIX], have: 0, length: 0, message: Vec::new() }
    }

    /// Takes the next piece.
    pub fn feed(&mut self, mut piece: &[u8]) -> Result<(), Refusal> {
        if self.have < PREFIX {
            let size = piece.len().min(PREFIX - self.have);
            self.prefix[self.have..self.have + size].copy_from_slice(&piece[..size]);
            self.have += size;
            piece = &piece[size..];
            if self.have < PREFIX {
                return Ok(());
            }
            let [flag, length @ ..] = self.prefix;
            if flag > 1 {
                return Err(Refusal::new(INTERNAL, format!("the message's compression flag is {flag}, not 0 or 1")));
            }
            self.length = u32::from_be_bytes(length) as usize;
            if self.length > self.limit {
                return Err(too_large(self.limit));
            }
            self.message.reserve_exact(self.length.min(RESERVED_MAX));
        }
        if self.message.len() + piece.len() > self.length {
            return Err(Refusal::new(INTERNAL, "more came than the one message of a unary call"));
        }
        self.message.extend_from_slice(piece);
        Ok(())
    }

    /// Bytes of the message so far.
    pub fn size(&self) -> usize {
        self.message.len()
    }

    /// The whole message, decompressed as its headers say.
    pub fn finish(self, encoding: Encoding) -> Result<Vec<u8>, Refusal> {
        if self.have < PREFIX || self.message.len() < self.length {
            return Err(Refusal::new(INTERNAL, "the stream ended before its message did"));
        }
        match (self.prefix[0], encoding) {
            (0, _) => Ok(self.message),
            (_, Encoding::Gzip) => inflate(MultiGzDecoder::new(&self.message[..]), self.message.len(), self.limit),
            (_, Encoding::Deflate) => inflate(ZlibDecoder::new(&self.message[..]), self.message.len(), self.limit),
            (_, Encoding::Identity) => {
                Err(Refusal::new(INTERNAL, "a message is compressed, but no grpc-encoding says how"))
            }
        }
    }
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(RESOURCE_EXHAUSTED, format!("the message is larger than {limit} bytes; send less at once"))
}

/// All that a decoder gives, within `limit` bytes; `size` is what it is given.
fn inflate(decoder: impl Read, size: usize, limit: usize) -> Result<Vec<u8>, Refusal> {
    let mut out = Vec::with_capacity(size.saturating_mul(4).min(RESERVED_MAX).min(limit));
    match decoder.take(limit as u64 + 1).read_to_end(&mut out) {
        Ok(_) if out.len() > limit => Err(too_large(limit)),
        Ok(_) => Ok(out),
        Err(error) => Err(Refusal::new(INTERNAL, format!("the message is not compressed as announced: {error}"))),
    }
}

/// Compressed, fast rather than small. None if that failed, which writing to memory does not.
pub fn gzipped(body: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 3 + 64), Compression::fast());
    encoder.write_all(body).and_then(|()| encoder.finish()).ok()
}

/// One message with its prefix, in the pieces to send. Large bodies are not copied.
pub fn framed(body: Bytes, gzip: bool) -> Vec<Bytes> {
    const COPIED_MAX: usize = 16 * 1024;
    let (flag, body) = match gzip.then(|| gzipped(&body)).flatten() {
        Some(compressed) => (1, Bytes::from(compressed)),
        None => (0, body),
    };
    let mut prefix = Vec::with_capacity(PREFIX + if body.len() <= COPIED_MAX { body.len() } else { 0 });
    prefix.push(flag);
    prefix.extend_from_slice(&(body.len() as u32).to_be_bytes());
    if body.len() <= COPIED_MAX {
        prefix.extend_from_slice(&body);
        return vec![Bytes::from(prefix)];
    }
    vec![Bytes::from(prefix), body]
}

/// `grpc-timeout`: at most eight digits and a unit.
pub fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// The same the other way, rounded up to milliseconds, or to seconds where they are too many.
pub fn format_timeout(timeout: Duration) -> String {
    let ms = timeout.as_nanos().div_ceil(1_000_000);
    if ms < 100_000_000 {
        return format!("{ms}m");
    }
    format!("{}S", (ms / 1000).min(99_999_999))
}

/// A message as `grpc-message` carries it, cut at 1 KiB: printable ASCII but `%` as it is, all else in percent codes.
pub fn encode_message(text: &str) -> Vec<u8> {
    let mut cut = text.len().min(MESSAGE_MAX);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut out = Vec::with_capacity(cut);
    for &byte in &text.as_bytes()[..cut] {
        if (0x20..=0x7e).contains(&byte) && byte != b'%' {
            out.push(byte);
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    out
}

/// And back. What is not a percent code stays as it is.
pub fn decode_message(value: &[u8]) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|&each| char::from(each).to_digit(16));
    let mut out = Vec::with_capacity(value.len());
    let mut at = 0;
    while at < value.len() {
        if value[at] == b'%' {
            if let (Some(high), Some(low)) = (hex(value.get(at + 1)), hex(value.get(at + 2))) {
                out.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
        }
        out.push(value[at]);
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A `-bin` header's value.
pub fn encode_binary(value: &[u8]) -> String {
    BASE64.encode(value)
}

/// And back; None if it is not base64.
pub fn decode_binary(value: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(value.split(|&byte| byte == b',').next()?).ok()
}

/// The gRPC code for an answer that is no gRPC answer.
pub fn code_of_http(status: u16) -> u8 {
    match status {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// The gRPC code for a stream that was reset.
pub fn code_of_reset(reason: h2::Reason) -> u8 {
    match reason {
        h2::Reason::REFUSED_STREAM => UNAVAILABLE,
        h2::Reason::CANCEL => CANCELLED,
        h2::Reason::ENHANCE_YOUR_CALM => RESOURCE_EXHAUSTED,
        h2::Reason::INADEQUATE_SECURITY => PERMISSION_DENIED,
        _ => INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(gzip: bool) -> Encoding {
        if gzip {
            Encoding::Gzip
        } else {
            Encoding::Identity
        }
    }

    fn whole(pieces: &[Bytes]) -> Vec<u8> {
        pieces.concat()
    }

    #[test]
    fn a_message_is_the_same_however_it_is_cut() {
        for size in [0usize, 1, 300, 70_000] {
            let body = Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
            for gzip in [false, true] {
                let wire = whole(&framed(body.clone(), gzip));
                for step in [1, 2, 5, 6, 1000, wire.len()] {
                    let mut incoming = Incoming::new(size);
                    // Gzip makes the empty and the tiny message larger than the limit.
                    if gzip && wire.len() - PREFIX > size {
                        incoming = Incoming::new(wire.len());
                    }
                    for piece in wire.chunks(step) {
                        incoming.feed(piece).unwrap();
                    }
                    assert_eq!(incoming.finish(named(gzip)).unwrap(), body);
                }
            }
        }
    }

    #[test]
    fn what_is_no_single_message_within_the_limit_is_refused() {
        let refused = |wire: &[u8], gzip: bool| {
            let mut incoming = Incoming::new(100);
            match incoming.feed(wire) {
                Ok(()) => incoming.finish(named(gzip)).unwrap_err().code,
                Err(refusal) => refusal.code,
            }
        };
        assert_eq!(refused(b"", false), INTERNAL);
        assert_eq!(refused(b"\0\0\0\0", false), INTERNAL);
        assert_eq!(refused(b"\0\0\0\0\x02x", false), INTERNAL);
        assert_eq!(refused(b"\0\0\0\0\x01xx", false), INTERNAL);
        assert_eq!(refused(b"\x02\0\0\0\0", false), INTERNAL);
        assert_eq!(refused(b"\x01\0\0\0\x01x", false), INTERNAL);
        assert_eq!(refused(b"\x01\0\0\0\x01x", true), INTERNAL);
        assert_eq!(refused(b"\0\0\0\0\x65", false), RESOURCE_EXHAUSTED);
        assert_eq!(refused(b"\0\xff\xff\xff\xff", false), RESOURCE_EXHAUSTED);
        let bomb = whole(&framed(Bytes::from(vec![0; 101]), true));
        assert_eq!(refused(&bomb, true), RESOURCE_EXHAUSTED);
        assert_eq!(refused(&bomb[..bomb.len() - 1], true), INTERNAL);
    }

    #[test]
    fn timeouts() {
        for (text, ns) in [("1H", 3_600_000_000_000), ("2M", 120_000_000_000), ("3S", 3_000_000_000)] {
            assert_eq!(parse_timeout(text.as_bytes()).unwrap().as_nanos(), ns);
        }
        assert_eq!(parse_timeout(b"99999999n").unwrap().as_nanos(), 99_999_999);
        for bad in ["", "S", "1", "123456789S", "-1S", "1s", "1.5S", " 1S"] {
            assert_eq!(parse_timeout(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(format_timeout(Duration::from_micros(1)), "1m");
        for ms in [0, 1, 99_999_999, 100_000_000, u64::MAX] {
            let text = format_timeout(Duration::from_millis(ms));
            assert!(parse_timeout(text.as_bytes()).is_some(), "{text}");
        }
    }

    #[test]
    fn messages_and_binary_values_survive() {
        for text in ["", "plain", "100 %", "a\nb", "Zeit läuft", "%zz", "\u{1F552}"] {
            assert_eq!(decode_message(&encode_message(text)), text);
        }
        assert_eq!(decode_message(b"a%4"), "a%4");
        assert_eq!(decode_message(b"%ff"), "\u{fffd}");
        assert!(encode_message(&"é".repeat(2000)).len() <= 3 * MESSAGE_MAX);
        for value in [&b""[..], b"\0", b"\xff\xfe", b"abc"] {
            assert_eq!(decode_binary(encode_binary(value).as_bytes()).unwrap(), value);
        }
        assert_eq!(decode_binary(b"AA=="), Some(vec![0]));
        assert_eq!(decode_binary(b"!"), None);
    }
}
