"""Findings as pictures: on the grid of the source, at its place, with the labels where they are."""

import numpy as np
import pytest

from dicomnode.imaging.images.series import stack_volume
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.results import sc_write
from dicomnode.imaging.results.findings import Run, measure
from tests.frame_builders import frame_groups, multi_frame, tilted
from tests.imaging_builders import NOW, make_card, make_series, make_volume, part_10, plain_series, reread
from tests.seg_builders import RUN, found_at, found_in

CARD = make_card()  # red and blue
RED, BLUE = (230, 60, 60), (60, 120, 230)


def pictures(findings, run=RUN):
    return [reread(ds) for ds in sc_write.encode(findings, run=run)]


def is_coloured(ds):
    rgb = ds.pixel_array.astype(int)
    return np.ptp(rgb, axis=2) > 20


def test_a_labelled_slice_is_drawn_on_exactly_the_grid_of_its_source():
    sources = plain_series((4, 5, 6))
    _, picture = pictures(found_at(sources, CARD, [(2, 1, 3), (2, 1, 4)]))

    assert (picture.Rows, picture.Columns) == (5, 6)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        assert np.allclose(picture[keyword].value, sources[2][keyword].value, atol=1e-9)
    assert picture.FrameOfReferenceUID == sources[2].FrameOfReferenceUID
    assert picture.PatientOrientation == ["L", "P"]
    (source,) = picture.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == sources[2].SOPInstanceUID
    assert np.argwhere(is_coloured(picture)).tolist() == [[1, 3], [1, 4]]


def test_labels_have_the_colours_of_the_card():
    _, picture = pictures(found_at(plain_series((4, 5, 6)), CARD, [(2, 1, 3)], [(2, 4, 5)]))

    assert np.allclose(picture.pixel_array[1, 3], RED, atol=13)  # an outline is nearly opaque
    assert np.allclose(picture.pixel_array[4, 5], BLUE, atol=13)


def test_the_inside_of_a_label_lets_the_image_through():
    labels = np.zeros((3, 12, 12), np.uint8)
    labels[1, 2:10, 2:10] = 1
    values = np.zeros((3, 12, 12), np.uint16)
    values[1, 6:] = 1000
    _, picture = pictures(found_in(make_series(make_volume(values)), labels, CARD))

    dark, bright = picture.pixel_array[4, 5], picture.pixel_array[7, 5]

    assert (bright.astype(int) - dark > 100).all()
    assert dark[0] > dark[2] + 20


def test_every_labelled_slice_follows_the_overview_in_the_order_of_the_stack():
    sources = plain_series((6, 5, 6))
    first, *others = pictures(found_at(sources[::-1], CARD, [(4, 1, 1), (0, 1, 1)], [(2, 3, 3)]))

    assert [ds.InstanceNumber for ds in (first, *others)] == [1, 2, 3, 4]
    assert [ds.ImagePositionPatient[2] for ds in others] == [30.0, 34.0, 38.0]
    assert len({ds.SeriesInstanceUID for ds in (first, *others)}) == 1
    assert len({ds.SOPInstanceUID for ds in (first, *others)}) == 4
    assert "all labelled slices follow" in first.DerivationDescription


def test_of_many_labelled_slices_sixty_are_drawn_and_it_is_said():
    labels = np.zeros((130, 4, 4), np.uint8)
    labels[5:, 1, 1] = 1
    values = np.zeros((130, 4, 4), np.uint16)
    first, *others = pictures(found_in(make_series(make_volume(values)), labels, CARD))

    assert len(others) == 60
    assert "60 of 125 labelled slices follow, evenly spread" in first.DerivationDescription
    places = [float(ds.ImagePositionPatient[2]) for ds in others]
    assert (places[0], places[-1]) == (30 + 2 * 5, 30 + 2 * 129)
    assert np.ptp(np.diff(places)) == pytest.approx(2)  # one slice more or less


def test_when_nothing_was_found_one_picture_says_so():
    (only,) = pictures(found_at(plain_series(), CARD))

    assert "Nothing was found" in only.DerivationDescription
    rgb = only.pixel_array.astype(int)
    assert ((rgb[..., 0] > 200) & (rgb[..., 2] < 130)).sum() > 200  # the sentence, in amber


def test_the_overview_lies_nowhere_in_the_patient():
    overview, _ = pictures(found_at(plain_series(), CARD, [(1, 1, 1)]))

    assert "ImagePositionPatient" not in overview
    assert "FrameOfReferenceUID" not in overview
    assert overview.Columns >= 560


