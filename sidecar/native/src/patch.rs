//! Twin of the package `skewd_sidecar.patch`, whose opening text holds the rules; the same bytes come out of both.
//!
//! One walk over the body makes a list of edits (from, to, replacement) in order of position, with the replacements in
//! one arena, and a list of times to write. The result is then put together at once, in the memory of the Python
//! object that is returned. The interpreter's lock is released during the walk, and taken again only to ask the source
//! for a stamp that the table does not cover.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::attributes::{
    Attributes, CORRECTED, END_OFFSET, FACTS, NAMES, NODE, OFFSET, ORIGINAL_END, ORIGINAL_OBSERVED, ORIGINAL_START,
    ORIGINAL_TIME, REFERENCE, UNCERTAINTY,
};
use crate::table::{Correction, Table, UNSYNCHRONIZED};
use crate::wire::{self, Malformed, Value};

pyo3::create_exception!(skewd_native, MalformedBody, PyValueError);

/// Changes with what Python calls and with what comes out: see `skewd_sidecar/kernel.py`.
pub const INTERFACE: u32 = 4;

const STATUSES: [&str; 3] = ["synchronized", "holdover", "unsynchronized"];

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Off,
    Tag,
    Rewrite,
}

/// Counters in the order of Python's `Action`.
#[derive(Clone, Copy)]
enum Action {
    Tagged,
    Rewritten,
    Unsynchronized,
    Unchanged,
    Passed,
}

#[derive(Clone, Copy, PartialEq)]
enum Record {
    Span,
    Log,
}

/// How spans are patched: twin of `PatchOptions`.
#[pyclass(frozen, module = "skewd_native")]
pub struct Patcher {
    mode: Mode,
    node: Value,
    prefix: Vec<u8>,
    trust: bool,
    on_resource: bool,
    keep: bool,
    wall: bool,
    span: Attributes,
    log: Attributes,
    resource: Attributes,
}

#[pymethods]
impl Patcher {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        mode: &str,
        node: &str,
        prefix: &str,
        keep_original: bool,
        placement: &str,
        incoming: &str,
        stamps: &str,
    ) -> PyResult<Self> {
        let mode = match mode {
            "off" => Mode::Off,
            "tag" => Mode::Tag,
            "rewrite" => Mode::Rewrite,
            _ => return Err(PyValueError::new_err(format!("no mode is called {mode:?}"))),
        };
        let (on_resource, originals) = match placement {
            "span" => (false, true),
            "resource" => (true, true),
            "minimal" => (true, false),
            _ => return Err(PyValueError::new_err(format!("no placement is called {placement:?}"))),
        };
        let trust = match incoming {
            "trust" => true,
            "replace" => mode == Mode::Off,
            _ => return Err(PyValueError::new_err(format!("no treatment is called {incoming:?}"))),
        };
        let wall = match stamps {
            "wall" => true,
            "unknown" => false,
            _ => return Err(PyValueError::new_err(format!("no stamps are called {stamps:?}"))),
        };
        Ok(Patcher {
            mode,
            node: Value::Text(node.as_bytes().to_vec()),
            prefix: prefix.as_bytes().to_vec(),
            trust,
            on_resource,
            keep: keep_original && originals,
            wall,
            span: Attributes::new(prefix, 0x4A),
            log: Attributes::new(prefix, 0x32),
            resource: Attributes::new(prefix, 0x0A),
        })
    }

    /// The body to send on, and how many spans (log records) were treated how, in the order of `Action`.
    ///
    /// `ask(wall_ns)` gives a Python `Correction` where the table has none, and for what is later than `until_ns`, what
    /// the node's clock reads. Raises `MalformedBody`, and what `ask` does.
    fn patch<'py>(
        &self,
        py: Python<'py>,
        body: &Bound<'py, PyBytes>,
        logs: bool,
        ask: Py<PyAny>,
        table: Option<Py<Table>>,
        until_ns: Option<i128>,
    ) -> PyResult<(Bound<'py, PyBytes>, [u64; 5])> {
        let bytes = body.as_bytes();
        let table = table.as_ref().map(|table| table.get());
        let mut walk = Walk::new(bytes, self, if logs { Record::Log } else { Record::Span }, &ask, table, until_ns);
        let walked = py.detach(|| walk.children(0, bytes.len(), Level::Request));
        let growth = match walked {
            Ok(growth) => growth,
            Err(Failure::Malformed(malformed)) => return Err(MalformedBody::new_err(malformed.text(bytes.len()))),
            Err(Failure::Python(error)) => return Err(error),
        };
        let actions = walk.actions;
        if walk.moves.is_empty() && walk.edits.iter().all(|edit| edit.begin == UNUSED) {
            return Ok((body.clone(), actions));
        }
        let size = (bytes.len() as isize + growth) as usize;
        let out = PyBytes::new_with(py, size, |out| {
            walk.write(out);
            Ok(())
        })?;
        Ok((out, actions))
    }
}

