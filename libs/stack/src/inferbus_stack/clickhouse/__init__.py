"""The embedded ClickHouse: one process that owns a chDB database and serves ClickHouse's HTTP interface.

It stands where a ClickHouse server would stand on one machine, so that unmodified clickhouse-connect (sync and
async), curl and dashboards work against it, and so that production differs only in a host name. chDB allows one
process per data directory; this is that process, and everyone else asks it over HTTP.

Run it: ``python -m inferbus_stack.clickhouse --path DIR --port N --users FILE [--ready-file FILE]``.
Once it serves, the ready file holds ``{"port": N, "pid": P}``. SIGTERM drains and exits 0.

Where to look:
    app.py         routes, and the way of one request
    wire.py        an HTTP request read into a Statement
    statement.py   ClickHouse's tokens: where an INSERT ends and its data begins
    guard.py       what a profile may run: the engine's own syntax tree against allow-lists
    engine.py      chDB: configuration, handles, cancelling
    execution.py   one statement on one handle: results in pieces, inserts from a spool
    spool.py       the data of an INSERT: a nameless file, from which the engine reads, so that every error is told
"""
