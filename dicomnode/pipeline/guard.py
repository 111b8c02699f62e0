"""Step back from a version that does worse in use than the one before: in readers' eyes, not on old cases."""

from collections import Counter

import structlog

from dicomnode.domain import ModelVersion
from dicomnode.errors import ModelFormatError
from dicomnode.ml.evaluation.drift import MINIMUM_BASELINE, DriftState, Figure
from dicomnode.pipeline.figures import drift
from dicomnode.pipeline.tools import Tools
from dicomnode.store.records import Retreat, VersionInUse

log = structlog.get_logger()


def step_back_if_worse(model: str, tools: Tools) -> Retreat:
    """Put the version before back, or advise it, where the drift alarm says that the one in use does worse.

    Only an alarm of Dice counts, and only for a label whose figures are compared with reviews of the version
    before: one that is compared with its own first reviews has changed, and may never have been better. The
    version in use is rolled back from only if it came into use automatically; see `ModelRows.retreat`.

    Safe to call at any time and from several processes at once.
    """
    found = drift(tools.store, model)
    in_use = tools.store.feedback.version_in_use(model)
    if found is None or in_use is None or in_use.previous is None or in_use.version != found.version:
        return Retreat.NONE
    worse = worse_labels(found.alarms, in_use)
    if not worse:
        return Retreat.NONE
    words = "; ".join(f"{state.label}: {state.in_words}" for state in worse)
    hindrance = _hindrance(in_use.previous, tools)
    outcome = tools.store.models.retreat(in_use, reason=words, hindrance=hindrance, now=tools.now())
    _tell(outcome, in_use, words)
    return outcome


def worse_labels(alarms: tuple[DriftState, ...], in_use: VersionInUse) -> tuple[DriftState, ...]:
    """Choose the alarms that compare the Dice of a label with that of the version before."""
    compared = Counter(review.label for review in in_use.before)
    return tuple(
        state for state in alarms if state.figure is Figure.DICE and compared[state.label] >= MINIMUM_BASELINE
    )


def _hindrance(previous: ModelVersion, tools: Tools) -> str:
    """Say what keeps the version before from being put back, as far as the database does not know it."""
    if not tools.training.automatic_rollback:
        return "training.automatic_rollback = false"
    try:
        tools.shelf.package(previous)  # a version that cannot be read is not put into use
    except ModelFormatError as error:
        return str(error)
    return ""


def _tell(outcome: Retreat, in_use: VersionInUse, words: str) -> None:
    told = {"version": in_use.version, "before": in_use.previous, "figures": words}
    if outcome is Retreat.ROLLED_BACK:
        log.warning("model rolled back", **told)
    elif outcome is Retreat.ADVISED:
        log.warning("rollback advised", **told)