enum Failure {
    Malformed(Malformed),
    Python(PyErr),
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        Failure::Malformed(malformed)
    }
}

type Outcome<T> = Result<T, Failure>;

#[derive(Clone, Copy)]
enum Level {
    Request,
    Scope,
}

const UNUSED: usize = usize::MAX;

/// Bytes `begin` to `end` of the body give way to `from` to `to` of the arena.
#[derive(Clone, Copy)]
struct Edit {
    begin: usize,
    end: usize,
    from: usize,
    to: usize,
}

const PLACE: Edit = Edit { begin: UNUSED, end: 0, from: 0, to: 0 };

/// An attribute of ours that arrived: name, where the field begins, where its KeyValue begins, where it ends.
#[derive(Clone, Copy)]
struct Ours {
    name: usize,
    tag_at: usize,
    begin: usize,
    end: usize,
}

#[derive(Clone, Copy, PartialEq)]
struct What {
    reference: Option<u32>,
    status: u8,
    corrected: bool,
}

/// The places of a span's times: where each was seen last (0: never), and where before.
#[derive(Default)]
struct Times {
    start_at: usize,
    end_at: usize,
    more_starts: Vec<usize>,
    more_ends: Vec<usize>,
    /// The places of all events' times, event after event, and where each event's end in that list.
    event_times: Vec<usize>,
    events: Vec<usize>,
}

impl Times {
    fn clear(&mut self) {
        self.start_at = 0;
        self.end_at = 0;
        self.more_starts.clear();
        self.more_ends.clear();
        self.event_times.clear();
        self.events.clear();
    }
}

struct Walk<'a> {
    body: &'a [u8],
    patcher: &'a Patcher,
    attributes: &'a Attributes,
    record: Record,
    ask: &'a Py<PyAny>,
    table: Option<&'a Table>,
    until: i128,
    hint: usize,
    references: Vec<String>,
    edits: Vec<Edit>,
    arena: Vec<u8>,
    /// Times to write: place and value.
    moves: Vec<(usize, u64)>,
    ours: Vec<Ours>,
    times: Times,
    /// Of the span under way: each event's time, and what it moves by: the start's offset, its own.
    event_shifts: Vec<(u64, i128, i128)>,
    /// What lies between its start and end: before, and after if each moves by its own.
    inside: Vec<(i128, i128)>,
    // Of the batch under way: see the Python twin.
    inherited: [Option<Value>; 4],
    inherits: bool,
    facts: Option<[Option<Value>; 4]>,
    said: Vec<(What, Vec<u8>)>,
    actions: [u64; 5],
}

impl<'a> Walk<'a> {
    fn new(
        body: &'a [u8],
        patcher: &'a Patcher,
        record: Record,
        ask: &'a Py<PyAny>,
        table: Option<&'a Table>,
        until_ns: Option<i128>,
    ) -> Self {
        Walk {
            body,
            patcher,
            attributes: if record == Record::Span { &patcher.span } else { &patcher.log },
            record,
            ask,
            table,
            until: until_ns.unwrap_or(i128::MAX),
            hint: 0,
            references: table.map_or_else(Vec::new, |table| table.references.clone()),
            edits: Vec::with_capacity(body.len() / 128),
            arena: Vec::with_capacity(body.len() / 2),
            moves: Vec::new(),
            ours: Vec::new(),
            times: Times::default(),
            event_shifts: Vec::new(),
            inside: Vec::new(),
            inherited: [None, None, None, None],
            inherits: false,
            facts: None,
            said: Vec::new(),
            actions: [0; 5],
        }
    }

