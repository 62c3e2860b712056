//! From sampled tokens to text that may be shown: whole characters, and nothing of a stop string.
//!
//! A stop string may begin in one token and end in another, so text is held back as long as it could be the beginning of one: the longest
//! end of the text that begins some stop string. A completion continues its prompt's text, so its first word keeps the space before it;
//! a chat's answer is a text of its own, the one that `polity generate` gives.

use polity_lm::{Result, StreamDecoder, Tokenizer};

/// The text of one response as it grows.
pub struct GrowingText {
    decoder: StreamDecoder,
    stops: Vec<String>,
    held: String,
    shown_bytes: usize,
    stopped: bool,
}

impl GrowingText {
    /// No text yet; it will continue that of the `context`. No stop is empty.
    pub fn new(tokenizer: &Tokenizer, context: &[u32], stops: &[String]) -> Self {
        Self {
            decoder: tokenizer.stream_after(context, true),
            stops: stops.to_vec(),
            held: String::new(),
            shown_bytes: 0,
            stopped: false,
        }
    }

    /// Takes a token; gives the text that is now certain.
    pub fn push(&mut self, token: u32) -> Result<String> {
        let piece = self.decoder.push(token)?;
        Ok(self.take(&piece, false))
    }

    /// Gives what was held back: nothing follows.
    pub fn finish(&mut self) -> Result<String> {
        let piece = self.decoder.finish()?;
        Ok(self.take(&piece, true))
    }

    /// Whether a stop string is there; the text ends before it.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Bytes that have been given.
    pub fn shown_bytes(&self) -> usize {
        self.shown_bytes
    }

    /// Bytes that are known, given or held back.
    pub fn known_bytes(&self) -> usize {
        self.shown_bytes + self.held.len()
    }

    fn take(&mut self, piece: &str, last: bool) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        let certain = match self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            Some(end) => {
                self.stopped = true;
                end
            }
            None if last => self.held.len(),
            None => self.held.len() - self.could_begin_a_stop(),
        };
        let rest = self.held.split_off(certain);
        let shown = std::mem::replace(&mut self.held, if self.stopped { String::new() } else { rest });
        self.shown_bytes += shown.len();
        shown
    }

    /// Bytes of the longest end of what is held that is the beginning of a stop string.
    fn could_begin_a_stop(&self) -> usize {
        let longest = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
            ends.filter(|&at| self.held.ends_with(&stop[..at])).max().unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}
