//! The safetensors container: names, shapes and bytes; which tensors a model has is `weights`' work.
//!
//! ```text
//! u64 little-endian n | n bytes of JSON | data
//! {"__metadata__": {"format": "pt"}, NAME: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …}
//! ```
//!
//! Offsets count from the start of the data; the tensors cover it without holes or overlaps. Nothing
//! in the header is believed before it is checked against the file's length, so a header that lies
//! costs an error and not an allocation.
//!
//! Source: the format's specification, github.com/huggingface/safetensors. Read here rather than by
//! that crate because its errors do not name the tensor; the tests hold the two against each other.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::error::{LmError, Result};

/// Longest header, as in the format's own implementation.
const HEADER_BYTES_MAX: usize = 100_000_000;

/// Bytes before the header.
const LENGTH_BYTES: usize = 8;

/// How the numbers of a weights file are stored. In memory they are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// 32 bits: exact.
    F32,
    /// The upper 16 bits of an f32, rounded to nearest even.
    Bf16,
}

impl WeightDtype {
    /// As `config.json` spells it.
    pub fn config_name(self) -> &'static str {
        match self {
            WeightDtype::F32 => "float32",
            WeightDtype::Bf16 => "bfloat16",
        }
    }

    fn header_name(self) -> &'static str {
        match self {
            WeightDtype::F32 => "F32",
            WeightDtype::Bf16 => "BF16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            WeightDtype::F32 => 4,
            WeightDtype::Bf16 => 2,
        }
    }
}

/// One tensor of a file: checked, not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    /// As the header spells it.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<usize>,
}

/// An open safetensors file.
pub(crate) struct TensorFile {
    pub file: PathBuf,
    pub tensors: BTreeMap<String, TensorInfo>,
    map: Mmap,
}

impl TensorFile {
    /// Maps the file and checks its header.
    pub fn open(file: &Path) -> Result<Self> {
        let handle = File::open(file).map_err(|e| LmError::io(file, "open", e))?;
        let len = handle.metadata().map_err(|e| LmError::io(file, "read", e))?.len();
        if len < LENGTH_BYTES as u64 {
            return Err(LmError::file(file, format!("{len} bytes"), "a safetensors file", TRUNCATED));
        }
        // SAFETY: the map is read-only and private to this struct. Another process that shortens the
        // file while it is being read would end this one with a bus error, which is why `Model::save`
        // replaces whole directories and never writes into a file that exists.
        let map = unsafe { Mmap::map(&handle) }.map_err(|e| LmError::io(file, "map", e))?;
        let tensors = parse_header(file, &map)?;
        Ok(Self { file: file.to_owned(), tensors, map })
    }

    /// Appends elements of a tensor to `out`, as f32; `Err` names the first one that is not finite.
    ///
    /// # Panics
    ///
    /// If the tensor is not of a type that [`is_weight_dtype`] accepts, or has no such elements.
    pub fn read(&self, name: &str, elements: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let info = &self.tensors[name];
        let size = if info.dtype == "F32" { 4 } else { 2 };
        let bytes = &self.map[info.range.clone()][elements.start * size..elements.end * size];
        let from = out.len();
        match info.dtype.as_str() {
            "F32" => out.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
            "BF16" => out.extend(bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32())),
            "F16" => out.extend(bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32())),
            other => unreachable!("{name}: {other} was refused when the file was checked"),
        }
        match out[from..].iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let index = coordinates(elements.start + at, &info.shape);
                Err(LmError::tensor(
                    &self.file,
                    name,
                    format!("{} at {index:?}", out[from + at]),
                    "finite numbers",
                    "the model was broken when it was saved: use an earlier checkpoint",
                ))
            }
        }
    }
}

/// Whether a stored type can be a weight here.
pub(crate) fn is_weight_dtype(dtype: &str) -> bool {
    matches!(dtype, "F32" | "BF16" | "F16")
}

/// Where the `flat`-th element of a tensor is.
pub(crate) fn coordinates(flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = flat;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let at = rest % size.max(1);
            rest /= size.max(1);
            at
        })
        .collect();
    index.reverse();
    index
}

const TRUNCATED: &str = "the file is truncated or is not a safetensors file: fetch it again";

