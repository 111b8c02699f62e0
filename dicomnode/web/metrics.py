"""The figures of a node for Prometheus, read from the database at each scrape: no process keeps counters."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from dicomnode import __version__
from dicomnode.spool import Spool
from dicomnode.store import Store
from dicomnode.store.records import Overview


def render(store: Store, spool: Spool) -> bytes:
    """Give the figures of this moment in Prometheus' text format.

    Raises
    ------
    ResourceError
        Database or disk do not answer.
    """
    registry = CollectorRegistry()
    registry.register(_NodeCollector(store.overview(), free_bytes=spool.free_bytes()))
    return generate_latest(registry)


class _NodeCollector(Collector):
    def __init__(self, overview: Overview, *, free_bytes: int) -> None:
        self._overview = overview
        self._free_bytes = free_bytes

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("dicomnode_build", "The software", {"version": __version__})
        yield GaugeMetricFamily("dicomnode_spool_free_bytes", "Free disk space", value=self._free_bytes)
        yield self._series()
        yield self._jobs()
        yield from self._deliveries()
        yield self._corrections()
        yield self._models()

    def _series(self) -> Metric:
        family = GaugeMetricFamily(
            "dicomnode_series", "Series received, by where they stand", labels=["state"]
        )
        for state, count in self._overview.series:
            family.add_metric([state], count)
        return family

    def _jobs(self) -> Metric:
        family = GaugeMetricFamily("dicomnode_jobs", "Jobs, by kind and state", labels=["kind", "state"])
        for kind, state, count in self._overview.jobs:
            family.add_metric([kind, state], count)
        return family

    def _deliveries(self) -> Iterator[Metric]:
        pending = GaugeMetricFamily(
            "dicomnode_deliveries_pending", "Objects of results to be sent", labels=["destination"]
        )
        sent = GaugeMetricFamily(
            "dicomnode_deliveries_sent", "Objects of results sent", labels=["destination"]
        )
        for one in self._overview.destinations:
            pending.add_metric([one.destination], one.pending)
            sent.add_metric([one.destination], one.sent)
        yield pending
        yield sent

    def _corrections(self) -> Metric:
        family = GaugeMetricFamily(
            "dicomnode_corrections", "Segmentations received, by what they are", labels=["recognition"]
        )
        for recognition, count in self._overview.corrections:
            family.add_metric([recognition], count)
        return family

    def _models(self) -> Metric:
        family = GaugeMetricFamily(
            "dicomnode_model_in_use", "1 for each version in use", labels=["name", "version"]
        )
        for model in self._overview.models:
            family.add_metric([model.name, model.version], 1)
        return family
