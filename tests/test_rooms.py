"""The rooms of `mimuon_jax`, and who may import whom."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import mimuon_jax

# Each room with the rooms that it may import; `""` is the package itself.
BELOW = {
    "types": set(),
    "linalg": {"types"},
    "engine": {"types"},
    "transforms": {"types", "linalg", "engine"},
    "optimizers": {"types", "linalg", "transforms"},
    "diagnostics": {"types", "linalg", "engine", "transforms"},
    "": {"types", "linalg", "transforms", "optimizers", "diagnostics"},
}


def room_of(module: str) -> str:
    """``"mimuon_jax.linalg.gram"`` -> ``"linalg"``."""
    return [*module.split("."), ""][1]


def imports(source: str) -> set[str]:
    """The modules of `mimuon_jax` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from mimuon_jax import x` may name a module or a function of the package itself.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "mimuon_jax" else {node.module}
    return {name for name in found if name.split(".")[0] == "mimuon_jax"}


def wrong_arrows(sources: dict[str, str]) -> list[str]:
    """Imports that go upwards or sideways, of ``{module: source}``."""
    return [
        f"{module} imports {target}"
        for module, source in sources.items()
        for target in sorted(imports(source))
        if room_of(target) not in BELOW[room_of(module)] | {room_of(module)}
    ]


@pytest.fixture(scope="module")
def sources(repository: Path) -> dict[str, str]:
    files = repository.joinpath("mimuon_jax").rglob("*.py")
    named = {path.relative_to(repository).with_suffix(""): path.read_text() for path in files}
    return {".".join(p.parts).removesuffix(".__init__"): text for p, text in named.items()}


def test_imports_go_down(sources):
    assert wrong_arrows(sources) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("mimuon_jax.linalg.gram", "from mimuon_jax.engine.plan import plan"),
        ("mimuon_jax.engine.plan", "import mimuon_jax.linalg.gram"),
        ("mimuon_jax.transforms.gains", "from mimuon_jax.optimizers import muon"),
        ("mimuon_jax.optimizers.muon", "from mimuon_jax import diagnostics"),
        ("mimuon_jax.linalg.powers", "def f():\n    from mimuon_jax import muon"),
    ],
)
def test_an_import_upwards_is_found(sources, module, line):
    wrong = wrong_arrows(sources | {module: sources[module] + "\n" + line})
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{module} imports")


def test_few_arrows_between_rooms(sources):
    arrows = {
        (room_of(module), room_of(target))
        for module, source in sources.items()
        for target in imports(source)
    }
    assert len({(a, b) for a, b in arrows if a != b}) <= 16


def test_rooms_say_what_may_be_in_them():
    for room in ("linalg", "engine", "transforms", "optimizers"):
        assert len((importlib.import_module(f"mimuon_jax.{room}").__doc__ or "").split()) > 20


def test_public_functions_hide_no_module():
    packages = [mimuon_jax] + [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(mimuon_jax.__path__, "mimuon_jax.")
        if info.ispkg
    ]
    for package in packages:
        for info in pkgutil.iter_modules(package.__path__):
            bound = getattr(package, info.name, None)
            assert bound is None or inspect.ismodule(bound), f"{package.__name__}.{info.name}"


def test_only_what_jax_keeps_is_used(sources):
    """`jax.experimental.shard_alike` was gone two releases later, and the package with it."""
    short = [
        (module, line)
        for module, text in sources.items()
        for line in text.splitlines()
        if "jax.experimental" in line or "jax._src" in line
    ]
    assert short == []
