"""OHIF in a headless browser: open a study and a result as a reader does, and see what it holds and draws."""

import base64
import io
import re
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import ConsoleMessage, Locator, Page, sync_playwright

RGB = NDArray[np.uint8]
FrameKey = tuple[str, int]
"""A frame of an image: SOP Instance UID and frame number, from 1."""

FLAGS = (
    *("--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--ignore-gpu-blocklist"),
    *(
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    ),  # WebGL without a graphics card
)
WINDOW = {"width": 1000, "height": 640}
WITHOUT_TOUR = "localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']));"
FRAME = re.compile(r"/instances/([0-9.]+)/frames/([0-9]+)")

DRAWN = """() => {
  if (!window.services || !window.cornerstone) return false;
  const viewports = window.cornerstone.getRenderingEngines().flatMap(engine => engine.getViewports());
  return viewports.length > 0 && viewports.every(viewport => viewport.viewportStatus === 'rendered');
}"""
PAINTED = """() => new Promise(done =>
  requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 250))))"""
OPENED = """() => {
  const { segmentationService, viewportGridService } = window.services;
  const viewportId = viewportGridService.getActiveViewportId();
  return segmentationService.getSegmentationRepresentations(viewportId).length > 0;
}"""
HOLDS = """(number) => {
  const { displaySetService, viewportGridService } = window.services;
  return viewportGridService.getDisplaySetsUIDsForViewport(viewportGridService.getActiveViewportId())
    .some(uid => Number(displaySetService.getDisplaySetByUID(uid).SeriesNumber) === number);
}"""
VIEWPORT = """const id = window.services.viewportGridService.getActiveViewportId();
  const viewport = window.services.cornerstoneViewportService.getCornerstoneViewport(id);"""
SEGMENTS = f"""() => {{
  {VIEWPORT}
  return window.services.segmentationService.getSegmentationRepresentations(id).flatMap(shown =>
    Object.values(window.services.segmentationService.getSegmentation(shown.segmentationId).segments)
      .filter(Boolean).map(segment => ({{
        number: segment.segmentIndex,
        label: segment.label,
        rgb: Array.from(window.cornerstoneTools.segmentation.config.color.getSegmentIndexColor(
          id, shown.segmentationId, segment.segmentIndex)).slice(0, 3).map(Math.round),
      }})));
}}"""
MASKS = """() => window.services.segmentationService.getSegmentations().flatMap(segmentation => {
  const labelmap = segmentation.representationData.Labelmap;
  if (!labelmap) return [];  // contours
  const layers = labelmap.labelmaps ? Object.values(labelmap.labelmaps) : [labelmap];
  return layers.flatMap(layer => layer.imageIds).map(imageId => {
    const image = window.cornerstone.cache.getImage(imageId);
    return {
      source: image.referencedImageId, rows: image.rows, columns: image.columns,
      voxels: Uint8Array.from(image.voxelManager.getScalarData()).toBase64(),
    };
  });
})"""
SHOW = f"""async (frame) => {{
  {VIEWPORT}
  const index = viewport.getImageIds().findIndex(imageId => imageId.includes(frame));
  if (index < 0) throw new Error(`no image ${{frame}} in the viewport`);
  await viewport.setImageIdIndex(index);
  viewport.render();
}}"""
SHOWN = f"""() => {{ {VIEWPORT} return viewport.getCurrentImageId(); }}"""
TO_CANVAS = (
    f"""(points) => {{ {VIEWPORT} return points.map(point => Array.from(viewport.worldToCanvas(point))); }}"""
)
TAKE_BRUSH = f"""(number) => {{
  {VIEWPORT}
  const {{ segmentationService }} = window.services;
  segmentationService.setActiveSegment(segmentationService.getActiveSegmentation(id).segmentationId, number);
  window.commandsManager.run('setToolActive', {{ toolName: 'CircularBrush' }});
}}"""
SIZE_BRUSH = """(radius) =>
  window.commandsManager.run('setBrushSize', { value: radius, toolNames: ['CircularBrush'] })"""
