"""The table of docs/writers.md: every writer's fixtures, and what the node makes of them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version as version_of
from pathlib import Path

from pydicom import Dataset

from dicomnode.imaging.images.series import SeriesVolume
from tests.interop.ohif_writer import VERSIONS, Saved, forms_of, write
from tests.interop.other_writers import DCMQI_FORMS, HIGHDICOM_FORMS, can_hold, dcmqi, highdicom
from tests.interop.written import CASES, LABELS, layers_of, mr_of_odd_size, outcome

HEADER = f"| writer | what it wrote | {' | '.join(CASES)} |\n|---|---|{len(CASES) * '---|'}"
NOT_WRITTEN = "–"
Outcomes = tuple[str, ...]


def render(folder: Path) -> str:
    """Let every writer save every case, and list what becomes of it; `folder` is for their files."""
    series = mr_of_odd_size()
    rows = [
        *_adapters(series),
        *_others("dcmqi", dcmqi, DCMQI_FORMS, series, folder),
        *_others("highdicom", highdicom, HIGHDICOM_FORMS, series, folder),
    ]
    return "\n".join([HEADER, *rows])


def _adapters(series: SeriesVolume) -> Iterator[str]:
    """One row for all versions of which the same becomes."""
    alike: dict[tuple[str, Outcomes], list[str]] = defaultdict(list)
    for version in VERSIONS:
        for form, outcomes in _outcomes_of_version(version, series).items():
            alike[form, outcomes].append(version)
    for (form, outcomes), versions in alike.items():
        yield _row(f"Cornerstone adapters {', '.join(versions)} (OHIF)", form, outcomes)


def _outcomes_of_version(version: str, series: SeriesVolume) -> Mapping[str, Outcomes]:
    kinds = [(form, is_descending) for form in forms_of(version) for is_descending in (False, True)]
    saved = [
        Saved(
            series=series,
            layers=layers_of(case, series.image.spatial_shape),
            segments=LABELS,
            form=form,
            is_descending=is_descending,
        )
        for form, is_descending in kinds
        for case in CASES
    ]
    written = iter(write(version, saved))
    return {
        f"{form}, images {'descending' if is_descending else 'ascending'}": tuple(
            outcome(next(written), series, case) for case in CASES
        )
        for form, is_descending in kinds
    }


def _others(
    name: str,
    save: Callable[[SeriesVolume, str, str, Path], Dataset],
    forms: tuple[str, ...],
    series: SeriesVolume,
    folder: Path,
) -> Iterator[str]:
    for at, form in enumerate(forms):
        said = [
            outcome(save(series, case, form, folder / f"{name}-{at}-{number}"), series, case)
            if can_hold(form, case)
            else NOT_WRITTEN
            for number, case in enumerate(CASES)
        ]
        yield _row(f"{name} {version_of(name)}", form, tuple(said))


def _row(writer: str, form: str, outcomes: Outcomes) -> str:
    cells = [outcome.replace("|", "/") for outcome in outcomes]
    return f"| {writer} | {form} | {' | '.join(cells)} |"
