"""The pages: their commands parse, what they name exists, and what they quote is what the programs print."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from maskrcnn_bench import cli
from maskrcnn_bench.config import get_defaults, load_config
from maskrcnn_bench.config.node import leaves
from maskrcnn_bench.engine import arguments

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("README", "INSTALL", "TROUBLESHOOTING", "CONTRIBUTING", "ABSTRACTIONS", "MODEL_ZOO", "demo/README")
PAGES = [REPOSITORY / f"{name}.md" for name in NAMES] + sorted((REPOSITORY / "docs").glob("*.md"))
FOLDERS = ("configs", "csrc", "demo", "docker", "docs", "maskrcnn_bench", "tests", "tools")
# Options that other programs than ours take.
FOREIGN = {"--build-arg", "--ipc", "--max-restarts", "--no-build-isolation", "--nproc_per_node", "--shm-size"}
KEYS = dict(leaves(get_defaults()))

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())


# ------------------------------------------------------------------------------------------------------- reading pages


def fences(text: str) -> list[tuple[str, str]]:
    """Language and content of the blocks of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Code inside of lines; not that of a table's first column where its head says that this is what other projects have."""
    found, foreign, in_table = [], False, False
    for line in re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        starts = line.startswith("|")
        if starts and not in_table:
            foreign = "there" in line.split("|")[1].split()
        in_table = starts
        cells = line.split("|", 2)[2] if starts and foreign else line
        found += re.findall(r"(?<!`)`([^`]+)`(?!`)", cells)
    return found


def simple_commands(code: str) -> list[list[str]]:
    """The words of every command of a piece of shell code, without what assigns variables before it."""
    commands = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("();|&<>"):
                commands.append(words)
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)
    return [words for words in commands if words]


def our_program(words: list[str]) -> tuple[str, list[str]] | None:
    """Program of ours and its arguments, behind whatever starts it; None for other programs."""
    first = words[0]
    if first == "docker":
        place = next((k for k, word in enumerate(words) if re.fullmatch(r"maskrcnn-bench(:\w+)?", word)), None)
        return ("maskrcnn-bench", words[place + 1 :]) if words[1] == "run" and place else None
    if first in ("torchrun", "srun") or words[1:3] == ["-m", "torch.distributed.launch"]:
        place = next((k for k, word in enumerate(words) if word.endswith(".py")), None)
        return place and (words[place], words[place + 1 :])
    if first in ("python", "python3") and len(words) > 1 and re.match(r"(tools|demo)/.*\.py$", words[1]):
        return words[1], words[2:]
    return (first, words[1:]) if first == "maskrcnn-bench" else None


# ------------------------------------------------------------------------------------------------------- trying commands


class Parsed(Exception):
    """Ends a program once its command line was read."""


def parse_only(monkeypatch, main, words: list[str], program: str) -> argparse.Namespace:
    """What the real parser of a program makes of its words; the program goes no further."""

    def stopping(method):
        def parse(self, *args, **kwargs):
            raise Parsed(method(self, *args, **kwargs))

        return parse

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [program, *words])
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
        try:
            main()
        except Parsed as parsed:
            return parsed.args[0]
    raise ValueError(f"{program} reads no command line here")


def try_program(monkeypatch, name: str, words: list[str]) -> None:
    """Raises what is wrong with the command line of a program."""
    verb = {"tools/train_net.py": "train", "tools/test_net.py": "test"}.get(name, "")
    if name == "maskrcnn-bench":
        verb, *words = words
    if verb in ("train", "test"):
        args = arguments.parse(arguments.train_parser() if verb == "train" else arguments.test_parser(), words)
        if verb == "train" and args.config_file is None:
            raise ValueError("training needs --config-file")
        load_config(args.config_file or None, arguments.overrides(args))
        return
    if verb == "predict":
        from maskrcnn_bench.demo import predict

        args = predict._parse(words)
    elif verb:
        args = parse_only(monkeypatch, lambda: cli.main([verb, *words]), [], "maskrcnn-bench")
    else:
        args = parse_only(monkeypatch, script(monkeypatch, name).main, words, name)
    changes = getattr(args, "opts", [])
    if verb == "config" and args.action != "keys":
        changes = args.words
    load_config(getattr(args, "config_file", "") or None, changes or [])