    /// Puts the result together; `out` has its size.
    fn write(&mut self, out: &mut [u8]) {
        self.moves.sort_unstable_by_key(|(at, _)| *at);
        let mut moves = self.moves.iter().peekable();
        let (mut cursor, mut at) = (0, 0);
        let last = Edit { begin: self.body.len(), end: self.body.len(), from: 0, to: 0 };
        for edit in self.edits.iter().chain(std::iter::once(&last)) {
            if edit.begin == UNUSED {
                continue;
            }
            let kept = &self.body[cursor..edit.begin];
            out[at..at + kept.len()].copy_from_slice(kept);
            while let Some((place, time)) = moves.next_if(|(place, _)| *place < edit.begin) {
                let to = at + (place - cursor);
                out[to..to + 8].copy_from_slice(&time.to_le_bytes());
            }
            at += kept.len();
            let added = &self.arena[edit.from..edit.to];
            out[at..at + added.len()].copy_from_slice(added);
            at += added.len();
            cursor = edit.end;
        }
        debug_assert_eq!(at, out.len());
    }

    fn place(&mut self) -> usize {
        self.edits.push(PLACE);
        self.edits.len() - 1
    }

    /// Walks the ResourceSpans of the request, or the records of a scope; returns by how many bytes it grows.
    fn children(&mut self, mut position: usize, end: usize, level: Level) -> Outcome<isize> {
        let wanted = if matches!(level, Level::Request) { 0x0A } else { 0x12 };
        let mut growth = 0;
        while position < end {
            let (tag, after) = wire::tag(self.body, position)?;
            if tag != wanted {
                position = wire::skip(self.body, tag, after)?;
                continue;
            }
            let (begin, stop) = wire::content(self.body, after, end)?;
            let place = self.place();
            let grown = match (level, self.record) {
                (Level::Request, _) => self.batch(begin, stop)?,
                (Level::Scope, Record::Span) => self.span(begin, stop)?,
                (Level::Scope, Record::Log) => self.log(begin, stop)?,
            };
            growth += self.resize(place, after, begin, stop, grown);
            position = stop;
        }
        if position != end {
            return Err(Malformed::Overrun(end).into());
        }
        Ok(growth)
    }

    /// Writes a length anew, at its place among the edits, if it changed; returns by how much the field grows.
    fn resize(&mut self, place: usize, size_at: usize, begin: usize, stop: usize, grown: isize) -> isize {
        if grown == 0 {
            return 0;
        }
        let from = self.arena.len();
        wire::push_varint(&mut self.arena, ((stop - begin) as isize + grown) as u64);
        let to = self.arena.len();
        self.edits[place] = Edit { begin: size_at, end: begin, from, to };
        grown + (to - from) as isize - (begin - size_at) as isize
    }

