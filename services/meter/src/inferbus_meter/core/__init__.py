"""Decisions of the meter: values in, values out."""
