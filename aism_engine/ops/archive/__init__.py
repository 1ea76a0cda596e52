"""The audit on disk: a directory of files, one a day, a line of JSON for each entry, compressed when the day is over.

    archive.json                    which archive it is, and of which fleet
    lock                            held by the engine that writes here
    audit-2026-11-22.jsonl.gz       a day that is over
    audit-2026-11-23.jsonl          the day that is written

The files are one log, in the order of their names. A line is a `Line` of `ops/audit_log.py`. An entry is in the
file of its day, by the clock of Redis, or of the last day that was begun, if later: closed files never change.

What is guaranteed. The last whole line is where to go on: after a kill -9 what was torn is cut off, and is read again
from the audit. One engine writes into a directory: another finds it locked. `synced` is what a loss of power cannot
take; the audit is trimmed behind that alone.

What is not guaranteed. The lock is one of the local machine: a directory on a network is not safe from another host
where that file system does not carry locks. Who removes the newest file removes the cursor: everything that the audit
still holds is then written once more.
"""
