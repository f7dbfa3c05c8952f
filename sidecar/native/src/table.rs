//! Corrections by piece: twin of `Table.at` in `skewd/bounds/table.py`, from the same pieces, packed.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

const PPB: i128 = 1_000_000_000;
const RECORD: usize = 32 + 13 * 8;

/// Place in Python's `Status`.
pub const UNSYNCHRONIZED: u8 = 2;

/// What one stamp deserves; the reference is a number in a list kept elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Correction {
    pub offset_ns: i128,
    pub uncertainty_ns: i128,
    pub status: u8,
    pub reference: Option<u32>,
}

#[derive(Clone, Copy)]
struct Line {
    ns: i128,
    ppb: i128,
}

struct Piece {
    begin: i128,
    end: i128,
    applied_from: i128,
    applied: Line,
    lower: [Line; 2],
    upper: [Line; 2],
    status: u8,
    reference: Option<u32>,
}

/// `ppb x since / 10^9`, rounded down. Nearly always it fits into 64 bits, where division is cheap.
#[inline(always)]
fn scaled(ppb: i128, since: i128) -> i128 {
    let product = ppb * since;
    match i64::try_from(product) {
        Ok(small) => i128::from(small.div_euclid(PPB as i64)),
        Err(_) => product.div_euclid(PPB),
    }
}

#[pyclass(frozen, module = "skewd_native")]
pub struct Table {
    pieces: Vec<Piece>,
    max_uncertainty_ns: i128,
    pub references: Vec<String>,
}

#[pymethods]
impl Table {
    #[new]
    fn new(packed: &[u8], references: Vec<String>, max_uncertainty_ns: i128) -> PyResult<Self> {
        if packed.len() % RECORD != 0 {
            return Err(PyValueError::new_err("a packed table is a whole number of records"));
        }
        let mut pieces = Vec::with_capacity(packed.len() / RECORD);
        for record in packed.chunks_exact(RECORD) {
            let wide = |at: usize| i128::from_le_bytes(record[at..at + 16].try_into().unwrap());
            let word = |index: usize| {
                let at = 32 + index * 8;
                i128::from(i64::from_le_bytes(record[at..at + 8].try_into().unwrap()))
            };
            let line = |index: usize| Line { ns: word(index), ppb: word(index + 1) };
            let reference = u32::try_from(word(12)).ok();
            if reference.is_some_and(|number| number as usize >= references.len()) {
                return Err(PyValueError::new_err("a packed table names a reference that is not there"));
            }
            pieces.push(Piece {
                begin: wide(0),
                end: wide(16),
                applied_from: word(0),
                applied: line(1),
                lower: [line(3), line(5)],
                upper: [line(7), line(9)],
                status: word(11) as u8,
                reference,
            });
        }
        Ok(Table { pieces, max_uncertainty_ns, references })
    }

    /// Offset, uncertainty, the status's number and the reference; None: ask the source. For tests.
    #[pyo3(name = "at")]
    fn py_at(&self, wall_ns: i128) -> Option<(i128, i128, u8, Option<&str>)> {
        let found = self.at(wall_ns, &mut 0)?;
        let reference = found.reference.map(|number| self.references[number as usize].as_str());
        Some((found.offset_ns, found.uncertainty_ns, found.status, reference))
    }
}

impl Table {
    /// The correction for a stamp; `hint` is the piece that answered last, since the next stamp is usually near it.
    #[inline]
    pub fn at(&self, wall_ns: i128, hint: &mut usize) -> Option<Correction> {
        let index = match self.pieces.get(*hint) {
            Some(piece) if piece.begin <= wall_ns && wall_ns < piece.end => *hint,
            _ => {
                let behind = self.pieces.partition_point(|piece| piece.begin <= wall_ns);
                let index = behind.checked_sub(1)?;
                if wall_ns >= self.pieces[index].end {
                    return None;
                }
                *hint = index;
                index
            }
        };
        let piece = &self.pieces[index];
        let since = wall_ns - piece.begin;
        let applied = piece.applied.ns + scaled(piece.applied.ppb, wall_ns - piece.applied_from);
        let lower = |line: Line| line.ns + scaled(line.ppb, since);
        let upper = |line: Line| line.ns - scaled(-line.ppb, since);
        let lo = lower(piece.lower[0]).max(lower(piece.lower[1]));
        let hi = upper(piece.upper[0]).min(upper(piece.upper[1]));
        let uncertainty_ns = (hi - applied).max(applied - lo).max(0);
        if uncertainty_ns > self.max_uncertainty_ns {
            return None;
        }
        Some(Correction { offset_ns: applied, uncertainty_ns, status: piece.status, reference: piece.reference })
    }
}
