"""The names of somebody else's classes become labels with codes, or are listed for a person to complete."""

import csv
import re
import tomllib
from collections import defaultdict
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr import _concepts_dict

from dicomnode.domain import Code
from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports import anatomy, labels
from dicomnode.ml.imports.anatomy import Concept, Kind
from dicomnode.ml.model import package

ROWS = list(
    csv.DictReader(
        resources.files("dicomnode.ml.imports").joinpath("anatomy.csv").read_text("utf-8").splitlines()
    )
)
LEFT = Code(value="7771000", scheme="SCT", meaning="Left")
RIGHT = Code(value="24028007", scheme="SCT", meaning="Right")


def found(name: str, context: str = "") -> Concept:
    concept = anatomy.find(name, context=context)
    assert concept is not None, name
    return concept


# --- the table


def codes_of_the_standard(scheme: str) -> set[str]:
    concepts = _concepts_dict.concepts[scheme].values()
    return {value for meanings in concepts for value in meanings}


def test_every_code_said_to_come_from_the_standard_is_there():
    known = {scheme: codes_of_the_standard(scheme) for scheme in ("SCT", "NCIt")}
    missing = [
        row["label"]
        for row in ROWS
        if row["source"] == "DICOM"
        and not (
            row["type"] in known[row["scheme"]] and {row["modifier"], row["region"]} - {""} <= known["SCT"]
        )
    ]

    assert missing == []
    assert {row["source"] for row in ROWS} == {"DICOM", "TotalSegmentator"}


@pytest.mark.parametrize("category", list(Kind))
def test_the_category_of_every_kind_is_a_code_of_the_standard(category: Kind):
    [row] = [row for row in ROWS if row["kind"] == category][:1]

    assert found(row["label"]).category.value in codes_of_the_standard("SCT")


def test_no_name_stands_for_two_concepts():
    meant = defaultdict(set)
    for row in ROWS:
        for name in (row["label"], *filter(None, row["names"].split(";"))):
            meant[anatomy.words_of(name)].add(row["label"])

    assert [names for names in meant.values() if len(names) > 1] == []


def test_every_concept_makes_a_legal_segment_under_its_own_name():
    drafted = labels.draft([(index, row["label"]) for index, row in enumerate(ROWS[:255], start=1)])
    rest = labels.draft([(index, row["label"]) for index, row in enumerate(ROWS[255:], start=1)])

    assert drafted.unknown == rest.unknown == ()
    for one in (drafted, rest):
        assert package.parse_labels(labels.render(one).encode()) == one.segments


def test_what_has_sides_has_no_other_modifier():
    assert [row["label"] for row in ROWS if row["paired"] and row["modifier"]] == []


# --- names


@pytest.mark.parametrize(
    "name",
    [
        "kidney_left",
        "left kidney",
        "Left Kidney",
        "KIDNEY LEFT",
        "kidney l",
        "Kidney_L",
        "kidneyLeft",
        "left kidneys",
        "lt-kidney",
        "renal structure (left)",
    ],
)
def test_a_name_is_recognised_in_any_order_and_spelling(name: str):
    assert found(name) == found("kidney_left")
    assert (found(name).type.value, found(name).type_modifier) == ("64033007", LEFT)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("oesophagus", "esophagus"),
        ("liver tumour", "liver_tumor"),
        ("oedema", "edema"),
        ("Gall Bladder", "gallbladder"),
        ("haemorrhage", "hemorrhage"),
        ("rib1_left", "rib_left_1"),
        ("rib_left_01", "first rib left"),
        ("postcava", "inferior_vena_cava"),
        ("3rd-Ventricle", "third_ventricle"),
        ("lenses", "lens"),
        ("hepatic vessels", "liver_vessels"),
        ("coronary_arteries", "coronary artery"),
        ("Lungs", "lung"),
    ],
)
def test_synonyms_spellings_and_plurals_mean_the_same(name: str, same: str):
    assert found(name) == found(same)


@pytest.mark.parametrize(
    ("name", "type_", "modifier", "region"),
    [
        ("spleen", "78961009", None, None),
        ("vertebrae_L5", "49668003", None, None),
        ("rib_right_12", "43993008", "24028007", None),
        ("heart_ventricle_left", "87878005", None, None),  # a code of its own, no side of "ventricle"
        ("lung_upper_lobe_left", "45653009", "7771000", None),
        ("subclavian_artery_left", "36765005", "7771000", None),
        ("PZ", "279706003", None, None),
        ("colon cancer primaries", "372087000", None, "71854001"),
        ("kidney_cyst_left", "367643001", "7771000", "64033007"),
        ("lung_nodules", "27925004", None, "39607008"),
        ("kidney tumor right", "108369006", "24028007", "64033007"),
        ("liver_vessels", "59820001", None, "10200004"),
        ("upper_right_central_incisor_fdi11", "422653006", None, None),
        ("Left-Cerebral-White-Matter", "68523003", "7771000", None),
    ],
)
def test_names_of_public_data_sets_have_their_codes(
    name: str, type_: str, modifier: str | None, region: str | None
):
    concept = found(name)
    codes = (concept.type, concept.type_modifier, concept.region)

    assert tuple(code and code.value for code in codes) == (type_, modifier, region)


