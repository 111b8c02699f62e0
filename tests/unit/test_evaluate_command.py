"""``dicomnode evaluate``: folders in, table, CSV, JSON and picture out."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import typer
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from dicomnode.cli.evaluation import evaluate
from dicomnode.cli.evaluation_plot import BOX, MEAN
from dicomnode.errors import ConfigError, GeometryError, InputError

app = typer.Typer()
app.command()(evaluate)

AFFINE = np.diag([1.0, 2.0, 5.0, 1.0])
NAMES = ("--names", "1=organ,2=node", "--bootstrap", "200")


def save(path: Path, *, rows: int = 4, node: bool = True, affine: np.ndarray = AFFINE) -> None:
    """A box of 6 x rows x 3 voxels of 10 mm³, and a voxel of another label."""
    labels = np.zeros((10, 9, 6), np.uint8)
    labels[2:8, 1 : 1 + rows, 1:4] = 1
    labels[9, 8, 5] = 2 * node
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six cases whose predicted box has 4, 4, 4, 5, 5 and 6 rows for 4; a node is missed in the last."""
    predictions, truth = tmp_path / "predictions", tmp_path / "truth"
    predictions.mkdir()
    truth.mkdir()
    for number, rows in enumerate((4, 4, 4, 5, 5, 6)):
        save(predictions / f"case_{number}.nii.gz", rows=rows, node=number < 5)
        save(truth / f"case_{number}.nii.gz")
    save(truth / "case_lost.nii.gz")
    return predictions, truth


