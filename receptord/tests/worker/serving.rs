//! Works of plugins that serve.
