"""The Agent Intent State Machine: agents declare, one engine measures, decides and records."""

from importlib.metadata import version

__version__ = version("aism-engine")
