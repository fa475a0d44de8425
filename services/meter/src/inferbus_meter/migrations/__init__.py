"""The schema, one change a file; see :mod:`inferbus_meter.migrate`."""
