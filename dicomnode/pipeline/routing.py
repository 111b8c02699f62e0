"""Which model takes a series, and where its result goes: the first route whose conditions all hold."""

from collections.abc import Sequence

from dicomnode.errors import UnsupportedSeriesError
from dicomnode.imaging.series import SeriesVolume
from dicomnode.settings import RouteSettings


def choose_route(series: SeriesVolume, routes: Sequence[RouteSettings]) -> RouteSettings:
    """Find the route of a series.

    Raises
    ------
    UnsupportedSeriesError
        No route takes the series; the message gives the reason of each.
    """
    refusals = []
    for route in routes:
        objection = _objection(series, route)
        if objection is None:
            return route
        refusals.append(f"route {route.name!r}: {objection}")
    uid = series.sources[0].SeriesInstanceUID
    raise UnsupportedSeriesError(
        f"series {uid}: no model takes it ({'; '.join(refusals) or 'no route is configured'})"
    )


def _objection(series: SeriesVolume, route: RouteSettings) -> str | None:
    """Why a route does not take the series, in words; None when it does."""
    modality = str(series.sources[0].get("Modality", ""))
    slices = series.image.spatial_shape[0]
    extent = max(n * mm for n, mm in zip(series.image.spatial_shape, series.image.spacing, strict=True))
    if modality not in route.modality:
        return f"modality is {modality or 'absent'}, wanted {' or '.join(sorted(route.modality))}"
    if slices < route.minimum_slices:
        return f"{slices} slices, at least {route.minimum_slices} wanted"
    if route.maximum_extent_mm is not None and extent > route.maximum_extent_mm:
        return f"longest edge is {extent:.0f} mm, at most {route.maximum_extent_mm:.0f} mm wanted"
    return None
