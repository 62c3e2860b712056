//! Keys and values of sequences that are being decoded, in pages.
//!
//! A page holds 32 positions of one sequence for all layers, in the block layout that `cpu/attention/mod.rs`
//! computes with: for each layer and key/value head, keys channel by channel (`[d][32]`), then values key by
//! key (`[32][dp]`); where products are in bf16, pairs of channels and of keys, in half the memory. Pages are counted: sequences forked from one prompt share its pages, and a page is copied
//! only when one of several owners writes into it.
//!
//! Not here: who is decoded when (`lm`'s engine).

use crate::config::DecoderConfig;
use crate::cpu::Precision;
use crate::cpu::attention::{KEYS, block_words};
use crate::params::Buffer;

/// Positions in one page.
pub const PAGE: usize = KEYS;

/// A sequence in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(usize);

#[derive(Clone, Debug, Default)]
struct Sequence {
    pages: Vec<usize>,
    len: usize,
}

/// Pages of keys and values, and which sequence owns which.
#[derive(Debug)]
pub struct KvCache {
    pages: Vec<Buffer>,
    owners: Vec<usize>,
    free_pages: Vec<usize>,
    sequences: Vec<Option<Sequence>>,
    page_len: usize,
    head_len: usize,
    kv_heads: usize,
    /// Words of a page's keys of one head; its values follow.
    keys_len: usize,
    precision: Precision,
}

impl KvCache {
    /// An empty cache for this decoder, with weights of this precision.
    pub fn new(config: &DecoderConfig, precision: Precision) -> Self {
        let (keys_len, values_len) = block_words(precision, config.head_dim);
        let head_len = keys_len + values_len;
        Self {
            pages: Vec::new(),
            owners: Vec::new(),
            free_pages: Vec::new(),
            sequences: Vec::new(),
            page_len: config.layers * config.kv_heads * head_len,
            head_len,
            kv_heads: config.kv_heads,
            keys_len,
            precision,
        }
    }

    /// What products with these keys and values are computed in.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.page_len * size_of::<f32>()
    }

    /// Pages that hold something.
    pub fn pages_in_use(&self) -> usize {
        self.pages.len() - self.free_pages.len()
    }

    /// A sequence of no tokens.
    pub fn add(&mut self) -> SequenceId {
        self.insert(Sequence::default())
    }

    /// A second sequence with the same tokens so far; it shares their pages.
    pub fn fork(&mut self, of: SequenceId) -> SequenceId {
        let copy = self.sequence(of).clone();
        for &page in &copy.pages {
            self.owners[page] += 1;
        }
        self.insert(copy)
    }

    /// Forgets a sequence and frees the pages that nobody else owns.
    pub fn remove(&mut self, id: SequenceId) {
        let sequence = self.sequences[id.0].take().expect("a sequence is removed once");
        for page in sequence.pages {
            self.release(page);
        }
    }

    /// Tokens of a sequence in the cache.
    pub fn len(&self, id: SequenceId) -> usize {
        self.sequence(id).len
    }

    /// Whether no sequence is in the cache.
    pub fn is_empty(&self) -> bool {
        self.sequences.iter().all(Option::is_none)
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        match self.sequences.iter().position(Option::is_none) {
            Some(free) => {
                self.sequences[free] = Some(sequence);
                SequenceId(free)
            }
            None => {
                self.sequences.push(Some(sequence));
                SequenceId(self.sequences.len() - 1)
            }
        }
    }

    fn sequence(&self, id: SequenceId) -> &Sequence {
        self.sequences[id.0].as_ref().expect("a sequence id is used until it is removed")
    }

    fn release(&mut self, page: usize) {
        self.owners[page] -= 1;
        if self.owners[page] == 0 {
            self.free_pages.push(page);
        }
    }

    fn new_page(&mut self) -> usize {
        if let Some(page) = self.free_pages.pop() {
            self.owners[page] = 1;
            return page;
        }
        self.pages.push(Buffer::zeros(self.page_len));
        self.owners.push(1);
        self.pages.len() - 1
    }

    /// Makes room for `tokens` more and returns the position of the first.
    pub(crate) fn reserve(&mut self, id: SequenceId, tokens: usize) -> usize {
        let Sequence { len, pages } = self.sequence(id).clone();
        let mut pages = pages;
        if !len.is_multiple_of(PAGE) && tokens > 0 {
            let last = pages[len / PAGE];
            if self.owners[last] > 1 {
                let copy = self.new_page();
                let (from, to) = (last.min(copy), last.max(copy));
                let (low, high) = self.pages.split_at_mut(to);
                let (a, b) = (&mut low[from], &mut high[0]);
                if copy > last {
                    b.copy_from_slice(a)
                } else {
                    a.copy_from_slice(b)
                }
                self.release(last);
                pages[len / PAGE] = copy;
            }
        }
        while pages.len() * PAGE < len + tokens {
            pages.push(self.new_page());
        }
        let sequence = self.sequences[id.0].as_mut().expect("looked up above");
        *sequence = Sequence { pages, len: len + tokens };
        len
    }

    /// Where page `block` of a sequence keeps this layer and head: `(page, keys at, values at)`.
    pub(crate) fn place(
        &self,
        id: SequenceId,
        block: usize,
        layer: usize,
        g: usize,
    ) -> (usize, usize, usize) {
        let start = (layer * self.kv_heads + g) * self.head_len;
        (self.sequence(id).pages[block], start, start + self.keys_len)
    }

    pub(crate) fn page(&self, page: usize) -> &[f32] {
        &self.pages[page]
    }

    pub(crate) fn page_mut(&mut self, page: usize) -> &mut [f32] {
        debug_assert_eq!(self.owners[page], 1, "a shared page is copied before it is written");
        &mut self.pages[page]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> KvCache {
        KvCache {
            pages: Vec::new(),
            owners: Vec::new(),
            free_pages: Vec::new(),
            sequences: Vec::new(),
            page_len: 4,
            head_len: 4,
            kv_heads: 1,
            keys_len: 0,
            precision: Precision::F32,
        }
    }

    #[test]
    fn forks_share_full_pages_and_copy_the_last() {
        let mut cache = tiny();
        let a = cache.add();
        assert_eq!(cache.reserve(a, 40), 0);
        let (last, ..) = cache.place(a, 1, 0, 0);
        cache.page_mut(last)[0] = 7.0;
        let b = cache.fork(a);
        assert_eq!((cache.len(b), cache.pages_in_use()), (40, 2));
        assert_eq!(cache.reserve(b, 1), 40);
        assert_eq!(cache.pages_in_use(), 3, "the half-full page was copied, the full one is shared");
        let (copy, ..) = cache.place(b, 1, 0, 0);
        assert_ne!(copy, last);
        assert_eq!(cache.page(copy)[0], 7.0);
        assert_eq!(cache.place(a, 0, 0, 0), cache.place(b, 0, 0, 0));
        cache.reserve(a, 1);
        assert_eq!(cache.place(a, 1, 0, 0).0, last, "the only owner left writes in place");
        cache.remove(a);
        assert_eq!(cache.pages_in_use(), 2);
        cache.remove(b);
        assert_eq!(cache.pages_in_use(), 0);
        assert!(cache.is_empty());
    }
}
