"""What OHIF's real writer makes of a correction, in five versions, and what we make of that: voxel by voxel.

The table says for each version, form and order of the viewer's images what becomes of the cases of `written`.
"""

import numpy as np
import pytest

from dicomnode.imaging.corrections import mirror
from dicomnode.imaging.corrections.mirror import MirrorVerdict
from dicomnode.imaging.reading import seg_read
from tests.ct_builders import nifti_volume
from tests.interop.ohif_writer import (
    BITMAP_LE,
    BITMAP_RLE,
    FRACTIONAL_RLE,
    LABEL_MAP,
    OLD,
    VERSIONS,
    Saved,
    forms_of,
    write,
)
from tests.interop.seg_cases import series_named
from tests.interop.written import (
    CARD,
    CASES,
    EDIT,
    EMPTIED,
    LABELS,
    arbitrated,
    ct_of_even_size,
    is_exact,
    layers_of,
    masks_of,
    mr_of_odd_size,
    outcome,
    predicted,
)

SPLEEN_MASK = "organs/spleen_msd/derivatives/labels/sub-spleen2/ct/sub-spleen2_ct_seg-manual.nii.gz"
ASCENDING, DESCENDING = "ascending", "descending"
REVERSED = "held: slices in reverse order"
TWICE = "held: several of its segments are the same label of the model"  # every layer lists all segments
EXACT, LISTED, UNLISTED = "read exactly", "; listed as empty", "; not listed: unknown"
ALIGNED, ONE_BIT = "frames_byte_aligned", "one_bit_rle"
REMAPPED, CONFLICT = "segment_numbers_remapped", "position_conflict"
HIDDEN, ONES = "encapsulated_under_native", "fractions_of_one"


def repaired(*flags):
    return f"repaired ({', '.join(sorted(flags))})"


OUTCOMES = {  # one label edited, middle label emptied, labels overlap
    ("2.2.20", BITMAP_LE, ASCENDING): (REVERSED, REVERSED, REVERSED),
    ("2.2.20", BITMAP_LE, DESCENDING): (EXACT, EXACT + LISTED, TWICE),
    ("2.2.20", FRACTIONAL_RLE, ASCENDING): (REVERSED, REVERSED, REVERSED),
    ("2.2.20", FRACTIONAL_RLE, DESCENDING): (repaired(ONES), repaired(ONES) + LISTED, TWICE),
    ("3.20.0", BITMAP_LE, ASCENDING): (REVERSED, REVERSED, REVERSED),
    ("3.20.0", BITMAP_LE, DESCENDING): (EXACT, EXACT + LISTED, TWICE),
    ("3.20.0", FRACTIONAL_RLE, ASCENDING): (REVERSED, REVERSED, REVERSED),
    ("3.20.0", FRACTIONAL_RLE, DESCENDING): (repaired(ONES), repaired(ONES) + LISTED, TWICE),
    ("4.15.29", BITMAP_LE, ASCENDING): (REVERSED, REVERSED, REVERSED),
    ("4.15.29", BITMAP_LE, DESCENDING): (repaired(HIDDEN), repaired(HIDDEN) + LISTED, TWICE),
    ("4.15.29", FRACTIONAL_RLE, ASCENDING): (REVERSED, REVERSED, REVERSED),
    ("4.15.29", FRACTIONAL_RLE, DESCENDING): (repaired(ONES), repaired(ONES) + LISTED, TWICE),
    ("5.6.8", LABEL_MAP, ASCENDING): (EXACT, EXACT + LISTED, repaired(ONE_BIT, CONFLICT, REMAPPED)),
    ("5.6.8", LABEL_MAP, DESCENDING): (EXACT, EXACT + LISTED, repaired(ONE_BIT, REMAPPED)),
    ("5.6.8", BITMAP_RLE, ASCENDING): (
        repaired(ONE_BIT, CONFLICT),
        repaired(ONE_BIT, CONFLICT, REMAPPED) + UNLISTED,
        repaired(ONE_BIT, CONFLICT, REMAPPED),
    ),
    ("5.6.8", BITMAP_RLE, DESCENDING): (
        repaired(ONE_BIT),
        repaired(ONE_BIT, REMAPPED) + UNLISTED,
        repaired(ONE_BIT, REMAPPED),
    ),
    ("5.6.8", BITMAP_LE, ASCENDING): (
        repaired(ALIGNED, CONFLICT),
        repaired(ALIGNED, CONFLICT, REMAPPED) + UNLISTED,
        repaired(ALIGNED, CONFLICT, REMAPPED),
    ),
    ("5.6.8", BITMAP_LE, DESCENDING): (
        repaired(ALIGNED),
        repaired(ALIGNED, REMAPPED) + UNLISTED,
        repaired(ALIGNED, REMAPPED),
    ),
    ("5.14.0", LABEL_MAP, ASCENDING): (EXACT, EXACT + LISTED, repaired(ONE_BIT)),
    ("5.14.0", LABEL_MAP, DESCENDING): (EXACT, EXACT + LISTED, repaired(ONE_BIT)),
    ("5.14.0", BITMAP_RLE, ASCENDING): (repaired(ONE_BIT), repaired(ONE_BIT) + UNLISTED, repaired(ONE_BIT)),
    ("5.14.0", BITMAP_RLE, DESCENDING): (repaired(ONE_BIT), repaired(ONE_BIT) + UNLISTED, repaired(ONE_BIT)),
    ("5.14.0", BITMAP_LE, ASCENDING): (repaired(ALIGNED), repaired(ALIGNED) + UNLISTED, repaired(ALIGNED)),
    ("5.14.0", BITMAP_LE, DESCENDING): (repaired(ALIGNED), repaired(ALIGNED) + UNLISTED, repaired(ALIGNED)),
}


