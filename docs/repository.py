"""What the site and a release know of their repository: badges, links to source, ready notebooks.

The repository has no fixed address. GitHub Actions name it (`GITHUB_REPOSITORY`), or pyproject.toml
does, in `[project.urls]`; otherwise there are neither badges nor links.

    GITHUB_REPOSITORY=owner/name python docs/repository.py FOLDER  # notebooks that install it
"""

import importlib
import inspect
import json
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


def repository(environment: Mapping[str, str], project: Mapping[str, Any]) -> str | None:
    """The owner and name of the repository on GitHub, or None if nothing states it.

    Args:
        environment: variables, of which `GITHUB_REPOSITORY` is read.
        project: the table `[project]` of pyproject.toml.

    Example:
        >>> repository({}, {"urls": {"Source": "https://github.com/owner/name.git"}})
        'owner/name'
        >>> repository({}, {"name": "mimuon-jax"}) is None
        True
    """
    if environment.get("GITHUB_REPOSITORY"):
        return environment["GITHUB_REPOSITORY"]
    found = (
        re.match(r"https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?$", url)
        for url in project.get("urls", {}).values()
    )
    return next((match[1] for match in found if match), None)


def here() -> tuple[str | None, str]:
    """The repository of this checkout, and the branch or tag that links lead to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return repository(os.environ, project), os.environ.get("GITHUB_REF_NAME", "main")


def with_badge(notebook: str, path: str, name: str, ref: str) -> str:
    """A notebook, as JSON, whose first cell ends with a badge that opens it in Colab."""
    made = json.loads(notebook)
    link = f"https://colab.research.google.com/github/{name}/blob/{ref}/{path}"
    (setting,) = _setting(made, name, ref).values()
    lines = setting.replace("\n", "`, `")
    text = f"\n\n[![Open in Colab]({BADGE})]({link}) There, start the first cell with `{lines}`."
    made["cells"][0]["source"] = "".join(made["cells"][0]["source"]) + text
    return json.dumps(made)


def ready(notebook: str, name: str, ref: str) -> str:
    """A notebook, as JSON, that installs the package from its repository, wherever it runs."""
    made = json.loads(notebook)
    ((line, setting),) = _setting(made, name, ref).items()
    for cell in made["cells"]:
        cell["source"] = "".join(cell["source"]).replace(line, setting)
    return json.dumps(made, indent=1) + "\n"


def _setting(notebook: Mapping[str, Any], name: str, ref: str) -> dict[str, str]:
    """The line that says where the package is in a checkout, and what replaces it elsewhere."""
    url = f"https://github.com/{name}"
    settings = {
        'SOURCE = ".."': f'SOURCE = "git+{url}@{ref}"',
        'CHECKOUT = ".."': f'!git clone -q --branch {ref} {url} checkout\nCHECKOUT = "./checkout"',
    }
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return {line: setting for line, setting in settings.items() if line in code[0].splitlines()}


def source_link(module: str, name: str, *, repository: str, ref: str) -> str | None:
    """The address of the source of an object, or None if it is not a function or class of ours."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(found))
        path = Path(inspect.getsourcefile(inspect.unwrap(found)) or "").relative_to(ROOT)
    except (TypeError, ValueError, OSError):
        return None
    place = f"{path.as_posix()}#L{first}-L{first + len(lines) - 1}"
    return f"https://github.com/{repository}/blob/{ref}/{place}"


if __name__ == "__main__":
    name, ref = here()
    if name is None:
        raise SystemExit("no repository is known: set GITHUB_REPOSITORY=owner/name")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        (folder / path.name).write_text(ready(path.read_text(), name, ref))
