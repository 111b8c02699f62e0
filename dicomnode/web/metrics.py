"""The figures of a node for Prometheus, read from the database at each scrape: no process keeps counters."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from dicomnode import __version__
from dicomnode.ml.evaluation.drift import LIMIT_SD
from dicomnode.pipeline import figures
from dicomnode.pipeline.figures import LabelFigures, ModelDrift
from dicomnode.spool import Spool
from dicomnode.store import Store
from dicomnode.store.records import Overview

_OF_LABEL = ("model", "label")
_FEEDBACK: tuple[tuple[str, str, Callable[[LabelFigures], float | None]], ...] = (
    (
        "dicomnode_results_corrected_ratio",
        "Share of the results of the last 30 days in which readers changed the label",
        lambda one: one.corrected_share,
    ),
    (
        "dicomnode_reviews",
        "Reviews of the label of the last 30 days, by corrections that are kept",
        lambda one: one.reviews,
    ),
    (
        "dicomnode_correction_dice",
        "Mean Dice of our label with the reader's over these reviews, 1 where nothing was changed",
        lambda one: one.dice_mean,
    ),
    (
        "dicomnode_volume_bias",
        "Mean of (ours - theirs) / theirs over those of these reviews that changed the label",
        lambda one: one.volume_bias,
    ),
)


def render(store: Store, spool: Spool, *, now: datetime) -> bytes:
    """Give the figures of this moment in Prometheus' text format.

    Raises
    ------
    ResourceError
        Database or disk do not answer.
    """
    registry = CollectorRegistry()
    registry.register(_NodeCollector(store.overview(), free_bytes=spool.free_bytes()))
    registry.register(_FeedbackCollector(figures.whole(store, now=now), figures.all_drift(store)))
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
        yield GaugeMetricFamily(
            "dicomnode_corrections_held",
            "Segmentations in quarantine, which wait for a person",
            value=self._overview.held_corrections,
        )
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


class _FeedbackCollector(Collector):
    def __init__(self, labels: Iterable[LabelFigures], drifts: Iterable[ModelDrift]) -> None:
        self._labels = tuple(labels)
        self._drifts = tuple(drifts)

    def collect(self) -> Iterator[Metric]:
        for name, words, value_of in _FEEDBACK:
            family = GaugeMetricFamily(name, words, labels=_OF_LABEL)
            for one in self._labels:
                value = value_of(one)
                if value is not None:
                    family.add_metric([one.model, one.label], value)
            yield family
        yield self._alarms()
        yield self._sums()

    def _alarms(self) -> Metric:
        family = GaugeMetricFamily(
            "dicomnode_drift_alarm",
            "1 while the version in use has drifted from what its reviews used to say, else 0",
            labels=_OF_LABEL,
        )
        for drift in self._drifts:
            drifted = {state.label for state in drift.alarms}
            for label in dict.fromkeys(state.label for state in drift.states):
                family.add_metric([drift.model, label], float(label in drifted))
        return family

    def _sums(self) -> Metric:
        family = GaugeMetricFamily(
            "dicomnode_drift_cusum",
            f"CUSUM of the reviews' Dice or volume bias in standard deviations; above {LIMIT_SD:g}: alarm",
            labels=(*_OF_LABEL, "figure"),
        )
        for drift in self._drifts:
            for state in drift.states:
                family.add_metric([drift.model, state.label, state.figure], state.cusum)
        return family
