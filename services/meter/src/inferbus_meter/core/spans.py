"""What of ``bills`` and ``charges`` a span of time can be in, said by what their table is sorted by. Pure.

Rows of a request are told apart by ``FINAL``, which reads all that may be of the same requests. The time of the end is
no part of the sorting key, so a span of ends alone would have all of the table read. The hour of the acceptance is.
"""


def accepted_of(ended: str) -> str:
    """The acceptances of all rows that a condition on ``end_time`` selects: to be added to it. They are looked up in a
    read that is pruned. Leaves out nothing: a request that counts in the span has its row there."""
    of_rows = f"FROM requests WHERE {ended}"
    return (
        f"accepted_time >= (SELECT min(accepted_time) {of_rows}) "
        f"AND accepted_time <= (SELECT max(accepted_time) {of_rows})"
    )
