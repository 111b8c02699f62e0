"""The objects that say what was found, in the forms that each destination asks for."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pydicom import Dataset

from dicomnode.domain import ResultForm, Sha256
from dicomnode.imaging import rtstruct_write, sc_write, seg_write, sr_write
from dicomnode.imaging.findings import Findings, Run
from dicomnode.imaging.identity import joined_sha256

Wanted = Mapping[str, Collection[ResultForm]]
"""Name of a destination -> the forms that it gets."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedObject:
    """One object that says what was found, and who is to get it."""

    form: ResultForm
    ds: Dataset
    voxels_sha256: Sha256 | None  # of the labels in it; None where it holds no voxels
    destinations: tuple[str, ...]


def encode(findings: Findings, *, run: Run, wanted: Wanted) -> tuple[EncodedObject, ...]:
    """Write what was found in every form that is asked for, each object once.

    The first object is a label map of all labels. It is what the site keeps and compares corrections
    with, whether or not a destination gets it. When nothing was found no destination gets a segmentation
    or contours; a report and a picture say so.
    """
    label_map = seg_write.encode_label_map(findings, run=run)
    binary = seg_write.encode_binary(findings, run=run) if _takers(ResultForm.SEG, wanted) else ()
    takers = _takers(ResultForm.LABEL_MAP, wanted) if findings.found else ()
    made = [_object(ResultForm.LABEL_MAP, label_map, takers, findings)]
    made += [_object(ResultForm.SEG, ds, _takers(ResultForm.SEG, wanted), findings) for ds in binary]
    made += _reports(findings, run, wanted, binary=binary, label_map=label_map)
    if contoured := _takers(ResultForm.RTSTRUCT, wanted):
        contours = rtstruct_write.encode(findings, run=run)
        made += [_object(ResultForm.RTSTRUCT, contours, contoured, findings)] if contours else []
    if pictured := _takers(ResultForm.SC, wanted):
        pictures = sc_write.encode(findings, run=run)
        made += [_object(ResultForm.SC, picture, pictured, findings) for picture in pictures]
    return tuple(made)


def _reports(
    findings: Findings, run: Run, wanted: Wanted, *, binary: Sequence[Dataset], label_map: Dataset
) -> list[EncodedObject]:
    """Give each destination a report on those segmentations that it has too."""
    by_reference: dict[ResultForm | None, list[str]] = {}
    for name in _takers(ResultForm.SR, wanted):
        has = [form for form in (ResultForm.SEG, ResultForm.LABEL_MAP) if form in wanted[name]]
        by_reference.setdefault(has[0] if has and findings.found else None, []).append(name)
    segs = {ResultForm.SEG: tuple(binary), ResultForm.LABEL_MAP: (label_map,), None: ()}
    return [
        _object(ResultForm.SR, sr_write.encode(findings, run=run, segs=segs[form]), tuple(names), findings)
        for form, names in by_reference.items()
    ]


def _takers(form: ResultForm, wanted: Wanted) -> tuple[str, ...]:
    return tuple(name for name, forms in wanted.items() if form in forms)


def _object(
    form: ResultForm, ds: Dataset, destinations: tuple[str, ...], findings: Findings
) -> EncodedObject:
    digests = {measure.segment.label: measure.sha256 for measure in findings.found}
    voxels: Sha256 | None = None
    if form is ResultForm.LABEL_MAP:
        voxels = findings.voxels_sha256
    elif form is ResultForm.SEG:
        labels = [str(item.SegmentLabel) for item in ds.SegmentSequence]
        voxels = joined_sha256({label: digests[label] for label in labels})
    return EncodedObject(form=form, ds=ds, voxels_sha256=voxels, destinations=destinations)
