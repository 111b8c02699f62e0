"""Which model takes a series: the first route whose conditions all hold."""

import pytest

from dicomnode.errors import UnsupportedSeriesError
from dicomnode.imaging.series import to_volume
from dicomnode.pipeline.routing import choose_route
from dicomnode.settings import RouteSettings
from tests.pipeline_builders import mr_series

SERIES = to_volume(mr_series(shape=(10, 12, 14), patient_id="SECRET-7"))


def route(name: str, **conditions: object) -> RouteSettings:
    return RouteSettings.model_validate({"name": name, "model": "tiny", "minimum_slices": 2, **conditions})


def test_the_first_route_that_fits_takes_the_series():
    routes = [route("ct", modality=("CT",)), route("first"), route("second")]

    assert choose_route(SERIES, routes).name == "first"


def test_a_limit_that_is_just_kept_does_not_exclude():
    # 14 columns of 1 mm are the longest edge.
    assert choose_route(SERIES, [route("a", minimum_slices=10, maximum_extent_mm=14.0)]).name == "a"


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"modality": ("PT", "CT")}, "modality is MR, wanted CT or PT"),
        ({"minimum_slices": 11}, "10 slices, at least 11 wanted"),
        ({"maximum_extent_mm": 13.0}, "longest edge is 14 mm, at most 13 mm wanted"),
    ],
)
def test_each_objection_is_said_with_its_route(conditions, words):
    with pytest.raises(UnsupportedSeriesError) as caught:
        choose_route(SERIES, [route("whole", **conditions)])

    assert f"route 'whole': {words}" in str(caught.value)
    assert SERIES.sources[0].SeriesInstanceUID in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_series_without_modality_is_not_taken_for_another():
    series = to_volume(mr_series())
    for ds in series.sources:
        del ds.Modality

    with pytest.raises(UnsupportedSeriesError, match="modality is absent, wanted MR"):
        choose_route(series, [route("a")])


def test_without_routes_the_reason_is_that():
    with pytest.raises(UnsupportedSeriesError, match="no route is configured"):
        choose_route(SERIES, [])
