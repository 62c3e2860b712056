//! How deeply the columns of a Parquet file are nested, read from its footer without recursion.
//!
//! The `parquet` crate walks the schema recursively without a limit, so a file of 55 kB that nests a column
//! 5000 deep overflows the stack, which no caller can catch. This looks first.
//!
//! The footer is Thrift's compact protocol: `FileMetaData { 1: version, 2: list<SchemaElement>, … }`, the
//! schema's tree flattened depth first, each element with the number of its children in field 5. Whatever is
//! not understood here is left for the crate to refuse.
//!
//! Source: apache/parquet-format, `parquet.thrift`; Apache Thrift, `thrift-compact-protocol.md`.

use parquet::file::reader::ChunkReader;

/// `PAR1` and the footer's length before it.
const TAIL_BYTES: u64 = 8;

/// The nesting of the schema, the root included, or `limit + 1` if it is more than `limit`. `None` if there
/// is no telling.
pub(crate) fn schema_depth(file: &impl ChunkReader, limit: usize) -> Option<usize> {
    let length = file.len().checked_sub(TAIL_BYTES)?;
    let tail = file.get_bytes(length, TAIL_BYTES as usize).ok()?;
    let footer_length = u32::from_le_bytes(tail.get(..4)?.try_into().ok()?);
    let start = length.checked_sub(u64::from(footer_length))?;
    let footer = file.get_bytes(start, footer_length as usize).ok()?;
    Compact(&footer).schema_depth(limit)
}

/// The types of the compact protocol whose size depends on more than a byte.
const I16: u8 = 4;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// What is left to read.
struct Compact<'a>(&'a [u8]);

impl Compact<'_> {
    fn schema_depth(mut self, limit: usize) -> Option<usize> {
        let mut id = 0;
        loop {
            match self.field(&mut id)? {
                (_, 0) => return None,
                (2, LIST) => break,
                (_, kind) => self.skip(kind, SKIP_DEPTH_MAX)?,
            }
        }
        let (elements, STRUCT) = self.list()? else { return None };

        // How many children each element on the way down still has to come.
        let mut children_left: Vec<i64> = Vec::new();
        let mut deepest = 0;
        for _ in 0..elements {
            while children_left.last() == Some(&0) {
                children_left.pop();
            }
            if let Some(left) = children_left.last_mut() {
                *left -= 1;
            }
            deepest = deepest.max(children_left.len() + 1);
            if deepest > limit {
                return Some(deepest);
            }
            let children = self.children()?;
            if children > 0 {
                children_left.push(children);
            }
        }
        Some(deepest)
    }

    /// Reads a `SchemaElement` for its number of children.
    fn children(&mut self) -> Option<i64> {
        let (mut id, mut children) = (0, 0);
        loop {
            match self.field(&mut id)? {
                (_, 0) => return Some(children),
                (5, I16..=I64) => {
                    let zigzag = self.varint()?;
                    children = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
                }
                (_, kind) => self.skip(kind, SKIP_DEPTH_MAX)?,
            }
        }
    }

    /// A field's number and type; type 0 ends the struct. Numbers are written as steps from the one before.
    fn field(&mut self, id: &mut i64) -> Option<(i64, u8)> {
        let head = self.byte()?;
        let (step, kind) = (head >> 4, head & 15);
        if kind != 0 {
            if step == 0 {
                let zigzag = self.varint()?;
                *id = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            } else {
                *id = id.checked_add(i64::from(step))?;
            }
        }
        Some((*id, kind))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind {
            1 | 2 => {} // A boolean field's value is its type.
            3 => drop(self.byte()?),
            I16..=I64 => drop(self.varint()?),
            DOUBLE => self.take(8)?,
            BINARY => {
                let length = self.varint()?;
                self.take(length)?;
            }
            LIST | SET => {
                let (length, kind) = self.list()?;
                for _ in 0..length {
                    self.skip_element(kind, depth)?;
                }
            }
            MAP => {
                let length = self.varint()?;
                let kinds = if length == 0 { 0 } else { self.byte()? };
                for _ in 0..length {
                    self.skip_element(kinds >> 4, depth)?;
                    self.skip_element(kinds & 15, depth)?;
                }
            }
            STRUCT => {
                let mut id = 0;
                loop {
                    match self.field(&mut id)? {
                        (_, 0) => break,
                        (_, kind) => self.skip(kind, depth)?,
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Inside a list or a map a boolean does take its byte, so every element takes at least one and a list's
    /// length cannot exceed what is left to read.
    fn skip_element(&mut self, kind: u8, depth: usize) -> Option<()> {
        if matches!(kind, 1 | 2) { self.byte().map(drop) } else { self.skip(kind, depth) }
    }

    /// A list's length and the type of its elements.
    fn list(&mut self) -> Option<(u64, u8)> {
        let head = self.byte()?;
        let length = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Some((length, head & 15))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn take(&mut self, length: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(length).ok()?..)?;
        Some(())
    }
}

/// Real footers nest four deep outside the schema.
const SKIP_DEPTH_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    /// A footer with the given numbers of children, each element named "x".
    fn footer(children: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x15, 4]; // Field 1, an integer: zigzag of 2.
        bytes.extend([0x19, 0xfc, children.len() as u8]); // Field 2, a long list of structs.
        for &count in children {
            bytes.extend([0x48, 1, b'x']); // Field 4, a text.
            if count > 0 {
                bytes.extend([0x15, count * 2]); // Field 5.
            }
            bytes.extend([0x5c, 0x11, 0x00]); // Field 9 or 10, a struct with one boolean.
            bytes.push(0);
        }
        bytes
    }

    #[test]
    fn depths_worked_by_hand() {
        let check = |children: &[u8], expect: usize| {
            assert_eq!(Compact(&footer(children)).schema_depth(10), Some(expect), "{children:?}");
        };
        check(&[0], 1);
        check(&[2, 0, 0], 2);
        check(&[2, 1, 0, 0], 3); // root { a { b } c }
        check(&[2, 0, 1, 0], 3); // root { a b { c } }
        check(&[3, 1, 0, 1, 0, 0], 3);
        check(&[1, 1, 1, 0], 4);
        check(&[1; 60], 11); // More than the limit.
    }

    #[test]
    fn what_is_cut_short_is_left_to_the_decoder() {
        let whole = footer(&[2, 1, 0, 0]);
        for end in 0..whole.len() {
            let depth = Compact(&whole[..end]).schema_depth(10);
            assert_eq!(depth, None, "{end} of {} bytes", whole.len());
        }
        assert_eq!(
            Compact(&[0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).schema_depth(10),
            None
        );
        assert_eq!(Compact(&[0x1c; 5000]).schema_depth(10), None); // Structs in structs.
        assert_eq!(Compact(&[0x80; 50]).schema_depth(10), None);
    }
}
