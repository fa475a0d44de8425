"""Signed webhooks. See README.md."""
