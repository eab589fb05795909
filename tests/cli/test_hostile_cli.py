"""The command line and what is hostile to it: names that terminals obey, signals, places, and bugs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from called import run
from PIL import Image
from toys import COLOURS, picture
from typer.testing import CliRunner

from promptprism.cli import main
from promptprism.cli.output import Output, terminal, to_json, visible
from promptprism.errors import PromptPrismError
from promptprism.files import locked

FORMAT_1 = Path(__file__).parents[1] / "adapters" / "format-1"
SOURCE = Path(__file__).parents[2] / "src"


def start(*arguments, **environment):
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "promptprism", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path} | environment, **pipes)


@pytest.fixture
def failing(monkeypatch):
    """A command that raises what it is given."""

    def fail(error):
        def command():
            raise error

        short = typer.Typer(cls=main._Commands)
        short.callback(invoke_without_command=True)(lambda: None)
        short.command("go")(command)
        return CliRunner().invoke(short, ["go"])

    monkeypatch.delenv("PROMPTPRISM_TRACEBACK", raising=False)
    return fail


def test_what_a_terminal_obeys_is_written_out(capsys):
    name = "red\x1b]0;owned\x07\x9b31m\u202egpj\r\x00 caf\u00e9\t\u8349"
    said = r"red\x1b]0;owned\x07\x9b31m\u202egpj\r\x00 caf" + "\u00e9\t\u8349"
    assert visible(name) == said and visible(said) == said
    from rich.table import Table

    table = Table(title=name)
    table.add_row(name)
    console = terminal(width=200, highlight=False, force_terminal=True)
    console.print(name, table, style="red")
    shown = capsys.readouterr().out
    assert r"red\x1b]0;owned" in shown and "\x1b[31m" in shown  # its own colours stay
    assert not any(bad in shown for bad in ("\x1b]", "\x07", "\x9b", "\u202e", "\x00"))
    document = to_json({"name": name})
    assert json.loads(document)["name"] == name
    assert not any(bad in document for bad in "\x1b\x07\x9b\u202e\x00\r")


def test_hostile_names_in_errors_are_written_out(failing):
    said = failing(PromptPrismError("no class '\x1b[2J\x1b]0;x\x07'\nerror: all is well")).stderr
    assert said == "error: no class '\\x1b[2J\\x1b]0;x\\x07'\n    error: all is well\n"


def test_a_number_that_is_none_is_no_json():
    with pytest.raises(PromptPrismError, match="not finite"):
        to_json({"probability": float("nan")})


def test_a_bug_is_one_line_that_says_how_to_report_it(failing, monkeypatch):
    result = failing(IndexError("list index\nout of range \x1b[31m"))
    assert result.exit_code == 70 and not result.stdout
    assert result.stderr.count("\n") == 1 and "\x1b" not in result.stderr
    assert result.stderr.startswith("error: IndexError: list index out of range")
    assert "bug in promptprism" in result.stderr and "PROMPTPRISM_TRACEBACK=1" in result.stderr
    result = failing(MemoryError("Unable to allocate 9 GiB"))
    assert result.exit_code == 70 and "not enough memory (Unable to allocate 9 GiB)" in result.stderr
    assert "not enough memory: take smaller" in failing(MemoryError()).stderr
    for asked in (PromptPrismError("bad"), IndexError("bug")):
        monkeypatch.setenv("PROMPTPRISM_TRACEBACK", "1")
        assert failing(asked).exception is asked


@pytest.mark.parametrize("reason", ["", "stopped in epoch 3 of 4. The first 2 are kept in 'a.checkpoint'"])
def test_ctrl_c_says_what_was_kept_or_that_it_stopped(failing, reason):
    result = failing(KeyboardInterrupt(*filter(None, [reason])))
    assert (result.exit_code, result.stderr) == (130, f"{reason or 'stopped'}\n")


@pytest.fixture
def data(tmp_path):
    for name in list(COLOURS)[:2]:
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(picture(name, number)).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_say_what_was_kept_and_end_with_their_number(data, tmp_path, name):
    settings = ["--set", "epochs=20000", "--method", "coop", "--shots", 1, "--set", "batch_size=2"]
    process = start("fit", data, *settings, "--backbone", "mini", "--out", tmp_path / "out" / "a")
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "a.checkpoint").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 128 + getattr(signal, name)
    assert "are kept in" in said and "a.checkpoint" in said and "Traceback" not in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.checkpoint"]


def test_what_ignores_a_signal_goes_on_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with main._stopping(lambda *_: pytest.fail("it was stopped")):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_a_place_for_an_adapter_is_for_one_run_and_no_link_to_nothing(data, tmp_path):
    fit = ["fit", data, "--method", "zero-shot", "--shots", 1, "--backbone", "mini", "--out"]
    with locked(tmp_path / ".a.lock"):
        assert "another run is writing" in run(*fit, tmp_path / "a", code=2).stderr
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "x")
    assert "link' exists" in run(*fit, tmp_path / "link", code=2).stderr
    for nameless in (".", "", "/"):
        assert "exists: choose another folder" in run(*fit, nameless, code=2).stderr
    run(*fit, tmp_path / "new" / "a")
    (tmp_path / "new" / "a.checkpoint").write_text("of a run that was killed when all was saved")
    assert "a' exists" in run(*fit, tmp_path / "new" / "a", code=2).stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


@pytest.mark.slow
def test_some_images_cannot_be_read(data, tmp_path):
    (data / "bad.png").write_bytes(b"GIF89a")
    good, missing = data / "red" / "0.png", data / "none\x1b.png"
    place = tmp_path / "p.json"
    done = run("predict", FORMAT_1, good, data / "bad.png", missing, "--json", place, code=1)
    content = json.loads(place.read_text())
    assert [row["image"] for row in content["predictions"]] == [str(good)]
    assert [row["image"] for row in content["unread"]] == [str(data / "bad.png"), str(missing)]
    assert "no such image" in content["unread"][1]["reason"] and "\x1b" not in done.output
    assert "bad.png'isnotanimage" in "".join(done.output.split())  # wrapped anywhere
    assert r"none\x1b.png'." in "".join(done.output.split())  # nothing is cut
    assert "none of 2 images can be read" in run("predict", FORMAT_1, missing, missing, code=2).stderr
    assert json.loads(run("predict", FORMAT_1, good, "--json", "-").stdout)["unread"] == []


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16"])
def test_hostile_encodings_of_stdout_end_nothing(data, encoding):
    # A table has lines that none of these but UTF-16 can write; to predict takes ten times as long to start.
    shown, *words = (
        ("0.png", "predict", FORMAT_1, data / "red" / "0.png")
        if encoding == "ascii"
        else ("eurosat", "datasets")
    )
    process = start(*words, PYTHONIOENCODING=encoding)
    said = b"".join(process.communicate(timeout=120)).decode(encoding, "replace")
    assert process.returncode == 0 and shown in said and "Traceback" not in said


def test_json_goes_through_links_and_devices(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there.json")
    for target in (tmp_path / "link", "/dev/null"):
        Output("methods", str(target)).write(methods={})
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "there.json").read_text())[
        "methods"
    ] == {}
    assert Path("/dev/null").is_char_device()
