//! What the tests of palisade share.
