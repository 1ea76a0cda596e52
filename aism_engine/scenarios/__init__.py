"""Scenarios: each checks one promise of AISM on a server and an engine of its own.

A scenario is one module with one function `run()`: it lets agents act, and returns a result. The result is read from
the engine's audit and from the agents' data, not from what the agents say about themselves. docs/scenarios.md explains
the fields.
"""
