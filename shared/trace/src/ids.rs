//! W3C trace context: which trace a piece of work is a part of, and which span caused it.

/// Trace context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The whole trace; never 0.
    pub trace_id: u128,
    /// The span that caused this one; never 0.
    pub span_id: u64,
    /// Whether whoever began the trace wants it recorded.
    pub sampled: bool,
}

impl Trace {
    /// A new trace.
    #[must_use]
    pub fn new() -> Self {
        Self { trace_id: rand::random::<u128>().max(1), span_id: new_span_id(), sampled: true }
    }

    /// The same trace with a span id of its own.
    #[must_use]
    pub fn child(self) -> Self {
        Self { span_id: new_span_id(), ..self }
    }

    /// Reads a `traceparent` header.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if version.len() != 2 || version == "ff" || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
            return None;
        }
        // Later versions may have more parts, this one may not.
        if ![version, trace, span, flags].into_iter().all(hex) || (version == "00" && parts.next().is_some()) {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }

    /// Writes a `traceparent` header.
    #[must_use]
    pub fn header(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

fn new_span_id() -> u64 {
    rand::random::<u64>().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_round_trips_and_nonsense_is_ignored() {
        let trace = Trace::new();
        assert_eq!(Trace::parse(&trace.header()), Some(trace));
        let quiet = Trace { sampled: false, ..trace };
        assert_eq!(Trace::parse(&quiet.header()), Some(quiet));
        let (t, s) = ("00000000000000000000000000000001", "0000000000000001");
        assert!(Trace::parse(&format!("01-{t}-{s}-01-more")).is_some(), "a later version");
        for bad in [
            "".to_string(),
            "00".into(),
            "00-0-0-01".into(),
            format!("ff-{t}-{s}-01"),
            format!("00-{t}-{s}"),
            format!("00-{t}-{s}-01-more"),
            format!("00-{t}-{s}-0x"),
            format!("00-+{}-{s}-01", &t[1..]),
            format!("00-{}-{s}-01", "0".repeat(32)),
            "zz-é".into(),
        ] {
            assert_eq!(Trace::parse(&bad), None, "{bad}");
        }
    }
}
