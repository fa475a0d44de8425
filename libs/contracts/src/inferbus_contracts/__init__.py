"""The address book: where each message of :mod:`inferbus` travels, and how things are named."""
