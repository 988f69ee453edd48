"""The house rules that can be read from the source: who imports whom, which words stay where, what travels in the wheel."""

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "maskrcnn_bench"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Files that turn a config into built things; only these may know it.
BORDER = {
    "cli.py",
    "solver.py",
    "modeling/detector.py",
    "modeling/build.py",
    "data/build.py",
    "demo/predictor.py",
    "engine/launch.py",
    "engine/startup.py",
    "weights/__init__.py",
    "weights/command.py",
    "utils/checkpoint.py",
}

# What the files of a folder must not import, by the first word behind the package's name.
FORBIDDEN = {
    "config/": {"layers", "structures", "modeling", "weights", "data", "evaluation", "engine", "solver", "utils"},
    "layers/": {"config", "structures", "modeling", "weights", "data", "evaluation", "engine", "solver"},
    "structures/": {"config", "modeling", "weights", "data", "evaluation", "engine", "solver"},
    "modeling/": {"data", "evaluation", "engine", "solver"},
    "data/": {"modeling", "weights", "evaluation", "engine", "solver"},
    "evaluation/": {"config", "modeling", "weights", "engine", "solver"},
    "engine/trainer.py": {"config", "modeling", "weights", "solver"},
    "engine/inference.py": {"config", "modeling", "weights", "solver"},
    "engine/tta.py": {"config", "modeling", "weights", "solver"},
    "utils/": {"modeling", "data", "evaluation", "engine", "solver"},
}
# Needed by some verbs only, so imported inside the functions that use them.
LATE = {"matplotlib", "pycocotools", "hotcoco", "cv2", "av", "tqdm"}


