"""The project's commands, after `python -m pip install "nox[uv]"`: `python -m nox -s tests`.

Each session has ComfyUI's requirements and the `dev` group of pyproject.toml, under constraints.txt.
"""

import sys
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint"]

ROOT = Path(__file__).resolve().parent
# Files of tests side by side; more workers than this only load the host once more each.
BESIDE = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile")


@nox.session
def tests(session: nox.Session) -> None:
    """What a change can break at once: every patch, node and refusal, in about nine minutes on two cores."""
    run_tests(session, *BESIDE, "--ignore=tests/browser")


@nox.session
def laws(session: nox.Session) -> None:
    """The long ones: every law on both families, whole stories, and diffusers at every number of steps."""
    run_tests(session, *BESIDE, "-m", "slow", "--ignore=tests/browser")


@nox.session
def behaviour(session: nox.Session) -> None:
    """What the methods do to pictures of the demo models, and how those are trained."""
    run_tests(session, *BESIDE, "-m", "behaviour", "--ignore=tests/browser")


@nox.session
def browser(session: nox.Session) -> None:
    """The tests in ComfyUI's real frontend; needs Chromium."""
    run_tests(session, *BESIDE, *(() if session.posargs else ("tests/browser",)))


@nox.session
def demo(session: nox.Session) -> None:
    """Runs templates on the demo models, measures the methods, and writes pictures, tables and a page."""
    prepare(session)
    session.run("python", "-m", "demo", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measures what the patches cost beside the plain model."""
    prepare(session)
    session.run("python", "-m", "bench", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Copies the checkout as an install, and says how large it is and how long ComfyUI takes to import it."""
    prepare(session)
    session.run("python", "-m", "harness.package", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting, lint and types; the same three commands as the pre-commit hooks."""
    prepare(session)
    name_checkout_for_pyright()
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("pyright")


def run_tests(session: nox.Session, *options: str) -> None:
    """Runs tests; all of a session's are counted, so that none goes missing."""
    prepare(session)
    report = ROOT / ".nox" / "reports" / f"{session.name}.xml"
    report.unlink(missing_ok=True)
    session.run("python", "-m", "pytest", f"--junitxml={report}", *options, *session.posargs)
    if not session.posargs:
        session.run("python", "-m", "harness.counts", session.name)


def prepare(session: nox.Session) -> None:
    """Gets the host, installs what it and we need, and sets what every session runs under."""
    # With the interpreter that runs nox: the session's own has no pip.
    found = session.run(sys.executable, "-m", "harness.pinned", external=True, silent=True)
    host = Path(str(found).splitlines()[-1])
    session.install("-r", str(host / "requirements.txt"), "--group", "dev", "-c", "constraints.txt")
    # One thread: beside another job, two make the tiny models 20-100 times slower.
    # Large blocks are kept when they are freed: asking the system for new ones takes up to a third of a test's time.
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    session.env.update({"COMFYUI_PATH": str(host), "OMP_NUM_THREADS": "1", **kept})


def name_checkout_for_pyright() -> None:
    """Links the checkout under the name the tests import it by, whatever its folder is called."""
    pack = ROOT / ".typings" / "semblance"
    pack.parent.mkdir(exist_ok=True)
    if not pack.exists():
        pack.symlink_to(ROOT, target_is_directory=True)
