"""The Agent Intent State Machine: agents declare, one engine measures, decides and records."""


def __getattr__(name: str) -> str:
    """Give the version, which takes a look at the disk: only who asks for it shall wait for it."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version  # noqa: PLC0415

    return version("aism-engine")