def imports(path: Path, module_level: bool = False) -> set[str]:
    """The full names of all modules that a file imports; relative ones made absolute."""
    package = path.relative_to(REPOSITORY).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in _outside_functions(tree) if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def _outside_functions(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        # What `if TYPE_CHECKING` imports is never run.
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _outside_functions(node)


def inside(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_import_reader_sees_what_it_should(tmp_path):
    folder = REPOSITORY / "maskrcnn_bench" / "data"
    source = "import os.path\nfrom ..modeling import build\nfrom . import x\ndef f():\n    import cv2\n"
    path = folder / "imagined.py"
    names = set()
    try:
        real, Path.read_text = Path.read_text, lambda self, encoding=None: source
        names, early = imports(path), imports(path, module_level=True)
    finally:
        Path.read_text = real
    assert names == {"os.path", "maskrcnn_bench.modeling.build", "maskrcnn_bench.data.x", "cv2"}
    assert early == names - {"cv2"}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_down(folder):
    wrong = []
    for path in SOURCES:
        if inside(path).startswith(folder):
            parts = {name.split(".")[1] for name in imports(path) if name.startswith("maskrcnn_bench.")}
            wrong += [f"{inside(path)} imports {part}" for part in sorted(parts & FORBIDDEN[folder])]
    assert wrong == []


def test_modeling_and_structures_see_the_config_only_at_the_border():
    allowed = BORDER | {inside(path) for path in SOURCES if inside(path).startswith(("config/", "engine/", "demo/"))} | {"doctor.py"}
    users = set()
    for path in SOURCES:
        # The catalog is a table of names and paths that anybody may read.
        names = {n for n in imports(path) if n.startswith("maskrcnn_bench.config") and "paths_catalog" not in n}
        users |= {inside(path)} if names else set()
    assert users - allowed == set()


def test_nobody_takes_the_global_config():
    users = [inside(path) for path in SOURCES if "maskrcnn_bench.config.cfg" in imports(path)]
    assert users == []


def test_nothing_imports_programs_tests_or_demos():
    outside = {"tools", "tests", "demo"}
    wrong = []
    for path in SOURCES:
        names = imports(path)
        wrong += [f"{inside(path)} imports {name}" for name in names if name.split(".")[0] in outside]
        # A data set's ground truth is drawn as detections are.
        if not inside(path).startswith("demo/") and inside(path) not in ("data/view.py", "engine/board.py"):
            wrong += [f"{inside(path)} imports {name}" for name in names if name.startswith("maskrcnn_bench.demo")]
    assert wrong == []


def test_libraries_that_few_verbs_need_are_imported_late():
    wrong = [(inside(path), name) for path in SOURCES for name in imports(path, module_level=True) if name.split(".")[0] in LATE]
    assert wrong == []


def test_config_word_stays_at_the_border():
    wrong = []
    for path in SOURCES:
        if inside(path) in BORDER or inside(path).startswith("config/"):
            continue
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        wrong += [f"{inside(path)}:{token.start[0]}" for token in tokens if token.type == tokenize.NAME and token.string == "cfg"]
    assert wrong == []


def test_dialect_word_stays_at_the_border():
    wrong = []
    for path in SOURCES:
        if inside(path) not in BORDER and not inside(path).startswith("config/"):
            lines = path.read_text(encoding="utf-8").splitlines()
            wrong += [f"{inside(path)}:{number}" for number, line in enumerate(lines, 1) if "dialect" in line.lower()]
    assert wrong == []


def test_packages_are_packages_and_their_init_files_hold_names_only():
    for folder in {path.parent for path in SOURCES}:
        init = folder / "__init__.py"
        assert init.is_file(), f"{folder} has no __init__.py, so the wheel leaves it out"
        if inside(init) in BORDER:
            continue
        # Names may be imported when they are asked for.
        body = [n for n in ast.parse(init.read_text(encoding="utf-8")).body if getattr(n, "name", "") != "__getattr__"]
        wrong = [n.lineno for n in body if not isinstance(n, (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign))]
        assert wrong == [], f"{init}: lines {wrong} hold more than names"


def tracked_files() -> list[Path]:
    """What git tracks or would track; outside a checkout, everything that looks like a source."""
    command = ["git", "-C", str(REPOSITORY), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    if listing is None or listing.returncode:
        suffixes = {".py", ".md", ".yaml", ".toml", ".cpp", ".cu", ".h", ".json", ".txt"}
        return [p for p in REPOSITORY.rglob("*") if p.suffix in suffixes and ".venv" not in p.parts]
    return [REPOSITORY / name for name in listing.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def test_tracked_files_name_no_place_on_the_author_s_machine():
    # In two parts, so that this line does not find itself.
    places = re.compile(rb"(?<![\w.])/(?:work" rb"|root" rb"|home/\w+)/[\w.]")
    wrong = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content:
            wrong += [f"{path}: {line!r}" for line in content.splitlines() if places.search(line)]
    assert wrong == []


def modules_after(statement: str, names: tuple[str, ...]) -> set[str]:
    """Which of `names` are loaded after a statement in a fresh process."""
    code = f"{statement}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_of_the_package_is_cheap():
    assert modules_after("import maskrcnn_bench", ("torch", "numpy", "yaml", "argparse")) == set()


def test_config_needs_no_torch():
    statement = "import maskrcnn_bench.config.dialect, maskrcnn_bench.config as c; c.load_config('e2e_mask_rcnn_R_50_FPN_1x.yaml')"
    assert modules_after(statement, ("torch", "torchvision", "numpy", "PIL", "yacs")) == {"yacs"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the checkout where neither torch nor a compiler can be found."""
    folder = tmp_path_factory.mktemp("wheel")
    source, stubs = folder / "source", folder / "stubs"
    for path in tracked_files():
        target = source / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    stubs.mkdir()
    (stubs / "torch.py").write_text("raise ImportError('no torch in the build environment')")
    environment = {**os.environ, "PYTHONPATH": str(stubs), "PATH": str(stubs), "CC": "none", "CXX": "none", "BUILD_OPS": "0"}
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_is_pure_python_and_complete(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {p.relative_to(REPOSITORY).as_posix() for p in SOURCES} | {"maskrcnn_bench/py.typed", "maskrcnn_bench/demo/page.html"}
    tracked = [p.relative_to(REPOSITORY) for p in tracked_files()]
    for folder in ("csrc", "configs"):
        files = {f"maskrcnn_bench/{p.as_posix()}" for p in tracked if p.parts[0] == folder}
        assert files, f"nothing in {folder}"
        wanted |= files
    assert wanted - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"maskrcnn_bench"}


def test_wheel_says_what_it_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    required = {re.match(r"[\w-]+", line)[0].lower() for line in re.findall(r"^Requires-Dist: (?!.*extra)(.*)$", metadata, re.MULTILINE)}
    assert required == {
        *("torch", "torchvision", "yacs", "pyyaml", "pycocotools", "hotcoco", "numpy", "pillow", "tqdm", "matplotlib", "ninja")
    }
    assert "Requires-Python: >=3.10" in metadata and "Requires-Dist: torch>=2.11" in metadata
    assert set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE)) == {"dev", "demo"}
    entry_points = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert "maskrcnn-bench = maskrcnn_bench.cli:main" in entry_points


def test_configs_are_found_inside_the_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import maskrcnn_bench, maskrcnn_bench.config as c; print(maskrcnn_bench.__file__);"
        "print(c.load_config('detectron2/mask_rcnn_R_50_C4_1x.yaml').MODEL.MASK_ON)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "maskrcnn_bench" / "__init__.py"), "True"]


def test_operators_built_ahead_ask_for_torch(wheel):
    source = wheel.parent / "source"
    environment = {**os.environ, "PYTHONPATH": str(wheel.parent / "stubs"), "BUILD_OPS": "1"}
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(wheel.parent / "lib")]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "BUILD_OPS=1 needs torch while building" in done.stderr


def test_pins_cover_the_dependencies_and_satisfy_their_bounds():
    from packaging.requirements import Requirement

    pins = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            pins[pin.name.lower().replace("_", "-")] = str(pin.specifier).removeprefix("==")
    assert (pins["torch"], pins["torchvision"]) == ("2.14.1", "0.29.1")
    setup = ast.parse((REPOSITORY / "setup.py").read_text())
    call = next(n.value for n in setup.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call))
    arguments = {k.arg: k.value for k in call.keywords}
    wanted = ast.literal_eval(arguments["install_requires"]) + ast.literal_eval(arguments["extras_require"])["dev"]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pins[requirement.name.lower()]), f"{requirement} against {pins[requirement.name.lower()]}"
