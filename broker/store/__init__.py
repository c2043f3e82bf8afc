"""The store: one port, two backends, a seal around both."""
