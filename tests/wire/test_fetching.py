"""Fetching the series that a correction was drawn on, from archives good and bad, over real sockets."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ComprehensiveSRStorage, JPEG2000Lossless, MRImageStorage, generate_uid
from pynetdicom.dsutils import encode

from dicomnode.domain import JobKind, SeriesState
from dicomnode.errors import (
    AssociationError,
    DeliveryError,
    InputError,
    SpoolFullError,
    UnreadableInstanceError,
)
from dicomnode.scp import fetcher, query, sender
from dicomnode.scp.fetcher import Fetched
from dicomnode.scp.query import FIND, GET, MOVE, Archive, Wanted
from dicomnode.spool import Spool
from tests.wire.archives import Pacs
from tests.wire.conftest import Receiver, now
from tests.wire.objects import dicom_files, make_image

StartPacs = Callable[[Pacs], Archive]
COUNT = 4


@pytest.fixture
def start_pacs(free_ports: Callable[[], int]) -> Iterator[StartPacs]:
    with ExitStack() as stack:

        def start(pacs: Pacs) -> Archive:
            port = free_ports()
            stack.callback(pacs.start(port).shutdown)
            return Archive(
                destination=pacs.destination(port),
                ae_title="DICOMNODE",
                answer_timeout_s=5,
                get_timeout_s=2,
                move_timeout_s=4,
            )

        yield start


@pytest.fixture(scope="module")
def images() -> list[Dataset]:
    series_uid, study_uid = generate_uid(), generate_uid()
    made = [make_image(series_uid=series_uid, number=n) for n in range(1, COUNT + 1)]
    for ds in made:
        ds.StudyInstanceUID = study_uid
    return made


def wanted(images: list[Dataset], *, study: bool = True) -> Wanted:
    return Wanted(
        series_instance_uid=images[0].SeriesInstanceUID,
        study_instance_uid=images[0].StudyInstanceUID if study else None,
    )


def fetch(archive: Archive, receiver: Receiver, what: Wanted, **more: object) -> Fetched | None:
    return fetcher.fetch_series(archive, what, spool=receiver.spool, store=receiver.store, now=now, **more)


def where(receiver: Receiver) -> tuple[str, int]:
    return receiver.destination.host, receiver.destination.port


def encoded(ds: Dataset) -> bytes:
    """The data set as it goes over the wire, Explicit VR Little Endian."""
    return bytes(encode(ds, is_implicit_vr=False, is_little_endian=True) or b"")


def assert_fetched(receiver: Receiver, images: list[Dataset], *, state: SeriesState | None = None) -> None:
    series_uid = images[0].SeriesInstanceUID
    held = receiver.store.series.instances_of(series_uid)
    assert {one.sop_instance_uid for one in held} == {ds.SOPInstanceUID for ds in images}
    assert all(receiver.stored_bytes(ds) == encoded(ds) for ds in images)
    row = receiver.store.series.get(series_uid)
    assert row is not None
    assert row.state is (state or SeriesState.SET_ASIDE)
    assert not receiver.store.fetches.is_unfinished(series_uid)
    assert receiver.unfinished() == []


def assert_nothing_is_segmented(receiver: Receiver) -> None:
    receiver.store.series.enqueue_quiet(now() + timedelta(days=1), timedelta(seconds=1))
    assert receiver.store.jobs.list(kind=JobKind.SEGMENT_SERIES) == ()


def test_a_series_comes_by_c_get_and_is_not_segmented(receiver, start_pacs, images):
    pacs = Pacs(images=images)

    fetched = fetch(start_pacs(pacs), receiver, wanted(images))

    assert fetched == Fetched(
        series_instance_uid=images[0].SeriesInstanceUID,
        study_instance_uid=images[0].StudyInstanceUID,
        images=COUNT,
        way="C-GET",
    )
    assert pacs.asked == ["FIND SERIES", "FIND IMAGE", "GET"]
    assert_fetched(receiver, images)
    row = receiver.store.series.get(images[0].SeriesInstanceUID)
    assert row is not None
    assert row.reason == "fetched from pacs for a correction; not segmented"
    assert row.study_instance_uid == images[0].StudyInstanceUID
    assert {one.sender for one in receiver.store.series.instances_of(row.series_instance_uid)} == {"PACS"}
    assert receiver.store.audit.list()[0].event == "series_fetched"
    assert_nothing_is_segmented(receiver)


@pytest.mark.parametrize("models", [(FIND, MOVE), (FIND, GET, MOVE)], ids=["no C-GET", "no roles in C-GET"])
def test_where_c_get_is_refused_the_images_come_by_c_move_through_the_receiver(
    receiver, start_pacs, images, models
):
    pacs = Pacs(images=images, models=models, move_to=where(receiver), takes_roles=False)

    fetched = fetch(start_pacs(pacs), receiver, wanted(images))

    assert fetched is not None
    assert fetched.way == "C-MOVE"
    assert pacs.asked[-1] == "MOVE DICOMNODE"
    assert_fetched(receiver, images)
    assert_nothing_is_segmented(receiver)


def test_an_archive_that_aborts_at_c_get_is_asked_by_c_move(receiver, start_pacs, images):
    pacs = Pacs(images=images, move_to=where(receiver), aborts_get=True)

    fetched = fetch(start_pacs(pacs), receiver, wanted(images))

    assert fetched is not None
    assert fetched.way == "C-MOVE"
    assert_fetched(receiver, images)


@pytest.mark.parametrize("study", [True, False], ids=["study named", "study unknown"])
def test_a_series_that_the_archive_has_not_leaves_nothing_behind(receiver, start_pacs, images, study):
    pacs = Pacs(images=[make_image()])

    assert fetch(start_pacs(pacs), receiver, wanted(images, study=study)) is None

    assert "GET" not in pacs.asked
    assert receiver.store.series.get(images[0].SeriesInstanceUID) is None
    assert receiver.paths() == []


def test_a_series_of_an_unknown_study_is_found(receiver, start_pacs, images):
    assert fetch(start_pacs(Pacs(images=images)), receiver, wanted(images, study=False)).images == COUNT
    assert_fetched(receiver, images)


def test_a_series_that_the_archive_has_in_another_study_is_found(receiver, start_pacs, images):
    what = replace(wanted(images), study_instance_uid=generate_uid())

    fetched = fetch(start_pacs(Pacs(images=images)), receiver, what)

    assert fetched is not None
    assert fetched.study_instance_uid == images[0].StudyInstanceUID


def test_an_archive_that_looks_into_no_unnamed_study_has_not_the_series(receiver, start_pacs, images):
    archive = start_pacs(Pacs(images=images, needs_study=True))

    assert fetch(archive, receiver, replace(wanted(images), study_instance_uid=generate_uid())) is None
    with pytest.raises(DeliveryError, match="C-FIND with 0xA900"):
        fetch(archive, receiver, wanted(images, study=False))


def test_a_series_in_two_studies_is_not_guessed_at(receiver, start_pacs, images):
    twin = make_image(series_uid=images[0].SeriesInstanceUID)
    archive = start_pacs(Pacs(images=[*images, twin]))

    with pytest.raises(InputError, match="in 2 studies"):
        fetch(archive, receiver, wanted(images, study=False))
    assert fetch(archive, receiver, wanted(images)).images == COUNT


def test_an_archive_that_does_not_tell_the_classes_is_offered_every_image_class(receiver, start_pacs, images):
    assert fetch(start_pacs(Pacs(images=images, tells_classes=False)), receiver, wanted(images)) is not None
    assert_fetched(receiver, images)


def test_images_come_in_the_transfer_syntax_in_which_the_archive_keeps_them(receiver, start_pacs, data_dir):
    kept: dict[str, Dataset] = {}
    for path in dicom_files([data_dir / "transfer_syntaxes"]):
        ds = dcmread(path)
        if ds.get("SOPClassUID") in query.IMAGE_CLASSES and ds.file_meta.TransferSyntaxUID.is_compressed:
            kept.setdefault(ds.file_meta.TransferSyntaxUID, ds)
    assert len(kept) >= 4
    for syntax, ds in kept.items():
        fetched = fetch(start_pacs(Pacs(images=[ds])), receiver, wanted([ds]))
        assert fetched is not None
        instance = receiver.store.series.instance(ds.SOPInstanceUID)
        assert instance is not None
        assert instance.transfer_syntax_uid == syntax
        assert dcmread(receiver.spool.path_of(instance)).PixelData == ds.PixelData


def test_an_archive_that_dies_in_the_middle_is_asked_again_later(receiver, start_pacs, images):
    pacs = Pacs(images=images, models=(FIND, GET), dies_after=2)
    archive = start_pacs(pacs)

    with pytest.raises(AssociationError, match=r"pacs \(PACS at 127.0.0.1 port \d+\) ended C-GET"):
        fetch(archive, receiver, wanted(images))

    series_uid = images[0].SeriesInstanceUID
    assert receiver.store.fetches.is_unfinished(series_uid)
    assert_nothing_is_segmented(receiver)
    pacs.dies_after = None
    assert fetch(archive, receiver, wanted(images)) is not None
    assert_fetched(receiver, images)


def test_images_that_come_after_a_c_move_was_cut_off_open_no_series(receiver, start_pacs, images):
    pacs = Pacs(images=images, models=(FIND, MOVE), move_to=where(receiver), dies_after=2)

    with pytest.raises(AssociationError, match="ended C-MOVE"):
        fetch(start_pacs(pacs), receiver, wanted(images))
    sender.send_many(images, receiver.destination, ae_title="PACS")

    assert receiver.store.series.state(images[0].SeriesInstanceUID) is SeriesState.SET_ASIDE
    assert receiver.store.fetches.is_unfinished(images[0].SeriesInstanceUID)


def test_an_instance_of_another_series_is_refused(receiver, start_pacs, images):
    stranger = make_image()
    pacs = Pacs(images=images, models=(FIND, GET), gives=[*images, stranger])

    assert fetch(start_pacs(pacs), receiver, wanted(images)) is not None

    assert_fetched(receiver, images)
    assert receiver.store.series.get(stranger.SeriesInstanceUID) is None
    assert len(receiver.paths()) == COUNT


def test_an_image_under_a_listed_uid_that_is_of_another_series_is_refused(receiver, start_pacs, images):
    liar = make_image(sop_uid=images[-1].SOPInstanceUID)
    pacs = Pacs(images=images, models=(FIND, GET), gives=[*images[:-1], liar])

    with pytest.raises(DeliveryError, match=r"1 of 4 images did not come.*1 objects that were not asked for"):
        fetch(start_pacs(pacs), receiver, wanted(images))

    assert receiver.store.series.get(liar.SeriesInstanceUID) is None
    assert len(receiver.paths()) == COUNT - 1
    assert receiver.store.fetches.is_unfinished(images[0].SeriesInstanceUID)


def test_an_archive_that_gives_a_part_is_not_believed(receiver, start_pacs, images):
    pacs = Pacs(images=images, move_to=where(receiver), gives=images[:2])

    with pytest.raises(DeliveryError, match=r"by C-GET 2 of 4 images.*by C-MOVE 2 of 4 images"):
        fetch(start_pacs(pacs), receiver, wanted(images))

    assert pacs.asked[-2:] == ["GET", "MOVE DICOMNODE"]
    assert receiver.store.fetches.is_unfinished(images[0].SeriesInstanceUID)


def test_an_archive_that_does_not_know_the_node_says_so(receiver, start_pacs, images):
    pacs = Pacs(images=images, models=(FIND, MOVE), move_to=None)

    with pytest.raises(DeliveryError, match=r"0xA801.*check the address that it has for 'DICOMNODE'"):
        fetch(start_pacs(pacs), receiver, wanted(images))

    # Nothing is on its way: what is sent by hand now opens the series.
    sender.send_many(images, receiver.destination, ae_title="PACS")
    assert receiver.store.series.state(images[0].SeriesInstanceUID) is SeriesState.RECEIVING


def test_an_archive_that_only_answers_questions_is_no_use(receiver, start_pacs, images):
    archive = start_pacs(Pacs(images=images, models=(FIND,)))
    for ask in (lambda: fetch(archive, receiver, wanted(images)), lambda: query.check(archive)):
        with pytest.raises(DeliveryError, match="neither C-GET nor C-MOVE"):
            ask()
    assert receiver.store.series.get(images[0].SeriesInstanceUID) is None


@pytest.mark.parametrize("models", [(GET,), ()], ids=["only C-GET", "nothing"])
def test_an_archive_that_takes_no_questions_is_named(receiver, start_pacs, images, models):
    with pytest.raises(DeliveryError, match=r"PACS at 127.0.0.1.*(takes no|does not take).*FIND"):
        fetch(start_pacs(Pacs(images=images, models=models)), receiver, wanted(images))


def test_a_failing_question_is_a_peer_s_fault(receiver, start_pacs, images):
    with pytest.raises(DeliveryError, match="C-FIND with 0xA700"):
        fetch(start_pacs(Pacs(images=images, find_status=0xA700)), receiver, wanted(images))


def test_a_dead_archive_is_a_peer_s_fault(receiver, start_pacs, images, free_port):
    archive = replace(start_pacs(Pacs(images=[])), destination=Pacs.destination(free_port))
    with pytest.raises(AssociationError, match="no TCP connection"):
        fetch(archive, receiver, wanted(images))


def test_an_archive_that_falls_silent_is_given_up(receiver, start_pacs, images):
    pacs = Pacs(images=images, models=(FIND, GET), pause_s=4)
    began = time.monotonic()
    with pytest.raises(AssociationError, match="did not answer in time"):
        fetch(start_pacs(pacs), receiver, wanted(images))
    assert time.monotonic() - began < 4


def test_a_port_that_accepts_and_says_nothing_is_given_up(receiver, start_pacs, images):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        archive = replace(
            start_pacs(Pacs(images=[])),
            destination=Pacs.destination(silent.getsockname()[1]),
            answer_timeout_s=1,
        )
        with pytest.raises(AssociationError, match="did not answer the request"):
            fetch(archive, receiver, wanted(images))


@pytest.mark.parametrize("uid", ["", "*", "1.2.3*", "1.2\\1.3", "?.1", "1" * 65, "../x"])
def test_what_is_no_uid_is_never_asked_for(receiver, start_pacs, uid):
    pacs = Pacs(images=[make_image(), make_image()])
    archive = start_pacs(pacs)
    for what in (Wanted(series_instance_uid=uid), Wanted(series_instance_uid="1.2", study_instance_uid=uid)):
        with pytest.raises(InputError, match="no archive is asked"):
            fetch(archive, receiver, what)
    assert pacs.asked == []


def test_a_series_of_reports_is_not_fetched(receiver, start_pacs):
    report = make_image()
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = ComprehensiveSRStorage

    with pytest.raises(InputError, match="holds no images"):
        fetch(start_pacs(Pacs(images=[report])), receiver, wanted([report]))


def test_a_series_beyond_all_measure_is_not_fetched(receiver, start_pacs, images):
    pacs = Pacs(images=images)
    archive = replace(start_pacs(pacs), maximum_images=COUNT - 1)
    with pytest.raises(InputError, match="more than 3 matches"):
        fetch(archive, receiver, wanted(images))
    assert "GET" not in pacs.asked


def test_a_full_disk_ends_the_fetch_and_nothing_is_recorded(receiver, start_pacs, images, tmp_path):
    full = Spool(tmp_path / "full", minimum_free_bytes=1 << 60)

    with pytest.raises(SpoolFullError):
        fetcher.fetch_series(
            start_pacs(Pacs(images=images)), wanted(images), spool=full, store=receiver.store, now=now
        )

    assert receiver.store.series.instances_of(images[0].SeriesInstanceUID) == []
    assert receiver.store.fetches.is_unfinished(images[0].SeriesInstanceUID)


def test_an_image_that_cannot_be_read_is_kept_apart_and_not_asked_for_again(receiver, start_pacs, images):
    broken = make_image(series_uid=images[0].SeriesInstanceUID)
    broken.StudyInstanceUID = images[0].StudyInstanceUID
    liar = make_image(series_uid=images[0].SeriesInstanceUID)
    liar.SOPInstanceUID = broken.SOPInstanceUID
    liar.StudyInstanceUID = "not a uid"
    pacs = Pacs(images=[*images, broken], gives=[liar, *images])

    with pytest.raises(UnreadableInstanceError, match=r"1 of 5 images .* are in quarantine"):
        fetch(start_pacs(pacs), receiver, wanted(images))

    assert len(receiver.quarantined()) == 1


def test_a_fetch_steps_back_when_the_process_ends(receiver, start_pacs, images):
    with pytest.raises(AssociationError, match="was stopped"):
        fetch(start_pacs(Pacs(images=images)), receiver, wanted(images), should_stop=lambda: True)


def test_a_fetched_series_opens_when_it_is_sent_here_after_all(receiver, start_pacs, images):
    archive = start_pacs(Pacs(images=images))
    fetch(archive, receiver, wanted(images))

    sender.send_many(images, receiver.destination, ae_title="PACS")

    series_uid = images[0].SeriesInstanceUID
    assert receiver.store.series.state(series_uid) is SeriesState.RECEIVING
    assert receiver.store.series.enqueue_quiet(now() + timedelta(minutes=2), timedelta(minutes=1)) == 1
    fetch(archive, receiver, wanted(images))
    assert_fetched(receiver, images, state=SeriesState.QUEUED)


@pytest.mark.parametrize("models", [(FIND, GET), (FIND, MOVE)], ids=["C-GET", "C-MOVE"])
@pytest.mark.parametrize("is_altered", [False, True], ids=["same bytes", "other bytes"])
def test_lost_files_of_a_delivered_series_come_back_and_it_stays_where_it_stands(
    receiver, start_pacs, images, models, is_altered
):
    series_uid = images[0].SeriesInstanceUID
    sender.send_many(images, receiver.destination, ae_title="SCANNER")
    receiver.store.series.enqueue_quiet(now() + timedelta(minutes=2), timedelta(minutes=1))
    receiver.store.series.set_state(series_uid, SeriesState.DELIVERED, now=now())
    for path in receiver.paths():
        path.unlink()
    held = [ds.copy() for ds in images]
    if is_altered:
        for ds in held:
            ds.AccessionNumber = "coerced"

    pacs = Pacs(images=held, models=models, move_to=where(receiver))
    fetched = fetch(start_pacs(pacs), receiver, wanted(images))

    assert fetched is not None
    assert_fetched(receiver, held, state=SeriesState.DELIVERED)
    assert len(receiver.store.jobs.list(kind=JobKind.SEGMENT_SERIES)) == 1


def test_two_fetches_of_one_series_at_once_do_no_harm(receiver, start_pacs, images):
    archive = start_pacs(Pacs(images=images))
    found: list[Fetched | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(archive, receiver, wanted(images))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one is not None and one.images for one in found] == [COUNT] * 3
    assert_fetched(receiver, images)


def test_the_check_says_how_an_archive_gives_images(start_pacs, images):
    assert query.check(start_pacs(Pacs(images=images))).endswith(
        "answers C-FIND and gives images by C-GET, else C-MOVE; for C-MOVE it must know where 'DICOMNODE' is"
    )
    assert query.check(start_pacs(Pacs(images=[], models=(FIND, GET)))).endswith("gives images by C-GET")


def test_every_class_is_offered_within_the_limit_of_an_association():
    for classes in ([MRImageStorage], sorted(query.IMAGE_CLASSES)[:3], sorted(query.IMAGE_CLASSES)):
        contexts = fetcher._storage_contexts(classes)
        assert len(contexts) <= 127
        offered = {(c.abstract_syntax, s) for c in contexts for s in c.transfer_syntax}
        assert offered == {(c, s) for c in classes for s in fetcher.SYNTAXES}
    assert JPEG2000Lossless in fetcher.SYNTAXES
