"""The error codes with which a server says that it cannot serve, and the name of each outage."""

from typing import Final

_SAME_NAME: Final = "MISCONF BUSY READONLY OOM NOAUTH NOPERM LOADING MASTERDOWN CLUSTERDOWN NOREPLICAS"
OUTAGES: Final = {code: code.lower() for code in _SAME_NAME.split()} | {
    "WRONGTYPE": "wrong_type",
    "UNKILLABLE": "busy",
    "WRONGPASS": "noauth",
}
