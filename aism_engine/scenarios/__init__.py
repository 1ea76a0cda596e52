"""The scenarios of the AISM literature, each on a server and an engine of its own: does the protocol keep its word?

A scenario is one file with one function `play(stage)`: it lets agents act, and gives figures that are read off the
engine's own record, the audit, not off what the agents say of themselves. docs/scenarios.md tells how to read them.
"""