def script(monkeypatch, name: str):
    """A program of the checkout as a module."""
    path = REPOSITORY / name
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def command_faults(monkeypatch, text: str) -> list[str]:
    """What is wrong with the commands of a page, in blocks and inside of lines."""
    commands = [words for language, code in fences(text) if language == "bash" for words in simple_commands(code)]
    starts = ("maskrcnn-bench ", "python tools/", "python demo/", "python -m torch.distributed.launch", "torchrun --", "srun ")
    inside = [span for span in spans(text) if span.startswith(starts) and "..." not in span]
    faults = []
    for words in commands + [words for span in inside for words in simple_commands(span)]:
        ours = our_program(words)
        if ours is None:
            continue
        name, rest = ours
        # A program that is only spoken of: `maskrcnn-bench data check`.
        if name == "maskrcnn-bench" and rest and len(rest) <= 2 and " ".join(words) in inside and rest[0] in cli.VERBS:
            continue
        try:
            try_program(monkeypatch, name, rest)
        except (SystemExit, ValueError, OSError) as error:
            faults.append(f"{' '.join(words)}: {error!r}")
    return faults


@pages
def test_commands_parse(page, monkeypatch, capsys):
    faults = command_faults(monkeypatch, page.read_text())
    assert faults == [], capsys.readouterr().err


@pytest.mark.parametrize(
    "code",
    [
        "maskrcnn-bench trian --config-file e2e_mask_rcnn_R_50_FPN_1x.yaml",
        "maskrcnn-bench train --data FOLDER",
        "maskrcnn-bench train --config-file e2e_mask_rcnn_R_51_FPN_1x.yaml",
        "maskrcnn-bench train --config-file e2e_mask_rcnn_R_50_FPN_1x.yaml SOLVER.BASE_RL 1",
        "cd x && A=1 maskrcnn-bench test --chkpt model.pth",
        "torchrun --nproc_per_node=2 tools/train_net.py --config-file configs/none.yaml",
        "maskrcnn-bench predict IMAGES",
        "maskrcnn-bench demo --serve --weights x --prot 1",
        "maskrcnn-bench data check",
        "maskrcnn-bench convert A B --to caffe",
        "maskrcnn-bench config show MODEL.MASKS_ON True",
        "python demo/webcam.py --webcam 0",
        "python tools/no_such_tool.py",
        "docker run -it maskrcnn-bench:cpu tain",
    ],
)
def test_wrong_commands_are_noticed(code, monkeypatch, capsys):
    assert len(command_faults(monkeypatch, f"```bash\n{code}   # a comment\n```\n")) == 1


@pages
def test_blocks_are_shell_code(page):
    for language, code in fences(page.read_text()):
        assert language != "bash" or subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True).stderr == ""


# ------------------------------------------------------------------------------------------------------- what pages name


def name_faults(text: str) -> list[str]:
    """Configurations, keys, values, options, files and variables of the environment that a page names and that do not exist."""
    codes = spans(text) + [" ".join(words) for language, code in fences(text) if language == "bash" for words in simple_commands(code)]
    faults = []
    for code in codes:
        yamls = {name.removeprefix("configs/") for name in re.findall(r"[\w./-]+\.yaml", code)} - {"data.yaml"}
        faults += [f"no configuration {name}" for name in yamls if not (REPOSITORY / "configs" / name).is_file()]
        faults += [f"no key {key}" for key in re.findall(r"\b[A-Z]+(?:\.[A-Z][A-Z0-9_]+)+\b", code) if not is_key(key)]
        paths = re.findall(rf"(?<![\w/.~-])(?:{'|'.join(FOLDERS)})/[\w./*-]*", code)
        faults += [f"no file {path}" for path in paths if not any(REPOSITORY.glob(path.rstrip("/")))]
        faults += [f"no variable {name}" for name in re.findall(r"MASKRCNN_BENCH_[A-Z]+", code) if f'"{name}"' not in sources()]
    return faults + value_faults(spans(text)) + option_faults(spans(text))


