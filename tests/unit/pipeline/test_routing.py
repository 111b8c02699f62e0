"""Which model takes a series, and what is said when none does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydicom import Dataset, dcmread

from dicomnode.conditions import Preference, Range
from dicomnode.domain import Destination, ResultForm
from dicomnode.errors import ConfigError, UnsupportedSeriesError
from dicomnode.imaging.images.stacks import Stack, read_stacks
from dicomnode.pipeline.preferences import rank
from dicomnode.pipeline.rehearse import SeriesPlan, rehearse
from dicomnode.pipeline.routing import Choice, best_of, check_routes, choose, consider
from dicomnode.settings import RouteSettings, load_node_settings
from tests.imaging_builders import make_series, make_volume

PAGE = Path(__file__).resolve().parents[3] / "docs" / "routing.md"


def stack_of(datasets: Sequence[Dataset]) -> Stack:
    (stack,) = read_stacks(datasets)
    return stack


def series(
    slices: int = 10,
    *,
    uid: str = "1.2.3",
    study: str = "1.9",
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    **changes: object,
) -> list[Dataset]:
    """An axial MR series of 12 rows and 14 columns."""
    volume = make_volume(np.zeros((slices, 12, 14), np.uint16), spacing_mm=spacing_mm)
    made = make_series(volume, series_uid=uid)
    for ds in made:
        ds.StudyInstanceUID = study
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return made


def route(name: str = "a", *, where: dict[str, object] | None = None, **keys: object) -> RouteSettings:
    conditions = {"slices": {"min": 2}, **(where or {})}
    return RouteSettings.model_validate(
        {"name": name, "model": "tiny", "where": conditions, **keys}, strict=False
    )


def refusal(datasets: Sequence[Dataset], *routes: RouteSettings, sender: str = "") -> str:
    with pytest.raises(UnsupportedSeriesError) as caught:
        choose([stack_of(datasets)], routes, sender=sender)
    return str(caught.value)


def is_taken(datasets: Sequence[Dataset], *, sender: str = "", **where: object) -> bool:
    return consider([stack_of(datasets)], [route(where=where)], sender=sender)[-1].objection is None


def chosen(datasets: Sequence[Dataset], wanted: RouteSettings) -> Choice:
    return choose([stack_of(datasets)], [wanted], sender="")


def test_the_first_route_that_fits_takes_the_series():
    routes = [route("ct", where={"modality": ["CT"]}), route("first"), route("second")]

    choice = choose([stack_of(series())], routes, sender="")

    assert choice.route.name == "first"
    assert [(one.route.name, one.objection) for one in choice.considered] == [
        ("ct", "modality is MR, wanted CT"),
        ("first", None),
    ]


def test_a_limit_that_is_just_kept_does_not_exclude():
    # 14 columns of 1 mm are the longest edge.
    assert is_taken(series(), slices={"min": 10, "max": 10}, extent_mm={"max": 14.0})


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"modality": ["PT", "CT"]}, "modality is MR, wanted CT or PT"),
        ({"slices": {"min": 11}}, "10 slices, at least 11 wanted"),
        ({"slices": {"min": 20, "max": 40}}, "10 slices, 20 to 40 wanted"),
        ({"extent_mm": {"max": 13.0}}, "longest edge is 14 mm, at most 13 mm wanted"),
        ({"slice_spacing_mm": {"max": 0.8}}, "slice spacing is 1 mm, at most 0.8 mm wanted"),
        ({"pixel_spacing_mm": {"min": 1.25}}, "pixel spacing is 1 mm, at least 1.25 mm wanted"),
        ({"plane": ["sagittal", "coronal"]}, "plane is axial (0° off), wanted coronal or sagittal"),
        ({"body_part": ["BRAIN", "HEAD"]}, "body part is absent, wanted BRAIN or HEAD"),
        ({"vendor": ["GE"]}, "vendor is dicomnode, wanted GE"),
        ({"contrast": True}, "no contrast agent is named, one wanted"),
        ({"echo_time_ms": {"min": 80}}, "echo time is absent, at least 80 ms wanted"),
        ({"b_value": {"max": 50}}, "b-value is absent, at most 50 s/mm² wanted"),
        ({"sender": ["SCANNER*"]}, "sender is unknown, wanted SCANNER*"),
        ({"attributes": {"SeriesDescription": ["!*t1*"]}}, "SeriesDescription is T1, not wanted (!*t1*)"),
        ({"attributes": {"SeriesNumber": {"min": 7}}}, "SeriesNumber is 3, at least 7 wanted"),
        (
            {"attributes": {"EchoTrainLength": {"min": 7}}},
            "EchoTrainLength is absent, at least 7 wanted",
        ),
    ],
)
def test_each_objection_names_the_route_the_value_and_what_was_wanted(where, words):
    said = refusal(series(Manufacturer="dicomnode"), route("whole", where=where))

    assert said == f"series 1.2.3: no model takes it (route 'whole': {words})"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "SECRET^NAME"),
        ("PatientID", "SECRET-7"),
        ("PatientComments", "SECRET words"),
        ("ReferringPhysicianName", "SECRET^DOCTOR"),
        ("AccessionNumber", "SECRET9"),
        ("StudyDate", "20260304"),
        ("RequestedProcedureDescription", "SECRET reason"),
    ],
)
def test_an_objection_never_repeats_who_a_patient_is(keyword, value):
    said = refusal(series(**{keyword: value}), route(where={"attributes": {keyword: ["PHANTOM*"]}}))

    assert f"{keyword} is not shown here, wanted PHANTOM*" in said
    assert value not in said


@pytest.mark.parametrize(
    ("keyword", "value"), [("FlipAngle", [12345] * 500), ("ProtocolName", ["abab"] * 500)]
)
def test_an_objection_does_not_repeat_a_value_that_goes_on_for_pages(keyword, value):
    wanted = {"max": 1} if keyword == "FlipAngle" else ["T1"]

    words = refusal(series(**{keyword: value}), route(where={"attributes": {keyword: wanted}}))

    assert f"{keyword} is {'12345' if keyword == 'FlipAngle' else 'abab'}" in words
    assert "…" in words
    assert len(words) < 300


def test_a_series_without_modality_is_not_taken_for_another():
    assert "modality is absent, wanted MR" in refusal(series(Modality=""), route())


def test_without_routes_the_reason_is_that():
    assert "no route is configured" in refusal(series())


def test_the_kind_that_is_refused_says_what_made_it_so():
    said = refusal(series(ImageType=["DERIVED", "SECONDARY", "MPR"]), route())

    assert "kind is reformatted (Image Type has MPR), wanted image" in said
    assert is_taken(series(ImageType=["DERIVED", "SECONDARY", "MPR"]), kind=["image", "reformatted"])


@pytest.mark.parametrize(
    ("patterns", "fits"),
    [
        (["*t1*"], True),
        (["T1 ?PR*"], True),
        (["T1"], False),
        (["T2*", "T1*"], True),
        (["!*LOC*"], True),
        (["*T1*", "!*mpr*"], False),
        (["T1 MPR [sag]*"], True),  # brackets are only brackets
        (["T1 MPR [s]ag*"], False),
        (["?*"], True),
        ([""], False),
        (["!"], True),
    ],
)
def test_patterns_ignore_case_and_know_only_stars_question_marks_and_exclusion(patterns, fits):
    there = series(SeriesDescription="T1 MPR [sag] 1mm")

    assert is_taken(there, attributes={"SeriesDescription": patterns}) is fits


@pytest.mark.parametrize(("patterns", "fits"), [([""], True), (["!"], False), (["*"], True), (["?*"], False)])
def test_an_absent_attribute_is_the_empty_text(patterns, fits):
    assert is_taken(series(), attributes={"ProtocolName": patterns}) is fits


def test_one_value_of_several_is_enough_to_fit_or_to_exclude():
    there = series(ScanOptions=["FS", "SAT1"])

    assert is_taken(there, attributes={"ScanOptions": ["fs"]})
    assert is_taken(there, attributes={"ScanOptions": ["FS\\SAT1"]})
    assert not is_taken(there, attributes={"ScanOptions": ["*", "!SAT?"]})


def test_every_value_of_several_numbers_must_lie_in_the_range():
    there = series(spacing_mm=(1.0, 0.5, 0.9))

    assert is_taken(there, attributes={"PixelSpacing": {"min": 0.5, "max": 0.9}})
    assert not is_taken(there, attributes={"PixelSpacing": {"min": 0.6}})
    assert not is_taken(there, pixel_spacing_mm={"min": 0.6})
    assert is_taken(there, pixel_spacing_mm={"min": 0.5, "max": 0.9})


def test_a_sender_is_asked_for_by_pattern():
    assert choose([stack_of(series())], [route(where={"sender": ["scanner*"]})], sender="SCANNER7")
    assert "sender is PACS, wanted SCANNER*" in refusal(
        series(), route(where={"sender": ["SCANNER*"]}), sender="PACS"
    )


@given(st.floats(0.01, 100), st.floats(-9e-5, 9e-5))
def test_rounding_of_a_computed_length_does_not_decide(limit, miss):
    assert Range(min=limit).holds(limit * (1 + miss))
    assert Range(max=limit).holds(limit * (1 + miss))
    assert not Range(min=limit).holds(limit * 0.999)
    assert not Range(max=limit).holds(limit * 1.001)


def test_whole_numbers_are_held_against_whole_limits_exactly():
    assert Range(max=10000).holds(10000.0)
    assert not Range(max=10000).holds(10001.0)
    assert not Range(min=20000).holds(19999)
    assert is_taken(series(SeriesNumber=10000), attributes={"SeriesNumber": {"max": 10000}})
    assert not is_taken(series(SeriesNumber=10001), attributes={"SeriesNumber": {"max": 10000}})


@pytest.mark.parametrize(
    "limits", [{"min": float("nan")}, {"max": float("inf")}, {"min": float("inf"), "max": 1}]
)
def test_limits_that_are_no_finite_numbers_are_refused(limits):
    with pytest.raises(ValidationError, match="min and max of a range must be finite"):
        route(where={"extent_mm": limits})


def test_gaps_are_taken_up_to_the_number_that_a_route_allows():
    with_gap = [ds for index, ds in enumerate(series(20)) if index not in (7, 8)]
    stacks = read_stacks(with_gap)

    strict = consider(stacks, [route(maximum_missing_slices=1)], sender="")[-1].objection

    assert strict is not None
    assert strict.startswith("2 slices are missing in one gap")
    assert strict.endswith("at most 1 may be")
    assert choose(stacks, [route(maximum_missing_slices=2)], sender="").facts.missing_slices == 2


def test_a_stack_of_which_no_volume_can_be_made_is_refused_whatever_a_route_allows():
    odd = replace(stack_of(series()), refusal="slices at 0, 1 and 5.5 mm")

    assert consider([odd], [route(maximum_missing_slices=9)], sender="")[-1].objection == odd.refusal


def two_stacks() -> tuple[Stack, Stack]:
    """Two stacks of one series, of 10 and of 12 slices."""
    return stack_of(series(10)), stack_of(series(12))


def test_a_series_of_several_stacks_that_fit_is_refused_unless_the_best_is_asked_for():
    with pytest.raises(
        UnsupportedSeriesError, match='one of 2 stacks that fit, and several_stacks is "refuse"'
    ):
        choose(two_stacks(), [route()], sender="")

    choice = choose(two_stacks(), [route(several_stacks="best")], sender="")

    assert choice.facts.slices == 12
    assert choice.facts.stacks == 2
    assert "10 slices against 12 slices" in str(choice.considered[0].objection)


def test_of_several_stacks_the_one_that_fits_is_taken():
    assert choose(two_stacks(), [route(where={"slices": {"max": 11}})], sender="").facts.slices == 10


def test_the_best_of_a_study_is_named_with_the_reason_of_the_others():
    best = route(per_study="best")
    found = {
        uid: chosen(series(slices, spacing_mm=(mm, 1.0, 1.0), uid=uid), best)
        for uid, slices, mm in [("1.1", 10, 1.0), ("1.2", 10, 0.5), ("1.3", 8, 0.5)]
    }

    assert best_of(found) == (
        "1.2",
        {"1.1": "slices 1 mm apart against slices 0.5 mm apart", "1.3": "8 slices against 10 slices"},
    )


def test_every_preference_that_settings_know_has_a_rank():
    prefer = get_args(Preference)

    assert len(rank(chosen(series(3), route()).facts, prefer)) == len(prefer) >= 13


def test_the_order_of_preferences_decides():
    def winner(*prefer: Preference) -> str:
        wanted = route(prefer=prefer)
        thick, thin = series(12, spacing_mm=(3.0, 1.0, 1.0)), series(10, spacing_mm=(1.0, 1.0, 1.0))
        return best_of({"thick": chosen(thick, wanted), "thin": chosen(thin, wanted)})[0]

    assert winner("most_slices", "thinnest_slices") == "thick"
    assert winner("thinnest_slices", "most_slices") == "thin"


@pytest.mark.parametrize(
    ("prefer", "better", "worse"),
    [
        ("finest_pixels", {"spacing_mm": (1.0, 0.5, 0.5)}, {"spacing_mm": (1.0, 0.5, 0.6)}),
        ("largest_extent", {"spacing_mm": (2.0, 1.0, 1.0)}, {"spacing_mm": (1.0, 1.0, 1.0)}),
        ("original", {"ImageType": ["ORIGINAL", "PRIMARY"]}, {"ImageType": ["DERIVED", "PRIMARY"]}),
        ("shortest_echo_time", {"EchoTime": "4"}, {"EchoTime": "80"}),
        ("longest_echo_time", {"EchoTime": "80"}, {}),  # unknown comes last in either direction
        ("shortest_echo_time", {"EchoTime": "80"}, {}),
        ("lowest_b_value", {"DiffusionBValue": 0.0}, {"DiffusionBValue": 800.0}),
        ("highest_b_value", {"DiffusionBValue": 800.0}, {"DiffusionBValue": 0.0}),
        ("first_phase", {"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}),
        ("last_phase", {"TemporalPositionIdentifier": 2}, {"TemporalPositionIdentifier": 1}),
    ],
)
def test_each_preference_ranks(prefer, better, worse):
    wanted = route(prefer=(prefer,))
    first, second = (chosen(series(10, **changes), wanted) for changes in (better, worse))

    assert rank(first.facts, (prefer,)) < rank(second.facts, (prefer,))
    winner, reasons = best_of({"1.9": first, "1.1": second})
    assert winner == "1.9"
    assert " against " in reasons["1.1"]


@given(st.permutations(["1.1", "1.2", "1.3", "1.4"]))
def test_the_best_does_not_depend_on_the_order_in_which_series_came(order):
    wanted = route()
    same = {uid: chosen(TWINS[uid], wanted) for uid in order}

    assert best_of(same) == (
        "1.1",
        dict.fromkeys(("1.2", "1.3", "1.4"), "they do not differ; the smaller UID counts"),
    )


TWINS = {uid: series(3, uid=uid) for uid in ("1.1", "1.2", "1.3", "1.4")}


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        (
            {"SeriesDescripton": ["*"]},
            'no DICOM attribute has this keyword; did you mean "SeriesDescription"?',
        ),
        ({"SeriesDescription": {"min": 1}}, "holds no number, so it cannot lie in a range"),
        ({"MREchoSequence": ["*"]}, "is no text; attributes inside sequences cannot be asked for"),
    ],
)
def test_conditions_that_dicom_cannot_meet_are_refused_with_route_and_key(attributes, fault):
    (keyword,) = attributes
    with pytest.raises(ConfigError) as caught:
        check_routes([route("good"), route("odd", where={"attributes": attributes})])

    assert str(caught.value).startswith(f"routes[1].where.attributes.{keyword} (route 'odd'): {fault}")


def test_all_faults_of_the_routes_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        check_routes([route(where={"attributes": {"Nope": ["*"], "PixelData": ["*"]}})])

    assert len(str(caught.value).splitlines()) == 2


def test_the_routes_that_the_documents_show_ask_for_attributes_that_there_are(tmp_path):
    blocks = PAGE.read_text(encoding="utf-8").split("```toml\n")[1:]
    assert len(blocks) >= 4
    for block in blocks:
        (tmp_path / "node.toml").write_text(block.partition("```")[0], encoding="utf-8")
        check_routes(load_node_settings(tmp_path / "node.toml").routes)


PACS = Destination(
    name="pacs", ae_title="PACS", host="192.0.2.1", port=104, results=(ResultForm.SEG, ResultForm.SR)
)


def rehearsed(*routes: RouteSettings, sender: str = "", **found: Sequence[Dataset]) -> dict[str, SeriesPlan]:
    by_uid = {str(datasets[0].SeriesInstanceUID): list(datasets) for datasets in found.values()}
    plans = rehearse(by_uid, routes=routes, destinations={"pacs": PACS}, sender=sender)
    return {plan.series_instance_uid: plan for plan in plans}


def test_a_rehearsal_says_what_would_be_done():
    (plan,) = rehearsed(route("ct", where={"modality": ["CT"]}), route("mr"), mr=series()).values()

    assert plan.taken is not None
    assert (plan.taken.route, plan.taken.model, plan.taken.priority) == ("mr", "tiny", "routine")
    assert plan.taken.destinations == (("pacs", (ResultForm.SEG, ResultForm.SR)),)
    assert [(one.route, one.objection) for one in plan.answers] == [
        ("ct", "modality is MR, wanted CT"),
        ("mr", None),
    ]
    assert (plan.instances, plan.reason, len(plan.stacks)) == (10, "", 1)


def test_a_rehearsal_tells_the_best_series_of_each_study_from_the_others():
    plans = rehearsed(
        route("best", per_study="best"),
        thick=series(8, uid="1.1", study="1.9"),
        thin=series(20, uid="1.2", study="1.9"),
        other=series(8, uid="1.3", study="1.8"),
    )

    assert {uid for uid, plan in plans.items() if plan.taken} == {"1.2", "1.3"}
    assert plans["1.1"].reason == (
        "route best takes only the best of a study, which is 1.2: 8 slices against 20 slices"
    )
    assert plans["1.2"].reason == "the best of 2 series that fit, in this study"


def test_a_rehearsal_keeps_the_reason_of_a_series_that_cannot_be_read():
    (plan,) = rehearsed(route(), odd=series(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.99")).values()

    assert plan.taken is None
    assert plan.stacks == plan.answers == ()
    assert "1.2.3" in plan.reason


def test_stacks_to_which_a_route_says_the_same_are_named_together(data_dir):
    bold = real(data_dir / "enhanced" / "dcm_qa_enh" / "In" / "Siemens" / "XA10")
    stacks = read_stacks(bold)
    assert len(stacks) == 4

    with pytest.raises(UnsupportedSeriesError, match=r"2 and 1 more|3 and 1 more") as caught:
        choose(stacks, [route("t1", where={"slices": {"min": 7}})], sender="")
    (plan,) = rehearsed(route(several_stacks="best", prefer=["last_phase"]), bold=bold).values()

    assert str(caught.value).count("6 slices, at least 7 wanted") == 1
    assert plan.taken is not None
    assert plan.taken.stack == stacks[-1].name
    assert {one.facts.phase for one in consider(stacks, [route()], sender="")} == {1, 2, 3, 4}


def real(folder: Path) -> list[Dataset]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [ds for ds in map(dcmread, files) if "Rows" in ds]


def test_of_a_real_prostate_study_the_axial_series_is_chosen(data_dir):
    study = data_dir / "studies" / "prostatex_0207"
    folders = {folder.name: real(folder) for folder in study.iterdir() if folder.is_dir()}
    assert len(folders) == 3
    prostate = route(where={"plane": ["axial"], "body_part": ["prostate"], "vendor": ["siemens"]})

    plans = rehearsed(prostate, **folders)

    taken = [plan.series_description for plan in plans.values() if plan.taken]
    assert taken == ["t2_tse_tra"]
    said = {plan.series_description: str(plan.answers[0].objection) for plan in plans.values()}
    assert said["t2_tse_cor"].startswith("plane is coronal")
    assert said["t2_tse_sag"].startswith("plane is sagittal")


def test_a_real_pet_series_goes_to_the_route_for_pet_only(data_dir):
    pet = real(data_dir / "studies" / "acrin_nsclc_petct" / "317561081015")
    routes = [
        route("mr"),
        route("pet", where={"modality": ["PT"], "attributes": {"CorrectedImage": ["ATTN"]}}),
    ]

    choice = choose([stack_of(pet)], routes, sender="")

    assert (choice.route.name, choice.facts.slices) == ("pet", 135)


def test_the_real_crops_go_to_the_default_route_and_whole_heads_do_not(data_dir):
    routes = load_node_settings(None).routes
    crop = real(data_dir / "hippocampus_dicom" / "Study1")
    head = real(data_dir / "ge_mprage")

    assert choose([stack_of(crop)], routes, sender="").route.name == "hippocampus"
    assert "longest edge is" in refusal(head, *routes)
