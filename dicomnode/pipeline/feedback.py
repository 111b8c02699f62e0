"""After each correction: has the model drifted, and has that been said already?"""

import structlog

from dicomnode.pipeline.figures import drift
from dicomnode.pipeline.tools import Tools

log = structlog.get_logger()


def note_drift(model_name: str, tools: Tools) -> None:
    """Put each alarm of the version in use into audit log and log, once for each label of the version.

    Safe to call after every correction and from several workers at once. A version that is put into use anew
    is watched anew.
    """
    found = drift(tools.store, model_name)
    if found is None:
        return
    for label in dict.fromkeys(state.label for state in found.alarms):
        words = "; ".join(state.in_words for state in found.alarms if state.label == label)
        is_new = tools.store.feedback.note_alarm(
            found.version, label, words, in_use_since=found.in_use_since, now=tools.now()
        )
        if is_new:
            log.warning("drift alarm", model=model_name, version=found.version, label=label, figures=words)