@pytest.fixture(params=["MR 11 x 9", "CT 16 x 12", "hippocampus"])
def series(request):
    match request.param:
        case "MR 11 x 9":
            return mr_of_odd_size()
        case "CT 16 x 12":
            return ct_of_even_size()
    return series_named("Study2", request.getfixturevalue("data_dir"))


def saved(series, case, form, order):
    return Saved(
        series=series,
        layers=layers_of(case, series.image.spatial_shape),
        segments=LABELS,
        form=form,
        is_descending=order == DESCENDING,
    )


def without_alignment(said):
    """Where Rows x Columns fills whole bytes, frames that start on one are as the standard wants them."""
    alone = repaired(ALIGNED)
    return said.replace(alone, EXACT).replace(f", {ALIGNED}", "").replace(f"{ALIGNED}, ", "")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_correction_is_read_exactly_or_held(version, series):
    kinds = [(form, order) for form in forms_of(version) for order in (ASCENDING, DESCENDING)]
    written = write(version, [saved(series, case, *kind) for kind in kinds for case in CASES])
    cases = CASES * len(kinds)

    said = [outcome(ds, series, case) for ds, case in zip(written, cases, strict=True)]

    expected = [one for kind in kinds for one in OUTCOMES[version, *kind]]
    _, rows, columns = series.image.spatial_shape
    assert said == (expected if rows * columns % 8 else list(map(without_alignment, expected)))


@pytest.mark.parametrize("version", sorted(OLD))
def test_versions_up_to_4_mirror_images_in_ascending_order_and_are_known_for_it(version, series):
    (ds,) = write(version, [saved(series, EDIT, BITMAP_LE, ASCENDING)])
    truth = masks_of(layers_of(EDIT, series.image.spatial_shape))
    decoded = seg_read.decode(ds, stack=series.stack, card=CARD)

    found = arbitrated(ds, decoded, unflip=True)

    assert mirror.known_to_mirror(ds)
    assert not is_exact(decoded, truth)
    assert "in reverse order" in found.sentence
    assert found.verdict is MirrorVerdict.TURNED
    assert is_exact(mirror.turned(decoded), truth)


@pytest.mark.parametrize("version", sorted(OLD))
@pytest.mark.parametrize("order", [ASCENDING, DESCENDING])
def test_without_a_prediction_a_person_decides_on_versions_up_to_4(version, order):
    series = mr_of_odd_size()  # of noise, which shows nothing
    (ds,) = write(version, [saved(series, EDIT, BITMAP_LE, order)])
    decoded = seg_read.decode(ds, stack=series.stack, card=CARD)

    found = mirror.arbitrate(ds, decoded=decoded, prediction={}, image=series.image.array, unflip=True)

    assert found.verdict is MirrorVerdict.SUSPECT


@pytest.mark.parametrize(
    ("order", "verdict"), [(ASCENDING, MirrorVerdict.SUSPECT), (DESCENDING, MirrorVerdict.AS_READ)]
)
def test_without_a_prediction_a_real_image_tells_in_which_order_its_slices_lie(order, verdict, data_dir):
    series = series_named("spleen", data_dir)
    spleen = nifti_volume(data_dir / SPLEEN_MASK, dtype=np.uint8).array
    one = Saved(
        series=series,
        layers=[spleen],
        segments=LABELS[:1],
        form=BITMAP_LE,
        is_descending=order == DESCENDING,
    )
    (ds,) = write("2.2.20", [one])
    decoded = seg_read.decode(ds, stack=series.stack, card=CARD)

    image = np.asarray(series.image.array, np.float32)
    found = mirror.arbitrate(ds, decoded=decoded, prediction={}, image=image, unflip=True)

    assert found.verdict is verdict
    assert "structures of the image" in found.sentence


@pytest.mark.parametrize("version", [version for version in VERSIONS if version not in OLD])
def test_later_versions_are_not_known_to_mirror(version):
    series = mr_of_odd_size()
    written = write(version, [saved(series, EMPTIED, form, ASCENDING) for form in forms_of(version)])

    assert not any(mirror.known_to_mirror(ds) for ds in written)


def test_positions_alone_of_5_6_are_known_to_be_mirrored():
    series = mr_of_odd_size()
    (ds,) = write("5.6.8", [saved(series, EDIT, BITMAP_LE, ASCENDING)])
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.DerivationImageSequence
    decoded = seg_read.decode(ds, stack=series.stack, card=CARD)

    assert mirror.known_to_mirror(ds)
    assert arbitrated(ds, decoded).verdict is MirrorVerdict.SUSPECT
    assert is_exact(mirror.turned(decoded), masks_of(layers_of(EDIT, decoded.shape)))


def test_the_prediction_lies_in_one_half_so_that_a_reversal_shows():
    labels = predicted((7, 11, 9))

    assert labels[:3].any(axis=(1, 2)).all()
    assert not labels[3:].any()
