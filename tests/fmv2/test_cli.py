import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from fmv2.cli import COMMANDS, Command, Group, main
from fmv2.errors import UserError


def greet(name: str, *, times: int = 1) -> int:
    """Say hello.

    Args:
      name: who is greeted.
      times: how often.
    """
    return len(f"hello {name}" * times)


def refuse() -> None:
    """Fail as a user can mend."""
    raise UserError("no such folder: weights, expected a diffusers folder")


def crash() -> None:
    """Fail as only we can mend."""
    raise ValueError("a defect")


TOY = Group(
    {
        "refuse": Command(f"{__name__}:refuse", "Refuse."),
        "crash": Command(f"{__name__}:crash", "Crash."),
        "say": Group(
            {
                "hello-to": Command(f"{__name__}:greet", "Greet."),
                "unimportable": Command("no_such_module:f", "Cannot be imported."),
            },
            "Talk.",
        ),
    },
    "A toy.",
)


def leaves(group: Group, prefix: str = "") -> dict[str, Command]:
    found = {}
    for word, entry in group.commands.items():
        if isinstance(entry, Group):
            found |= leaves(entry, f"{prefix}{word} ")
        else:
            found[prefix + word] = entry
    return found


@pytest.mark.parametrize("word", ["hello-to", "hello_to"])
def test_runs_the_function_with_typed_arguments_and_returns_its_status(word):
    assert main(["say", word, "--name", "Ann", "--times", "3"], TOY) == len("hello Ann") * 3


def test_help_of_a_subcommand_comes_from_its_docstring(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["say", "hello-to", "--help"], TOY)
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert "usage: fmv2 say hello-to" in out
    assert "who is greeted" in out


@pytest.mark.parametrize(
    ("args", "listed"),
    [
        ([], ["refuse", "crash", "say"]),
        (["sya"], ["refuse", "crash", "say"]),
        (["say"], ["hello-to", "unimportable"]),
        (["say", "hullo"], ["hello-to", "unimportable"]),
        (["say", "hello-to", "--nmae", "Ann"], ["--name", "--nmae"]),
    ],
)
def test_wrong_words_exit_2_and_list_the_choices(args, listed, capsys):
    with pytest.raises(SystemExit) as exit:
        main(args, TOY)
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert all(word in err for word in listed), err


def test_what_a_user_can_mend_is_one_line_and_status_2(capsys):
    assert main(["refuse"], TOY) == 2
    captured = capsys.readouterr()
    assert captured.err == "fmv2 refuse: no such folder: weights, expected a diffusers folder\n"
    assert captured.out == ""


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ValueError, match="a defect"):
        main(["crash"], TOY)


def test_the_installed_script_knows_its_version():
    script = Path(sys.executable).with_name("fmv2")
    run = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"fmv2 {importlib.metadata.version('fmv2')}\n"


@pytest.mark.parametrize("args", [["--help"], ["convert", "--help"]])
def test_overview_imports_no_heavy_library(args):
    code = (
        "import sys\nfrom fmv2.cli import main\n"
        f"try: main({args})\n"
        "finally: print('LOADED', sorted({'jax', 'flax', 'torch', 'diffusers', 'transformers', "
        "'convert'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("path", leaves(COMMANDS))
def test_every_command_is_there_and_documented(path):
    function = leaves(COMMANDS)[path].load()
    assert function.__doc__
