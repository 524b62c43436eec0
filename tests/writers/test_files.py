"""What a run shows as files: exact, whole, under names that any file system takes, and as a resume leaves them."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData

from tests.toys import ToyEpochTrainer, rows_loader, settings
from vision3d_engine import label_colors
from vision3d_engine.writers.files import FilesWriter, folder_of


def files(folder):
    """Return the names of the files of a run."""
    return sorted(str(path.relative_to(folder / "files")) for path in (folder / "files").rglob("step-*"))


def picture(path):
    with Image.open(path) as image:
        return np.array(image)


def columns(element, names):
    return np.stack([element[name] for name in names.split()], axis=1)


@pytest.fixture
def toy(tmp_path):
    return ToyEpochTrainer(settings(tmp_path, write_files=True))


def test_clouds_are_ply_files_with_all_points_and_exact_colors(toy, tmp_path):
    clouds = [torch.rand(30_000, 3), torch.rand(7, 3, dtype=torch.float64) + 1e6, torch.zeros(0, 3)]
    labels = [torch.arange(len(cloud)) % 5 - 1 for cloud in clouds]
    toy.write_points("val/predicted", clouds, labels=labels, index=123)
    toy.write_points("plain", clouds[0], index=1_234_567)
    toy.run()
    names = [f"val/predicted/step-000123-{number}.ply" for number in range(3)]
    assert files(tmp_path) == ["plain/step-1234567.ply", *names]
    for name, cloud, label in zip(names, clouds, labels, strict=True):
        vertices = PlyData.read(tmp_path / "files" / name)["vertex"]
        found = columns(vertices, "x y z")
        assert found.dtype == (np.float64 if cloud.dtype == torch.float64 else np.float32)
        assert (found == cloud.numpy()).all()
        assert (columns(vertices, "red green blue") == label_colors(label)).all()
    plain = PlyData.read(tmp_path / "files" / "plain" / "step-1234567.ply")["vertex"]
    assert [each.name for each in plain.properties] == ["x", "y", "z"]


def test_correspondences_are_edges_of_a_ply_file(toy, tmp_path):
    source, target = torch.rand(4, 3), torch.rand(5, 3)
    pairs, is_inlier = torch.tensor([[0, 4], [3, 1]]), torch.tensor([True, False])
    toy.write_correspondences("pairs", source, target, pairs, is_inlier, offset=torch.zeros(3))
    toy.run()
    found = PlyData.read(tmp_path / "files" / "pairs" / "step-000000.ply")
    assert (columns(found["vertex"], "x y z") == torch.cat([source, target]).numpy()).all()
    assert columns(found["edge"], "vertex1 vertex2").tolist() == [[0, 8], [3, 5]]
    assert columns(found["edge"], "red green blue").tolist() == [[40, 170, 70], [220, 50, 40]]


def test_images_and_figures_are_png_files_pixel_by_pixel(toy, tmp_path):
    from matplotlib.figure import Figure

    images = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    toy.write_image("pictures", images, 1)
    toy.write_image("grey", images[0, ..., 0], 1)
    toy.write_image("see-through", np.zeros((8, 6, 4), dtype=np.uint8), 1)
    toy.write_figure("figure", Figure(figsize=(1, 2)), 1)
    toy.run()
    folder = tmp_path / "files"
    for number in range(2):
        assert (picture(folder / "pictures" / f"step-000001-{number}.png") == images[number]).all()
    assert (picture(folder / "grey" / "step-000001.png") == images[0, ..., 0]).all()
    assert picture(folder / "see-through" / "step-000001.png").shape == (8, 6, 4)
    assert picture(folder / "figure" / "step-000001.png").shape == (200, 100, 3)


def test_histograms_and_texts_are_txt_files(toy, tmp_path):
    toy.write_histogram("weights", torch.arange(64.0))
    toy.write_text("note", "zwölf")
    toy.run()
    table = np.loadtxt(tmp_path / "files" / "weights" / "step-000000.txt")
    assert table.shape == (64, 3)
    assert (table[0, 0], table[-1, 1], table[:, 2].tolist()) == (0, 63, [1] * 64)
    assert (tmp_path / "files" / "note" / "step-000000.txt").read_text(encoding="utf-8") == "zwölf"


def test_without_the_setting_there_is_no_file(tmp_path):
    toy = ToyEpochTrainer(settings(tmp_path))
    toy.write_points("cloud", torch.zeros(2, 3))
    toy.run()
    assert not (tmp_path / "files").exists()


def test_a_file_of_the_same_tag_and_step_is_replaced(toy, tmp_path):
    for text in ("first", "second"):
        toy.write_text("note", text)
    toy.run()
    assert (tmp_path / "files" / "note" / "step-000000.txt").read_text() == "second"
    assert [path.name for path in (tmp_path / "files" / "note").iterdir()] == ["step-000000.txt"]


def test_fewer_clouds_of_the_same_tag_and_step_replace_all_that_were_there(toy, tmp_path):
    for step in (1, 12):
        for count in (3, 2):
            toy.write_points("cloud", torch.rand(count, 4, 3), index=step)
    for count in (2, 1):
        toy.write_points("single", torch.rand(count, 4, 3))
    toy.write_text("cloud", "a note", 1)
    toy.run()
    names = {path.name for path in (tmp_path / "files" / "cloud").iterdir()}
    steps = {f"step-{step:06d}-{number}.ply" for step in (1, 12) for number in (0, 1)}
    assert names == steps | {"step-000001.txt"}
    assert [path.name for path in (tmp_path / "files" / "single").iterdir()] == ["step-000000.ply"]


@pytest.mark.parametrize("tag", ["val/cloud", "a.b-c_d=1+2", "größe"])
def test_a_plain_tag_is_its_folder(tag):
    assert str(folder_of(tag)) == tag


def test_other_tags_have_safe_folders_of_their_own_inside_the_run():
    tags = [
        "a/b c:d",
        "a/b_c_d",
        "a/b c?d",
        "../up",
        "/root",
        "..",
        ".",
        "",
        "a//b",
        "a/b",
        ".index.jsonl",
        "x" * 300,
        "a\nb",
    ]
    folders = [folder_of(tag) for tag in tags]
    assert len(set(map(str, folders))) == len(tags)
    for folder in folders:
        assert not folder.is_absolute()
        assert all(part.strip(".") and len(part) < 100 and part.isprintable() for part in folder.parts)
        assert not any(letter in str(folder) for letter in ' :?*"<>|\\')
    assert str(folders[0]).startswith("a/b_c_d-")


def test_tags_that_need_other_names_are_written(toy, tmp_path):
    toy.write_text("a/b c:d", "one")
    toy.write_text("../../up", "two")
    toy.run()
    assert [(tmp_path / "files" / name).read_text() for name in files(tmp_path)] == ["two", "one"]


# ------------------------------------------------------------------------------------------- runs that go on


class Shows(ToyEpochTrainer):
    """Writes a text a step, and one that is replaced by each step; can be killed."""

    dies_at = None

    def __init__(self, cfg):
        super().__init__(cfg, rows_loader(8))
        self.write_text("setup", "of the constructor")

    def after_train_step(self, epoch, iteration, data_dict, output_dict, result_dict):
        self.write_text("each", f"step {self.total_steps}", self.total_steps)
        self.write_text("latest", f"step {self.total_steps}")
        self.write_points("cloud", torch.full((2, 3), float(self.total_steps)), index=self.total_steps * 1000)
        if self.total_steps == self.dies_at:
            self._session.writers.flush()
            os.kill(os.getpid(), signal.SIGKILL)


def killed(act):
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join(120)
    if process.is_alive():
        process.terminate()
        process.join()
    return -process.exitcode


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("dies_at", [3, 7])
@pytest.mark.parametrize("is_extended", [False, True])
def test_a_killed_and_resumed_run_leaves_the_files_of_an_undisturbed_one(tmp_path, dies_at, is_extended):
    """Also one that ends earlier than the killed one got, whose later files are those of no run."""
    options = {"save_every": "2 iterations", "async_save": False, "write_files": True}
    lengths = {"max_epoch": 2} if is_extended else {"max_epoch": None, "max_updates": dies_at - 1}

    class Dies(Shows):
        pass

    Dies.dies_at = dies_at
    assert killed(lambda: Dies(settings(tmp_path / "broken", max_epoch=2, **options)).run()) == signal.SIGKILL
    Shows(settings(tmp_path / "broken", resume=True, **{**options, **lengths})).run()
    Shows(settings(tmp_path / "straight", **{**options, **lengths})).run()
    straight, broken = ({name: (folder / "files" / name).read_bytes() for name in files(folder)}
                        for folder in (tmp_path / "straight", tmp_path / "broken"))  # fmt: skip
    if not is_extended:  # what replaces itself is written again by the next step, which does not come
        del straight["latest/step-000000.txt"]
    assert broken == straight
    assert "setup/step-000000.txt" in broken


def test_a_run_that_overwrites_puts_the_old_files_aside(tmp_path):
    for overwrite in (False, True):
        Shows(settings(tmp_path, write_files=not overwrite, overwrite=overwrite)).run()
    assert not (tmp_path / "files").exists()
    (aside,) = tmp_path.glob("files-*")
    assert len(list(aside.rglob("step-*.txt"))) == 6


def test_going_back_removes_half_written_files_and_those_that_were_listed_but_never_made(tmp_path):
    writer = FilesWriter(tmp_path / "files")
    writer.text("note", "kept", 1)
    position = writer.position()
    writer.text("note", "gone", 2)
    (tmp_path / "files" / "note" / "step-000002.txt").unlink()
    (tmp_path / "files" / "note" / ".step-000002.txt.0123.tmp").write_text("half")
    writer.text("note", "gone too", 3)
    with (tmp_path / "files" / ".index.jsonl").open("a") as index:
        index.write('{"file": "note/st')
    writer.cut_back(position, 1)
    writer.text("note", "new", 2)
    writer.close()
    assert [path.name for path in sorted((tmp_path / "files" / "note").iterdir())] == [
        "step-000001.txt",
        "step-000002.txt",
    ]
    writer.cut_back(None, 0)
    assert len(files(tmp_path)) == 2


def test_a_file_that_cannot_be_written_is_said_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "files").write_text("in the way")
    toy = ToyEpochTrainer(settings(tmp_path, write_files=True))
    for index in range(3):
        toy.write_text("note", "text", index)
    toy.run()
    log = Path(toy.log_file).read_text()
    assert toy.total_steps == 3
    assert log.count("cannot write files of the run: ") <= 1
    assert log.count("ERROR") <= 1
