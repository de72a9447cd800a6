"""Retention of what is served: months that are older than wanted are given up, first on record, then by their indices.

The control record says from where on is served; stream and batch write nothing before it. So a month is an index that
can go as a whole, and a late event does not bring a part of it back.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

from elasticsearch import Elasticsearch

from gridstead.serving.control import Control, ControlError, give_up
from gridstead.serving.elastic import ElasticStore
from gridstead.serving.indices import drop_months, month_of
from gridstead.serving.merge import await_done

WAIT_S: Final = 900.0


def first_month(today: dt.date, months: int) -> dt.date:
    """The first day of the first month that is kept, where ``months`` are kept beside the present one."""
    count = today.year * 12 + today.month - 1 - months
    return dt.date(count // 12, count % 12 + 1, 1)


def served_after_ms(first: dt.date, bin_ms: int) -> int:
    """The end (ms since epoch) of the last bin that begins before a day, UTC."""
    midnight_ms = int(dt.datetime.combine(first, dt.time(), dt.UTC).timestamp()) * 1000
    return -(-midnight_ms // bin_ms) * bin_ms


def served_from(control: Control) -> dt.date | None:
    """The first day of which bins are served; None where no month was given up."""
    if not control.served_after_ms:
        return None
    return dt.datetime.fromtimestamp(control.served_after_ms // 1000, dt.UTC).date().replace(day=1)


def retain(client: Elasticsearch, store: ElasticStore, first: dt.date | None, now_ms: int) -> list[str]:
    """Serve nothing of the months before this first day of one; returns the indices deleted. May be repeated.

    None gives up no further month, and deletes what is left of those given up.

    Raises ControlError while a batch lives, or where the stream does not finish the transaction that it has begun;
    ServingError where Elasticsearch does not answer.
    """
    indices = store.indices
    found = store.read_control()
    if found is None:
        raise ControlError("nothing is served yet: the stream has not begun")
    control = found[0]
    if first is not None:
        control = give_up(store, served_after_ms(first, indices.bin_ms), now_ms)
    if not control.served_after_ms:
        return []
    if control.intent is not None:  # it may have been begun before, and write what is given up
        await_done(store, control.intent.seq, WAIT_S)
    return drop_months(client, indices, month_of(control.served_after_ms), WAIT_S)
