"""The aggregator's figures for Prometheus, of one application and not of the process."""

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from dicomnode.federation.ledger import Ledger


class Counters:
    """What is counted while serving, and the ledger's counts at the moment of asking."""

    def __init__(self, ledger: Ledger) -> None:
        self.registry = CollectorRegistry()
        self.refusals = Counter(
            "dicomnode_aggregator_refusals", "Requests refused", ["code"], registry=self.registry
        )
        self.uploaded_bytes = Counter(
            "dicomnode_aggregator_uploaded_bytes", "Bytes of updates received", registry=self.registry
        )
        self.registry.register(_LedgerCounts(ledger))


class _LedgerCounts(Collector):
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterable[GaugeMetricFamily]:
        updates = GaugeMetricFamily("dicomnode_aggregator_updates", "Updates by state", labels=["state"])
        for state, count in self._ledger.updates.counts().items():
            updates.add_metric([state], count)
        nodes = GaugeMetricFamily("dicomnode_aggregator_nodes", "Nodes by status", labels=["status"])
        for status, count in Tally(node.status for node in self._ledger.nodes.list()).items():
            nodes.add_metric([status], count)
        releases = GaugeMetricFamily(
            "dicomnode_aggregator_release", "Newest release of a family", labels=["family"]
        )
        for head in self._ledger.versions.heads():
            releases.add_metric([head.family], head.version)
        return (updates, nodes, releases)
