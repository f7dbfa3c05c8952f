//! How much a body holds, counted before anything is made of it. Twin of `skewd_sidecar/patch/census.py`.
//!
//! No memory is taken, and the walk ends with the first record or element that is one too many. The interpreter's lock
//! is released meanwhile.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::patch::MalformedBody;
use crate::wire::{self, Malformed};

/// Bodies longer than this are counted down to the attributes of their records.
const DEEP_BYTES: usize = 256 * 1024;

enum Stop {
    Malformed(Malformed),
    /// A limit is passed.
    Enough,
}

impl From<Malformed> for Stop {
    fn from(malformed: Malformed) -> Self {
        Stop::Malformed(malformed)
    }
}

type Counted = Result<(), Stop>;

struct Count<'a> {
    body: &'a [u8],
    logs: bool,
    deep: bool,
    records: u64,
    elements: u64,
    records_max: u64,
    elements_max: u64,
}

/// Spans or log records, and elements, of a request. Raises `MalformedBody`.
#[pyfunction]
pub fn census(
    py: Python<'_>,
    body: &Bound<'_, PyBytes>,
    logs: bool,
    records_max: u64,
    elements_max: u64,
) -> PyResult<(u64, u64)> {
    let bytes = body.as_bytes();
    let mut count =
        Count { body: bytes, logs, deep: bytes.len() > DEEP_BYTES, records: 0, elements: 0, records_max, elements_max };
    match py.detach(|| count.request()) {
        Ok(()) | Err(Stop::Enough) => Ok((count.records, count.elements)),
        Err(Stop::Malformed(malformed)) => Err(MalformedBody::new_err(malformed.text(bytes.len()))),
    }
}

fn ended(position: usize, end: usize) -> Counted {
    if position != end {
        return Err(Malformed::Overrun(end).into());
    }
    Ok(())
}

impl Count<'_> {
    #[inline(always)]
    fn element(&mut self) -> Counted {
        self.elements += 1;
        if self.elements > self.elements_max {
            return Err(Stop::Enough);
        }
        Ok(())
    }

    fn request(&mut self) -> Counted {
        let (body, mut position, end) = (self.body, 0, self.body.len());
        while position < end {
            let (tag, after) = wire::tag(body, position)?;
            if tag != 0x0A {
                position = wire::skip(body, tag, after)?;
                continue;
            }
            self.element()?;
            let (begin, stop) = wire::content(body, after, end)?;
            self.batch(begin, stop)?;
            position = stop;
        }
        ended(position, end)
    }

    fn batch(&mut self, mut position: usize, end: usize) -> Counted {
        let body = self.body;
        while position < end {
            let (tag, after) = wire::tag(body, position)?;
            if tag != 0x0A && tag != 0x12 {
                position = wire::skip(body, tag, after)?;
                continue;
            }
            self.element()?;
            let (begin, stop) = wire::content(body, after, end)?;
            if tag == 0x12 {
                self.scope(begin, stop)?;
            } else if self.deep {
                self.counted(begin, stop, 0x0A)?;
            }
            position = stop;
        }
        ended(position, end)
    }

    fn scope(&mut self, mut position: usize, end: usize) -> Counted {
        let body = self.body;
        while position < end {
            let (tag, after) = wire::tag(body, position)?;
            if tag != 0x12 {
                position = wire::skip(body, tag, after)?;
                continue;
            }
            self.records += 1;
            if self.records > self.records_max {
                return Err(Stop::Enough);
            }
            let (begin, stop) = wire::content(body, after, end)?;
            if self.deep {
                self.record(begin, stop)?;
            }
            position = stop;
        }
        ended(position, end)
    }

    fn record(&mut self, mut position: usize, end: usize) -> Counted {
        let body = self.body;
        while position < end {
            let (tag, after) = wire::tag(body, position)?;
            let inside =
                if self.logs { matches!(tag, 0x32 | 0x09) } else { matches!(tag, 0x4A | 0x5A | 0x6A | 0x39 | 0x41) };
            if inside {
                self.element()?;
                if tag == 0x5A {
                    let (begin, stop) = wire::content(body, after, end)?;
                    self.counted(begin, stop, 0x09)?;
                    position = stop;
                    continue;
                }
            }
            position = wire::skip(body, tag, after)?;
        }
        ended(position, end)
    }

    /// Counts the fields of a message that have a tag: an event's times, a Resource's attributes.
    fn counted(&mut self, mut position: usize, end: usize, wanted: u64) -> Counted {
        while position < end {
            let (tag, after) = wire::tag(self.body, position)?;
            if tag == wanted {
                self.element()?;
            }
            position = wire::skip(self.body, tag, after)?;
        }
        ended(position, end)
    }
}
