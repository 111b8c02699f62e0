"""Trained models of a few kilobytes as nnU-Net v2 writes them, with networks made by its own library."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from pydoc import locate

import numpy as np
import torch
from torch import nn

TRAINER, PLANS = "nnUNetTrainer", "nnUNetPlans"
DATA_SET = "Dataset900_Hippocampus"
Json = dict[str, object]


def architecture(dimensions: int = 3, *, kind: str = "PlainConvUNet", **changes: object) -> Json:
    """Two levels with four and six features."""
    depths = "n_blocks_per_stage" if kind == "ResidualEncoderUNet" else "n_conv_per_stage"
    arguments: Json = {
        "n_stages": 2,
        "features_per_stage": [4, 6],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * 2,
        "strides": [[1] * dimensions, [2] * dimensions],
        depths: [1, 2],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
        "arch_kwargs": arguments | changes,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration(dimensions: int = 3, **changes: object) -> Json:
    """A configuration of a plan; 1 mm, patches of 8 voxels."""
    resampling: Json = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    made: Json = {
        "data_identifier": f"{PLANS}_{dimensions}d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8] * dimensions,
        "spacing": [1.0, 0.8, 0.9][3 - dimensions :],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": architecture(dimensions),
    }
    return made | changes


def plans(configurations: Mapping[str, Json], **changes: object) -> Json:
    """What stands in ``plans.json``."""
    made: Json = {
        "dataset_name": DATA_SET,
        "plans_name": PLANS,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "configurations": dict(configurations),
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 40.0, "std": 20.0, "percentile_00_5": -50.0, "percentile_99_5": 120.0, "max": 300.0}
        },
    }
    return made | changes


def data_set(**changes: object) -> Json:
    """What stands in ``dataset.json``."""
    labels = {"background": 0, "Anterior": 1, "Posterior": 2}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"} | changes


def make_network(described: Mapping[str, object], *, inputs: int = 1, outputs: int = 3) -> nn.Module:
    """Make the network as nnU-Net does: with the classes that the plan names, and drawn weights."""
    arguments = deepcopy(described["arch_kwargs"])
    assert isinstance(arguments, dict)
    for key in ("conv_op", "norm_op", "dropout_op", "nonlin"):
        arguments[key] = locate(arguments[key]) if arguments[key] else None
    made = locate(str(described["network_class_name"]))
    assert callable(made)
    network = made(input_channels=inputs, num_classes=outputs, deep_supervision=True, **arguments)
    assert isinstance(network, nn.Module)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():  # norms too: theirs would else be one and zero
                tensor.uniform_(0.1, 0.5)
    network.decoder.deep_supervision = False
    return network.eval()


def write_model(
    results: Path,
    name: str,
    described_plans: Json,
    described_data: Json,
    networks: Mapping[str, nn.Module],
    *,
    trainer: str = TRAINER,
    mirror_axes: Sequence[int] | None = (0, 1, 2),
) -> Path:
    """Write the folder of one configuration with a checkpoint for each fold."""
    folder = results / DATA_SET / f"{trainer}__{PLANS}__{name}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(described_plans))
    (folder / "dataset.json").write_text(json.dumps(described_data))
    for fold, network in networks.items():
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            {
                "network_weights": network.state_dict(),
                "logging": {"ema_fg_dice": [np.float32(0.5)]},
                "_best_ema": np.float64(0.5),
                "current_epoch": 7,
                "init_args": {"configuration": name, "fold": fold, "device": torch.device("cpu")},
                "trainer_name": trainer,
                "inference_allowed_mirroring_axes": mirror_axes
                if mirror_axes is None
                else tuple(mirror_axes),
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return folder
