"""The casebook as training from scratch sees it: reviewed slices teach, the rest is unknown."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicomnode.casebook import Case, Casebook
from dicomnode.domain import Code, ModelCard, ModelVersion, Segment, SeriesInstanceUid, Sha256, Split
from dicomnode.errors import InputError
from dicomnode.ml.training.dataset import IGNORED
from dicomnode.pipeline.labelled import known_labels, labelled_cases

ORGAN = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
FRONT = Segment(
    class_index=1,
    segment_number=1,
    label="Front",
    category=ORGAN,
    type=ORGAN,
    type_modifier=None,
    region=None,
    rgb=(1, 2, 3),
)
BACK = replace(FRONT, class_index=2, segment_number=2, label="Back")
CARD = ModelCard(
    name="ends",
    version=ModelVersion("ends@000000000000"),
    weights_sha256=Sha256("0" * 64),
    segments=(FRONT, BACK),
)


@pytest.fixture
def casebook(tmp_path: Path) -> Casebook:
    return Casebook(tmp_path / "cases", secret=b"sixteen bytes or more of it", hold_out_fraction=0.5)


def case(casebook: Casebook, patient: str) -> Case:
    """Three slices: both labels reviewed, only "Back" reviewed, nothing reviewed."""
    labels = np.zeros((3, 2, 2), np.uint8)
    labels[:, 0, 0], labels[:, 1, 1] = 1, 2
    key = casebook.patient_key(patient)
    return Case(
        case_id=casebook.case_id(SeriesInstanceUid("1.2.3"), stack=patient),
        patient_key=key,
        split=casebook.split_of(key),
        model_name="ends",
        image=np.full((3, 2, 2), 50, np.float32),
        affine=np.eye(4),
        labels=labels,
        reviewed=np.array([[0.5, 1, 0], [1, 0, 0]], np.float32),
        labels_known=("Back", "Front"),
    )


def test_what_was_not_reviewed_is_unknown_and_never_background(casebook: Casebook) -> None:
    found = known_labels(case(casebook, "P1"), CARD)

    assert found[0].tolist() == [[1, 0], [0, 2]]
    assert found[1].tolist() == [[IGNORED, IGNORED], [IGNORED, 2]]
    assert (found[2] == IGNORED).all()


def test_cases_come_with_patient_and_the_side_that_the_site_keeps_them_on(casebook: Casebook) -> None:
    added = [case(casebook, f"P{number}") for number in range(8)]
    for one in added:
        casebook.add(one)

    sources = {source.name: source for source in labelled_cases(casebook, CARD, segments=(FRONT, BACK))}

    assert {source.is_hold_out for source in sources.values()} == {True, False}
    for one in added:
        source = sources[one.case_id]
        assert (source.is_hold_out, source.patient) == (one.split is Split.HOLD_OUT, one.patient_key)
        read = source.read()
        assert read.stratum == "casebook/1e1"
        np.testing.assert_array_equal(read.labels, known_labels(one, CARD))
        np.testing.assert_array_equal(read.image.array, one.image)


def test_other_labels_and_an_empty_casebook_are_refused(casebook: Casebook) -> None:
    with pytest.raises(InputError, match="has no cases of ends"):
        labelled_cases(casebook, CARD, segments=(FRONT, BACK))
    with pytest.raises(InputError, match=r"use the labels\.toml of ends@"):
        labelled_cases(casebook, CARD, segments=(FRONT,))
