//! The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998): the stream that mergekit draws its masks from on a CPU.

const WORDS: usize = 624;
const MIDDLE: usize = 397;

/// A generator; cloning it is a snapshot of its place in the stream.
#[derive(Clone)]
pub(crate) struct MersenneTwister {
    state: [u32; WORDS],
    next: usize,
}

impl MersenneTwister {
    /// Seeded as the authors' `init_genrand` does; a seed's upper 32 bits are not used.
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = [0; WORDS];
        state[0] = seed as u32;
        for index in 1..WORDS {
            let previous = state[index - 1];
            state[index] = 1_812_433_253_u32.wrapping_mul(previous ^ (previous >> 30)).wrapping_add(index as u32);
        }
        Self { state, next: WORDS }
    }

    fn refill(&mut self) {
        for index in 0..WORDS {
            let mixed = (self.state[index] & 0x8000_0000) | (self.state[(index + 1) % WORDS] & 0x7FFF_FFFF);
            let odd = if mixed & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[index] = self.state[(index + MIDDLE) % WORDS] ^ (mixed >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// The next 32-bit draw.
    pub(crate) fn draw(&mut self) -> u32 {
        if self.next == WORDS {
            self.refill();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9D2C_5680;
        word ^= (word << 15) & 0xEFC6_0000;
        word ^ (word >> 18)
    }

    /// Whether the element whose turn it is is kept, which takes a draw: PyTorch compares 24 bits of it.
    #[inline(always)]
    pub(crate) fn keeps(&mut self, limit: u32) -> bool {
        self.draw() & 0xFF_FFFF < limit
    }

    /// Passes over `count` draws.
    pub(crate) fn skip(&mut self, mut count: u64) {
        while count > 0 {
            if self.next == WORDS {
                self.refill();
            }
            let step = count.min((WORDS - self.next) as u64);
            self.next += step as usize;
            count -= step;
        }
    }
}

/// What [`MersenneTwister::keeps`] compares with: draws are multiples of 2^-24, compared with a probability in float32,
/// exactly.
pub(crate) fn limit(probability: f32) -> u32 {
    (f64::from(probability) * 16_777_216.0).ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::MersenneTwister;

    #[test]
    fn known_answers_of_the_authors() {
        // The C++ standard (rand.predef): the 10,000th draw of the default seed.
        let mut generator = MersenneTwister::new(5489);
        generator.skip(9_999);
        assert_eq!(generator.draw(), 4_123_659_995);
        let mut generator = MersenneTwister::new(5489);
        assert_eq!([generator.draw(), generator.draw()], [3_499_211_612, 581_869_302]);
    }

    #[test]
    fn skipping_is_drawing() {
        for count in [0, 1, 623, 624, 625, 2_000] {
            let (mut skipped, mut drawn) = (MersenneTwister::new(42), MersenneTwister::new(42));
            skipped.skip(count);
            for _ in 0..count {
                drawn.draw();
            }
            assert_eq!(skipped.draw(), drawn.draw());
        }
    }
}
