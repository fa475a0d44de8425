"""The public API's dialect: what its bodies ask of the bus, and how its answers are written from the log. Pure."""
