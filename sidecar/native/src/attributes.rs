//! The attributes that are ours: their names, and their bytes. Twin of `skewd_sidecar/patch/attributes.py`.

use crate::wire::{self, Value};

/// The attributes that are ours, in the order in which they are appended.
pub const NAMES: [&str; 11] = [
    "offset_ns",
    "uncertainty_ns",
    "reference",
    "status",
    "node.name",
    "corrected",
    "original.start_time_unix_nano",
    "original.end_time_unix_nano",
    "original.time_unix_nano",
    "original.observed_time_unix_nano",
    "end.offset_ns",
];
pub const OFFSET: usize = 0;
pub const UNCERTAINTY: usize = 1;
/// Where the facts begin: reference, status, node.name, corrected. The next three are places among those.
pub const FACTS: usize = 2;
pub const REFERENCE: usize = 0;
pub const NODE: usize = 2;
pub const CORRECTED: usize = 3;
pub const ORIGINAL_START: usize = 6;
pub const ORIGINAL_END: usize = 7;
pub const ORIGINAL_TIME: usize = 8;
pub const ORIGINAL_OBSERVED: usize = 9;
pub const END_OFFSET: usize = 10;

/// Our attributes in bytes, for one kind of owner: what comes before an attribute's value is made once.
pub struct Attributes {
    tag: u8,
    /// For each name its key's field.
    keys: Vec<Vec<u8>>,
    /// For each name and each length of a number (1 to 10 bytes), all bytes before the number.
    heads: Vec<Vec<Vec<u8>>>,
}

impl Attributes {
    pub fn new(prefix: &str, tag: u8) -> Self {
        let keys: Vec<Vec<u8>> = NAMES
            .iter()
            .map(|name| {
                let mut key = Vec::new();
                wire::push_field(&mut key, 0x0A, format!("{prefix}{name}").as_bytes());
                key
            })
            .collect();
        let heads = keys
            .iter()
            .map(|key| {
                (1..=10u8)
                    .map(|size| {
                        let mut head = vec![tag];
                        wire::push_varint(&mut head, key.len() as u64 + 3 + u64::from(size));
                        head.extend_from_slice(key);
                        head.extend_from_slice(&[0x12, 1 + size, 0x18]);
                        head
                    })
                    .collect()
            })
            .collect();
        Attributes { tag, keys, heads }
    }

    #[inline]
    pub fn push_int(&self, out: &mut Vec<u8>, name: usize, value: u64) {
        out.extend_from_slice(&self.heads[name][wire::varint_len(value) - 1]);
        wire::push_varint(out, value);
    }

    pub fn push_fact(&self, out: &mut Vec<u8>, fact: usize, value: &Value) {
        let mut any = Vec::new();
        match value {
            Value::Text(text) => wire::push_field(&mut any, 0x0A, text),
            Value::Bool(flag) => any.extend_from_slice(&[0x10, u8::from(*flag)]),
            Value::Int(_) | Value::Other => return,
        }
        let mut content = self.keys[FACTS + fact].clone();
        wire::push_field(&mut content, 0x12, &any);
        wire::push_field(out, u64::from(self.tag), &content);
    }
}