WRITE = f"""(changes) => {{
  {VIEWPORT}
  const segmentation = window.services.segmentationService.getActiveSegmentation(id);
  const images = segmentation.representationData.Labelmap.imageIds
    .map(imageId => window.cornerstone.cache.getImage(imageId));
  for (const {{ frame, voxels }} of changes) {{
    const values = images.find(one => one.referencedImageId.includes(frame)).voxelManager.getScalarData();
    for (const [index, value] of voxels) values[index] = value;
  }}
  window.cornerstoneTools.segmentation.triggerSegmentationEvents
    .triggerSegmentationDataModified(segmentation.segmentationId);
}}"""
SAVE = f"""() => {{
  {VIEWPORT}
  const {{ segmentationId }} = window.services.segmentationService.getActiveSegmentation(id);
  window.commandsManager.run({{
    commandName: 'storeSegmentation',
    commandOptions: {{ segmentationId, modality: 'SEG' }},
    context: 'CORNERSTONE',
  }});
}}"""
SHOWS = f"""(description) => {{
  {VIEWPORT}
  const {{ displaySetService, viewportGridService }} = window.services;
  return viewport?.viewportStatus === 'rendered' && viewportGridService.getDisplaySetsUIDsForViewport(id)
    .some(uid => displaySetService.getDisplaySetByUID(uid).SeriesDescription === description);
}}"""
STROKE_STEPS = 12
STROKE_PAUSE_MS = 40
PANEL_SETTLES_MS = 1000  # the panel sets a radius of its own when the brush becomes active


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A series in the list of the study."""

    modality: str
    description: str
    series_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A segment as the viewer names and colours it."""

    number: int
    label: str
    rgb: tuple[int, int, int]


