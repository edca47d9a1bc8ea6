"""Timing an artifact against its float original in other runtimes, each in a process of its own."""
