"""What the source must not do, whatever it is handed: rules over its syntax tree.

They find the few calls by which data becomes code, a statement, a shell line or an unchecked connection. ruff's
security rules are a net of the same kind; these are ours, have no `noqa`, and every exception is in a list with the
reason why what it lets through is constant.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "telnetlib", "xmlrpc"}
"""Reading with them runs what was written, or they have no authentication at all."""

BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "os.tmpnam", "os.tempnam", "tempfile.mktemp", "subprocess.getoutput",
    "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all", "ssl._create_unverified_context",
    "ssl.wrap_socket", "numpy.load", "np.load", "builtins.eval", "builtins.exec"}
PROCESSES = {"execl", "execle", "execlp", "execv", "execve", "execvp", "execvpe", "spawnl", "spawnv", "spawnvp"}
STATEMENTS = {"execute", "executemany", "executescript", "execute_fetchall", "execute_insert"}
SWITCHES = {"verify": False, "check_hostname": False, "shell": True, "verify_mode": None, "tls_insecure": True,
            "assert_hostname": False, "allow_pickle": True}


@dataclass(frozen=True, slots=True)
class Finding:
    """One place that breaks a rule."""

    rule: str
    file: str
    line: int
    code: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What an exception is made for: not the line, which moves."""
        return self.rule, self.file, self.code


def look(root: Path, folder: str) -> Iterator[Finding]:
    """All findings below a folder of the repository."""
    for path in sorted((root / folder).rglob("*.py")):
        yield from examine(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())


def examine(source: str, file: str) -> Iterator[Finding]:
    """Findings in one file."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for rule, where in _broken(node):
            yield Finding(rule, file, where.lineno, ast.unparse(where))


def _broken(node: ast.AST) -> Iterator[tuple[str, ast.expr | ast.stmt]]:
    match node:
        case ast.Import(names=names) if any(name.name.split(".")[0] in MODULES for name in names):
            yield "unsafe module", node
        case ast.ImportFrom(module=str() as module) if module.split(".")[0] in MODULES:
            yield "unsafe module", node
        case ast.ImportFrom(module=str() as module, names=names) if any(
                f"{module}.{name.name}" in CALLS for name in names):
            yield "unsafe call", node
        case ast.Call():
            yield from _call(node)
        case ast.Assign(targets=[ast.Attribute(attr=name)], value=value):
            if name in SWITCHES and _is(value, SWITCHES[name]):
                yield "check switched off", node
        case ast.Attribute(attr="CERT_NONE" | "tls_insecure_set"):
            yield "check switched off", node
        case ast.Assert(test=test) if not _narrows(test):
            yield "assert", node


def _call(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    if name in BUILTINS or name in CALLS:
        yield "unsafe call", node
    elif name == f"os.{last}" and last in PROCESSES:
        yield "another program", node
    elif last in STATEMENTS and "." in name and node.args and not _is_constant(node.args[0]):
        yield "statement made of parts", node
    for word in node.keywords:
        if word.arg in SWITCHES and _is(word.value, SWITCHES[word.arg]):
            yield "check switched off", node


def _is(value: ast.expr, wrong: bool | None) -> bool:
    """Whether the switch stands wrong; what is not a constant may stand wrong. No value at all is left to CERT_NONE."""
    if wrong is None:
        return isinstance(value, ast.Constant) and value.value in (None, 0)
    return not isinstance(value, ast.Constant) or value.value is wrong


def _is_constant(value: ast.expr) -> bool:
    """A literal, literals put together, or a name in capitals, which is a literal of its module."""
    match value:
        case ast.Constant(value=str()):
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _is_constant(left) and _is_constant(right)
        case ast.IfExp(body=body, orelse=orelse):
            return _is_constant(body) and _is_constant(orelse)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").isupper()
    return False


def _narrows(test: ast.expr) -> bool:
    """`assert x is not None` and `assert isinstance(x, T)` tell the type checker what the code around makes sure."""
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_narrows(each) for each in values)
        case ast.Compare(ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return True
        case ast.Call(func=ast.Name(id="isinstance" | "callable")):
            return True
    return False