def is_key(name: str) -> bool:
    """Whether a name is a key or a section; names of other sections than ours are not looked at."""
    sections = {key.rpartition(".")[0] for key in KEYS}
    parents = {section.split(".")[0] for section in sections}
    return name.split(".")[0] not in parents or name in KEYS or any(f"{section}.".startswith(f"{name}.") for section in sections)


def value_faults(codes: list[str]) -> list[str]:
    """Faults of `KEY VALUE`, the value included."""
    faults = []
    for code in codes:
        words = shlex.split(code) if "..." not in code and code.count("'") % 2 == code.count('"') % 2 == 0 else []
        if words and words[0].split("=")[0] in KEYS and (len(words) % 2 == 0 or "=" in words[0]):
            try:
                load_config(None, words)
            except ValueError as error:
                faults.append(str(error))
    return faults


def option_faults(codes: list[str]) -> list[str]:
    named = {option for code in codes if code.startswith("--") for option in re.findall(r"(?<!\S)--[a-z][\w-]*", code)} - FOREIGN
    return [f"no option {option}" for option in sorted(named) if f'"{option}"' not in sources()]


@cache
def sources() -> str:
    """The text of all programs."""
    files = [*(REPOSITORY / "maskrcnn_bench").rglob("*.py"), *(REPOSITORY / "tools").rglob("*.py"), REPOSITORY / "demo" / "webcam.py"]
    return "\n".join(path.read_text() for path in [*files, REPOSITORY / "tests" / "conftest.py"])


@pages
def test_what_is_named_exists(page):
    assert name_faults(page.read_text()) == []


WRONG_NAMES = ("configs/e2e.yaml", "SOLVER.RATE 1", "SOLVER.BASE_LR quick", "DTYPE=half", "tools/x.py", "--no-such", "MASKRCNN_BENCH_X=1")


@pytest.mark.parametrize("code", WRONG_NAMES)
def test_wrong_names_are_noticed(code):
    assert len(name_faults(f"`{code}`")) >= 1
    assert name_faults(f"| there | here |\n|---|---|\n| `{code}` | - |\n") == []


