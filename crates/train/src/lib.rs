//! polity-train
