"""The words with which a server says that it cannot serve, and the outage that each of them is."""

from typing import Final

OUTAGES: Final = {
    word: word.lower()
    for word in (
        "MISCONF",
        "BUSY",
        "READONLY",
        "OOM",
        "NOAUTH",
        "NOPERM",
        "LOADING",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "NOREPLICAS",
    )
} | {"WRONGTYPE": "wrong_type", "UNKILLABLE": "busy", "WRONGPASS": "noauth"}
