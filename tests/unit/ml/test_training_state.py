"""A training on disk: a checkpoint is whole or absent, and what is read is what was written."""

from pathlib import Path

import pytest
import torch

from dicomnode.errors import InputError
from dicomnode.ml.training import checkpoints
from dicomnode.ml.training.checkpoints import CHECKPOINT_FILE, Checkpoint, Progress
from dicomnode.ml.training.fit import Batch
from dicomnode.ml.training.history import EpochRecord, write_csv
from dicomnode.ml.training.objective import from_scratch
from dicomnode.ml.training.pace import OPTIMISERS
from dicomnode.ml.training.run import Method, Run, fresh
from tests.pretrain_builders import ALONE, small_stage

RECORD = EpochRecord(
    epoch=1,
    steps=5,
    loss=0.1 + 0.2,
    validation_loss=0.25,
    dice={"Front": 0.5, "Back": None},
    learning_rate=0.01,
    seconds=12.5,
)
PROGRESS = Progress(steps=7, seconds=1 / 3, losses=(0.1, 0.7), history=(RECORD,))


def checkpoint(value: float, digest: str = "d") -> Checkpoint:
    tensors = {"weights": {"a": torch.full((3,), value)}, "optimiser-step": {"a": torch.tensor(value)}}
    return Checkpoint(digest=digest, progress=PROGRESS, tensors=tensors)


def test_a_checkpoint_comes_back_exactly_and_replaces_the_one_before(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, checkpoint(1.5))
    checkpoints.write(tmp_path, checkpoint(2.5))

    found = checkpoints.read(tmp_path, digest="d")

    assert found is not None
    assert found.progress == PROGRESS
    assert found.tensors["weights"]["a"].tolist() == [2.5] * 3
    assert float(found.tensors["optimiser-step"]["a"]) == 2.5
    assert len(list((tmp_path / "state").iterdir())) == 2


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert checkpoints.read(tmp_path, digest="d") is None
    checkpoints.write(tmp_path, checkpoint(1))
    checkpoints.remove(tmp_path)
    assert checkpoints.read(tmp_path, digest="d") is None
    assert not (tmp_path / "state").exists()


def test_a_checkpoint_of_something_else_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, checkpoint(1))

    with pytest.raises(InputError, match="other data, another plan, seed or recipe"):
        checkpoints.read(tmp_path, digest="other")
    file = next(tmp_path.glob("state/weights-*"))
    file.write_bytes(file.read_bytes()[:-4] + b"0000")
    with pytest.raises(InputError, match="is damaged"):
        checkpoints.read(tmp_path, digest="d")
    file.unlink()
    with pytest.raises(InputError, match="--no-resume"):
        checkpoints.read(tmp_path, digest="d")
    (tmp_path / CHECKPOINT_FILE).write_text('{"format": "something else"}')
    with pytest.raises(InputError, match="is damaged"):
        checkpoints.read(tmp_path, digest="d")


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_run_that_is_put_back_takes_the_same_steps(name: str, tmp_path: Path) -> None:
    plan, optimiser = small_stage().network, OPTIMISERS[name]
    loss = from_scratch(regions=(), batch_dice=True, shared=False)
    method = Method(loss=loss, optimiser=optimiser, learning_rate=1e-2, average_decay=0.9)
    torch.manual_seed(3)
    batches = [
        Batch(images=torch.randn(2, 1, 8, 8, 8), labels=torch.randint(0, 3, (2, 8, 8, 8), dtype=torch.uint8))
        for _ in range(4)
    ]

    def steps(run: Run, first: int, last: int) -> list[float]:
        return [
            run.step(batches[number], number=number, done=number / 4).loss for number in range(first, last)
        ]

    whole = Run(fresh(plan, seed=0), method, ALONE, seed=0)
    expected = steps(whole, 0, 4)
    first = Run(fresh(plan, seed=0), method, ALONE, seed=0)
    steps(first, 0, 2)
    checkpoints.write(tmp_path, Checkpoint(digest="d", progress=Progress(steps=2), tensors=first.state()))
    second = Run(fresh(plan, seed=9), method, ALONE, seed=0)
    found = checkpoints.read(tmp_path, digest="d")
    assert found is not None
    second.restore(dict(found.tensors), steps=found.progress.steps)

    assert steps(second, 2, 4) == expected[2:]
    for name_of, tensor in whole.result().items():
        assert torch.equal(second.result()[name_of], tensor)


def test_the_mean_of_the_weights_soon_forgets_the_first_ones() -> None:
    loss = from_scratch(regions=(), batch_dice=False, shared=False)
    method = Method(loss=loss, optimiser=OPTIMISERS["sgd"], learning_rate=0.0, average_decay=0.999)
    run = Run(fresh(small_stage().network, seed=0), method, ALONE, seed=0)
    last = run.state()["weights"]
    name = next(iter(last))
    batch = Batch(images=torch.randn(1, 1, 8, 8, 8), labels=torch.zeros(1, 8, 8, 8, dtype=torch.uint8))
    run.step(batch, number=0, done=0)
    run.begin_from({key: tensor + 1 for key, tensor in last.items()})

    run.step(batch, number=1, done=0)

    # The second step takes in 1 - (1 + 1) / (10 + 1) = 9/11 of the new weights.
    torch.testing.assert_close(run.result()[name] - last[name], torch.full_like(last[name], 9 / 11))


def test_the_table_of_epochs_has_a_column_for_each_label(tmp_path: Path) -> None:
    write_csv(tmp_path / "training.csv", [RECORD])

    lines = (tmp_path / "training.csv").read_text().splitlines()

    assert lines == [
        "epoch,steps,loss,validation_loss,dice Front,dice Back,learning_rate,seconds",
        "1,5,0.30000,0.25000,0.5000,,1.000e-02,12.5",
    ]
    assert RECORD.mean_dice == 0.5
