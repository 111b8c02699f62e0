"""What a stack is, as far as header and geometry say it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import RTImageStorage, SecondaryCaptureImageStorage

from dicomnode.domain import ImageKind, Plane
from dicomnode.imaging.images.facts import Facts, facts_of, plane_of, vendor_of
from dicomnode.imaging.images.stacks import read_stacks
from tests.imaging_builders import item, make_series, make_volume


def series(**changes: object) -> list[Dataset]:
    """Four axial MR slices of 5 by 6 pixels, 2 mm apart, with pixels of 0.75 by 0.5 mm."""
    made = make_series(make_volume(np.zeros((4, 5, 6), np.uint16)))
    for ds in made:
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return made


def facts(**changes: object) -> Facts:
    (stack,) = read_stacks(series(**changes))
    return facts_of(stack)


def test_geometry_is_read_from_the_grid():
    found = facts()

    assert (found.modality, found.plane, found.obliquity_deg) == ("MR", Plane.AXIAL, 0.0)
    assert (found.slices, found.rows, found.columns) == (4, 5, 6)
    assert found.slice_spacing_mm == pytest.approx(2.0)
    assert found.pixel_spacing_mm == pytest.approx((0.75, 0.5))
    assert found.extent_mm == pytest.approx(8.0)  # 4 slices of 2 mm; 5 rows of 0.75, 6 columns of 0.5
    assert found.missing_slices == 0
    assert not found.is_multi_frame


@pytest.mark.parametrize(
    ("image_type", "kind"),
    [
        (["ORIGINAL", "PRIMARY"], ImageKind.IMAGE),
        (["DERIVED", "SECONDARY", "AXIAL"], ImageKind.IMAGE),  # any filter makes an image DERIVED
        (["DERIVED", "PRIMARY", "M", "ND", "NORM", "FIL"], ImageKind.IMAGE),
        (["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW", "ND"], ImageKind.IMAGE),
        (["ORIGINAL", "PRIMARY", "T2", "NONE"], ImageKind.IMAGE),  # a weighting, no map
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageKind.LOCALIZER),
        (["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"], ImageKind.LOCALIZER),
        (["DERIVED", "SECONDARY", "MPR"], ImageKind.REFORMATTED),
        (["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"], ImageKind.REFORMATTED),
        (["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"], ImageKind.REFORMATTED),
        (["DERIVED", "SECONDARY", "MPR", "MIP"], ImageKind.PROJECTION),
        (["DERIVED", "SECONDARY", "REFORMATTED", "MIN_IP"], ImageKind.PROJECTION),
        (["DERIVED", "SECONDARY", "VRT"], ImageKind.PROJECTION),
        (["DERIVED", "PRIMARY", "DIFFUSION", "ADC", "ND"], ImageKind.MAP),
        (["DERIVED", "PRIMARY", "T2 MAP", "ND"], ImageKind.MAP),
        (["DERIVED", "PRIMARY", "T2_STAR_MAP"], ImageKind.MAP),
        (["DERIVED", "PRIMARY", "PERFUSION", "QUANTITY"], ImageKind.MAP),
        (["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"], ImageKind.MAP),
        (["DERIVED", "PRIMARY", "M", "ND", "SUB"], ImageKind.SUBTRACTION),
        (["DERIVED", "SECONDARY", "SCREEN SAVE"], ImageKind.SCREEN),
    ],
    ids="/".join,
)
def test_the_kind_follows_image_type_from_its_third_value_on(image_type, kind):
    found = facts(ImageType=image_type)

    assert found.kind is kind
    assert (found.kind_because == "") is (kind is ImageKind.IMAGE)
    assert found.is_derived is (image_type[0] == "DERIVED")


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        ("3-PL LOC", ImageKind.LOCALIZER),
        ("AAHead_Scout", ImageKind.LOCALIZER),
        ("Localizer", ImageKind.LOCALIZER),
        ("LOCALIZED shim T1", ImageKind.IMAGE),
        ("BLOC 1 T2", ImageKind.IMAGE),
    ],
)
def test_a_localizer_that_only_its_description_tells_is_seen(description, kind):
    assert facts(SeriesDescription=description).kind is kind


def test_secondary_captures_are_pictures_of_a_screen_and_other_classes_of_like_number_are_not():
    assert facts(SOPClassUID=SecondaryCaptureImageStorage).kind is ImageKind.SCREEN
    assert facts(SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.6").kind is ImageKind.IMAGE
    assert facts(SOPClassUID=RTImageStorage).kind is ImageKind.IMAGE


@pytest.mark.parametrize(
    ("normal", "plane", "degrees"),
    [
        ((0, 0, -1), Plane.AXIAL, 0),
        ((0, 1, 0), Plane.CORONAL, 0),
        ((-1, 0, 0), Plane.SAGITTAL, 0),
        ((0, 0.6, 0.8), Plane.AXIAL, 36.9),  # 3-4-5 triangle: just enough
        ((0, 0.61, 0.79), Plane.OBLIQUE, 37.7),
        ((1, 1, 1), Plane.OBLIQUE, 54.7),
    ],
)
def test_planes_are_named_by_their_normal(normal, plane, degrees):
    found, angle = plane_of(np.array(normal, float))

    assert found is plane
    assert angle == pytest.approx(degrees, abs=0.06)


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda normal: np.linalg.norm(normal) > 0.1))
def test_no_normal_is_farther_than_55_degrees_from_an_axis(normal):
    plane, degrees = plane_of(np.array(normal))
    opposite = plane_of(-np.array(normal))

    assert 0 <= degrees <= 54.8
    assert opposite == (plane, degrees)
    assert (plane is Plane.OBLIQUE) is (degrees > 36.9) or degrees == pytest.approx(36.9)


@pytest.mark.parametrize(
    ("manufacturer", "vendor"),
    [
        ("GE MEDICAL SYSTEMS", "GE"),
        ("GE Medical Systems", "GE"),
        ("Siemens HealthCare GmbH", "Siemens"),
        ("SIEMENS", "Siemens"),
        ("Philips Medical Systems", "Philips"),
        ("TOSHIBA_MEC", "Canon"),
        ("Canon Medical Systems", "Canon"),
        ("UIH", "United Imaging"),
        ("Imageware", "Imageware"),  # "ge" inside a word is not GE
        ("", ""),
    ],
)
def test_makers_are_known_by_their_short_name(manufacturer, vendor):
    assert vendor_of(manufacturer) == vendor


@pytest.mark.parametrize(
    ("agent", "is_given"),
    [("32 DILUTED OMNI & 120", True), ("GADAVIST", True), ("", False), ("NONE", False), ("no", False)],
)
def test_a_contrast_agent_counts_unless_the_header_says_there_was_none(agent, is_given):
    assert facts(ContrastBolusAgent=agent).has_contrast is is_given


def test_a_coded_contrast_agent_counts():
    assert facts(ContrastBolusAgentSequence=[item(CodeMeaning="Gadobutrol")]).has_contrast
    assert not facts().has_contrast


def test_the_body_part_is_a_word_or_the_name_of_a_code():
    region = item(CodeValue="41216001", CodingSchemeDesignator="SCT", CodeMeaning="Prostate")

    assert facts(BodyPartExamined="HEAD", AnatomicRegionSequence=[region]).body_part == "HEAD"
    assert facts(AnatomicRegionSequence=[region]).body_part == "Prostate"
    assert facts().body_part == ""


def test_numbers_that_the_header_does_not_say_are_none():
    bare = facts()
    said = facts(EchoTime="4.6", DiffusionBValue=800.0, TemporalPositionIdentifier="3")

    assert (bare.echo_time_ms, bare.b_value, bare.phase) == (None, None, None)
    assert (said.echo_time_ms, said.b_value, said.phase) == (4.6, 800.0, 3)


def test_the_line_for_people_names_no_patient_and_says_what_there_is():
    words = facts(
        Manufacturer="SIEMENS", BodyPartExamined="HEAD", EchoTime="4.6", ContrastBolusAgent="GADAVIST"
    ).in_words

    assert words == (
        "MR, axial, 4 slices of 5×6, 2×0.75×0.5 mm, image, HEAD, contrast agent, echo time 4.6 ms, Siemens"
    )


def test_attributes_in_functional_groups_are_those_of_the_frame(data_dir):
    paths = sorted((data_dir / "vendors" / "philips_enhanced" / "anatomical" / "001").rglob("*"))
    stacks = read_stacks([dcmread(path) for path in paths if path.is_file()])
    found = facts_of(stacks[0], stacks=len(stacks))

    assert found.is_multi_frame
    assert (found.modality, found.kind, found.vendor) == ("MR", ImageKind.IMAGE, "Philips")
    assert found.echo_time_ms is not None
    assert found.slice_thickness_mm is not None


def test_a_real_crop_that_calls_itself_derived_is_an_image(data_dir):
    for folder in sorted((data_dir / "hippocampus_dicom").glob("*/*")):
        (stack,) = read_stacks([dcmread(path) for path in folder.iterdir()])
        found = facts_of(stack)
        assert (found.kind, found.is_derived, found.plane) == (ImageKind.IMAGE, True, Plane.AXIAL)
        assert found.extent_mm < 90
