"""Which right and wrong corrections are doubted, beside a good model and beside weak ones.

    python experiments/learning/suspicion.py [--cases 44] [--work DIR] [--out DIR]

The shipped model segments cases that it never saw; the truth is judged as the correction of each result, and
corrections made wrong on purpose. Weak models are the same on noisy images, and its results eroded by one
voxel or moved by two. Each seed draws 20 references and judges the others: with fixed limits alone, with the
20, and with 4 of them made wrong. --work keeps results, --out gets ``suspicion.json`` and ``suspicion.md``.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from scipy import ndimage

from dicomnode.ml.evaluation import suspicion
from dicomnode.ml.evaluation.disagreement import CaseFigures, SuspectCase, measure
from dicomnode.ml.inference import engine
from dicomnode.ml.model import package
from dicomnode.ml.training import dataset
from dicomnode.ml.training.dataset import LabelledCase
from dicomnode.ml.training.order import PretrainRecipe
from dicomnode.ml.training.splits import SplitCase, split_cases

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "models" / "hippocampus"
DATA = Path(os.environ.get("DICOMNODE_DATA", REPOSITORY.parent / "shared" / "data")) / "hippocampus"
CLASSES = 3
REFERENCES = 20
KINDS = ("right", "swapped", "shifted", "eroded", "dilated")
MODELS = ("shipped", "eroded", "moved", "noisy")
SEEDS = (0, 1, 2)
KNOWLEDGE = ("none", "right", "mixed")
NOISE = 2.0  # standard deviations of the image

Labels = NDArray[np.uint8]
Judgment = tuple[str, str, str, float, tuple[str, ...]]  # knowledge, kind, case, weight, reasons


def main() -> None:
    """Segment, judge, and write the tables."""
    options = _options()
    cases = unseen(options.cases)
    weights = package.read(MODEL).card.weights_sha256
    dice, shares, alarms = {}, {}, {}
    for name in MODELS:
        predictions = predictions_of(name, cases, options.work / weights[:16])
        dice[name] = round(float(np.mean([_dice(predictions[one.name], one.labels) for one in cases])), 4)
        rows = [row for seed in SEEDS for row in judged(cases, predictions, np.random.default_rng(seed))]
        shares[name] = {
            knows: {kind: _share([row for row in rows if row[:2] == (knows, kind)]) for kind in KINDS}
            for knows in KNOWLEDGE
        }
        alarms[name] = sorted({row[1:] for row in rows if row[1] == "right" and row[3] < 0.5})
    result = {"weights_sha256": weights, "cases": len(cases), "references": REFERENCES, "seeds": SEEDS}
    result |= {"dice": dice, "below_one_half": shares, "false_alarms": alarms}
    lines = ["| model | Dice | references | " + " | ".join(KINDS) + " |", "|---" * (3 + len(KINDS)) + "|"]
    for name, by_knowledge in shares.items():
        for knows, by_kind in by_knowledge.items():
            figures = " | ".join(f"{share:.1%}" for share in by_kind.values())
            lines.append(f"| {name} | {dice[name]:.3f} | {knows} | {figures} |")
    said = f"{len(cases)} unseen cases, {REFERENCES} references, {len(SEEDS)} seeds, weights {weights[:16]}"
    text = f"Share of corrections with a weight below one half ({said}).\n\n" + "\n".join(lines) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "suspicion.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.out / "suspicion.md").write_text(text, encoding="utf-8")
    print(text)


def unseen(count: int) -> list[LabelledCase]:
    """Read the cases that the shipped model did not train on: its hold-out, then its validation cases."""
    usual = PretrainRecipe()
    read = {source.name: source.read() for source in dataset.open_folder(DATA, classes=CLASSES).cases}
    split = split_cases(
        [SplitCase(name=case.name, stratum=case.stratum) for case in read.values()],
        hold_out_fraction=usual.hold_out_fraction,
        validation_fraction=usual.validation_fraction,
        generator=np.random.default_rng(usual.seed),
    )
    return [read[name] for name in (*split.hold_out, *split.validation)[:count]]


def predictions_of(name: str, cases: Sequence[LabelledCase], work: Path) -> dict[str, Labels]:
    """Segment all cases with one of the models; what was segmented before is read."""
    if name in ("eroded", "moved"):
        shipped = predictions_of("shipped", cases, work)
        spoil = (lambda one: _eroded(one, 1)) if name == "eroded" else (lambda one: _moved(one, (0, 2, 0)))
        return {case: spoil(one) for case, one in shipped.items()}
    work.mkdir(parents=True, exist_ok=True)
    model = engine.load(package.read(MODEL), device="cpu")
    found = {}
    for number, case in enumerate(cases):
        path = work / f"{name}_{case.name}.npy"
        if not path.is_file():
            prediction = engine.predict(model, _worse(case.image, name, np.random.default_rng(number))).array
            np.save(path, prediction)
            print(f"{name}: {number + 1} of {len(cases)}", flush=True)
        found[case.name] = np.load(path)
    return found


def _worse(image: Volume, name: str, generator: np.random.Generator) -> Volume:
    sd = NOISE * float(image.array.std()) if name == "noisy" else 0.0
    return image.with_array((image.array + generator.normal(0, sd, image.array.shape)).astype(np.float32))


def judged(
    cases: Sequence[LabelledCase], predictions: dict[str, Labels], generator: np.random.Generator
) -> list[Judgment]:
    """Judge each kind of correction of the cases that are not drawn as references."""
    names = [str(name) for name in generator.permutation([case.name for case in cases])]
    figures: dict[str, dict[str, CaseFigures]] = {kind: {} for kind in KINDS}
    for case in cases:
        for kind, correction in corrections(case.labels, generator):
            figures[kind][case.name] = _measure(case, correction, predictions[case.name])
    trusted, others = names[:REFERENCES], names[REFERENCES:]
    kinds = ["right"] * (REFERENCES - len(KINDS) + 1) + list(generator.permutation(KINDS[1:]))
    mixed = [figures[kind][name] for kind, name in zip(kinds, trusted, strict=True)]
    references = {
        "none": None,
        "right": suspicion.references_of(figures["right"][name] for name in trusted),
        "mixed": suspicion.references_of(mixed),
    }
    return [
        (knows, kind, name, round(one.weight, 3), one.reasons)
        for kind in KINDS
        for name in others
        for knows, usual in references.items()
        for one in [suspicion.judge(name, figures[kind][name], references=usual)]
    ]


def corrections(truth: Labels, generator: np.random.Generator) -> Iterator[tuple[str, Labels]]:
    """Give the truth and what mistakes of handling would make of it."""
    along = generator.permutation([1, 0, 0]) * generator.choice([-5, -4, -3, 3, 4, 5])
    yield "right", truth
    yield "swapped", np.array([0, 2, 1], np.uint8)[truth]
    yield "shifted", _moved(truth, tuple(along))
    yield "eroded", _eroded(truth, 2)
    yield "dilated", _dilated(truth, 2)


def _eroded(labels: Labels, voxels: int) -> Labels:
    found = np.zeros_like(labels)
    for index in range(1, CLASSES):
        found[ndimage.binary_erosion(labels == index, iterations=voxels)] = index
    return found


def _dilated(labels: Labels, voxels: int) -> Labels:
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(distance <= voxels, labels[tuple(nearest)], 0).astype(np.uint8)


def _moved(labels: Labels, voxels: Sequence[int]) -> Labels:
    return np.asarray(ndimage.shift(labels, voxels, order=0), np.uint8)


def _measure(case: LabelledCase, correction: Labels, prediction: Labels) -> CaseFigures:
    slices, rows, columns = case.image.spacing
    given = SuspectCase(
        case_id=case.name,
        image=case.image.array,
        correction=correction,
        prediction=prediction,
        slice_weights=np.ones((CLASSES - 1, len(correction)), np.float32),
        spacing_mm=(slices, rows, columns),
    )
    return measure(given)


def _dice(one: Labels, other: Labels) -> float:
    pairs = [(one == index, other == index) for index in range(1, CLASSES)]
    return float(np.mean([2 * (a & b).sum() / max(a.sum() + b.sum(), 1) for a, b in pairs]))


def _share(rows: Sequence[Judgment]) -> float:
    return round(float(np.mean([weight < 0.5 for _, _, _, weight, _ in rows])), 4)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=44, help="44 are unseen")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "output" / "suspicion")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.cases <= REFERENCES:
        parser.error(f"more than {REFERENCES} cases are needed: so many are references")
    return options


if __name__ == "__main__":
    main()