def ask(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def test_a_table_for_people(folders: tuple[Path, Path]) -> None:
    shown = ask(*folders, *NAMES)

    assert shown.exit_code == 0
    assert "NSD at 1 mm" in shown.stdout
    assert "6, 1 missed" in shown.stdout
    # Dice 1, 1, 1, 8/9, 8/9 and 4/5; HD95 0, 0, 0, 2, 2 and 4 mm; volumes 0, 0, 0, 25, 25 and 50 % too large.
    assert "0.930" in shown.stdout
    assert "1.33" in shown.stdout
    assert "+16.7 %" in shown.stdout
    assert "without prediction, not counted (1): case_lost.nii.gz" in shown.stderr


def test_figures_of_each_case_and_label_are_kept(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shown = ask(*folders, *NAMES, "--out", tmp_path / "out" / "here")

    assert shown.exit_code == 0
    rows = list(csv.DictReader((tmp_path / "out" / "here" / "cases.csv").open(encoding="utf-8")))
    assert [(r["case"], r["label"], r["presence"]) for r in rows[-2:]] == [
        ("case_5", "organ", "both"),
        ("case_5", "node", "missed"),
    ]
    assert [(r["dice"], r["hd95_mm"], r["volume_error_ml"]) for r in rows[-2:]] == [
        ("0.8", "4", "0.36"),
        ("0", "inf", "-0.01"),
    ]
    labels = list(csv.DictReader((tmp_path / "out" / "here" / "labels.csv").open(encoding="utf-8")))
    assert [(r["label"], r["cases"], r["missed"], r["hd95_median_mm"]) for r in labels] == [
        ("organ", "6", "0", "1"),
        ("node", "6", "1", "0"),
    ]
    assert float(labels[0]["dice_lower"]) < float(labels[0]["dice_mean"]) < float(labels[0]["dice_upper"])


def test_the_picture_shows_boxes_and_means(folders: tuple[Path, Path], tmp_path: Path) -> None:
    ask(*folders, *NAMES, "--out", tmp_path)

    with Image.open(tmp_path / "evaluation.png") as picture:
        colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert {BOX, MEAN} <= colours


def test_scripts_get_the_same_as_strict_json(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shown = ask(*folders, *NAMES, "--json", "--out", tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    said = json.loads(shown.stdout, parse_constant=refuse)
    assert said == json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert said["without_prediction"] == ["case_lost.nii.gz"]
    assert said["labels"][0]["dice"]["mean"] == pytest.approx((3 + 16 / 9 + 0.8) / 6)
    assert said["cases"][5]["labels"][1]["hd95_mm"] is None
    assert (said["resamples"], said["seed"], said["level"]) == (200, 0, 0.95)


def test_the_seed_alone_decides_the_intervals(folders: tuple[Path, Path]) -> None:
    one, same, other = (ask(*folders, *NAMES, "--json", "--seed", seed).stdout for seed in (1, 1, 2))

    assert one == same != other


def test_several_threads_give_the_same_figures(folders: tuple[Path, Path]) -> None:
    one, many = (ask(*folders, *NAMES, "--json", "--threads", count).stdout for count in (1, 8))

    assert one == many


def test_without_names_every_value_is_a_label(folders: tuple[Path, Path]) -> None:
    said = json.loads(ask(*folders, "--json", "--bootstrap", "0", "--tolerance-for", "2=3").stdout)

    assert [(one["label"], one["tolerance_mm"]) for one in said["labels"]] == [("1", 1.0), ("2", 3.0)]
    assert said["labels"][0]["dice"]["lower"] is None


def test_values_without_a_name_are_told(folders: tuple[Path, Path]) -> None:
    shown = ask(*folders, "--names", "1=organ", "--json", "--bootstrap", "0")

    assert json.loads(shown.stdout)["values_not_measured"] == [2]
    assert "values that no label names, not measured (1): 2" in shown.stderr


def test_names_come_from_the_labels_of_a_model(folders: tuple[Path, Path]) -> None:
    model = Path(__file__).resolve().parents[2] / "models" / "hippocampus"
    shown = ask(*folders, "--labels", model / "labels.toml", "--json", "--bootstrap", "0")

    names = [one["label"] for one in json.loads(shown.stdout)["labels"]]
    assert names == ["Hippocampus anterior", "Hippocampus posterior"]


def named_by_nnunet(
    folders: tuple[Path, Path], labels: dict[str, object]
) -> dict[str, list[dict[str, object]]]:
    table = folders[0] / "dataset.json"
    table.write_text(json.dumps({"labels": labels}), encoding="utf-8")
    return dict(json.loads(ask(*folders, "--labels", table, "--json", "--bootstrap", "0").stdout))


def test_names_and_regions_come_from_nnunet(folders: tuple[Path, Path]) -> None:
    said = named_by_nnunet(folders, {"background": 0, "all": [1, 2], "organ": 1})

    region, organ = said["labels"]
    assert (region["label"], organ["label"]) == ("all", "organ")
    assert (region["missed"], region["volume_error_ml"]["mean"]) == (
        0,
        pytest.approx((18 * 4 - 1) * 0.01 / 6),
    )
    first = named_by_nnunet(folders, {"0": "background", "1": "organ"})
    assert first["labels"] == [organ]


def test_what_nnunet_ignores_is_neither_measured_nor_counted_against_a_prediction(
    folders: tuple[Path, Path],
) -> None:
    predictions, truth = folders
    unknown = np.zeros((10, 9, 6), np.uint8)
    unknown[:, 4:] = 2  # the box of four rows ends at row 5, so that one row of it is not known
    known = np.asarray(nibabel.load(truth / "case_5.nii.gz").dataobj)
    nibabel.save(nibabel.Nifti1Image(np.maximum(known, unknown), AFFINE), truth / "case_5.nii.gz")

    said = named_by_nnunet((predictions, truth), {"background": 0, "organ": 1, "ignore": 2})

    assert [(one["label"], one["cases"]) for one in said["labels"]] == [("organ", 6)]
    assert said["cases"][5]["labels"][0]["dice"] == 1.0
    assert said["values_not_measured"] == []


def test_two_files_are_compared(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    shown = ask(predictions / "case_3.nii.gz", truth / "case_0.nii.gz", "--json")

    assert [case["case_id"] for case in json.loads(shown.stdout)["cases"]] == ["case_0"]


def test_a_case_on_another_grid_stops_before_anything_is_measured(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    save(predictions / "case_5.nii.gz", affine=np.diag([1.0, 2.0, 4.0, 1.0]))

    failed = ask(predictions, truth)

    assert isinstance(failed.exception, GeometryError)
    assert "case_5.nii.gz lies on another grid" in str(failed.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--names", "organ"), "'organ' is not VALUE=NAME"),
        (("--names", "0=organ"), "'0=organ' is not VALUE=NAME"),
        (("--names", "1=a,2=a"), "'a' is given twice"),
        (("--names", "1=a", "--tolerance-for", "b=2"), "no label is called 'b'; there is: a"),
        (("--tolerance-for", "a=-1"), "'a=-1' is not LABEL=MM"),
        (("--tolerance-for", "a=wide"), "'a=wide' is not LABEL=MM"),
        (("--labels", __file__, "--names", "1=a"), "both given"),
    ],
)
def test_options_that_cannot_be_read_are_named(
    folders: tuple[Path, Path], words: tuple[str, ...], message: str
) -> None:
    failed = ask(*folders, *words)

    assert isinstance(failed.exception, ConfigError)
    assert message in str(failed.exception)


@pytest.mark.parametrize("text", ["{}", "[]", '{"labels": {"a": []}}', '{"labels": {"a": "b"}}', "no JSON"])
def test_a_file_that_names_no_labels_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, text: str
) -> None:
    (tmp_path / "dataset.json").write_text(text, encoding="utf-8")

    assert isinstance(ask(*folders, "--labels", tmp_path / "dataset.json").exception, InputError)


def test_a_folder_that_cannot_be_written_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    failed = ask(*folders, *NAMES, "--out", tmp_path / "file" / "below")

    assert isinstance(failed.exception, ConfigError)
    assert "--out" in str(failed.exception)