def anchors(page: Path) -> set[str]:
    """How links may end that lead to a heading."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


def test_targets_of_make_and_extras_exist():
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"(?:^|`| )make (\w+)", "\n".join([*spans(text), *(code for _, code in fences(text))]), re.MULTILINE))
    makefile = (REPOSITORY / "Makefile").read_text()
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    setup = (REPOSITORY / "setup.py").read_text()
    assert all(f'"{extra}": [' in setup for extra in re.findall(r"(?:maskrcnn_bench|\.)\[(\w+)\]", text))


# ------------------------------------------------------------------------------------------------------- what is promised


def printed_texts() -> list[str]:
    """Every text of the source, with \\0 for what is put into it."""
    texts = []
    for path in [*(REPOSITORY / "maskrcnn_bench").rglob("*.py"), REPOSITORY / "setup.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[-+.\d]*[sdfgr]", "\0", node.value).replace("%%", "%"))
    return texts


def quoted_messages(text: str) -> list[str]:
    """The code that a line begins with, and all code with dots for what differs."""
    leading = [span for run in re.findall(r"^\* ((?:`[^`]+`(?:, | and )?)+)", text, re.MULTILINE) for span in re.findall(r"`([^`]+)`", run)]
    return list(dict.fromkeys(leading + [span for span in spans(text) if "..." in span and span != "..."]))


def is_printed(message: str, texts: list[str]) -> bool:
    fragments = [fragment.strip() for fragment in message.split("...")]
    pattern = re.compile(r"[\s\S]*".join(map(re.escape, fragments)))
    return sum(map(len, fragments)) >= 8 and any(pattern.search(text) for text in texts)


def test_messages_are_those_that_are_printed():
    texts = printed_texts()
    messages = quoted_messages((REPOSITORY / "TROUBLESHOOTING.md").read_text())
    assert len(messages) >= 40 and [message for message in messages if not is_printed(message, texts)] == []
    assert not is_printed("resuming ... behind iteration ...", texts) and not is_printed("... and ...", texts)


# As its parsers have them; --webcam is how its README writes --webcam_num.
FASTER_RCNN_PYTORCH = (
    *("dataset", "net", "start_epoch", "epochs", "disp_interval", "checkpoint_interval", "save_dir", "nw", "cuda", "mGPUs", "ls", "bs"),
    *("cag", "o", "lr", "lr_decay_step", "lr_decay_gamma", "s", "r", "checksession", "checkepoch", "checkpoint", "use_tfb"),
    *("cfg", "set", "load_dir", "parallel_type", "vis", "image_dir", "webcam"),
)


def test_every_option_of_faster_rcnn_pytorch_has_a_row():
    page = (REPOSITORY / "docs" / "coming_from.md").read_text()
    table = page[page.index("| option there |") : page.index("Its keys, where")]
    rows: dict[str, str] = {}
    for _, there, here, *_ in (line.split("|") for line in table.splitlines() if line):
        rows |= dict.fromkeys(re.findall(r"`--(\w+)", there), here.strip())
    assert [option for option in FASTER_RCNN_PYTORCH if not rows.get(option)] == []


@pytest.fixture
def signs(tmp_path, monkeypatch):
    """The files of the page on data sets by code, and a little data."""
    from PIL import Image

    for language, code in fences((REPOSITORY / "ABSTRACTIONS.md").read_text()):
        name = re.match(r"# (\w+\.py)\n", code)
        if language == "python" and name:
            (tmp_path / name[1]).write_text(code)
    folder = tmp_path / "data" / "signs_train"
    folder.mkdir(parents=True)
    lines = [f"{k}.png 60 40 {1 + k % 2} {5 + k} 5 {30 + k} 25" for k in range(4)]
    (folder / "signs.txt").write_text("\n".join(lines))
    for k in range(4):
        Image.new("RGB", (60, 40), (60 * k, 80, 90)).save(folder / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("signs", None)


def test_data_set_by_code_trains_and_is_evaluated(signs):
    import torch

    from maskrcnn_bench.data import make_data_loader
    from maskrcnn_bench.evaluation import evaluate

    names = ["PATHS_CATALOG", "my_catalog.py", "DATASETS.TRAIN", '("signs_train",)', "DATASETS.TEST", '("signs_train",)']
    small = ["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", (40,), "MODEL.ROI_BOX_HEAD.NUM_CLASSES", 0]
    cfg = load_config("e2e_faster_rcnn_R_50_FPN_1x.yaml", [*names, *small])
    loader = make_data_loader(cfg)
    images, targets, indices = next(iter(loader))
    assert images.tensors.shape == (2, 3, 64, 64) and loader.dataset.class_names == ("__background__", "stop", "yield")
    assert [t.get_field("labels").tolist() for t in targets] == [[1 + i % 2] for i in indices]
    dataset = make_data_loader(cfg, is_train=False)[0].dataset
    truth = [dataset.get_groundtruth(i) for i in range(len(dataset))]
    for target in truth:
        target.add_field("scores", torch.ones(len(target)))
    assert evaluate(dataset, truth, iou_types=("bbox",))["bbox"]["AP"] == pytest.approx(1.0)
