"""Pictures of corrections: kept for those in quarantine, made on demand for the others."""

import io
from pathlib import Path

from PIL import Image

from dicomnode import durable
from dicomnode.imaging.corrections import comparison
from dicomnode.imaging.pictures import difference
from dicomnode.pipeline.reading import Judged, Reading


def draw(reading: Reading, judged: Judged) -> Image.Image:
    """Draw our prediction, what came back and what differs."""
    scores = comparison.compare(judged.prediction, judged.decoded, reading.card)
    return difference.correction_picture(
        reading.series.planes,
        reading.stack,
        prediction=judged.prediction,
        correction=judged.decoded.masks,
        unmapped=judged.decoded.unmapped,
        card=reading.card,
        texts=(
            f"{judged.found.kind.replace('_', ' ')}: {judged.found.reasons[0]}",
            [difference.score_line(score) for score in scores],
            [f"{doubt[:1].upper()}{doubt[1:]}" for doubt in judged.doubts],
        ),
    )


def keep(reading: Reading, judged: Judged, path: Path) -> None:
    """Draw a correction into a file, for the person who decides.

    It shows the patient's anatomy, so that at no moment anybody else than its user may read it.
    """
    buffer = io.BytesIO()
    draw(reading, judged).save(buffer, "PNG")
    with durable.translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, (buffer.getvalue(),), mode=durable.PRIVATE)
        durable.sync_folder(path.parent)


def path_of(instance_id: int, pictures: Path) -> Path:
    """Where the picture of a received file is kept."""
    return pictures / f"correction-{instance_id}.png"
