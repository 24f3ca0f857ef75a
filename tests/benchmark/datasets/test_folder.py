"""A user's class folders: what is read, what is refused, and what identifies them."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import refused
from PIL import Image

import bdbench as bd
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import Cell, cell
from bdbench.cells.suites import SUITES
from bdbench.cli import main
from bdbench.datasets import folder
from bdbench.datasets.base import Dataset
from bdbench.datasets.folder import Folder
from bdbench.datasets.registry import datasets
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.training.recipe import Recipe
from bdbench.records.files import read_all
from bdbench.storage.cache import Cache

CLASSES = ("ant", "bee", "cat")


def picture(path: Path, level: int, size: tuple[int, int] = (10, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), level, dtype=np.uint8)).save(path)


def write(
    base: Path,
    names: tuple[str, ...] = CLASSES,
    splits: tuple[str, ...] = ("train", "val"),
    each: int = 4,
) -> Path:
    """Write uniform images for each class and number, below the splits or, for "", directly."""
    for split in splits:
        for label, name in enumerate(names):
            for number in range(each):
                picture(base / split / name / f"{number}.png", (40 * label + number) % 256)
    return base


def spec(base: Path | str, **fields: object) -> str:
    rest = "".join(f", {name}={value!r}" for name, value in fields.items())
    return f"folder(path={str(base)!r}{rest})"


def load(base: Path, **fields: object) -> Dataset:
    source = datasets.build(spec(base, **fields))
    return source.load([], Cache(Path(os.environ["BDBENCH_CACHE"])))


def made(base: Path, **fields: object) -> Cell:
    return cell(spec(base, **fields), "wrn16_1", "badnets", "none", Recipe(), 0)


@pytest.mark.parametrize("test", ["val", "test"])
def test_train_and_test_folders(tmp_path: Path, test: str) -> None:
    base = write(tmp_path / "zoo", splits=("train", test))
    data = load(base, size=16)
    assert data.train.images.shape == (12, 3, 16, 16)
    assert data.class_names == CLASSES
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.train.images[:, 0, 0, 0].tolist() == [
        40 * c + n for c in range(3) for n in range(4)
    ]
    assert data.notes == ()
    source = datasets.build(spec(base, size=16))
    assert (source.num_classes, source.train_size, source.count, source.image_size) == (
        3,
        12,
        12,
        16,
    )
    assert source.locate([]) == f"class folders in {base}"


def test_a_path_that_no_other_process_could_read_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(10):
        (tmp_path / ("d" * 200)).mkdir()
        monkeypatch.chdir(tmp_path / ("d" * 200))
        tmp_path = Path.cwd()
    write(Path("zoo"))
    words = ["run", "--dataset=folder(path='zoo', size=16)", "--dry-run", "--engine=ray"]
    line = refused(capsys, *words)
    assert "data set folder(path='zoo', size=16) has 2," in line
    assert "characters with all its settings and its whole path; a spec may have" in line


@pytest.mark.parametrize("split", ["", "train"])
def test_a_declared_share_is_for_testing(tmp_path: Path, split: str) -> None:
    base = write(tmp_path / "zoo", splits=(split,), each=8)
    data = load(base, test_share=0.25)
    assert data.train.labels.bincount().tolist() == [6, 6, 6]
    assert data.test.labels.bincount().tolist() == [2, 2, 2]
    levels = [*data.train.images[:, 0, 0, 0].tolist(), *data.test.images[:, 0, 0, 0].tolist()]
    assert sorted(levels) == [40 * c + n for c in range(3) for n in range(8)]
    assert data.sha256 == load(base, test_share=0.25).sha256
    assert data.sha256 != load(base, test_share=0.5).sha256
    assert len(load(base, test_share=0.999).train) == len(load(base, test_share=0.001).test) == 3


def test_one_more_class_moves_no_image_of_another(tmp_path: Path) -> None:
    base = write(tmp_path / "zoo", splits=("",), each=8)
    before = load(base, test_share=0.5).test.images.tolist()
    write(base, ("aardvark",), splits=("",), each=8)
    assert load(base, test_share=0.5).test.images[4:].tolist() == before


def test_images_are_squares_of_the_shorter_side(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200
    for split in ("train", "val"):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(wide).save(tmp_path / split / name / "x.png")
    assert load(tmp_path, size=8).train.images.unique().tolist() == [200]


def test_what_is_no_image_is_named_and_what_systems_leave_is_not(tmp_path: Path) -> None:
    base = write(tmp_path / "zoo")
    for junk in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png"):
        (base / "train/ant" / junk).write_bytes(b"")
    (base / "train/__MACOSX").mkdir()
    (base / "train/.git").mkdir()
    assert load(base).notes == ()
    (base / "train/ant/readme.txt").write_text("")
    (base / "val/bee/empty").mkdir()
    (base / "val/labels.csv").write_text("")
    (base / "README").write_text("")
    names = "train/ant/readme.txt, val/labels.csv"
    assert load(base).notes == (f"left out 2, as not {BOTH}: {names}",)


@pytest.mark.parametrize("suffix", ["tif", "tiff", "webp", "png"])
def test_images_with_more_than_one_picture_are_counted(tmp_path: Path, suffix: str) -> None:
    base = write(tmp_path / "zoo")
    first, second = (Image.new("RGB", (10, 10), (level,) * 3) for level in (200, 20))
    for place in ("train/ant", "val/bee"):
        first.save(base / place / f"9.{suffix}", save_all=True, append_images=[second])
    first.save(base / f"train/cat/9.{suffix}")
    note = "of 2 images with several frames or pages, the first is used"
    for _ in range(2):
        data = load(base, size=8)
        assert data.notes == (note,)
    assert data.train.images[4].float().mean() == pytest.approx(200, abs=2)


def test_a_run_says_once_what_it_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write(tmp_path / "zoo")
    (base / "train/ant/readme.txt").write_text("")
    words = ["--attack=badnets", "--defense=none", "--defense=clp", "--seeds=1", "--device=cpu"]
    words += [f"--results={tmp_path / 'out'}", "--recipe=recipe(epochs=1)", "--precision=fp32"]
    assert main(["run", f"--dataset={spec(base, size=16)}", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("left out 1, as not") == 1
    assert f"warning: data set {spec(base.name, size=16)}: left out 1, as not {BOTH}: " in said


IMAGES = "CLASS/*.{bmp,jpeg,jpg,png,ppm,tif,tiff,webp}"
BOTH = "{train,val}/" + IMAGES
UNREAD: dict[str, tuple[Callable[[Path], object], dict[str, object], str]] = {
    "a second test set": (
        lambda base: write(base, splits=("test",), each=2),
        {},
        f"both val and test are here: val is used; left out 6, as not {BOTH}: test (6 files)",
    ),
    "an empty second test set": (
        lambda base: (base / "test").mkdir(),
        {},
        "both val and test are here: val is used",
    ),
    "a test set of another name": (
        lambda base: (base / "val").rename(base / "validation"),
        {"test_share": 0.5},
        f"left out 12, as not train/{IMAGES}: validation (12 files)",
    ),
    "folders in a class": (
        lambda base: [picture(base / f"train/bee/more/{n % 2}/{n}.PNG", n) for n in range(9)],
        {},
        f"left out 9, as not {BOTH}: train/bee/more (9 files)",
    ),
    "a class beside the sets": (
        lambda base: write(base, ("dog",), splits=("",)),
        {},
        f"left out 4, as not {BOTH}: dog (4 files)",
    ),
    "an image beside the sets": (
        lambda base: picture(base / "cover.PNG", 0),
        {},
        f"left out 1, as not {BOTH}: cover.PNG",
    ),
    "a folder in a class, without sets": (
        lambda base: [
            shutil.rmtree(base / "val"),
            *((base / "train" / name).rename(base / name) for name in CLASSES),
            (base / "train").rmdir(),
            write(base / "ant/more", ("x",), splits=("",)),
        ],
        {"test_share": 0.5},
        f"left out 4, as not {IMAGES}: ant/more (4 files)",
    ),
    "links to folders": (
        lambda base: [
            write(base.parent / "elsewhere", ("x", "y"), splits=("",)),
            (base / "old").symlink_to(base.parent / "elsewhere"),
            (base.parent / "elsewhere/again").symlink_to(base.parent / "elsewhere"),
        ],
        {},
        f"left out 9, as not {BOTH}: old (9 files)",
    ),
    "much": (
        lambda base: [
            *((base / name).mkdir() for name in "az"),
            *((base / name / str(number)).touch() for name in "az" for number in range(1200)),
            *((base / f"train/ant/{name}.gif").touch() for name in "pqrs"),
        ],
        {},
        f"left out 2,404, as not {BOTH}: a (1,200 files), z (1,200 files), train/ant/p.gif"
        " and 3 more",
    ),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_images_that_are_not_read_are_named_and_counted(kind: str, tmp_path: Path) -> None:
    add, fields, note = UNREAD[kind]
    base = write(tmp_path / "zoo")
    add(base)
    assert load(base, **fields).notes == (note,)


def test_what_is_not_read_is_counted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SETTLED", -(10**18))
    base = write(write(tmp_path / "zoo"), splits=("old/deep",))
    assert "old (12 files)" in load(base).notes[0]
    picture(base / "old/deep/ant/9.png", 9)
    assert "old (13 files)" in load(base).notes[0]


def test_an_unread_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, real = write(tmp_path / "zoo"), os.scandir
    (base / "lost+found").mkdir()

    def refuse(path: Path) -> object:
        if Path(path).name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert load(base).notes == (f"left out 1, as not {BOTH}: lost+found",)


ODD = ("a b", "ü", "line\nbreak", "esc\x1b[2J", "'quoted\"", "<b>", os.fsdecode(b"bytes\xff"))


def test_names_of_any_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write(tmp_path / "odd 'zoo'", ODD, each=2)
    (base / "train" / ODD[-1] / os.fsdecode(b"\xfe.png")).write_bytes(
        (base / "train" / ODD[-1] / "0.png").read_bytes()
    )
    data = load(base)
    assert len(data.train) == 15
    assert all(name.isprintable() for name in data.class_names)
    assert len({*data.class_names}) == len(ODD)
    assert main(["data", "prepare", spec(base)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 5


def test_a_hundred_classes_and_attacks_on_them(tmp_path: Path) -> None:
    base = write(tmp_path / "many", tuple(f"c{label:03d}" for label in range(100)))
    assert datasets.build(spec(base)).num_classes == 100
    with pytest.raises(InvalidInput, match="target must be a class of the data set, 0 to 99"):
        cell(spec(base), "wrn16_1", "badnets(target=100)", "none", Recipe(), 0)
    for name in attacks.names():
        attack = attacks.build(name)
        if not attack.trains and name not in ("none", "sig"):
            with warnings.catch_warnings():
                # WaNet changes no image of one colour, and says so.
                warnings.simplefilter("ignore")
                poisoned = bd.poison(bd.attack(name), dataset=spec(base, size=16))
            assert poisoned.train.num_classes == 100, name
    sig = bd.poison("sig(target=99, poisoning_rate=0.5)", dataset=spec(base, size=16))
    assert sig.train.labels[sig.mask].tolist() == [99, 99]


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "zoo")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert datasets.build(spec("~/zoo")).num_classes == 3
    monkeypatch.chdir(tmp_path)
    assert made("zoo").key == made("~/zoo").key == made(tmp_path / "zoo/").key


def test_name_and_content_identify_a_folder(tmp_path: Path) -> None:
    one = made(write(tmp_path / "zoo"))
    assert one.specs["dataset"].startswith("folder(train_images=None, path='zoo', size=32,")
    assert str(tmp_path) not in str(one.identity) + str(one.labels)
    shutil.copytree(tmp_path / "zoo", tmp_path / "elsewhere/zoo")
    assert made(tmp_path / "elsewhere/zoo") == one
    assert str(tmp_path) in one.located["dataset"]
    picture(tmp_path / "elsewhere/zoo/train/ant/0.png", 255)
    assert made(tmp_path / "elsewhere/zoo") != one
    (tmp_path / "zoo").rename(tmp_path / "circus")
    assert made(tmp_path / "circus") != one
    assert cell("toy", "wrn16_1", "badnets", "none", Recipe(), 0).versions["dataset"] == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "other pixels": lambda base: picture(base / "train/ant/0.png", 9),
    "one more": lambda base: picture(base / "val/bee/9.png", 9),
    "one less": lambda base: (base / "train/cat/3.png").unlink(),
    "another class": lambda base: (base / "train/cat/3.png").rename(base / "train/ant/c.png"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("settled", [True, False])
def test_a_change_is_noticed(
    change: str, settled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SETTLED", -(10**18) if settled else 10**18)
    base = write(tmp_path / "zoo")
    source = Folder(path=str(base))
    cache = Cache(tmp_path / "cache")
    before = source.content, source.load([], cache).sha256
    if settled:
        os.utime(base / "train/ant/0.png", ns=(0, 0))
    CHANGES[change](base)
    after = source.content, source.load([], cache).sha256
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_files_that_stay_are_listed_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write(tmp_path / "zoo")
    read: list[Path] = []
    real = folder._listed
    monkeypatch.setattr(folder, "SETTLED", -(10**18))
    monkeypatch.setattr(folder, "_listed", lambda *given: read.append(given[0]) or real(*given))
    content = folder.FileSource.hashed
    monkeypatch.setattr(
        folder.FileSource, "hashed", lambda *given: read.append(given[1].folder) or content(*given)
    )
    for _ in range(3):
        assert made(base).versions["dataset"][1] == Folder(path=str(base)).content
    load(base)
    assert read == [base, base]


def test_a_run_and_what_its_records_say(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changed images are another experiment, moved ones are not, and no table mixes the two."""
    write(own_folder / "zoo", each=8)
    command = ["run", "--attack", "badnets(poisoning_rate=0.3)", "--defense", "none"]
    command += ["--epochs", "1", "--results", "out", "--in-process"]
    assert main([*command, "--dataset", spec("zoo", size=16)]) == 0
    ((record,), _) = read_all(own_folder / "out")
    assert str(record.cell.dataset).startswith("folder(train_images=None, path='zoo', size=16")
    assert record.versions["dataset"] == [1, Folder(path="zoo").content]
    assert record.provenance.data_sha256 == load(Path("zoo"), size=16).sha256
    capsys.readouterr()
    (own_folder / "away").mkdir()
    (own_folder / "zoo").rename(own_folder / "away/zoo")
    assert main([*command, "--dataset", spec("away/zoo", size=16)]) == 0
    assert "the only cell has its record" in capsys.readouterr().out
    picture(own_folder / "away/zoo/train/ant/0.png", 255)
    assert main([*command, "--dataset", spec("away/zoo", size=16)]) == 2
    said = capsys.readouterr().err
    assert "was made with other files of the data set folder" in said
    assert "could not share a table: remove the old records, or name another folder" in said
    assert len(read_all(own_folder / "out")[0]) == 1, "nothing was trained"


