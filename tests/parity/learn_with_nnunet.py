"""Take nnU-Net's own losses and random changes on given arrays, for the parity tests.

Run by the interpreter that has nnunetv2: ``learn_with_nnunet.py FOLDER``. ``FOLDER/given.npz`` has scores,
labels and images; ``FOLDER/found.npz`` gets what nnU-Net makes of them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

IGNORED = 255


def class_loss(given: dict[str, np.ndarray], *, batch_dice: bool, has_unknown: bool) -> list[np.ndarray]:
    loss = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        ignore_label=IGNORED if has_unknown else None,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    scores = torch.from_numpy(given["scores"]).requires_grad_()
    labels = torch.from_numpy(given["unknown" if has_unknown else "labels"].astype(np.int64))[:, None]
    value = loss(scores, labels)
    value.backward()
    return [value.detach().numpy(), scores.grad.numpy()]


def region_loss(given: dict[str, np.ndarray], *, batch_dice: bool) -> list[np.ndarray]:
    loss = DC_and_BCE_loss(
        {},
        {"batch_dice": batch_dice, "do_bg": True, "smooth": 1e-5, "ddp": False},
        use_ignore_label=False,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    scores = torch.from_numpy(given["scores"][:, :2]).contiguous().requires_grad_()
    labels = torch.from_numpy(given["labels"])
    value = loss(scores, torch.stack([labels > 0, labels == 2], dim=1))
    value.backward()
    return [value.detach().numpy(), scores.grad.numpy()]


def deep_loss(given: dict[str, np.ndarray]) -> np.ndarray:
    loss = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    outputs = [torch.from_numpy(given[f"deep{level}"]) for level in range(3)]
    labels = torch.from_numpy(given["labels"].astype(np.float32))[:, None]
    truths = [torch.nn.functional.interpolate(labels, one.shape[2:], mode="nearest-exact") for one in outputs]
    weights = np.array([1, 0.5, 0])
    return DeepSupervisionWrapper(loss, weights / weights.sum())(outputs, truths).numpy()


def changed(given: dict[str, np.ndarray], kind: str, seed: int) -> list[np.ndarray]:
    patch, rotation, is_flat, axes, masks = {
        "solid": ((16, 16, 16), np.pi / 6, False, (0, 1, 2), None),
        "masked": ((16, 16, 16), np.pi / 6, False, (0, 1, 2), [True]),
        "thick": ((4, 16, 16), np.pi, True, (0, 1, 2), None),
        "flat": ((16, 16), np.pi, False, (0, 1), None),
    }[kind]
    changes = nnUNetTrainer.get_training_transforms(
        patch, (-rotation, rotation), None, axes, is_flat, use_mask_for_norm=masks
    )
    for one in changes.transforms:  # see the comment in dicomnode.ml.training.nnunet_transforms
        if hasattr(one, "transform") and hasattr(one.transform, "benchmark"):
            one.transform.benchmark = False
    image, labels = (torch.from_numpy(given[f"{kind}_{what}"].copy()) for what in ("image", "labels"))
    np.random.seed(seed)
    torch.manual_seed(seed)
    found = changes(image=image[None], segmentation=labels[None].to(torch.int16))
    return [found["image"][0].numpy(), found["segmentation"][0].numpy()]


def poly() -> np.ndarray:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01)
    scheduler = PolyLRScheduler(optimizer, 0.01, 1000)
    rates = []
    for epoch in (0, 100, 500, 999):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return np.asarray(rates)


def main() -> None:
    folder = Path(sys.argv[1])
    given = dict(np.load(folder / "given.npz"))
    found: dict[str, np.ndarray] = {"deep": deep_loss(given), "poly": poly()}
    for batch_dice in (False, True):
        for has_unknown in (False, True):
            name = f"class_{batch_dice}_{has_unknown}"
            found[name], found[f"{name}_gradient"] = class_loss(
                given, batch_dice=batch_dice, has_unknown=has_unknown
            )
        name = f"region_{batch_dice}"
        found[name], found[f"{name}_gradient"] = region_loss(given, batch_dice=batch_dice)
    for kind in ("solid", "masked", "thick", "flat"):
        for seed in given["seeds"].tolist():
            found[f"{kind}_{seed}_image"], found[f"{kind}_{seed}_labels"] = changed(given, kind, seed)
    np.savez(folder / "found.npz", **found)


if __name__ == "__main__":
    main()
