//! The crate as the daemon uses it, with certificates made here, by openssl, and in the style of existing installations.

#![expect(clippy::unwrap_used, reason = "the helpers of tests fail like tests")]

mod common;
mod files;
mod member;
mod openssl;
mod tls;
mod trust;
