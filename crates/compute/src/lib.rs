//! polity-compute
