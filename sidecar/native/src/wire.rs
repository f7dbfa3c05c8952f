//! The protobuf wire format, as far as `patch.rs` walks it. Twin of `skewd_sidecar/patch/wire.py`.
//!
//! Positions are of the whole body, as there: a field is read to its end wherever its message ends, and whoever walks
//! the message compares afterwards. Only that way both twins say the same of a damaged body.

/// Deepest nesting of groups that is skipped.
const GROUPS_MAX: usize = 100;

/// Why a body cannot be walked. The texts are the Python twin's, to the letter.
#[derive(Debug)]
pub enum Malformed {
    Ended,
    Overrun(usize),
    NoField(u64, usize),
    LongVarint(usize, usize),
    WireType(u64, usize),
    DeepGroups(usize),
    StrayGroupEnd(usize),
}

impl Malformed {
    pub fn text(&self, body_len: usize) -> String {
        let what = match self {
            Malformed::Ended => format!("it ends inside a field, at byte {body_len}"),
            Malformed::Overrun(end) => format!("a field runs past the end of its message, at byte {end}"),
            Malformed::NoField(tag, at) => format!("no field has the tag {tag}, at byte {at}"),
            Malformed::LongVarint(longest, at) => {
                format!("a varint longer than {longest} bytes ends at byte {at}")
            }
            Malformed::WireType(kind, at) => format!("wire type {kind} has no value to skip, at byte {at}"),
            Malformed::DeepGroups(at) => format!("groups nest deeper than {GROUPS_MAX}, at byte {at}"),
            Malformed::StrayGroupEnd(at) => format!("a group ends that did not begin, at byte {at}"),
        };
        format!("malformed OTLP body: {what}")
    }
}

pub type Walked<T> = Result<T, Malformed>;

#[inline(always)]
fn byte(body: &[u8], position: usize) -> Walked<u8> {
    body.get(position).copied().ok_or(Malformed::Ended)
}

/// The varint at `position` and where it ends. At most `longest` bytes; bits beyond the 64th are dropped.
#[inline(always)]
pub fn varint(body: &[u8], position: usize, longest: usize) -> Walked<(u64, usize)> {
    let first = byte(body, position)?;
    if first < 0x80 {
        return Ok((u64::from(first), position + 1));
    }
    long_varint(body, position, longest)
}

#[inline(never)]
fn long_varint(body: &[u8], position: usize, longest: usize) -> Walked<(u64, usize)> {
    let mut value = 0u64;
    for index in 0..longest {
        let next = byte(body, position + index)?;
        value |= u64::from(next & 0x7F) << (7 * index); // the tenth byte's upper bits fall off
        if next < 0x80 {
            return Ok((value, position + index + 1));
        }
    }
    Err(Malformed::LongVarint(longest, position + longest))
}

#[inline(always)]
pub fn tag(body: &[u8], position: usize) -> Walked<(u64, usize)> {
    let (tag, after) = varint(body, position, 5)?;
    if !(8..1 << 32).contains(&tag) {
        return Err(Malformed::NoField(tag, position));
    }
    Ok((tag, after))
}

/// Where the value of a field with this tag ends. It may lie past the message's end: the caller compares.
#[inline(always)]
pub fn skip(body: &[u8], tag: u64, position: usize) -> Walked<usize> {
    match tag & 7 {
        2 => {
            let (size, position) = varint(body, position, 5)?;
            Ok(position + size as usize)
        }
        0 => Ok(varint(body, position, 10)?.1),
        5 => Ok(position + 4),
        1 => Ok(position + 8),
        3 => skip_group(body, tag, position),
        kind => Err(Malformed::WireType(kind, position)),
    }
}

#[inline(never)]
fn skip_group(body: &[u8], first: u64, mut position: usize) -> Walked<usize> {
    let mut open = vec![first >> 3];
    while let Some(innermost) = open.last().copied() {
        let (next, after) = tag(body, position)?;
        position = after;
        match next & 7 {
            3 => {
                open.push(next >> 3);
                if open.len() > GROUPS_MAX {
                    return Err(Malformed::DeepGroups(position));
                }
            }
            4 => {
                open.pop();
                if innermost != next >> 3 {
                    return Err(Malformed::StrayGroupEnd(position));
                }
            }
            _ => position = skip(body, next, position)?,
        }
    }
    Ok(position)
}

