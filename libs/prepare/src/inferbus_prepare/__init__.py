"""Revisions made from weights, and validated against them. See README.md."""
