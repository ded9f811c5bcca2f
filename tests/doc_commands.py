"""Commands and Python in README.md and docs/*.md: where they stand, and whether they are written rightly.

A command stands in a fenced block of a shell, or is a line of another block that begins with a program of `PROGRAMS`.
"""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer
from snakemake.cli import get_argument_parser

from mallowspo.cli import app

ROOT = Path(__file__).parents[1]
PROGRAMS = {
    *("mallowspo", "snakemake", "make", "python", "python3", "pip", "pip-audit", "pytest", "mlflow", "conda"),
    *(".", "source", "export", "cd", "cp", "mv", "rm", "mkdir", "cat", "git", "gh", "sudo", "apt-get", "docker"),
    *("apptainer", "kubectl", "sbatch", "srun", "squeue", "scancel", "scontrol", "curl", "wget", "ssh", "rsync"),
}  # fmt: skip
SHELLS = {"bash", "sh", "shell", "console"}
OTHER_LANGUAGES = {"python", "yaml", "json", "text", "latex", "bibtex", "html", "diff", "csv"}
ASSIGNMENT = r"[A-Za-z_]\w*=.*"
REDIRECTIONS = {">", ">>", "<", "2>"}


class Block(NamedTuple):
    """`language` is empty where none is said, and of indented blocks."""

    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """One call, without what the shell does around it."""

    page: str
    line: int
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def pages() -> dict[str, str]:
    """Path from the root -> text of every page."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}


def blocks(page: str, text: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones that follow an empty line."""
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        fence = re.match(r"\s*```(\w*)", lines[number])
        start = number + 1
        if fence:
            end = next(n for n in range(start, len(lines)) if lines[n].strip() == "```")
            yield Block(page, start + 1, fence[1], textwrap.dedent("\n".join(lines[start:end])))
            number = end + 1
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block(page, number + 1, "", textwrap.dedent("\n".join(lines[number:end])).rstrip())
            number = end
        else:
            number += 1


def all_blocks() -> list[Block]:
    return [block for page, text in pages().items() for block in blocks(page, text)]


def commands() -> list[Command]:
    """Every command of every page, in their order."""
    return [command for block in all_blocks() for command in commands_of(block)]


def commands_of(block: Block) -> Iterator[Command]:
    if block.language in OTHER_LANGUAGES or is_python(block):
        return
    line, pending = block.line, ""
    for number, text in enumerate(block.text.split("\n")):
        line = line if pending else block.line + number
        joined = pending + text.strip().removeprefix("$ ")
        if joined.endswith("\\"):
            pending = joined[:-1] + " "
            continue
        pending = ""
        first = joined.split()[0] if joined.split() else "#"
        if first.startswith("#"):
            continue
        if re.match("--[a-z]", first):  # more options of Snakemake, told without the call
            joined, first = f"snakemake {joined}", "snakemake"
        if block.language in SHELLS or first in PROGRAMS or re.fullmatch(r"[A-Z_]+=\S*", first):
            yield from _calls(block.page, line, joined)


def _calls(page: str, line: int, text: str) -> Iterator[Command]:
    """A line's calls: parted at ;, &&, | and the like, without redirections and assignments before them."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|()"):
            call = _without_redirections(words)
            while call and re.fullmatch(ASSIGNMENT, call[0]):
                call = call[1:]
            if call:
                yield Command(page, line, tuple(call))
            words = []
        else:
            words.append(word)


def _without_redirections(words: list[str]) -> list[str]:
    if not set(words) & REDIRECTIONS:
        return words
    first = min(words.index(sign) for sign in REDIRECTIONS if sign in words)
    return words[:first]


def is_python(block: Block) -> bool:
    """A block that says so, or an indented one that can be nothing else."""
    if block.language:
        return block.language == "python"
    try:
        body = ast.parse(block.text).body
    except SyntaxError:
        return False
    certain = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return any(isinstance(part, certain) or isinstance(getattr(part, "value", None), ast.Call) for part in body)


def inline() -> Iterator[Command]:
    """Commands in the running text: `mallowspo ...` and `snakemake ...` between backticks."""
    for page, text in pages().items():
        without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for found in re.findall(r"`((?:mallowspo|snakemake) [^`]+)`", without_blocks):
            yield Command(page, 0, tuple(shlex.split(found.replace("\n", " "), comments=True)))


def find(words: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The command of `mallowspo` that is called, and the words that are left for it.

    Raises:
        ValueError: there is none of that name.
    """
    command, left = typer.main.get_command(app), list(words[1:])
    while hasattr(command, "commands"):
        if not left or left[0] not in command.commands:
            raise ValueError(
                f"no command {' '.join(left[:1]) or '(nothing)'!r}; there are {', '.join(command.commands)}"
            )
        command = command.commands[left.pop(0)]
    return command, left


def check_whole(words: tuple[str, ...]) -> None:
    """Parse a call of `mallowspo` as the program would: every option, argument and type; nothing is missing.

    Raises:
        ValueError: it would be refused.
    """
    command, left = find(words)
    try:
        command.make_context(command.name, left)
    except Exception as error:  # noqa: BLE001 - click's own, of whichever click typer brings
        raise ValueError(getattr(error, "format_message", error.__str__)()) from None


def check_options(words: tuple[str, ...]) -> None:
    """Of a call in the running text, which may leave out what it needs: are all its options known?

    Raises:
        ValueError: one is not.
    """
    if words[0] == "snakemake":
        known = set(get_argument_parser()._option_string_actions)
        left = list(words)
    else:
        if words[1].startswith("--") or words[1].isupper() or words[1] == "...":  # of the program itself, or any stage
            return
        command, left = find(words)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = [word for word in left if word.startswith("--") and word.split("=")[0] not in {*known, "--help"}]
    if unknown:
        raise ValueError(f"no option {', '.join(unknown)}")