/// The tensors that a file's first bytes promise, if all the promises are kept.
fn parse_header(file: &Path, bytes: &[u8]) -> Result<BTreeMap<String, TensorInfo>> {
    let wrong = |found: String, expected: &str, hint: &str| Err(LmError::file(file, found, expected, hint));
    if bytes.starts_with(b"version https://git-lfs") {
        return wrong(
            "a Git LFS pointer".into(),
            "the weights themselves",
            "run `git lfs pull` in that directory",
        );
    }
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return wrong(format!("{} bytes", bytes.len()), "a safetensors file", TRUNCATED);
    };
    let header_len = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if header_len > HEADER_BYTES_MAX || header_len > rest.len() {
        let found = format!("a header of {header_len} bytes in a file of {}", bytes.len());
        return wrong(found, "a header inside the file, of at most 100 MB", TRUNCATED);
    }
    let (header, data) = rest.split_at(header_len);
    let data_start = LENGTH_BYTES + header_len;
    let Header(entries) = match serde_json::from_slice(header) {
        Ok(header) => header,
        Err(error) => {
            let found = format!("a header that does not parse: {error}");
            return wrong(found, "a JSON object of tensors", TRUNCATED);
        }
    };

    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let bad = |found: String, expected: String| {
            Err(LmError::tensor(file, &name, found, expected, "the header does not describe the data"))
        };
        let Some(size) = element_bytes(&entry.dtype) else {
            return bad(format!("dtype {}", entry.dtype), "a known dtype".into());
        };
        let claimed = entry.shape.iter().try_fold(size, |product, &dim| product.checked_mul(dim));
        let [start, end] = entry.data_offsets;
        if start > end || end > data.len() {
            return bad(
                format!("data_offsets [{start}, {end}]"),
                format!("offsets within {} bytes", data.len()),
            );
        }
        if claimed != Some(end - start) {
            let found = format!("{} of shape {:?} in {} bytes", entry.dtype, entry.shape, end - start);
            return bad(found, "as many bytes as the shape needs".into());
        }
        let range = data_start + start..data_start + end;
        let info = TensorInfo { dtype: entry.dtype, shape: entry.shape, range };
        if tensors.insert(name.clone(), info).is_some() {
            return bad("the name twice".into(), "each name once".into());
        }
    }

    let mut in_order: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| (info.range.start, info.range.end));
    let mut end = data_start;
    for (name, info) in in_order {
        if info.range.start != end {
            let what =
                if info.range.start < end { "data that another tensor has too" } else { "a hole before it" };
            let (found, expected) = (what, "tensors one after the other");
            return Err(LmError::tensor(
                file,
                name,
                found,
                expected,
                "the header does not describe the data",
            ));
        }
        end = info.range.end;
    }
    if end != bytes.len() {
        let found = format!("{} bytes that no tensor claims", bytes.len() - end);
        return wrong(found, "tensors that cover the file", TRUNCATED);
    }
    Ok(tensors)
}

