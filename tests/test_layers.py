"""The arrows of docs/architecture.md: an import points down, never sideways, never back."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "kernels",
    "common",
    "kv_transfer",
    "prefill",
    "decode",
    "proxy",
    "scripts",
    "benchmarks",
)

MAY_IMPORT = {
    "kernels": set(),
    "common": {"kernels"},
    "kv_transfer": {"common", "kernels"},
    "prefill": {"common", "kv_transfer"},
    "decode": {"common", "kv_transfer"},
    "proxy": {"common"},
    "benchmarks": {"common", "kernels", "kv_transfer", "proxy"},
    "scripts": set(PACKAGES),
}

# Inside common: each part may use the ones before it (and the plain modules of common itself).
COMMON_PARTS = ("admission", "grammar", "model", "engine", "parallel", "api", "instance")
COMMON_MAY = {
    "grammar": set(),
    "model": set(),
    "engine": {"grammar", "model"},
    "parallel": {"model", "engine"},
    "admission": set(),
    "api": {"admission"},
    "instance": {"grammar", "model", "engine", "parallel", "admission", "api"},
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_downward(package):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(package)
        for name in imports_of(path)
        if (top := name.partition(".")[0]) in PACKAGES
        and top != package
        and top not in MAY_IMPORT[package]
    ]
    assert not wrong


@pytest.mark.parametrize("part", COMMON_PARTS)
def test_parts_of_common_import_only_downward(part):
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(f"common/{part}")
        for name in imports_of(path)
        if name.startswith("common.")
        and (other := name.split(".")[1]) in COMMON_PARTS
        and other != part
        and other not in COMMON_MAY[part]
    ]
    assert not wrong


def test_plain_modules_of_common_import_no_part_of_it():
    wrong = [
        f"{path.name} imports {name}"
        for path in sorted((ROOT / "common").glob("*.py"))
        for name in imports_of(path)
        if name.startswith("common.") and name.split(".")[1] in COMMON_PARTS
    ]
    assert not wrong


def test_package_inits_are_empty():
    filled = [str(p) for package in PACKAGES for p in files_of(package) if p.name == "__init__.py"]
    assert filled
    assert not [name for name in filled if Path(name).read_text().strip()]


@pytest.mark.parametrize("module", ["proxy.server", "common.api.app", "scripts.cli"])
def test_front_end_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert done.returncode == 0, f"importing {module} loads torch"
