"""The program behind a command: its source, room by room, and the libraries it computes with."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

OURS = "neuro_lens"
HOOKS = f"{OURS}.hooks"
ADAPTERS = f"{OURS}.adapters"
LIBRARIES = (
    "torch", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "safetensors",
    "transformer-lens", "sae-lens", "torch_brain",
)  # fmt: skip
NEUTRAL = {f"{OURS}.base.{name}" for name in ("executors", "progress", "program", "worker")}
"""Modules that map work and show it, whose change changes no result."""


class _Module(NamedTuple):
    """A module's source, the package that it is in, and the modules that it imports."""

    text: str
    tree: ast.Module
    package: str
    imports: frozenset[str]


def program(command: str) -> dict[str, str]:
    """Return what the result of a command depends on besides its parameters.

    Followed are the imports that the function can reach, inside its own package and ours, without
    importing anything. Of the function's own module only what it uses counts, of any other module
    all. Our adapters count wherever hook points are used, since they are found by entry points.

    Parameters
    ----------
    command : str
        ``"package.module:function"``.

    Returns
    -------
    dict of str to str
        By room (``neuro_lens.saes``) a SHA-256 (first 16 hex digits) of the source, under the
        command's own name that of the function with what it uses beside it, and by library its
        version.
    """
    name = command.partition(":")[0]
    text, modules = _followed(command)
    digests: dict[str, hashlib._Hash] = {}
    _add(digests, command, text)
    for module, path in sorted(modules.items()):
        if module not in {name, *NEUTRAL}:
            text = _parsed(path, path.stat().st_mtime_ns, module).text
            _add(digests, ".".join(module.split(".")[:2]), f"{module}\n{text}")
    versions = {library: _version(library) for library in LIBRARIES}
    return {room: digest.hexdigest()[:16] for room, digest in digests.items()} | versions


def load(command: str) -> None:
    """Import every module that a command can reach, so that later changes do not reach it."""
    for module in _followed(command)[1]:
        with suppress(ImportError):
            importlib.import_module(module)


def _followed(command: str) -> tuple[str, dict[str, Path]]:
    """Return the source of a command with what it uses beside it, and the modules that it reaches.

    The command's own module is among them, with its file.
    """
    name, _, function = command.partition(":")
    tops = {name.partition(".")[0], OURS}
    text, todo = _reached(name, function)
    own = _path(name)
    found = {name: own} if own is not None else {}
    seen = {name}
    while todo:
        module = todo.pop()
        if module in seen or module.partition(".")[0] not in tops:
            continue
        seen.add(module)
        path = _path(module)
        if path is not None:
            found[module] = path
            if module not in NEUTRAL:
                todo |= _parsed(path, path.stat().st_mtime_ns, module).imports
            if module == HOOKS:
                todo |= {f"{ADAPTERS}.{file.stem}" for file in _adapters()}
    return text, found


def _add(digests: dict[str, hashlib._Hash], room: str, text: str) -> None:
    digests.setdefault(room, hashlib.sha256()).update(text.encode())


def _reached(module: str, function: str) -> tuple[str, set[str]]:
    """Return the source that a function of a module can reach in it, and what that imports."""
    path = _path(module)
    if path is None:
        return "", set()
    source = _parsed(path, path.stat().st_mtime_ns, module)
    defined = {
        node.name: node
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    reached, todo = (
        set(),
        {function}
        | {
            name
            for node in source.tree.body
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            for name in _names(node)
        },
    )
    while todo:
        name = todo.pop()
        if name in defined and name not in reached:
            reached.add(name)
            todo |= _names(defined[name])
    kept = [node for node in source.tree.body if getattr(node, "name", None) not in defined]
    kept += [defined[name] for name in sorted(reached)]
    lines = source.text.splitlines()
    text = "\n".join("\n".join(lines[_first(node) - 1 : node.end_lineno]) for node in kept)
    return text, {found for node in kept for found in _imports(node, source.package)}


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _first(node: ast.stmt) -> int:
    return min([d.lineno for d in getattr(node, "decorator_list", [])] + [node.lineno])


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that are imported anywhere in a tree, with their names written out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            parts = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _path(module: str) -> Path | None:
    """Return a module's file, or None where there is none (``base.name`` may be no module)."""
    top, *rest = module.split(".")
    for root in _roots(ADAPTERS if module.startswith(ADAPTERS) else top, tuple(sys.path)):
        inner = rest[1:] if module.startswith(ADAPTERS) else rest
        place = root.joinpath(*inner)
        for path in (place.with_suffix(".py") if inner else None, place / "__init__.py"):
            if path is not None and path.is_file():
                return path
        if not inner and root.is_file():
            return root
    return None


@lru_cache(maxsize=64)
def _roots(package: str, search: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the folders of a package, or the file of a module outside of packages."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        return tuple(Path(place) for place in spec.submodule_search_locations)
    origin = spec.origin if spec else getattr(sys.modules.get(package), "__file__", None)
    return (Path(origin),) if origin else ()


def _adapters() -> list[Path]:
    roots = _roots(ADAPTERS, tuple(sys.path))
    return [path for root in roots for path in sorted(root.glob("*.py"))]


@lru_cache(maxsize=1024)
def _parsed(path: Path, changed: int, module: str) -> _Module:
    text = path.read_text("utf-8")
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(text)
    except SyntaxError:  # whoever imports it is told
        tree = ast.Module([], [])
    return _Module(text, tree, package, frozenset(_imports(tree, package)))


@lru_cache(maxsize=64)
def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "none"
