"""The objects that say what was found, in the forms that each destination asks for."""

import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydicom import Dataset

from dicomnode.domain import ResultForm, Sha256
from dicomnode.errors import DicomNodeError, InputError
from dicomnode.imaging.identity import joined_sha256
from dicomnode.imaging.results import rtstruct_write, sc_write, seg_write, sr_write
from dicomnode.imaging.results.findings import Findings, Run

Wanted = Mapping[str, Collection[ResultForm]]
"""Name of a destination -> the forms that it gets."""

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedObject:
    """One object that says what was found, and who is to get it."""

    form: ResultForm
    ds: Dataset
    voxels_sha256: Sha256 | None  # of the labels in it; None where it holds no voxels
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwritten:
    """A form that could not be written; the others were."""

    form: ResultForm
    reason: str  # names no patient
    traceback: str  # "" where the input is at fault and not the program

    @property
    def in_words(self) -> str:
        """For people."""
        return f"no {self.form} was written: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written(Generic[Kept]):
    """What became of the forms of one finding."""

    label_map: Kept  # of all labels
    objects: tuple[Kept, ...]  # the label map first
    unwritten: tuple[Unwritten, ...]


def write(
    findings: Findings, *, run: Run, wanted: Wanted, keep: Callable[[EncodedObject], Kept]
) -> Written[Kept]:
    """Write what was found in every form that is asked for, each object once, and keep it.

    The first object is a label map of all labels. It is what the site keeps and compares corrections
    with, whether or not a destination gets it. When nothing was found no destination gets a segmentation
    or contours; a report and a picture say so.

    A form that cannot be written costs no other one. Of its own objects none is given back then, since
    half of a series says something else than the whole.

    Parameters
    ----------
    keep
        Called with each object as soon as it is made, so that few are in memory.

    Raises
    ------
    PeerError, ResourceError
        What `keep` met; a repeat makes the same objects.
    Exception
        The label map cannot be written.
    """
    label_map = seg_write.encode_label_map(findings, run=run)
    takers = _takers(ResultForm.LABEL_MAP, wanted) if findings.found else ()
    kept = keep(_object(ResultForm.LABEL_MAP, label_map, takers, findings))
    writing = _Writing(findings=findings, run=run, wanted=wanted, keep=keep, kept=[kept])
    references: dict[ResultForm, tuple[Dataset, ...]] = {ResultForm.LABEL_MAP: (label_map,)}
    references[ResultForm.SEG] = writing.attempt(
        ResultForm.SEG, lambda: seg_write.encode_binary(findings, run=run)
    )
    writing.attempt_reports(references)
    writing.attempt(ResultForm.RTSTRUCT, lambda: _contours(findings, run))
    writing.attempt(ResultForm.SC, lambda: sc_write.encode(findings, run=run))
    return Written(label_map=kept, objects=tuple(writing.kept), unwritten=tuple(writing.unwritten))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Writing(Generic[Kept]):
    """The forms of one finding as they are written, one after the other."""

    findings: Findings
    run: Run
    wanted: Wanted
    keep: Callable[[EncodedObject], Kept]
    kept: list[Kept]
    unwritten: list[Unwritten] = field(default_factory=list)

    def attempt(self, form: ResultForm, encode: Callable[[], Iterable[Dataset]]) -> tuple[Dataset, ...]:
        """Encode and keep all objects of a form that somebody takes, or none; gives those kept."""
        takers = _takers(form, self.wanted)
        return self._attempt(form, lambda: ((ds, takers) for ds in encode())) if takers else ()

    def attempt_reports(self, references: Mapping[ResultForm, tuple[Dataset, ...]]) -> None:
        """Give each destination a report on those segmentations that it has too."""
        self._attempt(ResultForm.SR, lambda: self._reports(references))

    def _reports(
        self, references: Mapping[ResultForm, tuple[Dataset, ...]]
    ) -> Iterator[tuple[Dataset, tuple[str, ...]]]:
        by_reference: dict[ResultForm | None, list[str]] = {}
        for name in _takers(ResultForm.SR, self.wanted):
            has = [f for f in (ResultForm.SEG, ResultForm.LABEL_MAP) if f in self.wanted[name]]
            has = [f for f in has if references[f]]
            by_reference.setdefault(has[0] if has and self.findings.found else None, []).append(name)
        for form, names in by_reference.items():
            segs = references[form] if form else ()
            yield sr_write.encode(self.findings, run=self.run, segs=segs), tuple(names)

    def _attempt(
        self, form: ResultForm, encode: Callable[[], Iterable[tuple[Dataset, tuple[str, ...]]]]
    ) -> tuple[Dataset, ...]:
        made: list[Dataset] = []
        kept: list[Kept] = []
        try:
            for ds, takers in encode():
                kept.append(self.keep(_object(form, ds, takers, self.findings)))
                made.append(ds)
        except InputError as error:
            self.unwritten.append(Unwritten(form=form, reason=str(error), traceback=""))
        except (DicomNodeError, MemoryError):
            raise
        except Exception as error:  # a fault of ours in one form must not cost the others
            words = f"internal fault: {type(error).__name__}"
            self.unwritten.append(Unwritten(form=form, reason=words, traceback=traceback.format_exc()))
        else:
            self.kept.extend(kept)
            return tuple(made)
        return ()


def _contours(findings: Findings, run: Run) -> tuple[Dataset, ...]:
    contours = rtstruct_write.encode(findings, run=run)
    return (contours,) if contours else ()


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
