"""The control record of the serving layer as commands read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from elasticsearch import Elasticsearch

from gridstead.cli.session import EXIT_FAILED, Failure, Session, unreachable
from gridstead.config import elasticsearch_client
from gridstead.serving.control import Control, ControlError
from gridstead.serving.elastic import ElasticStore
from gridstead.serving.indices import Indices
from gridstead.serving.patience import ServingError


@contextmanager
def served(session: Session, deadline_s: float) -> Iterator[tuple[Elasticsearch, ElasticStore]]:
    """What is served. An Elasticsearch that is away, or a record that cannot be used, ends the block with a Failure."""
    config = session.config
    client = elasticsearch_client(config, request_timeout=10, max_retries=0)
    try:
        indices = Indices(config.elasticsearch.index_prefix, config.stream.bin_s * 1000)
        yield client, ElasticStore(client, indices, deadline_s)
    except ServingError as error:
        raise unreachable("Elasticsearch", error, "elasticsearch") from error
    except ControlError as error:
        raise Failure(str(error), "gridstead doctor", EXIT_FAILED) from error
    finally:
        client.close()


def read_control(session: Session) -> Control:
    """The control record. Raises Failure where there is none, or Elasticsearch does not answer."""
    with served(session, deadline_s=0.0) as (_, store):
        found = store.read_control()
    if found is None:
        raise Failure("nothing is served yet: the stream has not begun", "gridstead status", EXIT_FAILED)
    return found[0]
