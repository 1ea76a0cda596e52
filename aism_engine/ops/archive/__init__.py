"""The audit on disk: a directory with one file per day, one line of JSON per entry.

    archive.json                    name of the archive, and prefix of its fleet
    lock                            held by the engine that writes here
    audit-2026-11-22.jsonl.gz       an earlier day, compressed
    audit-2026-11-23.jsonl          the current day

The files, sorted by name, are one log. Each line is an `AuditLine` of `ops/audit_log.py`. The Redis clock says to which
day an entry belongs. If that clock goes back to an earlier day, entries continue in the newest file: nothing is ever
appended to another file.

Guaranteed:

- The archive continues after its last complete line. A line torn by a kill -9 is cut off, and its entry is read
  again from the audit.
- One engine writes to a directory. A second engine finds it locked.
- `synced` is the last entry that survives a power loss. While an archive reports to Redis, the audit is trimmed only up
  to that entry, unless it has more entries than `retention.audit_entries_max`.

What can fail: an OSError in a write or sync closes the archive and cuts off what was not synced, since it is unknown
how much of it reached the disk. The audit still holds those entries. If complete lines follow a damaged line, the file
is cut off at the damaged line, and the rest is kept in a file `damaged-*.jsonl`. If a day cannot be compressed, its
plain file stays.

Not guaranteed:

- The lock is local to a machine. On a network file system without locks, engines on two hosts can write at once.
- The cursor is the last entry of the newest file. If that file is deleted, the archive continues after the last entry
  of the file before it. The deleted entries are written again only if the audit still holds them.
"""
