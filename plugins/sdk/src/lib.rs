//! Receptor.
