"""The help of a preset on three screens of 30 lines: one line per option, in groups."""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import typing
from typing import Any

GROUPS = ("data", "model", "optimizer")
COLUMN = 34  # where texts begin at most, except after longer options


def short_help(config: Any, program: str) -> str:
    """Options with their defaults and the first sentence about each.

    Options of options (`--model.rope-scaling.factor`), and those about the processes of a run on
    many machines, are left to `--help-all`.

    Example:
        >>> from train.presets import load
        >>> text = short_help(load("lm").CONFIG, "python -m train lm")
        >>> next(line for line in text.splitlines() if "--steps" in line).split(maxsplit=2)
        ['--steps', '200', 'Length of the run, in optimizer steps']
    """
    lines = [f"usage: {program} [--optimizer NAME] [--config FILE] [options]"]
    for group in ("run", *GROUPS):
        member = config if group == "run" else getattr(config, group, None)
        if dataclasses.is_dataclass(member):
            prefix = "--" if group == "run" else f"--{group}."
            lines += [f"{group}:", *option_lines(member, prefix)]
    return "\n".join([*lines, "--help-all says more, and has the other options."])


def option_lines(config: Any, prefix: str = "--") -> list[str]:
    """One line per option of a configuration."""
    options, texts = {}, _texts(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not dataclasses.is_dataclass(value) and field.name != "preset":
            flag = field.name.replace("_", "-")
            options[f"  {prefix}{flag} {_shown(value)}"] = texts.get(field.name, "")
    column = min(max(map(len, options)), COLUMN)
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    lines = [f"{option.ljust(column)}  {text}".rstrip() for option, text in options.items()]
    return [
        line if len(line) <= width else f"{line[: width - 4].rpartition(' ')[0]} ..."
        for line in lines
    ]


def _shown(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, bool):
        return "(on)" if value else "(off)"  # not typed: --a.b, or --a.no-b
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return repr(value) if value == "" else str(value)


def _texts(kind: type) -> dict[str, str]:
    """The first sentence about every field: of its annotation, or of the text below it."""
    texts: dict[str, str] = {}
    for made in reversed(kind.__mro__):
        if dataclasses.is_dataclass(made):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(made))).body
            assert isinstance(body, ast.ClassDef)
            for node, below in zip(body.body, body.body[1:], strict=False):
                if isinstance(node, ast.AnnAssign) and isinstance(below, ast.Expr):
                    texts[ast.unparse(node.target)] = str(ast.literal_eval(below.value))
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for data in getattr(hint, "__metadata__", ()):
            texts[name] = getattr(data, "help", None) or texts.get(name, "")
    return {
        name: " ".join(text.split()).partition(". ")[0].rstrip(".") for name, text in texts.items()
    }
