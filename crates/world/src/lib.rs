//! polity-world
