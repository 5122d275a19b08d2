//! Tests of logical units.