    /// Walks one ResourceSpans or ResourceLogs: its Resource is read before any span, and written after all of them.
    fn batch(&mut self, mut position: usize, end: usize) -> Outcome<isize> {
        struct Inside {
            size_at: usize,
            begin: usize,
            stop: usize,
            /// Which of `ours` are a Resource's; None for scope spans.
            resource: Option<(usize, usize)>,
        }
        let mut inside: Vec<Inside> = Vec::with_capacity(4);
        let mut ours: Vec<Ours> = Vec::new();
        while position < end {
            let (tag, after) = wire::tag(self.body, position)?;
            if tag != 0x0A && tag != 0x12 {
                position = wire::skip(self.body, tag, after)?;
                continue;
            }
            let (begin, stop) = wire::content(self.body, after, end)?;
            let before = ours.len();
            let mut resource = None;
            if tag == 0x0A {
                self.resource(begin, stop, &mut ours)?;
                resource = Some((before, ours.len()));
            }
            inside.push(Inside { size_at: after, begin, stop, resource });
            position = stop;
        }
        if position != end {
            return Err(Malformed::Overrun(end).into());
        }

        self.inherited = [None, None, None, None];
        self.inherits = false;
        if self.patcher.trust {
            for each in &ours {
                if (FACTS..FACTS + 4).contains(&each.name) {
                    self.inherited[each.name - FACTS] = Some(wire::value(self.body, each.begin, each.end));
                    self.inherits = true;
                }
            }
        }
        self.facts = None;
        if self.patcher.on_resource {
            self.said.clear();
        }
        let mut growth = 0;
        // Place of the length, of what is added, the Resource, and how much of it is cut.
        let mut resources: Vec<(usize, usize, &Inside, usize)> = Vec::new();
        for each in &inside {
            let place = self.place();
            let Some((first, behind)) = each.resource else {
                let grown = self.children(each.begin, each.stop, Level::Scope)?;
                growth += self.resize(place, each.size_at, each.begin, each.stop, grown);
                continue;
            };
            let mut cut = 0;
            if !self.patcher.trust {
                for each in &ours[first..behind] {
                    self.edits.push(Edit { begin: each.tag_at, end: each.end, from: 0, to: 0 });
                    cut += each.end - each.tag_at;
                }
            }
            let addition = self.place();
            resources.push((place, addition, each, cut));
        }
        let from = self.arena.len();
        if let Some(facts) = &self.facts {
            for (fact, value) in facts.iter().enumerate() {
                if let (Some(value), None) = (value, &self.inherited[fact]) {
                    self.patcher.resource.push_fact(&mut self.arena, fact, value);
                }
            }
        }
        let added = self.arena.len() - from;
        for (number, (place, addition, each, cut)) in resources.iter().enumerate() {
            let mut grown = -(*cut as isize);
            if added > 0 && number + 1 == resources.len() {
                self.edits[*addition] = Edit { begin: each.stop, end: each.stop, from, to: from + added };
                grown += added as isize;
            }
            growth += self.resize(*place, each.size_at, each.begin, each.stop, grown);
        }
        if added > 0 && resources.is_empty() {
            let content = self.arena[from..].to_vec();
            let from = self.arena.len();
            wire::push_field(&mut self.arena, 0x0A, &content);
            let to = self.arena.len();
            self.edits.push(Edit { begin: end, end, from, to });
            growth += (to - from) as isize;
        }
        Ok(growth)
    }

    /// Reads a Resource: which of its attributes are ours.
    fn resource(&self, mut position: usize, end: usize, ours: &mut Vec<Ours>) -> Outcome<()> {
        while position < end {
            let (tag, after) = wire::tag(self.body, position)?;
            if tag != 0x0A {
                position = wire::skip(self.body, tag, after)?;
                continue;
            }
            let (begin, stop) = wire::content(self.body, after, end)?;
            if let Some(name) = self.name(wire::key(self.body, begin, stop)?) {
                ours.push(Ours { name, tag_at: position, begin, end: stop });
            }
            position = stop;
        }
        if position != end {
            return Err(Malformed::Overrun(end).into());
        }
        Ok(())
    }

    #[inline(always)]
    fn name(&self, key: &[u8]) -> Option<usize> {
        let prefix = self.patcher.prefix.as_slice();
        if key.first() != prefix.first() {
            return None; // most keys, without a call
        }
        let rest = key.strip_prefix(prefix)?;
        NAMES.iter().position(|name| name.as_bytes() == rest)
    }

    fn span(&mut self, mut position: usize, end: usize) -> Outcome<isize> {
        let body = self.body;
        self.times.clear();
        self.ours.clear();
        while position < end {
            let tag_at = position;
            let (tag, after) = wire::tag(body, position)?;
            position = after;
            match tag {
                0x4A => {
                    let (begin, stop) = wire::content(body, position, end)?;
                    if let Some(name) = self.name(wire::key(body, begin, stop)?) {
                        self.ours.push(Ours { name, tag_at, begin, end: stop });
                    }
                    position = stop;
                }
                0x39 => {
                    if self.times.start_at != 0 {
                        self.times.more_starts.push(self.times.start_at);
                    }
                    self.times.start_at = position;
                    position += 8;
                }
                0x41 => {
                    if self.times.end_at != 0 {
                        self.times.more_ends.push(self.times.end_at);
                    }
                    self.times.end_at = position;
                    position += 8;
                }
                0x5A => {
                    let (begin, stop) = wire::content(body, position, end)?;
                    self.event(begin, stop)?;
                    position = stop;
                }
                _ => position = wire::skip(body, tag, position)?,
            }
        }
        if position != end {
            return Err(Malformed::Overrun(end).into());
        }
        self.decide(end)
    }

