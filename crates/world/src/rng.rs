//! Named streams of random numbers: every draw in the world is a pure function of (seed, name, index, position).
//!
//! The generator is SplitMix64. Its state is a counter that grows by a fixed odd number, and each output is a
//! bijective mix of that counter, so two streams with different keys are two far-apart places of one known
//! sequence and no draw depends on what else was drawn before.
//!
//! Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA; constants as in
//! Vigna's public-domain `splitmix64.c`.
//!
//! Not here: cryptographic strength, and floating-point distributions beyond the uniform one.

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A position in one named sequence of numbers.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    counter: u64,
}

impl Stream {
    /// The stream `name` of `seed`, item `index` (a document, a prompt, a vote).
    pub(crate) fn new(seed: u64, name: &str, index: u64) -> Self {
        let key =
            mix(seed.wrapping_add(GOLDEN)) ^ mix(hash(name)).wrapping_add(mix(index.wrapping_mul(GOLDEN)));
        Stream { counter: mix(key) }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(GOLDEN);
        mix(self.counter)
    }

    /// Uniform in `[0, 1)`, on a grid of 2^-53.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..n`, by the high half of a 128-bit product: the bias is below n / 2^64.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "below: an empty range has no member to draw");
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// The index drawn with probability proportional to its weight.
    pub(crate) fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut left = self.unit() * weights.iter().sum::<f64>();
        for (i, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return i;
            }
        }
        weights.len() - 1 // Only rounding gets here.
    }

    /// Fisher-Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// FNV-1a of a name, so that a stream may be called by what it is for.
pub(crate) fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_sequence() {
        // splitmix64.c started at 1234567; the numbers circulate as its check values.
        let mut stream = Stream { counter: 1_234_567 };
        let got: Vec<u64> = (0..5).map(|_| stream.next_u64()).collect();
        assert_eq!(
            got,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821
            ]
        );
    }

    #[test]
    fn fnv_matches_its_published_value() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn seed_name_and_index_each_move_the_stream() {
        let first = |seed, name: &str, index| Stream::new(seed, name, index).next_u64();
        let base = first(1, "vote", 0);
        assert_eq!(base, first(1, "vote", 0));
        assert_ne!(base, first(2, "vote", 0));
        assert_ne!(base, first(1, "vote ", 0));
        assert_ne!(base, first(1, "vote", 1));
    }

    #[test]
    fn below_and_weighted_have_the_stated_shares() {
        let mut stream = Stream::new(7, "shares", 0);
        let (mut even, mut heavy) = ([0_u32; 5], [0_u32; 3]);
        for _ in 0..50_000 {
            even[stream.below(5)] += 1;
            heavy[stream.weighted(&[1.0, 0.0, 3.0])] += 1;
        }
        // Five standard errors of a share of 1/5 (or 1/4) of 50 000 draws: 450 (or 480).
        assert!(even.iter().all(|&n| n.abs_diff(10_000) < 450), "{even:?}");
        assert!(heavy[0].abs_diff(12_500) < 480 && heavy[1] == 0, "{heavy:?}");
    }
}