/// The content of the LEN field whose length is at `position`; it must end within its message.
#[inline(always)]
pub fn content(body: &[u8], position: usize, end: usize) -> Walked<(usize, usize)> {
    let (size, begin) = varint(body, position, 5)?;
    let stop = begin + size as usize;
    if stop > end {
        return Err(Malformed::Overrun(end));
    }
    Ok((begin, stop))
}

/// The key of the KeyValue that fills `position` to `end`: the last one, empty if there is none.
#[inline(always)]
pub fn key(body: &[u8], position: usize, end: usize) -> Walked<&[u8]> {
    // Nearly every KeyValue is a short key and then a short value. Seen in one glance; others are walked.
    if end - position > 3 && body[position] == 0x0A && body[position + 1] < 0x80 {
        let value_at = position + 2 + body[position + 1] as usize;
        if value_at + 1 < end && body[value_at] == 0x12 {
            let value_size = body[value_at + 1];
            if value_size < 0x80 && value_at + 2 + value_size as usize == end {
                return Ok(&body[position + 2..value_at]);
            }
        }
    }
    walked_key(body, position, end)
}

#[inline(never)]
fn walked_key(body: &[u8], mut position: usize, end: usize) -> Walked<&[u8]> {
    let mut key: &[u8] = &[];
    while position < end {
        let (next, after) = tag(body, position)?;
        position = after;
        if next == 0x0A {
            let (size, begin) = varint(body, position, 5)?;
            position = begin + size as usize;
            key = body.get(begin..position).unwrap_or(&[]); // past the body: past the message, too, and refused below
        } else {
            position = skip(body, next, position)?;
        }
    }
    if position != end {
        return Err(Malformed::Overrun(end));
    }
    Ok(key)
}

/// An AnyValue, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(Vec<u8>),
    Bool(bool),
    Int(i64),
    Other,
}

/// The value of a KeyValue that was walked before; `Other` for what is no text, boolean or integer, or unreadable.
pub fn value(body: &[u8], mut position: usize, end: usize) -> Value {
    // A submessage that occurs twice is merged, which for the wire format means: concatenated.
    let mut merged = Vec::new();
    while position < end {
        let Ok((next, after)) = tag(body, position) else { return Value::Other };
        let Ok(stop) = skip(body, next, after) else { return Value::Other };
        if next == 0x12 {
            let Ok((_, begin)) = varint(body, after, 5) else { return Value::Other };
            merged.extend_from_slice(body.get(begin..stop).unwrap_or(&[]));
        }
        position = stop;
    }
    any_value(&merged).unwrap_or(Value::Other)
}

fn any_value(content: &[u8]) -> Option<Value> {
    let mut value = Value::Other;
    let mut position = 0;
    while position < content.len() {
        let (next, after) = tag(content, position).ok()?;
        let stop = skip(content, next, after).ok()?;
        if stop > content.len() {
            return None;
        }
        match next {
            0x0A => {
                let (_, begin) = varint(content, after, 5).ok()?;
                let text = &content[begin..stop];
                std::str::from_utf8(text).ok()?;
                value = Value::Text(text.to_vec());
            }
            0x10 => value = Value::Bool(varint(content, after, 10).ok()?.0 != 0),
            0x18 => value = Value::Int(varint(content, after, 10).ok()?.0 as i64),
            0x21 | 0x2A | 0x32 | 0x3A | 0x40 => value = Value::Other,
            _ => {}
        }
        position = stop;
    }
    Some(value)
}

pub fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn varint_len(value: u64) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

pub fn push_field(out: &mut Vec<u8>, tag: u64, content: &[u8]) {
    push_varint(out, tag);
    push_varint(out, content.len() as u64);
    out.extend_from_slice(content);
}