    /// The places of an event's `time_unix_nano`: usually one.
    fn event(&mut self, mut position: usize, end: usize) -> Outcome<()> {
        let before = self.times.event_times.len();
        while position < end {
            let (tag, after) = wire::tag(self.body, position)?;
            position = after;
            if tag == 0x09 {
                self.times.event_times.push(position);
                position += 8;
            } else {
                position = wire::skip(self.body, tag, position)?;
            }
        }
        if position != end {
            return Err(Malformed::Overrun(end).into());
        }
        if self.times.event_times.len() > before {
            self.times.events.push(self.times.event_times.len());
        }
        Ok(())
    }

    fn log(&mut self, mut position: usize, end: usize) -> Outcome<isize> {
        let body = self.body;
        self.times.clear();
        self.ours.clear();
        while position < end {
            let tag_at = position;
            let (tag, after) = wire::tag(body, position)?;
            position = after;
            match tag {
                0x32 => {
                    let (begin, stop) = wire::content(body, position, end)?;
                    if let Some(name) = self.name(wire::key(body, begin, stop)?) {
                        self.ours.push(Ours { name, tag_at, begin, end: stop });
                    }
                    position = stop;
                }
                0x09 => {
                    if self.times.start_at != 0 {
                        self.times.more_starts.push(self.times.start_at);
                    }
                    self.times.start_at = position;
                    position += 8;
                }
                0x59 => {
                    if self.times.end_at != 0 {
                        self.times.more_ends.push(self.times.end_at);
                    }
                    self.times.end_at = position;
                    position += 8;
                }
                _ => position = wire::skip(body, tag, position)?,
            }
        }
        if position != end {
            return Err(Malformed::Overrun(end).into());
        }
        self.decide(end)
    }

    /// A record without a time says nothing that a clock could correct: it passes unchanged, but for claims under our
    /// names.
    fn timeless(&mut self, end: usize) -> isize {
        self.count(Action::Unchanged);
        if !self.patcher.trust && !self.ours.is_empty() {
            let from = self.arena.len();
            return self.upsert(end, from);
        }
        0
    }

    fn has_event_time(&self) -> bool {
        self.times.event_times.iter().any(|at| self.time(*at) != 0)
    }

    /// The time at a place; 0 where there is none.
    #[inline(always)]
    fn time(&self, at: usize) -> u64 {
        if at == 0 {
            return 0;
        }
        u64::from_le_bytes(self.body[at..at + 8].try_into().unwrap())
    }

    #[inline(always)]
    fn at(&mut self, wall_ns: i128) -> Outcome<Correction> {
        if let (Some(table), true) = (self.table, wall_ns <= self.until) {
            if let Some(found) = table.at(wall_ns, &mut self.hint) {
                return Ok(found);
            }
        }
        self.asked(wall_ns)
    }

    #[inline(never)]
    fn asked(&mut self, wall_ns: i128) -> Outcome<Correction> {
        let asked = Python::attach(|py| -> PyResult<_> {
            let said = self.ask.bind(py).call1((wall_ns,))?;
            let status: String = said.getattr("status")?.extract()?;
            let reference: Option<String> = said.getattr("reference")?.extract()?;
            let offset_ns: i128 = said.getattr("offset_ns")?.extract()?;
            let uncertainty_ns: i128 = said.getattr("uncertainty_ns")?.extract()?;
            Ok((status, reference, offset_ns, uncertainty_ns))
        });
        let (status, reference, offset_ns, uncertainty_ns) = asked.map_err(Failure::Python)?;
        let status = STATUSES.iter().position(|name| *name == status).unwrap_or(UNSYNCHRONIZED.into()) as u8;
        let reference = reference.map(|name| {
            let known = self.references.iter().position(|each| *each == name);
            known.unwrap_or_else(|| {
                self.references.push(name);
                self.references.len() - 1
            }) as u32
        });
        Ok(Correction { offset_ns, uncertainty_ns, status, reference })
    }

