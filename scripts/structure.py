#!/usr/bin/env python3
"""The shape of the library in figures: size, functions, long files, and how its files and folders import each other.

    scripts/structure.py              # the working tree
    scripts/structure.py 3193c45 .    # a revision beside the working tree, a column each

Only the three packages are counted, not tests and scripts. A statement is a node of the syntax tree, docstrings left
out: a measure that does not depend on formatting. An import inside a function counts like one at the top. A folder is
the folder a file lies in; a file that lies loose in its package stands for itself. Floors are the files (or folders)
of the longest chain of imports, a circle taken as one.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("judge_pipeline", "reward_model", "dpo")
LONGEST_FUNCTION = 60
LONGEST_FILE = 400
Sources = dict[str, str]
"""Path inside the repository to text."""
Graph = dict[str, set[str]]


def working_tree(root: Path = ROOT) -> Sources:
    """Python files of the three packages as they lie on disk."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def revision(name: str, root: Path = ROOT) -> Sources:
    """Python files of the three packages in a git revision.

    Raises:
        subprocess.CalledProcessError: git does not know the revision.
    """
    packed = subprocess.run(["git", "archive", name, *PACKAGES], cwd=root, stdout=subprocess.PIPE, check=True)
    found: Sources = {}
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".py") else None
            if content is not None:
                found[member.name] = content.read().decode("utf-8")
    return found


def function_lengths(sources: Sources) -> dict[str, int]:
    """`path:name` of every function and method to its number of lines, decorators left out."""
    found = {}
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[f"{path}:{node.lineno} {node.name}"] = (
                    (node.end_lineno or node.lineno) - node.lineno + 1
                )
    return found


def statements(text: str) -> int:
    """Statements of a file without its docstrings."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    return sum(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in nodes)


def import_graph(sources: Sources) -> Graph:
    """Which files each file imports, among the files given."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    graph: Graph = {path: set() for path in sources}
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else node.module for name in whole]
            graph[path] |= {modules[name] for name in names if name in modules} - {path}
    return graph


def folder_of(path: str) -> str:
    """The folder a file lies in; the file itself where it lies loose in its package."""
    place = PurePosixPath(path)
    return path if len(place.parts) == 2 else place.parent.as_posix()


def folder_graph(files: Graph) -> Graph:
    """Which folders each folder imports from."""
    graph: Graph = defaultdict(set)
    for path, imported in files.items():
        graph[folder_of(path)] |= {folder_of(other) for other in imported} - {folder_of(path)}
    return dict(graph)


def circles(graph: Graph) -> list[list[str]]:
    """Groups that import each other, directly or by a way around."""
    reach = {node: _reachable(graph, node) for node in graph}
    groups = {tuple(sorted(other for other in reach[node] if node in reach[other])) for node in graph}
    return sorted(list(group) for group in groups if group)


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    todo = list(graph[start])
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += graph[node]
    return found


def floors(graph: Graph) -> int:
    """Length of the longest chain of imports, each circle taken as one."""
    group = {node: node for node in graph} | {node: ring[0] for ring in circles(graph) for node in ring}
    merged: Graph = defaultdict(set)
    for node, others in graph.items():
        merged[group[node]] |= {group[other] for other in others} - {group[node]}
    known: dict[str, int] = {}

    def floor(node: str) -> int:
        if node not in known:
            known[node] = 1 + max(map(floor, merged[node]), default=0)
        return known[node]

    return max(map(floor, list(merged)), default=0)


def measures(sources: Sources) -> dict[str, str]:
    """One column of the table."""
    lengths = sorted(function_lengths(sources).values())
    lines = {path: len(text.splitlines()) for path, text in sources.items()}
    files = import_graph(sources)
    folders = folder_graph(files)
    result = {"lines": f"{sum(lines.values()):,}"}
    for package in PACKAGES:
        result[f"  {package}"] = f"{sum(n for path, n in lines.items() if path.startswith(package)):,}"
    rows: Mapping[str, Callable[[], int]] = {
        "statements": lambda: sum(map(statements, sources.values())),
        "files": lambda: len(sources),
        f"files over {LONGEST_FILE} lines": lambda: sum(n > LONGEST_FILE for n in lines.values()),
        "functions": lambda: len(lengths),
        "  median lines": lambda: round(statistics.median(lengths)),
        "  90% have at most": lambda: lengths[int(0.9 * (len(lengths) - 1))],
        f"  over {LONGEST_FUNCTION} lines": lambda: sum(n > LONGEST_FUNCTION for n in lengths),
        "imports between files": lambda: sum(map(len, files.values())),
        "floors of files": lambda: floors(files),
        "circles of files": lambda: len(circles(files)),
        "folders": lambda: len(folders),
        "floors of folders": lambda: floors(folders),
        "circles of folders": lambda: len(circles(folders)),
    }
    return result | {name: f"{count():,}" for name, count in rows.items()}


def main() -> None:
    """Print the table, and below it the circles of the last column."""
    parser = argparse.ArgumentParser(description="The shape of the library in figures.")
    parser.add_argument("revisions", nargs="*", default=["."], help="git revisions; . is the working tree")
    names = parser.parse_args().revisions
    read = [working_tree() if name == "." else revision(name) for name in names]
    columns = [measures(sources) for sources in read]
    titles = ["working tree" if name == "." else name for name in names]
    print(f"{'':24}" + "".join(f"{title:>14}" for title in titles))
    for row in columns[0]:
        print(f"{row:24}" + "".join(f"{column[row]:>14}" for column in columns))
    files = import_graph(read[-1])
    for kind, graph in (("files", files), ("folders", folder_graph(files))):
        for ring in circles(graph):
            print(f"circle of {kind}: {', '.join(ring)}")


if __name__ == "__main__":
    main()
