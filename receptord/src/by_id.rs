//! Tables by the ids of messages.
//!
//! Owns the choice of their hash. Ids come from other nodes and may be chosen to do harm, so that the
//! hash is seeded by chance; but half a dozen of these tables are asked for every message, so that it
//! is not the standard library's, which takes longer than all the rest of a look-up.

use std::collections::HashMap;

use receptor_proto::MessageId;

/// A table by message id. Made with `default`.
pub(crate) type ById<V> = HashMap<MessageId, V, foldhash::fast::RandomState>;