@dataclass(slots=True, kw_only=True)
class Viewer:
    """One page of a browser with OHIF in it; `problems` is what it complained of since `open_study`."""

    page: Page
    address: str
    problems: list[str] = field(default_factory=list)

    def open_study(self, study_instance_uid: str, *, mode: str = "viewer") -> None:
        """Open a study and wait until its images are drawn; only the mode "segmentation" lets one edit."""
        self.page.goto("about:blank")
        self.problems.clear()
        self.page.goto(f"{self.address}/{mode}?StudyInstanceUIDs={study_instance_uid}")
        self.wait_until_drawn()

    def listed(self, series_number: int) -> Listed:
        """Find a series in the list of the study, as it is written there."""
        row = self._row(series_number)
        row.wait_for()
        return Listed(
            modality=row.locator('[data-cy="series-modality-label"]').inner_text(),
            description=row.locator('[data-cy="series-description-label"]').inner_text(),
            series_number=series_number,
        )

    def open_result(self, series_number: int) -> None:
        """Double-click a result in the list, answer "Yes", and wait until it is drawn."""
        self._row(series_number).dblclick()
        self.page.get_by_role("button", name="Yes", exact=True).click()
        self.page.wait_for_function(OPENED)
        self.wait_until_drawn()

    def open_series(self, series_number: int) -> None:
        """Double-click a series in the list, and wait until the active viewport holds it."""
        self._row(series_number).dblclick()
        self.page.wait_for_function(HOLDS, arg=series_number)
        self.page.evaluate(PAINTED)

    def segments(self) -> tuple[Shown, ...]:
        """The segments of what is open, in the viewer's order."""
        found = self.page.evaluate(SEGMENTS)
        return tuple(Shown(number=s["number"], label=s["label"], rgb=tuple(s["rgb"])) for s in found)

    def masks(self) -> dict[FrameKey, NDArray[np.uint8]]:
        """The segment numbers that the viewer holds, (row, column), for each frame of the image."""
        masks: dict[FrameKey, NDArray[np.uint8]] = {}
        for found in self.page.evaluate(MASKS):
            values = np.frombuffer(base64.b64decode(found["voxels"]), np.uint8)
            values = values.reshape(found["rows"], found["columns"])
            key = frame_key(found["source"])
            masks[key] = np.maximum(masks[key], values) if key in masks else values
        return masks

    def show(self, frame: FrameKey) -> None:
        """Turn the active viewport to a frame."""
        self.page.evaluate(SHOW, "/instances/{}/frames/{}".format(*frame))
        self.wait_until_drawn()

    def shown(self) -> FrameKey:
        """The frame in the active viewport."""
        return frame_key(self.page.evaluate(SHOWN))

    def canvas(self) -> RGB:
        """What the active viewport shows, (row, column, 3)."""
        picture = self.page.locator('[data-cy="viewport-pane"] canvas').first.screenshot()
        return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))

    def to_canvas(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where points of patient space, (n, 3) in LPS, lie on the canvas: (n, 2) as x, y in its pixels."""
        return np.asarray(self.page.evaluate(TO_CANVAS, points_mm.tolist()), np.float64)

    def brush(self, number: int, path_mm: NDArray[np.float64], *, radius_mm: float) -> None:
        """Draw a segment with the mouse on the slice that is shown, between two points, (2, 3) in LPS."""
        self.page.evaluate(TAKE_BRUSH, number)
        self.page.wait_for_timeout(PANEL_SETTLES_MS)
        self.page.evaluate(SIZE_BRUSH, radius_mm)
        box = self.page.locator('[data-cy="viewport-pane"] canvas').first.bounding_box()
        assert box is not None
        begin, end = self.to_canvas(path_mm) + np.array([box["x"], box["y"]])
        self.page.mouse.move(*begin)
        self.page.mouse.down()
        for part in np.linspace(0, 1, STROKE_STEPS):
            self.page.mouse.move(*(begin + part * (end - begin)))
            self.page.wait_for_timeout(STROKE_PAUSE_MS)
        self.page.mouse.up()
        self.page.evaluate(PAINTED)

    def write(self, planes: Mapping[FrameKey, NDArray[np.uint8]]) -> None:
        """Give frames of the active segmentation other segment numbers, (row, column), as a tool would."""
        held, changes = self.masks(), []
        for frame, plane in planes.items():
            changed = np.flatnonzero(held[frame] != plane)
            voxels = [[int(index), int(plane.flat[index])] for index in changed]
            changes.append({"frame": "/instances/{}/frames/{}".format(*frame), "voxels": voxels})
        self.page.evaluate(WRITE, changes)
        self.page.evaluate(PAINTED)

    def save(self, description: str) -> None:
        """Save the active segmentation as DICOM SEG in a new series, and wait until the viewer shows it.

        Fails where the archive refuses it.
        """
        self.page.evaluate(SAVE)
        dialog = self.page.get_by_role("dialog")
        dialog.wait_for()
        dialog.get_by_role("combobox").first.click()
        self.page.get_by_role("option").first.click()  # "Create new series"
        dialog.locator("input[type=text], input:not([type])").first.fill(description)
        with self.page.expect_response(lambda answer: answer.request.method == "POST") as stored:
            dialog.get_by_role("button", name="Save").click()
        assert stored.value.status == 200, stored.value.status
        self.page.wait_for_function(SHOWS, arg=description, polling=100)
        self.page.evaluate(PAINTED)

    def messages(self, *, within_s: float = 0.0) -> Sequence[str]:
        """The notices that lie over the page now, or the first that come within a time."""
        notices = self.page.locator("[data-sonner-toast], [role=alert], [role=alertdialog]")
        end = time.monotonic() + within_s
        while not notices.count() and time.monotonic() < end:
            self.page.wait_for_timeout(100)
        return notices.all_inner_texts()

    def wait_until_drawn(self) -> None:
        """Wait until every viewport has drawn its image and the browser has put it on the screen."""
        self.page.wait_for_function(DRAWN, polling=100)
        self.page.evaluate(PAINTED)

    def _row(self, series_number: int) -> Locator:
        return self.page.locator(f'[data-cy^="study-browser-thumbnail"][data-series="{series_number}"]')


def frame_key(image_id: str) -> FrameKey:
    """Read instance and frame from Cornerstone's name of an image."""
    found = FRAME.search(image_id)
    assert found, f"{image_id} names no frame"
    return found[1], int(found[2])


@contextmanager
def browse(chromium: str, address: str, *, limit_s: float = 60.0) -> Generator[Viewer]:
    """Start a headless browser with an empty page for the viewer at `address`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=[*FLAGS])
        page = browser.new_page(viewport=WINDOW)  # type: ignore[arg-type]
        page.set_default_timeout(1000 * limit_s)
        page.add_init_script(WITHOUT_TOUR)
        viewer = Viewer(page=page, address=address)
        _watch(viewer)
        yield viewer
        browser.close()


def _watch(viewer: Viewer) -> None:
    """Note errors of the console and of scripts, failed requests, and requests to anywhere else."""

    def console(message: ConsoleMessage) -> None:
        if message.type == "error":
            viewer.problems.append(f"console: {message.text[:500]}")

    def response(answer: Any) -> None:
        if answer.status >= 400:
            viewer.problems.append(f"HTTP {answer.status}: {answer.request.method} {answer.url}")

    def request(asked: Any) -> None:
        if not asked.url.startswith((viewer.address, "blob:", "data:", "about:")):
            viewer.problems.append(f"asked elsewhere: {asked.url}")

    viewer.page.on("console", console)
    viewer.page.on("pageerror", lambda error: viewer.problems.append(f"script: {str(error)[:500]}"))
    viewer.page.on("response", response)
    viewer.page.on("request", request)
