"""What happens to a client, and the row that bills it: one case for each line of docs/billing.md's table."""