    fn decide(&mut self, end: usize) -> Outcome<isize> {
        let mode = self.patcher.mode;
        if mode == Mode::Off {
            return Ok(self.count(Action::Passed));
        }
        let start = self.time(self.times.start_at);
        let finish = self.time(self.times.end_at);
        if start == 0 && finish == 0 && !self.has_event_time() {
            return Ok(self.timeless(end));
        }
        let first = i128::from(if start != 0 { start } else { finish });
        let (mut undo, mut undo_end) = (0, 0); // what an earlier correction on another reference had added
        let (mut rebased, mut end_moves) = (false, true);
        if self.patcher.trust && (self.inherits || !self.ours.is_empty()) {
            if let Some((reference, undone, undone_end)) = self.before(start, finish) {
                let (Mode::Rewrite, Some(undone)) = (mode, undone) else {
                    return Ok(self.count(Action::Unchanged));
                };
                let now = self.at(first - undone)?;
                if now.status == UNSYNCHRONIZED || self.is_reference(now.reference, &reference) {
                    return Ok(self.count(Action::Unchanged));
                }
                undo = undone;
                rebased = true;
                end_moves = undone_end.is_some();
                undo_end = undone_end.unwrap_or(0);
            }
        }

        let anchor = first - undo;
        let correction = self.at(anchor)?;
        let offset = correction.offset_ns;
        let shift = offset - undo;
        let mut uncertainty = correction.uncertainty_ns;
        let mut own_uncertainty = uncertainty;
        let mut known = correction.status != UNSYNCHRONIZED;
        let mut end_offset = offset;
        let finished = i128::from(finish) - undo_end;
        if known && start != 0 && finish != 0 && end_moves && (finished != anchor || undo_end != undo) {
            let at_end = self.at(finished)?;
            if at_end.status == UNSYNCHRONIZED || at_end.reference != correction.reference {
                known = self.record == Record::Log;
                end_moves = false;
            } else {
                end_offset = at_end.offset_ns;
                own_uncertainty = own_uncertainty.max(at_end.uncertainty_ns);
                uncertainty = uncertainty.max(at_end.uncertainty_ns + (shift - (end_offset - undo_end)).abs());
            }
        }
        let surely = own_uncertainty; // of start and end
        if !known {
            if rebased {
                return Ok(self.count(Action::Unchanged));
            }
            let from = self.arena.len();
            self.push_facts(What { reference: None, status: UNSYNCHRONIZED, corrected: false });
            self.count(Action::Unsynchronized);
            return Ok(self.upsert(end, from));
        }

        if rebased && uncertainty.max((shift + undo_end).abs()) >> 63 != 0 {
            return Ok(self.count(Action::Unchanged)); // what it says of itself cannot be
        }

        self.event_shifts.clear();
        for index in 0..self.times.events.len() {
            let time = self.time(self.times.event_times[self.times.events[index] - 1]);
            let (mut shared, mut own) = (0, 0);
            if time != 0 {
                (shared, own) = (shift, shift);
                let stamped = i128::from(time) - undo;
                let at_event = self.at(stamped)?;
                if at_event.status != UNSYNCHRONIZED && at_event.reference == correction.reference {
                    own = at_event.offset_ns - undo;
                    own_uncertainty = own_uncertainty.max(at_event.uncertainty_ns);
                    uncertainty = uncertainty.max(at_event.uncertainty_ns + (own - shift).abs());
                } else if stamped > self.until && (finish == 0 || time > finish) {
                    (shared, own) = (0, 0); // another clock's
                }
            }
            self.event_shifts.push((time, shared, own));
        }

        let mut fits = mode == Mode::Rewrite;
        let mut end_deserves = if self.patcher.wall { end_offset } else { offset };
        if fits {
            let own_end = if end_moves { end_offset } else { 0 };
            let each_its_own = self.patcher.wall && !rebased && self.in_order(start, shift, finish, own_end);
            let end_shift = match (end_moves, each_its_own) {
                (false, _) => 0,
                (true, true) => end_offset,
                (true, false) => shift,
            };
            let before = self.moves.len();
            fits = self.push_moves(start, finish, shift, end_shift, each_its_own);
            if fits {
                end_deserves = end_shift + undo_end;
                if each_its_own {
                    uncertainty = own_uncertainty;
                }
            } else {
                self.moves.truncate(before);
                if rebased {
                    return Ok(self.count(Action::Unchanged));
                }
            }
        }
        let from = self.arena.len();
        self.attributes.push_int(&mut self.arena, OFFSET, offset as u64);
        self.attributes.push_int(&mut self.arena, UNCERTAINTY, uncertainty as u64);
        self.push_facts(What { reference: correction.reference, status: correction.status, corrected: fits });
        let is_span = self.record == Record::Span;
        if fits && self.patcher.keep {
            let (first, last) = self.originals();
            if start != 0 {
                self.attributes.push_int(&mut self.arena, first, (i128::from(start) - undo) as u64);
            }
            if finish != 0 && end_moves {
                self.attributes.push_int(&mut self.arena, last, finished as u64);
            }
        }
        if is_span && start != 0 && finish != 0 && (end_deserves - offset).abs() > surely {
            self.attributes.push_int(&mut self.arena, END_OFFSET, end_deserves as u64);
        }
        self.count(if fits { Action::Rewritten } else { Action::Tagged });
        Ok(self.upsert(end, from))
    }

