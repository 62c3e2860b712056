//! polity-lm
