"""The error codes with which a server says that it cannot serve, and the name of each outage."""

from typing import Final

OUTAGES: Final = {
    code: code.lower()
    for code in (
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
