"""Copies of requests that a revision does for nobody: whose they are on the log. Nobody gets, and nobody pays for, what
comes of them."""

SHADOW_TENANT = "(shadow)"
"""No tenant can have this id: ids have no parentheses."""
SHADOW_EDGE = "(shadow)"
"""In the place of an edge. No edge reads what is for it."""
SHADOW_OF = "shadow_of"
"""Tag of a copy: the id of the request that it is a copy of."""
