"""Which labels share a BINARY segmentation where there are more than 30."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomnode.domain import Code
from dicomnode.imaging.results import seg_write
from dicomnode.imaging.results.seg_parts import MOST_SEGMENTS, split
from tests.imaging_builders import make_card, make_series, make_volume
from tests.seg_builders import RUN, found_in

ORGANS, VERTEBRAE, MUSCLES = (Code(value=v, scheme="99X", meaning=v) for v in ("organ", "spine", "muscle"))


def code(value):
    return Code(value=value, scheme="99X", meaning=value)


def card_of(categories, types=None):
    """A card whose segments have these categories, each with a type of its own if none are given."""
    names = [f"L{number}" for number in range(1, len(categories) + 1)]
    card = make_card(names)
    types = types or names
    segments = [
        replace(segment, category=category, type=code(kind), type_modifier=None, region=None)
        for segment, category, kind in zip(card.segments, categories, types, strict=True)
    ]
    return replace(card, segments=tuple(segments))


def findings_of(card):
    """One voxel of each label in a series of one slice more than needed."""
    shape = (2, 16, 16)
    labels = np.zeros(shape, np.uint8)
    numbers = [segment.segment_number for segment in card.segments]
    labels.reshape(-1)[: len(numbers)] = numbers
    return found_in(make_series(make_volume(np.zeros(shape, np.uint16))), labels, card)


def labels_of(parts):
    return [[measure.segment.label for measure in part] for part in parts]


def test_thirty_labels_stay_together():
    findings = findings_of(card_of(30 * [ORGANS]))

    assert [len(part) for part in split(findings.found)] == [30]
    assert split(()) == ()


def test_parts_are_cut_between_organ_groups():
    findings = findings_of(card_of(28 * [ORGANS] + 24 * [VERTEBRAE] + 26 * [MUSCLES]))

    assert [{m.segment.category.value for m in part} for part in split(findings.found)] == [
        {"organ"},
        {"spine"},
        {"muscle"},
    ]


def test_a_group_that_is_scattered_over_the_card_is_brought_together():
    findings = findings_of(card_of([ORGANS, MUSCLES] * 17))

    first, second = labels_of(split(findings.found))

    assert first == [f"L{number}" for number in range(1, 35, 2)]
    assert second == [f"L{number}" for number in range(2, 35, 2)]


def test_one_large_group_is_cut_evenly_and_pairs_stay_together():
    pairs = [f"T{number // 2}" for number in range(62)]
    findings = findings_of(card_of(62 * [ORGANS], pairs))

    parts = split(findings.found)

    assert sorted(len(part) for part in parts) == [20, 20, 22]
    kinds = [{m.segment.type.value for m in part} for part in parts]
    assert sum(len(kind) for kind in kinds) == len(set.union(*kinds))


@settings(max_examples=25)
@given(st.lists(st.sampled_from([ORGANS, VERTEBRAE, MUSCLES]), min_size=31, max_size=120))
def test_no_part_is_overfull_and_no_label_is_lost(categories):
    findings = findings_of(card_of(categories))

    parts = split(findings.found)

    assert len(parts) == -(-len(categories) // MOST_SEGMENTS)
    assert all(0 < len(part) <= MOST_SEGMENTS for part in parts)
    written = sorted(m.segment.segment_number for part in parts for m in part)
    assert written == [segment.segment_number for segment in findings.card.segments]
    assert all(list(part) == sorted(part, key=lambda m: m.segment.segment_number) for part in parts)


def test_each_part_is_a_series_of_its_own_that_names_its_part():
    findings = findings_of(card_of(40 * [ORGANS] + 30 * [MUSCLES]))

    objects = seg_write.encode_binary(findings, run=RUN)

    assert [ds.SeriesNumber for ds in objects] == [9001, 9002, 9003]
    assert [ds.SeriesDescription for ds in objects] == [
        f"AI hippocampus 0123456789ab (not verified) part {part} of 3" for part in (1, 2, 3)
    ]
    assert len({ds.SeriesInstanceUID for ds in objects}) == len({ds.SOPInstanceUID for ds in objects}) == 3
    for ds in objects:
        assert [item.SegmentNumber for item in ds.SegmentSequence] == list(
            range(1, len(ds.SegmentSequence) + 1)
        )
    assert sum(len(ds.SegmentSequence) for ds in objects) == 70


def test_a_long_model_name_leaves_room_for_the_part():
    card = card_of(31 * [ORGANS])
    object.__setattr__(card, "name", "n" * 80)

    for number, ds in enumerate(seg_write.encode_binary(findings_of(card), run=RUN), start=1):
        assert len(ds.SeriesDescription) <= 64
        assert ds.SeriesDescription.endswith(f"(not verified) part {number} of 2")
        assert ds.SeriesDescription.startswith("AI ")


def test_a_label_map_holds_all_labels_in_one_object():
    findings = findings_of(card_of(200 * [ORGANS]))

    ds = seg_write.encode_label_map(findings, run=RUN)

    assert [item.SegmentNumber for item in ds.SegmentSequence] == [*range(1, 201), 0]
