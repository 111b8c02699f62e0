"""Objects with broken attributes are read or refused with a reason; they never look like a bug of ours."""

import io
import random

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement

from dicomnode.errors import InputError
from dicomnode.imaging.corrections import recognition
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import seg_read
from dicomnode.imaging.results import seg_write
from dicomnode.imaging.results.findings import measure
from tests.imaging_builders import make_card, part_10, plain_series
from tests.seg_builders import RUN, encoded_forms

CARD = make_card()
SHAPE = (6, 5, 6)
BROKEN = (b"", b"abc ", b"\xff" * 6, b"1\\2", b"99999999999 ", b"-1", b"\x00" * 4, b"nan ")

pytestmark = pytest.mark.filterwarnings("ignore")


def places(ds):
    for tag in list(ds.keys()):
        yield ds, tag
        if ds[tag].VR == "SQ":
            for item in ds[tag].value:
                yield from places(item)


def damage(ds, chance):
    """Remove, empty or overwrite one element anywhere in a data set."""
    parent, tag = chance.choice(list(places(ds)))
    kind = chance.random()
    if kind < 0.35:
        del parent[tag]
    elif kind < 0.5:
        parent[tag].value = [] if parent[tag].VR == "SQ" else None
    else:
        vr = chance.choice([parent[tag].VR, "UN", "LO", "DS", "US"])
        vr = "UN" if len(vr) > 2 or vr == "SQ" else vr
        raw = chance.choice(BROKEN)
        parent._dict[tag] = RawDataElement(tag, vr, len(raw), raw, 0, False, True)


@pytest.fixture(scope="module")
def sources():
    return plain_series(SHAPE)


@pytest.fixture(scope="module")
def labels(sources):
    numbers = np.zeros(SHAPE, np.uint8)
    numbers[1:4, 1:3, 1:4], numbers[3:6, 4, 0:4] = 1, 2
    return to_volume(sources).image.with_array(numbers)


@pytest.fixture(scope="module")
def encoded(sources, labels):
    findings = measure(labels, series=to_volume(sources), card=CARD)
    return {form: part_10(ds) for form, ds in encoded_forms(findings).items()}


@pytest.mark.parametrize("form", ["binary", "label map"])
@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_segmentation_is_read_or_refused(seed, form, sources, encoded):
    ds = dcmread(io.BytesIO(encoded[form]))
    damage(ds, random.Random(seed))
    known = recognition.Known(sent=[], prediction={}, model_name=CARD.name)
    try:
        seg_read.referenced_series(ds)
        seg_read.referenced_instances(ds)
        stacks = [only_stack(sources), only_stack(plain_series((3, 5, 6)))]
        assert seg_read.stack_of(ds, stacks) in stacks
        decoded = seg_read.decode(ds, stack=stacks[0], card=CARD)
    except InputError as refusal:
        assert str(refusal)  # noqa: PT017  # either outcome is right; a refusal must say why
    else:
        recognition.recognise(ds, decoded=decoded, known=known)
        recognition.author(ds, "SENDER")


@pytest.mark.parametrize("seed", range(60))
def test_a_series_with_one_damaged_image_is_segmented_or_refused(seed, sources, labels):
    chance = random.Random(seed)
    datasets = [dcmread(io.BytesIO(part_10(ds))) for ds in sources]
    damage(chance.choice(datasets), chance)
    try:
        series = to_volume(datasets)
        findings = measure(series.image.with_array(labels.array), series=series, card=CARD)
        written = seg_write.encode_binary(findings, run=RUN)
    except InputError as refusal:
        assert str(refusal)  # noqa: PT017  # either outcome is right; a refusal must say why
    else:
        assert all(part_10(ds) for ds in written)
