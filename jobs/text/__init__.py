"""Text, the second kind of encoder input: its specification and tokenizing belong here.

Empty so far. The text tasks take vectors that somebody else made (`jobs.features.given`).
"""
