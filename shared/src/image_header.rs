//! What a disk image says of itself, read without trusting it.
