"""What a version was made of: cases and their digests, the recipe in full, and the machine."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dicomnode import __version__
from dicomnode.domain import ModelOrigin, Sha256
from dicomnode.ml.inference.engine import choose_device
from dicomnode.pipeline.tools import Tools
from dicomnode.store import Store
from dicomnode.store.records import ModelRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What decides, beside recipe and cases, whether a training can be repeated bit by bit."""

    dicomnode: str
    python: str
    torch: str
    platform: str
    threads: int  # of torch, on the CPU
    device: str  # "cpu", or the CUDA device and its name


def with_provenance(
    record: ModelRecord,
    tools: Tools,
    *,
    recipe: Mapping[str, object],
    cases: Mapping[str, Sha256],
    run_folder: Path | None = None,
) -> ModelRecord:
    """Complete the record of a version that was trained in this process.

    Parameters
    ----------
    recipe
        Every setting of it, of types that JSON knows.
    cases
        SHA-256 of the arrays of each case that it learned from, new or shown again, as they were read.
    run_folder
        Where the course of the training stands.
    """
    return replace(
        record,
        case_digests=tuple(sorted(cases.items())),
        recipe_json=json.dumps(recipe),
        environment_json=json.dumps(asdict(environment(tools.shelf.device))),
        run_folder="" if run_folder is None else str(run_folder),
    )


def environment(device: str) -> Environment:
    """Describe this process; ``device`` is named as in the settings."""
    chosen = choose_device(device)
    name = f" ({torch.cuda.get_device_name(chosen)})" if chosen.type == "cuda" else ""
    return Environment(
        dicomnode=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        platform=platform.platform(),
        threads=torch.get_num_threads(),
        device=f"{chosen}{name}",
    )


def learned_from(record: ModelRecord, store: Store) -> dict[str, Sha256 | None]:
    """Collect the cases of this site that a version and those it was made from were trained on.

    The weights of a version that was installed or released come from elsewhere, whatever was in use here
    before it; the search ends there.

    Returns
    -------
        Digest of the arrays by case, as they were at the last training on it; None where it was not kept.
    """
    found: dict[str, Sha256 | None] = {}
    step: ModelRecord | None = record
    while step is not None:
        known: dict[str, Sha256 | None] = {**dict(step.case_digests)} or {**dict.fromkeys(step.case_ids)}
        found = known | found
        made_here = step.origin is ModelOrigin.TRAINED and step.parent is not None
        step = store.models.get(step.parent or "") if made_here else None
    return found