def unreadable(base: Path) -> None:
    """A link to itself, which no user can read."""
    shutil.rmtree(base / "train/ant")
    (base / "train/ant").symlink_to("ant")


FAULTS: dict[str, tuple[Callable[[Path], object], dict[str, object], str]] = {
    "nowhere": (shutil.rmtree, {}, "there is no folder {}; correct its path"),
    "a file": (
        lambda base: [shutil.rmtree(base), base.write_text("")],
        {},
        "there is no folder {}; correct its path",
    ),
    "no test images": (
        lambda base: shutil.rmtree(base / "val"),
        {},
        "{} has no folder val or test: add one, or test_share=0.2",
    ),
    "no training images": (
        lambda base: (base / "train").rename(base / "Train"),
        {},
        "{} has no folder train beside val: add it, or test_share=0.2",
    ),
    "a class that training lacks": (
        lambda base: picture(base / "val/dog/0.png", 0),
        {},
        "{}/train has no class dog",
    ),
    "tests and a share": (
        lambda base: None,
        {"test_share": 0.2},
        "{}/val holds the test images: leave out test_share of folder",
    ),
    "one class": (
        lambda base: [shutil.rmtree(base / "train" / name) for name in CLASSES[1:]],
        {},
        "{}/train has 1 class folder; at least 2 are needed",
    ),
    "no classes": (
        lambda base: [shutil.rmtree(base / part) for part in ("train", "val")],
        {"test_share": 0.2},
        "{} has 0 class folders; at least 2 are needed",
    ),
    "a class that test lacks": (
        lambda base: shutil.rmtree(base / "val/bee"),
        {},
        "{}/val has no class bee",
    ),
    "an empty class": (
        lambda base: [path.unlink() for path in (base / "train/bee").iterdir()],
        {},
        "{}/train/bee has no images *.bmp",
    ),
    "a level too deep": (
        lambda base: [
            (base / "train/bee").rename(base / "bee"),
            (base / "train/bee").mkdir(),
            (base / "bee").rename(base / "train/bee/deep"),
        ],
        {},
        "; move those in deep to bee itself",
    ),
    "a single image": (
        lambda base: [
            shutil.rmtree(base / "val"),
            *((base / f"train/bee/{n}.png").unlink() for n in range(3)),
        ],
        {"test_share": 0.2},
        "{}/train/bee has one image: add another",
    ),
    "a loop of links": (unreadable, {}, "{}/train has no class ant"),
    "no image": (
        lambda base: (base / "train/ant/1.png").write_bytes(b"no image"),
        {},
        "{}/train/ant/1.png: image cannot be decoded",
    ),
    "few training images": (
        lambda base: None,
        {"train_images": 2},
        "train_images of folder must be at least 3",
    ),
    "many training images": (
        lambda base: None,
        {"train_images": 99},
        "must be at most 12, got",
    ),
    "a size of 4": (
        lambda base: None,
        {"size": 4},
        "size of folder must be from 8 to 1,024, got 4",
    ),
    "a size of 5,000": (
        lambda base: None,
        {"size": 5000},
        "size of folder must be from 8 to 1,024",
    ),
    "a share of 1": (
        lambda base: None,
        {"test_share": 1.0},
        "test_share of folder must be above 0 and",
    ),
    "a share in words": (
        lambda base: None,
        {"test_share": "x"},
        "test_share of data set 'folder' must be",
    ),
    "no field": (lambda base: None, {"sise": 64}, "has no field 'sise'; did you mean 'size'?"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inflict, fields, said = FAULTS[fault]
    base = write(tmp_path / "zoo")
    inflict(base)
    assert main(["data", "prepare", spec(base, **fields)]) == 2
    error = capsys.readouterr().err
    assert said.format(base) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("path", ["/", "a\\0b", "//"])
def test_a_path_must_name_a_folder(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", f"folder(path='{path}')"]) == 2
    assert "path of folder must name a folder" in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, real = write(tmp_path / "zoo"), os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main(["data", "prepare", spec(base)]) == 2
    assert f"cannot read {base}/train/bee: Permission denied" in capsys.readouterr().err


def test_without_a_path_it_is_listed_and_described_but_not_run(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "datasets"]) == 0
    assert main(["describe", "folder"]) == 0
    assert "test_share" in capsys.readouterr().out
    assert main(["data", "ls"]) == 0
    assert (
        "folder           name one, such as folder(path='DIR', size=64)" in capsys.readouterr().out
    )
    assert main(["check", "folder"]) == 0
    assert main(["run", "--dataset", "folder"]) == 2
    assert "data set folder has no path; name one, such as folder(path=" in capsys.readouterr().err


def test_suites_take_a_data_set_of_a_hundred_classes(tmp_path: Path) -> None:
    for name in ("quick", "table1-cifar10"):
        for attack in SUITES[name].attacks:
            made = attacks.build(attack) if isinstance(attack, str) else attack
            assert cell("cifar100", "wrn16_1", made, "none", Recipe(), 0).dataset.num_classes == 100