    /// Which attributes keep the times.
    fn originals(&self) -> (usize, usize) {
        match self.record {
            Record::Span => (ORIGINAL_START, ORIGINAL_END),
            Record::Log => (ORIGINAL_TIME, ORIGINAL_OBSERVED),
        }
    }

    /// Whether what lies between start and end stays there, in order, if each moves by its own offset. 0 is no time.
    fn in_order(&mut self, start: u64, shift: i128, finish: u64, end_shift: i128) -> bool {
        if start != 0 && finish != 0 && start > finish {
            return true; // nothing lies in between
        }
        self.inside.clear();
        for (time, _, own) in &self.event_shifts {
            if *time >= start.max(1) && (finish == 0 || *time <= finish) {
                self.inside.push((i128::from(*time), i128::from(*time) + own));
            }
        }
        if start != 0 {
            self.inside.push((i128::from(start), i128::from(start) + shift));
        }
        if finish != 0 {
            self.inside.push((i128::from(finish), i128::from(finish) + end_shift));
        }
        self.inside.sort_unstable();
        self.inside.windows(2).all(|two| two[0].1 <= two[1].1)
    }

    /// Notes all times of a span to be shifted; false if one would leave its range.
    fn push_moves(&mut self, start: u64, finish: u64, shift: i128, end_shift: i128, each_its_own: bool) -> bool {
        let mut fits =
            self.push_move(self.times.start_at, start, shift) && self.push_move(self.times.end_at, finish, end_shift);
        if start != 0 {
            for index in 0..self.times.more_starts.len() {
                let at = self.times.more_starts[index];
                fits = fits && self.push_move(at, self.time(at), shift);
            }
        }
        if finish != 0 {
            for index in 0..self.times.more_ends.len() {
                let at = self.times.more_ends[index];
                fits = fits && self.push_move(at, self.time(at), end_shift);
            }
        }
        let mut begin = 0;
        for index in 0..self.times.events.len() {
            let behind = self.times.events[index];
            let (_, shared, own) = self.event_shifts[index];
            for place in begin..behind {
                let at = self.times.event_times[place];
                fits = fits && self.push_move(at, self.time(at), if each_its_own { own } else { shared });
            }
            begin = behind;
        }
        fits
    }

    /// Notes a time to be shifted; false if it would leave its range. A zero stays.
    #[inline(always)]
    fn push_move(&mut self, at: usize, time: u64, by: i128) -> bool {
        if time == 0 {
            return true;
        }
        match u64::try_from(i128::from(time) + by) {
            Ok(moved) if moved != 0 => {
                if by != 0 {
                    self.moves.push((at, moved));
                }
                true
            }
            _ => false,
        }
    }

