"""Hard budgets at the door: whoever puts requests onto the log reserves first what they may cost."""