def test_pictures_say_that_nobody_verified_them_and_that_words_are_burned_in():
    for ds in pictures(found_at(plain_series(), CARD, [(1, 1, 1)])):
        assert "not verified" in ds.SeriesDescription
        assert "not verified" in ds.ImageComments
        assert ds.BurnedInAnnotation == "YES"
        assert ds.ConversionType == "WSD"
        assert ds.ImageType == ["DERIVED", "SECONDARY"]
        assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_large_slices_carry_words_and_small_ones_none():
    def words(size):
        values = np.zeros((3, size, size), np.uint16)
        labels = np.zeros((3, size, size), np.uint8)
        labels[1, size // 2, size // 2] = 1
        _, picture = pictures(found_in(make_series(make_volume(values)), labels, CARD))
        return np.count_nonzero(picture.pixel_array.max(axis=2) > 100)

    assert words(100) == 1
    assert words(256) > 200


def test_no_word_of_the_patient_is_drawn():
    labels = np.zeros((3, 256, 256), np.uint8)
    labels[1, 100:120, 100:120] = 1
    sources = make_series(make_volume(np.zeros((3, 256, 256), np.uint16)))
    named = [reread(source) for source in sources]
    for source in named:
        source.PatientName, source.PatientID = "Quite^Another", "4711"

    one, other = pictures(found_in(sources, labels, CARD)), pictures(found_in(named, labels, CARD))

    assert [ds.PixelData for ds in one] == [ds.PixelData for ds in other]


def test_a_multi_frame_source_is_referred_to_by_frame():
    pixels = np.arange(4 * 30, dtype=np.uint16).reshape(4, 5, 6)
    image = multi_frame([frame_groups((0, 0, 8.0 - 2 * k)) for k in range(4)], pixels)
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 2, 2] = 1  # the lowest plane, which is the last frame

    _, picture = pictures(found_in([image], labels, CARD))

    assert picture.SourceImageSequence[0].ReferencedFrameNumber == 4
    assert picture.ImagePositionPatient == [0, 0, 2]


def test_pictures_of_a_tilted_gantry_lie_on_the_received_planes_and_say_what_it_is():
    sources = tilted(6)
    series = stack_volume(only_stack(sources))
    labels = np.ones(series.image.shape, np.uint8)
    findings = measure(series.image.with_array(labels), series=series, card=CARD)

    overview, *others = pictures(findings)

    assert [ds.ImagePositionPatient for ds in others] == [ds.ImagePositionPatient for ds in sources]
    assert "tilt" in overview.ImageComments


def test_the_window_of_the_image_is_used_where_it_shows_something():
    def grey(**window):
        values = np.tile(np.arange(100, dtype=np.uint16), (3, 10, 1))
        labels = np.zeros(values.shape, np.uint8)
        labels[1, 0, 0] = 1
        sources = make_series(make_volume(values))
        for source in sources:
            for keyword in ("WindowCenter", "WindowWidth"):
                setattr(source, keyword, window.get(keyword))
        _, picture = pictures(found_in(sources, labels, CARD))
        return picture.pixel_array[5, :, 0].astype(int)

    named = grey(WindowCenter=40.5, WindowWidth=41)  # 20 is black, 60 white (PS3.3 C.11.2.1.2.1)
    assert (named[20], named[40], named[60]) == (0, pytest.approx(127.5, abs=1), 255)
    spread = grey()
    assert np.array_equal(grey(WindowCenter=40000, WindowWidth=200), spread)  # nothing lies in it
    assert np.array_equal(grey(WindowCenter=2000, WindowWidth=4000), spread)  # all of it nearly black


def test_an_inverted_image_is_shown_inverted():
    values = np.tile(np.arange(100, dtype=np.uint16), (3, 10, 1))
    sources = make_series(make_volume(values))
    for source in sources:
        source.PhotometricInterpretation = "MONOCHROME1"
    labels = np.zeros(values.shape, np.uint8)
    labels[1, 0, 0] = 1

    _, picture = pictures(found_in(sources, labels, CARD))

    assert picture.pixel_array[5, 2, 0] > picture.pixel_array[5, 90, 0]


def test_what_was_lossy_once_stays_lossy():
    sources = plain_series()
    for source in sources:
        source.LossyImageCompression, source.LossyImageCompressionRatio = "01", "9.5"

    for ds in pictures(found_at(sources, CARD, [(1, 1, 1)])):
        assert (ds.LossyImageCompression, ds.LossyImageCompressionRatio) == ("01", 9.5)


def test_the_same_run_gives_the_same_bytes_and_another_one_other_objects():
    sources = plain_series()
    first, second = (
        sc_write.encode(found_at(datasets, CARD, [(1, 1, 1)]), run=RUN)
        for datasets in (sources, sources[::-1])
    )
    other = pictures(found_at(sources, CARD, [(1, 1, 1)]), Run(created_at=NOW, revision="second"))

    assert [part_10(ds) for ds in first] == [part_10(ds) for ds in second]
    assert not {ds.SOPInstanceUID for ds in other} & {ds.SOPInstanceUID for ds in first}