    /// What an earlier correction left: its reference, what it had added to the times (None: it cannot be told), and to
    /// the end (None: nothing, it was left).
    #[allow(clippy::type_complexity)]
    fn before(&self, start: u64, finish: u64) -> Option<(Option<Value>, Option<i128>, Option<i128>)> {
        let last = |name: usize| {
            let found = self.ours.iter().rev().find(|each| each.name == name)?;
            Some(wire::value(self.body, found.begin, found.end))
        };
        let fact = |fact: usize| last(FACTS + fact).or_else(|| self.inherited[fact].clone());
        if fact(CORRECTED) != Some(Value::Bool(true)) {
            return None;
        }
        let reference = fact(REFERENCE);
        let number = |name: usize| match last(name) {
            Some(Value::Int(number)) => Some(number),
            _ => None,
        };
        let added = |time: u64, name: usize| match number(name) {
            Some(original) if time != 0 => Some(i128::from(time) - i128::from(original as u64)),
            _ => None,
        };
        let is_log = self.record == Record::Log;
        let (first, behind) = self.originals();
        let (to_start, to_end) = (added(start, first), added(finish, behind));
        let undone = to_start.or(to_end).or(number(OFFSET).map(i128::from));
        if is_log && to_start.is_some() && to_end.is_none() {
            return Some((reference, undone, None));
        }
        let told = number(END_OFFSET).filter(|_| !is_log).map(i128::from);
        let undone_end = if start == 0 { undone } else { to_end.or(told).or(undone) };
        Some((reference, undone, undone_end))
    }

    fn is_reference(&self, now: Option<u32>, then: &Option<Value>) -> bool {
        match (now, then) {
            (Some(now), Some(Value::Text(then))) => self.references[now as usize].as_bytes() == then.as_slice(),
            (None, None | Some(Value::Other)) => true,
            _ => false,
        }
    }

    /// Appends to the arena the attributes with these facts, as far as the Resource does not say the same.
    #[inline(always)]
    fn push_facts(&mut self, what: What) {
        match self.said.iter().position(|(each, _)| *each == what) {
            Some(found) => self.arena.extend_from_slice(&self.said[found].1),
            None => self.push_new_facts(what),
        }
    }

    #[inline(never)]
    fn push_new_facts(&mut self, what: What) {
        let own: [Option<Value>; 4] = [
            what.reference.map(|number| Value::Text(self.references[number as usize].clone().into_bytes())),
            Some(Value::Text(STATUSES[what.status as usize].as_bytes().to_vec())),
            Some(self.patcher.node.clone()),
            Some(Value::Bool(what.corrected)),
        ];
        if self.patcher.on_resource && self.facts.is_none() {
            let ours = |fact: usize| own[fact].clone().filter(|_| fact == NODE);
            self.facts = Some(std::array::from_fn(|fact| self.inherited[fact].clone().or_else(|| ours(fact))));
        }
        let mut said = Vec::new();
        for (fact, value) in own.iter().enumerate() {
            let theirs = self.facts.as_ref().and_then(|facts| facts[fact].as_ref());
            if let Some(value) = value {
                if theirs != Some(value) {
                    self.attributes.push_fact(&mut said, fact, value);
                }
            }
        }
        self.arena.extend_from_slice(&said);
        self.said.push((what, said));
    }

    /// Cuts all of ours that arrived and puts the arena's bytes since `from` at the end.
    fn upsert(&mut self, end: usize, from: usize) -> isize {
        let to = self.arena.len();
        let mut growth = (to - from) as isize;
        let mut cut = end;
        for each in &self.ours {
            growth -= (each.end - each.tag_at) as isize;
        }
        // Ours at the very end, as a sidecar leaves them, are one cut together with what replaces them.
        while self.ours.last().is_some_and(|each| each.end == cut) {
            cut = self.ours.pop().unwrap().tag_at;
        }
        for each in &self.ours {
            self.edits.push(Edit { begin: each.tag_at, end: each.end, from: 0, to: 0 });
        }
        self.edits.push(Edit { begin: cut, end, from, to });
        growth
    }

    /// Counts, and returns 0: a span that is only counted does not grow.
    fn count(&mut self, action: Action) -> isize {
        self.actions[action as usize] += 1;
        0
    }
}
