"""Each layer imports from those below it alone, and no module, by whatever way, itself."""

import ast
import graphlib
import re

from tests.helpers import ROOT

LAYERS = [("utils",), ("bicubic",), ("models",), ("data",), ("engine",), ("tools",), ("figure",),
          ("distillation", "train_teacher")]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf-8")
           for name in RANK for path in (*ROOT.glob(f"{name}.py"), *ROOT.glob(f"{name}/*.py"))}


def imports(module):
    """The project's modules that it imports, in functions, too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports relative to itself, unlike the others"
            below = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= below or {node.module}
    return found & MODULES.keys()


def test_no_module_imports_from_above_its_layer_or_in_the_end_itself():
    """Nor what Windows lacks, unless it expects an ImportError. Of all modules: each has its layer."""
    for module, text in MODULES.items():
        layer, others = module.split(".")[0], {name.split(".")[0] for name in imports(module)}
        assert not {other for other in others if other != layer and RANK[other] >= RANK[layer]}, module
        unguarded = re.sub(r"suppress\(ImportError\b.*\n\s+(import|from) .*", "", text)
        assert not re.search(r"^\s*(import|from) (fcntl|resource|pwd|termios)\b", unguarded, re.M), module
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages | {path.stem for path in ROOT.glob("*.py")} == {*RANK, "tests"}
    graphlib.TopologicalSorter({module: imports(module) for module in MODULES}).prepare()  # raises CycleError
