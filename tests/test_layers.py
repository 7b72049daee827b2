"""Each layer imports from those below it alone, and no module, by whatever way, itself."""

import ast
import graphlib
import re

import pytest

from tests.helpers import ROOT

LAYERS = [("utils",), ("bicubic",), ("models",), ("data",), ("engine",), ("tools",), ("figure",),
          ("distillation", "train_teacher")]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = [path for name in RANK for path in ([ROOT / f"{name}.py"] if (ROOT / f"{name}.py").is_file()
                                            else sorted((ROOT / name).glob("*.py")))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imports(module):
    """The project's modules that it imports, in functions, too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports relative to itself, unlike the others"
            below = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= below or {node.module}
    return found & MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_from_above_its_layer(module):
    """Nor what Windows lacks."""
    layer = module.split(".")[0]
    above = {name for name in imports(module) if (other := name.split(".")[0]) != layer and RANK[other] >= RANK[layer]}
    assert not above
    text = MODULES[module].read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) (fcntl|resource|pwd|termios)\b", text, re.M)


def test_no_module_imports_itself_in_the_end():
    """Of all modules: each has its layer."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages | {path.stem for path in ROOT.glob("*.py")} == {*RANK, "tests"}
    graphlib.TopologicalSorter({module: imports(module) for module in MODULES}).prepare()  # raises CycleError
