//! Keys and values of sequences that are being decoded, in pages.
//!
//! A page holds 32 positions of one sequence for all layers, in the block layout that `cpu/attention/mod.rs`
//! computes with: for each layer and key/value head, keys channel by channel (`[d][32]`), then values key by
//! key (`[32][dp]`); where products are in bf16, pairs of channels and of keys, in half the memory. Pages are counted: sequences forked from one prompt share its pages, and a page is copied
//! only when one of several owners writes into it.
//!
//! Not here: who is decoded when (`lm`'s engine).

use crate::config::DecoderConfig;
use crate::cpu::attention::{KEYS, block_words};
use crate::cpu::{Precision, SharedMut};
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
    heads: PageHeads,
    precision: Precision,
}

/// Where the heads of a page lie.
#[derive(Clone, Copy, Debug)]
struct PageHeads {
    kv_heads: usize,
    /// Words of a head's keys and values.
    len: usize,
    /// Words of its keys; its values follow.
    keys_len: usize,
}

/// A head of a page of one layer: words.
pub(crate) struct PageHead<'a> {
    page: &'a SharedMut<'a, f32>,
    start: usize,
    heads: PageHeads,
}

impl PageHead<'_> {
    pub(crate) fn keys(&self) -> *const f32 {
        self.page.pointer(self.start)
    }

    pub(crate) fn values(&self) -> *const f32 {
        self.page.pointer(self.start + self.heads.keys_len)
    }

    /// Its keys and its values.
    ///
    /// # Safety
    ///
    /// Nobody else has this head.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn parts_mut(&self) -> (&mut [f32], &mut [f32]) {
        // SAFETY: the caller's promise.
        let head = unsafe { self.page.slice(self.start..self.start + self.heads.len) };
        head.split_at_mut(self.heads.keys_len)
    }
}

/// The pages of a cache, for several tasks that write and read heads of their own.
pub(crate) struct SharedPages<'a> {
    pages: Vec<SharedMut<'a, f32>>,
    owners: &'a [usize],
    sequences: &'a [Option<Sequence>],
    heads: PageHeads,
}

impl SharedPages<'_> {
    /// A head of page `block` of a sequence.
    pub(crate) fn head(&self, id: SequenceId, block: usize, layer: usize, g: usize) -> PageHead<'_> {
        let sequence = self.sequences[id.0].as_ref().expect("a sequence id is used until it is removed");
        let start = (layer * self.heads.kv_heads + g) * self.heads.len;
        PageHead { page: &self.pages[sequence.pages[block]], start, heads: self.heads }
    }

    /// The same, to be written.
    pub(crate) fn own_head(&self, id: SequenceId, block: usize, layer: usize, g: usize) -> PageHead<'_> {
        let page = self.sequences[id.0].as_ref().map(|sequence| sequence.pages[block]);
        debug_assert!(
            page.is_some_and(|page| self.owners[page] == 1),
            "a shared page is copied before it is written"
        );
        self.head(id, block, layer, g)
    }
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
            heads: PageHeads { kv_heads: config.kv_heads, len: head_len, keys_len },
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

    /// The pages, to be written by several tasks.
    pub(crate) fn shared(&mut self) -> SharedPages<'_> {
        SharedPages {
            pages: self.pages.iter_mut().map(|page| SharedMut::new(page)).collect(),
            owners: &self.owners,
            sequences: &self.sequences,
            heads: self.heads,
        }
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
            heads: PageHeads { kv_heads: 1, len: 4, keys_len: 0 },
            precision: Precision::F32,
        }
    }

    #[test]
    fn forks_share_full_pages_and_copy_the_last() {
        let mut cache = tiny();
        let a = cache.add();
        assert_eq!(cache.reserve(a, 40), 0);
        let page = |cache: &KvCache, id: SequenceId, block: usize| cache.sequence(id).pages[block];
        let last = page(&cache, a, 1);
        cache.pages[last][0] = 7.0;
        let b = cache.fork(a);
        assert_eq!((cache.len(b), cache.pages_in_use()), (40, 2));
        assert_eq!(cache.reserve(b, 1), 40);
        assert_eq!(cache.pages_in_use(), 3, "the half-full page was copied, the full one is shared");
        let copy = page(&cache, b, 1);
        assert_ne!(copy, last);
        assert_eq!(cache.pages[copy][0], 7.0);
        assert_eq!(page(&cache, a, 0), page(&cache, b, 0));
        cache.reserve(a, 1);
        assert_eq!(page(&cache, a, 1), last, "the only owner left writes in place");
        cache.remove(a);
        assert_eq!(cache.pages_in_use(), 2);
        cache.remove(b);
        assert_eq!(cache.pages_in_use(), 0);
        assert!(cache.is_empty());
    }
}