fn element_bytes(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        "I16" | "U16" | "F16" | "BF16" => 2,
        "I32" | "U32" | "F32" => 4,
        "I64" | "U64" | "F64" | "C64" => 8,
        _ => return None,
    })
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The header's entries in file order, so that a name that stands twice is seen.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// Writes a new file: `tensors` are names and shapes sorted by name; `values(i, put)` hands the numbers of the `i`-th to `put`, in as
/// many pieces as it likes. The file is on disk when this returns.
pub(crate) fn write(
    file: &Path,
    dtype: WeightDtype,
    tensors: &[(&str, &[usize])],
    mut values: impl FnMut(usize, &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    debug_assert!(tensors.is_sorted_by_key(|(name, _)| *name), "tensors sorted by name");
    let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * dtype.bytes();
        let name = serde_json::Value::from(*name);
        let shape = serde_json::Value::from(shape.to_vec());
        header.push_str(&format!(
            r#",{name}:{{"dtype":"{}","shape":{shape},"data_offsets":[{offset},{end}]}}"#,
            dtype.header_name()
        ));
        offset = end;
    }
    header.push('}');
    // Padded so that the data starts at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    let io = |e| LmError::io(file, "write", e);
    let mut out = File::create_new(file).map_err(|e| LmError::io(file, "create", e))?;
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write_all(header.as_bytes()).map_err(io)?;
    let mut bytes = Vec::new();
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let mut written = 0;
        values(i, &mut |numbers| {
            written += numbers.len();
            numbers.chunks(1 << 18).try_for_each(|chunk| {
                bytes.clear();
                match dtype {
                    WeightDtype::F32 => bytes.extend(chunk.iter().flat_map(|x| x.to_le_bytes())),
                    WeightDtype::Bf16 => {
                        bytes.extend(chunk.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()));
                    }
                }
                out.write_all(&bytes).map_err(io)
            })
        })?;
        assert_eq!(written, shape.iter().product::<usize>(), "{name}: as many values as its shape");
    }
    out.sync_all().map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    /// What the format's own implementation says of the same bytes.
    fn oracle(bytes: &[u8]) -> Option<Vec<(String, Vec<usize>)>> {
        let tensors = SafeTensors::deserialize(bytes).ok()?;
        let mut names: Vec<_> =
            tensors.iter().map(|(name, t)| (name.to_owned(), t.shape().to_vec())).collect();
        names.sort();
        Some(names)
    }

    fn ours(bytes: &[u8]) -> Option<Vec<(String, Vec<usize>)>> {
        let tensors = parse_header(Path::new("t.safetensors"), bytes).ok()?;
        for info in tensors.values() {
            assert!(info.range.end <= bytes.len(), "every tensor is inside the file");
        }
        Some(tensors.into_iter().map(|(name, info)| (name, info.shape)).collect())
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        bytes
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[],"data_offsets":[24,26]},"c":{"dtype":"F16","shape":[0,7],"data_offsets":[26,26]},"d":{"dtype":"U8","shape":[3],"data_offsets":[26,29]}}"#;

    #[test]
    fn agrees_with_the_formats_own_reader() {
        let good = file(GOOD, 29);
        assert_eq!(ours(&good), oracle(&good));
        assert_eq!(ours(&good).map(|t| t.len()), Some(4));
        for cut in 0..good.len() {
            assert_eq!(ours(&good[..cut]), None, "{cut} bytes");
        }
    }

    #[test]
    fn coordinates_count_the_last_dimension_first() {
        assert_eq!(coordinates(23, &[2, 3, 4]), [1, 2, 3]);
        assert_eq!(coordinates(4, &[2, 3, 4]), [0, 1, 0]);
        assert_eq!(coordinates(0, &[]), [] as [usize; 0]);
    }

    #[test]
    fn written_files_are_what_the_formats_own_writer_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let values = |i: usize| vec![i as f32 + 0.1; [6, 1][i]];
        let tensors: [(&str, &[usize]); 2] = [("a \"quoted\" name", &[2, 3]), ("b", &[])];
        write(&path, WeightDtype::F32, &tensors, |i, put| put(&values(i))).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let data: Vec<Vec<u8>> =
            (0..2).map(|i| values(i).iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
            (
                *name,
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), data).unwrap(),
            )
        });
        let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        assert_eq!(bytes, safetensors::serialize(views, Some(metadata)).unwrap());
        // In pieces it is the same; an existing file is not touched.
        let pieces = dir.path().join("pieces.safetensors");
        write(&pieces, WeightDtype::F32, &tensors, |i, put| values(i).chunks(2).try_for_each(put)).unwrap();
        assert_eq!(std::fs::read(&pieces).unwrap(), bytes);
        assert!(write(&path, WeightDtype::F32, &tensors, |i, put| put(&values(i))).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    /// Numbers that have broken readers before.
    const NUMBERS: [&str; 10] = [
        "0",
        "-1",
        "25",
        "27",
        "4294967296",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        "1e3",
        "null",
    ];

    proptest! {
        /// A number, a byte or a stretch of a good file is changed. Whatever comes of it, both readers say the
        /// same of it, and neither panics. (The only liberty: the other reader knows more types.)
        #[test]
        fn damaged_headers(
            edits in prop::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<u8>()), 1..4),
            data in 24..34usize,
        ) {
            let mut header = GOOD.as_bytes().to_vec();
            for (kind, at, byte) in edits {
                let at = at.index(header.len());
                match kind {
                    0 => header[at] = byte,
                    1 => drop(header.drain(at..(at + usize::from(byte) % 9).min(header.len()))),
                    2 => header.insert(at, byte),
                    _ => {
                        // The number at or after `at` becomes another.
                        let start = at + header[at..].iter().position(u8::is_ascii_digit).unwrap_or(0);
                        let len = header[start..].iter().take_while(|b| b.is_ascii_digit()).count();
                        let number = NUMBERS[usize::from(byte) % NUMBERS.len()].bytes();
                        header.splice(start..start + len, number);
                    }
                }
                if header.is_empty() {
                    break;
                }
            }
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(&header);
            bytes.resize(bytes.len() + data, 1);
            let (a, b) = (ours(&bytes), oracle(&bytes));
            // They differ where the other reader lets more pass: a name twice (it forgets the first), metadata
            // of another form, or a type with less than a byte.
            if a.is_some() {
                let metadata = String::from_utf8_lossy(&bytes).contains("\"__metadata__\":{\"format\":\"pt\"}");
                prop_assert!(a == b || !metadata, "here {:?}, there {:?}", a, b);
            } else if let Some(b) = b {
                let unknown = [&b"F4"[..], b"F6", b"F8"].iter().any(|t| bytes.windows(2).any(|w| w == *t));
                let twice = b.len() < 4;
                prop_assert!(unknown || twice, "only there: {:?}", b);
            }
        }

        /// The first eight bytes are anything.
        #[test]
        fn any_length(length in any::<u64>(), rest in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend(rest);
            ours(&bytes);
        }
    }
}
