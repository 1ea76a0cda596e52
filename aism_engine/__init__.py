"""The Agent Intent State Machine: agents declare, one engine measures, decides and records."""


def __getattr__(name: str) -> str:
    """Read the version from the disk only when it is asked for: `import aism_engine` must be fast."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version  # noqa: PLC0415

    return version("aism-engine")
