//! polity-rows
