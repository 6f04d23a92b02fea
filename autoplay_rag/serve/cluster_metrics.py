"""The metrics of what several processes share: who has what, and how far a topic is taken in."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from autoplay_rag.journal.inflow import TopicStatus
from autoplay_rag.journal.ownership import Replicas
from autoplay_rag.serve.families import counter, gauge, labelled

__all__ = ["replica_metrics", "topic_metrics"]


def replica_metrics(found: Replicas) -> Iterator[Metric]:
    """Yield the metrics of all processes of a journal. Each of the processes has all of them."""
    partitions = labelled("replica_partitions", "Partitions of each process.", "replica")
    lag = labelled("replica_lag_seconds", "How long the oldest in them waits.", "replica")
    sources = labelled("source_read", "1 for the process that reads a source.", "replica", "source")
    for one in found.replicas:
        partitions.add_metric([one.name], len(one.partitions))
        lag.add_metric([one.name], one.lag)
        for source in one.sources:
            sources.add_metric([one.name, source], 1.0)
    yield from (partitions, lag, sources)
    yield gauge("replicas", "Processes of the journal.", len(found.replicas))
    yield gauge("unowned_partitions", "Partitions that no process has.", len(found.unowned))
    yield gauge("unowned_lag_seconds", "How long the oldest in these waits.", found.lag)


def topic_metrics(found: TopicStatus) -> Iterator[Metric]:
    """Yield the metrics of a topic. Each process has those of all partitions."""
    lag = labelled("topic_lag", "Messages of the topic that are not taken in.", "partition")
    offset = labelled("topic_offset", "Offset of the next message to be taken in.", "partition")
    missed = counter(
        "topic_missed", "Messages LOST: deleted from the topic before they were read.", "partition"
    )
    readers = labelled(
        "topic_read", "1 for the process that reads a partition.", "partition", "replica"
    )
    for part in found.parts:
        number = str(part.number)
        lag.add_metric([number], part.lag)
        offset.add_metric([number], part.offset or 0)
        missed.add_metric([number], part.missed)
        if part.owner is not None:
            readers.add_metric([number, part.owner], 1.0)
    yield from (lag, offset, missed, readers)
    yield gauge("topic_unread_partitions", "Partitions that no process reads.", len(found.unread))
