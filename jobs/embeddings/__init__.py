"""Vectors from embedding APIs: asked for once, kept in a ledger, read by everybody."""
