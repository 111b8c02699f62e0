"""The cases of a casebook as training from scratch takes them: what nobody has reviewed is unknown."""

from collections.abc import Sequence
from functools import partial

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from dicomnode.casebook import Case, Casebook
from dicomnode.domain import ModelCard, Segment, Split
from dicomnode.errors import InputError
from dicomnode.ml.training.dataset import IGNORED, CaseSource, LabelledCase, stratum
from dicomnode.pipeline.trust import training_case


def labelled_cases(
    casebook: Casebook, card: ModelCard, *, segments: Sequence[Segment]
) -> tuple[CaseSource, ...]:
    """List the cases of a model; patients who are held out at this site are held out here too.

    Parameters
    ----------
    card
        Of the model that the cases are of.
    segments
        The labels of the model that is to be trained: the same classes.

    Raises
    ------
    InputError
        Other labels, or there are no cases.
    """
    theirs, ours = ({one.class_index: one.label for one in labels} for labels in (card.segments, segments))
    if theirs != ours:
        raise InputError(
            f"the cases of {card.name} have the labels {theirs}, the label table {ours}; "
            f"use the labels.toml of {card.version}"
        )
    infos = casebook.cases(model_name=card.name)
    if not infos:
        raise InputError(f"the casebook has no cases of {card.name}; corrections bring them")
    return tuple(
        CaseSource(
            name=info.case_id,
            version=info.arrays_sha256,
            read=partial(_read, casebook, card, info.case_id),
            patient=info.patient_key,
            is_hold_out=info.split is Split.HOLD_OUT,
        )
        for info in infos
    )


def known_labels(case: Case, card: ModelCard) -> NDArray[np.uint8]:
    """Give the labels of a case, unknown where a slice was not reviewed.

    Background is known where all labels of the slice were reviewed: what is not marked as one label may be
    another that nobody looked for.
    """
    reviewed = training_case(case, card).slice_weights > 0  # (classes - 1, S)
    known = np.concatenate([reviewed.all(axis=0, keepdims=True), reviewed])
    is_known = known[case.labels, np.arange(len(case.labels))[:, None, None]]
    return np.where(is_known, case.labels, IGNORED).astype(np.uint8)


def _read(casebook: Casebook, card: ModelCard, case_id: str) -> LabelledCase:
    case = casebook.read(case_id)
    return LabelledCase(
        name=case_id,
        image=hd.Volume(array=case.image, affine=case.affine, coordinate_system="PATIENT"),
        labels=known_labels(case, card),
        stratum=stratum("casebook", case.image),
    )
