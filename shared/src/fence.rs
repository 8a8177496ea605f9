//! Who may still command a resource: the rule by which hosts refuse what comes too late.
//!
//! Every command carries the generation of the ring under which its controller owns the resource. In one
//! generation that is one controller, which numbers its commands; what was held up on its way must not be
//! done after what was sent later, not even when both are of the same owner.

use crate::error::{Code, Error};

/// What has commanded a resource last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    generation: u64,
    sequence: u64,
}

impl Fence {
    /// The newest generation that was seen; 0 before the first.
    #[must_use]
    pub const fn generation(self) -> u64 {
        self.generation
    }

    /// A generation that was recorded elsewhere counts as seen.
    pub const fn raise(&mut self, generation: u64) {
        if generation > self.generation {
            *self = Self { generation, sequence: 0 };
        }
    }

    /// Refuses what is of an older generation than has been seen.
    ///
    /// # Errors
    /// `stale_generation`.
    pub fn check(self, generation: u64) -> Result<(), Error> {
        if generation >= self.generation {
            return Ok(());
        }
        let newest = self.generation;
        let text = format!("the command is of generation {generation}, and generation {newest} has acted here already");
        Err(Error::new(Code::StaleGeneration, text))
    }

    /// A new command arrives. One without a `sequence` is compared by its generation alone.
    ///
    /// # Errors
    /// `stale_generation`.
    pub fn admit(&mut self, generation: u64, sequence: Option<u64>) -> Result<(), Error> {
        self.check(generation)?;
        self.raise(generation);
        let Some(sequence) = sequence else { return Ok(()) };
        if sequence < self.sequence {
            let text = "the command was held up on its way, and a later one has arrived before it";
            return Err(Error::new(Code::StaleGeneration, text));
        }
        self.sequence = sequence;
        Ok(())
    }

    /// A command that was taken before arrives again, by the same owner or the next one.
    ///
    /// # Errors
    /// `stale_generation`.
    pub fn admit_again(&mut self, generation: u64) -> Result<(), Error> {
        self.check(generation)?;
        self.raise(generation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_what_was_seen_is_refused() {
        let mut fence = Fence::default();
        fence.admit(4, Some(9)).unwrap();
        assert_eq!(fence.admit(3, Some(10)).unwrap_err().code, Code::StaleGeneration, "another owner");
        assert_eq!(fence.admit(4, Some(8)).unwrap_err().code, Code::StaleGeneration, "the same owner, earlier");
        fence.admit(4, Some(9)).unwrap();
        fence.admit(4, None).unwrap();
        fence.admit_again(4).unwrap();
        assert!(fence.admit_again(3).is_err());
        fence.admit(5, Some(1)).unwrap();
        fence.raise(4);
        assert_eq!(fence.generation(), 5);
        fence.raise(6);
        fence.admit(6, Some(0)).unwrap();
        assert!(fence.check(5).is_err());
    }
}
