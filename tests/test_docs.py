"""README and site: their commands parse, their links lead somewhere, the listing is complete, snippets and recipes work."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from ecgbyte_jax import main as program
from ecgbyte_jax.settings import Settings

ROOT = Path(__file__).parents[1]
MADE = {"_build", "_generated", "runs"}  # by `make docs`, which may have run before
SITE = [page for page in sorted((ROOT / "docs").rglob("*.md")) if not MADE & {*page.relative_to(ROOT).parts}]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
RECIPES = sorted((ROOT / "docs/recipes").glob("*.md"))
FENCE = re.compile(r"^```(?:\{[\w-]+\} ?)?(\w*)[^\n]*\n(?::caption: (\S+)\n\n)?(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"^!?(?:\S*python main\.py|(?:\S*/)?ecgbyte)( .*)?$")


def fences(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(caption, text) of the page's code in these languages."""
    return [(caption, text) for language, caption, text in FENCE.findall(page.read_text()) if language in languages]


def commands() -> list[tuple[str, str]]:
    """(page, arguments) of every command of the program in README, site and workflow."""
    texts = [(page, text) for page in PAGES for _, text in fences(page, "sh", "ipython3")]
    found = []
    for page, text in [*texts, (WORKFLOW, WORKFLOW.read_text())]:
        for line in text.replace("\\\n", " ").splitlines():
            if match := COMMAND.match(line.split("  #")[0].strip()):
                found.append((page.relative_to(ROOT).as_posix(), " ".join((match[1] or "").split())))
    return found


@pytest.mark.parametrize(("page", "arguments"), commands())
def test_a_command_has_only_flags_and_settings_that_are_there(page, arguments, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "experiments", None)  # put back after the test: the program binds it anew
    argv = [word.split(">")[0] for word in shlex.split(arguments.split(" > ")[0])]
    if (
        "WARD" in arguments
        or "$" in arguments
        or ":runs/" in arguments
        or argv == ["init"]
        or "--help" in argv
        or "--config=..." in argv
    ):
        return
    folder = next((word.removeprefix("--run=") for word in argv if word.startswith("--run=")), "")
    if folder or any("/config.json" in word for word in argv):
        argv = ["--config=ecgbyte:demo", *(word for word in argv if not re.match(r"--run=|--config=\S*json$", word))]
    monkeypatch.chdir(ROOT)
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:  # of an earlier command
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    program._check_names(argv)
    arguments = program._expand(["ecgbyte", *argv])
    monkeypatch.setattr(sys, "argv", arguments)  # where config_flags looks for settings
    program._let_import_experiments(arguments)
    rest = flags.FLAGS(arguments)
    assert len(rest) == 1, rest
    if flags.FLAGS.config is not None:
        Settings.of(flags.FLAGS.config)
    flags.FLAGS.unparse_flags()


def test_links_lead_to_files_and_headings_that_are_there():
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?://|mailto:", target):
                continue
            file, _, heading = target.partition("#")
            linked = page.parent / file if file else page
            labels = re.findall(r"^\(([\w-]+)\)=$", "\n".join(p.read_text() for p in PAGES), re.M)
            assert linked.exists() or target in labels, f"{page}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
                assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_make_targets_and_benchmarks_that_are_named_are_there():
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= targets
    ci = WORKFLOW.read_text() + (ROOT / ".ci/run").read_text()
    assert {"docs", "lint", "test-all"} <= set(re.findall(r"^(?:\s*- run: )?make ([\w-]+)$", ci, re.M)) <= targets
    for name in re.findall(r"python -m benchmarks\.(\w+)", text):
        assert (ROOT / f"benchmarks/{name}.py").is_file(), name
    for name in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / name).is_file(), name


def test_the_site_lists_every_file_and_no_other():
    (listing,) = [text for _, text in fences(ROOT / "docs/how_it_works.md", "text") if text.startswith("main.py")]
    listed, folders = set(), [""]
    for line in listing.splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders = [*folders[: depth + 1], name]
        listed.add("".join(folders[1:]))
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ecgbyte_jax").rglob("*.py") if path.name != "__init__.py"}
    assert there <= listed, there - listed
    assert {path for path in listed if path.endswith(".py")} - there <= {
        "main.py", "experiments/common.py", "experiments/stored.py"
    }  # fmt: skip


def test_the_readme_is_short_and_names_every_folder():
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 10_000
    for folder in (ROOT / "ecgbyte_jax").glob("*/__init__.py"):
        assert f"  {folder.parent.name}/ " in text, folder


def test_every_experiment_is_in_the_readmes_table():
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "experiments").glob("*.py"):
        assert path.stem in ("common", "stored", "demo_pretrained") or f"`{path.stem}`" in text, path


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A folder with the demo's small run, evaluated, which the snippets of all pages share."""
    folder = tmp_path_factory.mktemp("docs")
    run(
        folder, "--config=ecgbyte:demo:small", "--workdir=runs/small", "--stage=prepare,train,eval", "--config.train.epochs=0.5"
    )
    (folder / "runs/demo").symlink_to("small")
    (folder / "runs/ptb").symlink_to("small")
    return folder


def run(folder: Path, *arguments: str, root: Path = ROOT) -> str:
    """`python main.py` of a checkout, in a folder."""
    env = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, str(root / "main.py"), *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_snippets_of_the_tokenizer_and_the_paper_run(small, shared, monkeypatch):
    monkeypatch.chdir(small)
    from ecgbyte_jax.ecg.tokenizer import ECGTokenizer

    tokenizer = ECGTokenizer.load("runs/ptb/tokenizer/ecg_tokenizer.json")
    names = {"segment": tokenizer.decode(tokenizer.encode(0.1 * __import__("numpy").ones((12, 100))))}
    names |= {"percentile_1": -1.0, "percentile_99": 1.0}
    (small / "PTBXL").symlink_to(shared / "data/ptbxl")
    (published,) = [path for path in (shared / "data/ecg_byte_tokenizers").glob("*.pkl") if "5000_500000" in path.name][:1]
    shutil.copy(published, small / "ecg_byte_tokenizer_5000_500000.pkl")
    for page in ("tokenizer.md", "interpretability.md"):
        for _, text in fences(ROOT / "docs" / page, "python"):
            exec(text, names)
    assert (small / "ecg.svg").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_is_followed_literally_works(recipe, small, shared, tmp_path):
    for name in ("ecgbyte_jax", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", tmp_path)
    shutil.copytree(small / "runs/small", tmp_path / "runs/small")
    (tmp_path / "CPSC").symlink_to(shared / "data/cpsc2018")
    for language, caption, text in FENCE.findall(recipe.read_text()):
        if caption:
            (tmp_path / caption).write_text(text)
        elif language == "diff":
            change(tmp_path, text)
        elif language == "python":
            env = os.environ | {"PYTHONPATH": str(tmp_path)}
            subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=env, check=True, timeout=300)
        elif language == "sh":
            shown = run(tmp_path, *shlex.split(text)[2:], root=tmp_path)
            assert {"metric": "word f1", "data_set": "prepared", "question": "prepared"}[recipe.stem] in shown.lower()


def change(root: Path, diff: str) -> None:
    """Makes the change of a diff without line numbers: its lines must be there once."""
    heads, *hunks = re.split(r"^@@\n", diff, flags=re.M)
    path = root / re.search(r"^\+\+\+ b/(\S+)", heads, re.M)[1]
    for hunk in hunks:
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
        text = path.read_text()
        assert text.count(before) == 1, f"{path}: {before!r}"
        path.write_text(text.replace(before, after))
