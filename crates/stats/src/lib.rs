//! polity-stats
