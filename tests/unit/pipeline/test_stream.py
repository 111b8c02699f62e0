"""A week of mixed objects: ours are dropped, others' never learned from, and no correction is lost."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import cycle, islice, zip_longest

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset

from dicomnode.domain import CorrectionState, Destination, JobKind, Recognition, ResultForm
from dicomnode.errors import InputError
from dicomnode.pipeline.correct import ingest_correction
from dicomnode.pipeline.segment import segment_series
from dicomnode.settings import CorrectionSettings, RouteSettings
from dicomnode.store.records import CorrectionRecord
from tests import stream_objects as objects
from tests.imaging_builders import reread
from tests.pipeline_builders import (
    BACK,
    FRONT,
    LEASE,
    MODEL,
    Scene,
    mr_series,
    opened_scene,
    put_into_use,
    tiny_weights,
    write_tiny,
)
from tests.stream_objects import LABELS, Entry, Fate, Masks, Source, Writer

SEED = 20260304
SERIES = 40
TILTED, TWO_STACKS = 38, 39
TILT_MM = 0.6
OHIF = Writer(manufacturer="", model="", algorithm_type="MANUAL", form="LABELMAP")
OHIF_LOADED = replace(OHIF, algorithm_type="AUTOMATIC", algorithm=MODEL)
OHIF_BITMAP = replace(OHIF, form="BINARY")
DCMQI = "https://github.com/QIICR/dcmqi.git"
SLICER = Writer(manufacturer="QIICR", model=DCMQI, algorithm=MODEL)
READER = Writer(manufacturer="A viewer", model="With a brush", algorithm_type="MANUAL")
EDITOR = replace(READER, algorithm_type="SEMIAUTOMATIC", algorithm="Threshold brush")
PLANNING = Writer(manufacturer="Planning GmbH", model="Contours", algorithm_type="MANUAL")


# A site with forty series.


def sent_of(scene: Scene, uid: str) -> dict[ResultForm, Dataset]:
    result = scene.tools.store.results.latest_for_series(uid)
    assert result is not None
    stored = {one.form: scene.tools.store.series.instance(one.sop_instance_uid) for one in result.objects}
    return {form: scene.tools.spool.read([one])[0] for form, one in stored.items() if one is not None}


def source_of(
    scene: Scene, series: Sequence[Dataset], *, tilt_mm: float = 0.0, earlier: dict | None = None
) -> Source:
    sent = sent_of(scene, series[0].SeriesInstanceUID)
    seg = hd.seg.Segmentation.from_dataset(sent[ResultForm.SEG])
    images = [ds for ds in series if ds.Rows == seg.Rows]
    pixels = seg.get_pixels_by_source_instance(
        [ds.SOPInstanceUID for ds in images], assert_missing_frames_are_empty=True
    )
    masks = {str(one.SegmentLabel): pixels[..., number] > 0 for number, one in enumerate(seg.SegmentSequence)}
    return Source(images=images, prediction=masks, sent=sent, earlier=earlier or {}, tilt_mm=tilt_mm)


def sending_every_form(scene: Scene) -> Scene:
    """The same site with a destination that takes results in every form that holds labels, and reports."""
    forms = (ResultForm.SEG, ResultForm.LABEL_MAP, ResultForm.RTSTRUCT, ResultForm.SR)
    pacs = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=1, results=forms)
    return scene.with_changes(
        routes=(RouteSettings(name="tiny", model=MODEL, several_stacks="best"),),
        corrections=CorrectionSettings(trusted_ae_titles=("CHIEF",)),
        destinations={"pacs": pacs},
    )


def prepared(scene: Scene) -> list[Source]:
    """Forty series: one tilted, one of two stacks, three segmented by an earlier version first."""
    every = [mr_series(number, patient_id=f"PAT-{number}") for number in range(SERIES)]
    every[TILTED] = objects.tilted(every[TILTED], TILT_MM)
    every[TWO_STACKS] = objects.with_a_scout(every[TWO_STACKS])
    for series in every[:3]:
        scene.segment(series)
    earlier = [sent_of(scene, series[0].SeriesInstanceUID) for series in every[:3]]
    scene.use(tiny_weights(seed=7))
    for series in every[:3]:
        scene.tools.store.series.force(series[0].SeriesInstanceUID, now=scene.clock())
        segment_series(scene.claim(JobKind.SEGMENT_SERIES), scene.tools)
    for series in every[3:]:
        scene.segment(series)
    tilts = [TILT_MM * (number == TILTED) for number in range(SERIES)]
    pairs = zip_longest(every, earlier, tilts)
    return [source_of(scene, series, tilt_mm=tilt, earlier=before) for series, before, tilt in pairs]


# What comes, kind by kind. Each maker gives the object and what is drawn in it.

Made = tuple[Dataset, Masks]
Make = Callable[[Source, np.random.Generator], Made]

ACME = Writer(manufacturer="ACME Medical", model="ACME AI", algorithm="AcmeSeg")
TOTAL = Writer(manufacturer="QIICR", model=DCMQI, algorithm="TotalSegmentator")
DEPLOY = Writer(manufacturer="MONAI Consortium", model="MONAI Deploy App SDK", algorithm="Hippocampus net")
CONTOURING = Writer(manufacturer="Contour AI", model="Cloud", algorithm="Contour AI 3")
OURS = f"AI {MODEL} 0123456789ab (not verified)"
LIVER = {FRONT: "Liver", BACK: "Spleen"}


def drawn(by: Writer, *labels: str, order: Sequence[str] = LABELS) -> Make:
    """Edit ours and write it, all labels or some."""

    def make(source: Source, generator: np.random.Generator) -> Made:
        masks = objects.edited(source.prediction, generator, *labels)
        return objects.write_seg(source, masks, by, order=order), masks

    return make


def then(make: Make, change: Callable[[Dataset, Source], Dataset]) -> Make:
    def both(source: Source, generator: np.random.Generator) -> Made:
        ds, masks = make(source, generator)
        return change(ds, source), masks

    return both


def of_dcmjs(make: Make, *, has_frame_content: bool = False) -> Make:
    return then(make, lambda ds, _: objects.as_dcmjs(ds, has_frame_content=has_frame_content))


def naming(make: Make, keyword: str) -> Make:
    return then(make, lambda ds, source: objects.naming_ours(ds, keyword, source))


def painted(by: Writer, draw: Callable[[Source, np.random.Generator], Masks]) -> Make:
    def make(source: Source, generator: np.random.Generator) -> Made:
        masks = draw(source, generator)
        return objects.write_seg(source, masks, by), masks

    return make


def ours(source: Source, generator: np.random.Generator) -> Masks:
    return source.prediction


def reversed_slices(source: Source, generator: np.random.Generator) -> Masks:
    return {label: mask[::-1] for label, mask in source.prediction.items()}


def contours(by: Writer) -> Make:
    def make(source: Source, generator: np.random.Generator) -> Made:
        masks = objects.edited(source.prediction, generator)
        return objects.write_contours(source, masks, by), masks

    return make


def emptied(source: Source, generator: np.random.Generator) -> Made:
    """Back was erased, and is listed without a voxel."""
    masks = objects.edited(source.prediction, generator, FRONT)
    masks[BACK] = np.zeros_like(masks[FRONT])
    ds = objects.write_seg(source, masks, OHIF)
    return objects.as_dcmjs(ds, has_frame_content=False), masks


def other_organs(by: Writer) -> Make:
    def make(source: Source, generator: np.random.Generator) -> Made:
        masks = objects.edited(source.prediction, generator)
        return objects.write_seg(source, masks, by, named=LIVER), {}

    return make


def elsewhere(form: ResultForm, change: Callable[[Dataset], Dataset] = objects.as_sent) -> Make:
    def make(source: Source, generator: np.random.Generator) -> Made:
        masks = objects.edited(source.prediction, generator)
        return change(objects.by_another_node(source, masks, form)), masks

    return make


CORRECTIONS: dict[str, Make] = {
    "OHIF label map": of_dcmjs(drawn(OHIF)),
    "OHIF label map, type as loaded": of_dcmjs(drawn(OHIF_LOADED)),
    "OHIF bitmap": of_dcmjs(drawn(OHIF_BITMAP), has_frame_content=True),
    "OHIF, saved to the series": naming(
        then(of_dcmjs(drawn(OHIF), has_frame_content=True), objects.in_our_series),
        "PredecessorDocumentsSequence",
    ),
    "OHIF, Back emptied": emptied,
    "Slicer, renumbered": drawn(SLICER, order=(BACK, FRONT)),
    "Slicer, Front alone": drawn(SLICER, FRONT),
    "Slicer, Back alone": drawn(SLICER, BACK),
    "our Tracking UIDs": then(drawn(EDITOR, order=(BACK, FRONT)), objects.with_tracking),
    "predecessor": naming(drawn(READER), "PredecessorDocumentsSequence"),
    "our series": then(drawn(READER), objects.in_our_series),
    "in place": then(drawn(EDITOR), objects.in_place),
    "label map in place": then(of_dcmjs(drawn(OHIF_LOADED)), objects.in_place),
    "fractional": drawn(replace(READER, form="FRACTIONAL")),
    "structure set": contours(PLANNING),
    "structure set, type as loaded": contours(replace(PLANNING, algorithm_type="AUTOMATIC", algorithm=OURS)),
}
UNCHANGED: dict[str, Make] = {
    "OHIF": of_dcmjs(painted(OHIF, ours)),
    "Slicer": painted(SLICER, ours),
    "a viewer": painted(READER, ours),
}
FOREIGN: dict[str, Make] = {
    "AI, like ours": drawn(ACME),
    "AI, unlike ours": painted(ACME, objects.anew),
    "dcmqi": drawn(TOTAL),
    "dcmqi label map": drawn(replace(TOTAL, form="LABELMAP")),
    "dcmqi label map with background": then(
        drawn(replace(TOTAL, form="LABELMAP")), lambda ds, _: objects.with_background(ds)
    ),
    "MONAI Deploy": drawn(DEPLOY),
    "fractional": drawn(replace(ACME, form="FRACTIONAL")),
    "loaded in OHIF": of_dcmjs(drawn(replace(TOTAL, form="LABELMAP"))),
    "structure set": contours(CONTOURING),
    "structure set, unnamed algorithm": contours(replace(CONTOURING, algorithm="")),
    "our voxels, other algorithm": painted(ACME, ours),
    "other organs, AI": other_organs(ACME),
    "other organs, by hand": other_organs(READER),
}
DERIVED: dict[str, Make] = {
    "AI that names ours as its source": naming(drawn(ACME), "ReferencedInstanceSequence"),
    "AI that keeps our Tracking UIDs": then(drawn(ACME), objects.with_tracking),
}
OTHER_NODES: dict[str, Make] = {
    "seg": elsewhere(ResultForm.SEG),
    "label map": elsewhere(ResultForm.LABEL_MAP),
    "seg, all UIDs": elsewhere(ResultForm.SEG, objects.coerced_throughout),
    "label map, elements dropped": elsewhere(ResultForm.LABEL_MAP, objects.without_what_archives_drop),
    "seg, no serial number": elsewhere(ResultForm.SEG, objects.without_serial_number),
    "structure set": elsewhere(ResultForm.RTSTRUCT),
}


def entries(
    group: str,
    makers: dict[str, Make],
    sources: Sequence[Source],
    count: int,
    generator: np.random.Generator,
    *fates: Fate,
    sender: str = "VIEWER",
    doubt: str = "",
) -> Iterator[Entry]:
    """Make so many objects of a group, each kind in turn, each on a series of its own choice."""
    for kind, make in islice(cycle(makers.items()), count):
        source = sources[generator.integers(len(sources))]
        ds, masks = make(source, generator)
        yield Entry(
            kind=f"{group}: {kind}",
            source=source,
            ds=ds,
            fates=frozenset(fates),
            drawn=masks,
            sender=sender,
            doubt=doubt,
        )


def stream_of(sources: Sequence[Source], generator: np.random.Generator) -> list[Entry]:
    """Five hundred objects in any order; some come twice."""
    plain = [source for source in sources if objects.is_plain(source)]
    lessons = [
        *entries("correction", CORRECTIONS, plain, 104, generator, Fate.KEPT),
        *entries("unchanged", UNCHANGED, sources, 16, generator, Fate.KEPT),
        *entries(
            "drawing",
            {"of the chief": painted(READER, objects.anew)},
            sources,
            4,
            generator,
            Fate.KEPT,
            sender="CHIEF",
        ),
    ]
    mirrored, stranger = (
        {"reversed": painted(READER, reversed_slices)},
        {"of a stranger": painted(READER, objects.anew)},
    )
    others = [
        *objects.loop_backs(sources, 200),
        *objects.moved_objects(sources[:12]),
        *entries("another node", OTHER_NODES, plain, 12, generator, Fate.HELD, Fate.FOREIGN, sender="NODE"),
        *entries("foreign", FOREIGN, plain, 122, generator, Fate.FOREIGN, sender="AI"),
        *entries("derived", DERIVED, plain, 10, generator, Fate.HELD, Fate.FOREIGN, sender="AI"),
        *entries("mirrored", mirrored, sources, 6, generator, Fate.HELD, doubt="reverse order"),
        *entries("drawing", stranger, sources, 6, generator, Fate.HELD, doubt="trusted_ae_titles"),
    ]
    once = [*(objects.dated(entry, generator) for entry in lessons), *others]
    twice = [entry for entry in once if Fate.REFUSED not in entry.fates]
    again = [twice[index] for index in generator.choice(len(twice), 8, replace=False)]
    stream = [*once, *again]
    generator.shuffle(stream)  # type: ignore[arg-type]  # a list is taken
    return stream


# What becomes of it.


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    entry: Entry
    fates: frozenset[Fate]  # expected
    found: Fate
    record: CorrectionRecord | None
    came: datetime
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Week:
    scene: Scene
    sources: list[Source]
    outcomes: list[Outcome]
    misread: list[str]  # kept, but the case was not what had been drawn by then

    def table(self) -> str:
        """Expected x found, for people."""
        counts = Counter((o.entry.kind, "/".join(sorted(o.fates)), o.found) for o in self.outcomes)
        lines = [
            f"{n:4}  {kind:45}  {wanted:28}  {found}" for (kind, wanted, found), n in sorted(counts.items())
        ]
        return "\n".join(["", *lines])


def taken_in(scene: Scene, entry: Entry, *, is_known: bool) -> Outcome:
    """Receive an object and read it."""
    scene.later(1)
    came = scene.clock()
    fates = frozenset({Fate.NOTHING}) if is_known else entry.fates
    scene.receive([entry.ds], sender=entry.sender)
    job = scene.tools.store.jobs.claim(came, kinds={JobKind.INGEST_CORRECTION}, owner="worker", lease=LEASE)
    if job is None:
        return Outcome(entry=entry, fates=fates, found=Fate.NOTHING, record=None, came=came)
    try:
        ingest_correction(job, scene.tools)
    except InputError as error:
        scene.tools.store.jobs.set_aside(job, now=came, reason=str(error))
        return Outcome(
            entry=entry, fates=fates, found=Fate.REFUSED, record=None, came=came, reason=str(error)
        )
    record = scene.tools.store.corrections.of_instance(int(job.subject))
    assert record is not None, f"{entry.kind}: {scene.tools.store.jobs.get(job.id)}"
    return Outcome(entry=entry, fates=fates, found=fate_of(record), record=record, came=came)


def fate_of(record: CorrectionRecord) -> Fate:
    match record.state, record.recognition:
        case CorrectionState.KEPT, _:
            return Fate.KEPT
        case CorrectionState.HELD, _:
            return Fate.HELD
        case CorrectionState.RECORDED, Recognition.LOOP_BACK:
            return Fate.DROPPED
        case CorrectionState.RECORDED, Recognition.FOREIGN:
            return Fate.FOREIGN
    raise AssertionError(f"{record.recognition} is {record.state}")


def expected_labels(source: Source, lessons: Sequence[Outcome], shape: tuple[int, ...]) -> np.ndarray:
    """What a case says: of each label the drawing that was made last, else our prediction."""
    ordered = sorted(lessons, key=lambda one: one.entry.made or one.came)
    last = {label: one for one in ordered for label in one.entry.drawn}
    labels = np.zeros(source.prediction[FRONT].shape, np.uint8)
    for label in reversed(LABELS):
        if label not in last:
            labels[source.prediction[label]] = LABELS.index(label) + 1
    for one in ordered:
        for label in reversed(LABELS):
            if last.get(label) is one:
                labels[one.entry.drawn[label]] = LABELS.index(label) + 1
    return objects.on_grid(labels, source.tilt_mm, shape)


def week_of(scene: Scene) -> Week:
    sources = prepared(scene)
    week = Week(scene=scene, sources=sources, outcomes=[], misread=[])
    known: set[int] = set()
    for entry in stream_of(sources, np.random.default_rng(SEED)):
        outcome = taken_in(scene, entry, is_known=id(entry) in known)
        known.add(id(entry))
        week.outcomes.append(outcome)
        if outcome.found is Fate.KEPT:
            week.misread.extend(difference(week, outcome))
    return week


def difference(week: Week, outcome: Outcome) -> Iterator[str]:
    """Say where the case of a series is not what has been drawn on it so far."""
    assert outcome.record is not None
    lessons = lessons_of(week, outcome.entry.source)
    case = week.scene.tools.casebook.read(str(outcome.record.case_id))
    wanted = expected_labels(outcome.entry.source, lessons, case.labels.shape)
    if not np.array_equal(case.labels, wanted):
        yield f"{outcome.entry.kind}: {np.count_nonzero(case.labels != wanted)} voxels differ"
    known = {label for one in lessons for label in one.entry.drawn}
    if set(case.labels_known) != known:
        yield f"{outcome.entry.kind}: {case.labels_known} are known, expected {known}"


def lessons_of(week: Week, source: Source) -> list[Outcome]:
    """What should have been learned from of a series, so far."""
    return [one for one in week.outcomes if one.entry.source is source and one.fates == {Fate.KEPT}]


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Week]:
    """A site with forty series, and five hundred objects that came."""
    with opened_scene(tmp_path_factory.mktemp("stream") / "site") as scene:
        yield week_of(sending_every_form(scene))


def test_every_loop_back_of_the_stream_is_dropped(week, record_property):
    record_property("confusion", week.table())
    backs = [one for one in week.outcomes if one.entry.fates <= {Fate.DROPPED, Fate.NOTHING}]
    moved = [one for one in week.outcomes if Fate.REFUSED in one.entry.fates]

    assert len(week.outcomes) == 500
    assert len(backs) >= 200
    assert [one.entry.kind for one in backs if one.found not in one.fates] == [], week.table()
    assert len(moved) == 12
    assert {one.found for one in moved} <= {Fate.REFUSED, Fate.DROPPED}, week.table()
    assert all(one.record is None or one.record.case_id is None for one in (*backs, *moved))


def test_nothing_that_others_made_is_learned_from(week):
    foreign = [one for one in week.outcomes if Fate.FOREIGN in one.entry.fates]

    assert len(foreign) >= 130
    assert [one.entry.kind for one in foreign if one.found is Fate.KEPT] == [], week.table()
    assert [one.entry.kind for one in foreign if one.found not in one.fates] == [], week.table()


def test_no_correction_of_a_reader_is_lost_and_each_is_kept_voxel_by_voxel(week):
    lessons = [one for one in week.outcomes if one.fates == {Fate.KEPT}]

    assert len(lessons) >= 120
    assert [(one.entry.kind, one.reason) for one in lessons if one.found is not Fate.KEPT] == [], week.table()
    assert week.misread == []


def test_what_a_person_must_see_is_held_with_the_reason(week):
    doubtful = [one for one in week.outcomes if one.fates == {Fate.HELD}]

    assert len(doubtful) >= 12
    assert {one.found for one in doubtful} == {Fate.HELD}, week.table()
    for one in doubtful:
        assert one.entry.doubt in " ".join(one.record.doubts), one.entry.kind


def test_the_casebook_holds_the_cases_that_were_drawn_and_no_other(week):
    casebook = week.scene.tools.casebook
    wanted = {}
    for source in week.sources:
        lessons = lessons_of(week, source)
        if lessons:
            wanted[lessons[-1].record.case_id] = (source, lessons)

    assert {info.case_id for info in casebook.cases(model_name=MODEL)} == set(wanted)
    for case_id, (source, lessons) in wanted.items():
        case = casebook.read(case_id)
        np.testing.assert_array_equal(case.labels, expected_labels(source, lessons, case.labels.shape))


def test_what_comes_twice_changes_nothing(week):
    again = [one for one in week.outcomes if one.fates == {Fate.NOTHING} and one.entry.fates != one.fates]

    assert len(again) >= 5
    assert {one.found for one in again} == {Fate.NOTHING}, week.table()


@pytest.mark.parametrize("way", ["all UIDs", "elements dropped", "no serial number"])
def test_results_of_the_model_before_are_dropped_too_whatever_uids_they_come_back_under(scene, way):
    series = mr_series()
    site = sending_every_form(scene)
    site.segment(series)
    before = sent_of(site, series[0].SeriesInstanceUID)
    other = write_tiny(site.folder / "other", name="other", tensors=tiny_weights(seed=7))
    put_into_use(site.tools.store, site.tools.shelf.install(other.folder), now=site.clock())
    moved = site.with_changes(routes=(RouteSettings(name="other", model="other"),))
    moved.tools.store.series.force(series[0].SeriesInstanceUID, now=site.clock())
    segment_series(moved.claim(JobKind.SEGMENT_SERIES), moved.tools)

    for form in objects.SENT:
        back = objects.coerced_throughout(objects.WAYS_BACK[way](reread(before[form])))
        assert moved.correct(back, sender="PACS").recognition is Recognition.LOOP_BACK, form