@pytest.mark.parametrize(
    ("name", "context", "expected"),
    [
        ("Anterior", "Dataset004_Hippocampus", "Hippocampus anterior"),
        ("L", "Hippocampus", "Hippocampus left"),
        ("cancer", "Task06_Lung", "Lung neoplasm"),
        ("edema", "Task01_BrainTumour", "Brain edema"),
        ("Vessel", "HepaticVessel", "Liver vessels"),
        ("liver", "LiverTumor", "Liver"),  # it says all by itself
        ("Tumour", "HepaticVessel", "Liver tumor"),
        ("tumor", "KiTS", "Neoplasm"),
    ],
)
def test_the_name_of_the_data_set_completes_what_a_class_leaves_open(name: str, context: str, expected: str):
    assert found(name, context).label == expected


@pytest.mark.parametrize(
    "name",
    [
        "kidney and mass",
        "prostate/uterus",
        "left and right kidney",
        "L1",
        "L",
        "hippocampus anterior left",
        "",
        "_",
        "masseter_left",
        "spleen left",
        "1",
        "organ",
        "whole tumor",
        "\u809d",
    ],
)
def test_what_cannot_be_coded_exactly_is_unknown(name: str):
    assert anatomy.find(name) is None


ONE_OF_A_KIND = """spleen gallbladder liver stomach pancreas lung_middle_lobe_right esophagus trachea
thyroid_gland small_bowel duodenum colon urinary_bladder prostate sacrum vertebrae_S1 heart aorta
pulmonary_vein brachiocephalic_trunk atrial_appendage_left superior_vena_cava inferior_vena_cava
portal_vein_and_splenic_vein spinal_cord brain skull sternum costal_cartilages"""
ON_BOTH_SIDES = """kidney adrenal_gland lung_upper_lobe lung_lower_lobe kidney_cyst subclavian_artery
common_carotid_artery brachiocephalic_vein iliac_artery iliac_vena humerus scapula clavicula femur hip
gluteus_maximus gluteus_medius gluteus_minimus autochthon iliopsoas"""


def test_all_117_classes_of_the_total_task_of_totalsegmentator_have_codes_of_their_own():
    sides = ("left", "right")
    spine = {"C": 7, "T": 12, "L": 5}
    names = [
        *ONE_OF_A_KIND.split(),
        *(f"{name}_{side}" for name in ON_BOTH_SIDES.split() for side in sides),
        *(f"rib_{side}_{number}" for side in sides for number in range(1, 13)),
        *(f"vertebrae_{part}{number}" for part, last in spine.items() for number in range(1, last + 1)),
    ]
    assert len(names) == 117

    drafted = labels.draft(list(enumerate(names, start=1)))

    assert drafted.unknown == ()
    assert len({(one.type, one.type_modifier, one.region) for one in drafted.segments}) == 117


# --- the draft


def test_a_draft_numbers_the_segments_and_lists_what_is_unknown():
    drafted = labels.draft({0: "background", 1: "spleen", 2: "masseter_left", 4: "aorta"})

    assert [(one.class_index, one.segment_number, one.label) for one in drafted.segments] == [
        (1, 1, "Spleen"),
        (2, 2, "Masseter left"),
        (4, 3, "Aorta"),
    ]
    [unknown] = drafted.unknown
    assert (unknown.class_index, unknown.name, unknown.label) == (2, "masseter_left", "Masseter left")
    assert drafted.segments[1].category == drafted.segments[1].type == labels.UNKNOWN


def test_the_toml_asks_above_each_unknown_segment_and_nowhere_else():
    text = labels.render(labels.draft([(1, "spleen"), (2, 'gizmo "\n\x7f'), (3, "liver")]))

    assert len(re.findall("^# TO COMPLETE", text, re.MULTILINE)) == 1
    after = text.partition("# TO COMPLETE")[2]
    assert after.splitlines()[1:3] == ["[[segments]]", "class_index = 2"]
    assert [one["label"] for one in tomllib.loads(text)["segments"]] == ["Spleen", 'Gizmo "', "Liver"]


def test_labels_are_told_apart_when_names_mean_the_same_or_nothing():
    drafted = labels.draft(
        [(1, "kidney"), (2, "Kidneys"), (3, "KIDNEY"), (4, "\u809d"), (5, "x" * 80), (6, "x" * 81)]
    )

    assert [one.label for one in drafted.segments] == [
        "Kidney",
        "Kidneys",
        "Class 3",
        "Class 4",
        "X" + "x" * 63,
        "Class 6",
    ]


def test_left_and_right_have_the_colours_of_the_table():
    left, right = labels.draft([(1, "kidney_left"), (2, "kidney_right")]).segments

    assert (left.rgb, right.rgb) == ((46, 138, 184), (34, 102, 136))


def test_colours_are_distinct_even_for_one_concept_many_times():
    drafted = labels.draft([(index, f"thing {index}") for index in range(1, 256)])

    assert len({one.rgb for one in drafted.segments}) == 255


@pytest.mark.parametrize("names", [[(1, "a"), (1, "b")], [(-1, "a")]])
def test_classes_that_cannot_be_are_refused(names: list[tuple[int, str]]):
    with pytest.raises(ModelFormatError, match="each once"):
        labels.draft(names)


@given(st.lists(st.text(max_size=90), min_size=1, max_size=12), st.text(max_size=20))
def test_any_names_make_labels_that_a_package_accepts(names: list[str], context: str):
    drafted = labels.draft(list(enumerate(names, start=1)), context=context)

    assert package.parse_labels(labels.render(drafted).encode()) == drafted.segments
